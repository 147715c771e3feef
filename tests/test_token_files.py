"""Files of nanoGPT and llm.c: read where they lie, and refused if they are something else."""

import hashlib
import io
import mmap
import os
import struct

import numpy as np
import pytest

from flatstep.data.batches import Batches
from flatstep.data.corpus import load_corpus, load_tokens
from flatstep.data.token_files import map_token_file, scan_token_file, write_tokens
from flatstep.data.tokens import TokenBuffer, Tokens
from flatstep.data.vocabulary import ByteVocabulary, IdVocabulary
from flatstep.errors import InputError
from flatstep.training.config import make_config


def nanogpt(tokens):
    return struct.pack(f"<{len(tokens)}H", *tokens)


def llm_c(tokens, magic=20240520, version=1, count=None, kind="H"):
    header = (magic, version, len(tokens) if count is None else count)
    return struct.pack("<256i", *header, *[0] * 253) + struct.pack(f"<{len(tokens)}{kind}", *tokens)


def write(path, content):
    path.write_bytes(content)
    return str(path)


def corpus(*paths, validation=None, vocabulary=None, **options):
    return load_corpus(
        [str(p) for p in paths], make_config({"block_size": 8} | options), vocabulary, validation
    )


def values(tokens):
    return np.concatenate(list(tokens.chunks())).tolist()


def memory_of(array):
    """The object at the end of the chain of views."""
    while isinstance(array, np.ndarray):
        array = array.base
    return getattr(array, "obj", array)


@pytest.mark.parametrize(
    ("content", "format", "tokens"),
    [
        (nanogpt([5, 0, 65535]), "nanogpt", [5, 0, 65535]),
        (nanogpt([7]), "nanogpt", [7]),
        (llm_c([50256, 1, 65535]), "llm.c", [50256, 1, 65535]),
        (llm_c([128000, 3], 20240801, 7, kind="I"), "llm.c", [128000, 3]),
        (nanogpt([55432, 309] * 600), "nanogpt", [55432, 309] * 600),
    ],
)
def test_known_files_are_read_without_a_copy(tmp_path, content, format, tokens):
    file = map_token_file(write(tmp_path / "a.bin", content))
    assert (file.format, file.tokens.tolist()) == (format, tokens)
    assert isinstance(memory_of(file.tokens), mmap.mmap)
    assert not file.tokens.flags.writeable
    assert scan_token_file(file).largest == max(tokens)
    assert scan_token_file(file).sha256 == hashlib.sha256(content[-file.tokens.nbytes :]).digest()
    found = corpus(write(tmp_path / "b.bin", nanogpt(range(200))))
    for part in (found.train, found.validation):
        assert isinstance(memory_of(part.arrays[0]), mmap.mmap)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "the file is empty"),
        (nanogpt([1, 2, 3]) + b"\0", "7 bytes, an odd number"),
        (llm_c([1, 2, 3], version=2), r"\(20240520\) of version 2, this program reads 1"),
        (llm_c([1, 2], 20240801, 1), r"\(20240801\) of version 1, this program reads 7"),
        (llm_c([1, 2, 3], count=4), "tells 4 tokens of 2 bytes, 6 bytes follow"),
        (llm_c([1, 2, 3], count=2), "tells 2 tokens of 2 bytes, 6 bytes follow"),
        (llm_c([1, 2], 20240801, 7), "tells 2 tokens of 4 bytes, 4 bytes follow"),
        (llm_c([]), "tells 0 tokens"),
        (llm_c([1], count=-1), "tells -1 tokens"),
        (llm_c([1, 2, 3])[:700], "tells 3 tokens of 2 bytes, 0 bytes follow"),
        (llm_c([1, 2, 3])[:12], "tells 3 tokens of 2 bytes, 0 bytes follow"),
        (llm_c([1, 2], 20240326, 3), "with the weights of a model, not with tokens"),
        (llm_c([1, 2], 20240522), "with an evaluation"),
        (struct.pack(">256i", 20240520, 1, 2, *[0] * 253) + b"abcd", "big-endian"),
    ],
)
def test_what_is_no_file_of_tokens_is_refused_by_name(tmp_path, content, message):
    with pytest.raises(InputError, match=rf"a\.bin: .*{message}"):
        corpus(write(tmp_path / "a.bin", content))


@pytest.mark.needs("mkfifo")
def test_a_pipe_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "a.bin")
    with pytest.raises(InputError, match=r"a\.bin: neither a file nor a folder"):
        corpus(tmp_path / "a.bin")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no\.bin: cannot be read: No such file"):
        corpus(tmp_path / "no.bin")


