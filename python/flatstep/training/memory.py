"""Whether a run fits in memory, asked before it is taken."""

import mmap
from dataclasses import dataclass, replace

import numpy as np

import flatstep

from .._memory import available_memory
from ..errors import InputError

# The parts of a plan in words, in the order of Plan.parts.
WORDS = {
    "params": "parameters",
    "grads": "gradients",
    "optimizer_bytes": "optimizer's state",
    "norm": "sums for the norm",
    "batch_bytes": "a batch of tokens and targets",
    "tokens": "checked copies of them",
    "activations": "activations",
    "buffers": "logits and scratch",
}


def plan_run(config, shape):
    """The flatstep.Plan of a TrainConfig and the GPTConfig that it leads to. Raises InputError if
    no machine could count its bytes."""
    try:
        return flatstep.plan(
            shape,
            config.batch_size,
            optimizer=config.optimizer,
            optimizer_state=config.optimizer_state,
            momentum=config.beta1 > 0,
            recompute=config.recompute,
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"no such model: {error}") from error


@dataclass(frozen=True)
class MemoryNeeded:
    """The plan of a run, and the bytes that were available before it was taken (None: unknown)."""

    plan: flatstep.Plan
    available: int | None


def require_memory(config, shape, *, resuming=False, freed=0):
    """The MemoryNeeded of a run on the CPU, which fits; None on another device, which has no plan.

    The text is in memory already. resuming: only what may change on resume is proposed. freed:
    bytes that are held now, and no longer when the run takes most.
    Raises InputError with what is needed, what there is, and what would fit.
    """
    if config.device != "cpu":
        return None
    available = available_memory()
    if available is not None:
        available += freed
    needed = MemoryNeeded(plan_run(config, shape), available)
    if needed.available is None or needed.plan.total <= needed.available:
        return needed
    advice = _resume_advice if resuming else _advice
    raise InputError(
        f"the run takes {bytes_in_words(needed.plan.total)} with --batch-size "
        f"{config.batch_size}, and {bytes_in_words(available)} are available; "
        f"{advice(config, shape, available)}"
    )


def bytes_in_words(count):
    """Bytes to the last one, and in GB."""
    return f"{count:,} bytes ({count / 1e9:.2f} GB)"


def _advice(config, shape, available):
    """The mildest change that helps, with the largest batch that it allows."""
    changes = {
        "": {},
        "with --recompute ": {"recompute": True},
        "with --recompute --optimizer-state 8bit ": {"recompute": True, "optimizer_state": "8bit"},
    }
    for words, change in changes.items():
        batch = plan_run(replace(config, **change), shape).largest_batch(available)
        if batch:
            return f"{words}the largest batch that fits is --batch-size {batch}"
    return "no batch fits, whatever the options: a smaller model is needed"


def _resume_advice(config, shape, available):
    # The batch is a part of what the run computes; how its activations come about is not.
    less = plan_run(replace(config, recompute=True), shape).total
    if less <= available:
        return "with --recompute it fits"
    more = "" if config.recompute else " and add --recompute"
    return f"free {bytes_in_words(less - available)}{more}"


def text_bytes(corpus):
    """Bytes of memory that the tokens of a corpus hold; files mapped into memory count as none."""
    return _held_bytes(corpus.train) + _held_bytes(corpus.validation)


def _held_bytes(tokens):
    return sum(array.nbytes for array in tokens.arrays if not _is_mapped(array))


def _is_mapped(array):
    while isinstance(array, np.ndarray):
        array = array.base
    return isinstance(getattr(array, "obj", array), mmap.mmap)


def memory_lines(needed, corpus):
    """What the run takes to the byte, in two lines for the first screen."""
    plan, text = needed.plan, text_bytes(corpus)
    parts = {
        "model and gradients": plan.params + plan.grads,
        "optimizer": plan.optimizer_bytes,
        "activations": plan.activations,
        "batch and scratch": plan.norm + plan.batch_bytes + plan.tokens + plan.buffers,
        "text": text,
    }
    total = f"{sum(parts.values()):,} bytes"
    if needed.available is not None:
        total += f" of {needed.available + text:,} to be had"
    return [total, ", ".join(f"{name} {size:,}" for name, size in parts.items())]
