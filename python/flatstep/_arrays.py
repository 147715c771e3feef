"""New arrays of the caller's own library and device, and what an array is."""

import math
import sys

import numpy as np

from . import _core
from .device_array import DeviceArray

# A few of NumPy's, so that most arrays are exported only once.
_NAMES = {np.dtype(name): name for name in ("float16", "float32", "float64")}

_LARGE = 1 << 22  # bytes, from which on NumPy asks for huge pages
_CUDA = (2, 13)  # kDLCUDA and kDLCUDAManaged in dlpack.h


def describe(array, argument):
    """Shape and dtype name of anything with ``__dlpack__``; TypeError names the argument."""
    if type(array) is np.ndarray and array.dtype in _NAMES and array.flags.aligned:
        return array.shape, _NAMES[array.dtype]
    if type(array) is DeviceArray:
        return array.shape, array.dtype
    return _core.describe(array, argument)


def is_array(value):
    return hasattr(value, "__dlpack__")


def cuda_index(array):
    """The number of the CUDA device that an array is on; None on the CPU."""
    if isinstance(array, np.ndarray):
        return None
    kind, index = array.__dlpack_device__()
    return index if kind in _CUDA else None


def empty_like(array, argument):
    """An uninitialised array of the same library, device, shape and dtype, contiguous."""
    if isinstance(array, np.ndarray):
        return np.empty(array.shape, array.dtype)
    library = _library(array)
    if library == "torch":
        return empty_tensor(array, array.shape, array.dtype)
    if library == "cupy" or isinstance(array, DeviceArray) or cuda_index(array) is not None:
        return empty(*describe(array, argument), array)
    raise TypeError(
        f"{argument}: got {type(array).__name__}, expected a NumPy array or a PyTorch tensor where "
        "a new array is asked for; give the output array instead"
    )


def empty(shape, dtype, like):
    """An uninitialised array on the device of ``like``, in its library if that is PyTorch or CuPy,
    else in NumPy or a DeviceArray."""
    if type(like) is np.ndarray:
        return np.empty(shape, dtype)
    library = _library(like)
    if library == "torch":
        shape = (shape,) if isinstance(shape, int) else shape
        return empty_tensor(like, shape, getattr(sys.modules["torch"], dtype))
    if library == "cupy":
        with like.device:
            return sys.modules["cupy"].empty(shape, dtype)
    if isinstance(like, DeviceArray):
        return DeviceArray(shape, dtype, like.device)
    index = cuda_index(like)
    return np.empty(shape, dtype) if index is None else DeviceArray(shape, dtype, f"cuda:{index}")


def empty_tensor(like, shape, dtype):
    """:func:`empty` of PyTorch's; a large one on the CPU has memory of NumPy's, which comes in huge
    pages. PyTorch's own costs a page fault for every 4 KB, in all several times as long as the
    loss."""
    size = math.prod(shape) * dtype.itemsize
    if size < _LARGE or like.device.type != "cpu":
        # PyTorch reads a tuple in half the time of a torch.Size.
        return like.new_empty(tuple(shape), dtype=dtype)
    return sys.modules["torch"].from_numpy(np.empty(size, np.uint8)).view(dtype).view(shape)


def zeros(shape, dtype, like):
    """An array of zeros: on the CPU one of NumPy's, in memory of its own, so that no page is made
    during the first step; on CUDA as :func:`empty`."""
    if cuda_index(like) is None:
        array = np.empty(shape, dtype)
        array.fill(0)
        return array
    array = empty(shape, dtype, like)
    _core.fill_zero(array)
    return array


def on_host(array):
    """The array itself if it is NumPy's, else a copy of its bytes in one; the caller waits."""
    if isinstance(array, np.ndarray):
        return array
    shape, dtype = describe(array, "array")
    copy = np.empty(shape, dtype)
    _core.copy(array, copy)
    return copy


def put_back(host, array):
    """Writes what :func:`on_host` returned back to the array."""
    if host is not array:
        _core.copy(host, array)


def _library(array):
    return type(array).__module__.partition(".")[0]
