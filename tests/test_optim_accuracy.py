"""Long runs against float64: parameters, the decay really applied, the norm of many elements."""

import numpy as np
import oracle
import pytest
from optim_case import normal

import flatstep as fs


def test_accuracy_over_1000_steps(rng):
    """fl(1 - lr wd) drifts by hundreds of ULP in this run; one rounding per step only wanders."""
    options = {"lr": 3e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    start = normal(rng, 1000)
    p, exact = start.copy(), start.astype(np.float64)
    m = v = np.zeros(1000)
    optimizer = fs.AdamW(p, **options)
    for step in range(1, 1001):
        g = normal(rng, 1000, 0.1) + np.float32(0.05) * start
        optimizer.step(g.copy())
        exact, m, v = oracle.adam(exact, g, m, v, step, decoupled=True, **options)
    unit = oracle.ulp(np.maximum(np.abs(start), np.abs(exact)))
    error = (p - exact) / unit
    # A random walk of 1000 half-ULP steps has a deviation of 9 ULP.
    assert np.all(np.abs(error) <= 64)
    assert abs(np.mean(error * np.sign(exact))) <= 2
    # v is a long average: its error stays near 1e-6 where b2 v + (1 - b2) g^2 reaches 7e-6.
    assert np.all(np.abs(optimizer.exp_avg_sq - v) <= 3e-6 * v)


@pytest.mark.parametrize(("lr", "weight_decay"), [(1e-6, 0.01), (1e-5, 0.01), (3e-7, 0.1)])
def test_decay_really_applied(rng, lr, weight_decay):
    """A step's decay is far below an ULP of p: one rounding for decay and update together keeps it
    in the mean, where fl(1 - lr wd) applies nothing of it or three times as much."""
    size, steps = 4096, 3000
    decayed, plain = (np.full(size, 1.3, np.float32) for _ in range(2))
    first = fs.AdamW(decayed, lr=lr, weight_decay=weight_decay)
    second = fs.AdamW(plain, lr=lr, weight_decay=0.0)
    for _ in range(steps):
        g = normal(rng, size)
        first.step(g)
        second.step(g)
    applied = np.mean(plain.astype(np.float64) - decayed)
    wanted = 1.3 * (1 - (1 - lr * weight_decay) ** steps)
    print(f"decay applied at lr {lr:g}, wd {weight_decay:g}: {applied / wanted:.4f} of the exact")
    assert abs(applied / wanted - 1) <= 0.01


def check_norm_of_many(rng, size):
    g = rng.standard_normal(size, dtype=np.float32)
    g *= np.float32(0.01)
    squares = [np.square(g[i : i + 2**16].astype(np.float64)).sum() for i in range(0, size, 2**16)]
    wanted = np.sqrt(np.sum(np.asarray(squares, np.longdouble)))
    error = abs(fs.grad_norm(g) / float(wanted) - 1)
    print(f"norm of {size:,} elements: relative error {error:.1e}")
    assert error <= 1e-12


def test_norm_of_16_million(rng):
    check_norm_of_many(rng, 2**24)


@pytest.mark.slow
def test_norm_of_134_million(rng):
    check_norm_of_many(rng, 2**27)
