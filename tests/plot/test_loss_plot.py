"""loss.png of a run and `flatstep plot`; absent without matplotlib."""

import json
import math

import pytest
from matplotlib.figure import Figure
from run_case import TINY, bits
from test_cli import assert_one_line_error, flatstep

from flatstep.training import loop, loss_plot

PNG = b"\x89PNG\r\n\x1a\n"
DRAWN = TINY | {"plot": True}


@pytest.fixture
def figures(monkeypatch):
    """The matplotlib figures that are saved."""
    saved, real = [], Figure.savefig

    def saving(self, *arguments, **options):
        saved.append(self)
        return real(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", saving)
    return saved


def test_three_panels_show_the_figures_of_every_step(tmp_path, text, figures):
    run = tmp_path / "run"
    loop.start(DRAWN, [text], out=run, quiet=True)
    assert (run / "loss.png").read_bytes().startswith(PNG)
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []
    (figure,) = figures  # at the end alone: no half a minute has passed
    loss, rate, norm = figure.axes
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for axes, name in ((loss, "loss"), (rate, "lr"), (norm, "grad_norm")):
        assert list(axes.lines[0].get_xdata()) == list(range(1, 13))
        assert list(axes.lines[0].get_ydata()) == [line[name] for line in lines]
    validated = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    assert list(loss.lines[1].get_xdata()) == [5, 10, 12] == list(validated)
    assert list(loss.lines[1].get_ydata()) == list(validated.values())
    assert loss.lines[2].get_ydata()[0] == min(validated.values())
    assert loss.get_xlim() == norm.get_xlim()


def test_it_is_drawn_at_validations_at_most_every_half_minute(tmp_path, text, figures, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loss_plot.time, "monotonic", lambda: now[0])
    plot = loss_plot.LossPlot(tmp_path, True, 0)
    drawn = []
    for step in range(1, 101):
        now[0] += 1.0
        plot.update({"step": step, "loss": 1.0} | ({"val_loss": 1.0} if step % 20 == 0 else {}))
        drawn += [step] * (len(figures) - len(drawn))
    assert drawn == [40, 80]


def test_a_resumed_run_shows_all_of_it(tmp_path, text, figures):
    run = tmp_path / "run"
    loop.start(DRAWN, [text], out=run, quiet=True)
    loop.resume(run, {"steps": 15}, quiet=True)
    assert list(figures[-1].axes[0].lines[0].get_xdata()) == list(range(1, 16))


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("odd")])
def test_a_picture_that_fails_is_a_warning_and_leaves_the_old_one(
    tmp_path, text, monkeypatch, capsys, error
):
    run = tmp_path / "run"
    loop.start(DRAWN, [text], out=run, quiet=True)
    before = (run / "loss.png").read_bytes()

    def failing(self, path, **options):
        path.write_bytes(b"half a pict")
        raise error

    monkeypatch.setattr(Figure, "savefig", failing)
    assert loop.resume(run, {"steps": 15}, quiet=True).step == 15
    errors = capsys.readouterr().err
    assert errors.startswith(f"flatstep: warning: {run / 'loss.png'} cannot be drawn: ")
    assert errors.count("\n") == 1
    assert (run / "loss.png").read_bytes() == before
    assert [p.name for p in run.iterdir() if p.name.startswith(".")] == []


def test_no_plot_draws_none_and_computes_the_same(tmp_path, text):
    loop.start(DRAWN, [text], out=tmp_path / "drawn", quiet=True)
    loop.start(TINY | {"plot": False}, [text], out=tmp_path / "plain", quiet=True)
    assert not (tmp_path / "plain/loss.png").exists()
    assert bits(tmp_path / "drawn") == bits(tmp_path / "plain")


def test_long_runs_are_thinned_to_means():
    steps = list(range(1, 4502))
    values = [float(step % 4) if step != 2 else math.nan for step in steps]
    thin_steps, thin_values = loss_plot.thinned(steps, values)
    assert len(thin_steps) == len(thin_values) == math.ceil(4501 / 4) <= loss_plot.POINTS
    assert thin_steps[0] == 2.5 and thin_steps[-1] == 4501
    assert thin_values[0] == pytest.approx(4 / 3) and thin_values[1] == 1.5
    assert loss_plot.thinned(steps[:1500], values[:1500]) == (steps[:1500], values[:1500])
    assert math.isnan(loss_plot.thinned(steps, [math.nan] * 4501)[1][7])


def test_the_command(tmp_path, text):
    run = tmp_path / "run"
    loop.start(TINY, [text], out=run, quiet=True)
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 13, "lo')
    done = flatstep("plot", run)
    assert (done.returncode, done.stdout) == (0, f"{run / 'loss.png'}\n"), done.stderr
    assert (run / "loss.png").read_bytes().startswith(PNG)
    done = flatstep("plot", run, "--out", tmp_path / "curve.svg")
    assert done.returncode == 0 and b"<svg" in (tmp_path / "curve.svg").read_bytes()
    before = sorted(tmp_path.rglob("*"))
    for name, part in (("curve.xyz", "xyz"), ("missing/curve.png", "No such file")):
        done = flatstep("plot", run, "--out", tmp_path / name)
        assert_one_line_error(done, 2, f"--out {tmp_path / name}: ", part)
    assert_one_line_error(flatstep("plot", tmp_path), 2, "not a run")
    (run / "metrics.jsonl").write_text("")
    assert_one_line_error(flatstep("plot", run), 2, "has no step yet")
    assert sorted(tmp_path.rglob("*")) == before
