"""Linear cross-entropy: the same bits for all threads; ignored, broken, masked and absent rows."""

import hashlib

import loss_checks as checks
import numpy as np
import oracle_loss
import pytest
from linear_case import DTYPES, GRADIENTS, NAMES, ROWS, WIDTH, Case, assert_case

import flatstep as fs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", (("label_smoothing",), NAMES), ids=("plain", "all"))
@pytest.mark.parametrize(("rows", "width"), ((157, WIDTH), (91, 3)))
def test_same_bits_for_all_threads(assert_same_for_all_threads, rng, dtype, names, rows, width):
    """One chunk, and several with a short last one; enough work for threads, and too little."""
    case = Case(rng, dtype, names, "none", rows=(rows,), width=width)
    for workspace_bytes in case.workspaces():

        def compute(workspace_bytes=workspace_bytes):
            result, gradients = case.call(workspace_bytes)
            parts = (result.loss, result.lse, result.entropy, result.weight_sum)
            total = hashlib.sha256()
            for part in (*parts, result.n_correct, *gradients.values()):
                total.update(np.ascontiguousarray(part).tobytes())
            return total.hexdigest()

        assert_same_for_all_threads(compute)


@pytest.mark.parametrize("dtype", DTYPES)
def test_ignored_rows_count_for_nothing(rng, dtype):
    """Whatever finite numbers they hold."""
    case = Case(rng, dtype)
    ignored = case.targets == -100
    result, gradients = case.call(case.workspaces()[1])
    assert ignored.any() and not gradients["grad_hidden"][ignored].any()
    assert not result.lse[ignored].any() and not result.entropy[ignored].any()
    case.hidden[ignored] = checks.store(rng.standard_normal((ignored.sum(), WIDTH)) * 50, dtype)
    other, same = case.call(case.workspaces()[1])
    assert other.loss == result.loss
    for name in GRADIENTS:
        np.testing.assert_array_equal(gradients[name], same[name])
    case.targets[...] = -100
    for on_empty in ("zero", "nan"):
        result, gradients = case.call(on_empty=on_empty)
        assert result.loss == 0 if on_empty == "zero" else np.isnan(result.loss)
        assert result.n_valid == result.weight_sum == 0
        assert not any(gradients[name].any() for name in GRADIENTS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(rng, dtype):
    case = Case(rng, dtype, ("label_smoothing",), "none")
    case.targets[1, 4] = 3
    workspace_bytes = case.workspaces()[1]
    clean, wanted = case.call(workspace_bytes)
    case.hidden[1, 4, 7] = checks.store(np.array([np.nan]), dtype)[0]
    result, gradients = case.call(workspace_bytes)
    others = np.ones(ROWS, bool)
    others[1, 4] = False
    for name in ("loss", "lse", "entropy"):
        assert np.isnan(getattr(result, name)[1, 4])
        checks.assert_same_bits(getattr(result, name)[others], getattr(clean, name)[others])
    assert np.isnan(gradients["grad_hidden"][1, 4]).all()
    checks.assert_same_bits(gradients["grad_hidden"][others], wanted["grad_hidden"][others])
    assert np.isnan(gradients["grad_weight"]).all() and np.isnan(gradients["grad_bias"]).all()


def test_a_masked_class_through_the_bias(rng):
    """-inf in the bias masks a class in every row."""
    case = Case(rng, "float32", ("label_smoothing", "z_loss"))
    case.targets[case.targets == 50] = 51
    case.bias[50] = -np.inf
    result, gradients = case.call(case.workspaces()[1])
    with np.errstate(all="ignore"):
        expected = case.expected()
    assert result.loss == pytest.approx(expected.loss, rel=1e-5)
    assert not gradients["grad_weight"][50].any() and gradients["grad_bias"][50] == 0
    np.testing.assert_allclose(gradients["grad_weight"], expected.grad_weight, rtol=0, atol=1e-5)
    np.testing.assert_allclose(gradients["grad_hidden"], expected.grad_hidden, rtol=0, atol=1e-5)


def test_no_rows_and_sizes_of_one(rng):
    for rows, width, classes in (((0,), 4, 5), ((1,), 1, 1), ((2,), 1, 3), ((3, 1), 2, 1)):
        hidden = rng.standard_normal((*rows, width)).astype(np.float32)
        weight = rng.standard_normal((classes, width)).astype(np.float32)
        targets = np.zeros(rows, np.int64)
        result = fs.linear_cross_entropy(hidden, weight, targets)
        expected = oracle_loss.linear_cross_entropy(hidden, weight, targets)
        assert result.loss == pytest.approx(expected.loss, rel=1e-5, abs=1e-6)
        for name in GRADIENTS[:2]:
            array = getattr(result, name)
            assert array.shape == getattr(expected, name).shape
            np.testing.assert_allclose(array, getattr(expected, name), rtol=1e-5, atol=1e-6)
    kept = np.full((5, 4), 3, np.float32)
    nothing = np.empty((0, 4), np.float32), weight_of(rng), np.empty(0, np.int64)
    fs.linear_cross_entropy(*nothing, grad_weight=kept, accumulate=True)
    assert (kept == 3).all()
    fs.linear_cross_entropy(*nothing, grad_weight=kept)
    assert not kept.any()


def weight_of(rng):
    return rng.standard_normal((5, 4)).astype(np.float32)


def test_the_least_workspace_is_enough_and_one_byte_less_is_not(rng):
    case = Case(rng, "float32")
    least = case.smallest_workspace()
    assert_case(case, *case.call(least))
    with pytest.raises(ValueError, match=rf"^workspace_bytes: got {least - 1}, .* {least}"):
        case.call(least - 1)
