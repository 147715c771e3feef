"""What one training step is: the model, optimizer, schedule and batches of a configuration."""

import math
import time

import numpy as np

import flatstep

from .._state import decode
from ..data.batches import Batches, evaluation_batches
from ..errors import RunFailed
from .checkpoint import load_newest, save_checkpoint
from .evaluation import evaluate
from .parts import make_model, make_optimizer, make_schedule
from .progress import finite
from .spikes import SpikeDetector, describe


def _is_finite(moment, scales, signed):
    """Whether all of an optimizer's array is; 8-bit moments come with their scales."""
    # The sum of scale and step has the upper bits of a float32: below these, it is finite.
    if scales is None or int(scales.max(initial=0)) + 0xFF < 0x7F8:
        return np.isfinite(moment).all()
    return np.isfinite(decode(moment.reshape(-1), scales, signed=signed)).all()


class StepRefused(RunFailed):
    """A step that --on-nonfinite or --on-spike, the `option`, does not let pass; it changed
    nothing."""

    def __init__(self, text, option):
        super().__init__(text)
        self.option = option


class Trainer:
    """A model, its optimizer and its batches at some step.

    step: optimizer steps done. stop: StopSignals that break a step off between its passes, or None.
    skipped: batches that were left out, since their gradient was not
    finite or they were a spike, and that changed nothing; the data moves on past them, the schedule
    does not. skips_in_a_row: those since the last step. best: {"step", "val_loss"} of the best
    validation, or None; since_best: validations after it. unfinished: the metrics of the last step
    if its validation or sample was broken off, else None.
    """

    def __init__(self, config, corpus):
        self.config = config
        self.corpus = corpus
        self.schedule = make_schedule(config)
        self.model = make_model(config, corpus.vocabulary.size)
        self.optimizer = make_optimizer(config, self.model)
        self._byte_lengths = corpus.vocabulary.byte_lengths()
        self.batches = Batches(
            corpus.train,
            block_size=config.block_size,
            batch_size=config.batch_size,
            seed=config.seed,
        )
        self.step = 0
        self.stop = None
        self.skipped = 0
        self.skips_in_a_row = 0
        self.seconds = 0.0
        self.spikes = SpikeDetector(config.spike_threshold)
        self.best = None
        self.since_best = 0
        self.unfinished = None
        self.tokens_per_step = config.batch_size * config.block_size * config.grad_accum

    @property
    def position(self):
        """(step, skipped): it differs whenever there is something new to save."""
        return self.step, self.skipped

    @property
    def out_of_patience(self):
        """Whether --patience validations have brought no new best."""
        return 0 < self.config.patience <= self.since_best

    @property
    def done(self):
        """Whether nothing is left to do: all steps, or all patience."""
        return self.unfinished is None and (self.step >= self.config.steps or self.out_of_patience)

    def try_step(self):
        """One forward, backward and update: (metrics, None or a warning), or (None, why the batch
        was left out). Raises StepRefused where the configuration says so; Stopped, with nothing
        changed, if a signal comes before the last of several passes."""
        began = time.perf_counter()
        config = self.config
        loss, spike = self._forward_backward(), None
        if config.on_spike in ("skip", "stop"):  # while nothing has changed yet
            spike = self.spikes.judge(loss, self._grad_norm())
            if spike is not None:
                return self._leave_out(began, describe(spike), "spike")
        lr = self.schedule(self.step)
        info = self.optimizer.step(
            self.model.grads,
            lr=lr,
            max_norm=config.max_norm or None,
            partials=self.model.grad_partials,
        )
        if info.skipped:
            tensor, index = info.nonfinite or ("the gradient", "?")
            reason = f"the gradient of {tensor} is not finite at index {index}"
            return self._leave_out(began, reason, "nonfinite")
        if config.on_spike == "warn":
            spike = self.spikes.judge(loss, info.grad_norm)
        if config.on_spike != "off":
            self.spikes.accept(loss, info.grad_norm, spike)
        return self._step_done(began, loss, info, spike)

    def _forward_backward(self):
        """Fills the model's gradients with those of the next batch; the loss."""
        config, loss = self.config, 0.0
        first = (self.step + self.skipped) * config.grad_accum
        for micro in range(config.grad_accum):
            if micro and self.stop is not None:
                self.stop.check()
            tokens, targets = self.batches.batch(first + micro)
            loss += self.model.forward_backward(
                tokens,
                targets,
                label_smoothing=config.label_smoothing,
                step=first + micro,
                accumulate=micro > 0,
                loss_divisor=self.tokens_per_step if config.grad_accum > 1 else None,
                partials=micro == config.grad_accum - 1,
            )
        return loss

    def _grad_norm(self):
        partials = self.model.grad_partials
        return flatstep.grad_norm(self.model.grads) if partials is None else partials.norm

    def _leave_out(self, began, reason, kind):
        self.seconds += time.perf_counter() - began
        if getattr(self.config, f"on_{kind}") == "stop":
            raise StepRefused(f"step {self.step + 1}: {reason}", f"--on-{kind}")
        self.skipped += 1
        self.skips_in_a_row += 1
        return None, reason

    def _step_done(self, began, loss, info, spike):
        seconds = time.perf_counter() - began
        self.seconds += seconds
        self.step += 1
        metrics = {
            "step": self.step,
            "loss": loss,
            "lr": info.lr,
            "grad_norm": info.grad_norm,
            "tokens_per_second": round(self.tokens_per_step / seconds, 1),
        }
        if self.skips_in_a_row:
            metrics["skipped"] = self.skips_in_a_row
            self.skips_in_a_row = 0
        if spike is not None:
            metrics["spike"] = round(spike[3], 2)
        return metrics, None if spike is None else describe(spike)

    def note_validation(self, val_loss):
        """Takes the validation loss of this step; whether it is the best so far."""
        if math.isfinite(val_loss) and (self.best is None or val_loss < self.best["val_loss"]):
            self.best, self.since_best = {"step": self.step, "val_loss": val_loss}, 0
            return True
        self.since_best += 1
        return False

    def tokens_per_second(self):
        """Mean over all steps done, saving and validation left out."""
        return self.step * self.tokens_per_step / self.seconds if self.seconds else 0.0

    def evaluate(self, tokens, stop=None):
        """The Evaluation, without dropout, of a fixed set of windows.

        stop: StopSignals that may break it off (Stopped).
        """
        return evaluate(self.model, self._windows(tokens, stop), self._byte_lengths)

    def _windows(self, tokens, stop=None):
        for batch in evaluation_batches(
            tokens,
            block_size=self.config.block_size,
            batch_size=self.config.batch_size,
            max_tokens=self.config.eval_tokens,
        ):
            if stop is not None:
                stop.check()
            yield batch

    def check_finite(self):
        """Raises RunFailed naming the first tensor, or moment of one, that is not finite."""
        for name, view in self.model.layout.views(self.model.params).items():
            if not np.isfinite(view).all():
                raise self._not_finite(name)
        for tensor, own in self.optimizer._state_views()["state"].items():
            for kind, view in own.items():
                scales = own.get(kind + "_scale")
                if not _is_finite(view, scales, signed=kind != "exp_avg_sq"):
                    raise self._not_finite(f"{kind} of {tensor}")

    def _not_finite(self, what):
        return RunFailed(
            f"{what} is no longer finite after step {self.step}; nothing was saved "
            "from there on; a lower --lr may help"
        )

    def save(self, run, *, files=None):
        """Writes a checkpoint of this step, unless it is not finite (RunFailed).

        files: {name: bytes} stored beside it. --keep and --keep-best tell which others stay.
        """
        self.check_finite()
        kept = {"keep": self.config.keep, "keep_best": self.config.keep_best}
        try:
            save_checkpoint(run, self.model, self.optimizer, self._state(), files=files, **kept)
        except OSError as error:
            raise RunFailed(f"{run}: the checkpoint cannot be written: {error}") from error

    def restore(self, run, warn):
        """Goes to the newest whole checkpoint of a run. Raises CheckpointError."""
        _, state = load_newest(run, self.model, self.optimizer, warn=warn, set_aside=True)
        self._take(state)

    def _state(self):
        return {
            "step": self.step,
            "skipped": self.skipped,
            "skips_in_a_row": self.skips_in_a_row,
            "seconds": round(self.seconds, 3),
            "best": self.best,
            "since_best": self.since_best,
            "unfinished": None if self.unfinished is None else finite(self.unfinished),
            "spikes": self.spikes.state(),
        }

    def _take(self, state):
        self.step, self.skipped = state["step"], state["skipped"]
        self.seconds = state["seconds"]
        # Checkpoints of older versions lack the rest.
        self.skips_in_a_row = state.get("skips_in_a_row", 0)
        self.best, self.since_best = state.get("best"), state.get("since_best", 0)
        self.unfinished = state.get("unfinished")
        self.spikes.restore(state.get("spikes"))
