"""Other places than metrics.jsonl for the figures of a run: TensorBoard, Weights & Biases."""

import html
import importlib
import os
from dataclasses import asdict

from ..errors import InputError
from .progress import warn


def require_logger(kind):
    """Raises InputError, with the command that installs it, if the package of --log is missing."""
    if kind != "none":
        module = _KINDS[kind].module
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise InputError(
                f"--log {kind}: the package {module} is missing ({error}): "
                f"pip install 'flatstep[{kind}]'"
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
    """Event files in RUN/tensorboard, written by tensorboardX, which needs neither TensorBoard
    nor PyTorch."""

    module = "tensorboardX"

    def __init__(self, run, config, step):
        from tensorboardX import SummaryWriter

        # What an earlier part of the run wrote beyond this step is then not shown.
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)
        lines = "".join(f"    {name} = {value!r}\n" for name, value in asdict(config).items())
        self.writer.add_text("config", lines, step + 1)

    def write(self, metrics):
        for name, value in metrics.items():
            if name != "step":
                self.writer.add_scalar(name, value, metrics["step"])

    def sample(self, step, text):
        # Indented, which is preformatted text in Markdown.
        self.writer.add_text("sample", "".join(f"    {x}\n" for x in text.splitlines()), step)

    def close(self):
        self.writer.close()


class _Wandb:
    """A run of Weights & Biases, named after the folder; WANDB_* variables steer it as always."""

    module = "wandb"

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
