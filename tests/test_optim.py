"""SGD, Adam and AdamW: every step against float64 and, bit for bit, against the stated formula."""

import numpy as np
import oracle
import pytest
from optim_case import assert_same_bits, make, normal

import flatstep as fs

# One element; below, at and beyond one vector; past the 4096-element chunks with a tail.
SIZES = (1, 7, 8, 31, 4099)

# Decay, eps and beta2 far from the defaults, so that no variant passes for another.
ADAM = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}

SGD_VARIANTS = (
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
)


def full_sgd(options):
    return {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0, **options}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ("adamw", "adam"))
def test_adam_step_within_ulps(rng, kind, size):
    """Each of six steps from the state the library had: rounding does not pile up here."""
    decoupled = kind == "adamw"
    p = normal(rng, size)
    optimizer = make(kind, p, **ADAM)
    m, v = np.zeros(size, np.float32), np.zeros(size, np.float32)
    rates = {"betas": ADAM["betas"], "weight_decay": 0.1, "decoupled": decoupled}
    for step in range(1, 7):
        before, g = p.copy(), normal(rng, size, 0.3)
        wanted_m, wanted_v = oracle.adam_moments(before, g, m, v, **rates)
        info = optimizer.step(g.copy())
        assert info.step == optimizer.step_count == step and not info.skipped
        m_before, m, v = m, np.array(optimizer.exp_avg), np.array(optimizer.exp_avg_sq)
        largest = np.maximum(np.abs(m_before), np.maximum(np.abs(g), 0.1 * np.abs(before)))
        assert np.all(np.abs(m - wanted_m) <= 2 * oracle.ulp(largest))
        # With L2 decay g + wd p may cancel; its square carries that error into v.
        cancelled = (1 - 0.98) * 4 * largest * oracle.ulp(largest) * (not decoupled)
        assert np.all(np.abs(v - wanted_v) <= 3 * oracle.ulp(wanted_v) + cancelled)
        change = 3e-3 * oracle.adam_change(before, m, v, step, eps=1e-6, **rates)
        bound = oracle.ulp(np.maximum(np.abs(p), np.abs(before))) + 4 * oracle.ulp(change)
        assert np.all(np.abs(p - (before - change)) <= bound)


@pytest.mark.parametrize("mode", ("native", "torch"))
@pytest.mark.parametrize("kind", ("adamw", "adam"))
@pytest.mark.parametrize("size", (1, 8, 1003))
def test_adam_bits(rng, fma, kind, mode, size):
    """Twenty steps of the formula in the documentation, rounding for rounding."""
    p, m, v = normal(rng, size), np.zeros(size, np.float32), np.zeros(size, np.float32)
    wanted = p.copy()
    optimizer = make(kind, p, mode=mode, **ADAM)
    for step in range(1, 21):
        g = normal(rng, size, 0.3)
        wanted, m, v = oracle.adam_bits(
            wanted, g, m, v, step, decoupled=kind == "adamw", mode=mode, fma=fma, **ADAM
        )
        optimizer.step(g)
        assert_same_bits(optimizer.exp_avg, m, f"exp_avg, step {step}")
        assert_same_bits(optimizer.exp_avg_sq, v, f"exp_avg_sq, step {step}")
        assert_same_bits(p, wanted, f"params, step {step}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", SGD_VARIANTS, ids=str)
def test_sgd_step_within_ulps(rng, options, size):
    p = normal(rng, size)
    optimizer = fs.SGD(p, **options)
    buffer = np.zeros(size, np.float32)
    for step in range(1, 6):
        before, buffer_before, g = p.copy(), buffer, normal(rng, size)
        wanted, wanted_buffer = oracle.sgd(before, g, buffer, step, **full_sgd(options))
        optimizer.step(g.copy())
        # Every term is rounded once or twice: ULPs of the largest term.
        terms = np.maximum(np.abs(g) + 0.1 * np.abs(before), np.abs(buffer_before))
        if "momentum" in options:
            buffer = np.array(optimizer.momentum_buffer)
            assert np.all(np.abs(buffer - wanted_buffer) <= 3 * oracle.ulp(terms))
        bound = oracle.ulp(np.maximum(np.abs(p), np.abs(before))) + 0.1 * 8 * oracle.ulp(terms)
        assert np.all(np.abs(p - wanted) <= bound)


