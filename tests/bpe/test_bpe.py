"""BPE vocabularies, trained and given; long texts in pieces; decoding token by token."""

import hashlib
import json
import random
import signal
import time

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from flatstep.data import bpe
from flatstep.data.bpe import BpeVocabulary, _apart, load_hugging_face_tokenizer, train_bpe
from flatstep.data.bpe_pieces import _KNOWN, GPT2_CUT, SPACE_CUT, pieces_of, where_to_cut
from flatstep.data.vocabulary import load_vocabulary
from flatstep.errors import InputError

TEXT = "The quick brown fox jumps over the lazy dog; naïve ✓ 😀 don't they'll.\n" * 40
WORDS = " ".join(
    first + middle + last
    for first in "bdfghklmn"
    for middle in ("an", "ou", "i", "eas", "or")
    for last in ("", "ter", "s", "ing")
)


@pytest.fixture(scope="module")
def trained():
    return train_bpe([TEXT.encode(), WORDS.encode()], 400)


def random_text(seed, length=3000):
    """Words, marks and every kind of white space, often several in a row."""
    draw = random.Random(seed)
    parts = ["the", "Fox", "é✓", "😀", "'s", "'LL", "42", "1234567", "};", "...", "-", "<|end", "x"]
    spaces = [" ", " ", "  ", "\n", "\n\n", "\r\n", "\t", " \n ", "\u00a0", "\u3000", "\u2028",
              "\x1c", "\x85", "\u200b", ""]  # fmt: skip
    return "".join(draw.choice(parts) + draw.choice(spaces) for _ in range(length))


def test_trained_vocabulary_holds_all_bytes_and_the_end_of_text(trained):
    assert trained.size == 400 and trained.kind == "bpe"
    assert trained.end_of_text == trained.tokenizer.token_to_id("<|endoftext|>")
    single = {text for text in trained._token_bytes if len(text) == 1}
    assert len(single) == 256
    tokens = trained.encode(TEXT.encode())
    assert tokens.dtype == np.uint16 and len(tokens) < len(TEXT) / 2
    assert trained.decode(tokens) == TEXT
    lengths = trained.byte_lengths()
    assert lengths.dtype == np.int64 and len(lengths) == 400
    assert lengths[tokens].sum() == len(TEXT.encode())
    assert lengths[trained.end_of_text] == 0
    assert trained.encode(b"").tolist() == []
    with pytest.raises(InputError, match=r"not UTF-8 \(byte 0xff\), at byte 3"):
        trained.encode(b"abc\xff")
    assert trained.beginning().tolist() == [trained.end_of_text]


def test_any_utf8_round_trips(trained):
    for seed in range(20):
        text = random_text(seed, 200) + "".join(map(chr, range(seed * 40, seed * 40 + 40)))
        assert trained.decode(trained.encode(text.encode())) == text


def test_training_has_the_asked_or_a_smaller_size():
    assert train_bpe([b"ab ab ab"], 4096).size < 300
    assert train_bpe([TEXT.encode()], 257).size == 257
    assert bpe.DEFAULT_SIZE == 4096
    for size in (1, 256):
        with pytest.raises(InputError, match=f"--vocab-size must be at least 257 .* got {size}"):
            train_bpe([b"text"], size)


def test_same_text_same_vocabulary(trained):
    assert train_bpe([TEXT.encode(), WORDS.encode()], 400).files() == trained.files()


def llama3(pattern):
    """A trained vocabulary with another expression for its words, stored as Llama 3 does."""
    description = json.loads(train_bpe([random_text(1).encode() + TEXT.encode()], 700)._text)
    description["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": False},
            {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
             "use_regex": False},
        ],
    }  # fmt: skip
    return BpeVocabulary(json.dumps(description).encode())


