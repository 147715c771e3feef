"""Safetensors files from and to where the arrays lie: the package's own functions copy them, which
would cost as much memory again as a model or its optimizer takes."""

import json
import sys

import numpy as np

# NumPy's names of types and the format's.
TYPE_NAMES = {
    "float32": "F32",
    "float64": "F64",
    "int64": "I64",
    "int32": "I32",
    "uint8": "U8",
    "uint16": "U16",
}


def save_file(tensors, path, metadata=None):
    """Writes ``{name: array}`` of the types above to a new file."""
    header, arrays = _header(tensors, metadata)
    with open(path, "wb") as file:
        _write(file, header, arrays)


def write_tensors(tensors, file, metadata=None):
    """Writes what `save_file` does to an open file, or whatever has its `write`."""
    _write(file, *_header(tensors, metadata))


def _header(tensors, metadata):
    """(Header as bytes, arrays in the order in which they follow it).

    The format: the length of the header as 8 bytes, little-endian; the header as JSON, padded with
    spaces to a multiple of 8; the arrays, those of the widest type first, so that all are aligned.
    """
    arrays = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    header, offset = {}, 0
    if metadata:
        header["__metadata__"] = metadata
    for name, array in arrays:
        offsets = [offset, offset + array.nbytes]
        kind = TYPE_NAMES[array.dtype.name]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": offsets}
        offset += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, [array for _, array in arrays]


def _write(file, header, arrays):
    file.write(header)
    for array in arrays:
        little = array.astype(array.dtype.newbyteorder("<"), copy=False)
        file.write(memoryview(np.ascontiguousarray(little).reshape(-1)).cast("B"))


def read_into(path, views):
    """Fills the contiguous arrays of ``{name: array}`` from a file that is known to have them."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        for name, view in views.items():
            file.seek(8 + length + header[name]["data_offsets"][0])
            memory = memoryview(view.reshape(-1)).cast("B")
            if view.size and file.readinto(memory) != view.nbytes:
                raise OSError(f"{path}: ends within {name}")
            if sys.byteorder == "big":
                view.byteswap(inplace=True)
