"""Linear cross-entropy with so many classes that its gradients come range by range of them."""

import hashlib

import loss_checks as checks
import numpy as np
import pytest
from linear_case import DTYPES, GRADIENTS, Case, assert_case

import flatstep as fs

NAMES = ("grad_output", "label_smoothing", "ignore_index")
# Rows, numbers a row, classes. Several ranges, a last one that is short; rows that need two steps
# of a product; columns for more threads than there are ranges.
SHAPES = (((37,), 13, 7001), ((600,), 29, 2003), ((5,), 100, 5003), ((1,), 1, 1030))


def many_classes(rng, dtype, shape, **options):
    rows, width, classes = shape
    return Case(rng, dtype, NAMES, rows=rows, width=width, classes=classes, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_float64(rng, dtype, shape):
    case = many_classes(rng, dtype, shape, pad=3)
    expected = case.expected()
    for workspace_bytes in case.workspaces()[2:]:
        assert_case(case, *case.call(workspace_bytes), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_same_bits_for_all_threads(assert_same_for_all_threads, rng, dtype, shape):
    case = many_classes(rng, dtype, shape)
    workspaces = case.workspaces()[2:]

    def compute():
        total = hashlib.sha256()
        for workspace_bytes in workspaces:
            _, gradients = case.call(workspace_bytes)
            for gradient in gradients.values():
                total.update(np.ascontiguousarray(gradient).tobytes())
        return total.hexdigest()

    assert_same_for_all_threads(compute)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_one_gradient_alone(rng, shape):
    """The bits that it has beside the others."""
    case = many_classes(rng, "float32", shape)
    _, together = case.call()
    for name in GRADIENTS:
        result = fs.linear_cross_entropy(
            case.hidden,
            case.weight,
            case.targets,
            bias=case.bias,
            grad=(name.removeprefix("grad_"),),
            **case.options,
        )
        checks.assert_same_bits(getattr(result, name), together[name])


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_added_to_what_the_array_holds(rng, shape):
    case = many_classes(rng, "float32", shape)
    _, fresh = case.call()
    before = rng.standard_normal(fresh["grad_weight"].shape).astype(np.float32)
    given = before.copy()
    case.call(accumulate=True, grad_weight=given, grad_bias=np.zeros_like(case.bias))
    # Two steps of a product at most, each added with a rounding.
    error = np.abs(given - (before + fresh["grad_weight"]))
    assert error.max() <= 4 * 2.0**-24 * np.abs(before).max()
