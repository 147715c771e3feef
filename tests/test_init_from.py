"""`flatstep train --init-from`: the shape, the vocabulary and the weights of another model."""

import gc
import json
import os
import shutil
import signal
import struct

import numpy as np
import pytest
from export_case import make_vocabulary
from run_case import SAMPLE, TINY, bits, metrics, stop_at
from test_cli import assert_one_line_error, flatstep

import flatstep as fs
from flatstep.data.vocabulary import ByteVocabulary, IdVocabulary
from flatstep.errors import InputError
from flatstep.export.folder import export_model
from flatstep.training import loop as train
from flatstep.training import memory
from flatstep.training.checkpoint import list_checkpoints
from flatstep.training.model_folder import load_model
from flatstep.training.run_folder import read_config
from flatstep.training.trainer import Trainer

SHORT = {"steps": 6, "batch_size": 4, "eval_every": 3, "save_every": 3, "keep": 9, "lr": 1e-3}
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 16}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(SAMPLE)
    return str(path)


@pytest.fixture(scope="module")
def base(tmp_path_factory, text):
    """A run of 12 steps with dropout 0.1, which validates, so that it has a best checkpoint."""
    run = tmp_path_factory.mktemp("runs") / "base"
    train.start(TINY, [text], out=run, quiet=True)
    return run


def parameters(folder, which=None):
    return load_model(folder, which)[0].params


def first_parameters(run):
    return load_model(run / "checkpoints/step-0")[0].params


@pytest.fixture(scope="module")
def exported(tmp_path_factory, base):
    """The same model as a Hugging Face folder."""
    model, vocabulary, _ = load_model(base)
    folder = tmp_path_factory.mktemp("exported") / "folder"
    export_model(model, vocabulary, folder)
    return folder


def test_a_run_a_checkpoint_and_a_folder_begin_with_the_same_bits(
    tmp_path, text, base, exported, capsys
):
    step = load_model(base)[2].step
    runs = {}
    for name, folder in (
        ("run", base), ("checkpoint", base / f"checkpoints/step-{step}"), ("folder", exported),
    ):  # fmt: skip
        runs[name] = tmp_path / name
        train.start(SHORT | {"init_from": str(folder)}, [text], out=runs[name])
        assert f"weights {folder}" in capsys.readouterr().out
        assert first_parameters(runs[name]).tobytes() == parameters(base).tobytes()
        config, _ = read_config(runs[name])
        assert (config.n_layer, config.n_head, config.n_embd, config.block_size) == (1, 2, 16, 16)
        assert (config.dropout, config.vocab, config.vocab_size) == (0.0, "byte", 256)
        assert config.init_from == str(folder)
    assert bits(runs["run"]) == bits(runs["checkpoint"]) == bits(runs["folder"])
    assert metrics(runs["run"])[0]["loss"] < metrics(base)[0]["loss"] - 0.3


def test_stopped_and_resumed_without_the_folder_it_came_from(tmp_path, text, exported, monkeypatch):
    given = SHORT | {"dropout": 0.1}
    train.start(given | {"init_from": str(exported)}, [text], out=tmp_path / "whole", quiet=True)
    for step in (1, 4):
        origin = tmp_path / f"origin-{step}"
        shutil.copytree(exported, origin)
        run = tmp_path / f"run-{step}"
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            train.start(given | {"init_from": str(origin)}, [text], out=run, quiet=True)
        shutil.rmtree(origin)
        assert train.resume(run, quiet=True).step == 6
        assert bits(run) == bits(tmp_path / "whole")


