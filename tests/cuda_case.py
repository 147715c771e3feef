"""What the tests on a CUDA device share: arrays there and back, calls of other tests there."""

import ctypes
from types import SimpleNamespace

import bfloat16
import linear_case
import loss_checks as checks
import numpy as np
import optim_case

import flatstep as fs

# In DLTensor, behind data (8), device (8), ndim (4) and dtype (4).
OFFSET_OF_NDIM, OFFSET_OF_SHAPE, OFFSET_OF_BYTE_OFFSET = 16, 24, 40


def place(stored, dtype=None):
    """An array on the device; the bits of bfloat16 as such."""
    return fs.to_device(bfloat16.Bfloat16Array(stored) if dtype == "bfloat16" else stored)


def fetch(array):
    """What is stored there, bfloat16 as bits; of anything else, itself."""
    if not isinstance(array, fs.DeviceArray):
        return array
    values = array.numpy()
    return bfloat16.from_float32(values) if array.dtype == "bfloat16" else values


def fetch_result(result, names=("loss", "grad", "lse", "entropy")):
    """A result whose arrays are on the host."""
    numbers = {name: getattr(result, name) for name in ("n_valid", "n_correct", "weight_sum")}
    return SimpleNamespace(**{name: fetch(getattr(result, name)) for name in names}, **numbers)


class Rows:
    """Some columns of a device array, whose rows are thus further apart than they are long."""

    def __init__(self, stored, before, after, dtype=None):
        self.shape, self.before = stored.shape, before
        self.columns = slice(before, before + stored.shape[-1])
        pad = [(0, 0)] * (stored.ndim - 1) + [(before, after)]
        self.wide = place(np.pad(stored, pad, constant_values=77), dtype)
        self.item_bytes = stored.itemsize

    def __dlpack__(self, **arguments):
        capsule = self.wide.__dlpack__(**arguments)
        name = bfloat16.capsule_name(capsule)
        tensor = bfloat16.capsule_pointer(capsule, name) + bfloat16.OFFSET_OF_TENSOR[name]
        dimensions = ctypes.c_int32.from_address(tensor + OFFSET_OF_NDIM).value
        shape = ctypes.c_void_p.from_address(tensor + OFFSET_OF_SHAPE).value
        ctypes.c_int64.from_address(shape + 8 * (dimensions - 1)).value = self.shape[-1]
        offset = ctypes.c_uint64.from_address(tensor + OFFSET_OF_BYTE_OFFSET)
        offset.value = self.before * self.item_bytes
        return capsule

    def __dlpack_device__(self):
        return self.wide.__dlpack_device__()

    def fetch(self):
        """-> the columns, and whether those around them are as they were."""
        wide = fetch(self.wide)
        around = np.delete(wide, np.arange(wide.shape[-1])[self.columns], axis=-1)
        return wide[..., self.columns], bool((around == np.array(77, wide.dtype)).all())


# ---- calls of the loss --------------------------------------------------------------------------


def place_options(options):
    return {
        name: place(value) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }


def run(stored, targets, dtype, *, in_place=False, **options):
    """As loss_checks.run."""
    logits = place(stored, dtype)
    target = logits if in_place else place(np.full_like(stored, 77), dtype)
    result = fs.cross_entropy(logits, place(targets), grad=target, **place_options(options))
    assert result.grad is target
    result = fetch_result(result)
    assert in_place or fetch(logits).tobytes() == stored.tobytes()
    return result, result.grad


class LinearCase(linear_case.Case):
    """The call on the device."""

    def call(self, workspace_bytes=linear_case.WHOLE, **given):
        def put(array):
            return None if array is None else place(array, self.dtype)

        arrays = [put(self.hidden), put(self.weight), place(self.targets)]
        result = fs.linear_cross_entropy(
            *arrays,
            bias=put(self.bias),
            workspace_bytes=workspace_bytes,
            **place_options(self.options | given),
        )
        result = fetch_result(result, ("loss", "lse", "entropy", *linear_case.GRADIENTS))
        if not given.get("grad", True):
            return result, None
        gradients = {name: getattr(result, name) for name in linear_case.GRADIENTS}
        gradients["grad_hidden"] = checks.numbers_of(gradients["grad_hidden"], self.dtype)
        return result, gradients


