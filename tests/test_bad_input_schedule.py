"""Wrong calls of schedules: one error each, which names the argument and what was expected."""

import bad_input as bad
import pytest

import flatstep as fs

NAN, INF = float("nan"), float("inf")
RATES = (-0.1, NAN, INF, -INF, "0.1", None, [1.0], 10**400)
SHARES = (-0.1, 1.1, NAN, "half")
COUNTS = (-1, 1.5, NAN, "ten", 2**53 + 1, 10**30, [1])
POSITIVE = (0.0, *RATES)
TEXTS = ("nope", "", 1, b"linear")
WARM = (1.0, 2, 10)
# {schedule: (arguments that are right, {argument: wrong values})}
SCHEDULES = {
    "constant": ((1.0,), {}),
    "warmup_constant": (
        (1.0, 2),
        {"init_lr": (2.0, NAN, "0"), "warmup_shape": ("geometric", None, *TEXTS), "total": (1,)},
    ),
    "warmup_linear": (WARM, {"min_lr": (1.5, NAN, "0"), "init_lr": (1.5, -0.1, NAN)}),
    "warmup_cosine": (WARM, {"min_lr": (1.5, -0.1), "waves": POSITIVE, "power": POSITIVE}),
    "inverse_sqrt": ((1.0, 2), {"min_lr": (2.0,), "timescale": (0, *COUNTS), "total": (0, 1)}),
    "polynomial": (WARM, {"power": POSITIVE, "min_lr": (1.5, NAN)}),
    "wsd": (WARM, {"decay": (9, *COUNTS), "shape": TEXTS, "warmup_shape": ("geometric", None)}),
    "one_cycle": (
        (1.0, None, 10),
        {"pct_start": SHARES, "shape": ("sqrt", *TEXTS), "three_phase": ("no", 1), "min_lr": (2,)},
    ),
    "cosine_restarts": (
        WARM,
        {
            "cycles": (0, *COUNTS),
            "period": (0, *COUNTS),
            "period_mult": (0.5, *RATES),
            "shrink": (0.0, 1.5, *RATES),
            "init_lr": (2.0,),
        },
    ),
}


def schedule_calls():
    for name, (right, table) in SCHEDULES.items():
        wrong = {"base_lr": RATES, "preset": ("nope", "HF", "", None, 1, b"hf"), **table}
        if name not in ("constant", "one_cycle"):
            wrong["warmup"] = (None, *COUNTS)
        if len(right) == 3:
            wrong["total"] = (0, 1, *COUNTS) if name != "one_cycle" else (0, *COUNTS)
        names = dict(zip(("base_lr", "warmup", "total"), right, strict=False))
        for argument, value in bad.pairs(wrong):
            yield argument, name, names | {argument: value}
    for argument, value in bad.pairs(
        {
            "d_model": (0, None, *COUNTS),
            "warmup": (0, None, *COUNTS),
            "factor": RATES,
            "preset": ("hf", None),
        }
    ):
        yield argument, "noam", {"d_model": 64, "warmup": 10, argument: value}
    for argument, value in bad.pairs(
        {"base_lr": RATES, "batch": (0, *COUNTS), "base_batch": (0, None, *COUNTS), "rule": TEXTS}
    ):
        yield argument, "scale_lr", {"base_lr": 1.0, "batch": 8, "base_batch": 4, argument: value}
    # What does not fit together.
    one_cycle = {"base_lr": 1.0, "warmup": None, "total": 10}
    yield "warmup", "warmup_cosine", {"base_lr": 1.0, "warmup": 11, "total": 10}
    yield "warmup", "inverse_sqrt", {"base_lr": 1.0, "warmup": 0, "preset": "fairseq"}
    yield "warmup", "one_cycle", {"base_lr": 1.0, "warmup": 11, "total": 10}
    yield "pct_start", "one_cycle", {**one_cycle, "warmup": 2, "pct_start": 0.5}
    yield "pct_final", "one_cycle", {**one_cycle, "three_phase": True, "pct_final": 0.2}
    yield "three_phase", "one_cycle", {**one_cycle, "pct_start": 0.6, "three_phase": True}
    yield "min_lr", "wsd", {"base_lr": 1.0, "warmup": 2, "total": 10, "shape": "geometric"}
    yield "min_lr", "polynomial", {"base_lr": 1e-8, "warmup": 2, "total": 9, "preset": "hf"}
    yield "total", "cosine_restarts", {"base_lr": 1.0, "warmup": 2}
    yield (
        "period",
        "cosine_restarts",
        {"base_lr": 1.0, "warmup": 2, "total": 10, "period": 3, "cycles": 2},
    )


@pytest.mark.parametrize(("argument", "name", "arguments"), list(schedule_calls()))
def test_schedules(argument, name, arguments):
    error = bad.check_refusal(
        lambda: getattr(fs.schedule, name)(**arguments), bad.fresh_arrays(), argument
    )
    assert ": got " in str(error)


@pytest.mark.parametrize("step", (-1, 1.5, NAN, "1", None, 2**53 + 1, 10**30, -(10**30)))
@pytest.mark.parametrize(
    "schedule", (fs.schedule.constant(1.0), fs.schedule.noam(64, 10), fs.schedule.wsd(1.0, 1, 10))
)
def test_steps_of_schedules(schedule, step):
    bad.check_refusal(lambda: schedule(step), bad.fresh_arrays(), "step")
