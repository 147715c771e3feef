"""Vocabularies without further packages: bytes, characters, numbers; and UTF-8 in pieces."""

import json

import numpy as np
import pytest

from flatstep.data.utf8 import EncodingError, check_utf8, utf8_chunks
from flatstep.data.vocabulary import (
    ByteVocabulary,
    CharVocabulary,
    IdVocabulary,
    load_vocabulary,
)
from flatstep.errors import InputError

TEXT = "naïve ✓ 😀\n\u2028 Ångström \U0010ffff\x00 end"


def store(folder, vocabulary):
    for name, content in vocabulary.files().items():
        (folder / name).write_bytes(content)


def test_bytes_round_trip_whatever_they_are(rng):
    vocabulary = ByteVocabulary()
    for size in (0, 1, 1000):
        text = rng.integers(0, 256, size).astype(np.uint8).tobytes()
        tokens = vocabulary.encode(text)
        assert tokens.dtype == np.uint8 and tokens.tobytes() == text
        assert vocabulary.decode(tokens) == text.decode(errors="replace")
    assert vocabulary.byte_lengths().tolist() == [1] * 256


def test_characters_are_numbered_in_the_order_of_code_points():
    vocabulary = CharVocabulary.of([b"banana", "é✓a".encode()])
    assert vocabulary.characters == "abné✓"
    tokens = vocabulary.encode("nab✓é".encode())
    assert tokens.tolist() == [2, 0, 1, 4, 3] and tokens.dtype == np.uint8
    assert vocabulary.decode(tokens) == "nab✓é"
    assert vocabulary.byte_lengths().tolist() == [1, 1, 1, 2, 3]
    assert vocabulary.encode(b"").tolist() == []


@pytest.mark.parametrize(("count", "kind"), [(256, np.uint8), (257, np.uint16), (70_000, "u4")])
def test_tokens_take_the_smallest_type(count, kind):
    characters = [chr(k) for k in range(0x10000, 0x10000 + count)]
    vocabulary = CharVocabulary("".join(characters))
    tokens = vocabulary.encode("".join(characters[::-1]).encode())
    assert tokens.dtype == kind
    assert tokens.tolist() == list(range(count))[::-1]


def test_characters_of_long_text_round_trip(monkeypatch):
    monkeypatch.setattr("flatstep.data.utf8.utf8_chunks.__defaults__", (7,))
    vocabulary = CharVocabulary.of([TEXT.encode(), b"plain ascii, longer than a chunk"])
    assert vocabulary.size == len(set(TEXT + "plain ascii, longer than a chunk"))
    for text in (TEXT, TEXT * 5, "plain ascii" * 5):
        tokens = vocabulary.encode(text.encode())
        assert vocabulary.decode(tokens) == text
        assert vocabulary.byte_lengths()[tokens].sum() == len(text.encode())


def test_an_unknown_character_is_named_with_its_place(monkeypatch):
    vocabulary = CharVocabulary.of(["aé ".encode()])
    for size in (5, 1 << 20):
        monkeypatch.setattr("flatstep.data.utf8.utf8_chunks.__defaults__", (size,))
        with pytest.raises(EncodingError, match=r"'✓' \(U\+2713\) is not in .*, at byte 7") as info:
            vocabulary.encode("aé aé✓a".encode())
        assert info.value.place == 7
        with pytest.raises(
            InputError, match=r"'b' \(U\+0062\) is not in the vocabulary, at byte 9"
        ):
            vocabulary.encode(b"a a a a aba")


@pytest.mark.parametrize(
    ("text", "place"),
    [(b"\xff", 0), (b"ab\xc3", 2), (b"abcdefgh\xe2\x9c", 8), (b"abc\x80def", 3),
     ("é✓".encode() * 9 + b"\xed\xa0\x80", 45), (b"a\x80\x80\x80\x80\x80\x80\x80\x80\x80", 1)],
)  # fmt: skip
@pytest.mark.parametrize("size", [4, 5, 8, 1000])
def test_text_that_is_not_utf8_is_refused_at_its_byte(text, place, size, monkeypatch):
    monkeypatch.setattr("flatstep.data.utf8.utf8_chunks.__defaults__", (size,))
    with pytest.raises(
        InputError, match=rf"not UTF-8 \(byte 0x{text[place]:02x}\), at byte {place}"
    ):
        check_utf8(text)


