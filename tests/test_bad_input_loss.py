"""Wrong weights, z-loss, softcap and calls of linear_cross_entropy: nothing is written."""

import re

import bad_input as bad
import numpy as np
import pytest

import flatstep as fs

NAN, INF = float("nan"), float("inf")


def refused(call, arrays, argument, kind=(ValueError, TypeError)):
    error = bad.check_refusal(call, arrays, argument)
    assert isinstance(error, kind), error
    assert str(error).startswith(f"{argument}: "), error
    return str(error)


# ---- cross_entropy ------------------------------------------------------------------------------

WRONG_WEIGHTS = (
    *(spoil for spoil in bad.OTHER_KINDS if spoil is not bad.nothing),
    *(bad.double, bad.integer, bad.nested_list, bad.one_short, bad.extra_axis, *bad.SCATTERED),
)
WRONG_DTYPES = (bad.half, bad.double, bad.integer, bad.complex_numbers, bad.booleans)
NO_ARRAYS = (bad.text, bad.nested_list)


def loss_call(arrays, in_place=False, **given):
    grad = arrays.logits if in_place else arrays.grad
    return lambda: fs.cross_entropy(arrays.logits, arrays.targets, grad=grad, **given)


@pytest.mark.parametrize("in_place", (False, True))
@pytest.mark.parametrize("spoil", WRONG_WEIGHTS)
@pytest.mark.parametrize("argument", ("class_weight", "token_weight"))
def test_weights_of_a_wrong_kind(argument, spoil, in_place):
    arrays = bad.fresh_arrays()
    arrays.spoiled = spoil(getattr(arrays, argument))
    kind = TypeError if spoil in (*WRONG_DTYPES, *NO_ARRAYS) else (ValueError, TypeError)
    refused(loss_call(arrays, in_place, **{argument: arrays.spoiled}), arrays, argument, kind)


@pytest.mark.parametrize("argument", ("class_weight", "token_weight", "grad_output"))
def test_float64_logits_take_float64_weights_only(argument):
    arrays = bad.fresh_arrays()
    arrays.logits, arrays.grad = bad.double(arrays.logits), bad.double(arrays.grad)
    single = {"class_weight": arrays.class_weight, "token_weight": arrays.token_weight}
    given = {argument: single.get(argument, arrays.upstream)}
    refused(loss_call(arrays, reduction="none", **given), arrays, argument, TypeError)


@pytest.mark.parametrize("argument", ("class_weight", "token_weight"))
def test_half_logits_take_float32_weights_only(argument):
    arrays = bad.fresh_arrays()
    arrays.logits, arrays.grad = bad.half(arrays.logits), bad.half(arrays.grad)
    arrays.spoiled = bad.half(getattr(arrays, argument))
    refused(loss_call(arrays, **{argument: arrays.spoiled}), arrays, argument, TypeError)


# First, in the middle, last.
@pytest.mark.parametrize("element", (0, 3, 8))
@pytest.mark.parametrize(
    ("value", "text"), [(-1, "-1"), (-0.25, "-0.25"), (NAN, "nan"), (INF, "inf")]
)
@pytest.mark.parametrize("in_place", (False, True))
def test_class_weight_out_of_range(element, value, text, in_place):
    arrays = bad.fresh_arrays()
    arrays.class_weight = bad.replaced(arrays.class_weight, element, value)
    call = loss_call(arrays, in_place, class_weight=arrays.class_weight)
    message = refused(call, arrays, "class_weight", ValueError)
    assert message.startswith(f"class_weight: element {element} holds {text}, expected "), message


@pytest.mark.parametrize("row", (0, 2, 5))
@pytest.mark.parametrize(("value", "text"), [(NAN, "nan"), (INF, "inf"), (-INF, "-inf")])
@pytest.mark.parametrize("in_place", (False, True))
def test_token_weight_not_finite(row, value, text, in_place):
    arrays = bad.fresh_arrays()
    arrays.token_weight = bad.replaced(arrays.token_weight, row, value)
    call = loss_call(arrays, in_place, token_weight=arrays.token_weight)
    message = refused(call, arrays, "token_weight", ValueError)
    assert message.startswith(f"token_weight: row {row} holds {text}, "), message
    arrays.targets[row] = -100  # then nobody looks
    assert np.isfinite(call().loss)


def test_token_weights_below_zero_in_all():
    arrays = bad.fresh_arrays()
    arrays.token_weight = -arrays.token_weight
    given = {"token_weight": arrays.token_weight}
    refused(loss_call(arrays, **given), arrays, "token_weight", ValueError)
    refused(loss_call(arrays, True, **given), arrays, "token_weight", ValueError)
    assert loss_call(arrays, reduction="sum", **given)().loss < 0
    assert loss_call(arrays, divisor=2.0, **given)().loss < 0


