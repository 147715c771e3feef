"""Masked classes in some blocks of a row or in some rows only: the others take another loop."""

import loss_checks as checks
import numpy as np
import oracle_loss
import pytest

BLOCK = 2048
TARGET = BLOCK + 5
# Blocks, enough for a row to be split among threads, and a part that ends in part of a vector.
BLOCKS = 16
CLASSES = BLOCKS * BLOCK + 37

# The masked classes of a row; TARGET is never one.
PLACES = {
    "none": slice(0, 0),
    "first class": slice(0, 1),
    "end of the first block": slice(BLOCK - 1, BLOCK),
    "second block": slice(BLOCK + 100, BLOCK + 103),
    "tail": slice(CLASSES - 1, CLASSES),
    "last block": slice(BLOCKS * BLOCK, CLASSES),
    "first block": slice(0, BLOCK),
    "all blocks but one": np.r_[0:BLOCK, 2 * BLOCK : CLASSES],
    "all classes but one": np.r_[0:TARGET, TARGET + 1 : CLASSES],
}
SMOOTHING = {
    "uniform": {"label_smoothing": 0.1},
    "weighted": {"label_smoothing": 0.3, "z_loss": 1e-3},
}


def make_case(rng, dtype, smoothing):
    values = rng.standard_normal((len(PLACES), CLASSES)) * 4
    for row, places in zip(values, PLACES.values(), strict=True):
        row[places] = -np.inf
    options = {"reduction": "none", **SMOOTHING[smoothing]}
    if smoothing == "weighted":
        weights = checks.some_zeros(rng, rng.random(CLASSES) * 3)
        options["class_weight"] = weights.astype(checks.row_dtype(dtype))
    return checks.store(values, dtype), np.full(len(PLACES), TARGET), options


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_blocks_with_and_without(rng, dtype, smoothing):
    stored, targets, options = make_case(rng, dtype, smoothing)
    result, gradient = checks.run(stored, targets, dtype, **options)
    single = checks.numbers_of(stored, dtype)
    expected = oracle_loss.cross_entropy(single, targets, **options)
    if dtype == "float64":
        checks.assert_double(result, gradient, expected)
    else:
        wanted, wide = checks.run(single, targets, "float32", **options)
        checks.assert_single(wanted, wide, expected, "none")
        checks.assert_same_bits(gradient, checks.store(wide, dtype))
        checks.assert_same_bits(result.loss, wanted.loss)
    for row, places in enumerate(PLACES.values()):
        assert not checks.numbers_of(gradient, dtype)[row, places].any()
    _, in_place = checks.run(stored, targets, dtype, in_place=True, **options)
    checks.assert_same_bits(in_place, gradient)


@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_same_bits_however_rows_are_divided(assert_same_for_all_threads, rng, dtype, smoothing):
    """Alone, a row is split over its classes as soon as there are two threads."""
    stored, targets, options = make_case(rng, dtype, smoothing)
    whole, gradient = checks.run(stored, targets, dtype, **options)

    def compute():
        parts = [
            checks.run(stored[i : i + 1], targets[i : i + 1], dtype, **options)
            for i in range(len(stored))
        ]
        return (
            np.concatenate([part for _, part in parts]).tobytes(),
            np.concatenate([part.loss for part, _ in parts]).tobytes(),
        )

    assert compute() == (gradient.tobytes(), whole.loss.tobytes())
    assert_same_for_all_threads(compute)


# Rows of one block: less than a vector, whole vectors, pairs of them, and tails of both.
@pytest.mark.parametrize("classes", (7, 16, 32, 37, 48, 131, 256))
@pytest.mark.parametrize("smoothing", SMOOTHING)
@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_rows_with_and_without(rng, dtype, smoothing, classes):
    """A masked class does not change its neighbours' bits, nor the way they are computed."""
    options = {"reduction": "none", **SMOOTHING[smoothing]}
    if smoothing == "weighted":
        options["class_weight"] = rng.random(classes).astype(checks.row_dtype(dtype))
    values = rng.standard_normal((40, classes)) * 4
    targets = rng.integers(0, classes - 1, 40)
    clean, clean_gradient = checks.run(checks.store(values, dtype), targets, dtype, **options)
    for column in (-1, 0):
        spoiled = values.copy()
        targets_here = np.where(targets == column, 1, targets)
        rows = np.array([0, 3, 17, 38, 39])
        spoiled[rows, column] = -np.inf
        stored = checks.store(spoiled, dtype)
        result, gradient = checks.run(stored, targets_here, dtype, **options)
        expected = oracle_loss.cross_entropy(
            checks.numbers_of(stored, dtype), targets_here, **options
        )
        if dtype in ("float32", "float64"):
            check = checks.assert_double if dtype == "float64" else checks.assert_single
            check(result, gradient, expected, *(["none"] if dtype == "float32" else []))
        others = np.setdiff1d(np.flatnonzero(targets_here == targets), rows)
        checks.assert_same_bits(gradient[others], clean_gradient[others])
        checks.assert_same_bits(result.loss[others], clean.loss[others])
