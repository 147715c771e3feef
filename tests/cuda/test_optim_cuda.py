"""Optimizers on a CUDA device: the bits of the CPU in every format, and nothing else but waits."""

import bfloat16
import cuda_case
import numpy as np
import pytest
from optim_case import FORMATS, KINDS, MOMENTS, Case, assert_same_bits, normal, state_bytes

import flatstep as fs

# Several chunks of 4096; blocks of 128 with a part; nothing; one element; 2-D.
LAYOUT = [
    ("a", (8203,)),
    ("b", (13, 43), {"weight_decay": 0.0, "lr_scale": 0.3}),
    ("empty", (0, 2)),
    ("c", (1,)),
    ("d", (3, 257), {"betas": (0.8, 0.99)}),
]
OPTIONS = {"lr": 3e-3, "weight_decay": 0.1, "seed": 11}
GRADIENTS = ("float32", "bfloat16", "float16")


def cut(layout, flat, as_list):
    return [view.copy() for view in layout.views(flat).values()] if as_list else flat


def as_stored(arrays, dtype):
    if isinstance(arrays, list):
        return [as_stored(array, dtype) for array in arrays]
    return bfloat16.from_float32(arrays) if dtype == "bfloat16" else arrays.astype(dtype)


def as_given(arrays):
    """To the CPU's optimizer."""
    if isinstance(arrays, list):
        return [as_given(array) for array in arrays]
    return bfloat16.Bfloat16Array(arrays) if arrays.dtype == np.uint16 else arrays


class Twins:
    """The same optimizer here and there."""

    def __init__(self, rng, kind, format="full", as_list=False, layout=LAYOUT, **options):
        self.rng, self.as_list = rng, as_list
        self.layout = fs.Layout(layout)
        start = cut(self.layout, normal(rng, self.layout.size), as_list)
        options = OPTIONS | {"layout": self.layout} | options
        self.here = Case(kind, start, format, **options)
        self.there = cuda_case.OptimizerCase(kind, start, format, **options)

    def gradient(self, dtype="float32", scale=1.0):
        flat = normal(self.rng, self.layout.size, scale)
        return as_stored(cut(self.layout, flat, self.as_list), dtype)

    def step(self, gradient, **options):
        """One step on each side; asserts that the results are the same."""
        copies = [g.copy() for g in gradient] if self.as_list else gradient.copy()
        here = self.here.step(as_given(copies), **options)
        there = self.there.step(gradient, **options)
        for name in ("grad_norm", "clip_scale", "skipped", "nonfinite", "lr", "step"):
            one, other = getattr(here, name), getattr(there, name)
            assert one == other or (one != one and other != other), (name, one, other)
            assert type(one) is type(other), name
        after = copies if self.as_list else [copies]
        for own, array in zip(after, self.there.grads, strict=True):
            assert_same_bits(cuda_case.fetch(array), own)
        return there

    def assert_same(self):
        assert self.here.everything() == self.there.everything()


def variants():
    cases = [(kind, format, {}) for kind in KINDS for format in FORMATS]
    cases += [(kind, "full", {"amsgrad": True}) for kind in ("adamw", "adam")]
    cases += [(kind, "full", {"maximize": True}) for kind in KINDS]
    return [*cases, ("sgd", "full", {"momentum": 0.0}), ("sgd", "8bit", {"nesterov": True})]


@pytest.mark.parametrize("as_list", (False, True), ids=("flat", "list"))
@pytest.mark.parametrize(("kind", "format", "options"), variants(), ids=str)
def test_the_bits_of_the_cpu(rng, kind, format, options, as_list):
    twins = Twins(rng, kind, format, as_list, **options)
    for step in range(4):
        info = twins.step(twins.gradient(), max_norm=1.0, grad_scale=2.0, zero_grad=step == 2)
        assert isinstance(info, fs.StepInfo) and info.clip_scale < 1 and info.step == step + 1
    twins.assert_same()


@pytest.mark.parametrize("dtype", GRADIENTS)
@pytest.mark.parametrize("format", ("full", "8bit", "master"))
def test_gradients_of_every_type(rng, format, dtype):
    twins = Twins(rng, "adamw", format)
    for zero_grad in (False, True):
        twins.step(twins.gradient(dtype), zero_grad=zero_grad)
    twins.assert_same()


def test_many_small_tensors(rng):
    layout = [(f"t{i}", (int(size),)) for i, size in enumerate(rng.integers(0, 40, 300))]
    twins = Twins(rng, "adamw", as_list=True, layout=layout)
    for _ in range(2):
        twins.step(twins.gradient(), max_norm=1.0)
    twins.assert_same()


