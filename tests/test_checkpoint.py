"""Checkpoints: what is written, what is refused, and what a failing disk leaves behind."""

import errno
import hashlib
import json
import os
import shutil
import stat

import numpy as np
import pytest
from checkpoint_case import OPTIMIZERS, make, train
from safetensors.numpy import load_file, save_file

from flatstep._files import write_json
from flatstep._safetensors import read_into
from flatstep._safetensors import save_file as save_own_file
from flatstep.errors import CheckpointError
from flatstep.training.checkpoint import (
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from flatstep.training.manifest import make_manifest, verify_files

FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json")


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
    files = {}
    for name in set(FILES) - {"manifest.json"}:
        content = (path / name).read_bytes()
        files[name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (path / "manifest.json").write_bytes(make_manifest(int(path.name[5:]), files))


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


def test_a_checkpoint_of_version_1_still_loads(saved):
    """Three files, no checksum of the manifest itself, no best."""
    _, path = saved
    manifest = json.loads((path / "manifest.json").read_text()) | {"version": 1}
    del manifest["sha256"]
    write_json(path / "manifest.json", manifest)
    model, optimizer = make(seed=9)
    assert load_checkpoint(path, model, optimizer)["step"] == 3
    expected, _ = make()
    train(expected, _, 3)
    assert np.array_equal(model.params, expected.params)
    for change in ({"sha256": ""}, {"step": True}, {"files": manifest["files"] | {"a": {}}}):
        write_json(path / "manifest.json", manifest | change)
        with pytest.raises(CheckpointError, match=r"manifest\.json: damaged"):
            load_checkpoint(path, model, optimizer)


@pytest.mark.parametrize("version", [0, 3, "2", None, True])
def test_other_format_version_is_refused(saved, version):
    _, path = saved
    manifest = json.loads((path / "manifest.json").read_text()) | {"version": version}
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"format version {version}, this program reads 1 to"):
        load_checkpoint(path, *make())


def test_stored_files_are_listed_and_come_back(tmp_path):
    model, optimizer = make()
    files = {"config.toml": b"seed = 1\n", "vocabulary.json": bytes(range(256)), "empty": b""}
    path = save_checkpoint(tmp_path, model, optimizer, {"step": 1}, files=files)
    assert set(verify_files(path)["files"]) == set(FILES) - {"manifest.json"} | set(files)
    for name, content in files.items():
        assert (path / name).read_bytes() == content
    (path / "vocabulary.json").unlink()
    with pytest.raises(CheckpointError, match=r"vocabulary\.json: missing"):
        load_checkpoint(path, model, optimizer)


@pytest.mark.parametrize("name", ["state.json", "manifest.json", "../x", "a/b", "a\\b", "", ".."])
def test_stored_files_have_plain_names_of_their_own(tmp_path, name):
    with pytest.raises(ValueError, match="expected a plain one"):
        save_checkpoint(tmp_path, *make(), {"step": 1}, files={name: b"x"})
    assert not list(tmp_path.iterdir())


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
    (run / "config.toml").touch()
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
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
    assert failing == {"fsync": 6, "rename": 1}[call]  # four files, their folder, its parent
    assert [p.name for p in list_checkpoints(run)] == ["step-4", "step-3"]


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_will_do(saved, monkeypatch, number):
    run, _ = saved
    real = os.fsync

    def failing(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) or not folders_only:
            raise OSError(number, os.strerror(number))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    folders_only = True
    verify_files(save_checkpoint(run, *make(), {"step": 4}))
    folders_only = False
    with pytest.raises(OSError, match=os.strerror(number)):
        save_checkpoint(run, *make(), {"step": 5})
