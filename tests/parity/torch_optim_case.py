"""Our optimizers for PyTorch and PyTorch's own over the same parameters."""

import io

import pytest
import torch

from flatstep.torch import optim as ours

ADAM = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}
VARIANTS = (
    ("AdamW", {}),
    ("AdamW", ADAM),
    ("AdamW", ADAM | {"amsgrad": True, "maximize": True}),
    ("Adam", {}),
    ("Adam", ADAM),
    ("Adam", ADAM | {"amsgrad": True}),
    ("Adam", ADAM | {"decoupled_weight_decay": True}),
    ("SGD", {}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
)
variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
kinds = pytest.mark.parametrize(
    ("name", "options"), [("AdamW", ADAM), ("SGD", {"lr": 0.1, "momentum": 0.9})], ids=str
)
SHAPES = ((3, 5), (), (259,), (0,), (8, 8))


def parameters_of(tensors):
    return [torch.nn.Parameter(t.detach().clone()) for t in tensors]


def normals(generator, shapes=SHAPES, dtype=torch.float32):
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def same_bits(one, other):
    if isinstance(one, torch.Tensor):
        if one.dtype != other.dtype or one.shape != other.shape:
            return False
        flat = [t.detach().flatten().contiguous() for t in (one, other)]
        return one.numel() == 0 or torch.equal(*(t.view(torch.uint8) for t in flat))
    return one == other


class Pair:
    """The same parameters under our optimizer in torch mode and under PyTorch's fused one."""

    def __init__(self, name, tensors, options, group=lambda parameters: parameters):
        self.ours, self.theirs = parameters_of(tensors), parameters_of(tensors)
        self.optimizer = getattr(ours, name)(group(self.ours), mode="torch", **options)
        self.reference = getattr(torch.optim, name)(group(self.theirs), fused=True, **options)
        self.both = (self.optimizer, self.reference)

    def give(self, gradients):
        for parameters in (self.ours, self.theirs):
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.clone()

    def step(self, gradients):
        self.give(gradients)
        for optimizer in self.both:
            optimizer.step()

    def check(self):
        for number, (own, other) in enumerate(zip(self.ours, self.theirs, strict=True)):
            assert same_bits(own, other), number
            state, wanted = self.optimizer.state[own], self.reference.state[other]
            assert {k for k, v in state.items() if v is not None} == {
                k for k, v in wanted.items() if v is not None
            }
            for key, value in wanted.items():
                if value is not None:
                    assert same_bits(state[key], value), (number, key)


def two_groups(parameters):
    return [
        {"params": parameters[:2], "weight_decay": 0.0, "lr": 0.02},
        {"params": parameters[2:4], "maximize": True},
        {"params": parameters[4:]},
    ]


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)
