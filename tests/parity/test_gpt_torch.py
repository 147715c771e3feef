"""The Transformer against one written with torch.nn.functional and differentiated by autograd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import flatstep as fs

SHAPES = ((3, 13, 24, 3, 37, 2), (2, 64, 64, 4, 256, 3))


def torch_loss(weights, tokens, targets, layers, heads, **options):
    """weights: {Hugging Face name: tensor}; linear weights lie as [in, out]."""

    def linear(name, x):
        return x @ weights[name + ".weight"] + weights[name + ".bias"]

    def normalize(name, x):
        return F.layer_norm(x, x.shape[-1:], weights[name + ".weight"], weights[name + ".bias"])

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    length = tokens.shape[1]
    x = F.embedding(tokens, weights["transformer.wte.weight"])
    x = x + weights["transformer.wpe.weight"][:length]
    for layer in range(layers):
        name = f"transformer.h.{layer}"
        qkv = linear(name + ".attn.c_attn", normalize(name + ".ln_1", x)).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(*map(split, qkv), is_causal=True)
        x = x + linear(name + ".attn.c_proj", mixed.transpose(1, 2).flatten(2))
        hidden = linear(name + ".mlp.c_fc", normalize(name + ".ln_2", x))
        x = x + linear(name + ".mlp.c_proj", F.gelu(hidden, approximate="tanh"))
    logits = normalize("transformer.ln_f", x) @ weights["transformer.wte.weight"].T
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), **options)


def make_model(shape):
    _, length, width, heads, vocabulary, layers = shape
    model = fs.GPT(
        fs.GPTConfig(
            vocab_size=vocabulary, block_size=length, n_layer=layers, n_head=heads, n_embd=width
        ),
        seed=2,
    )
    rng = np.random.default_rng(0)
    model.params[...] += (rng.standard_normal(model.num_params) * 0.05).astype(np.float32)
    return model


def make_batch(rng, shape):
    batch, length, _, _, vocabulary, _ = shape
    tokens = rng.integers(0, vocabulary, (batch, length))
    targets = rng.integers(0, vocabulary, (batch, length))
    targets[:, ::5] = -100
    return tokens, targets


def weights_of(model, dtype):
    return {
        name: torch.from_numpy(model[name].copy()).to(dtype).requires_grad_()
        for name in model.layout.names
    }


@pytest.mark.parametrize("label_smoothing", (0.0, 0.1))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_and_gradients(rng, shape, label_smoothing):
    model = make_model(shape)
    tokens, targets = make_batch(rng, shape)
    loss = model.forward_backward(tokens, targets, label_smoothing=label_smoothing)
    weights = weights_of(model, torch.float64)
    wanted = torch_loss(
        weights,
        torch.from_numpy(tokens),
        torch.from_numpy(targets),
        shape[5],
        shape[3],
        label_smoothing=label_smoothing,
    )
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-6)
    for name, gradient in model.layout.views(model.grads).items():
        expected = weights[name].grad.numpy()
        error = np.abs(gradient - expected)
        assert np.all(error <= 1e-4 * np.abs(expected).max()), (name, error.max())


def test_loss_curve_of_a_hundred_steps(rng):
    """The whole step: backward, clip, AdamW with decay on all tensors, warm-up and cosine."""
    shape = SHAPES[0]
    model = make_model(shape)
    weights = weights_of(model, torch.float32)
    schedule = fs.schedule.warmup_cosine(1e-3, 10, 100)
    optimizer = fs.AdamW(model.params, weight_decay=0.1)
    reference = torch.optim.AdamW(weights.values(), lr=1.0, weight_decay=0.1)
    batches = [make_batch(rng, shape) for _ in range(4)]
    for step in range(100):
        tokens, targets = batches[step % 4]
        loss = model.forward_backward(tokens, targets)
        optimizer.step(model.grads, lr=schedule(step), max_norm=1.0)
        reference.param_groups[0]["lr"] = schedule(step)
        reference.zero_grad()
        wanted = torch_loss(
            weights, torch.from_numpy(tokens), torch.from_numpy(targets), shape[5], shape[3]
        )
        wanted.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        reference.step()
        assert loss == pytest.approx(wanted.item(), rel=1e-4), step
