"""Files that are whole or absent: what checkpoints and folders of weights share."""

import contextlib
import errno
import hashlib
import json
import os
from pathlib import Path


class NewFile:
    """A file being written, for `with`: at the end of it, it is on the disk.

    bytes, sha256(): of what was to be written, not of what a disk gives back. Raises OSError.
    """

    def __init__(self, path):
        self._file = open(path, "wb")  # noqa: SIM115
        self._digest = hashlib.sha256()
        self.bytes = 0

    def write(self, data):
        """Appends bytes, or a contiguous memoryview of them."""
        self._file.write(data)
        self._digest.update(data)
        self.bytes += len(data)

    def sha256(self):
        """The SHA-256 so far, in hexadecimal."""
        return self._digest.hexdigest()

    def __enter__(self):
        return self

    def __exit__(self, kind, *rest):
        if kind is not None:
            with contextlib.suppress(OSError):  # the first error tells more
                self._file.close()
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def json_bytes(value):
    """An object as the text that read_json reads, in UTF-8. NumPy scalars become numbers."""
    text = json.dumps(value, indent=1, allow_nan=False, default=lambda number: number.item())
    return text.encode() + b"\n"


def write_json(path, value):
    """Writes an object that read_json reads."""
    path.write_bytes(json_bytes(value))


@contextlib.contextmanager
def write_whole(path):
    """A NewFile that gets its name once it is on the disk; a crash leaves the file before."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with NewFile(temporary) as file:
            yield file
        os.replace(temporary, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
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
    except OSError as error:
        # Some network file systems have no such thing for folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
