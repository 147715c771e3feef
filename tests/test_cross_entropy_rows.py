"""Rows with NaN, infinities and masked classes; which rows are correct; entropy; wide strides."""

import math

import loss_checks as checks
import numpy as np
import oracle_loss
import pytest

import flatstep as fs

NAN, INF = math.nan, math.inf
ALL_OPTIONS = {"label_smoothing": 0.1, "z_loss": 0.01, "softcap": 15.0}


def random_weights(rng, rows, classes, dtype):
    return {
        "class_weight": rng.random(classes).astype(checks.row_dtype(dtype)) + 0.5,
        "token_weight": rng.standard_normal(rows).astype(checks.row_dtype(dtype)) + 3,
    }


# ---- broken rows -----------------------------------------------------------------------------


# Below, at and above one vector; the broken element first, in the middle, in the tail.
@pytest.mark.parametrize("classes", (5, 16, 131))
@pytest.mark.parametrize("dtype", checks.DTYPES)
@pytest.mark.parametrize("kind", ("nan", "infinity", "all masked"))
@pytest.mark.parametrize("plain", (True, False), ids=("plain", "weighted"))
def test_broken_row_is_nan_and_alone(rng, classes, dtype, kind, plain):
    values = rng.standard_normal((9, classes)) * 3
    targets = rng.integers(0, classes, 9)
    options = {"reduction": "none"}
    if not plain:
        options.update(ALL_OPTIONS, **random_weights(rng, 9, classes, dtype))
    if kind == "infinity":
        options["softcap"] = None
    clean, clean_gradient = checks.run(checks.store(values, dtype), targets, dtype, **options)
    others = np.arange(9) != 4
    for column in (0, classes // 2, classes - 1):
        spoiled = values.copy()
        if kind == "all masked":
            spoiled[4] = -INF
        else:
            spoiled[4, column] = NAN if kind == "nan" else INF
        stored = checks.store(spoiled, dtype)
        result, gradient = checks.run(stored, targets, dtype, **options)
        assert np.isnan(result.loss[4])
        assert np.isnan(checks.numbers_of(gradient, dtype)[4]).all()
        checks.assert_same_bits(gradient[others], clean_gradient[others])
        for name in ("loss", "lse", "entropy"):
            array = getattr(result, name)
            checks.assert_same_bits(array[others], getattr(clean, name)[others])
            assert not np.isfinite(array[4])
        assert result.n_valid == 9
        total, gradient = checks.run(stored, targets, dtype, **{**options, "reduction": "sum"})
        assert math.isnan(total.loss)
        assert np.isnan(checks.numbers_of(gradient, dtype)).all(axis=1).sum() == 1
        # Neither ignored rows nor the one that is left without target are broken.
        targets_without = np.where(others, targets, -100)
        result, gradient = checks.run(stored, targets_without, dtype, **options)
        assert result.loss[4] == result.lse[4] == result.entropy[4] == 0
        assert not checks.numbers_of(gradient, dtype)[4].any()


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_infinite_logit_under_a_softcap(dtype):
    """It is a logit of softcap: finite, without a gradient of its own."""
    stored = checks.store(np.array([[1, INF, -2, INF, 0.5], [INF, 1, -INF, 2, 3]]), dtype)
    targets = np.array([0, 0])
    options = {"reduction": "none", "softcap": 2.5, "label_smoothing": 0.1, "z_loss": 0.1}
    expected = oracle_loss.cross_entropy(checks.numbers_of(stored, dtype), targets, **options)
    result, gradient = checks.run(stored, targets, dtype, **options)
    assert np.isfinite(expected.loss).all() and np.isfinite(expected.grad).all()
    np.testing.assert_allclose(result.loss, expected.loss, rtol=1e-6)
    np.testing.assert_allclose(result.lse, expected.lse, rtol=1e-6)
    numbers = checks.numbers_of(gradient, dtype)
    np.testing.assert_allclose(numbers, expected.grad, rtol=2.0**-8, atol=1e-6)
    assert not numbers[0, [1, 3]].any() and not numbers[1, [0, 2]].any()
    assert result.n_correct == 1


@pytest.mark.parametrize("dtype", checks.DTYPES)
@pytest.mark.parametrize("softcap", (None, 7.5))
@pytest.mark.parametrize("weighted", (False, True))
def test_masked_target(rng, dtype, softcap, weighted):
    """Infinite loss; a finite gradient whose element at the target is -(1 - e) w_t, or with a
    softcap 0, and which is the usual one elsewhere."""
    values = rng.standard_normal((3, 21))
    values[1, [4, 9, 20]] = -INF
    stored, targets = checks.store(values, dtype), np.array([0, 4, 20])
    options = {"reduction": "none", "softcap": softcap}
    if weighted:
        options.update(label_smoothing=0.1, z_loss=0.1, **random_weights(rng, 3, 21, dtype))
    numbers = checks.numbers_of(stored, dtype)
    expected = oracle_loss.cross_entropy(numbers, targets, **options)
    result, gradient = checks.run(stored, targets, dtype, **options)
    assert result.loss[1] == INF and np.isfinite(result.loss[[0, 2]]).all()
    assert np.isfinite(checks.numbers_of(gradient, dtype)).all()
    if dtype == "float64":
        np.testing.assert_allclose(gradient, expected.grad, rtol=1e-12, atol=1e-15)
    else:
        single, wide = checks.run(numbers, targets, "float32", **options)
        checks.assert_gradient(wide, expected)
        checks.assert_statistics(single, expected)
        checks.assert_same_bits(gradient, checks.store(wide, dtype))
    at_target = checks.numbers_of(gradient, dtype)[1, 4]
    if softcap:
        assert at_target == 0
    elif not weighted:
        assert at_target == -1
    assert checks.run(stored, targets, dtype, **{**options, "reduction": "sum"})[0].loss == INF


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_masked_target_with_a_negative_weight(dtype):
    stored = checks.store(np.array([[0, -INF, 1.0]]), dtype)
    weight = np.array([-2], checks.row_dtype(dtype))
    result, gradient = checks.run(
        stored, np.array([1]), dtype, reduction="none", token_weight=weight
    )
    assert result.loss[0] == -INF and checks.numbers_of(gradient, dtype)[0, 1] == 2


ROWS = 150  # two groups of 64 and a part, where classes are few


# 2: no vector. 33: two of 16 and one. 1500: groups of fewer rows. 2500: two blocks.
@pytest.mark.parametrize("classes", (2, 33, 1500, 2500))
@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_row_with_all_options_does_not_depend_on_its_batch(rng, classes, dtype):
    stored = checks.store(rng.standard_normal((ROWS, classes)) * 4, dtype)
    targets = rng.integers(0, classes, ROWS)
    weights = random_weights(rng, ROWS, classes, dtype)
    weights["grad_output"] = rng.standard_normal(ROWS).astype(checks.row_dtype(dtype))

    def part(rows):
        own = {name: weights[name][rows] for name in ("token_weight", "grad_output")}
        own.update(ALL_OPTIONS, reduction="none", class_weight=weights["class_weight"])
        return checks.run(stored[rows], targets[rows], dtype, **own)

    batch, gradient = part(np.arange(ROWS))
    for rows in ([0], [64], [149], [149, 70, 3]):
        alone, own = part(rows)
        checks.assert_same_bits(own, gradient[rows])
        for name in ("loss", "lse", "entropy"):
            checks.assert_same_bits(getattr(alone, name), getattr(batch, name)[rows])


# ---- statistics ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", checks.DTYPES)
@pytest.mark.parametrize("softcap", (None, 0.5))
@pytest.mark.parametrize("classes", (2, 16, 17, 300))
def test_ties_go_to_the_first_class(rng, dtype, classes, softcap):
    """Three different logits only: almost every row has several largest ones. With a softcap of
    0.5 the capped ones of 40 and 50 are equal, their logits are not."""
    values = rng.choice((-3.0, 40.0, 50.0), (60, classes))
    values[:20] = np.minimum(values[:20], 40.0)
    targets = values.argmax(axis=1)
    options = {"softcap": softcap, "reduction": "none"}
    stored = checks.store(values, dtype)
    assert checks.run(stored, targets, dtype, **options)[0].n_correct == 60
    # The last of the largest is correct only where it is the first one too.
    last = classes - 1 - values[:, ::-1].argmax(axis=1)
    alone = int((last == targets).sum())
    assert alone < 60
    assert checks.run(stored, last, dtype, **options)[0].n_correct == alone
    smallest = values.argmin(axis=1)
    assert checks.run(stored, smallest, dtype, **options)[0].n_correct == int(
        (smallest == targets).sum()
    )


def test_which_rows_count():
    """Weights do not matter; ignored rows and rows with NaN are never correct."""
    logits = np.array([[3, 1], [1, 3], [3, 1], [NAN, 1], [3, NAN], [-INF, 1]], np.float32)
    targets = np.array([0, 1, -100, 0, 0, 1])
    tokens = np.array([0, -1, 2, 1, 1, 1], np.float32)
    result = fs.cross_entropy(logits, targets, token_weight=tokens, reduction="sum")
    assert result.n_valid == 5 and result.n_correct == 3
    assert result.weight_sum == 2
    classes = np.array([0, 0.25], np.float32)
    result = fs.cross_entropy(logits, targets, class_weight=classes, token_weight=tokens, divisor=1)
    assert result.n_valid == 5 and result.n_correct == 3
    assert result.weight_sum == 0
    # First -0.0, then 0.0: equal, so the first is meant.
    zeros = np.array([[-0.0, 0.0], [0.0, -0.0]], np.float32)
    assert fs.cross_entropy(zeros, np.array([0, 0])).n_correct == 2
    assert fs.cross_entropy(zeros, np.array([1, 1])).n_correct == 0


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_entropy_of_known_rows(dtype):
    masked = np.full(100, -INF)
    masked[[3, 50, 99, 7]] = -2.5
    confident = np.zeros(100)
    confident[30] = 40.0
    alone = np.full(100, -INF)
    alone[5] = 3
    stored = checks.store(np.stack([np.zeros(100), masked, confident, alone]), dtype)
    result, _ = checks.run(stored, np.array([0, 3, 30, 5]), dtype, reduction="none")
    # Uniform over 100, uniform over 4, almost certain: 99 classes with p = exp(-40), certain.
    wanted = [math.log(100), math.log(4), 99 * 41 * math.exp(-40), 0.0]
    np.testing.assert_allclose(result.entropy, wanted, rtol=1e-6)
    np.testing.assert_allclose(result.lse, [math.log(100), math.log(4) - 2.5, 40, 3], rtol=1e-6)


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_weight_sum(rng, dtype):
    stored = checks.store(rng.standard_normal((500, 11)), dtype)
    targets = rng.integers(0, 11, 500)
    targets[::7] = -100
    options = random_weights(rng, 500, 11, dtype)
    options["token_weight"][::7] = NAN  # of ignored rows: never looked at
    result, gradient = checks.run(stored, targets, dtype, **options)
    valid = targets != -100
    wanted = math.fsum(
        options["class_weight"][targets[valid]].astype(np.float64)
        * options["token_weight"][valid].astype(np.float64)
    )
    assert result.weight_sum == pytest.approx(wanted, rel=1e-14)
    assert math.isfinite(result.loss) and np.isfinite(checks.numbers_of(gradient, dtype)).all()
    plain, _ = checks.run(stored, targets, dtype)
    assert plain.weight_sum == plain.n_valid == valid.sum()
