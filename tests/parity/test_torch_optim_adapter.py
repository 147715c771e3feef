"""flatstep.torch's optimizers beside torch.optim: the same bits, with every option, schedulers and
groups."""

import pytest
import torch
from torch.optim import lr_scheduler
from torch_optim_case import (
    ADAM,
    SHAPES,
    Pair,
    kinds,
    normals,
    parameters_of,
    same_bits,
    two_groups,
    variants,
)

from flatstep.torch import optim as ours

pytestmark = pytest.mark.needs("fma")


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
@variants
def test_every_bit_of_fifty_steps(generator, name, options, dtype):
    pair = Pair(name, normals(generator, dtype=dtype), options)
    for _ in range(50):
        pair.step(normals(generator, dtype=dtype))
        pair.check()


@variants
def test_parameters_without_gradients(generator, name, options):
    """They stay as they are, and their count: several counts at once, and all without."""
    pair = Pair(name, normals(generator), options)
    for absent in ((), (1,), (0, 1), (), (4,), (0, 1, 2, 3, 4), (), (), (2, 3)):
        gradients = normals(generator)
        pair.step([None if i in absent else g for i, g in enumerate(gradients)])
        pair.check()


@kinds
def test_groups_with_their_own_options(generator, name, options):
    pair = Pair(name, normals(generator), options, two_groups)
    for step in range(8):
        pair.step(normals(generator))
        pair.check()
        for optimizer in pair.both:
            optimizer.param_groups[step % 3]["lr"] *= 0.7
            optimizer.param_groups[2]["weight_decay"] += 0.01
            if name == "AdamW":
                optimizer.param_groups[1]["betas"] = (0.8, 0.9 + step / 100)
                optimizer.param_groups[0]["eps"] = 1e-5 * (step + 1)


@kinds
def test_add_param_group_in_the_middle(generator, name, options):
    pair = Pair(name, normals(generator), options)
    for _ in range(3):
        pair.step(normals(generator))
    more = normals(generator, [(7,), (2, 3)])
    for parameters, optimizer in zip((pair.ours, pair.theirs), pair.both, strict=True):
        added = parameters_of(more)
        optimizer.add_param_group({"params": added, "lr": 0.01})
        parameters += added
    for _ in range(4):
        pair.step(normals(generator, [*SHAPES, (7,), (2, 3)]))
        pair.check()
    assert pair.optimizer.last_step.step == 7


def test_a_late_tensor_of_adam(generator):
    """Its bias correction is that of its own first steps."""
    pair = Pair("AdamW", normals(generator), ADAM)
    for step in range(5):
        gradients = normals(generator)
        pair.step([None if step < 2 else gradients[0], *gradients[1:]])
        pair.check()
    counts = [int(pair.optimizer.state[p]["step"]) for p in pair.ours]
    assert counts == [3, 5, 5, 5, 5]


def test_a_late_tensor_of_sgd_joins_the_others(generator):
    """After its first step, which has a call of its own, since then there is no momentum. (The
    fused one of PyTorch 2.13 raises there.)"""
    options = {"lr": 0.1, "momentum": 0.9, "dampening": 0.5}
    pair = Pair("SGD", normals(generator), options)
    pair.reference = torch.optim.SGD(pair.theirs, foreach=False, **options)
    pair.both = (pair.optimizer, pair.reference)
    calls = []
    for step in range(5):
        gradients = normals(generator)
        pair.step([None if step < 2 else gradients[0], *gradients[1:]])
        torch.testing.assert_close(pair.ours, pair.theirs, rtol=1e-6, atol=1e-6)
        calls.append(len(pair.optimizer._plan.buckets))
    assert calls == [1, 1, 2, 1, 1] and pair.optimizer.last_step.step == 5


def one_cycle(optimizer):
    return lr_scheduler.OneCycleLR(optimizer, max_lr=0.05, total_steps=12)


SCHEDULERS = {
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda step: 0.9**step),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=6),
    "one cycle": one_cycle,
}


