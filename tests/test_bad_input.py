"""Wrong calls of the loss and of dropout: refused by name, with nothing written."""

import bad_input as bad
import numpy as np
import pytest

import flatstep as fs

NAN, INF = float("nan"), float("inf")


# ---- cross_entropy ------------------------------------------------------------------------------

LOSS_ARRAYS = {
    "logits": (
        # float16 logits are welcome, with a gradient of that type.
        *(spoil for spoil in bad.OTHER_KINDS if spoil is not bad.half),
        *(*bad.SCATTERED, bad.integer, bad.column_major, bad.nested_list),
    ),
    "targets": (*bad.OTHER_KINDS, bad.double, bad.one_short, bad.extra_axis),
    "grad": (
        *(spoil for spoil in bad.OTHER_KINDS if spoil is not bad.nothing),
        *(*bad.SCATTERED, bad.column_major, bad.double, bad.integer, bad.read_only),
        *(bad.one_short, bad.extra_axis, bad.nested_list),
    ),
    "grad_output": (*bad.OTHER_KINDS, bad.one_short, bad.extra_axis),
}


@pytest.mark.parametrize(("argument", "spoil"), bad.pairs(LOSS_ARRAYS))
def test_cross_entropy_arrays(argument, spoil):
    arrays = bad.fresh_arrays()
    given = {
        "logits": arrays.logits,
        "targets": arrays.targets,
        "grad": arrays.grad,
        "grad_output": arrays.upstream,
    }
    given[argument] = arrays.spoiled = spoil(given[argument])
    bad.check_refusal(lambda: fs.cross_entropy(**given, reduction="none"), arrays, argument)


@pytest.mark.parametrize("spoil", (bad.half, bad.double))
def test_cross_entropy_gradient_of_another_type(spoil):
    arrays = bad.fresh_arrays()
    arrays.spoiled = spoil(arrays.logits)
    error = bad.check_refusal(
        lambda: fs.cross_entropy(arrays.spoiled, arrays.targets, grad=arrays.grad), arrays, "grad"
    )
    assert isinstance(error, TypeError)


@pytest.mark.parametrize("dtype", (np.int32, np.int64))
@pytest.mark.parametrize(("row", "value"), [(0, -1), (3, 9), (5, 2**31 - 1), (2, -101)])
@pytest.mark.parametrize("in_place", (False, True))
def test_cross_entropy_target_out_of_range(row, value, dtype, in_place):
    arrays = bad.fresh_arrays()
    arrays.targets = bad.replaced(arrays.targets.astype(dtype), row, value)
    grad = arrays.logits if in_place else arrays.grad
    error = bad.check_refusal(
        lambda: fs.cross_entropy(arrays.logits, arrays.targets, grad=grad), arrays, "targets"
    )
    assert isinstance(error, IndexError)
    assert str(row) in str(error) and str(value) in str(error)


def test_cross_entropy_huge_target():
    """2^40 + 3 is 3 in 32 bits."""
    arrays = bad.fresh_arrays()
    arrays.targets = bad.replaced(arrays.targets, 4, 2**40 + 3)
    error = bad.check_refusal(
        lambda: fs.cross_entropy(arrays.logits, arrays.targets), arrays, "targets"
    )
    assert isinstance(error, IndexError) and str(2**40 + 3) in str(error)


LOSS_OPTIONS = {
    "reduction": ("average", None, 1),
    "label_smoothing": (-0.1, 1.0, NAN, "much", None),
    "ignore_index": (1.5, "none", None),
    "divisor": (0.0, -2.0, NAN, INF, "two"),
    "on_empty": ("one", None),
    # An array needs reduction="none".
    "grad_output": (NAN, "one", None, np.ones(6, np.float32)),
    "grad": (3,),
}


@pytest.mark.parametrize(("argument", "value"), bad.pairs(LOSS_OPTIONS), ids=str)
def test_cross_entropy_options(argument, value):
    arrays = bad.fresh_arrays()
    given = {"grad": arrays.grad, argument: value}
    bad.check_refusal(
        lambda: fs.cross_entropy(arrays.logits, arrays.targets, **given), arrays, argument
    )


@pytest.mark.parametrize("shape", ((6, 0), ()))
def test_cross_entropy_shapes(shape):
    arrays = bad.fresh_arrays()
    logits = np.zeros(shape, np.float32)
    bad.check_refusal(lambda: fs.cross_entropy(logits, arrays.targets), arrays, "logits")


def test_cross_entropy_overlap():
    arrays = bad.fresh_arrays()
    arrays.both = np.zeros((7, 9), np.float32)
    upper, lower = arrays.both[:6], arrays.both[1:]
    for logits, grad in ((upper, lower), (lower, upper)):
        bad.check_refusal(
            lambda x=logits, g=grad: fs.cross_entropy(x, arrays.targets, grad=g), arrays, "grad"
        )
    # Rows that lie on top of each other.
    arrays.narrow = np.zeros(20, np.float32)
    for stride in (0, 4):
        rows = np.lib.stride_tricks.as_strided(arrays.narrow, (6, 9), (stride, 4))
        bad.check_refusal(
            lambda g=rows: fs.cross_entropy(arrays.logits, arrays.targets, grad=g), arrays, "grad"
        )


# ---- dropout ------------------------------------------------------------------------------------

DROPOUT_ARRAYS = {
    "x": (*bad.OTHER_KINDS, bad.every_second, bad.double, bad.integer),
    "out": (
        *(spoil for spoil in bad.OTHER_KINDS if spoil is not bad.nothing),
        *(bad.every_second, bad.double, bad.read_only, bad.one_short, bad.extra_axis),
    ),
}


@pytest.mark.parametrize(("argument", "spoil"), bad.pairs(DROPOUT_ARRAYS))
def test_dropout_arrays(argument, spoil):
    arrays = bad.fresh_arrays()
    given = {"x": arrays.x, "out": arrays.out}
    given[argument] = arrays.spoiled = spoil(given[argument])
    bad.check_refusal(lambda: fs.dropout(**given, p=0.5, seed=0), arrays, argument)


DROPOUT_OPTIONS = {
    "p": (1.0, -0.1, NAN, "half"),
    "step": (-1, 2**48, 1.5),
    "site": (-1, 2**32),
    "seed": ("now", 0.5),
}


@pytest.mark.parametrize(("argument", "value"), bad.pairs(DROPOUT_OPTIONS))
def test_dropout_options(argument, value):
    arrays = bad.fresh_arrays()
    given = {"p": 0.5, "seed": 0, argument: value}
    bad.check_refusal(lambda: fs.dropout(arrays.x, **given, out=arrays.out), arrays, argument)
    bad.check_refusal(lambda: fs.dropout_mask(24, **given), arrays, argument)


def test_dropout_overlap_and_shape():
    arrays = bad.fresh_arrays()
    given = {"p": 0.5, "seed": 0}
    bad.check_refusal(lambda: fs.dropout(arrays.x[:-1], out=arrays.x[1:], **given), arrays, "out")
    for shape in (-1, (3, -2), "many", 2.5):
        bad.check_refusal(lambda s=shape: fs.dropout_mask(s, **given), arrays, "shape")
