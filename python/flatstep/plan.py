"""The memory of a training run, to the byte, before anything is allocated."""

from dataclasses import asdict, dataclass, replace

from . import _checks, _core
from ._segments import BLOCK
from .gpt_config import GPTConfig

_MOMENTS = {"adamw": 2, "adam": 2, "sgd": 1}
_STATES = {"full": "full", "8bit": "8bit"}
_LARGEST_BATCH = 2**31 - 1
# The loss works on as many rows as 64 MB hold, or on 16 (csrc/gpt/workspace.cpp).
_HEAD, _HEAD_ROWS = 64 << 20, 16
_HALF_GRADS = 8 << 20  # there, too


@dataclass(frozen=True)
class Plan:
    """Bytes of the arrays of a training step.

    Attributes:
        config, batch, length, optimizer, optimizer_state, momentum, recompute: as planned.
        params, grads: one float32 an element each.
        optimizer_bytes: the moments, with the scales of 8-bit ones.
        norm: the sums of squares that clipping takes, the model's and the optimizer's.
        batch_bytes: int64 tokens and targets, as the caller makes them.
        tokens: the checked copies of them.
        activations: what the forward pass keeps for the backward pass.
        buffers: logits, gradients of activations and of half a small batch, scratch.
        workspace: tokens, activations and buffers together.
        total: all of it. Python, its libraries (some 30 MB) and the text come on top.
    """

    config: GPTConfig
    batch: int
    length: int
    optimizer: str
    optimizer_state: str
    momentum: bool
    recompute: bool
    params: int
    grads: int
    optimizer_bytes: int
    norm: int
    batch_bytes: int
    tokens: int
    activations: int
    buffers: int

    @property
    def workspace(self):
        return self.tokens + self.activations + self.buffers

    @property
    def parts(self):
        """``{name: bytes}``, whose sum is ``total``."""
        names = ("params", "grads", "optimizer_bytes", "norm", "batch_bytes")
        names += ("tokens", "activations", "buffers")
        return {name: getattr(self, name) for name in names}

    @property
    def total(self):
        return sum(self.parts.values())

    def with_batch(self, batch):
        """The plan of the same run with another number of sequences in a batch."""
        return self._with_batch(_core.Gpt(**asdict(self.config)), batch)

    def _with_batch(self, core, batch):
        memory = core.memory(batch, self.length, self.recompute)
        parts = {name: memory[name] for name in ("tokens", "activations", "buffers")}
        return replace(self, batch=batch, batch_bytes=16 * batch * self.length, **parts)

    def largest_batch(self, available):
        """The largest number of sequences in a batch whose total fits in ``available`` bytes,
        0 if none does."""
        core = _core.Gpt(**asdict(self.config))  # once: a deep model takes a while to lay out

        def total(batch):
            return self._with_batch(core, batch).total

        # The total grows with the batch, but for two things. The head takes its rows in equal
        # parts: one part more, and each is smaller. An even batch of a small model has gradients of
        # each half. What they take at most, another batch can save.
        saved = max(_HEAD, self._with_batch(core, -(-_HEAD_ROWS // self.length)).buffers)
        saved += min(self.grads, _HALF_GRADS)
        batch = _last(_LARGEST_BATCH, lambda batch: total(batch) <= available + saved)
        while batch and total(batch) > available:
            batch -= 1
        return batch


def _last(most, holds):
    """The last number up to `most` for which holds(number) is true, as for all before; or 0."""
    last, above = 0, 1
    while above <= most and holds(above):
        last, above = above, 2 * above
    above = min(above, most + 1)
    while above - last > 1:
        middle = (last + above) // 2
        last, above = (middle, above) if holds(middle) else (last, middle)
    return last


def plan(
    config,
    batch,
    length=None,
    *,
    optimizer="adamw",
    optimizer_state="full",
    momentum=True,
    recompute=False,
):
    """The bytes that training takes; nothing is allocated.

    Args:
        config: a :class:`flatstep.GPTConfig`.
        batch, length: of the batches ``[batch, length]``; None is ``block_size``.
        optimizer: ``"adamw"``, ``"adam"`` or ``"sgd"``, over the model's flat float32 parameters.
        optimizer_state: ``"full"`` or ``"8bit"``.
        momentum: whether SGD has any; without, it keeps nothing.
        recompute: as in :class:`flatstep.GPT`.

    Returns:
        A :class:`Plan`. The workspace's scratch depends on the number of threads.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.

    >>> small = plan(GPTConfig(n_layer=2, n_head=2, n_embd=64), 8, 32)
    >>> small.params == small.grads == small.optimizer_bytes // 2
    True
    """
    if not isinstance(config, GPTConfig):
        raise TypeError(f"config: got {type(config).__name__}, expected a GPTConfig")
    batch = _checks.integer(batch, "batch")
    length = config.block_size if length is None else _checks.integer(length, "length")
    if batch < 1:
        raise ValueError(f"batch: got {batch}, expected a number >= 1")
    if not 1 <= length <= config.block_size:
        raise ValueError(
            f"length: got {length}, expected a number from 1 to block_size {config.block_size}"
        )
    moments = _checks.choice(optimizer, _MOMENTS, "optimizer")
    state = _checks.choice(optimizer_state, _STATES, "optimizer_state")
    if optimizer == "sgd" and not momentum:
        moments = 0
    core = _core.Gpt(**asdict(config))
    sizes = [entry.size for entry in core.layout.entries]
    memory = core.memory(batch, length, bool(recompute))
    return Plan(
        config=config,
        batch=batch,
        length=length,
        optimizer=optimizer,
        optimizer_state=optimizer_state,
        momentum=bool(momentum),
        recompute=bool(recompute),
        params=memory["params"],
        grads=memory["grads"],
        optimizer_bytes=moments * sum(map(_moment_bytes(state), sizes)),
        norm=2 * 8 * sum(-(-size // _core.norm_chunk()) for size in sizes),
        batch_bytes=16 * batch * length,
        tokens=memory["tokens"],
        activations=memory["activations"],
        buffers=memory["buffers"],
    )


def _moment_bytes(state):
    """Bytes of one moment of a tensor of so many elements."""
    if state == "full":
        return lambda size: 4 * size
    return lambda size: size + 2 * -(-size // BLOCK)
