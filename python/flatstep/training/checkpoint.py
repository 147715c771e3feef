"""Checkpoints that a crash cannot tear and a flipped bit cannot pass.

RUN/checkpoints/step-N/ holds model.safetensors (Hugging Face GPT-2 names), optimizer.safetensors
("exp_avg.transformer.wte.weight"), state.json, the run's config.toml and vocabulary, and
manifest.json with the size and SHA-256 of all others. The manifest is written last, everything is
synced, and only then does the folder get its name; so a folder called step-N is complete.

step-N.tmp is being written or deleted, and swept by the next save. step-N.old is whole: a save of
the same step takes its place; while there is no step-N, it is that checkpoint. step-N.refused was
found damaged by a run that went on from an older one.
"""

import dataclasses
import os
import re
import shutil
from pathlib import Path

from .._files import NewFile, json_bytes, sync
from .._safetensors import write_tensors
from ..errors import CheckpointError
from .checkpoint_load import NAME, by_file_name, load_checkpoint, read_state
from .manifest import (
    MANIFEST,
    MODEL,
    OPTIMIZER,
    STATE,
    check_file_name,
    make_manifest,
    read_manifest,
)
from .progress import warn as print_warning


def save_checkpoint(
    run, model, optimizer, state, *, files=None, keep=2, keep_best=True, warn=print_warning
):
    """Writes RUN/checkpoints/step-N and returns its Path; then deletes older ones.

    The newest `keep` stay and, with keep_best, that of state["best"]["step"], if any.
    model, optimizer: flatstep.GPT and an optimizer over its flat parameters.
    state: dict for state.json with "step" (N), and "best": {"step", "val_loss"} or None; "model"
    and "optimizer" are added here.
    files: {name: bytes} to be stored beside them.
    Raises OSError if the disk refuses; earlier checkpoints are then untouched. What cannot be
    deleted is told by warn(text), since the new checkpoint is whole by then.
    """
    for name in files or {}:
        check_file_name(name)
    root = Path(run, "checkpoints")
    if not root.is_dir():
        root.mkdir()
        sync(root.parent)
    _sweep(root, warn)
    final = root / f"step-{state['step']}"
    temporary = root / f"{final.name}.tmp"
    temporary.mkdir()
    try:
        _write_files(temporary, model, optimizer, state, files or {})
        _put_in_place(temporary, final)
        sync(root)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _retire(root, state, keep, keep_best, warn)
    _sweep(root, warn)
    return final


def _write_files(folder, model, optimizer, state, files):
    scalars = optimizer._state_views()
    tensors = scalars.pop("state")
    state = state | {"model": dataclasses.asdict(model.config), "optimizer": scalars}
    contents = {STATE: json_bytes(state)} | files
    listed = {}
    with NewFile(folder / MODEL) as file:
        write_tensors(model.layout.views(model.params), file, metadata={"format": "np"})
    listed[MODEL] = {"bytes": file.bytes, "sha256": file.sha256()}
    with NewFile(folder / OPTIMIZER) as file:
        write_tensors(by_file_name(tensors), file)
    listed[OPTIMIZER] = {"bytes": file.bytes, "sha256": file.sha256()}
    for name, content in contents.items():
        with NewFile(folder / name) as file:
            file.write(content)
        listed[name] = {"bytes": file.bytes, "sha256": file.sha256()}
    with NewFile(folder / MANIFEST) as file:
        file.write(make_manifest(state["step"], listed))
    sync(folder)


def _put_in_place(temporary, final):
    """Renames a complete folder; one of the same step is put aside until that is done."""
    old = final.with_name(final.name + ".old")
    replaced = final.exists()
    if replaced:
        os.rename(final, old)
    try:
        os.rename(temporary, final)
    except BaseException:
        if replaced:
            os.rename(old, final)
        raise


def _retire(root, state, keep, keep_best, warn):
    """Takes the names from checkpoints that are no longer wanted; _sweep then deletes them."""
    best = state.get("best") if keep_best else None
    wanted = {best["step"]} if best else set()
    own = [path for path in list_checkpoints(root.parent) if step_of(path) <= state["step"]]
    unwanted = [path for path in own[keep:] if step_of(path) not in wanted]
    try:
        for path in unwanted:
            os.rename(path, path.with_name(path.name + ".tmp"))
        if unwanted:
            sync(root)  # before anything in them goes
    except OSError as error:
        warn(f"{root}: an old checkpoint cannot be deleted: {error}")


