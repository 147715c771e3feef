"""What a run shows and records while it goes: progress, metrics.jsonl, and being asked to stop."""

import contextlib
import json
import math
import os
import signal
import sys
import threading
import time

from tqdm import tqdm

from .._files import write_whole
from ..errors import RunFailed


def warn(text):
    """Prints a warning on stderr, above the bar if there is one."""
    with contextlib.suppress(OSError):  # a reader that has gone ends no run
        tqdm.write(f"flatstep: warning: {text}", file=sys.stderr)


class Progress:
    """A tqdm bar on a terminal, an occasional plain line elsewhere, nothing when quiet.

    Everything goes to stderr. Loss, gradient norm and speed are shown as running means over some
    20 steps; metrics.jsonl has those of each step. The time left is that of the steps left at the
    mean pace since the run began or went on, validations and checkpoints included.
    """

    def __init__(self, total, start, quiet):
        self.total = total
        self.start = start
        self.quiet = quiet
        self.every = max(1, total // 20)
        self.means = {}
        self.validation = self.shown = ""
        self.began = self.last_line = time.monotonic()
        self.bar = None
        if not quiet and sys.stderr.isatty():
            self.bar = tqdm(
                total=total, initial=start, unit="step", dynamic_ncols=True, bar_format=_BAR
            )

    def update(self, metrics, best=None):
        """Shows the metrics dict of one finished step; best: the best validation of the run so
        far, {"step", "val_loss"}, this step's included."""
        if not self.quiet:
            with self._guard():
                self._show(metrics, best)

    @contextlib.contextmanager
    def _guard(self):
        """What only watches never ends a run: once nobody can read it, nothing is shown."""
        try:
            yield
        except OSError:  # a pipe or a terminal is gone, or the disk of a log is full
            self.quiet, self.bar = True, None

    def _show(self, metrics, best):
        step, validated = metrics["step"], "val_loss" in metrics
        for name in ("loss", "grad_norm", "tokens_per_second"):
            mean = self.means.get(name, metrics[name])
            mean += (metrics[name] - mean) / min(20, step - self.start or 1)
            self.means[name] = mean
        if validated:
            self.validation = _validation(metrics, best)
        now = time.monotonic()
        left = (self.total - step) * (now - self.began) / max(1, step - self.start)
        if self.bar is not None:
            if validated:
                self.say(f"step {step}: {self.validation}")
            wide = (self.bar.ncols or 80) >= _WIDE
            figures = _bar_figures(self.means, metrics["lr"], left)
            self.shown = _joined(figures, wide and self.validation)
            self.bar.set_postfix_str(self.shown, refresh=False)
            self.bar.update(step - self.bar.n)
        elif step % self.every == 0 or validated or now - self.last_line > _QUIET_SECONDS:
            self.last_line = now
            number = f"{step:>{len(str(self.total))}}"
            figures = _line_figures(self.means, metrics["lr"], left)
            text = _joined(figures, validated and self.validation)
            print(f"step {number}/{self.total}  {text}", file=sys.stderr, flush=True)

    def busy(self, work):
        """Says in the bar what takes long just now, before the figures so far."""
        if self.bar is not None:
            with self._guard():
                self.bar.set_postfix_str(_joined(work, self.shown))

    def say(self, text):
        """Prints text that stays, above the bar if there is one; nothing when quiet."""
        if not self.quiet:
            with self._guard():
                tqdm.write(text, file=sys.stderr)

    def close(self):
        """Leaves the bar where it stands."""
        if self.bar is not None:
            with self._guard():
                self.bar.close()


# The bar takes what the figures leave of the line; 80 columns hold them all, the newest
# validation, which has a line above the bar, from 110 on.
_BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}"
_WIDE = 110
_QUIET_SECONDS = 60.0  # a plain line comes at least this often


def _joined(first, second):
    return f"{first}  {second}" if second else first


def _bar_figures(means, lr, seconds_left):
    return (
        f"loss {means['loss']:.3f} lr {lr:.2e} norm {means['grad_norm']:.2f} "
        f"{means['tokens_per_second']:,.0f} tok/s {tqdm.format_interval(seconds_left)} left"
    )


def _line_figures(means, lr, seconds_left):
    return (
        f"loss {means['loss']:.3f}  lr {lr:.2e}  norm {means['grad_norm']:.2f}  "
        f"{means['tokens_per_second']:,.0f} tokens/s  {duration(seconds_left)} left"
    )


def _validation(metrics, best):
    value = f"val {metrics['val_loss']:.3f}"
    if best is None:
        return value
    if best["step"] == metrics["step"]:
        return f"{value} best"
    return f"{value} (best {best['val_loss']:.3f} at step {best['step']})"


def duration(seconds):
    """Seconds in words of a fitting size: 8 s, 2:05 min, 3:20 h, 4.5 days."""
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{seconds:02d} min"
    hours, minutes = divmod(minutes + (seconds >= 30), 60)
    return f"{hours}:{minutes:02d} h" if hours < 48 else f"{hours / 24:.1f} days"


class MetricsFile:
    """RUN/metrics.jsonl, one JSON object a line, written line by line.

    step: lines of later steps, and a torn last line, are removed first, so that a resumed run
    has each step once. Everything raises RunFailed naming the file if the disk refuses.
    """

    def __init__(self, path, step):
        self.path = path
        with self._naming_the_file():
            _keep_lines_until(path, step)
            # Without a buffer: what could not be written would be tried again at every later call.
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115

    @contextlib.contextmanager
    def _naming_the_file(self):
        try:
            yield
        except OSError as error:
            raise RunFailed(f"{self.path}: cannot be written: {error.strerror}") from error

    def write(self, metrics):
        """Appends one line; figures that are not finite are left out, as JSON has none."""
        line = memoryview((json.dumps(finite(metrics)) + "\n").encode())
        with self._naming_the_file():
            while line:
                line = line[self.file.write(line) :]

    def sync(self):
        """Brings the lines to the disk, so that no checkpoint is ahead of its metrics."""
        with self._naming_the_file():
            os.fsync(self.file.fileno())

    def close(self):
        """Closes the file."""
        with self._naming_the_file():
            self.file.close()


def finite(metrics):
    """The figures that JSON can hold."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _keep_lines_until(path, step):
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, TypeError, KeyError):
            continue  # cut short by a crash
    with write_whole(path) as file:
        file.write("".join(kept).encode())


class Stopped(Exception):
    """What takes long was broken off since a signal asks the run to stop."""


class StopSignals:
    """A context in which SIGINT and SIGTERM only set `received`; a second one acts as before.

    Outside the main thread, where Python allows no handlers, nothing is installed.
    """

    def __init__(self):
        self.received = None
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def check(self):
        """Raises Stopped if a signal has come: for work that can be done again later."""
        if self.received:
            raise Stopped

    def _handle(self, number, frame):
        self.received = number
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def __exit__(self, *exception):
        self._restore()
