"""Random sequences of what a training program may do, beside torch.optim in float64."""

import copy
import random

import pytest
import torch

from flatstep.torch import optim as ours

SHAPES = ((3, 4), (5,), (), (2, 3, 4), (17,))
MAX_NORM = 3.0


class Sequence:
    """Both optimizers over the same parameters; every method changes both in the same way."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.name = self.random.choice(("AdamW", "Adam", "SGD"))
        self.momentum = self.random.choice((0.0, 0.9))
        if self.name == "SGD":
            dampening = self.random.choice((0.0, 0.3))
            options = {"momentum": self.momentum, "dampening": dampening}
        else:
            options = {"amsgrad": self.random.random() < 0.5}
        self.mode = self.random.choice(("native", "torch"))
        start = [self.normal(shape) for shape in SHAPES]
        self.both = [[torch.nn.Parameter(t.clone()) for t in start] for _ in range(2)]
        self.make_optimizers(lr=0.01, **options)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["weight_decay"] = 0.1
            optimizer.param_groups[1]["lr"] = 0.02

    def normal(self, shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def make_optimizers(self, **options):
        own, theirs = (
            [{"params": p} for p in (parameters[:2], parameters[2:5])]
            + [{"params": [p]} for p in parameters[5:]]
            for parameters in self.both
        )
        self.optimizers = (
            getattr(ours, self.name)(own, mode=self.mode, max_norm=MAX_NORM, **options),
            getattr(torch.optim, self.name)(theirs, foreach=False, **options),
        )

    def change_rate(self):
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] *= 0.8

    def change_decay(self):
        for optimizer in self.optimizers:
            optimizer.param_groups[1]["weight_decay"] += 0.01

    def change_averages(self):
        for optimizer in self.optimizers:
            group = optimizer.param_groups[1]
            if "betas" in group:
                group["betas"] = (0.8, group["betas"][1] - 0.001)
            elif self.momentum:
                group["momentum"] *= 0.95

    def exchange_states(self):
        """Each goes on with the state of the other, in new optimizers."""
        own, theirs = (copy.deepcopy(o.state_dict()) for o in self.optimizers)
        self.make_optimizers()
        self.optimizers[0].load_state_dict(theirs)
        self.optimizers[1].load_state_dict(own)

    def add_group(self):
        added = self.normal((4, 5))
        if len(self.both[0]) > 7:
            return
        for parameters, optimizer in zip(self.both, self.optimizers, strict=True):
            parameters.append(torch.nn.Parameter(added.clone().T))
            optimizer.add_param_group({"params": [parameters[-1]], "maximize": True})

    def exchange_memory(self):
        for parameters in self.both:
            for parameter in parameters:
                parameter.data = parameter.data * 1.01

    def step(self, number):
        share = 0.7 if number % 3 else 1.0
        present = [self.random.random() < share for _ in self.both[0]]
        gradients = [self.normal(parameter.shape) for parameter in self.both[0]]
        for parameters in self.both:
            for parameter, gradient, here in zip(parameters, gradients, present, strict=True):
                parameter.grad = gradient.clone() if here else None
        if any(present) and self.random.random() < 0.1:
            self.both[0][present.index(True)].grad.view(-1)[0] = float("nan")
            self.optimizers[0].step()
            assert self.optimizers[0].last_step.skipped
            return
        torch.nn.utils.clip_grad_norm_(self.both[1], MAX_NORM)
        for optimizer in self.optimizers:
            optimizer.step()


@pytest.mark.parametrize("seed", range(30))
def test_a_random_sequence(seed):
    sequence = Sequence(seed)
    changes = (
        sequence.change_rate,
        sequence.change_decay,
        sequence.change_averages,
        sequence.exchange_states,
        sequence.add_group,
        sequence.exchange_memory,
        lambda: None,
    )
    for number in range(25):
        sequence.random.choice(changes)()
        sequence.step(number)
        torch.testing.assert_close(*sequence.both, rtol=1e-9, atol=1e-11)
