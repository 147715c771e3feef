"""From one step to the next: validation, samples, records, checkpoints, and what ends a run."""

import contextlib
import shlex

from ..errors import RunFailed
from .progress import Stopped, warn
from .recorder import Recorder
from .samples import draw_sample, sample_length
from .trainer import StepRefused

SAMPLE_TOKENS = 200


def do_steps(trainer, run, beside, quiet, stop):
    """Steps to the end of the run, saving; returns the Evaluation of the newest validation.

    beside: {name: bytes} that each checkpoint holds besides. Raises Stopped once the run is saved
    after a signal, RunFailed.
    """
    validation, trainer.stop = None, stop
    with contextlib.closing(Recorder(trainer, run, beside, quiet)) as recorder:
        while not (stop.received or trainer.done):
            metrics, better = _next(trainer, run, recorder, stop), False
            if metrics is not None:
                validation, better = _finish_step(trainer, metrics, validation, recorder, stop)
            if (metrics and _due_to_save(trainer)) or better:
                _save(trainer, run, recorder)
        if stop.received:
            _save_if_new(trainer, run, recorder)
    stop.check()
    return validation


def _save(trainer, run, recorder):
    recorder.sync()
    trainer.save(run, files=recorder.beside)
    recorder.saved = trainer.position


def _save_if_new(trainer, run, recorder):
    if recorder.saved != trainer.position:
        _save(trainer, run, recorder)


def _due_to_save(trainer):
    return trainer.done or _due(trainer.step, trainer.config.save_every)


def _due(step, every):
    return every > 0 and step % every == 0


def _next(trainer, run, recorder, stop):
    """The metrics of the step that is to be finished: of a new one, or of one whose validation a
    signal broke off; None if a batch was left out, or a signal came before the step's last pass."""
    if trainer.unfinished is not None:
        return trainer.unfinished
    try:
        metrics, note = trainer.try_step()
    except Stopped:
        return None
    except StepRefused as refused:
        raise _refused(trainer, run, recorder, refused) from refused
    if metrics is None:
        _report_skip(trainer, note)
    elif note is not None:
        warn(f"step {trainer.step}: {note}")
    return metrics


def _refused(trainer, run, recorder, refused):
    """Saves the step before one that the configuration does not let pass; the error to raise."""
    where = "before the first step"
    if trainer.step:
        _save_if_new(trainer, run, recorder)
        where = f"step {trainer.step} is saved"
    return RunFailed(
        f"{refused}; {where}; to go on without that batch: flatstep train --resume "
        f"{shlex.quote(str(run))} {refused.option} skip"
    )


def _report_skip(trainer, reason):
    text, skips = f"step {trainer.step + 1} left out: {reason}", trainer.skips_in_a_row
    if skips >= trainer.config.max_skips:
        raise RunFailed(f"{text}; {skips} in a row, so the run stops; a lower --lr may help")
    warn(text)


def _finish_step(trainer, metrics, validation, recorder, stop):
    """Validates, samples and records a step: (Evaluation of the newest validation, whether it is a
    new best that --keep-best wants saved).

    If a signal comes first, all of it is left for the resumed run, which does it at this step.
    """
    config, step, sample = trainer.config, trainer.step, None
    validated = step == config.steps or _due(step, config.eval_every)
    try:
        if validated:
            recorder.progress.busy("validating")
            validation = trainer.evaluate(trainer.corpus.validation, stop)
        if _due(step, config.sample_every):
            recorder.progress.busy("sampling")
            sample = draw_sample(trainer, max(1, sample_length(trainer, SAMPLE_TOKENS)), stop)
    except Stopped:
        trainer.unfinished = metrics
        recorder.step(metrics)
        return validation, False
    trainer.unfinished, better = None, False
    if validated:
        metrics = metrics | {"val_loss": validation.loss}
        better = trainer.note_validation(validation.loss) and config.keep_best
    recorder.step(metrics, trainer.best, sample)
    return validation, better
