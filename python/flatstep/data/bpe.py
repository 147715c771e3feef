"""Byte pair encoding and other vocabularies of a Hugging Face tokenizer.json, with the package
`tokenizers` (extra [bpe])."""

import json
import threading
from pathlib import Path

import numpy as np

from ..errors import InputError
from .bpe_pieces import PIECE, pieces_of, where_to_cut
from .utf8 import check_utf8
from .vocabulary import TOKENIZER, BytesDecoder, Vocabulary

END_OF_TEXT = "<|endoftext|>"
# How tokenizers call the token between documents, the likeliest first.
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|end▁of▁sentence|>", "<|eot_id|>")
DEFAULT_SIZE, LEAST_SIZE = 4096, 257
_AT_ONCE = 1 << 19  # bytes of text; an encoding in `tokenizers` takes some 50 times as much


def _tokenizers():
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            "a BPE vocabulary needs the package tokenizers: pip install 'flatstep[bpe]'"
        ) from error
    return tokenizers


class BpeVocabulary(Vocabulary):
    """The vocabulary of a tokenizer.json, any kind.

    text: the file (bytes), kept as it is; name: what messages call it.
    Raises InputError if `tokenizers` is missing or refuses it.
    """

    kind, needs_utf8 = "bpe", True

    def __init__(self, text, name=TOKENIZER):
        package = _tokenizers()
        try:
            description = json.loads(text)
            self.tokenizer = package.Tokenizer.from_str(text.decode())
        except Exception as error:  # the package raises plain Exception
            raise InputError(f"{name}: not a Hugging Face tokenizer: {error}") from error
        # A file may ask for texts to be cut short or filled up, for a model that reads them whole.
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self._text = text
        self._numbers = self.tokenizer.get_vocab(with_added_tokens=True)
        if not self._numbers:
            raise InputError(f"{name}: a tokenizer without any token")
        self.size = max(self._numbers.values()) + 1
        self.end_of_text = next((self._numbers[e] for e in _ENDS if e in self._numbers), None)
        self._added = {entry["id"]: entry for entry in description.get("added_tokens") or []}
        self._token_bytes = self._bytes_of_tokens() if _is_byte_level(description) else None
        self._cut = where_to_cut(description)

    @classmethod
    def read(cls, path):
        """The vocabulary of a file. Raises InputError naming it."""
        try:
            return cls(Path(path).read_bytes(), str(path))
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror}") from error

    def _bytes_of_tokens(self):
        """The bytes of each token, by its number; empty for numbers that no token has."""
        byte_of = {character: value for value, character in enumerate(byte_characters())}
        found = [b""] * self.size
        for token, number in self._numbers.items():
            if number in self._added or any(character not in byte_of for character in token):
                found[number] = token.encode()
            else:
                found[number] = bytes([byte_of[character] for character in token])
        return found

    def encode(self, text):
        check_utf8(text)
        return np.concatenate([np.empty(0, self.dtype), *self._encode_long(text)])

    def encode_many(self, texts):
        # Many short texts, and the pieces of a long one, are encoded together.
        short, size = [], 0
        for text in texts:
            if len(text) > PIECE or size >= _AT_ONCE:
                yield from ([tokens] for tokens in self._encode_group(short))
                short, size = [], 0
            if len(text) > PIECE:
                yield self._encode_long(text)
            else:
                short.append(str(text, "utf-8"))
                size += len(text)
        yield from ([tokens] for tokens in self._encode_group(short))

    def _encode_long(self, text):
        group, size = [], 0
        for piece in pieces_of(text, self._cut):
            group.append(str(piece, "utf-8"))
            size += len(piece)
            if size >= _AT_ONCE:
                yield from self._encode_group(group)
                group, size = [], 0
        yield from self._encode_group(group)

    def _encode_group(self, texts):
        for encoding in self.tokenizer.encode_batch_fast(texts, add_special_tokens=False):
            yield np.array(encoding.ids, self.dtype)

    def decoder(self):
        if self._token_bytes is not None:
            return BytesDecoder(self._token_bytes)
        return _TextDecoder(self.tokenizer)

    def byte_lengths(self):
        if self._token_bytes is None:
            return None
        lengths = np.array([len(text) for text in self._token_bytes], np.int64)
        special = [number for number, entry in self._added.items() if entry.get("special")]
        lengths[special] = 0  # they stand between texts, not in them
        return lengths

    def files(self):
        return {TOKENIZER: self._text}

    def meaning(self):
        # As this version of `tokenizers` writes it: others leave out defaults, or list merges
        # in another notation.
        return {TOKENIZER: json.loads(self.tokenizer.to_str())}


