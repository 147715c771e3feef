"""Options from a TOML file (`flatstep train --config FILE`) and from a preset."""

import tomllib
from dataclasses import dataclass, fields
from pathlib import Path

from ..data.prepared import is_prepared
from ..errors import InputError
from .config import check_values, nearest
from .options import TrainConfig
from .presets import PRESETS

# What a run's own config.toml holds besides the options, so that it can be given as it is.
_RECORDED = ("data_bytes", "data_sha256", "flatstep_version", "val_files")


@dataclass(frozen=True)
class FileOptions:
    """What a configuration file says.

    options: {field of TrainConfig: value}. files: what to train on, relative to the working
    directory as on the command line; empty if it does not say. preset: its name, or None.
    """

    options: dict
    files: tuple[str, ...]
    preset: str | None


def read_config_file(path):
    """The FileOptions of a TOML file: fields of TrainConfig, `files`, `preset`.

    The config.toml of a run can be given too: its data_files are the files.
    Raises InputError naming the file and the key that is unknown or has a wrong value.
    """
    path = Path(path)
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--config {path}: cannot be read: {reason}") from error
    for name in _RECORDED:
        entries.pop(name, None)
    try:
        files = _names(entries, "files") or _names(entries, "data_files")
        preset = entries.pop("preset", None)
        if preset is not None:
            preset_options(preset)
        _check_keys(entries)
        return FileOptions(check_values(entries), files, preset)
    except InputError as error:
        raise InputError(f"--config {path}: {error}") from error


def _names(entries, key):
    names = entries.pop(key, [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{key} must be a list of file names")
    return tuple(names)


def _check_keys(entries):
    known = [item.name for item in fields(TrainConfig)]
    for key, value in entries.items():
        if isinstance(value, dict):
            raise InputError(f"[{key}]: no tables are used; every option stands by itself")
        if key not in known:
            hint = nearest(key.replace("-", "_"), [*known, "files", "preset"])
            raise InputError(f"unknown key {key!r}{hint}")


def preset_options(name):
    """{field of TrainConfig: value} of a preset. Raises InputError."""
    if name not in PRESETS:
        hint = nearest(name, PRESETS) if isinstance(name, str) else ""
        raise InputError(f"--preset {name!r}: choose from {', '.join(PRESETS)}{hint}")
    return dict(PRESETS[name][1])


def combine(typed, config=None, preset=None, files=()):
    """(given options, files): what was typed stands before the file, the file before a preset.

    typed: {field of TrainConfig: value}. config: a TOML file or None. preset: its name or None,
    which stands before one that the file names. files: that were typed. Raises InputError.
    """
    file = FileOptions({}, (), None) if config is None else read_config_file(config)
    name = file.preset if preset is None else preset
    own, files = file.options | typed, tuple(files) or file.files
    chosen = {} if name is None else _fitting(preset_options(name), own, files)
    return chosen | own, files


def _fitting(chosen, own, files):
    """A preset's options without those that follow from others, where the user's own differ."""
    if own.keys() & {"lr", "schedule"}:
        chosen.pop("min_lr", None)
    if "warmup" in chosen and isinstance(own.get("steps"), int):
        chosen["warmup"] = min(chosen["warmup"], max(1, own["steps"] // 10))
    if "init_from" in own or any(map(_holds_tokens, files)):  # their vocabulary is given
        chosen.pop("vocab", None)
    return chosen


def _holds_tokens(name):
    return name.endswith(".bin") or is_prepared(name)
