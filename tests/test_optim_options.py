"""AMSGrad, maximize, betas far from the defaults and a weight decay that changes."""

import math

import numpy as np
import oracle
import pytest
from optim_case import FORMATS, KINDS, Case, assert_same_bits, make, normal

import flatstep as fs

SIZES = (1, 7, 31, 4099)
ADAM = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}
# torch.lerp, and with it mode="torch", starts from the gradient where beta1 <= 0.5.
BETAS = ((0.9, 0.98), (0.5, 0.9), (0.3, 0.999), (0.0, 0.0))


def falling(rng, size, steps):
    """Gradients that become small, so that the largest second moment is not the last one."""
    for step in range(steps):
        yield normal(rng, size, 10.0 if step < 3 else 0.1)


# ---- AMSGrad ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("adamw", "adam"))
@pytest.mark.parametrize("size", SIZES)
def test_amsgrad_in_float64(rng, kind, size):
    p = rng.standard_normal(size)
    exact, m, v, largest = p.copy(), *np.zeros((3, size))
    optimizer = make(kind, p, amsgrad=True, **ADAM)
    plain_p = p.copy()
    plain = make(kind, plain_p, **ADAM)
    rates = {"betas": ADAM["betas"], "weight_decay": 0.1, "decoupled": kind == "adamw"}
    for step, g in enumerate(falling(rng, size, 40), 1):
        g = g.astype(np.float64)
        m, v = oracle.adam_moments(exact, g, m, v, **rates)
        largest = np.maximum(largest, v)
        exact = exact - 3e-3 * oracle.adam_change(exact, m, largest, step, eps=1e-6, **rates)
        optimizer.step(g)
        plain.step(g)
    assert np.all(np.abs(p - exact) <= 1e-13 * (1 + np.abs(exact)))
    state = optimizer.state_dict()["state"]["params"]
    np.testing.assert_allclose(state["max_exp_avg_sq"], largest, rtol=1e-13)
    assert np.all(state["max_exp_avg_sq"] > state["exp_avg_sq"])
    assert np.all(plain_p != p)


@pytest.mark.parametrize("mode", ("native", "torch"))
@pytest.mark.parametrize("kind", ("adamw", "adam"))
@pytest.mark.parametrize("size", SIZES)
def test_amsgrad_bits(rng, fma, kind, mode, size):
    p, m, v, largest = normal(rng, size), *np.zeros((3, size), np.float32)
    wanted = p.copy()
    optimizer = make(kind, p, mode=mode, amsgrad=True, **ADAM)
    rounding = {"decoupled": kind == "adamw", "mode": mode, "fma": fma}
    rates = {"betas": ADAM["betas"], "weight_decay": 0.1}
    for step, g in enumerate(falling(rng, size, 20), 1):
        m, v = oracle.adam_moment_bits(wanted, g, m, v, **rates, **rounding)
        largest = np.maximum(largest, v)
        wanted = oracle.adam_param_bits(wanted, m, largest, step, **ADAM, **rounding)
        optimizer.step(g)
        assert_same_bits(optimizer.exp_avg_sq, v, f"exp_avg_sq, step {step}")
        assert_same_bits(p, wanted, f"params, step {step}")
    state = optimizer.state_dict()["state"]["params"]
    assert_same_bits(state["max_exp_avg_sq"], largest)


@pytest.mark.parametrize("format", ("copy", "master"))
def test_amsgrad_of_half_parameters(rng, format):
    start = normal(rng, 1500)
    start = (start.view(np.uint32) & 0xFFFF0000).view(np.float32)
    half, single = (Case("adamw", start, f, amsgrad=True, **ADAM) for f in (format, "full"))
    for g in falling(rng, 1500, 6):
        half.step(g)
        single.step(g)
    master = half.params[0] if format == "copy" else half.optimizer.master
    assert_same_bits(master, single.params[0])


