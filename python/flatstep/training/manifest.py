"""The manifest of a checkpoint: the size and SHA-256 of each of its files, and of itself.

manifest.json is JSON in one canonical form, and only that form is read: no bit of it can change
without a refusal. Version 1 had no checksum of itself and listed the first three files only; all
that it says stands elsewhere too, so it is as safe.
"""

import hashlib
import json
import re
from pathlib import Path

from .._files import json_bytes
from ..errors import CheckpointError

FORMAT = "flatstep checkpoint"
VERSION = 2
MODEL, OPTIMIZER, STATE, MANIFEST = (
    "model.safetensors", "optimizer.safetensors", "state.json", "manifest.json",
)  # fmt: skip
ALWAYS = frozenset((MODEL, OPTIMIZER, STATE))
_KEYS = {
    1: {"format", "version", "step", "files"},
    2: {"format", "version", "step", "files", "sha256"},
}


def check_file_name(name):
    """Raises ValueError unless `name` can stand beside the tensors of a checkpoint."""
    plain = isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name)
    if not plain or name in ALWAYS | {MANIFEST}:
        raise ValueError(f"files: got the name {name!r}, expected a plain one that is not taken")


def make_manifest(step, files):
    """The bytes of manifest.json. files: {name: {"bytes": its size, "sha256": in hexadecimal}}."""
    manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": files}
    return json_bytes(manifest | {"sha256": _own_sha256(manifest)})


def _own_sha256(manifest):
    rest = {name: value for name, value in manifest.items() if name != "sha256"}
    return hashlib.sha256(json_bytes(rest)).hexdigest()


def read_manifest(folder):
    """The dict of a checkpoint's manifest.json. Raises CheckpointError unless it is undamaged."""
    path = Path(folder, MANIFEST)
    try:
        content = path.read_bytes()
        manifest = json.loads(content)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: it is no JSON: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not the manifest of a flatstep checkpoint")
    version = manifest.get("version")
    if type(version) is not int or version not in _KEYS:
        raise CheckpointError(
            f"{path}: format version {version}, this program reads 1 to {VERSION}"
        )
    try:
        canonical = json_bytes(manifest) == content
    except ValueError:  # NaN
        canonical = False
    if not canonical or not _sound(manifest, version):
        raise CheckpointError(f"{path}: damaged: its content is not what was written")
    return manifest


def _sound(manifest, version):
    files = manifest.get("files")
    if set(manifest) != _KEYS[version] or type(manifest["step"]) is not int:
        return False
    if version > 1 and manifest["sha256"] != _own_sha256(manifest):
        return False
    if not isinstance(files, dict) or not set(files) >= ALWAYS:
        return False
    if version == 1 and set(files) != ALWAYS:
        return False
    try:
        for name in set(files) - ALWAYS:
            check_file_name(name)
    except ValueError:
        return False
    return all(isinstance(e, dict) and set(e) == {"bytes", "sha256"} for e in files.values())


def verify_file(folder, manifest, name):
    """Checks a file of a checkpoint against its manifest. Raises CheckpointError naming it."""
    path, expected = Path(folder, name), manifest["files"][name]
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise CheckpointError(
                f"{path}: {size:,} bytes instead of {expected['bytes']}, cut short?"
            )
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing") from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error
    if digest != expected["sha256"]:
        raise CheckpointError(f"{path}: damaged: its SHA-256 is not the one in {MANIFEST}")


def verify_files(folder):
    """Checks manifest.json and every file that it lists, and returns the manifest as a dict.

    Raises CheckpointError naming the file at fault.
    """
    manifest = read_manifest(folder)
    for name in manifest["files"]:
        verify_file(folder, manifest, name)
    return manifest
