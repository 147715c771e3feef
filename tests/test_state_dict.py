"""State dicts: keyed by tensor names, resumed bit for bit, refused with nothing changed."""

import bfloat16
import numpy as np
import pytest
from optim_case import FORMATS, KINDS, MOMENTS, Case, assert_same_bits, normal

import flatstep as fs

LAYOUT = [("w", (33, 7)), ("b", (130,)), ("empty", (0,)), ("scalar", ())]
OPTIONS = {"lr": 3e-3, "weight_decay": 0.1, "seed": 11}


def started(kind, format, rng, as_list=False, steps=3, **options):
    """(case, a function that returns new gradients)."""
    layout = fs.Layout(LAYOUT)

    def cut(array):
        return [view.copy() for view in layout.views(array).values()] if as_list else array

    def gradient():
        return cut(normal(rng, layout.size))

    case = Case(kind, gradient(), format, layout=layout, **OPTIONS, **options)
    for _ in range(steps):
        case.step(gradient(), max_norm=1.0)
    return case, gradient


def variants():
    cases = [(kind, format, {}) for kind in KINDS for format in FORMATS]
    return cases + [(kind, "full", {"amsgrad": True}) for kind in ("adamw", "adam")]


@pytest.mark.parametrize("as_list", (False, True), ids=("flat", "list"))
@pytest.mark.parametrize(("kind", "format", "options"), variants(), ids=str)
def test_resumes_bit_for_bit(rng, kind, format, options, as_list):
    case, gradient = started(kind, format, rng, as_list, **options)
    state = case.optimizer.state_dict()
    assert set(state) == {"kind", "step", "lr", "seed", "state"}
    assert state["kind"] == kind and state["step"] == 3 and state["lr"] == OPTIONS["lr"]
    assert list(state["state"]) == [name for name, _ in LAYOUT]
    start = [bfloat16.to_float32(p) if p.dtype == np.uint16 else p for p in case.params]
    other = Case(
        kind,
        start if as_list else start[0],
        format,
        layout=fs.Layout(LAYOUT),
        **OPTIONS | {"lr": 0.5},
        **options,
    )
    other.optimizer.load_state_dict(state)
    assert other.optimizer.step_count == 3 and other.optimizer.lr == OPTIONS["lr"]
    assert other.everything() == case.everything()
    for _ in range(3):
        g = gradient()
        copy = [array.copy() for array in g] if as_list else g.copy()
        assert case.step(g, max_norm=1.0) == other.step(copy, max_norm=1.0)
        assert case.everything() == other.everything()


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_shapes_and_dtypes(rng, kind, format):
    case, _ = started(kind, format, rng)
    state = case.optimizer.state_dict()["state"]
    low_bit, master = "8bit" in format, "master" in format
    for name, shape in LAYOUT:
        size = int(np.prod(shape))
        wanted = dict.fromkeys(MOMENTS[kind], (shape, "uint8" if low_bit else "float32"))
        if low_bit:
            blocks = (-(-size // 128),)
            wanted |= {moment + "_scale": (blocks, "uint16") for moment in MOMENTS[kind]}
        if master:
            wanted["master"] = (shape, "float32")
        assert {key: (a.shape, str(a.dtype)) for key, a in state[name].items()} == wanted


def test_names_without_a_layout(rng):
    one, many = Case("adamw", normal(rng, 5)), Case("adamw", [normal(rng, 5), normal(rng, (2, 3))])
    assert list(one.optimizer.state_dict()["state"]) == ["params"]
    state = many.optimizer.state_dict()["state"]
    assert list(state) == ["params[0]", "params[1]"]
    assert state["params[1]"]["exp_avg"].shape == (2, 3)


def test_arrays_are_copies(rng):
    case, gradient = started("adamw", "full", rng)
    state = case.optimizer.state_dict()
    kept = state["state"]["w"]["exp_avg"].copy()
    case.step(gradient())
    assert_same_bits(state["state"]["w"]["exp_avg"], kept)
    case.optimizer.load_state_dict(state)
    case.step(gradient())
    assert_same_bits(state["state"]["w"]["exp_avg"], kept)


def test_flat_buffer_and_list_have_the_same_state(rng):
    """What one saved, the other resumes from."""
    flat, _ = started("adam", "8bit", rng, as_list=False)
    other, _ = started("adam", "8bit", rng, as_list=True, steps=0)
    other.optimizer.load_state_dict(flat.optimizer.state_dict())
    assert other.everything()[1] == flat.everything()[1]


def test_masters_are_written_back(rng):
    case, _ = started("adamw", "master", rng)
    state = case.optimizer.state_dict()
    other, _ = started("adamw", "master", rng, steps=0)
    other.optimizer.load_state_dict(state)
    assert_same_bits(other.params[0], case.params[0])
    assert_same_bits(other.params[0], bfloat16.from_float32(case.optimizer.master))


@pytest.mark.parametrize("step", (2**24 + 1, 2**31 - 1, 2**31, 2**32, 2**40 + 1, 2**48 - 2))
@pytest.mark.parametrize("format", FORMATS)
def test_large_step_counts(rng, format, step):
    """A float32 counter sticks at 2^24, an int at 2^31."""
    case, gradient = started("adamw", format, rng)
    case.optimizer.load_state_dict(case.optimizer.state_dict() | {"step": step})
    assert case.step(gradient()).step == case.optimizer.step_count == step + 1
    assert np.isfinite(case.values()).all()
    assert case.optimizer.state_dict()["step"] == step + 1


def test_the_last_step(rng):
    case, gradient = started("adamw", "full", rng)
    state = case.optimizer.state_dict()
    case.optimizer.load_state_dict(state | {"step": 2**48 - 1})
    before = case.everything()
    with pytest.raises(ValueError, match="step"):
        case.step(gradient())
    for step in (2**48, 2**63, -1, 1.5):
        with pytest.raises((ValueError, TypeError), match="step"):
            case.optimizer.load_state_dict(state | {"step": step})
    assert case.everything() == before


# ---- refused, nothing changed --------------------------------------------------------------------


def wrong_states(good):
    """{text of the message: a state dict that must be refused}."""
    own = good["state"]

    def tensor(name, **changes):
        arrays = {
            key: value for key, value in {**own[name], **changes}.items() if value is not None
        }
        return good | {"state": own | {name: arrays}}

    name = next(key for key in own["b"] if not key.endswith("_scale"))
    array = own["b"][name]
    return {
        "kind": good | {"kind": "lion"},
        "seed": good | {"seed": 12},
        "step": good | {"step": 1.5},
        "lr": good | {"lr": -1.0},
        "'b'": good | {"state": {key: value for key, value in own.items() if key != "b"}},
        "'other'": good | {"state": own | {"other": own["b"]}},
        f"lack '{name}'": tensor("b", **{name: None}),
        "unexpected 'momentum'": tensor("b", momentum=array),
        "shape": tensor("b", **{name: array[:-1]}),
        "dtype": tensor("b", **{name: array.astype(np.float64)}),
        "expected a dict": good | {"state": [own]},
        "state_dict": "state",
        "'state'": {key: value for key, value in good.items() if key != "state"},
    }


@pytest.mark.parametrize("format", ("full", "8bit", "master", "8bit stochastic"))
@pytest.mark.parametrize("text", wrong_states({"state": {"b": {"exp_avg": np.zeros(1)}}}))
def test_wrong_states(rng, format, text):
    case, _ = started("adamw", format, rng)
    state = wrong_states(case.optimizer.state_dict())[text]
    before = case.everything()
    with pytest.raises((ValueError, TypeError)) as caught:
        case.optimizer.load_state_dict(state)
    assert text in str(caught.value)
    assert case.everything() == before and case.optimizer.lr == OPTIONS["lr"]


@pytest.mark.parametrize("format", ("full", "8bit", "master"))
def test_states_of_other_formats(rng, format):
    case, _ = started("adamw", format, rng)
    before = case.everything()
    for other in {"full", "8bit", "master", "8bit master"} - {format}:
        state = started("adamw", other, rng)[0].optimizer.state_dict()
        with pytest.raises(ValueError, match=r"exp_avg|master"):
            case.optimizer.load_state_dict(state)
        assert case.everything() == before


def test_amsgrad_needs_its_state(rng):
    plain, _ = started("adamw", "full", rng)
    largest, _ = started("adamw", "full", rng, amsgrad=True)
    for taker, giver in ((plain, largest), (largest, plain)):
        with pytest.raises(ValueError, match="max_exp_avg_sq"):
            taker.optimizer.load_state_dict(giver.optimizer.state_dict())
