"""Runs with a BPE vocabulary, trained and given, from the command line."""

import json
import sys

import pytest
from data_case import TINY, assert_refused, check_prepared, config_of, flatstep, succeed

from flatstep.data.bpe import BpeVocabulary
from flatstep.data.corpus import load_corpus
from flatstep.data.token_files import map_token_file
from flatstep.errors import InputError
from flatstep.training.config import make_config


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {k:3d} of a smäll sample ✓.\n" for k in range(150)), "utf-8")
    return path


def test_byte_pairs_from_text_to_a_sample(tmp_path, text):
    options = ["--vocab", "bpe", "--vocab-size", "300"]
    check_prepared(tmp_path, [text], options, "tokenizer.json", "line ✓")
    assert config_of(tmp_path / "whole")["vocab_size"] == 300
    printed = flatstep("train", "--resume", tmp_path / "whole", "--steps", 7).stdout
    assert "bpe vocabulary of 300" in printed and "bits per byte)" in printed


def test_a_given_tokenizer_is_copied_into_the_run(tmp_path, text):
    source = tmp_path / "source"
    succeed("prepare", text, "--out", source, "--vocab", "bpe", "--vocab-size", 280)
    tokenizer = (source / "tokenizer.json").rename(tmp_path / "given.json")
    run = tmp_path / "run"
    succeed("train", text, "--tokenizer", tokenizer, "--steps", 2, "--out", run, *TINY)
    assert (run / "tokenizer.json").read_bytes() == tokenizer.read_bytes()
    assert (config_of(run)["vocab"], config_of(run)["vocab_size"]) == ("bpe", 280)
    # Tokens of nanoGPT or llm.c with the tokenizer that made them.
    shards = source / "train.bin", source / "val.bin"
    other = tmp_path / "other"
    succeed("train", *shards, "--tokenizer", tokenizer, "--steps", 2, "--out", other, *TINY)
    sample = succeed("sample", other, "--prompt", "a line", "--tokens", 3)
    assert sample.startswith("a line")
    # A special token is a token of its own; words are not.
    ended = ["sample", other, "--prompt", "a line", "--tokens", 3, "--stop"]
    assert sample.startswith(succeed(*ended, "<|endoftext|>").rstrip("\n"))
    assert_refused("tokens of the bpe vocabulary, expected text of one", *ended, "two words")
    tokenizer.unlink()
    succeed("train", "--resume", run, "--steps", 3, "--quiet")
    assert_refused("given.json: cannot be read", "train", text, "--tokenizer", tokenizer)
    assert_refused("--vocab-size must be at least 257", "train", text, "--vocab", "bpe",
                   "--vocab-size", 256)  # fmt: skip


def load(*paths, **options):
    config = make_config({"block_size": 4, "vocab": "bpe"} | options)
    return load_corpus([str(path) for path in paths], config)


def test_the_end_of_text_stands_after_each_document(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"story {k % 7}"}) + "\n" for k in range(100)))
    found = load(path, vocab_size=270)
    vocabulary = found.vocabulary
    for part, count in ((found.train, 90), (found.validation, 10)):
        [tokens] = part.arrays
        assert tokens[-1] == vocabulary.end_of_text
        assert (tokens == vocabulary.end_of_text).sum() == count
        assert "\n" not in vocabulary.decode(tokens)
        assert vocabulary.decode(tokens).split("<|endoftext|>")[0][:6] == "story "
    assert found.size == 700
    tail = load(path, vocab_size=270, val_split="tail")
    [train], [held] = tail.train.arrays, tail.validation.arrays
    assert vocabulary.decode(train).count("<|endoftext|>") == 90
    assert len(train) + len(held) == sum(len(a) for a in (found.train, found.validation))


def test_only_text_for_training_trains_the_vocabulary(tmp_path):
    (tmp_path / "a.txt").write_text("abab c " * 100)
    (tmp_path / "b.txt").write_text("xyxy z " * 20)
    found = load(tmp_path, val_split="documents", vocab_size=300)
    names = found.vocabulary.tokenizer.get_vocab()
    assert "ab" in names and "xy" not in names


def test_text_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"some text " * 20 + b"\xff")
    with pytest.raises(InputError, match=r"a\.txt: not UTF-8 \(byte 0xff\), at byte 200; --vocab"):
        load(tmp_path / "a.txt")


def test_larger_vocabularies_take_four_bytes(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    names = {"a": 0, "b": 70_000, "[UNK]": 1}
    tokenizer = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "t.json"))
    (tmp_path / "a.txt").write_text("a b " * 50)
    found = load(tmp_path / "a.txt", tokenizer=str(tmp_path / "t.json"))
    assert found.vocabulary.size == 70_001 and found.vocabulary.end_of_text is None
    assert found.train.arrays[0].dtype == "uint32"
    assert found.train.arrays[0].tolist()[:4] == [0, 70_000, 0, 70_000]
    succeed("prepare", tmp_path / "a.txt", "--tokenizer", tmp_path / "t.json", "--out",
            tmp_path / "data")  # fmt: skip
    assert map_token_file(tmp_path / "data/train.bin").tokens.dtype == "uint32"
    assert_refused("--format nanogpt has 2 bytes", "prepare", tmp_path / "a.txt", "--tokenizer",
                   tmp_path / "t.json", "--out", tmp_path / "n", "--format", "nanogpt")  # fmt: skip
    assert not (tmp_path / "n").exists() or not list((tmp_path / "n").iterdir())


def test_without_the_package_one_line_tells_what_to_install(tmp_path, text, monkeypatch):
    stored = BpeVocabulary(load(text, vocab_size=280).vocabulary.files()["tokenizer.json"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    for make in (lambda: load(text), lambda: BpeVocabulary(stored.files()["tokenizer.json"])):
        with pytest.raises(InputError, match=r"tokenizers: pip install 'flatstep\[bpe\]'"):
            make()


def test_a_huge_size_is_what_the_text_has(tmp_path, text):
    """The package takes memory for all that are asked for."""
    most = load(text, vocab_size=2**31 - 1).vocabulary
    assert 300 < most.size < 1000
    assert most.files() == load(text, vocab_size=5000).vocabulary.files()


def test_a_tokenizer_written_anew_is_the_same_vocabulary(tmp_path, text):
    folder = tmp_path / "data"
    options = ["--vocab", "bpe", "--vocab-size", "280"]
    succeed("prepare", text, "--out", folder, *options)
    succeed("train", text, "--steps", 2, "--out", tmp_path / "run", *options, *TINY)
    path = tmp_path / "run/tokenizer.json"
    tokenizer = json.loads(path.read_text())
    # In another order, without its defaults, with merges as other versions have them.
    tokenizer["model"]["merges"] = [" ".join(pair) for pair in tokenizer["model"]["merges"]]
    del tokenizer["model"]["dropout"]
    hugging_face = tmp_path / "hugging_face"
    succeed("export", tmp_path / "run", "--out", hugging_face)
    (hugging_face / "tokenizer.json").write_text(json.dumps(tokenizer, sort_keys=True))
    call = ["train", folder, "--init-from", hugging_face, "--steps", 2, "--batch-size", 2]
    succeed(*call, "--no-plot", "--quiet", "--out", tmp_path / "tuned")
    tokenizer["model"]["merges"].pop()
    (hugging_face / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert_refused("prepared with another vocabulary", *call, "--out", tmp_path / "other")
