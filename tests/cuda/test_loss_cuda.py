"""cross_entropy and linear_cross_entropy on a CUDA device, within the bounds of the CPU's tests."""

import itertools
import math

import cuda_case
import linear_case
import loss_checks as checks
import numpy as np
import oracle_loss
import pytest

import flatstep as fs

SINGLES_AND_PAIRS = tuple(
    names for size in (1, 2) for names in itertools.combinations(checks.OPTIONS, size)
)
SHAPE, CLASSES = (3, 5), 37

# One class; a warp's width; the last of the short rows, and the first of the long ones; rows for
# one block of threads and for a cluster, with tails.
WIDTHS = (1, 2, 31, 32, 33, 1000, 1024, 1025, 1031, 4096, 9001)

# Half a unit in the last place of a 16-bit number, relative and least.
ROUNDING = {"float32": (0.0, 0.0), "bfloat16": (2.0**-8, 0.0), "float16": (2.0**-11, 2.0**-25)}


def make_case(rng, names, dtype, reduction, masked=False, classes=CLASSES):
    """-> logits as stored, targets, options."""
    options = checks.draw_options(rng, names, SHAPE, classes, dtype, reduction)
    targets = checks.draw_targets(rng, SHAPE, classes, options)
    values = rng.standard_normal((*SHAPE, classes)) * 3
    if masked:
        checks.mask_classes(rng, values, targets)
    return checks.store(values, dtype), targets, options


def assert_right(stored, targets, dtype, result, gradient, options):
    numbers = checks.numbers_of(stored, dtype)
    expected = oracle_loss.cross_entropy(numbers, targets, **options)
    reduction = options.get("reduction", "mean")
    if dtype == "float32":
        checks.assert_single(result, gradient, expected, reduction)
        return
    relative, least = ROUNDING[dtype]
    bound = checks.gradient_bound(expected) * (1 + relative)
    bound = bound + np.maximum(relative * np.abs(expected.grad), least)
    checks.assert_within(checks.numbers_of(gradient, dtype), expected.grad, bound, "grad")
    checks.assert_statistics(result, expected)


@pytest.mark.parametrize("masked", (False, True), ids=("", "masked"))
@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("names", SINGLES_AND_PAIRS, ids="+".join)
def test_options(rng, names, reduction, masked):
    stored, targets, options = make_case(rng, names, "float32", reduction, masked)
    result, gradient = cuda_case.run(stored, targets, "float32", **options)
    assert_right(stored, targets, "float32", result, gradient, options)
    in_place, same = cuda_case.run(stored, targets, "float32", in_place=True, **options)
    checks.assert_same_bits(same, gradient)
    checks.assert_same_bits(in_place.loss, result.loss)
    without = fs.cross_entropy(
        fs.to_device(stored), fs.to_device(targets), **cuda_case.place_options(options)
    )
    assert without.grad is None
    for name in ("loss", "lse", "entropy", "n_valid", "n_correct", "weight_sum"):
        checks.assert_same_bits(
            cuda_case.fetch(getattr(without, name)), cuda_case.fetch(getattr(result, name))
        )


@pytest.mark.parametrize("names", ((), ("label_smoothing", "z_loss"), ("softcap", "class_weight")))
@pytest.mark.parametrize("dtype", checks.SINGLE_INSIDE)
@pytest.mark.parametrize("classes", WIDTHS)
def test_widths(rng, classes, dtype, names):
    stored, targets, options = make_case(rng, names, dtype, "mean", classes=classes)
    result, gradient = cuda_case.run(stored, targets, dtype, **options)
    assert_right(stored, targets, dtype, result, gradient, options)


