"""Vocabularies: how text becomes tokens and tokens become text.

Each has `kind`, `size`, `end_of_text` (the token between documents, or None), encode, decoder,
byte_lengths and files; `load_vocabulary` reads those files again. BPE is in bpe.py.
"""

import codecs
import json
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np

from .._files import read_json
from ..errors import InputError
from .utf8 import EncodingError, utf8_chunks

VOCABULARY, TOKENIZER = "vocabulary.json", "tokenizer.json"


def token_type(size):
    """The smallest unsigned type for tokens below `size`."""
    return np.dtype(np.uint8 if size <= 256 else np.uint16 if size <= 65536 else np.uint32)


class Vocabulary(ABC):
    """What the vocabularies share."""

    kind = ""
    size = 0
    end_of_text = None
    needs_utf8 = False

    @property
    def dtype(self):
        """The type of the arrays that encode returns."""
        return token_type(self.size)

    @abstractmethod
    def encode(self, text):
        """The tokens of one document (bytes): 1-D, uint8, uint16 or uint32.

        Raises EncodingError, an InputError, if it cannot.
        """

    @abstractmethod
    def decoder(self):
        """An object with feed(token), the str of whole characters that a token completes, and
        end(), what is left then."""

    @abstractmethod
    def files(self):
        """{name: bytes} of what load_vocabulary reads again."""

    def encode_many(self, texts):
        """Yields the tokens of each text in turn, as an iterable of arrays: a long text has more.

        Each must be used up before the next. Errors as encode, also while one is used.
        """
        return ([self.encode(text)] for text in texts)

    def beginning(self):
        """The tokens that stand for an empty prompt: the end of a text before, or a line end."""
        if self.end_of_text is not None:
            return np.array([self.end_of_text], self.dtype)
        try:
            return self.encode(b"\n")
        except InputError:
            return np.zeros(1, self.dtype)

    def decode(self, tokens):
        """The text of a row of tokens; bytes that are not UTF-8 show as U+FFFD."""
        decoder = self.decoder()
        return "".join([decoder.feed(int(token)) for token in tokens]) + decoder.end()

    def byte_lengths(self):
        """Bytes of text of each token: int64 [size]; None where that is not known."""
        return None

    def meaning(self):
        """What files() hold, however it is written: equal for vocabularies with equal tokens."""
        return {name: json.loads(content) for name, content in self.files().items()}


class BytesDecoder:
    """Text of tokens that are bytes each: whole characters as soon as they are complete."""

    def __init__(self, token_bytes):
        self._token_bytes = token_bytes
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token):
        """The characters that `token` completes; none for a token that the vocabulary lacks."""
        known = 0 <= token < len(self._token_bytes)
        return self._decoder.decode(self._token_bytes[token] if known else b"")

    def end(self):
        """What is left of a character that was cut, as U+FFFD."""
        return self._decoder.decode(b"", final=True)


class ByteVocabulary(Vocabulary):
    """Each byte is a token."""

    kind, size = "byte", 256

    def encode(self, text):
        return np.frombuffer(text, dtype=np.uint8)

    def decoder(self):
        return BytesDecoder([bytes([value]) for value in range(256)])

    def byte_lengths(self):
        return np.ones(256, np.int64)

    def files(self):
        return {VOCABULARY: _json_bytes({"kind": "byte"})}


