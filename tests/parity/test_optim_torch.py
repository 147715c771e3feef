"""mode="torch": every bit of torch.optim's fused CPU kernels in float32.

Sizes are multiples of eight: in the tail of a vector PyTorch itself rounds v differently, which
is allowed one ULP below. One PyTorch thread, so that no split makes tails in the middle.
"""

import numpy as np
import pytest
import torch

import flatstep as fs

STEPS = 50

ADAM = (
    {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01},
    {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1},
    {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-9, "weight_decay": 0.0},
)
SGD = (
    {"lr": 0.1},
    {"lr": 0.1, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
    {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
)


@pytest.fixture(autouse=True)
def one_torch_thread(has_fma):
    if not has_fma:
        pytest.skip("the x86-64 baseline has no fused multiply-add, PyTorch's kernels use it")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def assert_same_bits(ours, theirs, what):
    ours = ours.numpy() if isinstance(ours, torch.Tensor) else np.asarray(ours)
    different = ours.ravel().view(np.int32) != theirs.numpy().ravel().view(np.int32)
    assert not different.any(), (what, int(different.sum()), np.flatnonzero(different)[:5])


def make_pair(name, size, options):
    """(our parameters, our optimizer, their parameters, their optimizer)."""
    generator = torch.Generator().manual_seed(size)
    theirs = torch.randn(size, generator=generator)
    ours = theirs.clone()
    optimizer = getattr(fs, name)(ours, mode="torch", **options)
    return ours, optimizer, theirs, getattr(torch.optim, name)([theirs], fused=True, **options)


def gradients(size):
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        yield torch.randn(size, generator=generator) * 0.1


@pytest.mark.parametrize("size", (8, 64, 4096, 40_000))
@pytest.mark.parametrize("options", ADAM, ids=str)
@pytest.mark.parametrize("name", ("AdamW", "Adam"))
def test_adam_bits(name, options, size):
    ours, optimizer, theirs, reference = make_pair(name, size, options)
    for step, gradient in enumerate(gradients(size)):
        theirs.grad = gradient.clone()
        reference.step()
        optimizer.step(gradient)
        state = reference.state[theirs]
        assert_same_bits(optimizer.exp_avg, state["exp_avg"], f"exp_avg, step {step}")
        assert_same_bits(optimizer.exp_avg_sq, state["exp_avg_sq"], f"exp_avg_sq, step {step}")
        assert_same_bits(ours, theirs, f"params, step {step}")


@pytest.mark.parametrize("size", (8, 4096, 40_000))
@pytest.mark.parametrize("options", SGD, ids=str)
def test_sgd_bits(options, size):
    ours, optimizer, theirs, reference = make_pair("SGD", size, options)
    for step, gradient in enumerate(gradients(size)):
        theirs.grad = gradient.clone()
        reference.step()
        optimizer.step(gradient)
        assert_same_bits(ours, theirs, f"params, step {step}")


@pytest.mark.parametrize("size", (1, 7, 1003))
@pytest.mark.parametrize("name", ("AdamW", "Adam"))
def test_adam_tails(name, size):
    """Elements after the last whole vector: m to the bit, v and p within an ULP a step."""
    ours, optimizer, theirs, reference = make_pair(name, size, ADAM[1])
    for gradient in gradients(size):
        theirs.grad = gradient.clone()
        reference.step()
        optimizer.step(gradient)
    state = reference.state[theirs]
    np.testing.assert_allclose(
        np.asarray(optimizer.exp_avg).ravel(), state["exp_avg"].numpy(), rtol=1e-5, atol=1e-9
    )
    np.testing.assert_allclose(
        np.asarray(optimizer.exp_avg_sq).ravel(), state["exp_avg_sq"].numpy(), rtol=STEPS * 1.2e-7
    )
    np.testing.assert_allclose(ours.numpy(), theirs.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ("AdamW", "Adam"))
def test_near_the_default_kernel(name):
    """Against the for-loop path, whose square root is not the IEEE one: a few ULP."""
    start = torch.randn(1000, generator=torch.Generator().manual_seed(3))
    ours, theirs = start.clone(), start.clone()
    optimizer = getattr(fs, name)(ours, mode="torch", **ADAM[1])
    reference = getattr(torch.optim, name)([theirs], foreach=False, fused=False, **ADAM[1])
    for gradient in gradients(1000):
        theirs.grad = gradient.clone()
        reference.step()
        optimizer.step(gradient)
    largest = np.maximum(np.abs(theirs.numpy()), np.abs(start.numpy()))
    assert np.all(np.abs(ours.numpy() - theirs.numpy()) <= 8 * np.spacing(largest))


def test_list_of_tensors_updated_in_place():
    """A module's own parameters, several shapes, native mode: within float32 rounding."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    other = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    other.load_state_dict(module.state_dict())
    parameters = [p.detach() for p in module.parameters()]
    optimizer = fs.AdamW(parameters, lr=1e-2, weight_decay=0.1)
    reference = torch.optim.AdamW(other.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(20):
        x = torch.randn(8, 5)
        for model in (module, other):
            model.zero_grad(set_to_none=False)
            model(x).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.5)
        reference.step()
        optimizer.step([p.grad for p in module.parameters()], max_norm=0.5)
    for ours, theirs in zip(module.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
