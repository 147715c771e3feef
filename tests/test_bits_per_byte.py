"""Losses over windows, and as bits a byte of text."""

import math

import numpy as np
import pytest

import flatstep as fs
from flatstep.data.batches import Batches, evaluation_batches
from flatstep.training.evaluation import bits_per_byte, evaluate


def test_bits_per_byte_of_known_losses():
    # 8 tokens at ln 256 nats each, which stand for 16 bytes: 8 bits a token, 4 a byte.
    assert bits_per_byte(8 * math.log(256), 16) == pytest.approx(4.0)
    assert bits_per_byte(1.0, 0) == math.inf


@pytest.fixture
def model():
    return fs.GPT(fs.GPTConfig(vocab_size=12, block_size=8, n_layer=1, n_head=2, n_embd=8), seed=1)


def test_every_predicted_token_counts_once(model, rng):
    tokens = rng.integers(0, 12, 500)
    lengths = np.array([0, 1, 2, 3, 1, 1, 1, 4, 5, 6, 7, 9])

    def windows(batch_size):
        return evaluation_batches(tokens, block_size=8, batch_size=batch_size, max_tokens=0)

    found = evaluate(model, windows(5), lengths)
    # Windows of 8 tokens follow each other: the first token is never predicted.
    assert found.tokens == 62 * 8
    assert found.bytes == lengths[tokens[1 : 62 * 8 + 1]].sum()
    again = evaluate(model, windows(7), lengths)
    assert (again.bytes, again.tokens) == (found.bytes, found.tokens)
    inputs, targets = next(iter(windows(62)))
    assert found.loss == pytest.approx(model.loss(inputs, targets), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert found.bits_per_byte == pytest.approx(found.loss * 496 / math.log(2) / found.bytes)
    assert evaluate(model, windows(5)).bits_per_byte is None


def test_limited_windows_are_some_of_all():
    tokens = np.arange(1001)
    every = [inputs for inputs, _ in evaluation_batches(tokens, block_size=10, batch_size=9,
                                                        max_tokens=0)]  # fmt: skip
    assert np.concatenate(every).ravel().tolist() == list(range(1000))
    [(some, _)] = evaluation_batches(tokens, block_size=10, batch_size=99, max_tokens=50)
    assert some[:, 0].tolist() == [0, 200, 400, 600, 800]


def test_the_order_of_windows_is_the_one_of_stored_runs():
    """A run that was stopped under an older version must see the same windows."""
    batches = Batches(np.arange(10_000), block_size=64, batch_size=6, seed=1234)
    assert batches.starts(0).tolist() == [7457, 8481, 417, 3297, 7585, 225]
    assert batches.starts(1000).tolist() == [7151, 2223, 2991, 8303, 751, 2031]
