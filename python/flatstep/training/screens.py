"""What a run says before it begins and after it has ended."""

import shlex

import flatstep

from .memory import memory_lines
from .progress import duration
from .samples import TEMPERATURE, draw_sample, on_screen, sample_length

SAMPLE_TOKENS = 400


def first_screen(trainer, run, needed):
    """What is about to happen, in aligned lines. needed: the MemoryNeeded of the run, or None."""
    config, corpus, info = trainer.config, trainer.corpus, flatstep.info()
    source = f"{corpus.documents:,} document{'s' if corpus.documents > 1 else ''}"
    if not corpus.files:
        source = f"Python's standard library, {source}"
    epochs = config.steps * trainer.tokens_per_step / len(corpus.train)
    accumulated = f" x {config.grad_accum}" if config.grad_accum > 1 else ""
    threads = flatstep.get_num_threads()
    lines = [
        f"device  {config.device}, {info['isa']}, {threads} thread{'s' if threads > 1 else ''}",
        f"text    {source}, {corpus.size / 1e6:.2f} MB: {len(corpus.train):,} tokens to train, "
        f"{len(corpus.validation):,} to validate ({corpus.split})",
        f"model   {config.n_layer} layers, {config.n_head} heads, {config.n_embd} wide, context "
        f"{config.block_size}, {config.vocab} vocabulary of {config.vocab_size:,}: "
        f"{trainer.model.num_params:,} parameters",
        f"steps   {config.steps:,} of {config.batch_size}{accumulated} x {config.block_size} "
        f"tokens ({epochs:.2g} epochs), {config.optimizer}, {config.schedule}, lr {config.lr:g}",
    ]
    if needed is not None:
        total, parts = memory_lines(needed, corpus)
        lines += [f"memory  {total}", f"        {parts}"]
    return "\n".join([*lines, f"run     {run}"])


def time_line(trainer, seconds):
    """The estimated time of a run; seconds: None where it was not measured."""
    left = trainer.config.steps - trainer.step
    if seconds is None:
        return "time    to be seen after the first steps"
    rate = left * trainer.tokens_per_step / max(seconds, 1e-9)
    return f"time    about {duration(seconds)} for {left:,} steps, {rate:,.0f} tokens/s"


def resume_line(run, stored, config, trainer):
    """Where a run goes on, or why it does not."""
    name, step = shlex.quote(str(run)), trainer.step
    if trainer.done and step < config.steps:
        return (
            f"{run}: {early_words(trainer)}; to go on: flatstep train --resume {name} --patience 0"
        )
    if trainer.done:
        return (
            f"{run}: all {step:,} steps are done; to go on: "
            f"flatstep train --resume {name} --steps {2 * step}"
        )
    text = f"resuming {run} at step {step:,} of {config.steps:,}"
    if config.steps != stored.steps:
        text += f" (raised from {stored.steps:,}; {config.schedule} now runs over all of them)"
    return text


def early_words(trainer):
    """That and why a run has ended before its last step."""
    since = trainer.since_best
    return (
        f"stopped early after step {trainer.step:,}: no new best in {since} "
        f"validation{'s' if since > 1 else ''}"
    )


def last_screen(trainer, outcome, steps, seconds, stop):
    """How it went, a sample of the trained model, and what to type next. Raises Stopped."""
    name, rate = shlex.quote(str(outcome.run)), trainer.tokens_per_second()
    bits = outcome.val_bits_per_byte
    lines = [
        f"\ndone    {steps:,} step{'s' if steps > 1 else ''} in {duration(seconds)}, "
        f"{rate:,.0f} tokens/s",
        f"loss    train {outcome.train_loss:.4f}, validation {outcome.val_loss:.4f} nats per token"
        + (f" ({bits:.3f} bits per byte)" if bits is not None else ""),
    ]
    if outcome.stopped_early:
        lines.append(f"early   {early_words(trainer)}")
    if trainer.best is not None and trainer.best["step"] != trainer.step:
        lines.append(f"best    {_best_words(trainer, outcome.run)}")
    count = sample_length(trainer, SAMPLE_TOKENS)
    if count > 0:
        text = on_screen(draw_sample(trainer, count, stop), trainer.config.vocab)
        lines.append(f"sample  {count} tokens at temperature {TEMPERATURE}\n{text}\n")
    lines += [
        f"run     {outcome.run}",
        f"        flatstep sample {name}" + ("" if trainer.corpus.files else " --prompt 'def '"),
        f"        flatstep train --resume {name} --steps {2 * trainer.config.steps}"
        + (" --patience 0" if outcome.stopped_early else ""),
    ]
    return "\n".join(lines)


def _best_words(trainer, run):
    best = trainer.best
    folder = run / "checkpoints" / f"step-{best['step']}"
    where = f": {folder}" if folder.is_dir() else ""
    return f"validation {best['val_loss']:.4f} at step {best['step']:,}{where}"
