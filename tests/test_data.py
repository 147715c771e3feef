"""Reading and splitting text, and the order of the batches."""

import numpy as np
import pytest

from flatstep.data.batches import Batches, evaluation_batches, permute
from flatstep.data.corpus import load_corpus
from flatstep.data.sources import Document, read_documents, standard_library_files
from flatstep.data.split import split_documents
from flatstep.errors import InputError
from flatstep.training.config import make_config


def corpus(*paths, validation=None, **options):
    return load_corpus(
        [str(p) for p in paths], make_config({"block_size": 8} | options), validation=validation
    )


def values(tokens):
    return np.concatenate(list(tokens.chunks())).tobytes()


def split(texts, *arguments, **options):
    """The texts of the training and validation pieces, and the words."""
    documents = [Document(f"d{k}", 0, text) for k, text in enumerate(texts)]
    train, validation, how = split_documents(documents, *arguments, **options)
    return [bytes(p.text) for p in train], [bytes(p.text) for p in validation], how


def test_one_file_is_split_at_its_tail(tmp_path):
    text = bytes(range(32, 127)) * 20
    (tmp_path / "a.txt").write_bytes(text)
    found = corpus(tmp_path / "a.txt")
    assert values(found.train) == text[:1710]
    assert values(found.validation) == text[1710:]
    assert found.train.arrays[0].dtype == np.uint8
    assert found.size == len(text)
    assert found.files == (str(tmp_path / "a.txt"),)


def test_short_text_still_gets_a_window_of_validation(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 40)
    assert len(corpus(tmp_path / "a.txt", block_size=16).validation) == 17


def test_many_documents_are_split_whole():
    documents = [bytes([65 + k % 26]) * (49 + 7 * k) + b"\n" for k in range(100)]
    train, validation, _ = split(documents, 8, 0.1)
    assert sorted(train + validation) == sorted(documents)
    share = sum(map(len, validation)) / sum(map(len, documents))
    assert abs(share - 0.1) < 0.01
    again = split(documents, 8, 0.1)
    assert again[0] == train and again[1] == validation


def test_two_unequal_documents_are_split_at_the_tail():
    train, validation, how = split([b"a" * 900, b"b" * 100], 8, 0.05)
    assert how == "the end of the text"
    assert train == [b"a" * 900, b"\n", b"b" * 50]
    assert validation == [b"b" * 50]


def test_documents_are_kept_apart_by_a_line_end(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a" * 50)
    (tmp_path / "b.txt").write_bytes(b"b" * 50 + b"\n")
    found = corpus(tmp_path)
    whole = values(found.train) + values(found.validation)
    assert whole == b"a" * 50 + b"\n" + b"b" * 50 + b"\n"


def test_folder_skips_hidden_binary_and_empty_files(tmp_path):
    (tmp_path / "sub" / ".git").mkdir(parents=True)
    for name, content in {
        "z.md": b"z", "sub/a.py": b"a", ".hidden.txt": b"h", "sub/.git/config": b"g",
        "image.png": b"\x89PNG\0", "empty.txt": b"",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    found = read_documents([str(tmp_path), str(tmp_path / "z.md")])
    assert [document.name for document in found] == [
        str(tmp_path / "sub/a.py"), str(tmp_path / "z.md"),
    ]  # fmt: skip
    assert [document.text for document in found] == [b"a", b"z"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "empty"),
        ("binary.bin", b"abc\0def", r"binary file \(zero byte at 3\)"),
        ("missing.txt", None, "No such file"),
    ],
)
def test_unusable_file_is_named(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"{name}: .*{message}"):
        read_documents([str(tmp_path / name)])


def test_folder_without_text_and_device_file_are_refused(tmp_path):
    with pytest.raises(InputError, match="no text files"):
        read_documents([str(tmp_path)])
    with pytest.raises(InputError, match="neither a file nor a folder"):
        read_documents(["/dev/null"])


def test_too_little_text_names_the_option(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"x" * 33)
    with pytest.raises(InputError, match="33 bytes, too few for --block-size 16"):
        corpus(tmp_path / "a.txt", block_size=16)


def test_checksum_sees_every_byte_and_every_boundary(tmp_path):
    (tmp_path / "a").write_bytes(b"a" * 50)
    (tmp_path / "b").write_bytes(b"b" * 50)
    sums = {corpus(tmp_path).sha256, corpus(tmp_path, val_fraction=0.3).sha256}
    assert len(sums) == 1
    (tmp_path / "a").write_bytes(b"a" * 50 + b"b")
    (tmp_path / "b").write_bytes(b"b" * 49)
    sums.add(corpus(tmp_path).sha256)
    (tmp_path / "b").write_bytes(b"b" * 48 + b"c")
    sums.add(corpus(tmp_path).sha256)
    assert len(sums) == 3