@pytest.mark.parametrize(
    ("format", "size", "begin"),
    [("nanogpt", 65536, b""), ("llm.c", 65536, struct.pack("<3i", 20240520, 1, 6)),
     ("llm.c", 65537, struct.pack("<3i", 20240801, 7, 6))],
)  # fmt: skip
def test_written_files_are_read_back(tmp_path, format, size, begin):
    expected = [3, 65535, 0, 4, 5, 6]
    file = io.BytesIO()
    tokens = Tokens([np.array(expected[:2], np.uint32), np.array(expected[2:], np.uint16)])
    digest = write_tokens(file, tokens, format, size)
    assert file.getvalue().startswith(begin)
    read = map_token_file(write(tmp_path / "a.bin", file.getvalue()))
    assert read.tokens.tolist() == expected
    assert scan_token_file(read).sha256.hex() == digest


def test_formats_refuse_what_they_cannot_hold():
    class Endless(Tokens):
        def __len__(self):
            return 2**31

    with pytest.raises(InputError, match="2 bytes for a token, too few for a vocabulary of 65,537"):
        write_tokens(io.BytesIO(), Tokens([]), "nanogpt", 65537)
    with pytest.raises(InputError, match="counts up to 2,147,483,647 tokens"):
        write_tokens(io.BytesIO(), Endless([]), "llm.c", 50257)


def test_a_token_outside_the_vocabulary_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("flatstep.data.token_files._CHUNK", 64)
    tokens = [k % 50 for k in range(500)]
    tokens[300] = tokens[400] = 77
    path = write(tmp_path / "a.bin", llm_c(tokens))
    assert corpus(path).vocabulary.size == 78
    assert corpus(path, vocab_size=100).vocabulary.size == 100
    for options in ({"vocab_size": 77}, {"vocabulary": IdVocabulary(60)}):
        with pytest.raises(InputError, match=r"a\.bin: token 77 at position 300 is not in .* [67]"):
            corpus(path, **options)
    bytes_of = corpus(path, vocab="byte").vocabulary
    assert bytes_of.kind == "byte"
    with pytest.raises(InputError, match=r"a\.bin: token 77 at position 300"):
        load_tokens([path], make_config({}), IdVocabulary(77))


def test_files_named_val_are_for_validation_else_the_tail(tmp_path):
    shards = [write(tmp_path / f"x_train_{k}.bin", llm_c(range(100 * k, 100 * k + 90)))
              for k in range(3)]  # fmt: skip
    val = write(tmp_path / "x_val_0.bin", llm_c(range(40)))
    found = corpus(*shards, val)
    assert found.split == "1 of 4 files" and found.documents == 4
    assert values(found.train) == [100 * k + j for k in range(3) for j in range(90)]
    assert values(found.validation) == list(range(40))
    assert found.files == (*shards, val)
    assert found.vocabulary.size == 290
    assert corpus(*shards, val, val_split="documents").split == found.split
    tail = corpus(*shards, val_split="tail")
    assert tail.split == "the end of the tokens"
    assert values(tail.validation) == [200 + j for j in range(63, 90)]
    assert len(tail.train) == 243
    assert len(corpus(*shards, val, val_split="tail").train) == 310 - 31
    assert corpus(val).split == "the end of the tokens"
    with pytest.raises(InputError, match=r"documents: of \.bin files, .* there are 0 among 3"):
        corpus(*shards, val_split="documents")
    with pytest.raises(InputError, match="8 tokens for validation"):
        corpus(*shards, write(tmp_path / "short_val.bin", llm_c(range(8))))
    with pytest.raises(InputError, match="17 tokens in all, too few for --block-size 8"):
        corpus(write(tmp_path / "short.bin", nanogpt(range(17))))


def test_validation_files_of_their_own(tmp_path):
    train = write(tmp_path / "a_val.bin", nanogpt(range(100)))
    val = write(tmp_path / "b.bin", nanogpt(range(100, 150)))
    found = corpus(train, validation=[val], vocab_size=200)
    assert values(found.train) == list(range(100))
    assert values(found.validation) == list(range(100, 150))
    assert (found.val_files, found.documents, found.size) == ((val,), 2, 300)
    other = corpus(train, validation=[write(tmp_path / "c.bin", nanogpt(range(50)))])
    assert found.sha256 != other.sha256 != corpus(train).sha256
    with pytest.raises(InputError, match=r"b\.bin: token 100 at position 0"):
        corpus(train, validation=[val])
    with pytest.raises(InputError, match=r"a\.txt: text, but the vocabulary is of ids"):
        corpus(train, validation=[write(tmp_path / "a.txt", b"some text")])
    text = corpus(tmp_path / "a.txt", validation=[train], vocab="byte")
    assert values(text.train) == list(b"some text")
    assert values(text.validation) == list(range(100))


