"""Wrong formats, copies, seeds, partials and accumulations: refused by name, nothing written."""

import bad_input as bad
import numpy as np
import pytest
from bfloat16 import Bfloat16Array

import flatstep as fs

NAN, INF = float("nan"), float("inf")
OPTIMIZERS = (fs.AdamW, fs.Adam, fs.SGD)


def half_arrays():
    arrays = bad.fresh_arrays()
    arrays.bits = (arrays.params.view(np.uint32) >> 16).astype(np.uint16)
    arrays.other_bits = arrays.bits.copy()
    return arrays


# ---- constructors: what the arrays are -----------------------------------------------------------


def bits_and_float(arrays):
    return [Bfloat16Array(arrays.bits), arrays.params]


WRONG_PARAMS = {
    "float16": lambda arrays: arrays.params.astype(np.float16),
    "float16 in a list": lambda arrays: [arrays.params.astype(np.float16)],
    "bfloat16 and float32": bits_and_float,
    "float32 and bfloat16": lambda arrays: bits_and_float(arrays)[::-1],
    "the same bfloat16 twice": lambda arrays: [Bfloat16Array(arrays.bits)] * 2,
    "bfloat16 that overlap": lambda arrays: [
        Bfloat16Array(arrays.bits[:9]),
        Bfloat16Array(arrays.bits[8:]),
    ],
    "bits that are no bfloat16": lambda arrays: arrays.bits,
    "scattered bfloat16": lambda arrays: Bfloat16Array(arrays.bits[::2]),
}


@pytest.mark.parametrize("stochastic", (False, True), ids=("", "stochastic"))
@pytest.mark.parametrize("wrong", WRONG_PARAMS)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_params(kind, wrong, stochastic):
    arrays = half_arrays()
    bfloat16 = "bfloat16" in wrong and "and" not in wrong and "no" not in wrong
    options = {"stochastic_rounding": True} if stochastic and bfloat16 else {}
    bad.check_refusal(lambda: kind(WRONG_PARAMS[wrong](arrays), **options), arrays, "params")


def overlapping_copy(arrays):
    return Bfloat16Array(arrays.params.view(np.uint16)[:24])


WRONG_COPIES = {
    "float32": lambda arrays: arrays.x,
    "bits": lambda arrays: arrays.bits,
    "short": lambda arrays: Bfloat16Array(arrays.bits[:-1]),
    "another shape": lambda arrays: Bfloat16Array(arrays.bits.reshape(4, 6)),
    "two": lambda arrays: [Bfloat16Array(arrays.bits), Bfloat16Array(arrays.other_bits)],
    "none in a list": lambda arrays: [None],
    "no list of arrays": lambda arrays: [],
    "text": lambda arrays: "array",
    "scattered": lambda arrays: Bfloat16Array(np.repeat(arrays.bits, 2)[::2]),
    "overlapping": overlapping_copy,
    "True": lambda arrays: True,
}


@pytest.mark.parametrize("wrong", WRONG_COPIES)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_bf16_copy(kind, wrong):
    arrays = half_arrays()
    copy = WRONG_COPIES[wrong](arrays)
    bad.check_refusal(lambda: kind(arrays.params, bf16_copy=copy), arrays, "bf16_copy")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_bf16_copy_of_other_params(kind):
    """Only float32 parameters have a copy."""
    for stochastic in (False, True):
        arrays = half_arrays()
        params, copy = Bfloat16Array(arrays.bits), Bfloat16Array(arrays.other_bits)
        options = {"bf16_copy": copy, "stochastic_rounding": stochastic}
        bad.check_refusal(lambda p=params, o=options: kind(p, **o), arrays, "bf16_copy")
    arrays = half_arrays()
    arrays.double = arrays.params.astype(np.float64)
    copy = Bfloat16Array(arrays.bits)
    bad.check_refusal(lambda: kind(arrays.double, bf16_copy=copy), arrays, "bf16_copy")


# ---- constructors: options -----------------------------------------------------------------------

OPTIONS = {
    "state": ("4bit", "FULL", 8, None),
    "stochastic_rounding": (True,),  # of float32
    "seed": (-1, 2**64, 1.5, "seed", None),
    "max_consecutive_skips": (2**31, 2**70, -1, 1.5),
    "layout": (fs.Layout([("a", (24,)), ("b", (1,))]), fs.Layout([])),
}


