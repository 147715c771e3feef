"""bfloat16 for NumPy, which has no such type: bit patterns in uint16, passed on through DLPack."""

import ctypes

import numpy as np

CODE_BFLOAT = 4  # kDLBfloat in dlpack.h
OFFSET_OF_DTYPE = 20  # in DLTensor: behind data (8), device (8), ndim (4)
OFFSET_OF_TENSOR = {b"dltensor": 0, b"dltensor_versioned": 32}

capsule_name = ctypes.pythonapi.PyCapsule_GetName
capsule_name.restype, capsule_name.argtypes = ctypes.c_char_p, [ctypes.py_object]
capsule_pointer = ctypes.pythonapi.PyCapsule_GetPointer
capsule_pointer.restype = ctypes.c_void_p
capsule_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class Bfloat16Array:
    """A uint16 array that exports itself as bfloat16: its capsule's type code is rewritten."""

    def __init__(self, bits):
        assert bits.dtype == np.uint16
        self.bits = bits

    def __dlpack__(self, **arguments):
        capsule = self.bits.__dlpack__(**arguments)
        name = capsule_name(capsule)
        tensor = capsule_pointer(capsule, name) + OFFSET_OF_TENSOR[name]
        ctypes.c_uint8.from_address(tensor + OFFSET_OF_DTYPE).value = CODE_BFLOAT
        return capsule

    def __dlpack_device__(self):
        return self.bits.__dlpack_device__()


def from_float32(array):
    """Rounds to nearest, ties to even, and returns the bit patterns."""
    bits = np.asarray(array, np.float32, order="C").view(np.uint32).astype(np.int64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(array), (bits >> 16) | 0x40, rounded).astype(np.uint16)


def to_float32(bits):
    return np.asarray(bits.astype(np.uint32) << 16, np.uint32).view(np.float32)
