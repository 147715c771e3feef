"""Norms, clipping, accumulation and dropout on a CUDA device: the bits of the CPU."""

import bfloat16
import cuda_case
import numpy as np
import pytest
from optim_case import assert_same_bits, normal

import flatstep as fs

# Around the widest vector, a chunk of 4096 elements and a block of threads.
SIZES = (0, 1, 15, 17, 4095, 4096, 4097, 20_011)
FORMATS = ("float32", "bfloat16", "float16")
ONE_KEY = {"seed": 0x123456789ABCDEF0, "step": 2**32 + 5, "site": 3}


def pair(values, dtype):
    """(on the CPU, on the device)."""
    stored = bfloat16.from_float32(values) if dtype == "bfloat16" else values.astype(dtype)
    here = bfloat16.Bfloat16Array(stored) if dtype == "bfloat16" else stored
    return here, cuda_case.place(stored, dtype)


def stored_of(here):
    return here.bits if isinstance(here, bfloat16.Bfloat16Array) else here


@pytest.mark.parametrize("dtype", (*FORMATS, "float64"))
def test_norm(rng, dtype):
    pairs = [pair(normal(rng, size), dtype) for size in SIZES]
    here, there = map(list, zip(*pairs, strict=True))
    norm = fs.grad_norm(there)
    assert type(norm) is float and norm == fs.grad_norm(here) > 0
    assert fs.grad_norm(there[-1]) == fs.grad_norm(here[-1])
    assert fs.grad_norm([]) == 0


@pytest.mark.parametrize("value", (1e20, 3e38, 1e-25))
def test_extreme_norms(value):
    array = np.full(1000, value, np.float32)
    assert fs.grad_norm(fs.to_device(array)) == fs.grad_norm(array)


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_norms_that_are_not_finite(rng, value):
    array = normal(rng, 5000)
    array[4321] = value
    there = fs.to_device(array)
    assert not np.isfinite(fs.grad_norm(there))
    assert not np.isfinite(fs.clip_grad_norm_(there, 1.0))
    assert_same_bits(there.numpy(), array)


@pytest.mark.parametrize("max_norm", (0.5, 1e6))
@pytest.mark.parametrize("dtype", FORMATS)
def test_clipping(rng, dtype, max_norm):
    pairs = [pair(normal(rng, size), dtype) for size in SIZES]
    here, there = map(list, zip(*pairs, strict=True))
    assert fs.clip_grad_norm_(there, max_norm) == fs.clip_grad_norm_(here, max_norm)
    for one, other in pairs:
        assert_same_bits(cuda_case.fetch(other), stored_of(one))


@pytest.mark.parametrize("overwrite", (False, True))
@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_accumulation(rng, size, dtype, overwrite):
    totals = normal(rng, size)
    there = fs.to_device(totals)
    one, other = pair(normal(rng, size), dtype)
    given = {"scale": 0.3, "overwrite": overwrite}
    own, partials = fs.accumulate(totals, one, **given), fs.accumulate(there, other, **given)
    assert_same_bits(there.numpy(), totals)
    assert partials.norm == own.norm == fs.grad_norm(there)


def test_lists_are_accumulated(rng):
    totals = [normal(rng, size) for size in SIZES]
    src = [normal(rng, size) for size in SIZES]
    there = [fs.to_device(array) for array in totals]
    partials = fs.accumulate(there, [fs.to_device(array) for array in src], scale=-2.5e-4)
    own = fs.accumulate(totals, src, scale=-2.5e-4)
    assert partials.norm == own.norm and list(partials.sizes) == list(SIZES)
    for one, other in zip(totals, there, strict=True):
        assert_same_bits(other.numpy(), one)


@pytest.mark.parametrize("p", (0.0, 0.1, 0.75))
@pytest.mark.parametrize("size", (0, 1, 3, 5, 1003, 20_011))
def test_dropout(rng, size, p):
    x = normal(rng, size)
    there, out = fs.to_device(x), fs.DeviceArray(size)
    wanted = fs.dropout(x, p, **ONE_KEY)
    result = fs.dropout(there, p, **ONE_KEY)
    assert type(result) is fs.DeviceArray
    assert_same_bits(result.numpy(), wanted)
    assert_same_bits(there.numpy(), x)
    assert fs.dropout(there, p, out=out, **ONE_KEY) is out
    assert_same_bits(out.numpy(), wanted)
    fs.dropout(there, p, out=there, **ONE_KEY)
    assert_same_bits(there.numpy(), wanted)
    mask = fs.dropout_mask(size, p, device="cuda", **ONE_KEY)
    assert type(mask) is fs.DeviceArray and mask.dtype == "uint8"
    assert_same_bits(mask.numpy(), fs.dropout_mask(size, p, **ONE_KEY))


def test_the_shape_of_a_mask():
    mask = fs.dropout_mask((3, 5), 0.5, seed=1, device="cuda:0")
    assert mask.shape == (3, 5)
    assert np.array_equal(mask.numpy(), fs.dropout_mask((3, 5), 0.5, seed=1))
    for wrong in ("gpu", 0, "cuda:x"):
        with pytest.raises(ValueError, match=r"^device: got"):
            fs.dropout_mask(3, 0.5, seed=1, device=wrong)


def test_wrong_types_are_refused(rng):
    there = fs.to_device(normal(rng, 8))
    whole = fs.DeviceArray.zeros(8, "int32")
    for call, name in (
        (lambda: fs.grad_norm(whole), "grads"),
        (lambda: fs.accumulate(whole, there), "totals"),
        (lambda: fs.accumulate(there, whole), "src"),
        (lambda: fs.dropout(whole, 0.5, seed=1), "x"),
        (lambda: fs.dropout(there, 0.5, seed=1, out=whole), "out"),
        (lambda: fs.clip_grad_norm_(there, -1.0), "max_norm"),
    ):
        with pytest.raises((ValueError, TypeError), match=rf"^{name}: got"):
            call()
