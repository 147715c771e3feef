"""Tokens in one or several arrays, in memory or memory-mapped, read as one row."""

import numpy as np


class Tokens:
    """A row of tokens over one or more arrays, which are never copied.

    arrays: one-dimensional integer arrays, in order; empty ones are left out.
    """

    def __init__(self, arrays):
        self.arrays = [array for array in arrays if len(array)]
        self._ends = np.cumsum([len(array) for array in self.arrays], dtype=np.int64)

    def __len__(self):
        return int(self._ends[-1]) if self.arrays else 0

    def windows(self, starts, length):
        """The `length` tokens from each of `starts` (int64 [n]) on: int32 [n, length].

        Every window must lie within the row.
        """
        if len(self.arrays) == 1:
            return self.arrays[0][starts[:, None] + np.arange(length)].astype(np.int32)
        found = np.empty((len(starts), length), dtype=np.int32)
        for row, start in zip(found, starts.tolist(), strict=True):
            self._fill(row, start)
        return found

    def _fill(self, row, start):
        """Copies the tokens from `start` on into `row`, across the ends of arrays."""
        number = int(np.searchsorted(self._ends, start, side="right"))
        place = start - (int(self._ends[number - 1]) if number else 0)
        filled = 0
        while filled < len(row):
            part = self.arrays[number][place : place + len(row) - filled]
            row[filled : filled + len(part)] = part
            filled, number, place = filled + len(part), number + 1, 0

    def part(self, first, last):
        """The tokens from `first` up to, without, `last`: Tokens over views."""
        begins = [0, *self._ends[:-1].tolist()]
        return Tokens(
            array[max(0, first - begin) : max(0, last - begin)]
            for array, begin in zip(self.arrays, begins, strict=True)
        )

    def chunks(self, size=1 << 20):
        """Yields the tokens as views of at most `size`, in order."""
        for array in self.arrays:
            for first in range(0, len(array), size):
                yield array[first : first + size]


def as_tokens(tokens):
    """Tokens as they are, or an array as Tokens."""
    return tokens if isinstance(tokens, Tokens) else Tokens([tokens])


class TokenBuffer:
    """An array that grows at its end, without a second copy of it when it is long.

    expected: a guess at its length. Memory that is not written to is not taken.
    """

    def __init__(self, dtype, expected=0):
        self._array = np.empty(max(expected, 1 << 16), dtype)
        self._size = 0

    def append(self, tokens):
        """Adds a one-dimensional array."""
        needed = self._size + len(tokens)
        if needed > len(self._array):
            # realloc: the kernel moves the pages of a long array, not their bytes.
            self._array.resize(max(needed, len(self._array) * 3 // 2), refcheck=False)
        self._array[self._size : needed] = tokens
        self._size = needed

    def extend(self, arrays):
        """Adds each of some arrays."""
        for tokens in arrays:
            self.append(tokens)

    def finish(self):
        """The array, cut to what was added."""
        self._array.resize(self._size, refcheck=False)
        return self._array
