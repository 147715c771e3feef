"""The state of flatstep.torch's optimizers: files, copies, what others exchange."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch_optim_case import (
    ADAM,
    SHAPES,
    Pair,
    kinds,
    normals,
    parameters_of,
    same_bits,
    through_a_file,
    variants,
)

import flatstep as fs
from flatstep.torch import optim as ours

pytestmark = pytest.mark.needs("fma")


@variants
def test_states_go_both_ways(generator, name, options):
    """torch to flatstep to torch, through files; each goes on with the bits of the other."""
    pair = Pair(name, normals(generator), options)
    for _ in range(3):
        pair.step(normals(generator))
    loaded = getattr(ours, name)(pair.ours, lr=0.7, mode="torch")
    loaded.load_state_dict(through_a_file(pair.reference.state_dict()))
    back = getattr(torch.optim, name)(pair.theirs, lr=0.6)
    back.load_state_dict(through_a_file(pair.optimizer.state_dict()))
    assert loaded.param_groups[0]["lr"] == pair.optimizer.param_groups[0]["lr"]
    back.param_groups[0]["fused"] = True
    pair.optimizer, pair.reference = pair.both = (loaded, back)
    for _ in range(3):
        pair.step(normals(generator))
        pair.check()


def test_the_format_is_that_of_pytorch(generator):
    pair = Pair("AdamW", normals(generator), ADAM | {"amsgrad": True})
    pair.step(normals(generator))
    own, theirs = (optimizer.state_dict() for optimizer in pair.both)
    assert own["param_groups"][0] | {"fused": True} == theirs["param_groups"][0]
    assert list(own["state"]) == list(theirs["state"])
    for index, state in theirs["state"].items():
        assert list(own["state"][index]) == list(state)
        for key, value in state.items():
            assert same_bits(own["state"][index][key], value)


def test_the_default_path_of_pytorch_goes_on(generator):
    """It adds 1 to each step in place: they may not share one number."""
    pair = Pair("AdamW", normals(generator), ADAM)
    pair.step(normals(generator))
    for foreach in (False, True):
        loaded = torch.optim.AdamW(parameters_of(pair.ours), foreach=foreach)
        loaded.load_state_dict(copy.deepcopy(pair.optimizer.state_dict()))
        loaded.param_groups[0]["foreach"] = foreach
        for parameter in loaded.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        loaded.step()
        assert {float(state["step"]) for state in loaded.state.values()} == {2.0}


@kinds
def test_the_state_of_flatstep_itself(generator, name, options):
    """What fs.AdamW and fs.SGD give for PyTorch."""
    pair = Pair(name, normals(generator), options)
    own = [p.detach().clone() for p in pair.ours]
    other = getattr(fs, name)(own, mode="torch", **options)
    for _ in range(3):
        gradients = normals(generator)
        pair.step(gradients)
        other.step(gradients)
    fresh = getattr(ours, name)(parameters_of(own), lr=0.5, mode="torch")
    fresh.load_state_dict(other.torch_state_dict())
    pair.ours, pair.optimizer = fresh.param_groups[0]["params"], fresh
    pair.both = (fresh, pair.reference)
    pair.step(normals(generator))
    pair.check()


@kinds
@pytest.mark.parametrize("how", ("deepcopy", "pickle"))
def test_copies_of_the_optimizer(generator, name, options, how):
    pair = Pair(name, normals(generator), options)
    pair.optimizer.max_norm = 1e9
    for _ in range(2):
        pair.step(normals(generator))
    copied = {"deepcopy": copy.deepcopy, "pickle": lambda o: pickle.loads(pickle.dumps(o))}[how](
        pair.optimizer
    )
    kept = [p.detach().clone() for p in pair.ours]
    pair.ours, pair.optimizer = copied.param_groups[0]["params"], copied
    pair.both = (copied, pair.reference)
    assert copied.mode == "torch" and copied.max_norm == 1e9
    originals = kept
    for _ in range(2):
        pair.step(normals(generator))
        pair.check()
    assert not all(map(same_bits, originals, pair.ours))


def replace_state(pair):
    for optimizer in pair.both:
        for state in optimizer.state.values():
            for key, value in state.items():
                state[key] = value.clone() * 2


def clear_state(pair):
    for optimizer in pair.both:
        optimizer.state.clear()


def add_own_numbers(pair):
    for optimizer in pair.both:
        for state in optimizer.state.values():
            state["seen"] = 5


def set_steps(pair):
    for optimizer in pair.both:
        for number, state in enumerate(optimizer.state.values()):
            state["step"].fill_(number % 2)


def exchange_memory(pair):
    for parameters in (pair.ours, pair.theirs):
        for parameter in parameters:
            parameter.data = parameter.data * 3


def exchange_state_memory(pair):
    for optimizer in pair.both:
        for state in optimizer.state.values():
            state["exp_avg"].data = state["exp_avg"].data * 3


def exchange_parameters(pair):
    for number, optimizer in enumerate(pair.both):
        new = parameters_of(optimizer.param_groups[0]["params"])
        optimizer.param_groups[0]["params"][:] = new
        if number == 0:
            pair.ours = new
        else:
            pair.theirs = new


@pytest.mark.parametrize(
    "change",
    (
        replace_state,
        clear_state,
        add_own_numbers,
        set_steps,
        exchange_memory,
        exchange_state_memory,
        exchange_parameters,
    ),
)
@pytest.mark.parametrize("absent", (False, True))
def test_what_others_exchange_is_seen(generator, change, absent):
    """As trainers do that move states to a device, or reset them; also while half of the tensors
    have no gradient, and when the other half has none."""
    pair = Pair("AdamW", normals(generator), ADAM)
    for _ in range(2):
        pair.step(normals(generator))
    if absent:
        pair.step(every_other(normals(generator), 0))
    change(pair)
    if absent:
        pair.step(every_other(normals(generator), 1))
        pair.check()
    for _ in range(3):
        pair.step(normals(generator))
        pair.check()


def every_other(gradients, first):
    return [g if number % 2 == first else None for number, g in enumerate(gradients)]


@pytest.mark.parametrize("absent", (False, True))
def test_another_shape_of_the_same_memory(generator, absent):
    pair = Pair("SGD", normals(generator), {"lr": 0.1})
    pair.step(normals(generator))
    if absent:
        pair.step([*normals(generator)[:-1], None])
    for parameters in (pair.ours, pair.theirs):
        parameters[-1].data = parameters[-1].data.view(4, 16)
    for _ in range(2):
        pair.step(normals(generator, [*SHAPES[:-1], (4, 16)]))
        pair.check()


@pytest.mark.parametrize("steady", (True, False))
def test_the_state_of_a_tensor_without_a_gradient_is_let_go(generator, steady):
    """Once the same tensors have a gradient in two steps, or after so many steps without."""
    parameters = parameters_of(normals(generator))
    optimizer = ours.AdamW(parameters, **ADAM)

    def step(gradients):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    step(normals(generator))
    kept = weakref.ref(optimizer.state[parameters[0]]["exp_avg"])
    step([None, *normals(generator)[1:]])
    assert kept() is not None
    del optimizer.state[parameters[0]]
    for number in range(2 if steady else 20):
        gradients = [None, *normals(generator)[1:]]
        if not steady and number % 2:
            gradients[1] = None
        step(gradients)
    gc.collect()
    assert kept() is None


@pytest.mark.parametrize(("name", "options"), [("AdamW", ADAM), ("SGD", {})], ids=str)
def test_groups_whose_tensors_are_exchanged(generator, name, options):
    """One that has no gradient is taken out, then one that has is replaced: the others go on, each
    with its own gradient."""
    pair = Pair(name, normals(generator), options)
    pair.step(normals(generator))
    pair.step([None, *normals(generator)[1:-1], None])
    for parameters, optimizer in zip((pair.ours, pair.theirs), pair.both, strict=True):
        del parameters[0], optimizer.param_groups[0]["params"][0]
    shapes = SHAPES[1:]
    pair.step([*normals(generator, shapes[:-1]), None])
    pair.check()
    fresh = normals(generator, shapes[1:2])
    for parameters, optimizer in zip((pair.ours, pair.theirs), pair.both, strict=True):
        parameters[1:2] = optimizer.param_groups[0]["params"][1:2] = parameters_of(fresh)
    for _ in range(2):
        pair.step([*normals(generator, shapes[:-1]), None])
        pair.check()


def test_states_of_another_kind_are_converted(generator):
    """Given as float64, or in another order of memory."""
    pair = Pair("AdamW", normals(generator), ADAM)
    pair.step(normals(generator))
    for state in pair.optimizer.state.values():
        state["exp_avg"] = state["exp_avg"].double()
        if state["exp_avg_sq"].dim() == 2:
            state["exp_avg_sq"] = state["exp_avg_sq"].T.contiguous().T
    for _ in range(2):
        pair.step(normals(generator))
        pair.check()


def test_steps_beyond_the_reach_of_float32(generator):
    """PyTorch's count sticks at 2**24; ours goes on."""
    pair = Pair("AdamW", normals(generator), ADAM)
    pair.step(normals(generator))
    for state in pair.optimizer.state.values():
        state["step"].fill_(2.0**24)
    for _ in range(2):
        pair.step(normals(generator))
    assert pair.optimizer.last_step.step == 2**24 + 2
    assert {float(s["step"]) for s in pair.optimizer.state.values()} == {2.0**24 + 2}
