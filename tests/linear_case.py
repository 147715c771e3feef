"""One call of linear_cross_entropy, what float64 says about it, and how far they may differ."""

import re

import loss_checks as checks
import numpy as np
import oracle
import oracle_loss
import pytest

import flatstep as fs

# Odd in every extent: 39 rows, 29 numbers a row, 101 classes.
ROWS, WIDTH, CLASSES = (3, 13), 29, 101
DTYPES = checks.SINGLE_INSIDE
NAMES = tuple(name for name in checks.OPTIONS if name != "divisor")
GRADIENTS = ("grad_hidden", "grad_weight", "grad_bias")
WHOLE = 64_000_000


class Case:
    """The arrays of one call, as stored; options; how to call."""

    def __init__(
        self,
        rng,
        dtype,
        names=(),
        reduction="mean",
        *,
        bias=True,
        rows=ROWS,
        width=WIDTH,
        classes=CLASSES,
        pad=0,
    ):
        self.dtype, self.width, self.classes = dtype, width, classes
        hidden = checks.store(rng.standard_normal((*rows, width)), dtype)
        weight = checks.store(rng.standard_normal((classes, width)) * 0.5, dtype)
        self.hidden, self.weight = spread_rows(hidden, pad), spread_rows(weight, pad)
        self.bias = checks.store(rng.standard_normal(classes), dtype) if bias else None
        self.options = checks.draw_options(rng, names, rows, classes, "float32", reduction)
        self.targets = checks.draw_targets(rng, rows, classes, self.options)

    def expected(self):
        numbers = [checks.numbers_of(array, self.dtype) for array in (self.hidden, self.weight)]
        bias = None if self.bias is None else checks.numbers_of(self.bias, self.dtype)
        return oracle_loss.linear_cross_entropy(*numbers, self.targets, bias=bias, **self.options)

    def call(self, workspace_bytes=WHOLE, **given):
        """-> result, gradients as numbers. grad_hidden is given: no library makes a bfloat16."""
        arrays = [checks.passable(array, self.dtype) for array in (self.hidden, self.weight)]
        bias = None if self.bias is None else checks.passable(self.bias, self.dtype)
        if given.get("grad", True):
            hidden = given.setdefault(
                "grad_hidden", np.full(self.hidden.shape, 77, self.hidden.dtype)
            )
            given["grad_hidden"] = checks.passable(hidden, self.dtype)
        result = fs.linear_cross_entropy(
            *arrays,
            self.targets,
            bias=bias,
            workspace_bytes=workspace_bytes,
            **{**self.options, **given},
        )
        if not given.get("grad", True):
            return result, None
        assert result.grad_hidden is given["grad_hidden"]
        gradients = {"grad_hidden": checks.numbers_of(hidden, self.dtype)}
        gradients["grad_weight"] = result.grad_weight
        gradients["grad_bias"] = result.grad_bias
        return result, gradients

    def smallest_workspace(self):
        with pytest.raises(
            ValueError, match=r"^workspace_bytes: got 1, expected at least"
        ) as caught:
            self.call(1)
        return int(re.search(r"at least (\d+)", str(caught.value))[1])

    def workspaces(self):
        """The least there may be, a few rows' logits more, about half the rows, all of them."""
        least = self.smallest_workspace()
        row = 4 * self.classes
        return (least, least + 5 * row, least + 20 * row, WHOLE)

    def logit_error(self):
        """Of a float32 sum of `width` products, each rounded by 2^-24; not all of that adds up."""
        hidden, weight = (
            np.abs(checks.numbers_of(array, self.dtype).astype(np.float64))
            for array in (self.hidden, self.weight)
        )
        size = hidden @ weight.T
        if self.bias is not None:
            size = size + np.abs(checks.numbers_of(self.bias, self.dtype))
        return 2 * np.sqrt(self.width) * 2.0**-24 * size.max(axis=-1)


def spread_rows(array, pad):
    """The same rows, pad elements further apart, in a buffer that starts at an odd address."""
    if not pad:
        return array
    wide = np.zeros((*array.shape[:-1], array.shape[-1] + pad), array.dtype)
    wide[..., 1 : array.shape[-1] + 1] = array
    return wide[..., 1 : array.shape[-1] + 1]


def assert_case(case, result, gradients, expected=None):
    expected = expected or case.expected()
    error = case.logit_error()
    slant = expected.pulled.sum(axis=1).reshape(error.shape)  # d loss / d lse
    tokens = np.abs(case.options.get("token_weight", np.ones(error.shape)))
    bound = 4 * oracle.ulp(expected.rows) + 2 * error * slant * tokens
    ignored = case.targets == case.options.get("ignore_index", -100)
    bound[ignored] = 0.0
    if case.options["reduction"] == "none":
        checks.assert_within(result.loss, expected.rows, bound, "loss")
    else:
        assert abs(result.loss - expected.loss) <= bound.sum() * abs(expected.scale)
    rounding = 4 * oracle.ulp(np.abs(expected.largest) + np.abs(expected.lse))
    # d entropy / d x_j is -p_j (log p_j + entropy): twice the entropy in all.
    for name, share in (("lse", 1.0), ("entropy", 2 * expected.entropy)):
        bound = np.where(ignored, 0.0, rounding + 2 * share * error)
        checks.assert_within(getattr(result, name), getattr(expected, name), bound, name)
    checks.assert_counts(result, expected)
    if gradients is not None:
        assert_gradients(case, gradients, expected, 4 * error.max() + 16 * 2.0**-24)


def assert_gradients(case, gradients, expected, tolerance):
    """tolerance: of each gradient's sum over absolute values. Half a unit of a half on top."""
    for name in GRADIENTS:
        if name == "grad_bias" and case.bias is None:
            assert gradients[name] is None
            continue
        wanted = getattr(expected, name)
        bound = tolerance * expected.scale_of[name] + checks.FLOOR
        if name == "grad_hidden" and case.dtype != "float32":
            relative, least = {"bfloat16": (2.0**-8, 0.0), "float16": (2.0**-11, 2.0**-25)}[
                case.dtype
            ]
            bound = bound * (1 + relative) + np.maximum(relative * np.abs(wanted), least)
        else:
            assert gradients[name].dtype == np.float32
        checks.assert_within(gradients[name], wanted, bound, name)
