"""flatstep prepare, and runs in every vocabulary that needs no package, from the command line."""

import errno
import json
import os
import struct

import pytest
from data_case import TINY, assert_refused, bits, check_prepared, config_of, succeed

from flatstep.cli import main
from flatstep.commands.prepare import _lines
from flatstep.data.corpus import load_corpus
from flatstep.data.prepared import read_prepared, write_prepared
from flatstep.data.token_files import map_token_file
from flatstep.errors import InputError
from flatstep.training.config import make_config
from flatstep.training.loop import resume, start
from flatstep.training.model_folder import load_model

OPTIONS = {"steps": 4, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4}


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {k:3d} of a smäll sample ✓.\n" for k in range(60)), "utf-8")
    return path


def prepared(text, folder, format="llm.c", **options):
    corpus = load_corpus([str(text)], make_config({"block_size": 1} | options))
    write_prepared(folder, corpus, format, "0")
    return corpus


def test_bytes_from_files_to_a_sample(tmp_path, text):
    sample = check_prepared(tmp_path, [text], [], "vocabulary.json", "line 1")
    assert len(sample) > len("line 1")


def test_characters_from_lines_of_json_to_a_sample(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"story": f"smäll text {k} ✓."}) + "\n" for k in range(200)))
    options = ["--vocab", "char", "--text-field", "story", "--val-split", "documents"]
    sample = check_prepared(
        tmp_path, [path], [*options, "--format", "nanogpt"], "vocabulary.json", "smäll ✓"
    )
    assert len(sample.rstrip("\n")) >= 20 and set(sample) <= set("smäl tex0123456789✓.\n")
    assert_refused("'Q' (U+0051) is not in the vocabulary", "sample", tmp_path / "direct",
                   "--prompt", "tQ")  # fmt: skip
    described = json.loads((tmp_path / "data/data.json").read_text())
    assert described["split"] == "20 of 200 documents" and described["documents"] == 200
    assert map_token_file(tmp_path / "data/train.bin").format == "nanogpt"


def test_numbers_from_shards_to_a_sample(tmp_path):
    shards = []
    for name, count in (("train_0", 700), ("train_1", 500), ("val_0", 100)):
        shards.append(tmp_path / f"{name}.bin")
        tokens = [(k * k) % 97 for k in range(count)]
        header = struct.pack("<256i", 20240520, 1, count, *[0] * 253)
        shards[-1].write_bytes(header + struct.pack(f"<{count}H", *tokens))
    sample = check_prepared(tmp_path, shards, ["--vocab-size", "100"], "vocabulary.json", "1 2 3")
    numbers = [int(word) for word in sample.split()]
    assert len(numbers) == 23 and max(numbers) < 100
    assert config_of(tmp_path / "whole")["vocab"] == "ids"
    assert_refused(
        "the token 100 is not below 100", "sample", tmp_path / "whole", "--prompt", "100"
    )
    assert_refused("'one'", "sample", tmp_path / "whole", "--prompt", "one")


def test_validation_files_are_kept_with_the_run(tmp_path, text):
    (tmp_path / "val.txt").write_text("line of validation.\n" * 5)
    run = tmp_path / "run"
    succeed("train", text, "--val", tmp_path / "val.txt", "--steps", 2, "--out", run, *TINY)
    assert config_of(run)["val_files"] == [str(tmp_path / "val.txt")]
    succeed("train", "--resume", run, "--steps", 3, "--quiet")
    moved = (tmp_path / "val.txt").rename(tmp_path / "moved.txt")
    assert_refused("val.txt: cannot be read", "train", "--resume", run, "--steps", 4)
    succeed("train", "--resume", run, "--steps", 4, "--quiet", "--val", moved)
    assert config_of(run)["val_files"] == [str(moved)]
    moved.write_text("line of other words.\n" * 5)
    assert_refused("not what the run began with", "train", "--resume", run, "--steps", 5)
    succeed("prepare", text, "--val", moved, "--out", tmp_path / "data")
    assert len(map_token_file(tmp_path / "data/val.bin").tokens) == 105