def test_files_of_tokens_need_a_vocabulary_that_fits(tmp_path):
    path = write(tmp_path / "a.bin", nanogpt(range(200)))
    with pytest.raises(InputError, match=r"--vocab char: \.bin files do not tell"):
        corpus(path, vocab="char")
    with pytest.raises(InputError, match=r"--vocab bpe: .*; name its --tokenizer"):
        corpus(path, vocab="bpe")
    with pytest.raises(InputError, match=r"a\.bin \(tokens\) and .*b\.txt \(text\) cannot go"):
        corpus(path, write(tmp_path / "b.txt", b"text"))
    with pytest.raises(InputError, match=r"no text files in this folder; name .*\*\.bin"):
        corpus(make_folder(tmp_path, nanogpt([0, 1])))


def make_folder(tmp_path, content):
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder/a.bin", content)
    return tmp_path / "folder"


def test_checksum_sees_every_token_and_file(tmp_path):
    def checksum(*contents):
        paths = [write(tmp_path / f"{k}.bin", content) for k, content in enumerate(contents)]
        return corpus(*paths).sha256

    one, two = list(range(100)), list(range(50, 90))
    sums = [
        checksum(nanogpt(one), nanogpt(two)),
        checksum(nanogpt(two), nanogpt(one)),
        checksum(nanogpt(one + two)),
        checksum(nanogpt(one), nanogpt([*two[:-1], 1])),
    ]
    assert len(set(sums)) == 4
    assert checksum(nanogpt(one), llm_c(two)) == sums[0]


def test_windows_over_shards_are_those_of_one_array(rng):
    whole = rng.integers(0, 60_000, 1000)
    cuts = np.sort(rng.choice(1000, 9, replace=False))
    shards = np.split(whole.astype(np.uint16), np.sort([*cuts, 500, 500]))
    tokens, single = Tokens(shards), Tokens([whole])
    assert len(tokens) == 1000
    starts = np.arange(1000 - 40)
    assert np.array_equal(tokens.windows(starts, 41), single.windows(starts, 41))
    assert tokens.windows(starts[:0], 41).shape == (0, 41)
    assert tokens.windows(starts, 41).dtype == np.int32
    for first, last in ((0, 1000), (3, 700), (int(cuts[2]), int(cuts[5])), (10, 10)):
        part = tokens.part(first, last)
        assert len(part) == last - first
        assert [t for a in part.arrays for t in a.tolist()] == whole[first:last].tolist()
        assert all(any(np.shares_memory(array, shard) for shard in shards) for array in part.arrays)


def test_an_epoch_visits_every_window_of_shards_once():
    shards = [np.arange(first, last) for first, last in ((0, 5), (5, 330), (330, 331), (331, 1007))]
    batches = Batches(Tokens(shards), block_size=16, batch_size=3, seed=5)
    count = batches.windows_per_epoch
    stream = np.concatenate([batches.batch(k)[0] for k in range(count)])
    for epoch in range(3):
        windows = stream[epoch * count : (epoch + 1) * count]
        phase = int(windows[:, 0].min())
        assert sorted(windows[:, 0].tolist()) == [phase + 16 * k for k in range(count)]
        assert (np.diff(windows, axis=1) == 1).all()


def test_a_buffer_grows_and_is_cut_to_size(rng):
    buffer, parts = TokenBuffer(np.uint16), []
    for size in (0, 1, 65_535, 3, 200_000, 7):
        parts.append(rng.integers(0, 65_536, size).astype(np.uint16))
        buffer.append(parts[-1])
    assert np.array_equal(buffer.finish(), np.concatenate(parts))
    assert len(TokenBuffer(np.uint8).finish()) == 0


def test_tokens_as_text_of_bytes(tmp_path):
    path = write(tmp_path / "a.bin", nanogpt(b"some text, in bytes, as numbers of nanoGPT's file"))
    found = corpus(path, vocab="byte")
    assert ByteVocabulary().decode(values(found.train)).startswith("some text")