NUMBERS = {
    "z_loss": (-1e-3, NAN, INF, -INF, "some", None),
    "softcap": (0.0, -0.0, -1.0, NAN, INF, "soft"),
}


@pytest.mark.parametrize(("argument", "value"), bad.pairs(NUMBERS), ids=str)
def test_numbers(argument, value):
    arrays = bad.fresh_arrays()
    refused(loss_call(arrays, **{argument: value}), arrays, argument)
    refused(loss_call(arrays, True, **{argument: value}), arrays, argument)
    refused(linear_call(arrays, **{argument: value}), arrays, argument)


def test_weights_inside_the_gradient():
    arrays = bad.fresh_arrays()
    arrays.grad[...] = 1
    arrays.logits[...] = 1
    for in_place in (False, True):
        output = arrays.logits if in_place else arrays.grad
        given = {"class_weight": output[2], "token_weight": output.reshape(-1)[-6:]}
        for argument, array in given.items():
            call = loss_call(arrays, in_place, **{argument: array})
            assert isinstance(bad.check_refusal(call, arrays, argument), ValueError)


@pytest.mark.parametrize("value", (-1, 9, 2**31 - 1))
def test_target_out_of_range_beside_class_weights(value):
    """The weight of the target is looked up only after the target was checked."""
    arrays = bad.fresh_arrays()
    arrays.targets = bad.replaced(arrays.targets, 4, value)
    for call in (
        loss_call(arrays, class_weight=arrays.class_weight),
        linear_call(arrays, class_weight=arrays.class_weight),
    ):
        message = refused(call, arrays, "targets", IndexError)
        assert message.startswith(f"targets: row 4 holds {value}, expected "), message


# ---- linear_cross_entropy -----------------------------------------------------------------------

OUTPUTS = ("grad_hidden", "grad_weight", "grad_bias")


def linear_call(arrays, **given):
    usual = {
        name: getattr(arrays, name) for name in ("hidden", "weight", "targets", "bias", *OUTPUTS)
    }
    usual = {**usual, **given}
    positional = [usual.pop(name) for name in ("hidden", "weight", "targets")]
    return lambda: fs.linear_cross_entropy(*positional, **usual)


def columns(count):
    def cut(array):
        return np.ascontiguousarray(array[..., :count])

    return cut


LINEAR_ARRAYS = {
    "hidden": (*bad.OTHER_KINDS, *bad.SCATTERED, bad.double, bad.integer, bad.nested_list),
    "weight": (*bad.OTHER_KINDS, *bad.SCATTERED, bad.double, bad.integer, bad.extra_axis),
    "targets": (*bad.OTHER_KINDS, bad.double, bad.one_short, bad.extra_axis),
    "bias": (
        *(spoil for spoil in bad.OTHER_KINDS if spoil is not bad.nothing),
        *(bad.double, bad.one_short, bad.extra_axis, bad.nested_list, *bad.SCATTERED),
    ),
    **{
        name: (
            *(spoil for spoil in bad.OTHER_KINDS if spoil is not bad.nothing),
            *(*bad.SCATTERED, bad.double, bad.read_only, bad.one_short, bad.extra_axis),
            bad.nested_list,
        )
        for name in OUTPUTS
    },
}


@pytest.mark.parametrize(("argument", "spoil"), bad.pairs(LINEAR_ARRAYS))
def test_linear_arrays(argument, spoil):
    arrays = bad.fresh_arrays()
    arrays.spoiled = spoil(getattr(arrays, argument))
    call = linear_call(arrays, **{argument: arrays.spoiled})
    # Of hidden and weight, which must agree, either may be named.
    named = {"hidden": "hidden|weight", "weight": "hidden|weight"}.get(argument, argument)
    before = bad.snapshot(arrays)
    with pytest.raises((ValueError, TypeError)) as caught:
        call()
    assert re.match(rf"({named}): ", str(caught.value)), str(caught.value)
    assert bad.snapshot(arrays) == before


@pytest.mark.parametrize(
    ("argument", "spoil", "named"),
    [
        ("hidden", columns(3), "hidden|weight|grad_hidden"),
        ("weight", columns(3), "hidden|weight"),
        ("weight", bad.one_short, "weight|bias|grad_weight|grad_bias"),
        ("weight", lambda array: array[0], "weight"),
        ("weight", lambda array: array[:0], "weight"),
        ("hidden", bad.one_short, "hidden|targets"),
        ("grad_hidden", columns(3), "grad_hidden"),
        ("grad_weight", columns(3), "grad_weight"),
        ("grad_bias", columns(3), "grad_bias"),
    ],
)
def test_linear_shapes(argument, spoil, named):
    arrays = bad.fresh_arrays()
    arrays.spoiled = spoil(getattr(arrays, argument))
    before = bad.snapshot(arrays)
    with pytest.raises(ValueError) as caught:
        linear_call(arrays, **{argument: arrays.spoiled})()
    assert re.match(rf"({named}): ", str(caught.value)), str(caught.value)
    assert bad.snapshot(arrays) == before