def test_options_that_change(rng):
    twins = Twins(rng, "adamw")
    twins.step(twins.gradient())
    for case in (twins.here, twins.there):
        case.optimizer.weight_decay = 0.5
        case.optimizer.lr = 0.02
    twins.step(twins.gradient())
    twins.step(twins.gradient(), lr=0.001)
    twins.assert_same()


@pytest.mark.parametrize("kind", KINDS)
def test_a_learning_rate_on_the_device(rng, kind):
    twins = Twins(rng, kind)
    gradient = twins.gradient()
    for shape in ((), (1,), (1, 1)):
        here = twins.here.step(gradient, lr=0.0123)
        there = twins.there.step(gradient, lr=fs.to_device(np.full(shape, 0.0123)))
        assert (there.lr, there.step, there.grad_norm) == (0.0123, here.step, here.grad_norm)
    twins.assert_same()


@pytest.mark.parametrize(
    ("lr", "message"),
    (
        (np.full(2, 0.1), r"^lr: got shape \[2\], expected \[\]"),
        (np.full(1, 0.1, np.float32), "^lr: got float32, expected float64"),
    ),
)
def test_wrong_learning_rates_on_the_device(rng, lr, message):
    case = cuda_case.OptimizerCase("adamw", normal(rng, 30))
    before = case.everything()
    with pytest.raises((ValueError, TypeError), match=message):
        case.step(normal(rng, 30), lr=fs.to_device(lr))
    assert case.everything() == before


# ---- what is not finite -------------------------------------------------------------------------


@pytest.mark.parametrize("as_list", (False, True), ids=("flat", "list"))
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_finite_skips_the_step(rng, kind, format, as_list):
    twins = Twins(rng, kind, format, as_list)
    twins.step(twins.gradient())
    before = twins.there.everything()
    for name, value in (("a", np.nan), ("b", np.inf), ("c", -np.inf), ("d", np.nan)):
        flat = normal(rng, twins.layout.size)
        index = int(rng.integers(twins.layout[name].size))
        flat[twins.layout[name].offset + index] = value
        info = twins.step(cut(twins.layout, flat, as_list), max_norm=1.0, zero_grad=True)
        assert info.skipped and info.nonfinite == (name, index) and info.step == 1
        assert twins.there.everything() == before
    twins.step(twins.gradient())
    twins.assert_same()


def test_squares_beyond_the_range(rng):
    twins = Twins(rng, "adamw")
    gradient = twins.gradient()
    gradient[5000] = 3e19
    info = twins.step(gradient)
    assert info.skipped and info.nonfinite == ("a", 5000)
    assert not twins.step(gradient, max_norm=1.0).skipped
    twins.assert_same()


def test_too_many_in_a_row(rng):
    case = cuda_case.OptimizerCase("sgd", normal(rng, 20), max_consecutive_skips=2)
    bad = np.full(20, np.nan, np.float32)
    assert case.step(bad).skipped
    info = case.step(bad)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"^grads: not finite in 2 steps in a row, last in"):
            assert info.skipped
    assert not case.step(normal(rng, 20)).skipped


def test_too_many_in_a_row_that_nobody_looks_at(rng):
    case = cuda_case.OptimizerCase("sgd", normal(rng, 20), max_consecutive_skips=1)
    case.step(np.full(20, np.nan, np.float32))
    with pytest.raises(RuntimeError, match=r"^grads: not finite in 1 steps in a row"):
        fs.synchronize()
    fs.synchronize()
    assert case.step(normal(rng, 20)).step == case.optimizer.step_count == 1


# ---- state --------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_list", (False, True), ids=("flat", "list"))
@pytest.mark.parametrize(("kind", "format", "options"), variants(), ids=str)
def test_state_goes_between_devices(rng, kind, format, options, as_list):
    twins = Twins(rng, kind, format, as_list, **options)
    for _ in range(2):
        twins.step(twins.gradient())
    state = twins.there.optimizer.state_dict()
    for views in state["state"].values():
        assert all(type(array) is np.ndarray for array in views.values())
    twins.here.optimizer.load_state_dict(state)
    for case in (twins.here, twins.there):
        case.optimizer.lr = 0.5
    twins.there.optimizer.load_state_dict(state)
    assert twins.there.optimizer.lr == OPTIONS["lr"] and twins.there.optimizer.step_count == 2
    twins.here.optimizer.lr = OPTIONS["lr"]
    twins.step(twins.gradient())
    twins.assert_same()