def _sweep(root, warn):
    """Deletes what saves have left; puts a checkpoint back that was put aside, but not replaced."""
    try:
        for old in root.glob("step-*.old"):
            final = old.with_suffix("")
            os.rename(old, old.with_name(old.name + ".tmp") if final.exists() else final)
        for stale in root.glob("step-*.tmp"):
            shutil.rmtree(stale)
    except OSError as error:
        warn(f"{root}: what an earlier save has left cannot be deleted: {error}")


def list_checkpoints(run):
    """The folders of a run's checkpoints, newest first; they are not opened."""
    root = Path(run, "checkpoints")
    if not root.is_dir():
        return []
    found = {}
    for path in root.iterdir():
        match = NAME.fullmatch(path.name)
        if match and (match[2] is None or int(match[1]) not in found):
            found[int(match[1])] = path
    return [found[step] for step in sorted(found, reverse=True)]


def step_of(path):
    """The step in the name of a checkpoint folder that list_checkpoints has found."""
    return int(NAME.fullmatch(path.name)[1])


def find_checkpoint(path, which="last"):
    """The folder of a checkpoint; it is not opened but for "best".

    path: a run, or itself the folder of a checkpoint.
    which: "last", "best" (of validation loss), or a step as N, "N" or "step-N".
    Raises CheckpointError, naming those that exist, if there is no such checkpoint.
    """
    path = Path(path)
    if _is_checkpoint(path):
        if which == "best" or (which != "last" and f"step-{_step_number(which)}" != path.name):
            raise CheckpointError(f"{path}: is a checkpoint itself, so it has no {which!r}")
        return path
    found = list_checkpoints(path)
    if not found:
        is_run = Path(path, "config.toml").is_file()
        raise CheckpointError(
            f"{path}: {'has no checkpoint yet' if is_run else 'neither a run nor a checkpoint'}"
        )
    if which == "last":
        return found[0]
    step = _best_step(path, found) if which == "best" else _step_number(which)
    for folder in found:
        if step_of(folder) == step:
            return folder
    names = ", ".join(f"step-{step_of(folder)}" for folder in found)
    raise CheckpointError(f"{path}: has no checkpoint step-{step}; it has {names}")


def _is_checkpoint(path):
    # By its name too, so that one that has lost its manifest is refused as that.
    named = NAME.fullmatch(path.name) and path.is_dir() and not (path / "checkpoints").exists()
    return named or (path / MANIFEST).is_file()


def _step_number(which):
    match = re.fullmatch(r"(?:step-)?([0-9]+)", str(which))
    if match is None:
        raise CheckpointError(f"checkpoint {which!r}: expected last, best or step-N")
    return int(match[1])


def _best_step(run, found):
    """The step of the best checkpoint, as the newest whole state.json has it."""
    refused = []
    for folder in found:
        try:
            best = read_state(folder, read_manifest(folder)).get("best")
        except CheckpointError as error:
            refused.append(error)
            continue
        if not isinstance(best, dict):
            raise CheckpointError(f"{run}: no validation is recorded, so no checkpoint is the best")
        return best.get("step")
    raise refused[0]


def load_newest(run, model, optimizer=None, *, warn, set_aside=False):
    """Loads the newest checkpoint of a run that is whole: (its Path, its state dict).

    A damaged one is passed over with one call of warn(text) in favour of an older one; with
    set_aside it is also renamed to step-N.refused, out of the way of the run that goes on.
    run: may also be the folder of one checkpoint, which is then loaded or refused.
    Raises CheckpointError if there is none or all are refused.
    """
    refused = []
    newest = find_checkpoint(run)
    for path in [newest] if newest == Path(run) else list_checkpoints(run):
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
    raise refused[0][1]


def _rename_aside(path):
    aside = path.with_name(path.name + ".refused")
    shutil.rmtree(aside, ignore_errors=True)
    os.rename(path, aside)
