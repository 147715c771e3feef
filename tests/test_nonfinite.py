"""A gradient that is not a finite number, planted anywhere, in every format of parameters, state
and gradients: not one byte changes, and the result says where it is."""

import bfloat16
import numpy as np
import pytest
from optim_case import FORMATS, KINDS, Case, assert_same_bits, normal, state_bytes

import flatstep as fs

# A tensor of several chunks, one of two blocks, one empty, one of one element.
LAYOUT = [("a", (4097,)), ("b", (3, 43)), ("empty", (0, 2)), ("c", (1,)), ("d", (1030,))]
GRADIENTS = ("float32", "bfloat16", "float16")


def gradients_of(g, layout, dtype, as_list):
    """(what to give to a step, the arrays behind it)."""
    arrays = [view.copy() for view in layout.views(g).values()] if as_list else [g.copy()]
    if dtype == "bfloat16":
        arrays = [bfloat16.from_float32(array) for array in arrays]
        given = [bfloat16.Bfloat16Array(array) for array in arrays]
    else:
        arrays = given = [array.astype(dtype) for array in arrays]
    return (given if as_list else given[0]), arrays


@pytest.mark.parametrize("as_list", (False, True), ids=("flat", "list"))
@pytest.mark.parametrize("dtype", GRADIENTS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes(rng, kind, format, dtype, as_list):
    layout = fs.Layout(LAYOUT)
    flat = normal(rng, layout.size)
    start = [view.copy() for view in layout.views(flat).values()] if as_list else flat
    case = Case(kind, start, format, layout=layout, weight_decay=0.1)
    case.step(gradients_of(normal(rng, layout.size), layout, dtype, as_list)[0])
    before = case.everything()
    for name, value in zip(("a", "b", "c", "d"), (np.nan, np.inf, -np.inf, np.nan), strict=True):
        for index in {0, layout[name].size - 1, int(rng.integers(layout[name].size))}:
            g = normal(rng, layout.size)
            g[layout[name].offset + index] = value
            given, arrays = gradients_of(g, layout, dtype, as_list)
            bytes_before = [array.tobytes() for array in arrays]
            info = case.step(given, max_norm=1.0, zero_grad=True)
            assert info.skipped and info.nonfinite == (name, index) and info.clip_scale == 1
            assert not np.isfinite(info.grad_norm)
            assert info.step == case.optimizer.step_count == 1
            assert [array.tobytes() for array in arrays] == bytes_before
            assert case.everything() == before
    assert not case.step(gradients_of(flat, layout, dtype, as_list)[0]).skipped


@pytest.mark.parametrize("kind", KINDS)
def test_every_element(rng, kind):
    size = 70
    case = Case(kind, normal(rng, size), amsgrad=True) if kind != "sgd" else Case(kind, np.ones(70))
    dtype = case.params[0].dtype
    before = case.everything()
    for index in range(size):
        g = np.ones(size, dtype)
        g[index] = np.nan
        assert case.step(g).nonfinite == ("params", index)
        assert case.everything() == before


def test_first_of_several_nonfinite_is_named(rng):
    layout = fs.Layout([("first", (3, 5)), ("middle", (4097,)), ("last", (2, 2, 2))])
    g = normal(rng, layout.size)
    g[[16, 4000, 4113]] = np.nan, np.inf, np.nan
    info = fs.AdamW(normal(rng, layout.size), layout=layout).step(g)
    assert info.nonfinite == ("middle", 1)


def test_overflow_by_the_scale_is_skipped_or_finite(rng):
    """Dividing by a tiny grad_scale overflows float32: the step must not write infinities."""
    p = normal(rng, 100)
    before = p.copy()
    info = fs.SGD(p, lr=0.1).step(np.full(100, 1e30, np.float32), grad_scale=1e-30)
    assert np.isfinite(p).all()
    assert not info.skipped or p.tobytes() == before.tobytes()


def test_max_consecutive_skips(rng):
    layout = fs.Layout([("first", (3, 5)), ("middle", (4097,)), ("last", (2, 2, 2))])
    p = normal(rng, layout.size)
    optimizer = fs.AdamW(p, layout=layout, max_consecutive_skips=3)
    bad = normal(rng, layout.size)
    bad[15] = np.nan
    for _ in range(2):
        assert optimizer.step(bad.copy()).skipped
    assert not optimizer.step(normal(rng, layout.size)).skipped  # starts the count again
    for _ in range(2):
        assert optimizer.step(bad.copy()).skipped
    before = p.tobytes(), state_bytes(optimizer)
    with pytest.raises((RuntimeError, ArithmeticError), match="middle"):
        optimizer.step(bad.copy())
    assert (p.tobytes(), state_bytes(optimizer)) == before


@pytest.mark.parametrize("kind", ("adamw", "adam"))
def test_squares_beyond_the_range(rng, kind):
    """1e20 squared is infinite in float32: the second moment, and with it the parameter, would be
    lost for good. Clipped or scaled down, the same gradient is one like any other."""
    case = Case(kind, normal(rng, 300))
    g = normal(rng, 300)
    g[[77, 200]] = -1e20, 1e20
    case.step(normal(rng, 300))
    before = case.everything()
    info = case.step(g)
    assert info.skipped and info.nonfinite == ("params", 77) and np.isfinite(info.grad_norm)
    assert case.everything() == before
    for options in ({"max_norm": 1.0}, {"grad_scale": 1e10}):
        for _ in range(3):
            assert not case.step(g, **options).skipped
    assert np.isfinite(case.values()).all()
    double = Case(kind, np.zeros(3))
    assert double.step(np.full(3, 1e160)).skipped and not double.step(np.full(3, 1e150)).skipped


@pytest.mark.parametrize("format", ("full", "8bit"))
@pytest.mark.parametrize("grad_scale", (1e-60, 1e-300, 1e300))
def test_scales_far_from_one(rng, format, grad_scale):
    """0 divided by 1e-60 is 0, though 1e60 is beyond float32."""
    case = Case("adamw", normal(rng, 300), format, weight_decay=0.0, lr=0.1)
    before = case.values().copy()
    assert not case.step(np.zeros(300, np.float32), grad_scale=grad_scale).skipped
    assert_same_bits(case.values(), before)


def test_a_tiny_gradient_with_a_tiny_scale():
    """1e-44 over 1e-60: two factors in a row, since 1e60 is beyond float32."""
    g = np.full(3, 1e-44, np.float32)
    p = np.zeros(3, np.float32)
    fs.SGD(p, lr=1.0).step(g, grad_scale=1e-60)
    np.testing.assert_allclose(p, -g.astype(np.float64) / 1e-60, rtol=1e-6)