class _TextDecoder:
    """Text of tokens whose bytes are not known: the difference that each makes to the whole."""

    def __init__(self, tokenizer):
        self._tokenizer = tokenizer
        self._tokens, self._shown = [], 0  # _shown: tokens whose text has been given

    def _decode(self, tokens):
        return self._tokenizer.decode(tokens, skip_special_tokens=False)

    def feed(self, token):
        self._tokens.append(token)
        before, text = self._decode(self._tokens[: self._shown]), self._decode(self._tokens)
        if text.endswith("\ufffd") or len(text) <= len(before):
            return ""  # a character may still be cut
        # The last word given stays, since spaces depend on what stands before.
        self._tokens = self._tokens[self._shown :]
        self._shown = len(self._tokens)
        return text[len(before) :]

    def end(self):
        before = self._decode(self._tokens[: self._shown])
        return self._decode(self._tokens)[len(before) :]


def byte_characters():
    """The 256 characters that stand for bytes in byte-level BPE (GPT-2).

    Printable characters of Latin-1 stand for themselves, the others lie from U+0100 on.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [value for value in range(256) if value not in printable]
    return [chr(value if value in printable else 256 + others.index(value)) for value in range(256)]


def _is_byte_level(description):
    model, decoder = description.get("model") or {}, description.get("decoder") or {}
    return model.get("type") == "BPE" and (
        decoder.get("type") == "ByteLevel"
        or any(part.get("type") == "ByteLevel" for part in decoder.get("decoders") or [])
    )


def train_bpe(texts, size=0):
    """A BpeVocabulary of byte-level BPE trained on texts (bytes or memoryviews, UTF-8).

    size: of the vocabulary, 0 for 4096; a short text may give fewer. The 256 bytes and
    <|endoftext|> are in it. Raises InputError.
    """
    package = _tokenizers()
    size = size or DEFAULT_SIZE
    if size < LEAST_SIZE:
        raise InputError(
            f"--vocab-size must be at least {LEAST_SIZE} with --vocab bpe (the bytes and "
            f"{END_OF_TEXT}), got {size}"
        )
    tokenizer = _byte_level(package, package.models.BPE())
    texts = list(texts)
    trainer = package.trainers.BpeTrainer(
        # It takes memory for as many as are asked for; a merge takes a byte of text at least.
        vocab_size=min(size, LEAST_SIZE + sum(map(len, texts))),
        special_tokens=[END_OF_TEXT],
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    cut = where_to_cut(json.loads(tokenizer.to_str()))
    pieces = (str(piece, "utf-8") for text in texts for piece in pieces_of(text, cut))
    _apart(lambda: tokenizer.train_from_iterator(pieces, trainer=trainer))
    return BpeVocabulary(tokenizer.to_str(pretty=True).encode())


def _apart(work):
    """Does long work of the package in a thread: it would hold up a Ctrl-C to its end."""
    failed = []

    def guarded():
        try:
            work()
        except BaseException as error:
            failed.append(error)

    # A daemon, so that the process can end while it is at work.
    thread = threading.Thread(target=guarded, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def _byte_level(package, model):
    tokenizer = package.Tokenizer(model)
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = package.decoders.ByteLevel()
    return tokenizer


def load_hugging_face_tokenizer(folder):
    """The BpeVocabulary of a Hugging Face folder, or None if it has none.

    Read are tokenizer.json or, without it, GPT-2's vocab.json and merges.txt.
    Raises InputError naming the file that is damaged, or if `tokenizers` is missing.
    """
    path, vocabulary, merges = (
        Path(folder, name) for name in (TOKENIZER, "vocab.json", "merges.txt")
    )
    if path.exists():
        return BpeVocabulary.read(path)
    if not (vocabulary.exists() and merges.exists()):
        return None
    package = _tokenizers()
    try:
        model = package.models.BPE.from_file(str(vocabulary), str(merges))
    except Exception as error:  # the package raises plain Exception
        raise InputError(f"{vocabulary}, {merges.name}: not GPT-2's files: {error}") from error
    tokenizer = _byte_level(package, model)
    if tokenizer.token_to_id(END_OF_TEXT) is not None:
        tokenizer.add_special_tokens([END_OF_TEXT])
    return BpeVocabulary(tokenizer.to_str().encode(), str(vocabulary))
