"""What the tests of optimizers share: random arrays, optimizers in every format, bytes to watch."""

import bfloat16
import numpy as np

import flatstep as fs

KINDS = ("adamw", "adam", "sgd")
MOMENTS = {"adamw": ("exp_avg", "exp_avg_sq"), "adam": ("exp_avg", "exp_avg_sq")}
MOMENTS["sgd"] = ("momentum_buffer",)

# How parameters and state are stored; see Case.
FORMATS = ("full", "8bit", "copy", "master", "stochastic", "8bit master", "8bit stochastic")


def make(kind, params, **options):
    return {"adamw": fs.AdamW, "adam": fs.Adam, "sgd": fs.SGD}[kind](params, **options)


def normal(rng, size, scale=1.0):
    return (rng.standard_normal(size) * scale).astype(np.float32)


def assert_same_bits(first, second, what=""):
    first, second = np.asarray(first), np.asarray(second)
    assert first.dtype == second.dtype and first.shape == second.shape, what
    different = np.frombuffer(first.tobytes(), np.uint8) != np.frombuffer(second.tobytes(), "u1")
    assert not different.any(), (what, np.flatnonzero(different)[:5] // first.itemsize)


def state_bytes(optimizer):
    """(step, {(tensor, name): bytes}) of a state dict."""
    state = optimizer.state_dict()
    arrays = {
        (tensor, name): array.tobytes()
        for tensor, own in state["state"].items()
        for name, array in own.items()
    }
    return state["step"], arrays


def as_list(arrays):
    return arrays if isinstance(arrays, list) else [arrays]


class Case:
    """An optimizer over a copy of `start`, a float32 array or a list of them.

    `format` has "8bit" for 8-bit state, and "copy" for float32 parameters with a bf16 copy,
    "master" for bf16 parameters with masters or "stochastic" for bf16 parameters without.
    """

    def __init__(self, kind, start, format="full", **options):
        one = not isinstance(start, list)
        words = format.split()
        half = "master" in words or "stochastic" in words
        convert = bfloat16.from_float32 if half else np.copy
        self.params = [convert(array) for array in as_list(start)]
        self.copies = []
        if "8bit" in words:
            options["state"] = "8bit"
        if "stochastic" in words:
            options["stochastic_rounding"] = True
        if "copy" in words:
            self.copies = [np.zeros(array.shape, np.uint16) for array in self.params]
            copies = [self.given(bits) for bits in self.copies]
            options["bf16_copy"] = copies[0] if one else copies
        if kind == "sgd":
            options.setdefault("momentum", 0.9)
        given = [self.given(array) for array in self.params]
        self.optimizer = make(kind, given[0] if one else given, **options)

    def given(self, array):
        """What the optimizer is given for an array as stored."""
        return bfloat16.Bfloat16Array(array) if array.dtype == np.uint16 else array

    def step(self, grads, **options):
        return self.optimizer.step(grads, **options)

    def values(self):
        """The parameters as float32, flat."""
        flat = np.concatenate([array.ravel() for array in self.params])
        return bfloat16.to_float32(flat) if flat.dtype == np.uint16 else flat

    def everything(self):
        """Every byte that a step may write, but for the gradients."""
        arrays = [array.tobytes() for array in (*self.params, *self.copies)]
        return arrays, state_bytes(self.optimizer)


def as_type(gradient, dtype):
    """(array to give to a step, the same numbers as float32) of a float32 gradient."""
    if dtype == "bfloat16":
        bits = bfloat16.from_float32(gradient)
        return bfloat16.Bfloat16Array(bits), bfloat16.to_float32(bits)
    rounded = gradient.astype(dtype)
    return rounded, rounded.astype(np.float32)
