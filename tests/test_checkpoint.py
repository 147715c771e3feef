"""Checkpoints: what is written, what is refused, and what a failing disk leaves behind."""

import errno
import hashlib
import json
import os
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flatstep as fs
from flatstep._safetensors import read_into
from flatstep._safetensors import save_file as save_own_file
from flatstep.errors import CheckpointError
from flatstep.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
    verify_files,
)

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")
OPTIMIZERS = {"adamw": fs.AdamW, "adam": fs.Adam, "sgd": fs.SGD}


def make(seed=0, optimizer="adamw", **shape):
    shape = {"vocab_size": 256, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16} | shape
    model = fs.GPT(fs.GPTConfig(**shape), seed=seed)
    options = {"momentum": 0.9} if optimizer == "sgd" else {}
    return model, OPTIMIZERS[optimizer](model.params, lr=0.01, layout=model.layout, **options)


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        tokens = (np.arange(32, dtype=np.int32).reshape(4, 8) * 7 + step) % 256
        model.forward_backward(tokens, (tokens + 7) % 256, step=step)
        optimizer.step(model.grads, max_norm=1.0)


def test_the_file_is_what_the_format_asks_for(tmp_path):
    """Read by the format's own package: values, types, shapes, metadata and alignment."""
    rng = np.random.default_rng(0)
    tensors = {
        "b": rng.integers(0, 99, 7).astype(np.uint16),
        "a": rng.random((3, 5)).astype(np.float32),
        "codes": rng.integers(0, 99, 3).astype(np.uint8),
        "scalar": np.array(3, np.int64),
        "none": np.zeros((0, 4), np.float32),
        "columns": np.asfortranarray(rng.random((4, 3))),
        "\N{GREEK SMALL LETTER BETA}": rng.integers(0, 9, 2).astype(np.int32),
    }
    path = tmp_path / "file.safetensors"
    save_own_file(tensors, path, {"format": "np"})
    found = load_file(path)
    assert set(found) == set(tensors)
    for name, array in tensors.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        assert np.array_equal(found[name], array)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert header.pop("__metadata__") == {"format": "np"} and length % 8 == 0
    for name, entry in header.items():
        assert entry["data_offsets"][0] % tensors[name].itemsize == 0
    assert max(entry["data_offsets"][1] for entry in header.values()) == len(content) - 8 - length
    back = {name: np.empty_like(array, order="C") for name, array in tensors.items()}
    read_into(path, back)
    assert all(np.array_equal(back[name], array) for name, array in tensors.items())
    path.write_bytes(content[:-1])
    with pytest.raises(OSError, match="ends within codes"):
        read_into(path, back)
    with pytest.raises(KeyError):
        save_own_file({"x": np.zeros(2, np.complex64)}, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.fixture
def saved(tmp_path):
    """(run, checkpoint folder) of a model after three steps."""
    model, optimizer = make()
    train(model, optimizer, 3)
    return tmp_path, save_checkpoint(tmp_path, model, optimizer, {"step": 3})


def rewrite_manifest(path):
    manifest = json.loads((path / "manifest.json").read_text())
    for name in manifest["files"]:
        content = (path / name).read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        manifest["files"][name] = {"bytes": len(content), "sha256": digest}
    (path / "manifest.json").write_text(json.dumps(manifest))


def edit_tensors(path, edit):
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path)
    rewrite_manifest(path.parent)


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_loaded_state_continues_with_the_same_bits(tmp_path, kind):
    model, optimizer = make(optimizer=kind)
    train(model, optimizer, 3)
    path = save_checkpoint(tmp_path, model, optimizer, {"step": 3, "skipped": 2})
    train(model, optimizer, 3, first=3)
    other, other_optimizer = make(seed=9, optimizer=kind)
    state = load_checkpoint(path, other, other_optimizer)
    assert state["skipped"] == 2
    assert other_optimizer.step_count == 3
    train(other, other_optimizer, 3, first=3)
    assert np.array_equal(model.params.view(np.uint32), other.params.view(np.uint32))


def test_files_and_tensor_names(saved):
    _, path = saved
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    names = set(make()[0].layout.names)
    assert set(load_file(path / "model.safetensors")) == names
    expected = {f"{kind}.{name}" for kind in ("exp_avg", "exp_avg_sq") for name in names}
    assert set(load_file(path / "optimizer.safetensors")) == expected
    assert json.loads((path / "state.json").read_text())["model"]["n_embd"] == 16


def test_only_the_last_two_are_kept(tmp_path):
    model, optimizer = make()
    (tmp_path / "checkpoints" / "step-7.tmp").mkdir(parents=True)
    for step in (9, 10, 100):
        save_checkpoint(tmp_path, model, optimizer, {"step": step})
    assert [p.name for p in list_checkpoints(tmp_path)] == ["step-100", "step-10"]
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["step-10", "step-100"]


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_is_refused(saved, name):
    _, path = saved
    file = path / name
    good = file.read_bytes()
    random = np.random.default_rng(1)
    places = {0, 8, len(good) - 2, *random.integers(0, len(good) - 1, 60).tolist()}
    for place in places:
        bad = bytearray(good)
        bad[place] ^= 1 << int(random.integers(8))
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"step-3.*\.(json|safetensors)"):
            load_checkpoint(path, *make())
    file.write_bytes(good)
    verify_files(path)


