"""Tensors of safetensors files as float32, bfloat16 included, which NumPy lacks."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open

from .errors import PretrainedError

# Files are little-endian on every machine.
_STORED = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies. dtype: the format's name; offset: in bytes from the file's start."""

    path: Path
    name: str
    dtype: str
    shape: tuple
    offset: int

    def check_dtype(self):
        """Raises PretrainedError unless read_into can convert it."""
        if self.dtype not in _STORED:
            raise PretrainedError(
                f"{self.path}: {self.name}: got dtype {self.dtype}, expected F32, F16 or BF16"
            )

    def read_into(self, view):
        """Fills a float32 array of the same shape.

        Raises PretrainedError if the file cannot be read or an element is not finite.
        """
        try:
            stored = np.fromfile(self.path, _STORED[self.dtype], view.size, offset=self.offset)
        except OSError as error:
            raise PretrainedError(f"{self.path}: cannot be read: {error}") from error
        if stored.size != view.size:
            raise PretrainedError(f"{self.path}: {self.name}: the file was cut short meanwhile")
        if self.dtype == "BF16":  # the upper half of a float32
            bits = view.view(np.uint32)
            bits[...] = stored.reshape(view.shape)
            bits <<= 16
        else:
            view[...] = stored.reshape(view.shape)
        index = first_nonfinite(view)
        if index is not None:
            raise PretrainedError(
                f"{self.path}: {self.name}: got {view.reshape(-1)[index]} at index {index}, "
                "expected finite numbers"
            )


def first_nonfinite(array):
    """The flat index of the first element that is NaN or infinite, or None."""
    if np.isfinite(array).all():
        return None
    return int(np.flatnonzero(~np.isfinite(array.reshape(-1)))[0])


def read_header(path):
    """[StoredTensor, ...] of a file. Raises PretrainedError if it is missing or damaged."""
    if not path.is_file():
        raise PretrainedError(f"{path}: missing")
    try:
        with safe_open(path, framework="numpy"):
            pass  # checks the header, and that the tensors cover the file
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        raise PretrainedError(f"{path}: not a whole safetensors file: {error}") from error
    return [
        StoredTensor(path, name, e["dtype"], tuple(e["shape"]), 8 + size + e["data_offsets"][0])
        for name, e in header.items()
        if name != "__metadata__"
    ]
