"""Other places than metrics.jsonl for the figures of a run: TensorBoard, Weights & Biases."""

import html
import importlib
import os
from dataclasses import asdict

from ..errors import InputError
from .event_file import EventFile
from .progress import warn


def require_logger(kind):
    """Raises InputError, with the command that installs it, if the package of --log is missing."""
    if kind == "none":
        return
    try:
        importlib.import_module(kind)
    except ImportError as error:
        raise InputError(
            f"--log {kind}: the package {kind} is missing ({error}): pip install 'flatstep[{kind}]'"
        ) from error


class Logger:
    """A logger of --log that can never end a run: its first failure is a warning, and the last
    that is asked of it.

    kind: "none", "tensorboard" or "wandb". step: steps that the run has done already.
    """

    def __init__(self, kind, run, config, step):
        self.kind = kind
        self._target = None
        if kind != "none":
            self._guard(lambda: setattr(self, "_target", _KINDS[kind](run, config, step)))

    def write(self, metrics):
        """Takes the metrics dict of one step, under the names that metrics.jsonl has."""
        self._guard(lambda: self._target and self._target.write(metrics))

    def sample(self, step, text):
        """Takes a sample of the model."""
        self._guard(lambda: self._target and self._target.sample(step, text))

    def close(self):
        """Waits until everything has arrived."""
        self._guard(lambda: self._target and self._target.close())

    def _guard(self, work):
        try:
            work()
        except Exception as error:
            # Whatever a network, a disk or another's package raises: the run matters more.
            self._target = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            warn(f"--log {self.kind} failed, the run goes on without it: {reason}")


class _TensorBoard:
    """Event files in RUN/tensorboard; `tensorboard --logdir RUN` shows them."""

    def __init__(self, run, config, step):
        self.file = EventFile(run / "tensorboard", step + 1)
        lines = (f"{name} = {value!r}" for name, value in asdict(config).items())
        self.file.text(step + 1, "config", "\n".join(lines))

    def write(self, metrics):
        figures = {name: value for name, value in metrics.items() if name != "step"}
        self.file.scalars(metrics["step"], figures)

    def sample(self, step, text):
        self.file.text(step, "sample", text)

    def close(self):
        self.file.close()


class _Wandb:
    """A run of Weights & Biases, named after the folder; WANDB_* variables steer it as always."""

    def __init__(self, run, config, step):
        import wandb

        self.wandb = wandb
        id_file = run / "wandb.id"
        known = id_file.read_text(encoding="utf-8").strip() if id_file.exists() else None
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "flatstep"),
            dir=str(run),
            name=run.resolve().name,
            id=known,
            resume="allow" if known else None,
            config=asdict(config),
            settings=wandb.Settings(silent=True),
        )
        id_file.write_text(f"{self.run.id}\n", encoding="utf-8")

    def write(self, metrics):
        self.run.log({k: v for k, v in metrics.items() if k != "step"}, step=metrics["step"])

    def sample(self, step, text):
        self.run.log({"sample": self.wandb.Html(f"<pre>{html.escape(text)}</pre>")}, step=step)

    def close(self):
        self.run.finish()


_KINDS = {"tensorboard": _TensorBoard, "wandb": _Wandb}
