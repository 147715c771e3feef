"""Global norm, clipping, gradient scale and zeroing."""

import math

import numpy as np
import oracle
import pytest
from optim_case import make, normal

import flatstep as fs


# 4095, 4096, 4097: around one chunk of the sum. 10^6: where float32 sums have lost digits.
@pytest.mark.parametrize("size", (0, 1, 9, 4095, 4096, 4097, 1_000_000))
def test_norm_is_exact(rng, size):
    g = normal(rng, size, 0.1)
    g *= np.exp(rng.standard_normal(size) * 3).astype(np.float32)
    wanted = oracle.global_norm([g])
    assert fs.grad_norm(g) == pytest.approx(wanted, rel=1e-12, abs=0)
    parts = np.array_split(g, 7)
    assert fs.grad_norm([part.copy() for part in parts]) == pytest.approx(wanted, rel=1e-12, abs=0)


@pytest.mark.parametrize("size", (1, 1000, 5000))
@pytest.mark.parametrize("value", (1e20, 3e38, 1e-25, 1e-44))
def test_norm_neither_overflows_nor_underflows(value, size):
    g = np.full(size, value, np.float32)
    wanted = float(g[0]) * math.sqrt(size)
    assert fs.grad_norm(g) == pytest.approx(wanted, rel=1e-12, abs=0)


@pytest.mark.parametrize("max_norm", (1e-3, 1.0, 1e6))
def test_clip_in_place(rng, max_norm):
    gradients = [normal(rng, 300), normal(rng, (7, 9)), normal(rng, 1)]
    before = [g.copy() for g in gradients]
    norm = fs.clip_grad_norm_(gradients, max_norm)
    assert norm == pytest.approx(oracle.global_norm(before), rel=1e-12)
    scale = oracle.clip_scale(norm, max_norm)
    for g, old in zip(gradients, before, strict=True):
        assert np.all(np.abs(g - old * scale) <= oracle.ulp(old * scale))
        assert scale < 1 or g.tobytes() == old.tobytes()


def test_clip_scale_at_the_limit():
    """PyTorch's 1e-6 in the denominator: a norm equal to the limit is scaled as well."""
    g = np.array([0.6, 0.8])
    assert fs.clip_grad_norm_(g, 1.0) == pytest.approx(1.0, rel=1e-15)
    np.testing.assert_allclose(g, np.array([0.6, 0.8]) / (1 + 1e-6), rtol=1e-15)


@pytest.mark.parametrize("kind", ("adamw", "adam", "sgd"))
@pytest.mark.parametrize("max_norm", (0.1, 1e6))
def test_step_with_clip_equals_clip_then_step(rng, kind, max_norm):
    start, g = normal(rng, 5000), normal(rng, 5000)
    folded, separate, clipped = start.copy(), start.copy(), g.copy()
    fs.clip_grad_norm_(clipped, max_norm)
    make(kind, separate, lr=0.01, weight_decay=0.1).step(clipped)
    info = make(kind, folded, lr=0.01, weight_decay=0.1).step(g, max_norm=max_norm)
    norm = oracle.global_norm([g])
    assert info.grad_norm == pytest.approx(norm, rel=1e-12)
    assert info.clip_scale == pytest.approx(oracle.clip_scale(norm, max_norm), rel=1e-12)
    # The factor may be rounded to float32 on one way and not on the other.
    assert np.all(np.abs(folded - separate) <= 2 * oracle.ulp(separate))


@pytest.mark.parametrize("value", (1e20, -3e38, 1e-25))
def test_extreme_but_finite_gradients(value):
    """float32 sums of squares make the norm infinite or zero here; 3e38 needs a clip factor that
    is subnormal in float32."""
    p, g = np.zeros(1000, np.float32), np.full(1000, value, np.float32)
    info = fs.SGD(p, lr=1.0).step(g, max_norm=1.0)
    norm = abs(float(np.float32(value))) * math.sqrt(1000)
    assert info.grad_norm == pytest.approx(norm, rel=1e-12, abs=0) and not info.skipped
    wanted = -float(np.float32(value)) * min(1.0, 1.0 / (norm + 1e-6))
    assert np.all(np.abs(p - wanted) <= 1e-6 * abs(wanted))


@pytest.mark.parametrize("kind", ("adamw", "adam", "sgd"))
def test_grad_scale_divides(rng, kind):
    """As a loss scaler wants it: norm and clip see the gradient divided by the scale."""
    start, g = normal(rng, 5000), normal(rng, 5000)
    plain, scaled = start.copy(), start.copy()
    first = make(kind, plain, lr=0.01).step(g.copy(), max_norm=3.0)
    second = make(kind, scaled, lr=0.01).step(g * np.float32(1024), grad_scale=1024.0, max_norm=3.0)
    assert first.grad_norm == second.grad_norm and first.clip_scale == second.clip_scale
    assert plain.tobytes() == scaled.tobytes()
    third = start.copy()
    make(kind, third, lr=0.01).step(g * np.float32(3), grad_scale=3.0)
    untouched = start.copy()
    make(kind, untouched, lr=0.01).step(g.copy())
    assert np.all(np.abs(third - untouched) <= 1e-6 * (np.abs(untouched) + 0.01))


@pytest.mark.parametrize("kind", ("adamw", "adam", "sgd"))
@pytest.mark.parametrize("zero_grad", (False, True))
def test_zero_grad(rng, kind, zero_grad):
    p, g = normal(rng, 5003), normal(rng, 5003)
    before = g.tobytes()
    make(kind, p).step(g, zero_grad=zero_grad, max_norm=1.0)
    assert g.tobytes() == (bytes(4 * 5003) if zero_grad else before)


def test_clip_leaves_nonfinite_gradients(rng):
    gradients = [normal(rng, 10), normal(rng, 10)]
    gradients[1][3] = np.inf
    before = [g.tobytes() for g in gradients]
    assert not math.isfinite(fs.clip_grad_norm_(gradients, 1.0))
    assert [g.tobytes() for g in gradients] == before


def test_empty_parameters():
    p = np.empty(0, np.float32)
    info = fs.AdamW(p).step(np.empty(0, np.float32), max_norm=1.0)
    assert info.grad_norm == 0 and not info.skipped
