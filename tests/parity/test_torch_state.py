"""States from torch.optim and back: both sides go on with the same bits."""

import numpy as np
import pytest
import torch

import flatstep as fs

SHAPES = ((3, 5), (), (259,), (8, 8))
ADAM = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}
VARIANTS = (
    ("AdamW", ADAM),
    ("Adam", ADAM),
    ("AdamW", ADAM | {"amsgrad": True}),
    ("Adam", ADAM | {"amsgrad": True, "maximize": True}),
    ("SGD", {"lr": 0.1, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
)
variants = pytest.mark.parametrize(("name", "options"), VARIANTS, ids=str)
dtypes = pytest.mark.parametrize("dtype", (torch.float32, torch.float64), ids=str)
flat_or_list = pytest.mark.parametrize("as_list", (False, True), ids=("flat", "list"))


pytestmark = pytest.mark.needs("fma")


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


def make_layout(**groups):
    return fs.Layout([(f"t{i}", shape, groups.get(f"t{i}", {})) for i, shape in enumerate(SHAPES)])


class Ours:
    """Our optimizer in torch mode over copies of these tensors."""

    def __init__(self, name, tensors, options, as_list=False, **more):
        self.layout = more.setdefault("layout", make_layout())
        self.flat = torch.cat([p.detach().reshape(-1) for p in tensors])
        views = self.layout.views(self.flat).values()
        self.params = [p.clone() for p in views] if as_list else list(views)
        given = self.params if as_list else self.flat
        self.as_list = as_list
        self.optimizer = getattr(fs, name)(given, **{"mode": "torch"} | options | more)

    def step(self, gradients):
        flat = torch.cat([g.reshape(-1) for g in gradients])
        self.optimizer.step([g.clone() for g in gradients] if self.as_list else flat)


class Theirs:
    def __init__(self, name, tensors, options):
        self.params = [p.detach().clone() for p in tensors]
        self.optimizer = getattr(torch.optim, name)(self.params, fused=True, **options)

    def step(self, gradients):
        for p, g in zip(self.params, gradients, strict=True):
            p.grad = g.clone()
        self.optimizer.step()


def normals(generator, dtype):
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


def go_on_together(first, second, generator, dtype):
    for _ in range(5):
        gradients = normals(generator, dtype)
        first.step(gradients)
        second.step(gradients)
        for one, other in zip(first.params, second.params, strict=True):
            assert one.numpy().tobytes() == other.numpy().tobytes()


@flat_or_list
@dtypes
@variants
@pytest.mark.parametrize("steps", (0, 1, 4))
def test_import(generator, name, options, dtype, as_list, steps):
    """PyTorch's state in the middle of a run; ours had another one before."""
    theirs = Theirs(name, normals(generator, dtype), options)
    for _ in range(steps):
        theirs.step(normals(generator, dtype))
    for before in (0, 2):
        ours = Ours(name, theirs.params, options | {"lr": 0.7}, as_list)
        for _ in range(before):
            ours.step(normals(generator, dtype))
        for own, tensor in zip(ours.params, theirs.params, strict=True):
            own.copy_(tensor)
        ours.optimizer.load_torch_state_dict(theirs.optimizer.state_dict())
        assert ours.optimizer.lr == options["lr"]
        if name != "SGD":
            assert ours.optimizer.step_count == steps
    go_on_together(ours, theirs, generator, dtype)


@flat_or_list
@dtypes
@variants
@pytest.mark.parametrize("steps", (0, 1, 4))
def test_export(generator, name, options, dtype, as_list, steps):
    """PyTorch takes over our state and options; its own had been others."""
    ours = Ours(name, normals(generator, dtype), options, as_list)
    for _ in range(steps):
        ours.step(normals(generator, dtype))
    other = options | {"lr": 0.7, "weight_decay": 0.3}
    theirs = Theirs(name, ours.params, other)
    exported = ours.optimizer.torch_state_dict()
    theirs.optimizer.load_state_dict(exported)
    (group,) = theirs.optimizer.param_groups
    assert all(group[key] == value for key, value in options.items())
    group["fused"] = True
    go_on_together(ours, theirs, generator, dtype)


@variants
def test_round_trip(generator, name, options):
    """What PyTorch would get is what we take back."""
    ours = Ours(name, normals(generator, torch.float32), options)
    for _ in range(3):
        ours.step(normals(generator, torch.float32))
    exported = ours.optimizer.torch_state_dict()
    other = Ours(name, ours.params, options)
    other.optimizer.load_torch_state_dict(exported)
    for tensor, arrays in ours.optimizer.state_dict()["state"].items():
        for key, array in arrays.items():
            loaded = other.optimizer.state_dict()["state"][tensor][key]
            assert loaded.tobytes() == array.tobytes() and loaded.shape == array.shape


def test_groups_keep_their_options(generator):
    """Runs of tensors with the same options are parameter groups, which PyTorch goes on with."""
    own = {"weight_decay": 0.0, "lr_scale": 0.5, "betas": (0.5, 0.9)}
    layout = make_layout(t1={"weight_decay": 0.0}, t2={"weight_decay": 0.0}, t3=own)
    ours = Ours("AdamW", normals(generator, torch.float32), ADAM, layout=layout)
    for _ in range(3):
        ours.step(normals(generator, torch.float32))
    exported = ours.optimizer.torch_state_dict()
    assert [group["params"] for group in exported["param_groups"]] == [[0], [1, 2], [3]]
    theirs = Theirs("AdamW", ours.params, ADAM)
    with pytest.raises(ValueError, match="parameter groups"):
        theirs.optimizer.load_state_dict(exported)
    first, *middle, last = theirs.params
    groups = [{"params": [first]}, {"params": middle}, {"params": [last]}]
    theirs.optimizer = torch.optim.AdamW(groups, fused=True)
    theirs.optimizer.load_state_dict(exported)
    for group in theirs.optimizer.param_groups:
        group["fused"] = True
    go_on_together(ours, theirs, generator, torch.float32)
    back = Ours("AdamW", ours.params, ADAM | {"lr": 0.7}, layout=layout)
    back.optimizer.load_torch_state_dict(theirs.optimizer.state_dict())
    assert back.optimizer.lr == ADAM["lr"]
    go_on_together(back, theirs, generator, torch.float32)


def test_masters_and_native_mode(generator):
    """Moments of bfloat16 parameters' masters are float32; so is what PyTorch gets."""
    p = [torch.randn(300, generator=generator).bfloat16()]
    optimizer = fs.AdamW(p, lr=0.01)
    for _ in range(3):
        optimizer.step([torch.randn(300, generator=generator).bfloat16()])
    state = optimizer.torch_state_dict()["state"][0]
    assert set(state) == {"step", "exp_avg", "exp_avg_sq"}
    assert state["exp_avg"].dtype == torch.float32 and state["step"] == 3
    other = fs.AdamW([p[0].clone()], lr=0.01)
    masters = optimizer.master[0].copy()
    other.load_torch_state_dict(optimizer.torch_state_dict())
    assert other.exp_avg[0].tobytes() == optimizer.exp_avg[0].tobytes()
    assert other.master[0].tobytes() == p[0].float().numpy().tobytes() != masters.tobytes()


def test_bfloat16_moments_are_widened(generator):
    """PyTorch's states have the dtype of its parameters."""
    p = torch.randn(300, generator=generator).bfloat16()
    reference = torch.optim.AdamW([p], fused=True)
    p.grad = torch.randn(300, generator=generator).bfloat16()
    reference.step()
    optimizer = fs.AdamW([p.float()])
    optimizer.load_torch_state_dict(reference.state_dict())
    assert np.array_equal(optimizer.exp_avg[0], reference.state[p]["exp_avg"].float().numpy())


# ---- refused, nothing changed --------------------------------------------------------------------


def wrong_states(generator):
    theirs = Theirs("AdamW", normals(generator, torch.float32), ADAM)
    for _ in range(2):
        theirs.step(normals(generator, torch.float32))
    good = theirs.optimizer.state_dict()
    states, groups = good["state"], good["param_groups"]
    short = {"exp_avg": states[2]["exp_avg"][:-1]}
    lacking = {key: value for key, value in states[2].items() if key != "exp_avg_sq"}
    sgd = Theirs("SGD", theirs.params, {"lr": 0.1, "momentum": 0.9})
    sgd.step(normals(generator, torch.float32))
    return {
        "tensors": good | {"param_groups": [groups[0] | {"params": [0, 1, 2]}]},
        "different steps": good | {"state": states | {2: states[2] | {"step": torch.tensor(9.0)}}},
        "shape": good | {"state": states | {2: states[2] | short}},
        "exp_avg_sq": good | {"state": states | {2: lacking}},
        "'exp_avg'": sgd.optimizer.state_dict(),
        "lr": good | {"param_groups": [groups[0] | {"lr": -1.0}]},
        "state_dict()": {"state": states},
        "returns": good | {"param_groups": [{"params": [0, 1, 2, 3]}]},
        "what torch": good | {"state": [1]},
        "expected what": None,
        "different": good | {"state": {key: states[key] for key in (0, 1, 2)}},
    }


@pytest.mark.parametrize("text", wrong_states(torch.Generator().manual_seed(0)))
def test_wrong_states(generator, text):
    ours = Ours("AdamW", normals(generator, torch.float32), ADAM)
    ours.step(normals(generator, torch.float32))
    state = wrong_states(generator)[text]
    before, flat = ours.optimizer.state_dict(), ours.flat.clone()
    with pytest.raises((ValueError, TypeError)) as caught:
        ours.optimizer.load_torch_state_dict(state)
    assert text in str(caught.value)
    after = ours.optimizer.state_dict()
    assert str(before) == str(after) and torch.equal(flat, ours.flat)


def test_amsgrad_needs_its_state(generator):
    theirs = Theirs("AdamW", normals(generator, torch.float32), ADAM)
    theirs.step(normals(generator, torch.float32))
    ours = Ours("AdamW", theirs.params, ADAM | {"amsgrad": True})
    with pytest.raises(ValueError, match="max_exp_avg_sq"):
        ours.optimizer.load_torch_state_dict(theirs.optimizer.state_dict())


def test_eight_bit_state_is_not_exported(generator):
    ours = Ours("AdamW", normals(generator, torch.float32), {"mode": "native", "state": "8bit"})
    ours.step(normals(generator, torch.float32))
    with pytest.raises(ValueError, match="8-bit"):
        ours.optimizer.torch_state_dict()
