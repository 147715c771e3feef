"""The folder of a run: made once, with config.toml, which is replaced as a whole."""

import os
import tomllib
from dataclasses import fields
from pathlib import Path

from .._files import write_whole
from ..errors import InputError
from .config import make_config
from .options import TrainConfig


def toml_value(value):
    """A str, bool, int, finite float or sequence of these in TOML's notation."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(map(_toml_character, value)) + '"'
    if isinstance(value, (list, tuple)) and not value:
        return "[]"
    if isinstance(value, (list, tuple)):
        return "[\n" + "".join(f"    {toml_value(item)},\n" for item in value) + "]"
    return repr(value)


def _toml_character(character):
    if character in '"\\':
        return "\\" + character
    if ord(character) < 0x20 or ord(character) == 0x7F:
        return f"\\u{ord(character):04x}"
    return character


def write_config(run, config, extra):
    """Writes RUN/config.toml: the configuration, then the entries of the dict `extra`.

    The file is replaced as a whole, so that a crash leaves the old or the new one.
    """
    entries = {item.name: getattr(config, item.name) for item in fields(config)} | extra
    text = "".join(f"{name} = {toml_value(value)}\n" for name, value in entries.items())
    temporary = Path(run, ".config.toml.tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, Path(run, "config.toml"))


def write_vocabulary(run, vocabulary):
    """Writes the files of a vocabulary to a run, each whole or not at all."""
    for name, content in vocabulary.files().items():
        with write_whole(Path(run, name)) as file:
            file.write(content)


def read_config(run):
    """(TrainConfig, the other entries) of RUN/config.toml.

    Raises InputError if RUN is no run folder or its config.toml is damaged.
    """
    path = Path(run, "config.toml")
    if not path.is_file():
        raise InputError(f"{run}: not a run (a folder with config.toml was expected)")
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    names = {item.name for item in fields(TrainConfig)}
    given = {name: value for name, value in entries.items() if name in names}
    extra = {name: value for name, value in entries.items() if name not in names}
    try:
        return make_config(given), extra
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def create_run_folder(out=None):
    """Makes the folder of a new run and returns its Path; never touches an existing run.

    out: the folder, which must be new or empty; None takes the next free number in runs/.
    Raises InputError if the folder is in use or cannot be made.
    """
    try:
        if out is None:
            return _next_numbered(Path("runs"))
        run = Path(out)
        if run.is_dir() and any(run.iterdir()):
            raise InputError(
                f"--out {out}: the folder is not empty; choose another, or go on with "
                f"an existing run by --resume {out}"
            )
        run.mkdir(parents=True, exist_ok=True)
        return run
    except OSError as error:
        raise InputError(f"--out {out or 'runs'}: {error.strerror}") from error


def _next_numbered(parent):
    parent.mkdir(exist_ok=True)
    number = max((int(p.name) for p in parent.iterdir() if p.name.isdecimal()), default=0) + 1
    while True:
        try:
            run = parent / f"{number:03d}"
            run.mkdir()
            return run
        except FileExistsError:
            number += 1
