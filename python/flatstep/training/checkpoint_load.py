"""One checkpoint folder, from the disk into a model and its optimizer."""

import dataclasses
import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from .._files import read_json
from .._safetensors import TYPE_NAMES, read_into
from ..errors import CheckpointError
from .manifest import MANIFEST, MODEL, OPTIMIZER, STATE, verify_file, verify_files

NAME = re.compile(r"step-(0|[1-9][0-9]*)(\.old)?")


def by_file_name(tensors):
    """{tensor: {"exp_avg": array}} as {"exp_avg.tensor": array}, the names in the file."""
    return {
        f"{kind}.{tensor}": array for tensor, own in tensors.items() for kind, array in own.items()
    }


def load_checkpoint(path, model, optimizer=None):
    """Checks a checkpoint folder wholly, then loads it into model and optimizer.

    Returns the dict of state.json. Nothing is changed if the check fails: raises
    CheckpointError naming the file, and the tensor, that is missing, damaged or of another model.
    """
    path = Path(path)
    state = read_state(path, verify_files(path))
    _compare_model(path / STATE, state.get("model"), dataclasses.asdict(model.config))
    targets = {MODEL: model.layout.views(model.params)}
    if optimizer is not None:
        scalars, tensors = _empty_state(path / STATE, state, optimizer)
        targets[OPTIMIZER] = by_file_name(tensors)
    for name, views in targets.items():
        _check_tensors(path / name, views)
    if optimizer is not None:  # refuses what does not fit before anything is read
        _load_optimizer(path / STATE, optimizer, scalars | {"state": tensors})
    for name, views in targets.items():
        try:
            read_into(path / name, views)
        except OSError as error:
            raise CheckpointError(f"{path / name}: cannot be read: {error}") from error
    if optimizer is not None:  # to a device, or to parameters of 16 bits
        _load_optimizer(path / STATE, optimizer, scalars | {"state": tensors})
    return state


def read_state(path, manifest):
    """The dict of state.json, of the same step as the manifest and the folder's name."""
    verify_file(path, manifest, STATE)
    state = read_json(path / STATE, CheckpointError)
    named = NAME.fullmatch(path.resolve().name)
    if named and int(named[1]) != manifest["step"]:
        raise CheckpointError(f"{path / MANIFEST}: is of step {manifest['step']}")
    if state.get("step") != manifest["step"]:
        raise CheckpointError(f"{path / STATE}: is of step {state.get('step')}")
    return state


def _load_optimizer(path, optimizer, state):
    try:
        optimizer.load_state_dict(state)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{path}: of another optimizer: {error}") from error


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
