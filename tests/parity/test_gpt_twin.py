"""The twin of bench/torch_gpt.py: its gradients, and 200 steps of training beside it."""

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import flatstep as fs

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

import torch_gpt

CONFIG = fs.GPTConfig(vocab_size=97, block_size=40, n_layer=2, n_head=4, n_embd=64)


def make_batches(count, batch=4, length=32):
    """A token decides the next one, with mistakes: something that is learnt little by little. Where
    a rule is found all at once, roundings decide when, and no two programs agree."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 97, (count, batch, length + 1))
    kept = rng.random(ids.shape) < 0.8
    for i in range(1, length + 1):
        ids[..., i] = np.where(kept[..., i], (5 * ids[..., i - 1] + 1) % 97, ids[..., i])
    return [(np.ascontiguousarray(i[:, :-1]), np.ascontiguousarray(i[:, 1:])) for i in ids]


def test_loss_and_every_gradient():
    model = fs.GPT(CONFIG, seed=3)
    rng = np.random.default_rng(1)
    model.params += rng.standard_normal(model.num_params, np.float32) * np.float32(0.05)
    tokens, targets = make_batches(1)[0]
    loss = model.forward_backward(tokens, targets)
    twin = torch_gpt.torch_twin(model).double()
    wanted = twin(torch.from_numpy(tokens), torch.from_numpy(targets))
    wanted.backward()
    assert loss == pytest.approx(wanted.item(), rel=1e-5)
    grads, found = model.layout.views(model.grads), twin.tensors()
    assert sorted(name for name, _, _ in found) == sorted(grads)
    for name, parameter, transposed in found:
        expected = parameter.grad.T.numpy() if transposed else parameter.grad.numpy()
        error = np.abs(grads[name] - expected).max()
        assert error <= 1e-4 * np.abs(expected).max(), (name, error)


def test_a_curve_of_200_steps():
    """Warm-up and cosine, clipping, AdamW that leaves vectors undecayed: each loss to 1e-5."""
    hyper_parameters = {"betas": (0.9, 0.95), "weight_decay": 0.1}
    model = fs.GPT(CONFIG, seed=3)
    twin = torch_gpt.torch_twin(model)
    optimizer = fs.AdamW(model.params, layout=model.layout, **hyper_parameters)
    reference = torch_gpt.make_optimizer(twin, lr=1.0, **hyper_parameters)
    schedule = fs.schedule.warmup_cosine(3e-3, 20, 200)
    losses = []
    for step, (tokens, targets) in enumerate(make_batches(200)):
        losses.append(model.forward_backward(tokens, targets, step=step))
        optimizer.step(model.grads, lr=schedule(step), max_norm=1.0, partials=model.grad_partials)
        for group in reference.param_groups:
            group["lr"] = schedule(step)
        reference.zero_grad(set_to_none=True)
        wanted = twin(torch.from_numpy(tokens), torch.from_numpy(targets))
        wanted.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        reference.step()
        assert losses[-1] == pytest.approx(wanted.item(), rel=1e-5), step
    assert losses[-1] < 0.6 * losses[0], losses


def test_dropout_of_the_twin_is_as_strong_as_ours():
    """After some training it costs: mean losses of 40 passes within 4 deviations of each other,
    far from that without dropout, which evaluation has."""
    trained = fs.GPT(CONFIG, seed=3)
    optimizer = fs.AdamW(trained.params, lr=3e-3, layout=trained.layout)
    for tokens, targets in make_batches(100):
        trained.forward_backward(tokens, targets)
        optimizer.step(trained.grads, max_norm=1.0)
    model = fs.GPT(dataclasses.replace(CONFIG, dropout=0.3), seed=5)
    model.params[...] = trained.params
    twin = torch_gpt.torch_twin(model)
    batch = torch.from_numpy(tokens), torch.from_numpy(targets)
    torch.manual_seed(0)
    ours = [model.forward_backward(tokens, targets, step=step) for step in range(40)]
    with torch.no_grad():
        theirs = [twin(*batch).item() for _ in range(40)]
        without = twin.eval()(*batch).item()
    deviation = np.hypot(np.std(ours, ddof=1), np.std(theirs, ddof=1)) / np.sqrt(40)
    assert abs(np.mean(ours) - np.mean(theirs)) < 4 * deviation
    assert np.mean(ours) - without > 20 * deviation
    assert model.loss(tokens, targets) == pytest.approx(without, rel=1e-5)