# ---- optimizers ---------------------------------------------------------------------------------


class OptimizerCase(optim_case.Case):
    """The optimizer and its gradients on the device."""

    def __init__(self, *arguments, **options):
        self.placed = []
        super().__init__(*arguments, **options)

    def given(self, array):
        self.placed.append((array, place(array, "bfloat16" if array.dtype == np.uint16 else None)))
        return self.placed[-1][1]

    def step(self, grads, **options):
        """grads as stored: float32, float16, or bits of bfloat16."""
        self.grads = [
            place(array, "bfloat16" if array.dtype == np.uint16 else None)
            for array in optim_case.as_list(grads)
        ]
        given = self.grads if isinstance(grads, list) else self.grads[0]
        return self.optimizer.step(given, **options)

    def everything(self):
        for stored, array in self.placed:
            stored[...] = fetch(array)
        return super().everything()


# Several chunks of 4096; blocks of 128 with a part; nothing; one element; 2-D.
LAYOUT = [
    ("a", (8203,)),
    ("b", (13, 43), {"weight_decay": 0.0, "lr_scale": 0.3}),
    ("empty", (0, 2)),
    ("c", (1,)),
    ("d", (3, 257), {"betas": (0.8, 0.99)}),
]
OPTIONS = {"lr": 3e-3, "weight_decay": 0.1, "seed": 11}


def cut(layout, flat, as_list):
    return [view.copy() for view in layout.views(flat).values()] if as_list else flat


def as_stored(arrays, dtype):
    if isinstance(arrays, list):
        return [as_stored(array, dtype) for array in arrays]
    return bfloat16.from_float32(arrays) if dtype == "bfloat16" else arrays.astype(dtype)


def as_given(arrays):
    """To the CPU's optimizer."""
    if isinstance(arrays, list):
        return [as_given(array) for array in arrays]
    return bfloat16.Bfloat16Array(arrays) if arrays.dtype == np.uint16 else arrays


class Twins:
    """The same optimizer here and there."""

    def __init__(self, rng, kind, format="full", as_list=False, layout=LAYOUT, **options):
        self.rng, self.as_list = rng, as_list
        self.layout = fs.Layout(layout)
        start = cut(self.layout, optim_case.normal(rng, self.layout.size), as_list)
        options = OPTIONS | {"layout": self.layout} | options
        self.here = optim_case.Case(kind, start, format, **options)
        self.there = OptimizerCase(kind, start, format, **options)

    def gradient(self, dtype="float32", scale=1.0):
        flat = optim_case.normal(self.rng, self.layout.size, scale)
        return as_stored(cut(self.layout, flat, self.as_list), dtype)

    def step(self, gradient, **options):
        """One step on each side; asserts that the results are the same."""
        copies = [g.copy() for g in gradient] if self.as_list else gradient.copy()
        here = self.here.step(as_given(copies), **options)
        there = self.there.step(gradient, **options)
        for name in ("grad_norm", "clip_scale", "skipped", "nonfinite", "lr", "step"):
            one, other = getattr(here, name), getattr(there, name)
            assert one == other or (one != one and other != other), (name, one, other)
            assert type(one) is type(other), name
        after = copies if self.as_list else [copies]
        for own, array in zip(after, self.there.grads, strict=True):
            optim_case.assert_same_bits(fetch(array), own)
        return there

    def assert_same(self):
        assert self.here.everything() == self.there.everything()


def variants():
    cases = [(kind, format, {}) for kind in optim_case.KINDS for format in optim_case.FORMATS]
    cases += [(kind, "full", {"amsgrad": True}) for kind in ("adamw", "adam")]
    cases += [(kind, "full", {"maximize": True}) for kind in optim_case.KINDS]
    return [*cases, ("sgd", "full", {"momentum": 0.0}), ("sgd", "8bit", {"nesterov": True})]
