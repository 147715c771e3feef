"""How well a model predicts text: mean loss, and bits per byte, whatever the vocabulary."""

import math
from typing import NamedTuple

import numpy as np

from ..errors import InputError

IGNORED = -100  # flatstep.GPT.loss leaves such a target out


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

    Targets that are IGNORED do not count. byte_lengths: of the vocabulary, int64 [size].
    """
    nats, tokens, size = 0.0, 0, 0
    for inputs, targets in batches:
        counted = targets[targets != IGNORED]
        nats += model.loss(inputs, targets) * counted.size
        tokens += counted.size
        if byte_lengths is not None:
            size += int(byte_lengths[counted].sum())
    return Evaluation(nats, tokens, None if byte_lengths is None else size)


def bits_per_byte(nats, size):
    """A sum of losses in nats as bits a byte of the `size` bytes that were predicted."""
    return nats / math.log(2) / size if size else math.inf


class TextBatches:
    """All of a text as (inputs, targets) batches of windows, in which each token but the first is
    a target once: its later occurrences are IGNORED.

    tokens: Tokens of flatstep.data, 2 at least. length: inputs of a window, fewer in the last one.
    stride: tokens from one window to the next. Less than `length` gives each target
    length - stride tokens before it at least, but for those at the beginning (the sliding window of
    Hugging Face's guide to perplexity).
    len() is the number of batches. Raises InputError.
    """

    def __init__(self, tokens, *, length, stride, batch_size):
        if len(tokens) < 2:
            raise InputError(f"the text has {len(tokens)} tokens: 2 are needed at least")
        if not 1 <= stride <= length:
            raise InputError(
                f"--stride must be from 1 to {length}, the model's context, got {stride}"
            )
        self._tokens = tokens
        self._batches = list(window_batches(len(tokens), length, stride, batch_size))

    def __len__(self):
        return len(self._batches)

    def __iter__(self):
        for starts, inputs, new in self._batches:
            window = self._tokens.windows(starts, inputs + 1)
            targets = window[:, 1:].copy()
            targets[:, : inputs - new] = IGNORED
            yield np.ascontiguousarray(window[:, :-1]), targets


def window_batches(count, length, stride, batch_size):
    """Yields (starts, inputs, new) of windows that predict tokens 1 to count - 1, each once.

    starts: int64 array of up to batch_size places; inputs: tokens of each window that are read;
    new: how many of the tokens that they predict, the last ones, no earlier window has predicted.
    """
    whole = max(0, (count - 1 - length) // stride + 1)  # windows with all their inputs
    starts = np.arange(whole, dtype=np.int64) * stride
    split = len(starts) if stride == length else 1
    for group, new in ((starts[:split], length), (starts[split:], stride)):
        for first in range(0, len(group), batch_size):
            yield group[first : first + batch_size], length, new
    done = 1 + (int(starts[-1]) + length if whole else 0)
    if done < count:
        start = whole * stride
        yield np.array([start], dtype=np.int64), count - 1 - start, count - done