@pytest.mark.parametrize("pattern", ["GPT-2", *sorted(_KNOWN)])
def test_tokens_of_pieces_are_those_of_the_whole(pattern, monkeypatch):
    if pattern == "GPT-2":
        vocabulary = train_bpe([random_text(1).encode() + TEXT.encode()], 700)
        assert vocabulary._cut is GPT2_CUT
    else:
        vocabulary = llama3(pattern)
        assert vocabulary._cut is SPACE_CUT
    cuts = 0
    for seed in range(30):
        text = random_text(seed).encode()
        whole = vocabulary.tokenizer.encode(text.decode(), add_special_tokens=False).ids
        for size in (1, 7, 100):
            pieces = list(pieces_of(memoryview(text), vocabulary._cut, size))
            cuts += len(pieces)
            assert b"".join(pieces) == text
            encodings = vocabulary.tokenizer.encode_batch([str(p, "utf-8") for p in pieces])
            assert [token for encoding in encodings for token in encoding.ids] == whole
    assert cuts > 10_000
    monkeypatch.setattr(bpe, "PIECE", 50)
    monkeypatch.setattr(bpe, "_AT_ONCE", 120)
    monkeypatch.setattr(pieces_of, "__defaults__", (50,))
    texts = [random_text(seed, 1 + 20 * (seed % 5)) for seed in range(20)]
    found = [np.concatenate(list(part)) for part in vocabulary.encode_many(map(str.encode, texts))]
    expected = [vocabulary.tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    assert [tokens.tolist() for tokens in found] == expected


def test_what_cannot_be_cut_stays_whole(trained):
    def cut(**changes):
        return where_to_cut(json.loads(trained._text) | changes)

    level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    entry = {"id": 0, "content": "<x>"}
    assert cut() is GPT2_CUT and cut(pre_tokenizer=level, added_tokens=[entry]) is GPT2_CUT
    for changes in (
        {"normalizer": {"type": "NFC"}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace"}},
        {"pre_tokenizer": level | {"add_prefix_space": True}},
        {"pre_tokenizer": level | {"use_regex": False}},
        {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Isolated"},
            level | {"use_regex": False}]}},
        {"added_tokens": [entry | {"rstrip": True}]},
        {"added_tokens": [entry | {"content": "two words"}]},
    ):  # fmt: skip
        assert cut(**changes) is None
    assert list(pieces_of(b"a b c", None, 1)) == [b"a b c"]


def test_a_long_text_without_spaces_is_one_piece():
    assert len(list(pieces_of(b"x" * 1000, GPT2_CUT, 10))) == 1
    assert list(pieces_of("ab\u3000 cd ef".encode(), GPT2_CUT, 1)) == [
        "ab\u3000 cd".encode(), b" ef",
    ]  # fmt: skip


def test_tokens_decode_one_by_one_as_in_one(trained):
    rng = np.random.default_rng(5)
    for tokens in (trained.encode(TEXT[:200].encode()), rng.integers(0, 400, 500)):
        decoder = trained.decoder()
        pieces = [decoder.feed(int(token)) for token in tokens] + [decoder.end()]
        expected = b"".join(trained._token_bytes[token] for token in tokens)
        assert "".join(pieces) == expected.decode(errors="replace")
    decoder = trained.decoder()
    assert (decoder.feed(400), decoder.feed(10**6)) == ("", "")


def test_special_tokens_in_text_are_themselves(trained):
    tokens = trained.encode(b"one<|endoftext|>two")
    assert trained.end_of_text in tokens
    assert trained.decode(tokens) == "one<|endoftext|>two"


def store(path, tokenizer):
    tokenizer.save(str(path))
    return BpeVocabulary.read(path)


def test_a_file_that_cuts_and_fills_texts_does_neither(tmp_path, trained):
    tokenizer = Tokenizer.from_str(trained._text.decode())
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=32)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", trained.end_of_text)]
    )
    given = store(tmp_path / "t.json", tokenizer)
    for text in (TEXT.encode(), b"fox"):
        assert given.encode(text).tolist() == trained.encode(text).tolist()
    assert given.files() == {"tokenizer.json": (tmp_path / "t.json").read_bytes()}


