"""Which window of text comes when: batches as a pure function of (seed, batch number).

A resumed run therefore needs no saved sampler state. Every epoch visits each window once, in an
order given by a keyed permutation of the window numbers that needs no table.
"""

import math

import numpy as np

from ..errors import InputError
from .tokens import as_tokens

_GOLDEN = 0x9E3779B97F4A7C15  # splitmix64: Steele, Lea and Flood, OOPSLA 2014
_MIX = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], dtype=np.uint64)
_SHIFT = np.array([30, 27, 31], dtype=np.uint64)
_ROUNDS = 8
_BATCHES_AT_ONCE = 64
_ROUND_KEYS = np.array([k * _GOLDEN % 2**64 for k in range(1, _ROUNDS + 1)], dtype=np.uint64)


def _mix(x):
    x = (x ^ (x >> _SHIFT[0])) * _MIX[0]
    x = (x ^ (x >> _SHIFT[1])) * _MIX[1]
    return x ^ (x >> _SHIFT[2])


def permute(index, count, key):
    """Where each index lands in a keyed permutation of range(count).

    index: uint64 array, each below count. key: uint64 array that broadcasts with index; each
    key gives a permutation of its own. Returns a uint64 array.

    A Feistel network over a rows x columns rectangle of at least `count` cells; a value that
    falls outside is sent through again, which ends because the network is a permutation
    (cycle walking: Black and Rogaway, 2002).
    """
    rows = math.isqrt(count - 1) + 1 if count > 1 else 1
    columns = -(-count // rows)
    value = _feistel(index, rows, columns, key)
    while (outside := value >= np.uint64(count)).any():
        value = np.where(outside, _feistel(value, rows, columns, key), value)
    return value


def _feistel(value, rows, columns, key):
    rows, columns = np.uint64(rows), np.uint64(columns)
    high, low = np.divmod(value, columns)
    for k in range(0, _ROUNDS, 2):
        high = (high + _mix(low + key + _ROUND_KEYS[k]) % rows) % rows
        low = (low + _mix(high + key + _ROUND_KEYS[k + 1]) % columns) % columns
    return high * columns + low


class Batches:
    """Training batches as a pure function of the batch number.

    tokens: Tokens, or one integer array, of more than block_size tokens.
    An epoch visits each of `windows_per_epoch` non-overlapping windows once; the windows begin
    at another phase in each epoch, so that the cuts fall elsewhere.
    """

    def __init__(self, tokens, *, block_size, batch_size, seed):
        if len(tokens) <= block_size:
            raise InputError(f"{len(tokens)} tokens: more than block_size {block_size} are needed")
        self.tokens = as_tokens(tokens)
        self.block_size = block_size
        self.batch_size = batch_size
        # One window fewer than fits at phase 0, so that every epoch has the same number.
        self.windows_per_epoch = max(1, (len(tokens) - block_size) // block_size)
        self._phases = min(block_size, len(tokens) - block_size * self.windows_per_epoch)
        self._seed_key = _mix(np.array([seed], dtype=np.uint64) + np.uint64(_GOLDEN))
        self._chunk, self._chunk_starts = None, None

    def starts(self, number):
        """First token of each window of batch `number` (from 0): int64 [batch_size]."""
        # Some batches at once: a permutation costs NumPy about the same for 12 or 700 windows.
        chunk, row = divmod(number, _BATCHES_AT_ONCE)
        if chunk != self._chunk:
            size = _BATCHES_AT_ONCE * self.batch_size
            place = np.array([chunk * size], dtype=np.uint64) + np.arange(size, dtype=np.uint64)
            self._chunk, self._chunk_starts = chunk, self._window_starts(place)
        return self._chunk_starts[row * self.batch_size : (row + 1) * self.batch_size]

    def _window_starts(self, place):
        """First token of the windows at `place` (uint64) in the endless stream of epochs."""
        epoch, place = np.divmod(place, np.uint64(self.windows_per_epoch))
        key = _mix(self._seed_key + epoch)
        phase = _mix(key) % np.uint64(self._phases)
        window = permute(place, self.windows_per_epoch, key)
        return (phase + window * np.uint64(self.block_size)).astype(np.int64)

    def batch(self, number):
        """(tokens, targets) of batch `number`: int32 [batch_size, block_size] each.

        The targets are the tokens one place on.
        """
        return windows_at(self.tokens, self.starts(number), self.block_size)


def windows_at(tokens, starts, block_size):
    """(inputs, targets) of the windows beginning at `starts`: int32 [n, block_size], contiguous."""
    window = tokens.windows(starts, block_size + 1)
    return np.ascontiguousarray(window[:, :-1]), np.ascontiguousarray(window[:, 1:])


def evaluation_batches(tokens, *, block_size, batch_size, max_tokens=32_768):
    """Yields (tokens, targets) batches of a fixed set of windows spread evenly over `tokens`.

    The set does not depend on seed or batch_size and holds about max_tokens tokens at most, so
    that losses of different runs over the same text can be compared; 0 takes all windows.
    """
    tokens = as_tokens(tokens)
    fitting = (len(tokens) - 1) // block_size
    count = min(fitting, max(1, max_tokens // block_size)) if max_tokens else fitting
    starts = np.arange(count, dtype=np.int64) * fitting // count * block_size
    for first in range(0, count, batch_size):
        yield windows_at(tokens, starts[first : first + batch_size], block_size)
