"""Schedules against their formulas at every step where one can be off by one."""

import itertools
import math

import numpy as np
import oracle
import pytest

import flatstep as fs

WARMUP, TOTAL, BASE, MINIMUM = 10, 50, 3e-3, 3e-4
STEPS = (0, 1, WARMUP - 1, WARMUP, WARMUP + 1, 30, TOTAL - 1, TOTAL, TOTAL + 5, 10**9)


def close(value):
    return pytest.approx(value, rel=1e-12, abs=1e-18)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", ("warmup_linear", "warmup_cosine"))
@pytest.mark.parametrize("minimum", (0.0, MINIMUM))
def test_warmup_and_decay(name, step, minimum):
    schedule = getattr(fs.schedule, name)(BASE, WARMUP, TOTAL, min_lr=minimum)
    assert schedule(step) == close(getattr(oracle, name)(step, BASE, WARMUP, TOTAL, minimum))


@pytest.mark.parametrize("step", STEPS)
def test_constant(step):
    assert fs.schedule.constant(BASE)(step) == BASE
    warm = BASE * oracle.warm(step, WARMUP)
    assert fs.schedule.warmup_constant(BASE, WARMUP)(step) == close(warm)


@pytest.mark.parametrize("step", STEPS)
def test_inverse_sqrt(step):
    schedule = fs.schedule.inverse_sqrt(BASE, WARMUP)
    assert schedule(step) == close(oracle.inverse_sqrt(step, BASE, WARMUP))


@pytest.mark.parametrize("step", (*STEPS, 3998, 3999, 4000, 4001))
@pytest.mark.parametrize(("d_model", "warmup", "factor"), [(512, 4000, 1.0), (64, WARMUP, 0.3)])
def test_noam(step, d_model, warmup, factor):
    schedule = fs.schedule.noam(d_model, warmup, factor=factor)
    assert schedule(step) == close(oracle.noam(step, d_model, warmup, factor))


def test_noam_peaks_at_the_end_of_the_warm_up():
    schedule = fs.schedule.noam(512, 4000)
    rates = [schedule(step) for step in range(3900, 4100)]
    assert max(rates) == schedule(3999) == close((512 * 4000) ** -0.5)


SCHEDULES = {
    "warmup_constant": fs.schedule.warmup_constant(BASE, WARMUP),
    "warmup_linear": fs.schedule.warmup_linear(BASE, WARMUP, TOTAL),
    "warmup_cosine": fs.schedule.warmup_cosine(BASE, WARMUP, TOTAL),
    "inverse_sqrt": fs.schedule.inverse_sqrt(BASE, WARMUP),
    "noam": fs.schedule.noam(64, WARMUP),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_shape_of_the_curve(name):
    """No dead first step, a strict rise to the peak at W-1, never a rise afterwards."""
    rates = [SCHEDULES[name](step) for step in range(TOTAL + 20)]
    assert rates[0] == close(rates[WARMUP - 1] / WARMUP) and rates[0] > 0
    assert all(a < b for a, b in itertools.pairwise(rates[:WARMUP]))
    assert all(a >= b for a, b in itertools.pairwise(rates[WARMUP - 1 :]))
    if name != "noam":
        assert rates[WARMUP - 1] == close(BASE)


@pytest.mark.parametrize("name", ("warmup_linear", "warmup_cosine"))
def test_the_end_is_clamped(name):
    """The last step and all later ones use min_lr: a cosine does not rise again."""
    schedule = getattr(fs.schedule, name)(BASE, WARMUP, TOTAL, min_lr=MINIMUM)
    assert schedule(TOTAL - 2) > MINIMUM
    for step in (TOTAL - 1, TOTAL, TOTAL + 5, 2 * TOTAL, 10**12):
        assert schedule(step) == close(MINIMUM)


@pytest.mark.parametrize("name", ("warmup_linear", "warmup_cosine"))
def test_edges(name):
    make = getattr(fs.schedule, name)
    no_warmup = make(BASE, 0, 4)
    assert no_warmup(0) < BASE and no_warmup(3) == close(0.0)
    assert make(BASE, 1, 4)(0) == close(BASE)
    only_warmup = make(BASE, 5, 5, min_lr=MINIMUM)
    assert only_warmup(4) == close(BASE) and only_warmup(5) == close(MINIMUM)


def test_pure_function():
    schedule = fs.schedule.warmup_cosine(BASE, WARMUP, TOTAL)
    forward = [schedule(step) for step in range(TOTAL)]
    backward = [schedule(step) for step in reversed(range(TOTAL))]
    assert forward == backward[::-1]
    assert all(isinstance(rate, float) and math.isfinite(rate) for rate in forward)


def test_optimizer_takes_the_rate_of_its_step_count():
    schedule = fs.schedule.warmup_linear(0.5, 2, 6)
    p = np.zeros(1, np.float32)
    optimizer = fs.SGD(p, lr=1.0)
    for step in range(6):
        before = p.copy()
        info = optimizer.step(np.ones(1, np.float32), lr=schedule(optimizer.step_count))
        assert info.lr == schedule(step)
        assert (before - p)[0] == pytest.approx(schedule(step), rel=1e-6)
