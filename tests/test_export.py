"""`flatstep export`: what is written for other programs, and how whole."""

import json
import os
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_cli import TINY, assert_one_line_error, flatstep

import flatstep as fs
from flatstep.data.vocabulary import ByteVocabulary, CharVocabulary, IdVocabulary, load_vocabulary
from flatstep.errors import InputError, RunFailed
from flatstep.export.folder import export_model
from flatstep.training.model_folder import load_model

BYTE_FILES = (
    "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
    "tokenizer_config.json", "vocabulary.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def model():
    return fs.GPT(fs.GPTConfig(256, 16, 1, 2, 16, dropout=0.1), seed=1)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_with_weights_tokenizer_and_the_right_ends(tmp_path, model):
    exported = export_model(model, ByteVocabulary(), tmp_path / "out")
    assert exported.files == BYTE_FILES and exported.tokenizer
    assert sorted(contents(tmp_path / "out")) == list(BYTE_FILES)
    assert os.listdir(tmp_path) == ["out"]
    tensors = load_file(tmp_path / "out/model.safetensors")
    for name in model.layout.names:
        assert tensors[name].tobytes() == model[name].tobytes()
    config = json.loads((tmp_path / "out/config.json").read_text())
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    for name in ("bos_token_id", "eos_token_id"):
        assert config[name] is None and generation[name] is None
    assert config["pad_token_id"] is None and config["resid_pdrop"] == 0.1
    settings = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert settings["model_max_length"] == 16 and "eos_token" not in settings
    assert load_vocabulary(tmp_path / "out").kind == "byte"


def test_each_byte_and_each_character_has_its_token(tmp_path, model):
    export_model(model, ByteVocabulary(), tmp_path / "byte")
    vocabulary = json.loads((tmp_path / "byte/tokenizer.json").read_text())["model"]["vocab"]
    assert sorted(vocabulary.values()) == list(range(256))
    # From GPT-2's own vocabulary: "!" is itself, " " is shown as U+0120, "\n" as U+010A.
    assert (vocabulary["!"], vocabulary["\u0120"], vocabulary["\u010a"]) == (33, 32, 10)
    chars = CharVocabulary('\n "\\aé本🙂')
    other = fs.GPT(fs.GPTConfig(chars.size, 16, 1, 2, 16), seed=1)
    export_model(other, chars, tmp_path / "char")
    vocabulary = json.loads((tmp_path / "char/tokenizer.json").read_text())["model"]["vocab"]
    assert vocabulary == {character: k for k, character in enumerate(chars.characters)}


def test_bare_numbers_come_without_a_tokenizer(tmp_path, model):
    for vocabulary in (IdVocabulary(256), None):
        exported = export_model(model, vocabulary, tmp_path / str(vocabulary is None))
        assert not exported.tokenizer
        assert not [name for name in exported.files if "token" in name]
    done = flatstep("export", tmp_path / "False", "--out", tmp_path / "again")
    assert done.returncode == 0
    assert "tokenizer  none: the model was trained on bare numbers" in done.stdout
    assert load_model(tmp_path / "False")[1].kind == "ids"
    assert load_model(tmp_path / "True")[1] is None


def test_a_large_vocabulary_does_not_get_the_end_of_another(tmp_path):
    large = fs.GPT(fs.GPTConfig(50300, 4, 1, 1, 4))
    export_model(large, IdVocabulary(50300), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["eos_token_id"] is None
    large.save_pretrained(tmp_path / "plain")
    assert json.loads((tmp_path / "plain/config.json").read_text())["eos_token_id"] == 50256


def test_what_is_there_is_not_touched_unless_asked(tmp_path, model):
    out = tmp_path / "out"
    out.mkdir()
    export_model(model, ByteVocabulary(), out)  # an empty folder is as good as none
    before = contents(out)
    with pytest.raises(InputError, match=r"out: the folder is not empty; .*--overwrite"):
        export_model(model, None, out)
    assert contents(out) == before
    export_model(model, None, out, overwrite=True)
    assert sorted(contents(out)) == [name for name in BYTE_FILES if "token" not in name][:3]
    (out / "notes.txt").write_text("mine")
    before = contents(out)
    with pytest.raises(InputError, match=r"out: holds notes\.txt, which no export wrote"):
        export_model(model, None, out, overwrite=True)
    assert contents(out) == before
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="file: is a file that is there already, not a folder"):
        export_model(model, None, tmp_path / "file", overwrite=True)
    assert sorted(os.listdir(tmp_path)) == ["file", "out"]


@pytest.mark.parametrize("earlier", (False, True))
def test_a_failed_export_leaves_all_as_it_was(tmp_path, model, earlier, monkeypatch):
    out = tmp_path / "out"
    if earlier:
        export_model(model, ByteVocabulary(), out)
    before = contents(out) if earlier else None
    spoiled = fs.GPT(model.config, seed=1)
    spoiled["transformer.wpe.weight"][1, 2] = np.inf
    with pytest.raises(InputError, match=r"got inf in transformer\.wpe\.weight at index 18"):
        export_model(spoiled, ByteVocabulary(), out, overwrite=earlier)
    real, calls = os.rename, []

    def failing(source, target):
        calls.append(target)
        if os.fspath(target) == os.fspath(out) and "flatstep-tmp" in os.fspath(source):
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", failing)
    monkeypatch.setattr(os, "replace", failing_replace(os.replace, out))
    with pytest.raises(RunFailed, match="out: cannot be written: No space left"):
        export_model(model, ByteVocabulary(), out, overwrite=earlier)
    assert os.listdir(tmp_path) == (["out"] if earlier else [])
    assert not earlier or contents(out) == before


def test_an_empty_folder_is_filled_where_it_lies(tmp_path, model, monkeypatch):
    """It may be the working directory, or where a disk begins, which have no other name."""
    monkeypatch.chdir(tmp_path)
    identity = os.stat(".").st_ino
    moved, real = [], os.rename

    def rename(source, target):
        moved.append(os.path.basename(target))
        if failing:
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    failing = True
    with pytest.raises(RunFailed, match="cannot be written: No space left"):
        export_model(model, ByteVocabulary(), ".")
    assert os.listdir(".") == []
    failing, moved[:] = False, []
    done = export_model(model, ByteVocabulary(), ".")
    assert os.stat(".").st_ino == identity and sorted(os.listdir(".")) == list(done.files)
    assert moved[-1] == "config.json"
    with pytest.raises(InputError, match=r"--out \.: is the working directory, so it cannot be"):
        export_model(model, ByteVocabulary(), ".", overwrite=True)


def failing_replace(real, out):
    """os.replace that has no room for the last name, which is `out`."""

    def failing(source, target):
        if os.fspath(target) == os.fspath(out):
            raise OSError(28, "No space left on device")
        real(source, target)

    return failing


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of 6 steps with checkpoints of steps 2, 4 and 6, or the last of these."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "text.txt").write_text("".join(f"line {k:3d} of a sample.\n" for k in range(60)))
    options = ["--steps", 6, "--save-every", 2, "--keep", 3, "--eval-every", 2]
    done = flatstep("train", folder / "text.txt", *TINY, *options, "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run"


def test_the_command_and_where_a_model_can_come_from(tmp_path, run):
    done = flatstep("export", run, "--out", tmp_path / "last", "--checkpoint", "last")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"model      {run}, step 6: ")
    assert lines[1] == f"written    {tmp_path / 'last'}: {', '.join(BYTE_FILES)}"
    assert len(lines) == 2
    for name, step in (("step-4", 4), ("last", 6)):
        model, vocabulary, source = load_model(run, name)
        assert (vocabulary.kind, source.step, source.run) == ("byte", step, run)
        stored = load_file(run / f"checkpoints/step-{step}/model.safetensors")
        assert all(model[n].tobytes() == stored[n].tobytes() for n in stored)
        again, vocabulary, source = load_model(run / f"checkpoints/step-{step}")
        assert (vocabulary.kind, source.step) == ("byte", step)
        assert again.params.tobytes() == model.params.tobytes()
    again, vocabulary, source = load_model(tmp_path / "last")
    assert (vocabulary.kind, source.step, source.run) == ("byte", None, None)
    assert again.params.tobytes() == model.params.tobytes()


def test_sample_takes_all_of_them_and_says_the_same(tmp_path, run):
    assert (
        flatstep("export", run, "--out", tmp_path / "out", "--checkpoint", "step-6").returncode == 0
    )
    call = ("--tokens", 30, "--seed", 5, "--prompt", "line ")
    texts = [
        flatstep("sample", *source, *call)
        for source in (
            (run, "--checkpoint", "last"), (run / "checkpoints/step-6",), (tmp_path / "out",),
        )
    ]  # fmt: skip
    assert [done.returncode for done in texts] == [0, 0, 0], texts
    assert len({done.stdout for done in texts}) == 1
    other = flatstep("sample", run, "--checkpoint", "step-2", *call)
    assert other.returncode == 0 and other.stdout != texts[0].stdout


def test_calls_that_cannot_be(tmp_path, run):
    out = ("--out", tmp_path / "out")
    for call, parts in (
        ((tmp_path / "none", *out), ["none: no such folder"]),
        ((tmp_path, *out), ["neither a run", "config.toml", "config.json"]),
        ((run, *out, "--checkpoint", "step-3"), ["step-3", "step-2", "step-4", "step-6"]),
        ((run, *out, "--checkpoint", "newest"), ["newest", "expected last, best or step-N"]),
        ((run / "checkpoints/step-4", *out, "--checkpoint", "last"), ["a checkpoint itself"]),
        ((run, *out, "--dtype", "f16"), ["--dtype is of GGUF files"]),
        ((run, "--out", run), ["the folder is not empty"]),
        ((run, "--out", run, "--overwrite"), ["holds checkpoints, which no export wrote"]),
        ((run, "--out", "/proc/nowhere/out"), ["--out /proc/nowhere/out: cannot be made"]),
    ):
        assert_one_line_error(flatstep("export", *call), 2, *parts)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("lost", ("manifest.json", "state.json", "config.toml"))
def test_a_checkpoint_that_has_lost_a_file_is_named(tmp_path, run, lost):
    copy = tmp_path / "step-6"
    shutil.copytree(run / "checkpoints/step-6", copy)
    assert load_model(copy)[2].step == 6  # it stands alone
    (copy / lost).unlink()
    with pytest.raises(InputError, match=rf"{lost}(: missing| was expected)"):
        load_model(copy)


def test_a_run_that_has_lost_its_vocabulary(tmp_path):
    (tmp_path / "text.txt").write_text("".join(f"line {k:3d} of a sample.\n" for k in range(60)))
    call = ("train", tmp_path / "text.txt", *TINY, "--steps", 2, "--vocab", "char")
    assert flatstep(*call, "--out", tmp_path / "run").returncode == 0
    (tmp_path / "run/vocabulary.json").unlink()
    for command in ("sample", "eval"):
        done = flatstep(command, tmp_path / "run")
        assert_one_line_error(done, 2, "run: its char vocabulary is missing")
    assert load_model(tmp_path / "run/checkpoints/step-2")[1].kind == "char"


def test_without_the_package_gguf_one_line_says_how_to_get_it(tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"needs the package gguf: pip install 'flatstep\[gguf\]'"):
        export_model(model, None, tmp_path / "x.gguf", format="gguf")
    assert not any(tmp_path.iterdir())


def test_a_damaged_best_checkpoint_gives_way_with_a_warning(tmp_path, run):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    _, _, source = load_model(copy)
    best = source.step
    path = copy / f"checkpoints/step-{best}/model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    done = flatstep("export", copy, "--out", tmp_path / "out")
    assert done.returncode == 0 and "warning" in done.stderr and "model.safetensors" in done.stderr
