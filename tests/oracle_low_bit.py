"""Stochastic rounding and 8-bit moments in plain NumPy, bit for bit, as flatstep/optim.h and
core/rounding.h state them. Nothing here imports flatstep."""

import numpy as np
import oracle

BLOCK = 128  # elements that share a scale
CODES = {True: 127, False: 255}  # of the first moment, which has a sign, and of the second
LARGEST_STEPS = 0x7F7FFFFF >> 20
DOMAIN = 0x726F756E64696E67


def rounding_bits(seed, step, tensor, size):
    """16 bits for each element: Philox4x32-7 of (counter, tensor, step)."""
    index = np.arange(size, dtype=np.uint64)
    block, place = index // BLOCK, index % BLOCK
    counter = block * 16 + place % 16
    key, high = seed ^ DOMAIN, (step >> 32) & 0xFFFF
    words = oracle.philox(
        (
            counter & 0xFFFFFFFF,
            np.full(size, tensor, np.uint64),
            np.full(size, step & 0xFFFFFFFF, np.uint64),
            ((counter >> 32 & 0xFFFF) << 16) | high,
        ),
        (key & 0xFFFFFFFF, key >> 32),
        rounds=7,
    )
    word = np.choose((place // 16 % 4).astype(int), words)
    return np.where(place < 64, word & 0xFFFF, word >> 16).astype(np.uint32)


def round_to_bfloat16(values, bits):
    """Bit patterns: 16 random bits are added below the ones that stay."""
    return ((values.view(np.uint32) + bits) >> 16).astype(np.uint16)


def blocks(array):
    """Rows of a block each, padded with zeros."""
    padded = np.zeros(-(-array.size // BLOCK) * BLOCK, array.dtype)
    padded[: array.size] = array
    return padded.reshape(-1, BLOCK)


def decode(codes, scales, signed):
    steps = codes.astype(np.uint32)
    sign, steps = (steps >> 7, steps & 127) if signed else (0 * steps, steps)
    bits = (steps + np.repeat(scales.astype(np.uint32), BLOCK)[: codes.size]) << 20
    if signed:
        bits = np.where(steps == 0, 0, bits).astype(np.uint32) | sign << 31
    return bits.astype(np.uint32).view(np.float32)


def encode(moment, random, signed):
    """(codes, scales): steps of an eighth of a power of two below the block's largest number."""
    bits = moment.view(np.uint32)
    magnitude = bits & 0x7FFFFFFF
    largest = blocks(magnitude).max(axis=1) >> 20
    top = np.minimum(largest + 1, LARGEST_STEPS).astype(np.int64)
    scales = np.maximum(top - CODES[signed], 0)
    lowest = np.repeat(scales, BLOCK)[: moment.size]
    steps = (magnitude.astype(np.int64) + (random.astype(np.int64) << 4)) >> 20
    codes = np.clip(steps - lowest, 0, CODES[signed]).astype(np.uint8)
    if signed:
        codes |= (bits >> 31 << 7).astype(np.uint8)
    return codes, scales.astype(np.uint16)


class LowBitAdam:
    """Adam or AdamW with 8-bit moments; `moments` holds (codes, scales) of both."""

    def __init__(self, size, *, seed=0, tensor=0, lr, eps, **options):
        self.seed, self.tensor, self.step_number = seed, tensor, 0
        self.lr, self.eps, self.options = lr, eps, options
        count = -(-size // BLOCK)
        zero = (np.zeros(size, np.uint8), np.zeros(count, np.uint16))
        self.moments = [zero, zero]

    def step(self, p, g):
        """The new parameters."""
        self.step_number += 1
        m, v = (decode(*self.moments[i], signed=i == 0) for i in range(2))
        m, v = oracle.adam_moment_bits(p, g, m, v, **self.options)
        random = rounding_bits(self.seed, self.step_number, self.tensor, p.size)
        self.moments = [encode(m, random, True), encode(v, random, False)]
        return oracle.adam_param_bits(
            p, m, v, self.step_number, lr=self.lr, eps=self.eps, short=True, **self.options
        )


class LowBitMomentum:
    """SGD with an 8-bit momentum buffer."""

    def __init__(self, size, *, seed=0, tensor=0, **options):
        self.seed, self.tensor, self.step_number, self.options = seed, tensor, 0, options
        self.moments = [(np.zeros(size, np.uint8), np.zeros(-(-size // BLOCK), np.uint16))]

    def step(self, p, g):
        self.step_number += 1
        buffer = decode(*self.moments[0], signed=True)
        p, buffer = oracle.sgd_bits(p, g, buffer, self.step_number, mode="native", **self.options)
        random = rounding_bits(self.seed, self.step_number, self.tensor, p.size)
        self.moments = [encode(buffer, random, True)]
        return p
