"""What a run shows and records while it goes: progress, metrics.jsonl, and being asked to stop."""

import contextlib
import json
import math
import os
import signal
import sys
import threading

from tqdm import tqdm

from .._files import NewFile
from ..errors import RunFailed


def warn(text):
    """Prints a warning on stderr, above the bar if there is one."""
    tqdm.write(f"flatstep: warning: {text}", file=sys.stderr)


class Progress:
    """A tqdm bar on a terminal, an occasional plain line elsewhere, nothing when quiet.

    Everything goes to stderr. Loss and speed are shown as running means over some 20 steps;
    metrics.jsonl has those of each step.
    """

    def __init__(self, total, start, quiet):
        self.total = total
        self.start = start
        self.quiet = quiet
        self.every = max(1, total // 20)
        self.shown = {}
        self.bar = None
        if not quiet and sys.stderr.isatty():
            self.bar = tqdm(total=total, initial=start, unit="step", dynamic_ncols=True)

    def update(self, metrics):
        """Shows the metrics dict of one finished step."""
        if self.quiet:
            return
        step = metrics["step"]
        for name in ("loss", "tokens_per_second"):
            mean = self.shown.get(name, metrics[name])
            mean += (metrics[name] - mean) / min(20, step - self.start)
            self.shown[name] = mean
        self.shown["lr"] = metrics["lr"]
        if "val_loss" in metrics or self.bar is None:
            self.shown["val_loss"] = metrics.get("val_loss")
        if self.bar is not None:
            self.bar.set_postfix_str(_figures(**self.shown), refresh=False)
            self.bar.update()
        elif step % self.every == 0 or "val_loss" in metrics:
            number = f"{step:>{len(str(self.total))}}"
            print(f"step {number}/{self.total}  {_figures(**self.shown)}", file=sys.stderr)

    def close(self):
        """Leaves the bar where it stands."""
        if self.bar is not None:
            self.bar.close()


def _figures(loss, tokens_per_second, lr, val_loss=None):
    validation = "" if val_loss is None else f"  val {val_loss:.3f}"
    return f"loss {loss:.3f}  lr {lr:.2e}  {tokens_per_second:,.0f} tokens/s{validation}"


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
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        line = memoryview((json.dumps(finite) + "\n").encode())
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
    temporary = path.with_name(".metrics.jsonl.tmp")
    try:
        with NewFile(temporary) as file:
            file.write("".join(kept).encode())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


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

    def _handle(self, number, frame):
        self.received = number
        self._restore()

    def _restore(self):
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous = {}

    def __exit__(self, *exception):
        self._restore()