def test_what_is_printed_and_described(tmp_path, text):
    corpus = prepared(text, tmp_path / "data", vocab="char")
    lines = _lines(corpus, tmp_path / "my data")
    characters = len(text.read_text("utf-8"))
    train = len(corpus.train)
    assert lines[0] == f"text    1 document, {text.stat().st_size:,} bytes"
    assert f"{train:,} to train, {characters - train:,} to validate (the end of the" in lines[1]
    assert f"{text.stat().st_size / characters:.2f} bytes per token, char vocab" in lines[1]
    assert lines[-1].strip() == f"flatstep train '{tmp_path}/my data'"
    described = json.loads((tmp_path / "data/data.json").read_text())
    assert described["train"]["tokens"] == train
    assert (described["sha256"], described["bytes"]) == (corpus.sha256, corpus.size)


def test_a_prepared_folder_has_its_vocabulary(tmp_path, text):
    prepared(text, tmp_path / "data", vocab="char")
    config = make_config(OPTIONS)
    found = load_corpus([tmp_path / "data"], config)
    assert (found.vocabulary.kind, found.split) == ("char", "as prepared")
    for options, message in (
        ({"vocab": "byte"}, "--vocab byte: .*data is prepared with a vocabulary, char"),
        ({"tokenizer": "t.json"}, "--tokenizer: .*data is prepared"),
        ({"vocab_size": 500}, "--vocab-size 500: the char vocabulary has"),
    ):
        with pytest.raises(InputError, match=message):
            load_corpus([tmp_path / "data"], make_config(OPTIONS | options))
    with pytest.raises(InputError, match=r"data: a prepared folder, which cannot go with .*text"):
        load_corpus([tmp_path / "data", text], config)
    prepared(text, tmp_path / "bytes")
    with pytest.raises(InputError, match=r"bytes: prepared with another vocabulary \(byte, 256"):
        load_corpus([tmp_path / "bytes"], config, found.vocabulary)
    with pytest.raises(InputError, match="prepared with another vocabulary"):
        load_corpus([tmp_path / "data"], config, validation=[tmp_path / "bytes"])


def change(path, place, value):
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda data: (data / "train.bin").unlink(), r"train\.bin: cannot be read: No such"),
        (lambda data: (data / "data.json").unlink(), r"data\.json: missing"),
        (lambda data: (data / "data.json").write_bytes(b"{}"), r"data\.json: not of a folder that"),
        (lambda data: (data / "data.json").write_bytes(b"{"), r"data\.json: cannot be read"),
        (lambda data: change(data / "train.bin", 1030, 9), r"train\.bin: damaged: its SHA-256"),
        (lambda data: change(data / "val.bin", -1, 1), r"val\.bin: token \d+ at position"),
        (lambda data: change(data / "val.bin", 8, 0), r"val\.bin: its header tells"),
        (lambda data: (data / "val.bin").write_bytes(b"\0\0" * 50), r"val\.bin: 50 tokens, .* oth"),
        (lambda data: (data / "vocabulary.json").unlink(), r"data: its vocabulary is not the one"),
        (lambda data: (data / "vocabulary.json").write_text('{"kind": "char", "characters": "ab"}'),
         "tells char of 25 tokens"),
    ],
)  # fmt: skip
def test_a_damaged_folder_is_refused_by_file(tmp_path, text, harm, message):
    data = tmp_path / "data"
    prepared(text, data, vocab="char")
    assert read_prepared(data).vocabulary.size == 25
    harm(data)
    with pytest.raises(InputError, match=message):
        load_corpus([data], make_config(OPTIONS))


