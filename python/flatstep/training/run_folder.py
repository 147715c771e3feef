"""The folder of a run: made once, with config.toml, which is replaced as a whole."""

import contextlib
import os
import re
import tomllib
from dataclasses import fields
from pathlib import Path

from .. import __version__
from .._files import write_whole
from ..data.prepared import check_place
from ..data.vocabulary import load_vocabulary
from ..errors import InputError, RunFailed
from .config import make_config
from .manifest import MANIFEST, STATE


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


def config_text(config, extra):
    """The bytes of config.toml: the configuration, then the entries of the dict `extra`."""
    entries = {item.name: getattr(config, item.name) for item in fields(config)} | extra
    return "".join(f"{name} = {toml_value(value)}\n" for name, value in entries.items()).encode()


def write_config(run, config, extra):
    """Writes RUN/config.toml, with the entries of the dict `extra` at its end; see write_file."""
    write_file(Path(run, "config.toml"), config_text(config, extra))


def write_file(path, content):
    """Writes bytes to a file of a run, replacing it as a whole: a crash leaves the old or the new.

    Raises RunFailed naming the file if the disk refuses.
    """
    try:
        with write_whole(path) as file:
            file.write(content)
    except OSError as error:
        raise RunFailed(f"{path}: cannot be written: {error.strerror}") from error


def write_vocabulary(run, vocabulary):
    """Writes the files of a vocabulary to a run; see write_file."""
    for name, content in vocabulary.files().items():
        write_file(Path(run, name), content)


def read_vocabulary(folder, config):
    """The vocabulary in the folder of a run or checkpoint, of the kind that its TrainConfig tells.

    Raises InputError if it is damaged or missing.
    """
    vocabulary = load_vocabulary(folder)
    if config.vocab not in ("auto", vocabulary.kind):
        raise InputError(f"{folder}: its {config.vocab} vocabulary is missing")
    return vocabulary


def read_config(run):
    """(TrainConfig, the other entries) of RUN/config.toml.

    Raises InputError if RUN is no run folder, its config.toml is damaged or has an option that is
    unknown here, or a newer flatstep wrote it.
    """
    path = Path(run, "config.toml")
    if not path.is_file():
        raise InputError(f"{run}: not a run (a folder with config.toml was expected)")
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read: {reason}") from error
    _check_version(path, entries.get("flatstep_version", __version__))
    extra = {name: value for name, value in entries.items() if _is_extra(name)}
    try:
        return make_config({n: v for n, v in entries.items() if n not in extra}), extra
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _is_extra(name):
    # What is recorded of the text and of the program; everything else is an option.
    return name.startswith("data_") or name in ("val_files", "flatstep_version")


def _check_version(path, version):
    found = re.match(r"(\d+)\.(\d+)", str(version))
    if found is None:
        raise InputError(f"{path}: flatstep_version {version!r} is no version")
    own = re.match(r"(\d+)\.(\d+)", __version__)
    if tuple(map(int, found.groups())) > tuple(map(int, own.groups())):
        raise InputError(
            f"{path}: written by flatstep {version}, newer than this {__version__}; "
            "update flatstep to use this run"
        )


def refuse_checkpoint(folder, why):
    """Raises InputError, with the run's name, if a folder is a checkpoint. why: ends the reason."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file() or (folder / STATE).is_file():
        run = Path(os.path.abspath(folder)).parent.parent
        raise InputError(f"{folder}: is a checkpoint; {why}, perhaps {run}")


def check_run_folder(out=None):
    """Raises InputError if create_run_folder would, before the work."""
    if out is not None and os.path.isdir(out):
        _refuse_full(Path(out))
    check_place("runs" if out is None else out)


def _refuse_full(run):
    if any(run.iterdir()):
        raise InputError(
            f"--out {run}: the folder is not empty; choose another, or go on with "
            f"an existing run by --resume {run}"
        )


def create_run_folder(out=None):
    """Makes the folder of a new run and returns its Path; never touches an existing run.

    out: the folder, which must be new or empty; None takes the next free number in runs/.
    Raises InputError if the folder is in use or cannot be made.
    """
    try:
        if out is None:
            return _next_numbered(Path("runs"))
        run = Path(out)
        if run.is_dir():
            _refuse_full(run)
        run.mkdir(parents=True, exist_ok=True)
        return run
    except OSError as error:
        raise InputError(f"--out {out or 'runs'}: {error.strerror}") from error


@contextlib.contextmanager
def only_process(run):
    """A context in which no other process trains in the folder of a run. Raises InputError if one
    does."""
    descriptor = os.open(run, os.O_RDONLY)
    try:
        _lock(run, descriptor)
        yield
    finally:
        os.close(descriptor)  # which also gives the lock back, as the end of the process does


def _lock(run, descriptor):
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InputError(f"{run}: another process is training in this folder") from error
    except (ImportError, OSError):
        return  # a system, or a network's disk, without locks


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
