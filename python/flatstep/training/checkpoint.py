"""Checkpoints that a crash cannot tear and a flipped bit cannot pass.

RUN/checkpoints/step-N/ holds model.safetensors (Hugging Face GPT-2 names), optimizer.safetensors
("exp_avg.transformer.wte.weight"), state.json, and manifest.json with the size and SHA-256 of the
other three. The manifest is written last, everything is synced, and only then does the folder
get its name; so a folder called step-N is complete.
"""

import dataclasses
import hashlib
import os
import shutil
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .._files import read_json, sync, write_json
from .._safetensors import TYPE_NAMES, read_into, save_file
from ..errors import CheckpointError

FORMAT = "flatstep checkpoint"
VERSION = 1
MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
)  # fmt: skip


def save_checkpoint(run, model, optimizer, state, keep=2):
    """Writes RUN/checkpoints/step-N and returns its Path; then deletes all but the newest `keep`.

    model, optimizer: flatstep.GPT and an optimizer over its flat parameters.
    state: dict for state.json with "step" (N); "model" and "optimizer" are added here.
    Raises OSError if the disk refuses; earlier checkpoints are then untouched.
    """
    root = Path(run, "checkpoints")
    root.mkdir(exist_ok=True)
    for stale in root.glob("*.tmp"):
        shutil.rmtree(stale, ignore_errors=True)
    final = root / f"step-{state['step']}"
    temporary = root / f"{final.name}.tmp"
    temporary.mkdir()
    try:
        _write_files(temporary, model, optimizer, state)
        if final.exists():
            # Only a checkpoint that was refused on loading can stand here.
            shutil.rmtree(final)
        os.rename(temporary, final)
        sync(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    for old in [p for p in list_checkpoints(run) if _step(p) <= state["step"]][keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def _write_files(folder, model, optimizer, state):
    scalars = optimizer._state_views()
    tensors = scalars.pop("state")
    state = state | {"model": dataclasses.asdict(model.config), "optimizer": scalars}
    save_file(model.layout.views(model.params), folder / MODEL, metadata={"format": "np"})
    save_file(_by_file_name(tensors), folder / OPTIMIZER)
    write_json(folder / STATE, state)
    files = {}
    for name in (MODEL, OPTIMIZER, STATE):
        sync(folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
    manifest = {"format": FORMAT, "version": VERSION, "step": state["step"], "files": files}
    write_json(folder / MANIFEST, manifest)
    sync(folder / MANIFEST)
    sync(folder)


def _by_file_name(tensors):
    return {
        f"{kind}.{tensor}": array for tensor, own in tensors.items() for kind, array in own.items()
    }


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_checkpoints(run):
    """The step-N folders of a run, newest first; they are not opened."""
    root = Path(run, "checkpoints")
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if p.name.startswith("step-") and p.name[5:].isdecimal()]
    return sorted(found, key=_step, reverse=True)


def _step(path):
    return int(path.name.removeprefix("step-"))


def load_newest(run, model, optimizer=None, *, warn, set_aside=False):
    """Loads the newest checkpoint of a run that is whole: (its Path, its state dict).

    A damaged one is passed over with one call of warn(text) in favour of an older one; with
    set_aside it is also renamed to step-N.refused, out of the way of the run that goes on.
    Raises CheckpointError if there is none or all are refused.
    """
    refused = []
    candidates = list_checkpoints(run)
    for path in candidates:
        try:
            state = load_checkpoint(path, model, optimizer)
        except CheckpointError as error:
            refused.append((path, error))
            continue
        for bad, error in refused:
            warn(f"{error}; using the older {path.name} instead of {bad.name}")
            if set_aside:
                _rename_aside(bad)
        return path, state
    if not candidates:
        raise CheckpointError(f"{run}: has no checkpoint yet")
    raise refused[0][1]


def _rename_aside(path):
    aside = path.with_name(path.name + ".refused")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)


def load_checkpoint(path, model, optimizer=None):
    """Checks a checkpoint folder wholly, then loads it into model and optimizer.

    Returns the dict of state.json. Nothing is changed if the check fails: raises
    CheckpointError naming the file, and the tensor, that is missing, damaged or of another model.
    """
    path = Path(path)
    verify_files(path)
    state = read_json(path / STATE, CheckpointError)
    if f"step-{state.get('step')}" != path.name:
        raise CheckpointError(f"{path / STATE}: is of step {state.get('step')}")
    _compare_model(path / STATE, state.get("model"), dataclasses.asdict(model.config))
    targets = {MODEL: model.layout.views(model.params)}
    if optimizer is not None:
        scalars, tensors = _empty_state(path / STATE, state, optimizer)
        targets[OPTIMIZER] = _by_file_name(tensors)
    for name, views in targets.items():
        _check_tensors(path / name, views)
    if optimizer is not None:  # refuses what does not fit before anything is read
        optimizer.load_state_dict(scalars | {"state": tensors})
    for name, views in targets.items():
        read_into(path / name, views)
    if optimizer is not None:  # to a device, or to parameters of 16 bits
        optimizer.load_state_dict(scalars | {"state": tensors})
    return state


def verify_files(path):
    """Checks manifest.json, and every file against its size and SHA-256 there.

    Raises CheckpointError naming the file at fault.
    """
    name = Path(path, MANIFEST)
    manifest = read_json(name, CheckpointError)
    if manifest.get("format") != FORMAT or not isinstance(manifest.get("files"), dict):
        raise CheckpointError(f"{name}: not the manifest of a flatstep checkpoint")
    if manifest.get("version") != VERSION:
        raise CheckpointError(
            f"{name}: format version {manifest.get('version')}, this program reads {VERSION}"
        )
    if set(manifest["files"]) != {MODEL, OPTIMIZER, STATE}:
        raise CheckpointError(f"{name}: lists other files than a checkpoint has")
    for file, expected in manifest["files"].items():
        _verify_file(Path(path, file), expected)
    if f"step-{manifest.get('step')}" != Path(path).name:
        raise CheckpointError(f"{name}: is of step {manifest.get('step')}")


def _verify_file(path, expected):
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    if not isinstance(expected, dict) or set(expected) != {"bytes", "sha256"}:
        raise CheckpointError(f"{path}: its entry in {MANIFEST} is damaged")
    size = path.stat().st_size
    if size != expected["bytes"]:
        raise CheckpointError(f"{path}: {size:,} bytes instead of {expected['bytes']}, cut short?")
    try:
        digest = _sha256(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if digest != expected["sha256"]:
        raise CheckpointError(f"{path}: damaged: its SHA-256 is not the one in {MANIFEST}")


def _compare_model(path, found, expected):
    if not isinstance(found, dict):
        raise CheckpointError(f"{path}: lacks the configuration of the model")
    for name in expected:
        if found.get(name) != expected[name]:
            raise CheckpointError(
                f"{path}: of another model: {name} is {found.get(name)}, here {expected[name]}"
            )


def _empty_state(path, state, optimizer):
    """Scalars from state.json, and arrays to read into: the optimizer's own, or on the host."""
    own = optimizer._state_views()
    scalars = state.get("optimizer")
    if not isinstance(scalars, dict) or scalars.get("kind") != own["kind"]:
        raise CheckpointError(f"{path}: not the state of the optimizer {own['kind']!r}")
    # JSON has no tuples; the optimizer's own dict tells where it had one (betas).
    scalars = {
        name: tuple(value) if isinstance(own.get(name), tuple) else value
        for name, value in scalars.items()
    }
    return scalars, own["state"]


def _check_tensors(path, views):
    """Compares names, shapes and types in a safetensors file with `views`, before any is read."""
    try:
        with safe_open(path, framework="numpy") as file:
            found = {}
            for name in file.keys():  # noqa: SIM118 (a safe_open is no dict)
                part = file.get_slice(name)
                found[name] = (part.get_dtype(), tuple(part.get_shape()))
    except SafetensorError as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from error
    for name, view in views.items():
        expected = (TYPE_NAMES[view.dtype.name], view.shape)
        if name not in found:
            raise CheckpointError(f"{path}: lacks the tensor {name}")
        if found[name] != expected:
            raise CheckpointError(
                f"{path}: {name} is {found[name][0]} {list(found[name][1])}, "
                f"this model has {expected[0]} {list(expected[1])}"
            )
    for name in found:
        if name not in views:
            raise CheckpointError(f"{path}: {name} is no tensor of this model")
