"""Schedules against their formulas at every step where one can be off by one."""

import itertools
import math
import sys

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


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("power", (0.5, 1.0, 3.0))
def test_polynomial(step, power):
    schedule = fs.schedule.polynomial(BASE, WARMUP, TOTAL, MINIMUM, power=power)
    assert schedule(step) == close(oracle.polynomial(step, BASE, WARMUP, TOTAL, MINIMUM, power))


@pytest.mark.parametrize("step", (*STEPS, 37, 38, 39, 40, 42, 43, 48))
@pytest.mark.parametrize("shape", (None, *oracle.FALLS, "geometric"))
@pytest.mark.parametrize("decay", (None, 7, TOTAL - WARMUP, 0))
def test_wsd(step, shape, decay):
    schedule = fs.schedule.wsd(BASE, WARMUP, TOTAL, MINIMUM, decay=decay, shape=shape)
    options = {"decay": 10 if decay is None else decay, "shape": shape or "sqrt"}
    assert schedule(step) == close(oracle.wsd(step, BASE, WARMUP, TOTAL, MINIMUM, **options))


@pytest.mark.parametrize("step", (*STEPS, 17, 18, 19, 38, 39, 40))
@pytest.mark.parametrize("shape", ("cosine", "linear"))
@pytest.mark.parametrize(
    ("options", "second"),
    [({}, None), ({"three_phase": True}, 18), ({"three_phase": True, "pct_final": 0.8}, 39)],
)
def test_one_cycle(step, shape, options, second):
    schedule = fs.schedule.one_cycle(BASE, WARMUP, TOTAL, shape=shape, **options)
    ends = {"init_lr": BASE / 25, "min_lr": BASE / 25 / 1e4}
    expected = oracle.one_cycle(step, BASE, WARMUP, TOTAL, shape=shape, second=second, **ends)
    assert schedule(step) == close(expected)


@pytest.mark.parametrize("step", (*range(70), 10**6))
@pytest.mark.parametrize(
    ("total", "given", "period"),
    [
        (TOTAL, {"cycles": 4}, 10),
        (TOTAL, {"period": 10, "shrink": 0.5}, 10),
        (None, {"period": 3, "period_mult": 2.0}, 3),
        (WARMUP + 28, {"cycles": 3, "period_mult": 2.0, "shrink": 0.7}, 4),
    ],
)
def test_cosine_restarts(step, total, given, period):
    schedule = fs.schedule.cosine_restarts(BASE, WARMUP, total, 1e-4, **given)
    options = {k: v for k, v in given.items() if k != "cycles"} | {"period": period}
    expected = oracle.cosine_restarts(step, BASE, WARMUP, total, 1e-4, **options)
    assert schedule(step) == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize("shape", oracle.FALLS)
def test_shapes_of_the_warm_up(shape):
    """A warm-up is a decay backwards, from init_lr; it may drive a weight decay."""
    schedule = fs.schedule.warmup_constant(0.1, WARMUP, init_lr=0.01, warmup_shape=shape)
    for step in range(WARMUP):
        share = oracle.FALLS[shape](1 - (step + 1) / WARMUP)
        assert schedule(step) == close(0.01 + 0.09 * share)
    assert schedule(WARMUP - 1) == schedule(10**9) == 0.1


def test_inverse_sqrt_options():
    schedule = fs.schedule.inverse_sqrt(BASE, WARMUP, timescale=40)
    assert schedule(WARMUP + 5) == close(BASE * math.sqrt(40 / 46))
    held = fs.schedule.inverse_sqrt(BASE, WARMUP, TOTAL)
    assert held(TOTAL - 1) == held(TOTAL) == held(10**9) == close(BASE * math.sqrt(0.2))
    assert fs.schedule.inverse_sqrt(BASE, WARMUP, min_lr=MINIMUM)(10**9) == MINIMUM
    assert fs.schedule.inverse_sqrt(BASE, 0)(3) == close(BASE / 2)


