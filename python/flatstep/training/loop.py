"""A training run: from its first step, or on from a checkpoint, to its last.

What a step computes depends only on the configuration, the text and the number of the step, so
a run that was stopped and resumed ends with the same bits as one that was not.
"""

import dataclasses
import shlex
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import flatstep

from ..data.corpus import load_corpus
from ..errors import InputError
from .checkpoint import list_checkpoints
from .config import make_config
from .estimate import estimate_seconds
from .initial import fill_again, load_initial
from .loggers import require_logger
from .memory import require_memory
from .options import TrainConfig, option_name
from .parts import model_shape
from .progress import Stopped, StopSignals, warn
from .run_folder import (
    check_run_folder,
    config_text,
    create_run_folder,
    only_process,
    read_config,
    read_vocabulary,
    refuse_checkpoint,
    write_config,
    write_vocabulary,
)  # fmt: skip
from .screens import first_screen, last_screen, resume_line, time_line
from .steps import do_steps
from .trainer import Trainer

MAY_DIFFER_ON_RESUME = {f.name for f in dataclasses.fields(TrainConfig) if f.metadata.get("free")}


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    step: steps done. train_loss, val_loss: nats a token over fixed windows, without dropout;
    None if a signal stopped the run. val_bits_per_byte: val_loss in bits a byte of text; None for
    token numbers, too. signal: that one, or None. stopped_early: --patience was at its end. best:
    {"step", "val_loss"} of the best validation, or None.
    """

    run: Path
    step: int
    train_loss: float | None = None
    val_loss: float | None = None
    val_bits_per_byte: float | None = None
    signal: int | None = None
    stopped_early: bool = False
    best: dict | None = None


def start(given, files=(), *, out=None, quiet=False, val_files=()):
    """Trains a new run and returns its Outcome.

    given: {field of TrainConfig: value}; the rest takes its default.
    files: text files, folders, .jsonl and .bin files or a prepared folder; none for Python's
    standard library. val_files: files of the validation text; none takes a part of `files`.
    out: the run folder, new or empty; None takes the next number in runs/.
    quiet: show warnings only.
    Raises InputError before anything is written, RunFailed after.
    """
    check_run_folder(out)  # before the work
    trainer, needed, weights = _new_trainer(given, files, val_files)
    run = create_run_folder(out)
    with only_process(run):
        write_vocabulary(run, trainer.corpus.vocabulary)
        write_config(run, trainer.config, _data_entries(trainer.corpus))
        if trainer.config.init_from:
            # From now on the run needs the other folder no more.
            trainer.save(run, files=_stored_beside(trainer))
        return _train(trainer, run, needed, quiet, weights)


def _new_trainer(given, files, val_files):
    """(Trainer at step 0, MemoryNeeded, [a line of the first screen] with --init-from, else [])."""
    initial = load_initial(given)
    config = make_config(given | initial.options)
    require_logger(config.log)
    corpus = _load(config, files, val_files, initial.vocabulary_for(files, config))
    config = _with_vocabulary(config, corpus.vocabulary)
    trainer, needed = _make_trainer(config, corpus, freed=initial.bytes)
    initial.fill(trainer.model)
    return trainer, needed, initial.lines(trainer.model)


def resume(run, given=None, files=(), *, quiet=False, val_files=()):
    """Goes on with a run from its newest whole checkpoint and returns its Outcome.

    A run that was killed before its first checkpoint begins again at step 0.
    run: its folder. given: options; `steps` may be raised and those that do not change what a step
    computes may differ, any other must agree with the run. files, val_files: where the text is now,
    if it has moved.
    Raises InputError if an option, the text or the checkpoints do not fit; RunFailed as `start`.
    """
    run = Path(run)
    refuse_checkpoint(run, "--init-from begins a new run with it, --resume goes on with its run")
    read_config(run)  # before the folder is opened
    with only_process(run):
        return _resume(run, given or {}, files, quiet, val_files)


def _resume(run, given, files, quiet, val_files):
    stored, entries = read_config(run)
    config = _resumed_config(stored, given)
    require_logger(config.log)
    vocabulary = read_vocabulary(run, config)
    corpus = load_stored(run, config, entries, vocabulary, files, val_files)
    config = _with_vocabulary(config, vocabulary)
    trainer, needed = _make_trainer(config, corpus, resuming=True)
    if list_checkpoints(run):
        trainer.restore(run, warn)
    else:
        fill_again(run, trainer)
    if not quiet:
        print(resume_line(run, stored, config, trainer), flush=True)
    if trainer.done:
        early = trainer.step < config.steps
        return Outcome(run, trainer.step, stopped_early=early, best=trainer.best)
    write_config(run, config, _data_entries(corpus))
    return _train(trainer, run, needed, quiet)


def _make_trainer(config, corpus, **memory):
    """(Trainer, MemoryNeeded), once it is known that the memory is there.

    memory: keyword arguments of require_memory.
    """
    needed = require_memory(config, model_shape(config, corpus.vocabulary.size), **memory)
    return Trainer(config, corpus), needed


def _load(config, files, val_files=(), vocabulary=None):
    if config.threads:
        flatstep.set_num_threads(config.threads)
    return load_corpus(files, config, vocabulary, val_files)


def load_stored(run, config, entries, vocabulary, files=(), val_files=()):
    """The Corpus that a run began with.

    config, entries: of its config.toml. files, val_files: where the text is now, if it has moved.
    Raises InputError if it is another text.
    """
    corpus = _load(
        config,
        files or _stored_files(run, entries, "data_files"),
        val_files or _stored_files(run, {"val_files": []} | entries, "val_files"),
        vocabulary,
    )
    _compare_data(run, corpus, entries)
    return corpus


def _with_vocabulary(config, vocabulary):
    return dataclasses.replace(config, vocab=vocabulary.kind, vocab_size=vocabulary.size)


def _data_entries(corpus):
    return {
        "data_bytes": corpus.size,
        "data_sha256": corpus.sha256,
        "flatstep_version": flatstep.__version__,
        "data_files": corpus.files,
        "val_files": corpus.val_files,
    }


def _stored_beside(trainer):
    """What a checkpoint holds besides the training state, so that it can stand alone."""
    corpus = trainer.corpus
    config = {"config.toml": config_text(trainer.config, _data_entries(corpus))}
    return config | corpus.vocabulary.files()


def _stored_files(run, entries, key):
    files = entries.get(key)
    if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
        raise InputError(f"{run}/config.toml: {key} must be a list of file names")
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


def _train(trainer, run, needed, quiet, before=()):
    """From where the trainer stands to the end of the run, or to a signal.

    before: lines to be shown above the first screen.
    """
    began, first_step = time.perf_counter(), trainer.step
    with StopSignals() as stop:
        try:
            if not quiet:
                print(*before, first_screen(trainer, run, needed), sep="\n", flush=True)
                print(time_line(trainer, estimate_seconds(trainer, stop)), flush=True)
            validation = do_steps(trainer, run, _stored_beside(trainer), quiet, stop)
            outcome = _outcome(trainer, run, validation, stop)
            if not quiet:
                seconds = time.perf_counter() - began
                steps = trainer.step - first_step
                print(last_screen(trainer, outcome, steps, seconds, stop), flush=True)
        except Stopped:
            return _stopped(trainer, run, stop.received)
    return outcome


def _outcome(trainer, run, validation, stop):
    return Outcome(
        run,
        trainer.step,
        trainer.evaluate(trainer.corpus.train, stop).loss,
        validation.loss,
        validation.bits_per_byte,
        stopped_early=trainer.step < trainer.config.steps,
        best=trainer.best,
    )


def _stopped(trainer, run, number):
    at = f"after step {trainer.step}" if trainer.step else "before the first step"
    print(
        f"flatstep: stopped by {signal.Signals(number).name} {at}; go on with: "
        f"flatstep train --resume {shlex.quote(str(run))}",
        file=sys.stderr,
    )
    return Outcome(run, trainer.step, signal=number, best=trainer.best)