# ---- maximize, betas ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ("native", "torch"))
@pytest.mark.parametrize("kind", KINDS)
def test_maximize_is_descent_on_the_negative(rng, kind, mode):
    options = {"mode": mode, "weight_decay": 0.1, "lr": 0.01}
    start = normal(rng, 1003)
    up = Case(kind, start, maximize=True, **options)
    down = Case(kind, start, **options)
    for _ in range(5):
        g = normal(rng, 1003)
        first = up.step(g.copy(), max_norm=1.0, grad_scale=3.0)
        assert first == down.step(-g, max_norm=1.0, grad_scale=3.0)
        assert up.everything() == down.everything()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_maximize_in_every_format(rng, kind, format):
    start = normal(rng, 1500)
    up = Case(kind, start, format, maximize=True, lr=0.01)
    down = Case(kind, start, format, lr=0.01)
    for _ in range(3):
        g = normal(rng, 1500)
        up.step(g.copy(), zero_grad=True)
        down.step(-g)
        assert up.everything() == down.everything()


@pytest.mark.parametrize("mode", ("native", "torch"))
@pytest.mark.parametrize("betas", BETAS, ids=str)
@pytest.mark.parametrize("kind", ("adamw", "adam"))
def test_betas_bits(rng, fma, kind, betas, mode):
    options = ADAM | {"betas": betas}
    p, m, v = normal(rng, 1003), *np.zeros((2, 1003), np.float32)
    wanted = p.copy()
    optimizer = make(kind, p, mode=mode, **options)
    for step in range(1, 11):
        g = normal(rng, 1003)
        wanted, m, v = oracle.adam_bits(
            wanted, g, m, v, step, decoupled=kind == "adamw", mode=mode, fma=fma, **options
        )
        optimizer.step(g)
        assert_same_bits(optimizer.exp_avg, m, f"exp_avg, step {step}")
        assert_same_bits(p, wanted, f"params, step {step}")


# ---- a weight decay that changes ----------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_assigned_weight_decay(rng, kind, format):
    """Equals an optimizer made with that decay; a tensor's own decay stays."""
    layout = fs.Layout([("w", (40, 5)), ("b", (130,), {"weight_decay": 0.02})])
    start = normal(rng, layout.size)
    assigned = Case(kind, start, format, layout=layout, lr=0.01, weight_decay=0.5)
    for decay in (0.1, 0.0, 0.3):
        made = Case(kind, start, format, layout=layout, lr=0.01, weight_decay=decay)
        made.optimizer.load_state_dict(assigned.optimizer.state_dict())
        for ours, theirs in zip(made.params, assigned.params, strict=True):
            ours[...] = theirs
        for ours, theirs in zip(made.copies, assigned.copies, strict=True):
            ours[...] = theirs
        assigned.optimizer.weight_decay = decay
        assert assigned.optimizer.weight_decay == decay
        g = normal(rng, layout.size)
        assigned.step(g)
        made.step(g)
        assert assigned.everything() == made.everything()
    for wrong in (-0.1, math.nan, math.inf, "some", None):
        with pytest.raises((ValueError, TypeError), match="weight_decay"):
            assigned.optimizer.weight_decay = wrong
        assert assigned.optimizer.weight_decay == 0.3


# ---- what clips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ("adamw", "adam"))
@pytest.mark.parametrize("value", (1e20, -3e38, 1e-25))
def test_extreme_gradients_clip(kind, value):
    """Adam on the clipped gradient, computed in float64."""
    p = np.zeros(1000, np.float32)
    g = np.full(1000, value, np.float32)
    optimizer = make(kind, p, lr=0.1, eps=1e-8, weight_decay=0.0)
    exact, m, v = np.zeros((3, 1000))
    options = {"lr": 0.1, "betas": (0.9, 0.999), "eps": 1e-8, "decoupled": True}
    for step in range(1, 6):
        info = optimizer.step(g, max_norm=1.0)
        norm = abs(float(g[0])) * math.sqrt(1000)
        assert info.grad_norm == pytest.approx(norm, rel=1e-12, abs=0)
        clipped = g.astype(np.float64) * oracle.clip_scale(norm, 1.0)
        exact, m, v = oracle.adam(exact, clipped, m, v, step, **options)
    assert np.all(np.abs(p - exact) <= 1e-6 * np.abs(exact))