DECAYING = {
    "warmup_linear": {},
    "warmup_cosine": {},
    "polynomial": {"power": 2.0},
    "wsd": {},
    "one_cycle": {},
    "cosine_restarts": {},
}
SCHEDULES = {
    "warmup_constant": fs.schedule.warmup_constant(BASE, WARMUP),
    "inverse_sqrt": fs.schedule.inverse_sqrt(BASE, WARMUP),
    "noam": fs.schedule.noam(64, WARMUP),
} | {
    name: getattr(fs.schedule, name)(BASE, WARMUP, TOTAL, **options)
    for name, options in DECAYING.items()
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_shape_of_the_curve(name):
    """No dead first step, a strict rise to the peak at W-1, never a rise afterwards."""
    rates = [SCHEDULES[name](step) for step in range(TOTAL + 20)]
    first = BASE / 25 if name == "one_cycle" else rates[WARMUP - 1] / WARMUP
    assert rates[0] == close(first) and rates[0] > 0
    assert all(a < b for a, b in itertools.pairwise(rates[:WARMUP]))
    assert all(a >= b for a, b in itertools.pairwise(rates[WARMUP - 1 :]))
    if name != "noam":
        assert rates[WARMUP - 1] == close(BASE)


@pytest.mark.parametrize("name", DECAYING)
def test_the_end_is_clamped(name):
    """The last step and all later ones use min_lr: a cosine does not rise again."""
    schedule = getattr(fs.schedule, name)(BASE, WARMUP, TOTAL, MINIMUM, **DECAYING[name])
    assert schedule(TOTAL - 2) > MINIMUM
    for step in (TOTAL - 1, TOTAL, TOTAL + 5, 2 * TOTAL, 10**12, 2**53):
        assert schedule(step) == close(MINIMUM)


@pytest.mark.parametrize("name", DECAYING)
def test_edges(name):
    def make(warmup, total, minimum=0.0):
        return getattr(fs.schedule, name)(BASE, warmup, total, minimum, **DECAYING[name])

    no_warmup = make(0, 4)
    assert no_warmup(0) == BASE if name == "wsd" else no_warmup(0) < BASE
    assert no_warmup(3) == close(0.0)
    assert make(1, 4)(0) == close(BASE)
    only_warmup = make(5, 5, MINIMUM)
    assert only_warmup(4) == close(BASE) and only_warmup(5) == close(MINIMUM)
    single = make(0, 1, MINIMUM)
    assert math.isfinite(single(0)) and single(1) == close(MINIMUM)


@pytest.mark.parametrize("name", DECAYING)
@pytest.mark.parametrize("warmup", (0, 1, 4, 5))
def test_small_totals_of_every_preset_are_finite(name, warmup):
    for preset in fs.schedule.presets(name):
        minimum = 1e-4 if (name, preset) == ("wsd", "fairseq") else 0.0
        schedule = getattr(fs.schedule, name)(BASE, warmup, 5, minimum, preset=preset)
        rates = [schedule(step) for step in range(12)]
        assert all(math.isfinite(rate) and rate <= BASE for rate in rates), preset


def test_scale_lr():
    assert fs.schedule.scale_lr(0.1, 8192, 256) == close(3.2)
    assert fs.schedule.scale_lr(0.1, 64, 256) == close(0.025)
    assert fs.schedule.scale_lr(0.1, 8192, 256, rule="sqrt") == close(0.1 * math.sqrt(32))


def test_repr_is_the_call():
    for schedule in (
        *SCHEDULES.values(),
        fs.schedule.constant(0.25),
        fs.schedule.warmup_cosine(BASE, 5, 50, MINIMUM, init_lr=1e-5, waves=1.5, preset="hf"),
        fs.schedule.wsd(BASE, 5, 50, decay=7, shape="linear", warmup_shape="cosine"),
        fs.schedule.cosine_restarts(BASE, 0, period=5, period_mult=2, shrink=0.5, preset="torch"),
        fs.schedule.one_cycle(BASE, None, 50, three_phase=True, pct_final=0.7),
    ):
        again = eval(f"fs.schedule.{schedule!r}")
        assert repr(again) == repr(schedule)
        assert [again(step) for step in range(60)] == [schedule(step) for step in range(60)]
    assert repr(fs.schedule.noam(64, 10)) == "noam(d_model=64, warmup=10, factor=1.0)"


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


# ---- plot: wrong calls; what is drawn is in tests/plot ------------------------------------------

COSINE = fs.schedule.warmup_cosine(1.0, 10, 50)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((3,), "schedules"),
        (([COSINE, "cosine"],), "schedules"),
        (([],), "schedules"),
        ((fs.schedule.constant(1.0),), "total"),
        ((COSINE, 0), "total"),
        ((COSINE, 1.5), "total"),
    ],
)
def test_plot_of_something_else(arguments, argument):
    with pytest.raises((TypeError, ValueError), match=f"^{argument}: got "):
        fs.schedule.plot(*arguments)


def test_plot_without_matplotlib(monkeypatch, tmp_path):
    for name in ("matplotlib", "matplotlib.figure", "matplotlib.pyplot"):
        monkeypatch.setitem(sys.modules, name, None)
    for path in (None, tmp_path / "lr.png"):
        with pytest.raises(ImportError, match="pip install matplotlib"):
            fs.schedule.plot(COSINE, path=path)
