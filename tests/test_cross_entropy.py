"""Cross-entropy and its gradient, element by element, against the float64 oracle."""

import math

import numpy as np
import oracle
import oracle_loss
import pytest
from loss_checks import (
    RANGES,
    assert_gradient,
    assert_rows,
    assert_same_bits,
    assert_statistics,
    make_logits,
)

import flatstep as fs

# 1 and 2: degenerate. 5, 7: below one vector. 8, 16: whole vectors of AVX2 and AVX-512. 17, 31:
# vectors with a tail. 64, 257, 1000: unrolled loops with and without tail. 50257: GPT-2.
CLASSES = (1, 2, 5, 7, 8, 16, 17, 31, 64, 257, 1000, 50257)


def rows_for(classes):
    return 3 if classes > 10000 else 75  # more than a group where classes are few


@pytest.mark.parametrize(("scale", "offset"), RANGES)
@pytest.mark.parametrize("classes", CLASSES)
def test_rows_and_gradient(rng, classes, scale, offset):
    rows = rows_for(classes)
    logits = make_logits(rng, (rows, classes), scale, offset)
    targets = rng.integers(0, classes, rows)
    upstream = rng.standard_normal(rows).astype(np.float32)
    result = fs.cross_entropy(logits, targets, reduction="none", grad=True, grad_output=upstream)
    expected = oracle_loss.cross_entropy(logits, targets, reduction="none", grad_output=upstream)
    assert result.loss.dtype == np.float32 and result.grad.dtype == np.float32
    assert_rows(result.loss, expected)
    assert_gradient(result.grad, expected)
    assert_statistics(result, expected)
    assert result.n_valid == result.weight_sum == rows


@pytest.mark.parametrize(
    "options",
    [
        {"reduction": "mean"},
        {"reduction": "sum", "grad_output": -0.75},
        {"reduction": "mean", "grad_output": 3.0, "label_smoothing": 0.1},
        {"reduction": "mean", "divisor": 37.0, "label_smoothing": 0.25},
        {"reduction": "sum", "label_smoothing": 0.9},
    ],
    ids=str,
)
@pytest.mark.parametrize("classes", (1, 7, 257, 1000))
def test_reductions_with_ignored_rows(rng, classes, options):
    shape = (5, 13)
    logits = make_logits(rng, (*shape, classes), 3)
    targets = rng.integers(0, classes, shape)
    targets[rng.random(shape) < 0.3] = -100
    result = fs.cross_entropy(logits, targets, grad=True, **options)
    expected = oracle_loss.cross_entropy(logits, targets, **options)
    assert isinstance(result.loss, float)
    assert abs(result.loss - expected.loss) <= 4 * oracle.ulp(expected.loss)
    assert result.n_valid == expected.n_valid == (targets != -100).sum()
    assert result.grad.shape == logits.shape and result.lse.shape == shape
    assert_gradient(result.grad, expected)
    assert not result.grad[targets == -100].any()


@pytest.mark.parametrize("classes", (2, 31, 1000))
def test_label_smoothing_rows(rng, classes):
    logits = make_logits(rng, (40, classes), 10)
    targets = rng.integers(0, classes, 40)
    upstream = rng.standard_normal(40).astype(np.float32)
    options = {"reduction": "none", "label_smoothing": 0.1, "grad_output": upstream}
    result = fs.cross_entropy(logits, targets, grad=True, **options)
    expected = oracle_loss.cross_entropy(logits, targets, **options)
    assert_rows(result.loss, expected)
    assert_gradient(result.grad, expected)


def test_double_precision(rng):
    logits = rng.standard_normal((30, 257)) * 10
    targets = rng.integers(0, 257, 30)
    result = fs.cross_entropy(logits, targets, reduction="none", grad=True)
    expected = oracle_loss.cross_entropy(logits, targets, reduction="none")
    assert result.loss.dtype == result.grad.dtype == result.lse.dtype == np.float64
    # The oracle itself is float64: a few roundings on either side.
    np.testing.assert_allclose(result.loss, expected.rows, rtol=1e-13, atol=0)
    assert np.all(np.abs(result.grad - expected.grad) <= 1e-14)


def test_loss_of_known_probabilities():
    logits = np.log(np.array([[0.20, 0.50, 0.10, 0.10, 0.10]]))
    for dtype, tolerance in ((np.float32, 2e-7), (np.float64, 1e-15)):
        result = fs.cross_entropy(logits.astype(dtype), np.array([1]), grad=True)
        assert result.loss == pytest.approx(-math.log(0.50), rel=tolerance)
        np.testing.assert_allclose(result.grad, [[0.2, -0.5, 0.1, 0.1, 0.1]], rtol=4 * tolerance)


@pytest.mark.parametrize("dtype", (np.int32, np.int64))
@pytest.mark.parametrize("classes", (7, 64, 1000))
def test_wide_rows_out_of_alignment(rng, classes, dtype):
    """The rows start one element past an aligned address and lie three elements further apart
    than they are long; the padding is NaN and must be neither used nor written."""
    wide = np.full((20, classes + 3), np.nan, np.float32)
    wide[:, 1 : classes + 1] = make_logits(rng, (20, classes))
    gradient = wide.copy()
    logits = wide[:, 1 : classes + 1]
    targets = rng.integers(0, classes, 20).astype(dtype)
    packed = fs.cross_entropy(logits.copy(), targets, grad=True)
    result = fs.cross_entropy(logits, targets, grad=gradient[:, 1 : classes + 1])
    assert result.loss == packed.loss
    assert_same_bits(gradient[:, 1 : classes + 1], packed.grad)
    assert np.isnan(gradient[:, 0]).all() and np.isnan(gradient[:, classes + 1 :]).all()
    in_place = fs.cross_entropy(logits, targets, grad=logits)
    assert in_place.loss == packed.loss
    assert_same_bits(wide, gradient)


