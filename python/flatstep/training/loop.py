"""A training run: from its first step, or on from a checkpoint, to its last.

What a step computes depends only on the configuration, the text and the number of the step, so
a run that was stopped and resumed ends with the same bits as one that was not.
"""

import contextlib
import dataclasses
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import flatstep

from ..data.corpus import load_corpus
from ..errors import InputError, RunFailed
from .checkpoint import list_checkpoints
from .config import make_config
from .options import TrainConfig, option_name
from .progress import MetricsFile, Progress, StopSignals, warn
from .run_folder import config_text, create_run_folder, read_config, write_config
from .sampling import generate_text
from .trainer import Trainer

MOST_SKIPS_IN_A_ROW = 10
SAMPLE_BYTES = 400
SAMPLE_OPERATIONS = 10**12
MAY_DIFFER_ON_RESUME = {f.name for f in dataclasses.fields(TrainConfig) if f.metadata.get("free")}


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    step: steps done. train_loss, val_loss: nats a token over fixed windows, without dropout;
    None if the run did not come to its last step. signal: the one that stopped it, or None.
    """

    run: Path
    step: int
    train_loss: float | None = None
    val_loss: float | None = None
    signal: int | None = None


def start(given, files=(), *, out=None, quiet=False):
    """Trains a new run and returns its Outcome.

    given: {field of TrainConfig: value}; the rest takes its default.
    files: text files and folders; none for Python's standard library.
    out: the run folder, new or empty; None takes the next number in runs/.
    quiet: show warnings only.
    Raises InputError before anything is written, RunFailed after.
    """
    config = make_config(given)
    trainer = Trainer(config, _load(config, files))
    run = create_run_folder(out)
    write_config(run, config, _data_entries(trainer.corpus))
    if not quiet:
        print(_first_screen(trainer, run), flush=True)
    return _train(trainer, run, quiet)


def resume(run, given=None, files=(), *, quiet=False):
    """Goes on with a run from its newest whole checkpoint and returns its Outcome.

    A run that was killed before its first checkpoint begins again at step 0.
    run: its folder. given: options; `steps` may be raised and `threads` may differ, any other
    must agree with the run. files: where the text is now, if it has moved.
    Raises InputError if an option, the text or the checkpoints do not fit; RunFailed as `start`.
    """
    run = Path(run)
    stored, entries = read_config(run)
    config = _resumed_config(stored, given or {})
    corpus = _load(config, files or _stored_files(run, entries))
    _compare_data(run, corpus, entries)
    trainer = Trainer(config, corpus)
    if list_checkpoints(run):
        trainer.restore(run, warn)
    if not quiet:
        print(_resume_line(run, stored, config, trainer.step), flush=True)
    if trainer.step >= config.steps:
        return Outcome(run, trainer.step)
    write_config(run, config, _data_entries(corpus))
    if not quiet:
        print(_first_screen(trainer, run), flush=True)
    return _train(trainer, run, quiet)


def _load(config, files):
    if config.threads:
        flatstep.set_num_threads(config.threads)
    return load_corpus(files, block_size=config.block_size, val_fraction=config.val_fraction)


def _data_entries(corpus):
    return {
        "data_bytes": corpus.size,
        "data_sha256": corpus.sha256,
        "flatstep_version": flatstep.__version__,
        "data_files": corpus.files,
    }


def _stored_beside(trainer):
    """What a checkpoint holds besides the training state, so that it can stand alone."""
    return {"config.toml": config_text(trainer.config, _data_entries(trainer.corpus))}


def _stored_files(run, entries):
    files = entries.get("data_files")
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise InputError(f"{run}/config.toml: data_files must be a list of file names")
    return files


def _resumed_config(stored, given):
    for name, value in given.items():
        if name not in MAY_DIFFER_ON_RESUME and value != getattr(stored, name, None):
            raise InputError(
                f"{option_name(name)} {value} contradicts the run, which has "
                f"{getattr(stored, name, 'no such option')}; leave it out, or begin a new run"
            )
    if given.get("steps", stored.steps) < stored.steps:
        raise InputError(
            f"--steps {given['steps']} is less than the run's {stored.steps}; it may only be raised"
        )
    return make_config(dataclasses.asdict(stored) | given)


def _compare_data(run, corpus, entries):
    size, digest = entries.get("data_bytes"), entries.get("data_sha256")
    if corpus.size != size:
        how = f"{corpus.size:,} bytes now, {size:,} then" if size else "its size is not recorded"
    elif corpus.sha256 != digest:
        how = f"still {size:,} bytes, but others"
    else:
        return
    what = "the text" if corpus.files else "Python's standard library"
    raise InputError(f"{run}: {what} is not what the run began with: {how}")


def _train(trainer, run, quiet):
    began, first_step = time.perf_counter(), trainer.step
    metrics = MetricsFile(run / "metrics.jsonl", trainer.step)
    progress = Progress(trainer.config.steps, trainer.step, quiet)
    with contextlib.closing(metrics), contextlib.closing(progress), StopSignals() as stop:
        val_loss = _loop(trainer, run, metrics, progress, stop)
    if stop.received:
        name = signal.Signals(stop.received).name
        print(
            f"flatstep: stopped by {name} after step {trainer.step}; go on with: "
            f"flatstep train --resume {shlex.quote(str(run))}",
            file=sys.stderr,
        )
        return Outcome(run, trainer.step, signal=stop.received)
    outcome = Outcome(run, trainer.step, trainer.evaluate(trainer.corpus.train), val_loss)
    if not quiet:
        seconds = time.perf_counter() - began
        print(_last_screen(trainer, outcome, trainer.step - first_step, seconds), flush=True)
    return outcome


def _loop(trainer, run, metrics_file, progress, stop):
    """Steps until the last one or a signal; returns the newest validation loss."""
    config, val_loss, skips = trainer.config, None, 0
    while trainer.step < config.steps:
        metrics, nonfinite = trainer.try_step()
        skips = skips + 1 if metrics is None else 0
        if metrics is None:
            _report_skip(trainer.step, nonfinite, skips)
        else:
            if _due(trainer.step, config.eval_every, config.steps):
                metrics["val_loss"] = val_loss = trainer.evaluate(trainer.corpus.validation)
            metrics_file.write(metrics)
            progress.update(metrics)
        if stop.received or (metrics and _due(trainer.step, config.save_every, config.steps)):
            metrics_file.sync()
            trainer.save(run, files=_stored_beside(trainer))
        if stop.received:
            break
    return val_loss


def _due(step, every, last):
    return step == last or (every > 0 and step % every == 0)


def _report_skip(step, nonfinite, skips):
    tensor, index = nonfinite if nonfinite else ("the gradient", "?")
    text = f"step {step + 1} left out: the gradient of {tensor} is not finite at index {index}"
    if skips >= MOST_SKIPS_IN_A_ROW:
        raise RunFailed(f"{text}; {skips} in a row, so the run stops; a lower --lr may help")
    warn(text)


def _resume_line(run, stored, config, step):
    if step >= config.steps:
        return (
            f"{run}: all {step:,} steps are done; to go on: "
            f"flatstep train --resume {shlex.quote(str(run))} --steps {2 * step}"
        )
    text = f"resuming {run} at step {step:,} of {config.steps:,}"
    if config.steps != stored.steps:
        text += f" (raised from {stored.steps:,}; {config.schedule} now runs over all of them)"
    return text


def _first_screen(trainer, run):
    """What is about to happen, in aligned lines."""
    config, corpus, info = trainer.config, trainer.corpus, flatstep.info()
    source = f"{corpus.documents:,} file{'s' if corpus.documents > 1 else ''}"
    if not corpus.files:
        source = f"Python's standard library, {source}"
    epochs = config.steps * trainer.tokens_per_step / len(corpus.train)
    accumulated = f" x {config.grad_accum}" if config.grad_accum > 1 else ""
    return "\n".join((
        f"device  {config.device}, {info['isa']}, {flatstep.get_num_threads()} threads",
        f"text    {source}, {corpus.size / 1e6:.2f} MB: {len(corpus.train):,} tokens to train, "
        f"{len(corpus.validation):,} to validate ({corpus.split})",
        f"model   {config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, context "
        f"{config.block_size}: {trainer.model.num_params:,} parameters",
        f"steps   {config.steps:,} of {config.batch_size}{accumulated} x {config.block_size} "
        f"tokens ({epochs:.2g} epochs), {config.optimizer}, {config.schedule}, lr {config.lr:g}",
        f"run     {run}",
    ))  # fmt: skip


def _last_screen(trainer, outcome, steps, seconds):
    """How it went, a sample of the trained model, and what to type next."""
    name, rate = shlex.quote(str(outcome.run)), trainer.tokens_per_second()
    lines = [
        f"\ndone    {steps:,} steps in {seconds:.1f} s, {rate:,.0f} tokens/s",
        f"loss    train {outcome.train_loss:.4f}, validation {outcome.val_loss:.4f} nats per byte",
    ]
    # A large model would take minutes. A byte within the context costs a visit of the parameters,
    # each as long as ten operations in a pass; one beyond costs a pass over the whole context.
    size, context = 2 * trainer.model.num_params, trainer.config.block_size
    within = min(context - 4, SAMPLE_OPERATIONS // (10 * size))
    count = min(SAMPLE_BYTES, max(within, SAMPLE_OPERATIONS // (size * context)))
    if count > 0:
        seed = trainer.config.seed
        start = b"\n" if trainer.corpus.files else b"def "  # the library's own text is Python
        text = generate_text(trainer.model, start, count, temperature=0.7, seed=seed)
        lines.append(f"sample  {count} bytes at temperature 0.7\n{text.strip()}\n")
    lines += [
        f"run     {outcome.run}",
        f"        flatstep sample {name} --prompt 'def '",
        f"        flatstep train --resume {name} --steps {2 * trainer.step}",
    ]
    return "\n".join(lines)
