"""What flatstep.torch's optimizers refuse, in one line that names it."""

import copy

import pytest
import torch
from torch_optim_case import normals, parameters_of, same_bits

from flatstep.torch import optim as ours


@pytest.mark.parametrize(
    ("name", "options", "text"),
    (
        ("AdamW", {"lr": -1.0}, "lr: got -1.0, expected"),
        ("AdamW", {"lr": "fast"}, "lr: got str, expected"),
        ("AdamW", {"lr": torch.ones(2)}, "lr: got a tensor of"),
        ("AdamW", {"betas": (0.9, 1.0)}, "betas: got 1"),
        ("AdamW", {"betas": 0.9}, "betas: got 0.9, expected two numbers"),
        ("Adam", {"eps": -1.0}, "eps: got -1"),
        ("Adam", {"weight_decay": -0.1}, "weight_decay: got -0.1"),
        ("SGD", {"momentum": -0.1}, "momentum: got -0.1"),
        ("SGD", {"nesterov": True}, "nesterov: got true"),
        ("SGD", {"differentiable": True}, "differentiable: got True"),
        ("AdamW", {"mode": "fast"}, "mode: got 'fast', expected one of"),
        ("AdamW", {"max_norm": 0.0}, "max_norm: got 0.0, expected"),
        ("AdamW", {"max_norm": float("inf")}, "max_norm: got inf, expected"),
    ),
)
def test_wrong_options(generator, name, options, text):
    with pytest.raises((ValueError, TypeError)) as caught:
        getattr(ours, name)(parameters_of(normals(generator)), **options)
    assert str(caught.value).startswith(text)


def test_wrong_parameters(generator):
    good = parameters_of(normals(generator))
    half = torch.nn.Parameter(torch.zeros(3, dtype=torch.float16))
    with pytest.raises(TypeError, match=r"^params\[5\]: got torch.float16, expected float32"):
        ours.AdamW([*good, half])
    with pytest.raises(TypeError, match=r"^params\[0\]: got a parameter on meta"):
        ours.AdamW([torch.nn.Parameter(torch.zeros(3, device="meta"))])
    with pytest.raises(TypeError, match=r"^head: got torch.float16"):
        ours.AdamW([("body", good[0]), ("head", half)])
    narrow = torch.nn.Parameter(torch.zeros(3, dtype=torch.bfloat16))
    with pytest.raises(ValueError, match=r"^mode: got 'torch' with bfloat16 .*params\[0\]"):
        ours.AdamW([narrow], mode="torch")
    optimizer = ours.AdamW(good)
    with pytest.raises(TypeError, match=r"^params\[5\]"):
        optimizer.add_param_group({"params": [half]})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("before", (0, 1))
def test_what_a_step_refuses(generator, before):
    """By the parameter's name, and nothing is changed."""
    parameters = parameters_of(normals(generator))
    optimizer = ours.AdamW(parameters)

    def give():
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)

    for _ in range(before):
        give()
        optimizer.step()
    kept = [p.detach().clone() for p in parameters]
    give()
    parameters[4].grad = torch.ones(8, 8).to_sparse()
    with pytest.raises(TypeError, match=r"^params\[4\]: got a gradient of torch.sparse_coo"):
        optimizer.step()
    give()
    optimizer.param_groups[0]["lr"] = float("nan")
    with pytest.raises(ValueError, match=r"^lr: got nan"):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 1e-3
    optimizer.param_groups[0]["betas"] = (1.5, 0.9)
    with pytest.raises(ValueError, match=r"^betas: got 1\.5"):
        optimizer.step()
    optimizer.param_groups[0]["betas"] = (0.9, 0.99)
    assert all(map(same_bits, kept, parameters))
    optimizer.step()
    assert optimizer.last_step.step == before + 1


def test_a_state_of_another_kind(generator):
    parameters = parameters_of(normals(generator))
    sgd = ours.SGD(parameters, momentum=0.9)
    adam = ours.AdamW(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    sgd.step()
    adam.step()
    state = adam.state_dict()
    other = ours.AdamW(parameters)
    other.load_state_dict(sgd.state_dict())
    with pytest.raises(ValueError, match=r"^state: got momentum_buffer of params\[0\], expected"):
        other.step()
    other.load_state_dict(state)
    other.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match=r"^state: got no max_exp_avg_sq of params\[0\] after 1"):
        other.step()
    adam.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match=r"^state: got no max_exp_avg_sq of params\[0\] after 1"):
        adam.step()
    broken = copy.deepcopy(state)
    broken["state"][2]["exp_avg"] = torch.zeros(3)
    other.load_state_dict(broken)
    with pytest.raises(ValueError, match=r"^state: got exp_avg of params\[2\] \[3\], expected"):
        other.step()
    with pytest.raises(ValueError, match="parameter group"):
        ours.AdamW(parameters[:2]).load_state_dict(state)


def test_overlapping_parameters_are_refused():
    memory = torch.zeros(10)
    parameters = [torch.nn.Parameter(memory[:6]), torch.nn.Parameter(memory[4:])]
    optimizer = ours.SGD(parameters)
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    with pytest.raises(ValueError, match=r"^params\[1\]: got memory that overlaps params\[0\]"):
        optimizer.step()
    assert not memory.any()
