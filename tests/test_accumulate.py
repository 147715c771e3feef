"""accumulate: totals against float64 and bit for bit, and partials that stand in for the norm."""

import numpy as np
import oracle
import pytest
from optim_case import Case, as_type, assert_same_bits, normal

import flatstep as fs

# Around the widest vector and a chunk of 4096 elements.
SIZES = (0, 1, 15, 17, 4095, 4096, 4097, 20_011)
DTYPES = ("float32", "bfloat16", "float16")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", (1.0, 0.3, -2.5e-4))
def test_totals_and_norm(rng, fma, size, dtype, scale):
    totals = normal(rng, size)
    given, wide = as_type(normal(rng, size), dtype)
    exact = totals + float(np.float32(scale)) * wide.astype(np.float64)
    terms = np.maximum(np.abs(totals), np.abs(np.float32(scale) * wide))
    wanted = fma(np.float32(scale), wide, totals)
    partials = fs.accumulate(totals, given, scale=scale)
    assert_same_bits(totals, wanted)
    assert np.all(np.abs(totals - exact) <= 1.5 * oracle.ulp(terms))
    assert partials.norm == fs.grad_norm(totals)
    assert partials.norm == pytest.approx(oracle.global_norm([totals]), rel=1e-13, abs=0)
    assert list(partials.sizes) == [size]


@pytest.mark.parametrize("dtype", DTYPES)
def test_overwrite(rng, dtype):
    """Whatever the totals held, also what is not a number."""
    totals = np.full(5003, np.nan, np.float32)
    given, wide = as_type(normal(rng, 5003), dtype)
    partials = fs.accumulate(totals, given, scale=0.3, overwrite=True)
    assert_same_bits(totals, np.float32(0.3) * wide)
    assert partials.norm == fs.grad_norm(totals)


@pytest.mark.parametrize("overwrite", (False, True))
def test_double_precision(rng, overwrite):
    totals, src = rng.standard_normal(5003), rng.standard_normal(5003)
    wanted = 0.3 * src + (0 if overwrite else totals)
    partials = fs.accumulate(totals, src, scale=0.3, overwrite=overwrite)
    assert np.all(np.abs(totals - wanted) <= 4e-16 * (np.abs(wanted) + np.abs(src)))
    assert partials.norm == fs.grad_norm(totals)


def test_scale_is_rounded_to_the_type_of_the_totals():
    totals = np.zeros(3, np.float32)
    fs.accumulate(totals, np.ones(3, np.float32), scale=1 / 3)
    assert_same_bits(totals, np.full(3, 1 / 3, np.float32))


@pytest.mark.parametrize("value", (1e20, 3e38, 1e-25))
def test_extreme_totals(value):
    totals = np.full(1000, value, np.float32)
    partials = fs.accumulate(totals, np.zeros(1000, np.float32))
    norm = float(totals[0]) * np.sqrt(1000.0)
    assert partials.norm == pytest.approx(norm, rel=1e-12, abs=0)


@pytest.mark.parametrize("value", (1e200, 1e-200))
def test_extreme_double_totals(value):
    """Sums of squares leave the range of doubles: the step takes the norm again."""
    totals = np.zeros(1000)
    partials = fs.accumulate(totals, np.full(1000, value))
    assert_same_bits(totals, np.full(1000, value))
    with_partials, without = (np.zeros(1000) for _ in range(2))
    first = fs.SGD(with_partials, lr=1.0).step(totals, partials=partials, max_norm=1.0)
    second = fs.SGD(without, lr=1.0).step(totals, max_norm=1.0)
    assert first == second
    assert first.grad_norm == pytest.approx(value * np.sqrt(1000.0), rel=1e-12, abs=0)
    assert_same_bits(with_partials, without)


@pytest.mark.parametrize("as_list", (False, True))
@pytest.mark.parametrize("format", ("full", "8bit", "master", "stochastic"))
@pytest.mark.parametrize("kind", ("adamw", "sgd"))
def test_a_step_with_partials_has_the_same_bits(rng, kind, format, as_list):
    """Three batches into totals; the last visit's partials stand in for the norm."""
    layout = fs.Layout([("a", (33, 7)), ("b", (4097,)), ("empty", (0,)), ("c", (130,))])
    flat = normal(rng, layout.size)

    def cut(array):
        return [view.copy() for view in layout.views(array).values()] if as_list else array.copy()

    cases = [Case(kind, cut(flat), format, lr=0.01, layout=layout) for _ in range(2)]
    totals = cut(np.zeros_like(flat))
    own_layout = None if as_list else layout
    for _ in range(3):
        for batch in range(3):
            src = cut(normal(rng, layout.size))
            partials = fs.accumulate(totals, src, overwrite=batch == 0, layout=own_layout)
        options = {"max_norm": 0.5, "grad_scale": 3.0}
        assert partials.norm == pytest.approx(fs.grad_norm(totals), rel=1e-15)
        first = cases[0].step(totals, partials=partials, **options)
        second = cases[1].step(totals, **options)
        assert first == second and first.clip_scale < 1
        assert cases[0].everything() == cases[1].everything()


def test_partials_are_used(rng):
    """Those of other numbers give another norm; the docstring warns of it."""
    totals, others = np.zeros(300, np.float32), np.zeros(300, np.float32)
    fs.accumulate(totals, normal(rng, 300))
    wrong = fs.accumulate(others, np.full(300, 2.0, np.float32))
    info = fs.SGD(np.zeros(300, np.float32)).step(totals, partials=wrong)
    assert info.grad_norm == wrong.norm != fs.grad_norm(totals)


@pytest.mark.parametrize("value", (np.nan, np.inf))
def test_partials_of_totals_that_are_not_finite(rng, value):
    layout = fs.Layout([("a", (5, 5)), ("b", (4100,))])
    src = normal(rng, layout.size)
    src[25 + 4099] = value
    totals = np.zeros(layout.size, np.float32)
    partials = fs.accumulate(totals, src, layout=layout)
    assert not np.isfinite(partials.norm)
    case = Case("adamw", normal(rng, layout.size), layout=layout)
    before = case.everything()
    info = case.step(totals, partials=partials, zero_grad=True)
    assert info.skipped and info.nonfinite == ("b", 4099)
    assert case.everything() == before
    assert_same_bits(totals, 0 + src)
