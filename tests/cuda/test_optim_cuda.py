"""Optimizers on a CUDA device: the bits of the CPU in every format, and nothing else but waits."""

import cuda_case
import numpy as np
import pytest
from cuda_case import Twins, cut, variants
from optim_case import FORMATS, KINDS, normal, state_bytes

import flatstep as fs

GRADIENTS = ("float32", "bfloat16", "float16")


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
