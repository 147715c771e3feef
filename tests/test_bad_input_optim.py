"""Wrong calls of optimizers, clipping and layouts: refused by name, nothing written."""

import bad_input as bad
import pytest

import flatstep as fs

NAN, INF = float("nan"), float("inf")
OPTIMIZERS = (fs.AdamW, fs.Adam, fs.SGD)


# ---- constructors -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil", (*bad.OTHER_KINDS, *bad.SCATTERED, bad.integer, bad.read_only, bad.nested_list)
)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("as_list", (False, True))
def test_params(kind, spoil, as_list):
    arrays = bad.fresh_arrays()
    arrays.spoiled = spoil(arrays.params)
    given = [arrays.x, arrays.spoiled] if as_list else arrays.spoiled
    bad.check_refusal(lambda: kind(given), arrays, "params")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_params_that_do_not_fit_together(kind):
    arrays = bad.fresh_arrays()
    for given in (
        [arrays.params, arrays.params],
        [arrays.params[:9], arrays.params[8:]],
        [arrays.params, bad.double(arrays.x)],
    ):
        bad.check_refusal(lambda p=given: kind(p), arrays, "params")


COMMON = {
    "lr": (-1e-3, NAN, INF, "fast", None),
    "weight_decay": (-0.1, NAN, INF, 1e39, "some"),
    "max_consecutive_skips": (-1, 1.5),
    "layout": (fs.Layout([("a", (5, 5))]), [("a", (24,))], "flat"),
}
ADAM = COMMON | {
    "betas": ((1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, NAN), (0.9,), 0.9, ("a", "b")),
    "eps": (-1e-8, NAN, INF, 1e39),
    "mode": ("fast", None),
}
SGD = COMMON | {
    "momentum": (-0.1, NAN, INF),
    "dampening": (NAN, "much"),
    "nesterov": (True,),  # needs momentum
}
CONSTRUCTORS = [
    (kind, *pair)
    for kind, table in ((fs.AdamW, ADAM), (fs.Adam, ADAM), (fs.SGD, SGD))
    for pair in bad.pairs(table)
]


@pytest.mark.parametrize(("kind", "argument", "value"), CONSTRUCTORS)
def test_constructor_options(kind, argument, value):
    arrays = bad.fresh_arrays()
    bad.check_refusal(lambda: kind(arrays.params, **{argument: value}), arrays, argument)


def test_nesterov_with_dampening():
    arrays = bad.fresh_arrays()
    options = {"momentum": 0.9, "dampening": 0.1, "nesterov": True}
    bad.check_refusal(lambda: fs.SGD(arrays.params, **options), arrays, "nesterov")


# ---- step ---------------------------------------------------------------------------------------


def make(kind, params):
    return kind(params, lr=0.1, **({"momentum": 0.9} if kind is fs.SGD else {}))


def state_of(optimizer):
    """Functions that return each state array, the step count and the lr."""
    state = ("momentum_buffer",) if isinstance(optimizer, fs.SGD) else ("exp_avg", "exp_avg_sq")
    return [lambda name=name: getattr(optimizer, name) for name in (*state, "step_count", "lr")]


@pytest.mark.parametrize(
    "spoil",
    (
        *(*(k for k in bad.OTHER_KINDS if k is not bad.half), *bad.SCATTERED),
        *(bad.double, bad.integer, bad.one_short),
        *(bad.nested_list, bad.read_only),
    ),
)
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_grads(kind, spoil):
    arrays = bad.fresh_arrays()
    optimizer = make(kind, arrays.params)
    optimizer.step(arrays.grads.copy())
    arrays.spoiled = spoil(arrays.grads)
    bad.check_refusal(
        lambda: optimizer.step(arrays.spoiled, zero_grad=True),
        arrays,
        "grads",
        state_of(optimizer),
    )


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_grads_that_do_not_fit(kind):
    arrays = bad.fresh_arrays()
    optimizer = make(kind, [arrays.params, arrays.x])
    for given in (
        *([], [arrays.grads], [arrays.grads, arrays.out, arrays.out], arrays.grads),
        *([arrays.grads, arrays.out[:20]], [arrays.grads, None]),
        *([arrays.grads, arrays.params], [arrays.grads, arrays.grads]),
    ):
        bad.check_refusal(
            lambda g=given: optimizer.step(g, zero_grad=True), arrays, "grads", state_of(optimizer)
        )