@pytest.mark.parametrize(("argument", "value"), bad.pairs(OPTIONS), ids=str)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_options(kind, argument, value):
    arrays = bad.fresh_arrays()
    bad.check_refusal(lambda: kind(arrays.params, **{argument: value}), arrays, argument)


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_combinations(kind):
    arrays = half_arrays()
    arrays.double = arrays.params.astype(np.float64)
    bits = Bfloat16Array(arrays.bits)
    refused = [
        ("state", arrays.double, {"state": "8bit"}),
        ("mode", arrays.params, {"state": "8bit", "mode": "torch"}),
        ("mode", bits, {"stochastic_rounding": True, "mode": "torch"}),
        ("stochastic_rounding", arrays.double, {"stochastic_rounding": True}),
        ("amsgrad", arrays.params, {"state": "8bit", "amsgrad": True}),
    ]
    for argument, params, options in refused:
        if kind is fs.SGD:
            if argument == "amsgrad":
                continue
            options["momentum"] = 0.9
        bad.check_refusal(lambda p=params, o=options: kind(p, **o), arrays, argument)


WRONG_LISTS = (
    [("a", (24,))],
    [("a", (24,)), ("b", (25,))],
    [("a", (24,)), ("b", (6, 4))],
    [("a", (24,)), ("b", (24,)), ("c", (1,))],
    [("all", (48,))],
)


@pytest.mark.parametrize("entries", WRONG_LISTS, ids=str)
def test_layout_of_a_list(entries):
    arrays = bad.fresh_arrays()
    layout = fs.Layout(entries)
    bad.check_refusal(lambda: fs.AdamW([arrays.params, arrays.x], layout=layout), arrays, "layout")


@pytest.mark.parametrize(
    "value", ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (NAN, 0.9), (0.9,), 0.9, "ab")
)
def test_betas_of_a_layout(value):
    entries = [("a", (2,), {"betas": value})]
    bad.check_refusal(lambda: fs.Layout(entries), bad.fresh_arrays(), "betas")


# ---- step ----------------------------------------------------------------------------------------


def watched(optimizer):
    """State and step count, as functions that return them."""
    own = optimizer.state_dict()["state"]
    views = [
        lambda t=tensor, n=name: optimizer.state_dict()["state"][t][n]
        for tensor, arrays in own.items()
        for name in arrays
    ]
    return [*views, lambda: optimizer.step_count]


def partials_of(*sizes):
    return fs.accumulate([np.ones(n, np.float32) for n in sizes], [np.ones(n, "f4") for n in sizes])


@pytest.mark.parametrize(
    "wrong",
    (partials_of(23), partials_of(12, 12), partials_of(), [1.0], 5.0, "norm"),
    ids=("a larger tensor", "two tensors", "none", "a list", "a number", "a text"),
)
def test_partials(wrong):
    arrays = bad.fresh_arrays()
    optimizer = fs.AdamW(arrays.params)
    bad.check_refusal(
        lambda: optimizer.step(arrays.grads, partials=wrong, zero_grad=True),
        arrays,
        "partials",
        watched(optimizer),
    )


def test_partials_of_another_cut():
    """Of the flat array, where the optimizer has the tensors of a layout."""
    arrays = bad.fresh_arrays()
    layout = fs.Layout([("a", (20,)), ("b", (4,))])
    optimizer = fs.AdamW(arrays.params, layout=layout)
    partials = fs.accumulate(arrays.grads, arrays.x)
    bad.check_refusal(lambda: optimizer.step(arrays.grads, partials=partials), arrays, "partials")


def grads_of_other_types(arrays):
    return {
        "float64 for float32": (arrays.params, {}, arrays.grads.astype(np.float64)),
        "float32 for float64": (arrays.x.astype(np.float64), {}, arrays.grads),
        "bfloat16 for float64": (arrays.x.astype(np.float64), {}, Bfloat16Array(arrays.bits)),
        "int32": (arrays.params, {}, arrays.grads.astype(np.int32)),
        "float16 in torch mode": (arrays.params, {"mode": "torch"}, arrays.grads.astype("f2")),
        "bits": (arrays.params, {}, arrays.bits),
    }