def test_a_wrong_state_changes_nothing(rng):
    case = cuda_case.OptimizerCase("adamw", normal(rng, 300))
    case.step(normal(rng, 300))
    before = case.everything()
    wrong = case.optimizer.state_dict()
    wrong["state"]["params"]["exp_avg_sq"] = np.zeros(299, np.float32)
    with pytest.raises(ValueError, match=r"^state_dict: exp_avg_sq of 'params' has shape"):
        case.optimizer.load_state_dict(wrong)
    assert case.everything() == before


@pytest.mark.parametrize("kind", KINDS)
def test_moments(rng, kind):
    for format in ("full", "8bit"):
        twins = Twins(rng, kind, format)
        twins.step(twins.gradient())
        for name in MOMENTS[kind]:
            here = getattr(twins.here.optimizer, name)
            there = getattr(twins.there.optimizer, name)
            assert type(there) is (fs.DeviceArray if format == "full" else np.ndarray)
            assert_same_bits(cuda_case.fetch(there), here)


def test_masters_are_on_the_device(rng):
    case = cuda_case.OptimizerCase("adamw", normal(rng, 300).reshape(3, 100), "master")
    master = case.optimizer.master
    assert type(master) is fs.DeviceArray and master.shape == (3, 100)
    case.step(normal(rng, 300).reshape(3, 100))
    assert_same_bits(
        bfloat16.from_float32(master.numpy()), cuda_case.fetch(case.placed[0][1]), "rounded"
    )


def test_the_step_count_is_set(rng):
    twins = Twins(rng, "adamw")
    for case in (twins.here, twins.there):
        case.optimizer.load_state_dict(case.optimizer.state_dict() | {"step": 1000})
    assert twins.step(twins.gradient()).step == 1001
    twins.assert_same()


# ---- partial sums -------------------------------------------------------------------------------


@pytest.mark.parametrize("as_list", (False, True), ids=("flat", "list"))
def test_the_norm_handed_over(rng, as_list):
    twins = Twins(rng, "adamw", as_list=as_list)
    totals, other = twins.gradient(), twins.gradient()
    layout = None if as_list else twins.layout

    def accumulate(totals, src):
        return fs.accumulate(totals, src, scale=0.5, layout=layout)

    def place(arrays):
        return [fs.to_device(a) for a in arrays] if as_list else fs.to_device(arrays)

    there = place(totals)
    partials = accumulate(there, place(other))
    own = accumulate(totals, other)
    assert partials.norm == own.norm and list(partials.sizes) == list(own.sizes)
    one = twins.there.optimizer.step(there, max_norm=1.0, partials=partials)
    two = twins.here.step(totals, max_norm=1.0, partials=own)
    assert (one.grad_norm, one.clip_scale) == (two.grad_norm, two.clip_scale)
    twins.assert_same()


def test_partials_of_another_device(rng):
    case = cuda_case.OptimizerCase("adamw", normal(rng, 50))
    before = case.everything()
    partials = fs.accumulate(normal(rng, 50), normal(rng, 50))
    with pytest.raises(ValueError, match=r"^partials: got those of gradients on another device"):
        case.step(normal(rng, 50), partials=partials)
    assert case.everything() == before


# ---- what is refused ----------------------------------------------------------------------------


def test_what_only_the_cpu_has():
    double = fs.DeviceArray.zeros(8, "float64")
    for make in (fs.SGD, fs.AdamW):
        with pytest.raises(ValueError, match=r"^params: got float64.*expected float32 or bfloat16"):
            make(double)
        with pytest.raises(ValueError, match=r"^mode: got 'torch'.*expected 'native'"):
            make(fs.DeviceArray.zeros(8), mode="torch")


def test_wrong_calls_change_nothing(rng):
    case = cuda_case.OptimizerCase("adamw", [normal(rng, 50), normal(rng, 7)])
    before, grads = case.everything(), [fs.to_device(normal(rng, n)) for n in (50, 7)]
    step = case.optimizer.step
    for call, message in (
        (lambda: step(grads[:1]), r"^grads: got 1 arrays, expected 2"),
        (lambda: step(grads[::-1]), r"^grads\[0\]: got shape \[7\], expected \[50\]"),
        (lambda: step(grads, lr=-1), "^lr: got -1"),
        (lambda: step(grads, max_norm=0), "^max_norm: got 0"),
        (
            lambda: step([case.placed[0][1], grads[1]]),
            r"^(grads|params)\[0\]: got memory",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert case.everything() == before and state_bytes(case.optimizer)[0] == 0