@pytest.mark.parametrize("dtype", checks.SINGLE_INSIDE)
def test_the_counts_and_weights_are_those_of_the_cpu(rng, dtype):
    stored, targets, options = make_case(rng, ("class_weight", "token_weight"), dtype, "sum")
    here, _ = checks.run(stored, targets, dtype, **options)
    there, _ = cuda_case.run(stored, targets, dtype, **options)
    assert (here.n_valid, here.n_correct) == (there.n_valid, there.n_correct)
    assert there.weight_sum == pytest.approx(here.weight_sum, rel=1e-14)
    assert type(there.loss) is type(there.weight_sum) is float
    assert type(there.n_valid) is type(there.n_correct) is int


@pytest.mark.parametrize("dtype", checks.SINGLE_INSIDE)
@pytest.mark.parametrize(("before", "after"), ((0, 3), (1, 0), (4, 4)))
@pytest.mark.parametrize("classes", (37, 1500))
def test_rows_further_apart(rng, classes, before, after, dtype):
    """The same bits, and nothing written between the rows."""
    stored, targets, _ = make_case(rng, (), dtype, "mean", classes=classes)
    wanted, wanted_gradient = cuda_case.run(stored, targets, dtype)
    for in_place in (False, True):
        logits = cuda_case.Rows(stored, before, after, dtype)
        grad = logits if in_place else cuda_case.Rows(np.full_like(stored, 7), after, before, dtype)
        result = fs.cross_entropy(logits, fs.to_device(targets), grad=grad)
        assert result.grad is grad and result.loss == wanted.loss
        gradient, around = grad.fetch()
        checks.assert_same_bits(gradient, wanted_gradient)
        assert around


@pytest.mark.parametrize("dtype", ("int32", "int64"))
@pytest.mark.parametrize("shape", ((), (1,), (0,), (2, 0), (70,)))
def test_shapes_and_targets(rng, shape, dtype):
    stored = rng.standard_normal((*shape, 5)).astype(np.float32)
    targets = rng.integers(0, 5, shape).astype(dtype)
    here = fs.cross_entropy(stored, targets, grad=True, on_empty="zero")
    there, gradient = cuda_case.run(stored, np.asarray(targets), "float32")
    assert there.loss == pytest.approx(here.loss, rel=1e-6) and there.n_valid == here.n_valid
    assert gradient.shape == stored.shape and there.lse.shape == shape


def test_a_row_has_the_same_bits_in_any_batch(rng):
    for classes in (37, 1500):
        stored, targets, _ = make_case(rng, (), "float32", "sum", classes=classes)
        stored, targets = stored.reshape(-1, classes), targets.reshape(-1)
        targets[4] = 3
        _, whole = cuda_case.run(stored, targets, "float32", reduction="sum")
        _, alone = cuda_case.run(stored[4:5], targets[4:5], "float32", reduction="sum")
        checks.assert_same_bits(whole[4:5], alone)


def test_everything_ignored():
    targets = np.full(4, -100)
    for on_empty, loss in (("zero", 0.0), ("nan", math.nan)):
        result, gradient = cuda_case.run(
            np.ones((4, 6), np.float32), targets, "float32", on_empty=on_empty
        )
        assert result.loss == loss or (math.isnan(result.loss) and math.isnan(loss))
        assert result.n_valid == 0 and not gradient.any() and not result.lse.any()


def test_rows_that_are_not_numbers_stay_alone(rng):
    stored, targets, _ = make_case(rng, (), "float32", "none")
    wanted, wanted_gradient = cuda_case.run(stored, targets, "float32", reduction="none")
    targets[0, 1] = targets[1, 2] = 4
    broken = stored.copy()
    broken[0, 1, 3] = np.nan
    broken[1, 2] = -np.inf
    result, gradient = cuda_case.run(broken, targets, "float32", reduction="none")
    rest = np.ones(SHAPE, bool)
    for row in ((0, 1), (1, 2)):
        rest[row] = False
        assert np.isnan(result.loss[row]) and np.isnan(gradient[row]).all()
    checks.assert_same_bits(result.loss[rest], wanted.loss[rest])
    checks.assert_same_bits(gradient[rest], wanted_gradient[rest])


