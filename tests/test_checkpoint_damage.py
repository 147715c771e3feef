"""Flipped bits, cut files and swapped files: each is refused, and the file at fault is named."""

import os
import shutil

import numpy as np
import pytest
from checkpoint_case import make, train

from flatstep._files import json_bytes
from flatstep.errors import CheckpointError
from flatstep.training import checkpoint_load
from flatstep.training import manifest as manifests
from flatstep.training.checkpoint import load_checkpoint, save_checkpoint

NAMES = (
    "model.safetensors", "optimizer.safetensors", "state.json", "config.toml", "vocabulary.json",
    "manifest.json",
)  # fmt: skip
FLIPS, TRUNCATIONS = 2000, 200


@pytest.fixture
def case(tmp_path):
    """(checkpoint folder, refused(name, content)): whether that content of a file is refused."""
    model, optimizer = make()
    train(model, optimizer, 3)
    files = {"config.toml": b"n_embd = 16\n" * 20, "vocabulary.json": json_bytes({"a": [1] * 99})}
    path = save_checkpoint(tmp_path, model, optimizer, {"step": 3}, files=files)
    target, target_optimizer = make(seed=9)
    before = target.params.copy()

    def refused(name, content):
        good = (path / name).read_bytes()
        put(path / name, content)
        try:
            load_checkpoint(path, target, target_optimizer)
        except CheckpointError as error:
            return str(error).startswith(f"{path / name}: ")
        finally:
            put(path / name, good)
        return False

    yield path, refused
    assert np.array_equal(target.params, before) and target_optimizer.step_count == 0
    assert load_checkpoint(path, target, target_optimizer)["step"] == 3
    assert np.array_equal(target.params, model.params)


def put(path, content):
    """Gives a file another content without making it empty first, after which disks are slow."""
    with open(path, "r+b", buffering=0) as file:
        file.write(content)
        if len(content) < file.seek(0, os.SEEK_END):
            file.truncate(len(content))


def flipped(content, bit):
    bad = bytearray(content)
    bad[bit // 8] ^= 1 << bit % 8
    return bytes(bad)


def flips(path, rng):
    """(name, content) of FLIPS damaged files, each file as often."""
    for k in range(FLIPS):
        name = NAMES[k % len(NAMES)]
        good = (path / name).read_bytes()
        yield name, flipped(good, int(rng.integers(8 * len(good))))


def test_every_flipped_bit_is_refused(case, rng):
    path, refused = case
    missed = [name for name, content in flips(path, rng) if not refused(name, content)]
    assert missed == []


def test_every_bit_of_the_manifest_counts(case):
    path, refused = case
    good = (path / "manifest.json").read_bytes()
    bits = range(8 * len(good))
    assert [b for b in bits if not refused("manifest.json", flipped(good, b))] == []


def test_every_bit_of_a_manifest_of_version_1_counts(case):
    """It has no checksum of its own. A flip may show as another file that does not fit it."""
    path, _ = case
    manifest = manifests.read_manifest(path)
    old = {name: manifest[name] for name in ("format", "version", "step", "files")}
    old |= {"version": 1, "files": {name: old["files"][name] for name in NAMES[:3]}}
    good = json_bytes(old)
    current = (path / "manifest.json").read_bytes()
    target = make()
    for bit in range(8 * len(good)):
        put(path / "manifest.json", flipped(good, bit))
        with pytest.raises(CheckpointError, match=r"step-3/.*manifest\.json|bytes instead of"):
            load_checkpoint(path, *target)
    (path / "manifest.json").write_bytes(good)
    load_checkpoint(path, *target)
    (path / "manifest.json").write_bytes(current)


def test_every_truncation_is_refused(case, rng):
    path, refused = case
    count = 0
    for name in NAMES:
        good = (path / name).read_bytes()
        random = rng.integers(len(good), size=TRUNCATIONS // len(NAMES)).tolist()
        for length in {0, 1, len(good) - 1, *random}:
            assert refused(name, good[:length]), (name, length)
            count += 1
    assert count >= TRUNCATIONS


@pytest.mark.parametrize("name", NAMES)
def test_longer_and_missing_files_are_refused(case, name):
    path, refused = case
    good = (path / name).read_bytes()
    for more in (b"}", b"\n", b"\0", good):
        assert refused(name, good + more)
    moved = (path / name).rename(path.parent / name)
    with pytest.raises(CheckpointError, match=f"{name}: missing"):
        load_checkpoint(path, *make())
    (path / name).mkdir()
    with pytest.raises(CheckpointError, match=f"{name}: "):
        load_checkpoint(path, *make())
    (path / name).rmdir()
    moved.rename(path / name)


def test_files_swapped_between_checkpoints_are_refused(case, tmp_path):
    _, refused = case
    model, optimizer = make()
    train(model, optimizer, 4)
    files = {"config.toml": b"n_embd = 17\n", "vocabulary.json": b"{}"}
    other = save_checkpoint(tmp_path, model, optimizer, {"step": 4}, files=files)
    for name in NAMES[:-1]:
        assert refused(name, (other / name).read_bytes())
    renamed = shutil.copytree(other, other.with_name("step-8"))
    with pytest.raises(CheckpointError, match=r"step-8/manifest\.json: is of step 4"):
        load_checkpoint(renamed, *make())


def test_without_checksums_flips_would_pass(case, rng, monkeypatch):
    """The control of these tests: sizes and the format's own checks see next to nothing."""
    path, _ = case
    good = (path / "model.safetensors").read_bytes()
    monkeypatch.setattr(checkpoint_load, "verify_files", manifests.read_manifest)
    target, passed = make(), 0
    for _ in range(50):
        bad = flipped(good, int(rng.integers(8 * len(good))))
        (path / "model.safetensors").write_bytes(bad)
        try:
            load_checkpoint(path, *target)
            passed += 1
        except CheckpointError:  # within the header
            continue
    assert passed > 25
    (path / "model.safetensors").write_bytes(good)