class CharVocabulary(Vocabulary):
    """Each Unicode character of some text is a token, in the order of code points."""

    kind, needs_utf8 = "char", True

    def __init__(self, characters):
        """characters: a str in ascending order, each once."""
        self.characters = characters
        self.size = len(characters)
        self._codes = _code_points(characters)
        # The token of each ASCII byte: most texts need nothing else.
        self._ascii = np.full(128, -1, np.int32)
        own = self._codes[self._codes < 128]
        self._ascii[own] = np.arange(len(own))

    @classmethod
    def of(cls, texts):
        """The vocabulary of all characters in some texts (bytes, UTF-8)."""
        seen = np.zeros(0x110000, bool)
        for text in texts:
            for _, chunk in utf8_chunks(text):
                seen[_code_points(chunk)] = True
        return cls("".join(map(chr, np.flatnonzero(seen))))

    def encode(self, text):
        return np.concatenate([np.empty(0, self.dtype), *self._encode_chunks(text)])

    def encode_many(self, texts):
        return map(self._encode_chunks, texts)

    def _encode_chunks(self, text):
        for place, chunk in utf8_chunks(text):
            yield self._encode_chunk(place, chunk)

    def _encode_chunk(self, place, chunk):
        codes = _code_points(chunk)
        if chunk.isascii():
            tokens = self._ascii[codes]
            unknown = tokens < 0
        else:
            tokens = np.minimum(np.searchsorted(self._codes, codes), self.size - 1)
            unknown = self._codes[tokens] != codes
        if unknown.any():
            first = int(np.argmax(unknown))
            raise EncodingError(
                f"the character {chunk[first]!r} (U+{codes[first]:04X}) is not in the vocabulary",
                place + len(chunk[:first].encode()),
            )
        return tokens.astype(self.dtype)

    def decoder(self):
        return BytesDecoder([character.encode() for character in self.characters])

    def byte_lengths(self):
        return np.array([len(character.encode()) for character in self.characters], np.int64)

    def files(self):
        return {VOCABULARY: _json_bytes({"kind": "char", "characters": self.characters})}


class IdVocabulary(Vocabulary):
    """Token numbers whose text is not known; as text they are decimal numbers."""

    kind = "ids"

    def __init__(self, size):
        self.size = size

    def encode(self, text):
        tokens = []
        for word in text.split():
            if not word.isdigit() or len(word) > 10:
                raise InputError(
                    f"token numbers were expected, got {word[:40].decode(errors='replace')!r}"
                )
            tokens.append(int(word))
            if tokens[-1] >= self.size:
                raise InputError(f"the token {tokens[-1]} is not below {self.size}")
        return np.array(tokens, self.dtype)

    def beginning(self):
        return np.zeros(1, self.dtype)

    def decoder(self):
        return _NumberDecoder()

    def files(self):
        return {VOCABULARY: _json_bytes({"kind": "ids", "size": self.size})}


class _NumberDecoder:
    def __init__(self):
        self._before = ""

    def feed(self, token):
        text, self._before = f"{self._before}{token}", " "
        return text

    def end(self):
        return ""


def _code_points(text):
    return np.frombuffer(text.encode("utf-32-le"), "<u4")


def _json_bytes(value):
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def load_vocabulary(folder):
    """The vocabulary that is stored in the folder of a run, a checkpoint or prepared data.

    A folder without one is of bytes, as runs were before there were others. Raises InputError
    naming the file that is damaged.
    """
    path = Path(folder, VOCABULARY)
    if not path.exists() and Path(folder, TOKENIZER).exists():
        from .bpe import BpeVocabulary

        return BpeVocabulary.read(Path(folder, TOKENIZER))
    if not path.exists():
        return ByteVocabulary()
    stored = read_json(path, InputError)
    kind, characters, size = (stored.get(name) for name in ("kind", "characters", "size"))
    if kind == "byte":
        return ByteVocabulary()
    if kind == "char" and isinstance(characters, str) and characters:
        if sorted(set(characters)) == list(characters) and not _has_surrogates(characters):
            return CharVocabulary(characters)
        raise InputError(f"{path}: damaged: its characters are not in order, each once")
    if kind == "ids" and type(size) is int and 1 <= size < 2**31:
        return IdVocabulary(size)
    if kind in ("char", "ids"):
        raise InputError(f"{path}: damaged: a vocabulary {kind!r} without its contents")
    raise InputError(f"{path}: a vocabulary of the kind {kind!r}, which is not known here")


def _has_surrogates(text):
    return any(0xD800 <= ord(character) < 0xE000 for character in text)
