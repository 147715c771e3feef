"""What every table of wrong calls shares: the arrays, the ways to spoil one, and the check."""

import re
from types import SimpleNamespace

import numpy as np
import pytest


def fresh_arrays():
    """Correct arguments of every function, new for each case."""
    rng = np.random.default_rng(5)

    def single(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    return SimpleNamespace(
        logits=single(6, 9),
        targets=rng.integers(0, 9, 6),
        grad=single(6, 9),
        upstream=single(6),
        params=single(24),
        grads=single(24),
        x=single(24),
        out=single(24),
        tokens=rng.integers(0, 11, (2, 5)),
        next_tokens=rng.integers(0, 11, (2, 5)),
        class_weight=rng.random(9).astype(np.float32),
        token_weight=rng.random(6).astype(np.float32),
        hidden=single(6, 4),
        weight=single(9, 4),
        bias=single(9),
        grad_hidden=single(6, 4),
        grad_weight=single(9, 4),
        grad_bias=single(9),
    )


def pairs(table):
    """{argument: wrong values} -> [(argument, value), ...], for parametrize."""
    return [(argument, value) for argument, values in table.items() for value in values]


def snapshot(arrays):
    return {
        name: array.tobytes() for name, array in vars(arrays).items() if hasattr(array, "tobytes")
    }


def check_refusal(call, arrays, argument, watched=()):
    """call() must raise one of three types, name the argument and write nothing anywhere.

    watched: further arrays, such as optimizer state, as functions that return them.
    """
    before, further = snapshot(arrays), [np.asarray(view()).tobytes() for view in watched]
    with pytest.raises((ValueError, TypeError, IndexError)) as caught:
        call()
    assert re.search(rf"\b{re.escape(argument)}\b", str(caught.value)), str(caught.value)
    assert snapshot(arrays) == before
    assert [np.asarray(view()).tobytes() for view in watched] == further
    return caught.value


# ---- ways to spoil an array --------------------------------------------------------------------


def replaced(array, index, value):
    array = array.copy()
    array[index] = value
    return array


def read_only(array):
    array = array.copy()
    array.setflags(write=False)
    return array


def every_second(array):
    """Not contiguous in the last dimension."""
    wide = np.repeat(array, 2, axis=-1)
    return wide[..., ::2]


def backwards(array):
    return array[..., ::-1]


def misaligned(array):
    """One byte past an aligned address."""
    raw = np.zeros(array.nbytes + 64, np.uint8)
    spoiled = raw[1 : 1 + array.nbytes].view(array.dtype).reshape(array.shape)
    spoiled[...] = array
    return spoiled


def byte_swapped(array):
    return array.astype(array.dtype.newbyteorder())


def half(array):
    return array.astype(np.float16)


def double(array):
    return array.astype(np.float64)


def integer(array):
    return array.astype(np.int32)


def complex_numbers(array):
    return array.astype(np.complex64)


def booleans(array):
    return array > 0


def column_major(array):
    return np.asfortranarray(array)


def one_short(array):
    return array[:-1].copy()


def extra_axis(array):
    return array[..., None].copy()


def nested_list(array):
    return array.tolist()


def text(array):
    return "array"


def nothing(array):
    return None


# What no function takes: numbers of another kind, bytes in another order or place, no array.
OTHER_KINDS = (half, complex_numbers, booleans, byte_swapped, misaligned, text, nothing)
SCATTERED = (every_second, backwards)
