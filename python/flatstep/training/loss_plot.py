"""RUN/loss.png: loss, learning rate and gradient norm against the steps, with matplotlib."""

import importlib.util
import json
import math
import os
import time

from ..errors import InputError
from .progress import warn

SECONDS_BETWEEN = 30.0
POINTS = 1500
_COLUMNS = ("step", "loss", "lr", "grad_norm")


class LossPlot:
    """The picture of a run while it goes; it can never end a run.

    Drawn at validations, at most every 30 seconds, and at the end; nothing without matplotlib.
    step: steps done, whose figures are read from metrics.jsonl.
    """

    def __init__(self, run, wanted, step):
        self.path = run / "loss.png"
        self.wanted = wanted and importlib.util.find_spec("matplotlib") is not None
        self.figures = read_figures(run / "metrics.jsonl", step) if self.wanted else None
        self.last = time.monotonic()

    def update(self, metrics):
        """Takes the metrics dict of one step, and draws if it is time."""
        if not self.wanted:
            return
        add_figures(self.figures, metrics)
        if "val_loss" in metrics and time.monotonic() - self.last > SECONDS_BETWEEN:
            self.draw()

    def draw(self):
        """Writes the picture as it is now."""
        if not (self.wanted and self.figures["step"]):
            return
        try:
            draw_figures(self.figures, self.path)
        except Exception as error:
            # A full disk, or whatever matplotlib raises: the run matters more.
            self.wanted = False
            warn(f"{self.path} cannot be drawn: {' '.join(str(error).split())}")
        self.last = time.monotonic()


def read_figures(path, last_step=math.inf):
    """The lines of a metrics.jsonl up to a step, as lists by name. Lines that are none are left
    out; a file that is not there has none."""
    figures = {name: [] for name in (*_COLUMNS, "val_step", "val_loss")}
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                metrics = json.loads(line)
                if metrics["step"] <= last_step:
                    add_figures(figures, metrics)
            except (ValueError, TypeError, KeyError):
                continue  # cut short by a crash
    return figures


def add_figures(figures, metrics):
    """Appends the figures of one step; a missing one, which was not finite, is a gap."""
    for name in _COLUMNS:
        figures[name].append(metrics.get(name, math.nan))
    if "val_loss" in metrics:
        figures["val_step"].append(metrics["step"])
        figures["val_loss"].append(metrics["val_loss"])


def draw_figures(figures, path):
    """Writes the picture of `read_figures` to a file, whole or not at all.

    Raises InputError without matplotlib, OSError if the disk refuses.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("pictures need matplotlib: pip install 'flatstep[plot]'") from error
    # A figure of its own: pyplot would keep it, and may want a display.
    figure = Figure(figsize=(8, 7), layout="constrained")
    loss, rate, norm = figure.subplots(3, sharex=True, height_ratios=(3, 1, 1))
    _draw_loss(loss, figures)
    rate.plot(*thinned(figures["step"], figures["lr"]), color="C2")
    rate.set_ylabel("learning rate")
    norm.plot(*thinned(figures["step"], figures["grad_norm"]), color="C4", linewidth=0.8)
    norm.set_ylabel("gradient norm")
    if any(value > 0 for value in figures["grad_norm"]):
        norm.set_yscale("log")
    norm.set_xlabel("steps")
    for axes in (loss, rate, norm):
        axes.grid(alpha=0.3)
    _save(figure, path)


def _draw_loss(axes, figures):
    axes.plot(*thinned(figures["step"], figures["loss"]), linewidth=0.8, label="training")
    finite = [(v, s) for s, v in zip(figures["val_step"], figures["val_loss"], strict=True)]
    if finite:
        axes.plot(figures["val_step"], figures["val_loss"], "o-", markersize=4, label="validation")
        best, step = min(finite)
        axes.plot([step], [best], "*", color="C3", markersize=12, label=f"best {best:.4f}")
    axes.set_ylabel("loss, nats per token")
    axes.legend()


def thinned(steps, values):
    """(steps, values) of at most 1500 points: means over equal numbers of steps."""
    group = -(-len(steps) // POINTS)
    if group <= 1:
        return steps, values
    cuts = range(0, len(steps), group)
    return (
        [_mean(steps[k : k + group]) for k in cuts],
        [_mean([v for v in values[k : k + group] if v == v]) for k in cuts],
    )


def _mean(values):
    return math.fsum(values) / len(values) if values else math.nan


def _save(figure, path):
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        figure.savefig(temporary, format=path.suffix.lstrip(".") or "png", dpi=120)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
