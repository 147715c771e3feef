"""New arrays of the caller's own library, and what an array is."""

import sys

import numpy as np

from . import _core

# A few of NumPy's, so that most arrays are exported only once.
_NAMES = {np.dtype(name): name for name in ("float16", "float32", "float64")}


def describe(array, argument):
    """Shape and dtype name of anything with ``__dlpack__``; TypeError names the argument."""
    if type(array) is np.ndarray and array.dtype in _NAMES and array.flags.aligned:
        return array.shape, _NAMES[array.dtype]
    return _core.describe(array, argument)


def _library(array):
    return sys.modules.get(type(array).__module__.partition(".")[0])


def empty_like(array, argument):
    """An uninitialised array of the same library, shape and dtype, contiguous."""
    if isinstance(array, np.ndarray):
        return np.empty(array.shape, array.dtype)
    library = _library(array)
    if library is not None and library.__name__ == "torch":
        return library.empty(array.shape, dtype=array.dtype, device=array.device)
    raise TypeError(
        f"{argument}: got {type(array).__name__}, expected a NumPy array or a PyTorch tensor where "
        "a new array is asked for; give the output array instead"
    )


def empty(shape, dtype, like):
    """An uninitialised float32 or float64 array in the library of ``like``, else in NumPy."""
    if type(like) is np.ndarray:
        return np.empty(shape, dtype)
    library = _library(like)
    if library is not None and library.__name__ == "torch":
        return library.empty(shape, dtype=getattr(library, dtype))
    return np.empty(shape, dtype)


def is_array(value):
    return hasattr(value, "__dlpack__")
