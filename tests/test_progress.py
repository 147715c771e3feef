"""What a run shows while it goes: on a terminal, elsewhere, and when it is quiet."""

import fcntl
import os
import re
import struct
import sys
import termios

import pytest
from run_case import SAMPLE
from test_cli import TINY, flatstep

from flatstep.training import progress
from flatstep.training.progress import MetricsFile, Progress, Stopped, StopSignals, duration


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(SAMPLE)
    return path


def step(number, **more):
    figures = {"loss": 2.0, "lr": 1e-3, "grad_norm": 0.5, "tokens_per_second": 1234.5}
    return {"step": number, **figures, **more}


FIGURES = (
    r"loss \d+\.\d{3}  lr \d\.\d\de-\d\d  norm \d+\.\d\d  [\d,]+ tokens/s  "
    r"(\d+ s|\d+:\d\d min) left"
)


def test_plain_lines_have_every_figure(capsys):
    shown = Progress(100, 0, quiet=False)
    best = {"step": 7, "val_loss": 1.6968}
    for number in range(1, 101):
        if number == 7:
            shown.update(step(number, val_loss=1.6968), best)
        elif number == 50:
            shown.update(step(number, val_loss=1.8), best)
        else:
            shown.update(step(number))
    shown.close()
    lines = capsys.readouterr().err.splitlines()
    assert [int(line.split()[1].split("/")[0]) for line in lines] == sorted({7, *range(5, 101, 5)})
    for line in lines:
        assert re.match(rf"step +\d+/100  {FIGURES}(  val .*)?$", line), line
    assert lines[1].endswith("  val 1.697 best") and lines[1].startswith("step   7/100")
    assert [line for line in lines if "val" in line][1].endswith(
        "  val 1.800 (best 1.697 at step 7)"
    )


def test_figures_are_running_means_and_time_left_is_what_the_pace_says(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress(100, 40, quiet=False)
    for number, loss in ((41, 3.0), (42, 5.0), (43, 4.0), (44, 8.0), (45, 0.0)):
        now[0] += 3.0
        shown.update(step(number) | {"loss": loss})
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("step  45/100  loss 4.000 ")
    assert "1,234 tokens/s  2:45 min left" in line  # 55 steps of 3 s


def test_a_slow_run_shows_a_line_a_minute(capsys, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    shown = Progress(100000, 0, quiet=False)
    for number in range(1, 11):
        now[0] += 25.0
        shown.update(step(number))
    steps = [line.split("/")[0].split()[1] for line in capsys.readouterr().err.splitlines()]
    assert steps == ["3", "6", "9"]


def test_quiet_shows_nothing(capsys):
    shown = Progress(2, 0, quiet=True)
    shown.update(step(1, val_loss=1.0), {"step": 1, "val_loss": 1.0})
    shown.say("a sample")
    shown.busy("validating")
    shown.close()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (125, "2:05 min"), (3599, "59:59 min"),
     (3600, "1:00 h"), (12000, "3:20 h"), (389000, "4.5 days")],
)  # fmt: skip
def test_durations(seconds, words):
    assert duration(seconds) == words


def on_a_terminal(arguments, columns):
    """(exit code, what a command writes) on a terminal so many columns wide."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execv(sys.executable, [sys.executable, "-m", "flatstep", *map(str, arguments)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    written = b""
    while True:
        try:
            part = os.read(terminal, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        written += part
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), written.decode()


BAR = (
    r" *\d+%\|.*\| \d+/40, loss \d+\.\d{3} lr \d\.\d\de-\d\d norm \d+\.\d\d [\d,]+ tok/s "
    r"\d\d:\d\d left"
)


@pytest.mark.needs("fork")
@pytest.mark.parametrize("columns", [80, 140])
def test_the_bar_shows_every_figure(tmp_path, text, columns):
    options = ["--steps", 40, "--eval-every", 10, "--sample-every", 20, "--out", tmp_path / "run"]
    code, written = on_a_terminal(["train", text, *TINY, *options], columns)
    assert code == 0, written
    states = re.split(r"[\r\n]+", written)
    bars = [state.rstrip() for state in states if "%|" in state]
    assert max(map(len, bars)) <= columns
    end = r"  val \d+\.\d{3} (best|\(best .*\))$" if columns == 140 else "$"
    last = bars[-1]
    assert last.startswith("100%|") and re.match(BAR + end, last), last
    for number in (10, 20, 30, 40):  # above the bar, to stay
        assert re.search(rf"^step {number}: val \d+\.\d{{3}} ", "\n".join(states), re.MULTILINE)
    assert any("validating" in bar for bar in bars) and any("sampling" in bar for bar in bars)
    assert "sample of step 20:" in written and "time    about" in written
    assert not re.search(r"^step +\d+/40", written, re.MULTILINE)  # no plain lines beside it


def test_elsewhere_there_are_plain_lines(tmp_path, text):
    done = flatstep("train", text, *TINY, "--steps", 40, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for line in done.stderr.splitlines():
        assert re.match(rf"step +\d+/40  {FIGURES}(  val \d\.\d{{3}} best)?$", line), line


def test_metrics_of_later_steps_and_torn_lines_go(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 3.5}\n[]\n{"step": 2, "loss": 3.25}\n{"step": 3, "lo')
    file = MetricsFile(path, 1)
    file.write(step(2) | {"loss": float("nan"), "spike": float("inf")})
    file.close()
    lines = path.read_text().splitlines()
    assert lines[0] == '{"step": 1, "loss": 3.5}' and len(lines) == 2
    assert "loss" not in lines[1] and "NaN" not in lines[1] and '"grad_norm": 0.5' in lines[1]


def test_stopped_only_after_a_signal():
    stop = StopSignals()
    stop.check()
    stop.received = 15
    with pytest.raises(Stopped):
        stop.check()