@pytest.mark.parametrize("classes", (5, 257))
def test_in_place_returns_the_given_array(rng, classes):
    logits = make_logits(rng, (9, classes))
    targets = rng.integers(0, classes, 9)
    apart = fs.cross_entropy(logits, targets, grad=True)
    assert fs.cross_entropy(logits, targets).grad is None
    result = fs.cross_entropy(logits, targets, grad=logits)
    assert result.grad is logits and result.loss == apart.loss
    assert_same_bits(logits, apart.grad)


def test_custom_ignore_index(rng):
    logits = make_logits(rng, (6, 11))
    targets = np.array([3, 0, 10, 0, 5, 0])
    result = fs.cross_entropy(logits, targets, ignore_index=0, grad=True)
    expected = oracle_loss.cross_entropy(logits, targets, ignore_index=0)
    assert result.n_valid == 3
    assert_gradient(result.grad, expected)
    assert not result.grad[targets == 0].any()


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_all_ignored(rng, reduction):
    logits = make_logits(rng, (4, 9))
    targets = np.full(4, -100)
    for options in ({}, {"label_smoothing": 0.1}, {"on_empty": "zero"}):
        result = fs.cross_entropy(logits, targets, reduction=reduction, grad=True, **options)
        assert not np.any(result.loss) and not result.grad.any() and result.n_valid == 0
    result = fs.cross_entropy(logits, targets, reduction=reduction, grad=True, on_empty="nan")
    assert np.isnan(result.loss) if reduction == "mean" else not np.any(result.loss)
    assert not result.grad.any() and result.n_valid == 0


def test_no_rows():
    logits, targets = np.empty((0, 5), np.float32), np.empty(0, np.int64)
    result = fs.cross_entropy(logits, targets, grad=True)
    assert result.loss == 0 and result.n_valid == 0 and result.grad.shape == (0, 5)
    assert fs.cross_entropy(logits, targets, reduction="none").loss.shape == (0,)
    assert math.isnan(fs.cross_entropy(logits, targets, on_empty="nan").loss)


@pytest.mark.parametrize("label_smoothing", (0.0, 0.1))
def test_masked_classes(rng, label_smoothing):
    """-inf takes a class out: finite loss, zero gradient there, no smoothing mass for it."""
    logits = make_logits(rng, (30, 37), 3)
    targets = rng.integers(0, 37, 30)
    mask = rng.random(logits.shape) < 0.4
    mask[np.arange(30), targets] = False
    mask[0] = np.arange(37) != targets[0]  # only the target is left
    logits[mask] = -np.inf
    options = {"reduction": "none", "label_smoothing": label_smoothing}
    result = fs.cross_entropy(logits, targets, grad=True, **options)
    expected = oracle_loss.cross_entropy(logits, targets, **options)
    assert np.isfinite(result.loss).all() and not result.grad[mask].any()
    assert_rows(result.loss, expected)
    assert_gradient(result.grad, expected)


def test_masked_target_costs_infinity(rng):
    logits = make_logits(rng, (3, 9))
    logits[1, 4] = -np.inf
    result = fs.cross_entropy(logits, np.array([0, 4, 8]), reduction="none")
    assert result.loss[1] == np.inf and np.isfinite(result.loss[[0, 2]]).all()


@pytest.mark.parametrize("classes", (7, 64, 257))
@pytest.mark.parametrize("column", (0, -1))
def test_nan_stays_in_its_row(rng, classes, column):
    logits = make_logits(rng, (12, classes))
    targets = rng.integers(0, classes, 12)
    clean = fs.cross_entropy(logits, targets, reduction="none", grad=True)
    logits[5, column] = np.nan
    result = fs.cross_entropy(logits, targets, reduction="none", grad=True)
    others = np.arange(12) != 5
    assert np.isnan(result.loss[5]) and np.isnan(result.grad[5]).all()
    assert_same_bits(result.loss[others], clean.loss[others])
    assert_same_bits(result.grad[others], clean.grad[others])
    assert math.isnan(fs.cross_entropy(logits, targets).loss)


@pytest.mark.parametrize("classes", (5, 31, 257, 1000))
def test_row_does_not_depend_on_its_batch(rng, classes):
    logits = make_logits(rng, (33, classes), 4)
    targets = rng.integers(0, classes, 33)
    options = {"reduction": "none", "grad": True, "label_smoothing": 0.1}
    batch = fs.cross_entropy(logits, targets, **options)
    for row in (0, 1, 17, 32):
        alone = fs.cross_entropy(logits[row : row + 1].copy(), targets[row : row + 1], **options)
        assert_same_bits(alone.loss, batch.loss[row : row + 1])
        assert_same_bits(alone.grad, batch.grad[row : row + 1])
        assert_same_bits(alone.lse, batch.lse[row : row + 1])
        assert_same_bits(alone.entropy, batch.entropy[row : row + 1])