def test_standard_library_is_sorted_and_limited():
    files = standard_library_files(limit=300_000)
    assert files and files == standard_library_files(limit=300_000)
    assert sum(len(document.text) for document in read_documents(files)) <= 300_000
    assert not any("site-packages" in name or "/test/" in name for name in files)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7, 12, 97, 1000, 4097])
def test_permutation_reaches_every_index_once(count):
    index = np.arange(count, dtype=np.uint64)
    orders = set()
    for key in range(20):
        order = permute(index, count, np.array([key * 7919], dtype=np.uint64))
        assert np.array_equal(np.sort(order), index)
        orders.add(order.tobytes())
    assert count < 4 or len(orders) > 10


def test_permutation_places_are_uniform():
    # 6000 keys x 6 places x 6 indices: each pair is expected 1000 times, sd 29.
    index = np.arange(6, dtype=np.uint64)
    counts = np.zeros((6, 6), dtype=int)
    for key in range(6000):
        counts[np.arange(6), permute(index, 6, np.array([key], dtype=np.uint64))] += 1
    assert np.abs(counts - 1000).max() < 150


def test_windows_of_one_index_under_many_keys_equal_single_calls():
    keys = np.arange(40, dtype=np.uint64) ** 3
    index = np.arange(40, dtype=np.uint64) % 23
    together = permute(index, 23, keys)
    alone = [permute(index[k : k + 1], 23, keys[k : k + 1])[0] for k in range(40)]
    assert together.tolist() == alone


@pytest.mark.parametrize("size", [17, 33, 100, 1000, 1007])
def test_an_epoch_visits_every_window_once(size):
    tokens = np.arange(size) % 251
    batches = Batches(tokens, block_size=16, batch_size=1, seed=5)
    count = batches.windows_per_epoch
    phases = set()
    for epoch in range(6):
        starts = [batches.starts(epoch * count + k)[0] for k in range(count)]
        phase = min(starts)
        assert sorted(starts) == [phase + 16 * k for k in range(count)]
        assert max(starts) + 17 <= size
        phases.add(phase)
    assert size < 100 or len(phases) > 1


def test_batches_are_the_stream_of_windows_cut_to_size():
    # Batches of 7 straddle the epochs of 61 windows.
    tokens = np.arange(1000) % 251
    single = Batches(tokens, block_size=16, batch_size=1, seed=5)
    seven = Batches(tokens, block_size=16, batch_size=7, seed=5)
    stream = [single.starts(k)[0] for k in range(210)]
    assert [s for k in range(30) for s in seven.starts(k)] == stream


def test_batches_depend_on_seed_and_number_only():
    tokens = np.arange(1000) % 251
    first = Batches(tokens, block_size=16, batch_size=4, seed=5)
    second = Batches(tokens, block_size=16, batch_size=4, seed=5)
    second.batch(99)
    other = Batches(tokens, block_size=16, batch_size=4, seed=6)
    assert np.array_equal(first.batch(3)[0], second.batch(3)[0])
    assert not np.array_equal(first.batch(3)[0], first.batch(4)[0])
    assert not np.array_equal(first.batch(3)[0], other.batch(3)[0])


def test_targets_are_the_tokens_one_place_on():
    tokens = np.arange(200, dtype=np.uint8)
    inputs, targets = Batches(tokens, block_size=16, batch_size=4, seed=0).batch(2)
    assert inputs.shape == targets.shape == (4, 16)
    assert inputs.dtype == targets.dtype == np.int32
    assert inputs.flags.c_contiguous and targets.flags.c_contiguous
    assert np.array_equal(targets, inputs + 1)


def test_large_batch_numbers_do_not_overflow():
    batches = Batches(np.arange(1000), block_size=16, batch_size=4, seed=2**63 - 1)
    starts = batches.starts(2**58)
    assert ((starts >= 0) & (starts + 17 <= 1000)).all()


def test_evaluation_windows_are_fixed_and_spread():
    tokens = np.arange(10_000) % 251

    def windows(batch_size):
        batches = evaluation_batches(tokens, block_size=16, batch_size=batch_size, max_tokens=800)
        return np.concatenate([inputs for inputs, _ in batches])

    whole = windows(7)
    assert whole.shape == (50, 16)
    assert np.array_equal(whole, windows(50))
    assert len(list(evaluation_batches(tokens[:17], block_size=16, batch_size=3))) == 1
