"""How well a model predicts text: mean loss, and bits per byte, whatever the vocabulary."""

import math
from typing import NamedTuple


class Evaluation(NamedTuple):
    """What a pass over some batches found.

    nats: sum of the losses. tokens: how many were predicted. bytes: of text that these stand for;
    None where the vocabulary does not tell.
    """

    nats: float
    tokens: int
    bytes: int | None

    @property
    def loss(self):
        """Nats a token."""
        return self.nats / self.tokens

    @property
    def perplexity(self):
        """exp of the loss."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self):
        """Bits a byte of text, or None."""
        return None if self.bytes is None else bits_per_byte(self.nats, self.bytes)


def evaluate(model, batches, byte_lengths=None):
    """The Evaluation of a flatstep.GPT, without dropout, over (tokens, targets) batches.

    byte_lengths: of the vocabulary, int64 [size].
    """
    nats, tokens, size = 0.0, 0, 0
    for inputs, targets in batches:
        nats += model.loss(inputs, targets) * targets.size
        tokens += targets.size
        if byte_lengths is not None:
            size += int(byte_lengths[targets].sum())
    return Evaluation(nats, tokens, None if byte_lengths is None else size)


def bits_per_byte(nats, size):
    """A sum of losses in nats as bits a byte of the `size` bytes that were predicted."""
    return nats / math.log(2) / size if size else math.inf


def predicted_bytes(batches, byte_lengths):
    """(bytes of text, number) of the targets in batches."""
    size, count = 0, 0
    for _, targets in batches:
        size += int(byte_lengths[targets].sum())
        count += targets.size
    return size, count
