"""Parameters of bfloat16 under flatstep.torch's optimizers: float32 masters and moments."""

import pytest
import torch
from torch_optim_case import normals, parameters_of, same_bits, through_a_file

from flatstep.torch import optim as ours


@pytest.mark.parametrize(
    ("name", "options"), [("AdamW", {}), ("SGD", {"momentum": 0.9}), ("SGD", {})], ids=str
)
def test_bfloat16_has_masters(generator, name, options):
    """The float32 run, rounded: steps that are smaller than a bfloat16's last digit add up."""
    options = options | {"lr": 1e-4}
    start = [t.bfloat16() for t in normals(generator)]
    narrow, wide = parameters_of(start), parameters_of([t.float() for t in start])
    optimizers = [getattr(ours, name)(p, **options) for p in (narrow, wide)]
    for step in range(20):
        for own, other, gradient in zip(narrow, wide, normals(generator), strict=True):
            own.grad = gradient.bfloat16()
            other.grad = own.grad.float()
        for optimizer in optimizers:
            optimizer.step()
        for own, other in zip(narrow, wide, strict=True):
            assert same_bits(own, other.bfloat16())
            assert same_bits(optimizers[0].state[own]["master"], other)
        if step == 10:  # moments and masters survive a load as float32
            saved = through_a_file(optimizers[0].state_dict())
            optimizers[0] = getattr(ours, name)(narrow, lr=0.5)
            optimizers[0].load_state_dict(saved)


def test_masters_follow_the_parameters(generator):
    """Others write to them: weights that are loaded, an average, another memory."""
    (parameter,) = parameters_of([torch.randn(300, generator=generator).bfloat16()])
    optimizer = ours.AdamW([parameter], lr=1e-4)

    def step():
        parameter.grad = torch.ones_like(parameter)
        optimizer.step()

    step()
    master = optimizer.state[parameter]["master"]
    kept = master.clone()
    with torch.no_grad():
        parameter[:100] = 3.0
    step()
    assert torch.allclose(parameter[:100].float(), torch.tensor(3.0), atol=2e-2)
    assert (master[100:] - kept[100:]).abs().max() < 2e-4 and (master[:100] > 2.9).all()
    parameter.data = torch.full_like(parameter, 5.0)
    step()
    assert (parameter > 4.9).all()


@pytest.mark.parametrize("between", ("a skipped step", "steps without it", "another tensor's"))
def test_masters_follow_what_was_written_before(generator, between):
    """Before a step that left the parameter out. Two calls of the core: one tensor came later."""
    parameters = parameters_of(torch.randn(3, 40, generator=generator).bfloat16())
    optimizer = ours.AdamW(parameters, lr=1e-4)

    def step(*gradients):
        for parameter, value in zip(parameters, gradients, strict=True):
            parameter.grad = None if value is None else torch.full_like(parameter, value)
        optimizer.step()
        return optimizer.last_step.skipped

    step(1.0, 1.0, None)
    step(1.0, 1.0, 1.0)
    with torch.no_grad():
        parameters[0].fill_(7.0)
    if between == "a skipped step":
        assert step(1.0, 1.0, float("nan"))
    elif between == "steps without it":
        for _ in range(2):
            step(None, 1.0, 1.0)
    else:
        step(None, None, 1.0)
    assert not step(1.0, 1.0, 1.0)
    assert (parameters[0] > 6.9).all()
    assert (optimizer.state[parameters[0]]["master"] > 6.9).all()


def test_bfloat16_state_of_pytorch(generator):
    theirs = parameters_of([t.bfloat16() for t in normals(generator)])
    reference = torch.optim.AdamW(theirs, foreach=False)
    for parameter in theirs:
        parameter.grad = torch.ones_like(parameter)
    reference.step()
    optimizer = ours.AdamW(theirs)
    optimizer.load_state_dict(reference.state_dict())
    optimizer.step()
    assert optimizer.last_step.step == 2
    for parameter in theirs:
        assert optimizer.state[parameter]["exp_avg"].dtype == torch.float32


def test_momentum_that_begins_later(generator):
    """With masters, which are there from the first step."""
    (narrow,) = parameters_of([torch.randn(300, generator=generator).bfloat16()])
    (wide,) = parameters_of([narrow.float()])
    optimizers = [ours.SGD([p], lr=1e-3) for p in (narrow, wide)]
    for step in range(4):
        for optimizer in optimizers:
            optimizer.param_groups[0]["momentum"] = 0.9 * (step > 1)
        narrow.grad = torch.randn(300, generator=generator).bfloat16()
        wide.grad = narrow.grad.float()
        for optimizer in optimizers:
            optimizer.step()
        assert same_bits(narrow, wide.bfloat16())
    moments = [
        o.state[p]["momentum_buffer"] for o, p in zip(optimizers, (narrow, wide), strict=True)
    ]
    assert same_bits(*moments) and moments[0].any()