def test_killed_before_its_first_checkpoint_it_begins_again_or_says_why_not(
    tmp_path, text, exported, monkeypatch
):
    origin, run = tmp_path / "origin", tmp_path / "run"
    shutil.copytree(exported, origin)
    given = SHORT | {"init_from": str(origin), "block_size": 8}
    train.start(given, [text], out=tmp_path / "whole", quiet=True)

    def killed(self, *arguments, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            train.start(given, [text], out=run, quiet=True)
    assert not list_checkpoints(run)
    origin.rename(tmp_path / "away")
    with pytest.raises(InputError, match=r"run: has no checkpoint yet, and cannot begin again: .*"):
        train.resume(run, quiet=True)
    (tmp_path / "away").rename(origin)
    train.resume(run, quiet=True)
    assert bits(run) == bits(tmp_path / "whole")


def test_fewer_positions_are_the_first_ones(tmp_path, text, base, capsys):
    run = tmp_path / "run"
    train.start(SHORT | {"init_from": str(base), "block_size": 10}, [text], out=run)
    assert "the first 10 of 16 positions" in capsys.readouterr().out
    old, new = load_model(base)[0], load_model(run / "checkpoints/step-0")[0]
    assert new.config == fs.GPTConfig(256, 10, 1, 2, 16)
    for name in new.layout.names:
        assert np.array_equal(new[name], old[name][: len(new[name])]), name
    tokens = np.arange(10)[None] + 60
    assert np.array_equal(new.logits(tokens), old.logits(tokens))


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"n_layer": 6}, r"--n-layer 6 contradicts .*base, which has 1"),
        ({"n_embd": 32}, r"--n-embd 32 contradicts .*base, which has 16"),
        ({"block_size": 17}, r"--block-size 17 contradicts .*base, which has 16 positions"),
        ({"vocab": "char"}, r"--vocab char contradicts .*base, which has byte"),
        ({"vocab_size": 300}, r"--vocab-size 300 contradicts .*base, which has 256"),
        ({"tokenizer": "tokenizer.json"}, r"--tokenizer tokenizer\.json: .*base has its own"),
    ],
)
def test_options_that_contradict_the_model(tmp_path, text, base, option, line):
    with pytest.raises(InputError, match=line):
        train.start(SHORT | {"init_from": str(base)} | option, [text], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_options_that_say_the_same_are_taken(tmp_path, text, base):
    given = SHORT | SHAPE | {"init_from": str(base), "block_size": 16, "vocab": "auto"}
    for wrong in ({"n_layer": 0}, {"n_head": "2"}, {"block_size": "16"}, {"block_size": 0}):
        with pytest.raises(InputError, match=r"--(n-layer|n-head|block-size)"):
            train.start(given | wrong, [text], out=tmp_path / "run")
    assert train.start(given, [text], out=tmp_path / "run", quiet=True).step == 6
    with pytest.raises(InputError, match="--init-from elsewhere contradicts the run"):
        train.resume(tmp_path / "run", {"init_from": "elsewhere"})


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda f: (f / "config.json").unlink(), "neither a run"),
        (lambda f: (f / "config.json").write_text("{"), r"config\.json: cannot be read"),
        (lambda f: (f / "model.safetensors").unlink(), r"has neither model\.safetensors"),
        (lambda f: os.truncate(f / "model.safetensors", 999), r"model\.safetensors: "),
        (lambda f: (f / "vocabulary.json").write_text("?"), r"vocabulary\.json: cannot be read"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, text, exported, spoil, line):
    folder = tmp_path / "folder"
    shutil.copytree(exported, folder)
    spoil(folder)
    with pytest.raises(InputError, match=line):
        train.start(SHORT | {"init_from": str(folder)}, [text], out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def bare(tmp_path):
    """A Hugging Face folder without a tokenizer, of 300 tokens."""
    model = fs.GPT(fs.GPTConfig(300, 16, 1, 2, 16), seed=1)
    model.save_pretrained(tmp_path / "bare")
    return tmp_path / "bare"


def test_without_a_tokenizer_only_token_files_will_do(tmp_path, text, bare):
    given = SHORT | {"init_from": str(bare)}
    with pytest.raises(InputError, match=r"bare: has neither tokenizer\.json nor vocab\.json"):
        train.start(given, [text], out=tmp_path / "run")
    with pytest.raises(InputError, match=r"bare: has neither tokenizer\.json nor vocab\.json"):
        train.start(given, out=tmp_path / "run")
    tokens = np.arange(2000) * 7 % 300
    (tmp_path / "some.bin").write_bytes(struct.pack("<2000H", *tokens))
    train.start(given, [str(tmp_path / "some.bin")], out=tmp_path / "run", quiet=True)
    model, vocabulary, _ = load_model(tmp_path / "run")
    assert (vocabulary.kind, vocabulary.size, model.config.vocab_size) == ("ids", 300, 300)
    for option, line in (
        ({"vocab_size": 299}, r"--vocab-size 299 contradicts .*bare, which has 300"),
        ({"vocab": "byte"}, r"--vocab byte contradicts .*bare, which has ids"),
    ):
        with pytest.raises(InputError, match=line):
            train.start(given | option, [str(tmp_path / "some.bin")], out=tmp_path / "high")
    (tmp_path / "high.bin").write_bytes(struct.pack("<2000H", *(tokens + 1)))
    with pytest.raises(InputError, match=r"high\.bin: token 300 at position .* 300"):
        train.start(given, [str(tmp_path / "high.bin")], out=tmp_path / "high")


def test_more_tokens_than_the_model_has_are_refused_fewer_leave_padding_behind(tmp_path, text):
    for rows in (200, 256, 261):
        folder = tmp_path / str(rows)
        model = fs.GPT(fs.GPTConfig(rows, 16, 1, 2, 16), seed=1)
        export_model(model, IdVocabulary(rows), folder)
        for name, content in ByteVocabulary().files().items():
            (folder / name).write_bytes(content)
        given = SHORT | {"init_from": str(folder), "steps": 1}
        if rows == 200:
            with pytest.raises(InputError, match="its tokenizer has 256 tokens, its model 200"):
                train.start(given, [text], out=tmp_path / "run")
            continue
        run = tmp_path / f"run-{rows}"
        train.start(given, [text], out=run, quiet=True)
        old, new = load_model(folder)[0], load_model(run / "checkpoints/step-0")[0]
        assert (old.config.vocab_size, new.config.vocab_size) == (rows, 256)
        name = "transformer.wte.weight"
        assert np.array_equal(new[name], old[name][:256])


def test_a_signal_at_once_leaves_the_first_weights(tmp_path, text, base, monkeypatch):
    stop_at(monkeypatch, 1, signal.SIGTERM)
    outcome = train.start(
        SHORT | {"init_from": str(base)}, [text], out=tmp_path / "run", quiet=True
    )
    assert outcome.step == 1
    state = json.loads((tmp_path / "run/checkpoints/step-0/state.json").read_text())
    assert state["step"] == 0 and state["model"]["n_embd"] == 16


def test_the_other_model_takes_no_memory_during_the_run(tmp_path, text, base, monkeypatch):
    def models():
        return {id(found) for found in gc.get_objects() if type(found) is fs.GPT}

    gc.collect()
    before, real, seen = models(), Trainer.try_step, []

    def looking(self):
        seen.append(models() - before)
        return real(self)

    monkeypatch.setattr(Trainer, "try_step", looking)
    train.start(SHORT | {"init_from": str(base)}, [text], out=tmp_path / "run", quiet=True)
    assert [len(found) for found in seen] == [1] * 6


def test_memory_of_the_other_model_is_not_missed(tmp_path, text, base, monkeypatch):
    """The run fits in what is left beside the other model, and what that one gives back."""
    model = load_model(base)[0]
    needed = fs.plan(fs.GPTConfig(256, 16, 1, 2, 16), 4).total
    for spare, fits in ((-1, False), (0, True)):
        left = needed - model.params.nbytes + spare
        monkeypatch.setattr(memory, "available_memory", lambda left=left: left)
        run = tmp_path / f"run{spare}"
        if fits:
            train.start(SHORT | {"init_from": str(base)}, [text], out=run, quiet=True)
        else:
            with pytest.raises(InputError, match="the run takes"):
                train.start(SHORT | {"init_from": str(base)}, [text], out=run, quiet=True)


@pytest.mark.needs("tokenizers")
def test_a_tokenizer_or_a_prepared_folder_stands_in_for_a_missing_one(tmp_path, text):
    vocabulary = make_vocabulary("bpe")
    (tmp_path / "tokenizer.json").write_bytes(vocabulary.files()["tokenizer.json"])
    model = fs.GPT(fs.GPTConfig(vocabulary.size + 2, 16, 1, 2, 16), seed=1)
    model.save_pretrained(tmp_path / "bare")
    given = SHORT | {"init_from": str(tmp_path / "bare")}
    with_file = given | {"tokenizer": str(tmp_path / "tokenizer.json")}
    train.start(with_file, [text], out=tmp_path / "one", quiet=True)
    prepare = ["prepare", text, "--out", tmp_path / "data", "--tokenizer"]
    assert flatstep(*prepare, tmp_path / "tokenizer.json").returncode == 0
    train.start(given, [str(tmp_path / "data")], out=tmp_path / "two", quiet=True)
    for name in ("one", "two"):
        new, found, _ = load_model(tmp_path / name / "checkpoints/step-0")
        assert found.files() == vocabulary.files()
        assert new.config.vocab_size == vocabulary.size
        wte = "transformer.wte.weight"
        assert np.array_equal(new[wte], model[wte][: vocabulary.size])
    small = fs.GPT(fs.GPTConfig(vocabulary.size - 1, 16, 1, 2, 16), seed=1)
    small.save_pretrained(tmp_path / "small")
    with pytest.raises(InputError, match=rf"small: its model has {vocabulary.size - 1:,} tokens"):
        train.start(with_file | {"init_from": str(tmp_path / "small")}, [text], out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_from_the_command_line(tmp_path, text, exported):
    call = ("train", text, "--steps", 2, "--batch-size", 4, "--out", tmp_path / "run")
    assert_one_line_error(
        flatstep(*call, "--init-from", tmp_path / "none"), 2, "none: no such folder"
    )
    assert_one_line_error(
        flatstep(*call, "--init-from", exported, "--n-layer", 6),
        2, "--n-layer 6 contradicts", "which has 1",
    )  # fmt: skip
    assert not (tmp_path / "run").exists()
    done = flatstep(*call, "--init-from", exported)
    assert done.returncode == 0, done.stderr
    assert f"weights {exported}\n" in done.stdout
    assert flatstep("train", "--resume", tmp_path / "run", "--steps", 3).returncode == 0


def test_from_a_file_of_options_and_with_a_preset(tmp_path, text, exported):
    (tmp_path / "my.toml").write_text(
        f'files = ["{text}"]\ninit_from = "{exported}"\nsteps = 2\neval_every = 0\n'
    )
    call = ("train", "--config", tmp_path / "my.toml", "--out")
    done = flatstep(*call, tmp_path / "run", "--preset", "finetune", "--grad-accum", 2)
    assert done.returncode == 0, done.stderr
    config, _ = read_config(tmp_path / "run")
    assert (config.init_from, config.lr, config.grad_accum) == (str(exported), 3e-5, 2)
    assert first_parameters(tmp_path / "run").tobytes() == parameters(exported).tobytes()
    assert_one_line_error(
        flatstep(*call, tmp_path / "other", "--preset", "tiny"), 2, "--n-layer 2 contradicts"
    )
