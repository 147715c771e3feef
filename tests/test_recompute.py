"""Recomputation: a layer's forward pass computed again gives the same bits, in less memory."""

import numpy as np
import pytest

import flatstep as fs

BATCH, LENGTH, VOCABULARY = 3, 13, 37


def make_model(layers, dropout, recompute):
    config = fs.GPTConfig(
        vocab_size=VOCABULARY, block_size=17, n_layer=layers, n_head=3, n_embd=24, dropout=dropout
    )
    model = fs.GPT(config, seed=7, recompute=recompute)
    rng = np.random.default_rng(1)
    model.params[...] += (rng.standard_normal(model.num_params) * 0.1).astype(np.float32)
    return model


def make_batch(rng):
    tokens = rng.integers(0, VOCABULARY, (BATCH, LENGTH))
    targets = rng.integers(0, VOCABULARY, (BATCH, LENGTH))
    targets[rng.random(targets.shape) < 0.2] = -100
    return tokens, targets


@pytest.mark.parametrize("layers", (1, 2, 4))
@pytest.mark.parametrize("accumulate", (False, True))
@pytest.mark.parametrize("dropout", (0.0, 0.25))
def test_the_same_bits(rng, dropout, accumulate, layers):
    tokens, targets = make_batch(rng)
    results = set()
    for threads in (1, 2, 3, 4):
        fs.set_num_threads(threads)
        for recompute in (False, True):
            model = make_model(layers, dropout, recompute)
            model.grads[...] = np.linspace(-1, 1, model.num_params)
            losses = [
                model.forward_backward(
                    tokens, targets, step=step, accumulate=accumulate, label_smoothing=0.1
                )
                for step in (4, 5)
            ]
            norm = model.grad_partials.norm
            results.add((*losses, norm, model.grads.tobytes()))
    assert len(results) == 1


def test_it_can_be_switched(rng):
    """Passes of either kind and evaluations take turns in the same workspace."""
    tokens, targets = make_batch(rng)
    model, plain = make_model(3, 0.25, False), make_model(3, 0.25, False)
    for step, recompute in enumerate((True, False, True)):
        model.recompute = recompute
        loss = model.forward_backward(tokens, targets, step=step)
        assert loss == plain.forward_backward(tokens, targets, step=step)
        assert model.grads.tobytes() == plain.grads.tobytes()
        assert model.loss(tokens, targets) == plain.loss(tokens, targets)


def test_a_layer_keeps_its_input_only():
    config = fs.GPTConfig(vocab_size=65, block_size=64, n_layer=3, n_head=2, n_embd=32)
    deeper = fs.GPTConfig(vocab_size=65, block_size=64, n_layer=4, n_head=2, n_embd=32)
    grown = {
        recompute: fs.plan(deeper, 3, recompute=recompute).workspace
        - fs.plan(config, 3, recompute=recompute).workspace
        for recompute in (False, True)
    }
    rows, width, heads = 3 * 64, 32, 2
    assert grown[True] == 4 * rows * width
    # input, two norms with mean and rstd, q, k, v, attention, its log-sum-exp, the stream between,
    # and the feed-forward before and after GELU
    assert grown[False] == 4 * rows * (16 * width + 4 + heads)
