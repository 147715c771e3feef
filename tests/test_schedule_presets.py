"""Presets give the values that other libraries were recorded to give, step by step.

schedule_values.json holds the values, each with the library, its version or the file its formula is
from; record_schedules.py says how they were obtained. optax was recorded in float64: it computes in
float32 unless told otherwise, and is then within 1e-6.
"""

import json
import pathlib

import pytest

import flatstep as fs

RECORDS = json.loads(pathlib.Path(__file__).with_name("schedule_values.json").read_text())
NAMES = (
    "constant", "warmup_constant", "warmup_linear", "warmup_cosine", "inverse_sqrt", "noam",
    "polynomial", "wsd", "one_cycle", "cosine_restarts",
)  # fmt: skip


def make(record):
    return getattr(fs.schedule, record["schedule"])(**record["arguments"])


def name_of(record):
    preset = record["arguments"]["preset"]
    return f"{record['schedule']}-{preset}-{record['source']}".replace(" ", "_")


@pytest.mark.parametrize("record", RECORDS, ids=name_of)
def test_recorded_values(record):
    schedule = make(record)
    for step, value in record["values"].items():
        if value is not None:
            assert schedule(int(step)) == pytest.approx(value, rel=1e-12, abs=1e-18), step


@pytest.mark.parametrize("record", RECORDS, ids=name_of)
def test_beyond_where_the_library_stops(record):
    """OneCycleLR raises and llm.c aborts beyond T: there the preset is at its lowest rate."""
    schedule, base = make(record), record["arguments"].get("base_lr")
    for step, value in record["values"].items():
        if value is None:
            lowest = record["arguments"].get("min_lr", base and base / 25 / 1e4)
            assert schedule(int(step)) == pytest.approx(lowest, rel=1e-12)


def test_every_preset_is_recorded():
    recorded = {(r["schedule"], r["arguments"]["preset"]) for r in RECORDS}
    offered = {(name, preset) for name in NAMES for preset in fs.schedule.presets(name)}
    assert recorded == {pair for pair in offered if pair[1] != "flatstep"}


def test_the_recorded_steps_tell_conventions_apart():
    """Each preset differs from the default, and from each other preset of another convention."""
    for record in RECORDS:
        default = record | {"arguments": record["arguments"] | {"preset": "flatstep"}}
        values, ours = record["values"], make(default)
        assert any(v != pytest.approx(ours(int(k)), rel=1e-6) for k, v in values.items())


def test_counts_of_steps_beyond_31_bits():
    """Counts beyond 2**31, up to 2**53, and their neighbours are told apart."""
    total = 2**53
    line = fs.schedule.warmup_linear(1.0, 0, total)
    assert line(total - 1) == 0.0 and line(total) == 0.0
    assert line(total // 2 - 1) == 0.5
    assert line(2**32) == pytest.approx(1 - (2**32 + 1) / total, rel=1e-15)
    warm = fs.schedule.warmup_constant(1.0, 2**40, preset="hf")
    assert warm(2**39) == 0.5 and warm(2**39 + 1) > 0.5 and warm(2**40) == 1.0
    restarts = fs.schedule.cosine_restarts(1.0, 0, period=2**33, preset="torch")
    assert restarts(2**52) == 1.0 and restarts(2**52 + 2**32) == pytest.approx(0.5)
    growing = fs.schedule.cosine_restarts(1.0, 0, period=10, period_mult=2.0, preset="torch")
    assert growing(10 * (2**40 - 1)) == 1.0 and growing(10 * (2**40 - 1) - 1) < 1e-20
    assert fs.schedule.noam(64, 10)(2**53) == pytest.approx(2.0 ** (-3 - 26.5))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("constant", "noam")])
def test_refusal_of_a_preset_names_those_there_are(name):
    make = getattr(fs.schedule, name)
    with pytest.raises(ValueError, match=rf"^preset: got 'nope', expected one of .* {name}$") as e:
        make(1.0, 2, 10, preset="nope")
    assert all(f"'{preset}'" in str(e.value) for preset in fs.schedule.presets(name))


def test_refusal_of_a_preset_of_another_schedule():
    with pytest.raises(ValueError, match=r"^preset: got 'hf', expected one of .*'annotated'"):
        fs.schedule.noam(64, 10, preset="hf")
    with pytest.raises(ValueError, match=r"^preset: .*one of 'flatstep' for constant"):
        fs.schedule.constant(1.0, preset="hf")
