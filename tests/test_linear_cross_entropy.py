"""Cross-entropy of a linear head and its three gradients, chunk by chunk, against float64."""

import itertools

import loss_checks as checks
import numpy as np
import oracle
import pytest
from linear_case import CLASSES, DTYPES, GRADIENTS, NAMES, ROWS, WIDTH, Case, assert_case

import flatstep as fs


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("bias", (False, True), ids=("", "bias"))
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_and_reductions(rng, dtype, bias, reduction):
    """Random upstream gradient, label smoothing, ignored rows, for several chunks and for one."""
    names = ("grad_output", "label_smoothing", "ignore_index")
    case = Case(rng, dtype, names, reduction, bias=bias)
    expected = case.expected()
    for workspace_bytes in case.workspaces():
        result, gradients = case.call(workspace_bytes)
        assert_case(case, result, gradients, expected)
        assert type(result.n_valid) is type(result.n_correct) is int
        assert result.lse.shape == ROWS


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "names",
    (*((name,) for name in checks.OPTIONS), *itertools.combinations(NAMES, 2), NAMES),
    ids="+".join,
)
def test_options(rng, names, dtype):
    reduction = "mean" if "divisor" in names else "none"
    case = Case(rng, dtype, names, reduction)
    for workspace_bytes in case.workspaces()[1::2]:
        assert_case(case, *case.call(workspace_bytes))
    with_gradient, _ = case.call()
    without, _ = case.call(grad=False)
    assert without.grad_hidden is without.grad_weight is without.grad_bias is None
    for name in ("loss", "lse", "entropy", "n_valid", "n_correct", "weight_sum"):
        checks.assert_same_bits(getattr(without, name), getattr(with_gradient, name))


@pytest.mark.parametrize("dtype", DTYPES)
def test_wide_rows(rng, dtype):
    """Rows of both matrices further apart than they are long: the bits of packed ones."""
    case = Case(rng, dtype, ("label_smoothing",), pad=5)
    assert not case.hidden.flags.c_contiguous and not case.weight.flags.c_contiguous
    least = case.smallest_workspace()
    wide, wide_gradients = case.call(least)
    case.hidden, case.weight = case.hidden.copy(), case.weight.copy()
    packed, gradients = case.call(least)
    checks.assert_same_bits(wide.loss, packed.loss)
    for name in GRADIENTS:
        checks.assert_same_bits(wide_gradients[name], gradients[name])


@pytest.mark.parametrize("dtype", DTYPES)
def test_given_arrays_are_overwritten_or_added_to(rng, dtype):
    case = Case(rng, dtype, ("grad_output", "label_smoothing"), "sum")
    expected = case.expected()
    error = 4 * case.logit_error().max() + 16 * 2.0**-24
    for workspace_bytes in case.workspaces()[1:]:
        _, fresh = case.call(workspace_bytes)
        given = {
            "grad_weight": rng.standard_normal((CLASSES, WIDTH)).astype(np.float32),
            "grad_bias": rng.standard_normal(CLASSES).astype(np.float32),
        }
        before = {name: array.copy() for name, array in given.items()}
        result, added = case.call(workspace_bytes, **given, accumulate=True)
        checks.assert_same_bits(added["grad_hidden"], fresh["grad_hidden"])
        for name, array in given.items():
            assert getattr(result, name) is array
            wanted = before[name] + getattr(expected, name)
            size = expected.scale_of[name]
            # A sum of chunks onto a number of about 1: each addition rounds.
            bound = error * size + 40 * oracle.ulp(np.abs(before[name]) + size)
            checks.assert_within(array, wanted, bound, name)
        result, again = case.call(workspace_bytes, **given)
        for name, array in given.items():
            assert getattr(result, name) is array
            checks.assert_same_bits(again[name], fresh[name])


def test_new_arrays_for_those_not_given(rng):
    case = Case(rng, "float32")
    plain = fs.linear_cross_entropy(case.hidden, case.weight, case.targets, bias=case.bias)
    assert plain.grad_hidden.shape == case.hidden.shape
    weight_gradient = np.full((CLASSES, WIDTH), 5, np.float32)
    result = fs.linear_cross_entropy(
        case.hidden, case.weight, case.targets, bias=case.bias, grad_weight=weight_gradient
    )
    assert result.grad_weight is weight_gradient
    for name in GRADIENTS:
        checks.assert_same_bits(getattr(result, name), getattr(plain, name))
    half = Case(rng, "float16")
    result = fs.linear_cross_entropy(half.hidden, half.weight, half.targets)
    assert result.grad_hidden.dtype == np.float16 and result.grad_weight.dtype == np.float32
    assert result.grad_bias is None
