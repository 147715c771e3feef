"""The same weights in Hugging Face's GPT2LMHeadModel, in float64: loss and every gradient."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

import flatstep as fs

# batch, length, width, heads, vocabulary, layers, longest sequence.
SHAPES = {
    "2 layers of 64": (3, 33, 64, 4, 97, 2, 40),
    "124M": (2, 17, 768, 12, 50257, 12, 1024),
}


def make_model(shape, noise):
    _, _, width, heads, vocabulary, layers, block = shape
    model = fs.GPT(fs.GPTConfig(vocabulary, block, layers, heads, width), seed=3)
    rng = np.random.default_rng(0)
    # Fresh biases are 0 and gains 1: noise makes every one matter.
    model.params += rng.standard_normal(model.num_params, np.float32) * np.float32(noise)
    return model


def make_reference(model):
    config = model.config
    shape = {name: getattr(config, name) for name in ("vocab_size", "n_layer", "n_head", "n_embd")}
    dropouts = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    reference = GPT2LMHeadModel(GPT2Config(n_positions=config.block_size, **shape, **dropouts))
    parameters = dict(reference.double().named_parameters())
    assert set(parameters) == set(model.layout.names)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(torch.from_numpy(model[name]))
    return reference, parameters


@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_every_gradient(rng, shape):
    shape = SHAPES[shape]
    batch, length, _, _, vocabulary, _, _ = shape
    model = make_model(shape, noise=0.02)
    ids = rng.integers(0, vocabulary, (batch, length + 1))
    tokens, targets = ids[:, :-1], ids[:, 1:].copy()
    targets[0, 3:9] = -100
    loss = model.forward_backward(np.ascontiguousarray(tokens), targets)

    reference, parameters = make_reference(model)
    logits = reference(torch.from_numpy(np.ascontiguousarray(tokens))).logits
    wanted = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), torch.from_numpy(targets).flatten()
    )
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    for name, gradient in model.layout.views(model.grads).items():
        expected = parameters[name].grad.numpy()
        error = np.abs(gradient - expected).max()
        assert error <= 1e-4 * np.abs(expected).max(), (name, error)


def test_the_losses_of_the_library_itself(rng):
    """Its own loss shifts the labels: that of our targets one to the left."""
    shape = SHAPES["2 layers of 64"]
    model = make_model(shape, noise=0.05)
    reference, _ = make_reference(model)
    ids = rng.integers(0, shape[4], (4, 30))
    wanted = reference(torch.from_numpy(ids), labels=torch.from_numpy(ids)).loss.item()
    loss = model.loss(np.ascontiguousarray(ids[:, :-1]), np.ascontiguousarray(ids[:, 1:]))
    assert loss == pytest.approx(wanted, rel=1e-5)
