"""Files that are whole or absent: what checkpoints and folders of weights share."""

import contextlib
import json
import os
from pathlib import Path


def write_json(path, value):
    """Writes an object that read_json reads. NumPy scalars become numbers."""
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=1, allow_nan=False, default=lambda number: number.item())
        file.write("\n")


@contextlib.contextmanager
def write_whole(path):
    """A binary file to write to, which gets its name when it is on the disk; else there is none."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_json(path, error_kind):
    """The object in a file. Raises error_kind naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise error_kind(f"{path}: missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise error_kind(f"{path}: cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise error_kind(f"{path}: an object was expected")
    return value


def sync(path):
    """Waits until a file, or the names in a folder, are on the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot open a folder
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