@pytest.mark.parametrize("name", FILES)
def test_truncated_longer_and_missing_files_are_refused(saved, name):
    _, path = saved
    good = (path / name).read_bytes()
    for bad in (b"", good[:1], good[: len(good) // 2], good[:-2], good + b"}"):
        (path / name).write_bytes(bad)
        with pytest.raises(CheckpointError, match=name):
            load_checkpoint(path, *make())
    (path / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        load_checkpoint(path, *make())


def test_file_of_another_step_is_refused(saved):
    run, path = saved
    model, optimizer = make()
    other = save_checkpoint(run, model, optimizer, {"step": 4})
    shutil.copy(other / "model.safetensors", path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: damaged"):
        load_checkpoint(path, *make())
    other.rename(other.with_name("step-8"))
    with pytest.raises(CheckpointError, match=r"manifest\.json: is of step 4"):
        load_checkpoint(other.with_name("step-8"), *make())


@pytest.mark.parametrize(
    ("shape", "message"),
    [({"n_embd": 32}, "n_embd is 16, here 32"), ({"n_head": 4}, "n_head is 2, here 4")],
)
def test_checkpoint_of_another_model_is_refused(saved, shape, message):
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(saved[1], *make(**shape))


def test_state_of_another_optimizer_is_refused(saved):
    with pytest.raises(CheckpointError, match=r"state\.json: not the state of .*adam"):
        load_checkpoint(saved[1], *make(optimizer="adam"))


def _other_shape(tensors):
    tensors["transformer.ln_f.weight"] = np.zeros(15, np.float32)


def _other_type(tensors):
    tensors["transformer.ln_f.weight"] = np.zeros(16, np.float64)


def _missing(tensors):
    del tensors["transformer.ln_f.weight"]


def _unknown(tensors):
    tensors["transformer.ln_f.weights"] = np.zeros(16, np.float32)


@pytest.mark.parametrize("edit", [_other_shape, _other_type, _missing, _unknown])
def test_wrong_tensor_is_named_and_nothing_is_loaded(saved, edit):
    _, path = saved
    edit_tensors(path / "model.safetensors", edit)
    model, optimizer = make(seed=9)
    before = model.params.copy()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: .*transformer\.ln_f\.weight"):
        load_checkpoint(path, model, optimizer)
    assert np.array_equal(before, model.params)
    assert optimizer.step_count == 0


def test_wrong_optimizer_tensor_leaves_the_model_untouched(saved):
    _, path = saved
    edit_tensors(
        path / "optimizer.safetensors",
        lambda tensors: tensors.pop("exp_avg.transformer.wte.weight"),
    )
    model, optimizer = make(seed=9)
    before = model.params.copy()
    with pytest.raises(CheckpointError, match=r"optimizer\.safetensors: .*exp_avg\.transformer"):
        load_checkpoint(path, model, optimizer)
    assert np.array_equal(before, model.params)


def test_other_format_version_is_refused(saved):
    _, path = saved
    manifest = json.loads((path / "manifest.json").read_text()) | {"version": 2}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="format version 2, this program reads 1"):
        load_checkpoint(path, *make())


def test_newest_falls_back_to_the_older_and_says_so(saved):
    run, _ = saved
    model, optimizer = make()
    newer = save_checkpoint(run, model, optimizer, {"step": 5})
    (newer / "state.json").write_bytes(b"{}")
    warnings = []
    path, state = load_newest(run, model, optimizer, warn=warnings.append, set_aside=True)
    assert path.name == "step-3" and state["step"] == 3
    assert len(warnings) == 1
    assert "state.json" in warnings[0] and "the older step-3" in warnings[0]
    assert [p.name for p in list_checkpoints(run)] == ["step-3"]
    assert newer.with_name("step-5.refused").is_dir()


def test_no_whole_checkpoint_is_an_error(saved):
    run, path = saved
    (path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        load_newest(run, *make(), warn=pytest.fail)
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_newest(run, *make(), warn=pytest.fail)


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_failing_disk_leaves_the_last_checkpoint(saved, monkeypatch, call):
    """The k-th call of fsync or rename fails, for every k, until a save comes through."""
    run, path = saved
    model, optimizer = make(seed=9)
    real = getattr(os, call)
    for failing in range(20):
        left = [failing]

        def fail(*arguments, left=left):
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments)

        monkeypatch.setattr(os, call, fail)
        try:
            save_checkpoint(run, model, optimizer, {"step": 4})
            break
        except OSError:
            verify_files(path)
            assert not list((run / "checkpoints").glob("*.tmp"))
            shutil.rmtree(run / "checkpoints" / "step-4", ignore_errors=True)
        finally:
            monkeypatch.setattr(os, call, real)
    assert failing == {"fsync": 6, "rename": 1}[call]
    assert [p.name for p in list_checkpoints(run)] == ["step-4", "step-3"]