def word_pieces():
    words = ["[UNK]", "the", "fox", "##es", "jump", "##ed", ",", "</s>"]
    tokenizer = Tokenizer(
        models.WordPiece({word: k for k, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    return tokenizer


def sentence_pieces():
    pieces = [("<unk>", 0.0), ("</s>", 0.0), ("\u2581the", -1.0), ("\u2581f", -2.0), ("ox", -2.0),
              ("\u2581", -3.0), ("é", -3.0), ("<0xF0>", -9.0), ("<0x9F>", -9.0), ("<0x98>", -9.0),
              ("<0x80>", -9.0)]  # fmt: skip
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("make", "text", "shown"),
    [(word_pieces, "The foxes jumped, the fox", "the foxes jumped , the fox"),
     (sentence_pieces, "the fox é 😀 the", "the fox é 😀 the")],
)  # fmt: skip
def test_other_kinds_of_tokenizer(tmp_path, make, text, shown):
    vocabulary = store(tmp_path / "t.json", make())
    assert vocabulary.byte_lengths() is None
    assert vocabulary._cut is None
    assert vocabulary.end_of_text == vocabulary.tokenizer.token_to_id("</s>")
    tokens = vocabulary.encode(text.encode())
    assert vocabulary.decode(tokens) == shown
    decoder = vocabulary.decoder()
    pieces = [piece for piece in map(decoder.feed, tokens.tolist()) if piece]
    assert len(pieces) > 3 and len(decoder._tokens) < 4  # long texts take no longer by the token


def test_a_folder_of_hugging_face(tmp_path, trained):
    assert load_hugging_face_tokenizer(tmp_path) is None
    model = json.loads(trained._text)["model"]
    names = {token: number for token, number in model["vocab"].items() if token != "<|endoftext|>"}
    names = {token: number - 1 for token, number in names.items()} | {"<|endoftext|>": len(names)}
    (tmp_path / "vocab.json").write_text(json.dumps(names))
    assert load_hugging_face_tokenizer(tmp_path) is None
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    found = load_hugging_face_tokenizer(tmp_path)
    assert (found.size, found.end_of_text, found._cut) == (400, 399, GPT2_CUT)
    assert found.encode(TEXT.encode()).tolist() == (trained.encode(TEXT.encode()) - 1).tolist()
    assert 399 in found.encode(b"a<|endoftext|>b")
    assert found.byte_lengths()[found.encode(TEXT.encode())].sum() == len(TEXT.encode())
    (tmp_path / "tokenizer.json").write_bytes(trained._text)
    assert load_hugging_face_tokenizer(tmp_path).files() == trained.files()
    assert load_vocabulary(tmp_path).size == 400
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "merges.txt").write_text("one two three four\n")
    with pytest.raises(InputError, match=r"vocab\.json, merges\.txt: not GPT-2's files"):
        load_hugging_face_tokenizer(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b"\xff\xfe", b'{"model": {}}', b"null"])
def test_a_damaged_file_is_refused_by_name(tmp_path, content):
    (tmp_path / "tokenizer.json").write_bytes(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: not a Hugging Face tokenizer"):
        load_vocabulary(tmp_path)
    with pytest.raises(InputError, match=r"missing\.json: cannot be read"):
        BpeVocabulary.read(tmp_path / "missing.json")


def test_a_tokenizer_without_tokens_is_refused():
    with pytest.raises(InputError, match="without any token"):
        BpeVocabulary(Tokenizer(models.BPE()).to_str().encode())


def test_training_a_vocabulary_can_be_interrupted():
    """The package does not look at signals."""

    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            _apart(lambda: hashlib.pbkdf2_hmac("sha256", b"", b"", 4_000_000))
        assert time.monotonic() - began < 0.5
    finally:
        signal.signal(signal.SIGALRM, before)


def test_what_training_a_vocabulary_raises_arrives():
    with pytest.raises(UnicodeDecodeError):
        train_bpe([b"good ", b"\xff bad "])
