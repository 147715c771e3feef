"""Pictures of schedules; without matplotlib these tests are absent."""

import pytest

import flatstep as fs

COSINE = fs.schedule.warmup_cosine(1.0, 10, 50)
LINE = fs.schedule.warmup_linear(1.0, 10, 100, preset="hf")


@pytest.mark.parametrize(
    ("schedules", "labels", "end"),
    [
        (COSINE, [repr(COSINE)], 50),
        ([COSINE, LINE], [repr(COSINE), repr(LINE)], 100),
        ({"ours": COSINE, "half": lambda step: 0.5}, ["ours", "half"], 50),
    ],
)
def test_lines(tmp_path, schedules, labels, end):
    path = tmp_path / "lr.png"
    axes = fs.schedule.plot(schedules, path=path)
    assert path.read_bytes().startswith(b"\x89PNG")
    lines = axes.get_lines()
    assert [line.get_label() for line in lines] == labels
    for line in lines:
        assert list(line.get_xdata()) == list(range(end + 1))
    assert list(lines[0].get_ydata()) == [COSINE(step) for step in range(end + 1)]


def test_many_steps_are_thinned_out(tmp_path):
    axes = fs.schedule.plot(fs.schedule.noam(64, 10**9), total=2**40, path=tmp_path / "lr.svg")
    steps = axes.get_lines()[0].get_xdata()
    assert len(steps) <= 2001 and (steps[0], steps[-1]) == (0, 2**40)