def test_pieces_of_utf8_are_whole_characters():
    text = TEXT.encode() * 3
    for buffer in (text, memoryview(text)):
        for size in range(4, 12):
            chunks = list(utf8_chunks(buffer, size))
            assert "".join(chunk for _, chunk in chunks) == TEXT * 3
            assert [place for place, _ in chunks][1] in range(size - 3, size + 1)


def test_a_character_cut_in_the_middle_is_shown_when_it_is_whole():
    decoder = ByteVocabulary().decoder()
    shown = [decoder.feed(byte) for byte in "é😀".encode() + b"\xf0\x9f"]
    assert shown == ["", "é", "", "", "", "😀", "", ""]
    assert decoder.end() == "\ufffd"
    assert decoder.end() == ""


def test_numbers_are_words():
    vocabulary = IdVocabulary(70_000)
    tokens = vocabulary.encode(b" 0 69999\n12\t7 ")
    assert tokens.tolist() == [0, 69_999, 12, 7] and tokens.dtype == np.uint32
    assert vocabulary.decode(tokens) == "0 69999 12 7"
    assert vocabulary.byte_lengths() is None
    assert IdVocabulary(1 << 16).encode(b"5").dtype == np.uint16
    for text, message in ((b"1 70000", "the token 70000 is not below 70000"), (b"1 x2", "'x2'"),
                          (b"-1", "'-1'"), (b"\xff", "numbers were expected")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            vocabulary.encode(text)


def test_what_an_empty_prompt_stands_for():
    assert ByteVocabulary().beginning().tolist() == [10]
    assert CharVocabulary("\nab").beginning().tolist() == [0]
    assert CharVocabulary("ab").beginning().tolist() == [0]
    assert IdVocabulary(5).beginning().tolist() == [0]


@pytest.mark.parametrize(
    "vocabulary",
    [ByteVocabulary(), CharVocabulary.of([TEXT.encode()]), IdVocabulary(50257)],
    ids=["byte", "char", "ids"],
)
def test_stored_vocabularies_are_read_back(tmp_path, vocabulary):
    store(tmp_path, vocabulary)
    found = load_vocabulary(tmp_path)
    assert (type(found), found.size, found.files()) == (
        type(vocabulary), vocabulary.size, vocabulary.files(),
    )  # fmt: skip


def test_a_folder_without_a_vocabulary_is_of_bytes(tmp_path):
    assert load_vocabulary(tmp_path).kind == "byte"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read"),
        (b"[1]", "an object was expected"),
        (b"\xff{}", "cannot be read"),
        ({"kind": "word"}, "kind 'word', which is not known here"),
        ({}, "kind None"),
        ({"kind": "char"}, "without its contents"),
        ({"kind": "char", "characters": ""}, "without its contents"),
        ({"kind": "char", "characters": "ba"}, "not in order"),
        ({"kind": "char", "characters": "aab"}, "not in order"),
        ({"kind": "char", "characters": "a\ud800"}, "not in order"),
        ({"kind": "ids", "size": 0}, "without its contents"),
        ({"kind": "ids", "size": True}, "without its contents"),
        ({"kind": "ids", "size": 2**31}, "without its contents"),
    ],
)
def test_a_damaged_vocabulary_is_refused_by_name(tmp_path, content, message):
    content = content if isinstance(content, bytes) else json.dumps(content).encode()
    (tmp_path / "vocabulary.json").write_bytes(content)
    with pytest.raises(InputError, match=rf"vocabulary\.json: .*{message}"):
        load_vocabulary(tmp_path)
