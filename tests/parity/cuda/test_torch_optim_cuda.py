"""flatstep.torch's optimizers and clip_grad_norm_ on a CUDA device: the bits of the CPU's, states,
a step that does not wait, graphs."""

import pytest
import torch

from flatstep.torch import optim as ours
from flatstep.torch.clip import clip_grad_norm_

SHAPES = ((3, 5), (), (5000,), (64, 65))
CASES = [
    ("AdamW", {"lr": 3e-3, "weight_decay": 0.1}),
    ("Adam", {"lr": 3e-3, "amsgrad": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
]
cases = pytest.mark.parametrize(("name", "options"), CASES, ids=str)


def normals(generator, dtype=torch.float32):
    return [torch.randn(shape, generator=generator).to(dtype) for shape in SHAPES]


class Twins:
    """The same optimizer on the host and on the device."""

    def __init__(self, name, tensors, options):
        self.sides = []
        for device in ("cpu", "cuda"):
            parameters = [torch.nn.Parameter(t.clone().to(device)) for t in tensors]
            self.sides.append((parameters, getattr(ours, name)(parameters, **options)))

    def step(self, gradients):
        for parameters, optimizer in self.sides:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = None if gradient is None else gradient.to(parameter.device)
            optimizer.step()

    def check(self):
        (own, host), (there, device) = self.sides
        states = [optimizer.state_dict()["state"] for optimizer in (host, device)]
        for one, other in zip(own, there, strict=True):
            assert torch.equal(one, other.cpu())
        assert states[0].keys() == states[1].keys()
        for index, state in states[0].items():
            assert state.keys() == states[1][index].keys()
            for key, value in state.items():
                assert torch.equal(value, states[1][index][key].cpu()), key


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@cases
def test_the_bits_of_the_cpu(generator, name, options, dtype):
    """Clipped, with a parameter left out, a gradient that is not finite, a state that is loaded."""
    twins = Twins(name, normals(generator, dtype), options | {"max_norm": 10.0})
    for step in range(8):
        gradients = normals(generator, dtype)
        if step == 3:
            gradients[2][17] = float("inf")
        if step == 5:
            gradients[1] = None
        twins.step(gradients)
        infos = [optimizer.last_step for _, optimizer in twins.sides]
        assert infos[0].skipped == infos[1].skipped == (step == 3)
        assert infos[0].nonfinite == infos[1].nonfinite and infos[0].step == infos[1].step
        if step != 3:
            assert infos[0].grad_norm == infos[1].grad_norm
        twins.check()
        if step == 4:
            for side, other in ((0, 1), (1, 0)):
                parameters, _ = twins.sides[side]
                loaded = getattr(ours, name)(parameters, max_norm=10.0)
                loaded.load_state_dict(twins.sides[other][1].state_dict())
                twins.sides[side] = parameters, loaded


@cases
def test_a_first_step_that_is_skipped(generator, name, options):
    """Its momentum does not count as one when the state is saved."""
    twins = Twins(name, normals(generator), options)
    gradients = normals(generator)
    gradients[0][0, 0] = float("nan")
    twins.step(gradients)
    twins.check()
    twins.step(normals(generator))
    twins.check()


def test_a_step_does_not_wait(generator):
    (parameters, optimizer) = Twins("AdamW", normals(generator), {}).sides[1]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(200_000_000)
        optimizer.step()
        assert not stream.query()
    assert optimizer.last_step.step == 2


@pytest.mark.parametrize("name", ("AdamW", "SGD"))
def test_a_graph_follows_a_tensor_lr(generator, name):
    rate = torch.tensor(0.1, device="cuda")
    twins = Twins(name, normals(generator), {"lr": 0.1})
    (host, own), (there, optimizer) = twins.sides
    optimizer.param_groups[0]["lr"] = rate
    for parameter in host + there:
        parameter.grad = torch.ones_like(parameter)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        optimizer.step()
    torch.cuda.synchronize()
    own.param_groups[0]["lr"] = rate.item()
    own.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for step in range(3):
        rate.fill_(0.1 / (step + 2))
        own.param_groups[0]["lr"] = rate.item()
        own.step()
        graph.replay()
        twins.check()


def test_refused(generator):
    parameter = torch.nn.Parameter(torch.zeros(3, device="cuda"))
    with pytest.raises(ValueError, match=r"^mode: got 'torch' with CUDA parameters"):
        ours.AdamW([parameter], mode="torch")
    optimizer = ours.AdamW([parameter])
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    optimizer.state[parameter]["exp_avg"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"^state: got exp_avg of params\[0\] on cpu"):
        optimizer.step()


def test_clipping(generator):
    gradients = normals(generator)
    sides = []
    for device in ("cpu", "cuda"):
        parameters = [torch.nn.Parameter(torch.zeros_like(g, device=device)) for g in gradients]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone().to(device)
        sides.append((parameters, clip_grad_norm_(parameters, 1.0)))
    (own, norm), (there, other) = sides
    assert other.is_cuda and norm.item() == other.item()
    for one, two in zip(own, there, strict=True):
        assert torch.equal(one.grad, two.grad.cpu())