@kinds
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_schedulers(generator, name, options, schedule):
    """OneCycleLR moves beta1 or the momentum too."""
    pair = Pair(name, normals(generator), options)
    schedulers = [SCHEDULERS[schedule](optimizer) for optimizer in pair.both]
    for _ in range(10):
        pair.step(normals(generator))
        pair.check()
        for scheduler in schedulers:
            scheduler.step()
    rates = [optimizer.param_groups[0]["lr"] for optimizer in pair.both]
    assert rates[0] == rates[1] != options["lr"]


@kinds
def test_lr_as_a_tensor(generator, name, options):
    rate = torch.tensor(0.0625)
    pair = Pair(name, normals(generator), options | {"lr": rate})
    for _ in range(4):
        pair.step(normals(generator))
        pair.check()
        rate.mul_(0.5)
    assert pair.optimizer.last_step.lr == 0.0625 / 8


@kinds
def test_memory_in_another_order(generator, name, options):
    """Transposed and channels_last tensors are updated where they lie."""
    images = torch.randn(4, 3, 5, 5, generator=generator)
    tensors = [
        torch.randn(9, 7, generator=generator).T,
        images.to(memory_format=torch.channels_last),
    ]
    pair = Pair(name, tensors, options)
    for _ in range(4):
        gradients = [torch.randn(t.shape, generator=generator) for t in tensors]
        pair.give(gradients)
        for own, other in zip(pair.ours, pair.theirs, strict=True):
            other.grad = torch.empty_like(other).copy_(other.grad)
            assert own.grad.is_contiguous() and own.stride() == other.stride() != own.grad.stride()
        before = [p.data_ptr() for p in pair.ours]
        for optimizer in pair.both:
            optimizer.step()
        pair.check()
        assert before == [p.data_ptr() for p in pair.ours]


@kinds
def test_parameters_with_holes(generator, name, options):
    """Every other column of a matrix, through a copy; the other columns stay."""
    whole = torch.randn(6, 10, generator=generator)
    before = whole.clone()
    parameter = torch.nn.Parameter(whole[:, ::2])
    assert parameter.data_ptr() == whole.data_ptr()
    reference = torch.nn.Parameter(before[:, ::2].contiguous())
    optimizer = getattr(ours, name)([parameter], mode="torch", zero_grad=True, **options)
    other = getattr(torch.optim, name)([reference], fused=True, **options)
    for _ in range(4):
        gradient = torch.randn(6, 5, generator=generator)
        parameter.grad, reference.grad = gradient.T.contiguous().T, gradient.clone()
        optimizer.step()
        other.step()
        assert same_bits(whole[:, ::2], reference)
        assert not parameter.grad.any()
    assert torch.equal(whole[:, 1::2], before[:, 1::2])


@pytest.mark.parametrize("name", ("AdamW", "Adam", "SGD"))
def test_complex_parameters(generator, name):
    """As pairs of real numbers, as PyTorch has them."""
    pair = Pair(name, normals(generator, [(6, 3)], torch.complex64), {})
    pair.reference = getattr(torch.optim, name)(pair.theirs, foreach=False)
    pair.both = (pair.optimizer, pair.reference)
    for _ in range(5):
        pair.step(normals(generator, [(6, 3)], torch.complex64))
        torch.testing.assert_close(pair.ours, pair.theirs, rtol=1e-6, atol=1e-7)
    loaded = getattr(torch.optim, name)(pair.ours)
    loaded.load_state_dict(pair.optimizer.state_dict())
    loaded.step()


@kinds
def test_native_mode_is_near(generator, name, options):
    """The default: the same algorithm, rounded better."""
    pair = Pair(name, normals(generator), options)
    pair.optimizer = getattr(ours, name)(pair.ours, **options)
    pair.both = (pair.optimizer, pair.reference)
    for _ in range(30):
        pair.step(normals(generator))
    assert pair.optimizer.mode == "native"
    torch.testing.assert_close(pair.ours, pair.theirs, rtol=1e-4, atol=1e-6)
    assert not all(map(same_bits, pair.ours, pair.theirs))