@pytest.mark.parametrize("grad", (False, True))
def test_double_precision_is_refused(grad):
    logits = fs.DeviceArray.zeros((2, 3), "float64")
    with pytest.raises(ValueError, match=r"^logits: got float64.*expected float32"):
        fs.cross_entropy(logits, fs.DeviceArray.zeros(2, "int64"), grad=grad)


def test_new_arrays(rng):
    stored, targets, _ = make_case(rng, (), "bfloat16", "none")
    logits = cuda_case.place(stored, "bfloat16")
    result = fs.cross_entropy(logits, fs.to_device(targets), grad=True, reduction="none")
    assert isinstance(result, fs.CrossEntropyResult)
    for name, dtype in (("grad", "bfloat16"), ("loss", "float32"), ("lse", "float32")):
        array = getattr(result, name)
        assert type(array) is fs.DeviceArray and array.dtype == dtype and array.device == "cuda:0"
    assert result.grad.shape == logits.shape and result.loss.shape == SHAPE


# ---- linear_cross_entropy -----------------------------------------------------------------------


def assert_linear(case, result, gradients):
    """As on the CPU, but that 16-bit products take the logits' gradient rounded to that type."""
    expected = case.expected()
    linear_case.assert_case(case, result, None, expected)
    if gradients is not None:
        tolerance = 4 * case.logit_error().max() + 16 * 2.0**-24 + ROUNDING[case.dtype][0]
        linear_case.assert_gradients(case, gradients, expected, tolerance)


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("bias", (False, True), ids=("", "bias"))
@pytest.mark.parametrize("dtype", linear_case.DTYPES)
def test_linear(rng, dtype, bias, reduction):
    names = ("grad_output", "label_smoothing", "ignore_index")
    case = cuda_case.LinearCase(rng, dtype, names, reduction, bias=bias)
    least = case.smallest_workspace()
    for workspace_bytes in (least, least + 50_000, linear_case.WHOLE):
        assert_linear(case, *case.call(workspace_bytes))


@pytest.mark.parametrize("dtype", linear_case.DTYPES)
@pytest.mark.parametrize("name", checks.OPTIONS)
def test_linear_options(rng, name, dtype):
    case = cuda_case.LinearCase(rng, dtype, (name,), "mean" if name == "divisor" else "none")
    assert_linear(case, *case.call())
    assert_linear(case, *case.call(grad=False))


# Not float16: with so many classes most of a gradient lies below its least normal number.
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("classes", (4101, 4161, 4104))
def test_linear_with_many_classes(rng, dtype, classes):
    """Those beyond a multiple of 64 may have products of their own; several chunks of rows, too."""
    names = ("grad_output", "label_smoothing", "ignore_index")
    case = cuda_case.LinearCase(rng, dtype, names, rows=(7,), width=16, classes=classes)
    for workspace_bytes in (case.smallest_workspace(), linear_case.WHOLE):
        assert_linear(case, *case.call(workspace_bytes))


def test_linear_accumulates(rng):
    case = cuda_case.LinearCase(rng, "float32", (), "sum")
    _, once = case.call()
    ones = {
        "grad_weight": np.ones(once["grad_weight"].shape, np.float32),
        "grad_bias": np.ones(once["grad_bias"].shape, np.float32),
    }
    _, twice = case.call(accumulate=True, **ones)
    for name in ones:
        assert np.allclose(twice[name], once[name] + 1, rtol=1e-5, atol=1e-5)


def test_linear_new_arrays(rng):
    case = cuda_case.LinearCase(rng, "bfloat16")
    arrays = [cuda_case.place(array, "bfloat16") for array in (case.hidden, case.weight)]
    result = fs.linear_cross_entropy(*arrays, fs.to_device(case.targets))
    assert isinstance(result, fs.LinearCrossEntropyResult)
    assert result.grad_hidden.dtype == "bfloat16" and result.grad_weight.dtype == "float32"
    assert result.grad_bias is None and result.grad_hidden.shape == case.hidden.shape