def test_linear_float64():
    """All of it: there is no such computation."""
    arrays = bad.fresh_arrays()
    for name in ("hidden", "weight", "bias", *OUTPUTS):
        setattr(arrays, name, bad.double(getattr(arrays, name)))
    refused(linear_call(arrays), arrays, "hidden", TypeError)


@pytest.mark.parametrize("spoil", WRONG_WEIGHTS)
@pytest.mark.parametrize("argument", ("class_weight", "token_weight"))
def test_linear_weights(argument, spoil):
    arrays = bad.fresh_arrays()
    arrays.spoiled = spoil(getattr(arrays, argument))
    refused(linear_call(arrays, **{argument: arrays.spoiled}), arrays, argument)


LINEAR_OPTIONS = {
    "reduction": ("average", None),
    "label_smoothing": (-0.1, 1.0, NAN),
    "ignore_index": (1.5, None, 2**63, -(2**70)),
    "divisor": (0.0, -2.0, NAN, INF),
    "on_empty": ("one", None),
    "grad_output": (NAN, "one", None, np.ones(6, np.float32)),
    "workspace_bytes": (0, 1, -1, 1.5, "many"),
    "class_weight": (np.array([1, 1, 1, -1, 1, 1, 1, 1, 1], np.float32),),
    "token_weight": (np.array([1, 1, 1, NAN, 1, 1], np.float32), np.full(6, -1, np.float32)),
}


@pytest.mark.parametrize(("argument", "value"), bad.pairs(LINEAR_OPTIONS), ids=str)
def test_linear_options(argument, value):
    arrays = bad.fresh_arrays()
    refused(linear_call(arrays, **{argument: value}), arrays, argument)


def test_linear_upstream_of_another_shape():
    arrays = bad.fresh_arrays()
    for spoil in (bad.one_short, bad.extra_axis, bad.double, bad.half):
        call = linear_call(arrays, reduction="none", grad_output=spoil(arrays.upstream))
        refused(call, arrays, "grad_output")


def test_linear_outputs_that_nobody_asked_for():
    arrays = bad.fresh_arrays()
    refused(linear_call(arrays, bias=None), arrays, "grad_bias")
    nothing = dict.fromkeys(OUTPUTS)
    for name in OUTPUTS:
        given = {**nothing, name: getattr(arrays, name)}
        before = bad.snapshot(arrays)
        with pytest.raises((ValueError, TypeError), match=rf"^({name}|grad): "):
            linear_call(arrays, grad=False, **given)()
        assert bad.snapshot(arrays) == before
    refused(linear_call(arrays, **nothing, accumulate=True), arrays, "accumulate", ValueError)


def test_linear_overlap():
    """The logits of a later chunk are computed after an earlier one's gradient was written."""
    arrays = bad.fresh_arrays()
    arrays.rows = np.ones((7, 4), np.float32)
    arrays.table = np.ones((10, 4), np.float32)
    flat = arrays.table.reshape(-1)
    for name, value, other, overlapped in (
        ("grad_hidden", arrays.hidden, "hidden", arrays.hidden),
        ("grad_hidden", arrays.rows[1:], "hidden", arrays.rows[:6]),
        ("grad_weight", arrays.weight, "weight", arrays.weight),
        ("grad_weight", arrays.table[1:], "weight", arrays.table[:9]),
        ("grad_bias", arrays.bias, "bias", arrays.bias),
        ("grad_bias", flat[:9], "weight", arrays.table[:9]),
        ("grad_hidden", arrays.table[:6], "weight", arrays.table[1:]),
        ("grad_weight", arrays.table[:9], "grad_hidden", arrays.table[4:]),
        ("grad_bias", flat[:9], "grad_weight", arrays.table[:9]),
        ("class_weight", flat[:9], "grad_weight", arrays.table[:9]),
        ("token_weight", flat[:6], "grad_weight", arrays.table[:9]),
    ):
        before = bad.snapshot(arrays)
        with pytest.raises(ValueError) as caught:
            linear_call(arrays, **{name: value, other: overlapped})()
        assert re.match(rf"({name}|{other}): ", str(caught.value)), (name, other, caught.value)
        assert bad.snapshot(arrays) == before, (name, other)