@pytest.mark.parametrize("mode", ("native", "torch"))
@pytest.mark.parametrize("options", SGD_VARIANTS, ids=str)
def test_sgd_bits(rng, fma, options, mode):
    p = normal(rng, 1003)
    wanted, buffer = p.copy(), None
    optimizer = fs.SGD(p, mode=mode, **options)
    for step in range(1, 21):
        g = normal(rng, 1003)
        arguments = {**full_sgd(options), "mode": mode, "fma": fma}
        wanted, buffer = oracle.sgd_bits(wanted, g, buffer, step, **arguments)
        optimizer.step(g)
        assert_same_bits(p, wanted, f"step {step}")


@pytest.mark.parametrize("kind", ("adamw", "adam", "sgd"))
def test_double_precision(rng, kind):
    p = rng.standard_normal(100)
    exact, m, v = p.copy(), np.zeros(100), np.zeros(100)
    options = dict(ADAM) if kind != "sgd" else full_sgd(SGD_VARIANTS[4])
    optimizer = make(kind, p, **options)
    for step in range(1, 11):
        g = rng.standard_normal(100)
        if kind == "sgd":
            exact, m = oracle.sgd(exact, g, m, step, **options)
        else:
            exact, m, v = oracle.adam(exact, g, m, v, step, decoupled=kind == "adamw", **options)
        optimizer.step(g)
    assert np.all(np.abs(p - exact) <= 1e-14 * (1 + np.abs(exact)))


@pytest.mark.parametrize("max_norm", (None, 0.5))
@pytest.mark.parametrize("kind", ("adamw", "adam", "sgd"))
def test_list_equals_flat_buffer(rng, kind, max_norm):
    """Segments that start and end anywhere between vectors and chunks."""
    sizes = (1, 7, 4096, 13, 64, 5000)
    options = dict(ADAM) if kind != "sgd" else dict(SGD_VARIANTS[3])
    flat = normal(rng, sum(sizes))
    parts = [part.copy() for part in np.split(flat, np.cumsum(sizes)[:-1])]
    parts[2] = parts[2].reshape(64, 64)
    one, many = make(kind, flat, **options), make(kind, parts, **options)
    for _ in range(5):
        g = normal(rng, flat.size)
        gradients = [part.copy() for part in np.split(g, np.cumsum(sizes)[:-1])]
        gradients[2] = gradients[2].reshape(64, 64)
        first = one.step(g, max_norm=max_norm)
        second = many.step(gradients, max_norm=max_norm)
        assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-14)
        assert_same_bits(flat, np.concatenate([part.ravel() for part in parts]))
    for state in ("momentum_buffer",) if kind == "sgd" else ("exp_avg", "exp_avg_sq"):
        arrays = [np.ravel(array) for array in getattr(many, state)]
        assert_same_bits(getattr(one, state), np.concatenate(arrays), state)


def test_lr_of_one_step(rng):
    start, g = normal(rng, 50), normal(rng, 50)
    given, fixed, assigned = start.copy(), start.copy(), start.copy()
    first = fs.AdamW(given, lr=1e-3)
    info = first.step(g.copy(), lr=0.25)
    assert info.lr == 0.25 and first.lr == 1e-3
    assert fs.AdamW(fixed, lr=0.25).step(g.copy()).lr == 0.25
    third = fs.AdamW(assigned, lr=1e-3)
    third.lr = 0.25
    third.step(g.copy())
    assert_same_bits(given, fixed)
    assert_same_bits(given, assigned)


def test_zero_gradient_and_zero_state(rng):
    """0 / (0 + eps): only the decay moves the parameters, and nothing becomes NaN."""
    p = normal(rng, 40)
    before = p.copy()
    fs.AdamW(p, lr=0.1, weight_decay=0.5).step(np.zeros(40, np.float32))
    assert np.all(np.abs(p - before * 0.95) <= oracle.ulp(before))
    q = before.copy()
    fs.Adam(q, lr=0.1).step(np.zeros(40, np.float32))
    assert_same_bits(q, before)