@pytest.mark.parametrize("wrong", grads_of_other_types(half_arrays()))
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_grads_of_other_types(kind, wrong):
    arrays = half_arrays()
    params, options, grads = grads_of_other_types(arrays)[wrong]
    optimizer = kind(params, **options)
    bad.check_refusal(
        lambda: optimizer.step(grads, zero_grad=True), arrays, "grads", watched(optimizer)
    )


def test_grads_of_mixed_types_and_in_the_way():
    arrays = half_arrays()
    optimizer = fs.AdamW([arrays.params, arrays.x], bf16_copy=None)
    copy = Bfloat16Array(arrays.bits)
    with_copy = fs.AdamW(arrays.logits, bf16_copy=Bfloat16Array(np.zeros((6, 9), np.uint16)))
    for own, grads in (
        (optimizer, [arrays.grads, copy]),
        (optimizer, [arrays.grads, arrays.params]),
        (with_copy, arrays.logits),
    ):
        bad.check_refusal(lambda o=own, g=grads: o.step(g), arrays, "grads", watched(own))
    arrays = half_arrays()
    optimizer = fs.AdamW(arrays.params, bf16_copy=Bfloat16Array(arrays.bits))
    given = Bfloat16Array(arrays.bits)
    bad.check_refusal(lambda: optimizer.step(given), arrays, "grads", watched(optimizer))


# ---- accumulate ----------------------------------------------------------------------------------

TOTALS = {
    "totals": (
        *(*bad.OTHER_KINDS, *bad.SCATTERED, bad.integer, bad.read_only, bad.nested_list),
        bad.column_major,
    ),
    "src": (
        *(k for k in (*bad.OTHER_KINDS, *bad.SCATTERED) if k is not bad.half),
        *(bad.integer, bad.double, bad.nested_list, bad.extra_axis),
    ),
}


@pytest.mark.parametrize(("argument", "spoil"), bad.pairs(TOTALS))
def test_accumulate_arrays(argument, spoil):
    arrays = bad.fresh_arrays()
    given = {"totals": arrays.logits, "src": arrays.grad}
    given[argument] = arrays.spoiled = spoil(given[argument])
    bad.check_refusal(lambda: fs.accumulate(**given), arrays, argument)


def test_accumulate_shapes_and_overlaps():
    arrays = bad.fresh_arrays()
    for argument, totals, src in (
        ("src", arrays.params, arrays.grads[:-1]),
        ("src", arrays.params, arrays.grads.reshape(4, 6)),
        ("src", [arrays.params, arrays.x], [arrays.grads]),
        ("src", [arrays.params], [arrays.grads, arrays.x]),
        ("src", arrays.params, arrays.params),
        ("src", arrays.params[:20], arrays.params[4:]),
        ("totals", [arrays.params, arrays.params], [arrays.grads, arrays.x]),
        ("totals", [arrays.params, arrays.params.astype("f8")], [arrays.grads, arrays.x]),
        ("src", [arrays.params, arrays.out], [arrays.grads, arrays.x.astype("f2")]),
        ("src", arrays.params.astype("f8"), arrays.grads),
    ):
        bad.check_refusal(lambda t=totals, s=src: fs.accumulate(t, s), arrays, argument)


@pytest.mark.parametrize("value", (NAN, INF, -INF, 1e39, "one", None))
def test_accumulate_scale(value):
    arrays = bad.fresh_arrays()
    bad.check_refusal(
        lambda: fs.accumulate(arrays.params, arrays.grads, scale=value), arrays, "scale"
    )


def test_accumulate_layout():
    arrays = bad.fresh_arrays()
    whole = fs.Layout([("a", (24,))])
    for layout, totals, src in (
        (fs.Layout([("a", (23,))]), arrays.params, arrays.grads),
        (fs.Layout([]), arrays.params, arrays.grads),
        ([("a", (24,))], arrays.params, arrays.grads),
        (whole, [arrays.params], [arrays.grads]),
        (whole, arrays.params.reshape(4, 6), arrays.grads.reshape(4, 6)),
    ):
        bad.check_refusal(
            lambda t=totals, s=src, own=layout: fs.accumulate(t, s, layout=own), arrays, "layout"
        )
