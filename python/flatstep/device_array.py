"""Arrays in the memory of a device, for programs without PyTorch or CuPy."""

import numpy as np

from . import _checks, _core

_DLPACK_CPU, _DLPACK_CUDA = 1, 2


class DeviceArray(_core.DeviceArray):
    """A contiguous array in the memory of a device, uninitialised at first.

    It goes to every function of flatstep and, through DLPack, to other libraries:
    ``torch.from_dlpack(array)``, ``jax.dlpack.from_dlpack(array)``. It does no arithmetic. New
    arrays for inputs on CUDA that are neither PyTorch's nor CuPy's (JAX's, or of this class) are
    DeviceArrays.

    Its own work runs on the legacy default stream. A call of flatstep that runs on another stream,
    since its first array is PyTorch's or CuPy's, takes the array along: whoever uses it next on
    another stream first waits. Work that another library gives to the memory is that library's to
    wait for.

    Args:
        shape: extents, a tuple or one integer.
        dtype: float32, float64, bfloat16, float16, int32, int64, uint8 or uint16.
        device: ``"cuda"``, ``"cuda:1"`` or ``"cpu"``.

    Raises:
        ValueError, TypeError: an argument is wrong.
        RuntimeError: there is no such device, or it has no more memory.
    """

    def __init__(self, shape, dtype="float32", device="cuda"):
        name = dtype if isinstance(dtype, str) else np.dtype(dtype).name
        super().__init__(_checks.shape(shape), name, _checks.device_index(device))

    @classmethod
    def empty(cls, shape, dtype="float32", device="cuda"):
        """An uninitialised array."""
        return cls(shape, dtype, device)

    @classmethod
    def zeros(cls, shape, dtype="float32", device="cuda"):
        """An array of zeros."""
        array = cls(shape, dtype, device)
        _core.fill_zero(array)
        return array

    @property
    def device(self):
        """``"cuda:0"``, or ``"cpu"``."""
        index = self.device_index
        return "cpu" if index < 0 else f"cuda:{index}"

    def reshape(self, *shape):
        """The same memory in another shape of as many elements."""
        view = DeviceArray.__new__(DeviceArray)
        extents = _checks.shape(shape[0] if len(shape) == 1 else shape)
        _core.DeviceArray.__init__(view, extents, self.dtype, self.device_index, self)
        return view

    def numpy(self):
        """A copy on the host; bfloat16 becomes float32, which holds the same numbers.

        Waits for the array's stream, and raises the first fault of what that has done since the
        last wait, such as IndexError for a target out of range.
        """
        half = self.dtype == "bfloat16"  # no type of NumPy's
        copy = np.empty(self.shape, np.uint16 if half else self.dtype)
        _core.copy(self, copy)
        return (copy.astype(np.uint32) << 16).view(np.float32) if half else copy

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """A DLPack capsule. On CUDA, ``stream`` is the reader's as DLPack numbers it: 1, and None,
        the legacy default stream, -1 one that comes later anyway. Another stream than the array's
        has to wait, which the host does here."""
        if copy or dl_device not in (None, self.__dlpack_device__()):
            raise BufferError("DeviceArray: no copies are made, expected copy=False on its device")
        if stream == 0 and self.device_index >= 0:
            raise BufferError("stream: got 0, expected 1 for the legacy default stream")
        self.make_visible(1 if stream is None else stream)
        return self.capsule(max_version is not None and max_version[0] >= 1)

    def __dlpack_device__(self):
        index = self.device_index
        return (_DLPACK_CPU, 0) if index < 0 else (_DLPACK_CUDA, index)

    def __array__(self, *args, **kwargs):
        raise TypeError("DeviceArray: no implicit copy to the host is made; use .numpy()")

    def __repr__(self):
        return f"DeviceArray(shape={self.shape}, dtype={self.dtype!r}, device={self.device!r})"


def to_device(array, device="cuda"):
    """A :class:`DeviceArray` with the contents of an array on the CPU.

    Args:
        array: anything with ``__dlpack__`` in the memory of the CPU, contiguous unless it is
            NumPy's; the dtype is kept, bfloat16 too.
        device: ``"cuda"``, ``"cuda:1"`` or ``"cpu"``.

    Returns when ``array`` is read and may change.

    Raises:
        ValueError, TypeError: an argument is wrong.
        RuntimeError: there is no such device, or it has no more memory.
    """
    if isinstance(array, np.ndarray):
        array = np.asarray(array, order="C")
    shape, dtype = _core.describe(array, "array")
    copy = DeviceArray(shape, dtype, device)
    _core.copy(array, copy)
    return copy
