"""State of an optimizer on a CUDA device as torch.optim has it, and back."""

import numpy as np
import pytest
import torch
from optim_case import KINDS, make, normal

import flatstep as fs

pytestmark = pytest.mark.needs("cuda")

CLASSES = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam, "sgd": torch.optim.SGD}


def started(rng, kind):
    """The same optimizer on the CPU and on the device, two steps on."""
    options = {"lr": 0.01, "weight_decay": 0.1} | ({"momentum": 0.9} if kind == "sgd" else {})
    start = [normal(rng, 300), normal(rng, 7)]
    here = make(kind, [array.copy() for array in start], **options)
    there = make(kind, [fs.to_device(array) for array in start], **options)
    for _ in range(2):
        grads = [normal(rng, 300), normal(rng, 7)]
        here.step(grads)
        there.step([fs.to_device(array) for array in grads])
    return here, there


@pytest.mark.parametrize("kind", KINDS)
def test_the_state_of_the_cpu(rng, kind):
    here, there = started(rng, kind)
    own, other = here.torch_state_dict(), there.torch_state_dict()
    assert own["param_groups"] == other["param_groups"]
    for index, state in own["state"].items():
        for name, tensor in state.items():
            assert torch.equal(tensor, other["state"][index][name])
    tensors = [torch.zeros(300), torch.zeros(7)]
    CLASSES[kind](tensors).load_state_dict(other)


@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(rng, kind):
    here, there = started(rng, kind)
    state = here.torch_state_dict()
    for moments in state["state"].values():
        for name, tensor in moments.items():
            moments[name] = tensor * 2 if name != "step" else tensor + 5
    there.load_torch_state_dict(state)
    here.load_torch_state_dict(state)
    assert there.step_count == here.step_count
    own, other = here.state_dict()["state"], there.state_dict()["state"]
    for tensor, views in own.items():
        for name, array in views.items():
            assert np.array_equal(array, other[tensor][name])