STEP_OPTIONS = {
    "lr": (-0.1, NAN, INF, 1e39, "fast"),
    "max_norm": (-1.0, NAN, "small"),
    "grad_scale": (0.0, NAN, INF, -2.0, "one", None),
}


@pytest.mark.parametrize(("argument", "value"), bad.pairs(STEP_OPTIONS))
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_step_options(kind, argument, value):
    arrays = bad.fresh_arrays()
    optimizer = make(kind, arrays.params)
    bad.check_refusal(
        lambda: optimizer.step(arrays.grads, zero_grad=True, **{argument: value}),
        arrays,
        argument,
        state_of(optimizer),
    )


@pytest.mark.parametrize("value", (NAN, -1.0, INF, "fast", None))
def test_assigned_lr(value):
    arrays = bad.fresh_arrays()
    optimizer = make(fs.AdamW, arrays.params)
    bad.check_refusal(lambda: setattr(optimizer, "lr", value), arrays, "lr", state_of(optimizer))


def test_load_state_dict():
    arrays = bad.fresh_arrays()
    optimizer = make(fs.AdamW, arrays.params)
    optimizer.step(arrays.grads.copy())
    good = optimizer.state_dict()
    own = good["state"]["params"]
    first, second = own["exp_avg"], own["exp_avg_sq"]
    for name, state in {
        "kind": {**good, "kind": "adam"},
        "step": {**good, "step": -1},
        "seed": {**good, "seed": 5},
        "exp_avg": {**good, "state": {"params": {"exp_avg": first[:-1], "exp_avg_sq": second}}},
        "int32": {**good, "state": {"params": {**own, "exp_avg": first.view("i4")}}},
        "exp_avg_sq": {**good, "state": {"params": {"exp_avg": first}}},
        "params": {**good, "state": {"weights": own}},
        "weights": {**good, "state": {"params": own, "weights": own}},
        "state": {key: value for key, value in good.items() if key != "state"},
    }.items():
        bad.check_refusal(
            lambda s=state: optimizer.load_state_dict(s), arrays, name, state_of(optimizer)
        )


# ---- norm and clip ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spoil", (*(k for k in bad.OTHER_KINDS if k is not bad.half), bad.every_second, bad.integer)
)
def test_norm(spoil):
    arrays = bad.fresh_arrays()
    for given in (spoil(arrays.grads), [arrays.x, spoil(arrays.grads)]):
        bad.check_refusal(lambda g=given: fs.grad_norm(g), arrays, "grads")
        bad.check_refusal(lambda g=given: fs.clip_grad_norm_(g, 0.1), arrays, "grads")


def test_clip():
    arrays = bad.fresh_arrays()
    for given in (bad.read_only(arrays.grads), [arrays.grads[:9], arrays.grads[8:]]):
        bad.check_refusal(lambda g=given: fs.clip_grad_norm_(g, 0.1), arrays, "grads")
    for value in (-1.0, NAN, "small", None):
        bad.check_refusal(lambda v=value: fs.clip_grad_norm_(arrays.grads, v), arrays, "max_norm")


# ---- layout, threads ----------------------------------------------------------------------------

LAYOUTS = {
    "a": ([("a", (2,)), ("a", (3,))],),
    "name": ([("", (2,))],),
    "shape": ([("a", (2, -1))], [("a", "wide")], [("a", (2.5,))], [("a", (2**62, 4))]),
    "weight_decay": ([("a", (2,), {"weight_decay": value})] for value in (-1.0, NAN, "some")),
    "lr_scale": ([("a", (2,), {"lr_scale": value})] for value in (-0.5, INF, None)),
    "decay": ([("a", (2,), {"decay": 0.0})],),  # an option that does not exist
}


@pytest.mark.parametrize(("word", "entries"), bad.pairs(LAYOUTS), ids=str)
def test_layout(word, entries):
    bad.check_refusal(lambda: fs.Layout(entries), bad.fresh_arrays(), word)


@pytest.mark.parametrize("spoil", (bad.one_short, bad.text, bad.nothing))
def test_layout_views(spoil):
    arrays = bad.fresh_arrays()
    layout = fs.Layout([("a", (4, 5)), ("b", (4,))])
    bad.check_refusal(lambda: layout.views(spoil(arrays.params)), arrays, "buffer")


@pytest.mark.parametrize("value", (0, -1, 1.5, "all", None))
def test_num_threads(value):
    before = fs.get_num_threads()
    bad.check_refusal(lambda: fs.set_num_threads(value), bad.fresh_arrays(), "threads")
    assert fs.get_num_threads() == before