def test_a_flipped_bit_is_refused_or_changes_nothing(tmp_path, text, rng):
    """Only what data.json says of the text before, and the zeros of a header, are not looked at."""
    data, config = tmp_path / "data", make_config(OPTIONS)
    prepared(text, data, vocab="char")

    def contents():
        found = load_corpus([data], config)
        parts = [array.tobytes() for part in (found.train, found.validation)
                 for array in part.arrays]  # fmt: skip
        return found.sha256, found.vocabulary.files(), parts

    whole, refused = contents(), 0
    for path in sorted(data.iterdir()):
        content = path.read_bytes()
        for bit in rng.choice(len(content) * 8, 200, replace=False):
            flipped = bytearray(content)
            flipped[bit // 8] ^= 1 << (bit % 8)
            path.write_bytes(flipped)
            try:
                assert contents() == whole
            except InputError as error:
                refused += str(data) in str(error)
        path.write_bytes(content)
    assert contents() == whole
    assert refused > 300


def test_another_version_is_refused(tmp_path, text):
    prepared(text, tmp_path / "data")
    path = tmp_path / "data/data.json"
    path.write_text(path.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(InputError, match="format version 2, this program reads 1"):
        load_corpus([tmp_path / "data"], make_config(OPTIONS))


@pytest.mark.parametrize(("name", "expected"), [("fsync", 8), ("replace", 4)])
def test_a_disk_that_refuses_leaves_nothing(tmp_path, text, monkeypatch, name, expected):
    """Each fsync and each rename fails once."""
    real, calls, failing = getattr(os, name), [], [0]

    def refuse(*arguments):
        calls.append(arguments)
        if len(calls) == failing[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(os, name, refuse)
    prepared(text, tmp_path / "whole")
    assert len(calls) == expected  # four files; also the folder is synced after each
    for number in range(1, expected + 1):
        calls.clear()
        failing[0] = number
        with pytest.raises(OSError, match="No space left"):
            prepared(text, tmp_path / "data")
        assert not (tmp_path / "data").exists()
    prepared(text, tmp_path / "data")
    assert read_prepared(tmp_path / "data").vocabulary.kind == "byte"
    with pytest.raises(InputError, match="data: the folder is not empty; choose another"):
        prepared(text, tmp_path / "data")


def test_a_full_disk_is_one_line(tmp_path, text, monkeypatch, capsys):
    def refuse(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    assert main(["prepare", str(text), "--out", str(tmp_path / "data")]) == 1
    expected = f"flatstep: error: {tmp_path}/data: cannot be written: No space left on device\n"
    assert capsys.readouterr().err == expected


def test_a_run_keeps_its_vocabulary(tmp_path, text):
    run = tmp_path / "run"
    given = OPTIONS | {"vocab": "char", "schedule": "constant"}
    start(given, [text], out=run, quiet=True)
    model, vocabulary, _ = load_model(run)
    assert (vocabulary.size, model.config.vocab_size) == (25, 25)
    assert config_of(run)["vocab"] == "char" and config_of(run)["vocab_size"] == 25
    resume(run, {"steps": 6}, quiet=True)
    start(given | {"steps": 6}, [text], out=tmp_path / "other", quiet=True)
    assert bits(run, 6) == bits(tmp_path / "other", 6)
    with pytest.raises(InputError, match="--vocab byte contradicts the run, which has char"):
        resume(run, {"vocab": "byte"})
    (run / "vocabulary.json").unlink()
    with pytest.raises(InputError, match="run: its char vocabulary is missing"):
        resume(run, {"steps": 7})


def test_a_run_from_before_vocabularies_goes_on(tmp_path, text):
    run, whole = tmp_path / "run", tmp_path / "whole"
    given = OPTIONS | {"schedule": "constant"}
    start(given, [text], out=run, quiet=True)
    (run / "vocabulary.json").unlink()
    config = (run / "config.toml").read_text().splitlines(keepends=True)
    new = ("vocab = ", "vocab_size = ", "val_files = ", "text_field = ", "val_split = ")
    (run / "config.toml").write_text("".join(line for line in config if not line.startswith(new)))
    resume(run, {"steps": 6}, quiet=True)
    start(given | {"steps": 6}, [text], out=whole, quiet=True)
    assert bits(run, 6) == bits(whole, 6)
    assert config_of(run)["vocab"] == "byte"


def test_an_interrupted_call_leaves_no_folder(tmp_path, text, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    corpus = load_corpus([str(text)], make_config({"block_size": 1}))
    monkeypatch.setattr("flatstep.data.prepared.write_tokens", interrupted)
    (tmp_path / "there").mkdir()
    for folder in ("new", "there"):
        with pytest.raises(KeyboardInterrupt):
            write_prepared(tmp_path / folder, corpus, "llm.c", "0")
    assert sorted(os.listdir(tmp_path)) == ["text.txt", "there"]
    assert os.listdir(tmp_path / "there") == []
