"""Groups: tensors with a decay, an lr scale and betas of their own, flat or in a list."""

import numpy as np
import oracle
import pytest
from optim_case import FORMATS, Case, assert_same_bits, make, normal

import flatstep as fs

GROUPS = {
    "weight": {},
    "bias": {"weight_decay": 0.0},
    "head": {"weight_decay": 0.02, "lr_scale": 0.25},
    "embedding": {"betas": (0.5, 0.9)},
    "twin": {"betas": (0.5, 0.9)},
    "cousin": {"betas": (0.5, 0.99)},
    "plain": {},
    "gate": {"betas": (0.8, 0.99), "lr_scale": 2.0, "weight_decay": 0.3},
}
SHAPES = ((33, 7), (11,), (3, 3), (130,), (64, 65), (9,), (2, 5), (1,))


@pytest.fixture
def layout():
    return fs.Layout(
        [(name, shape, GROUPS[name]) for name, shape in zip(GROUPS, SHAPES, strict=True)]
    )


def own_options(name, common, kind="adamw"):
    """Of an optimizer over that tensor alone; SGD has no betas."""
    own = {key: value for key, value in GROUPS[name].items() if kind != "sgd" or key != "betas"}
    return common | {"lr": common["lr"] * own.pop("lr_scale", 1.0)} | own


@pytest.mark.parametrize("as_list", (False, True), ids=("flat", "list"))
@pytest.mark.parametrize("mode", ("native", "torch"))
@pytest.mark.parametrize(
    ("kind", "more"),
    [("adamw", {}), ("adamw", {"amsgrad": True}), ("adam", {}), ("sgd", {"momentum": 0.9})],
    ids=str,
)
def test_each_tensor_as_if_alone(rng, layout, kind, more, mode, as_list):
    common = {"lr": 3e-3, "weight_decay": 0.1, "mode": mode, **more}
    flat = normal(rng, layout.size)
    alone = {}
    for name, view in layout.views(flat).items():
        array = view.copy()
        alone[name] = (array, make(kind, array, **own_options(name, common, kind)))
    params = [view.copy() for view in layout.views(flat).values()] if as_list else flat
    optimizer = make(kind, params, layout=layout, **common)
    for _ in range(5):
        g = normal(rng, layout.size)
        views = layout.views(g)
        for name, (_, own) in alone.items():
            own.step(views[name].copy())
        optimizer.step(list(views.values()) if as_list else g)
    arrays = params if as_list else layout.views(flat).values()
    for (name, (wanted, _)), array in zip(alone.items(), arrays, strict=True):
        assert_same_bits(array, wanted, name)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ("adamw", "adam", "sgd"))
def test_list_equals_flat_buffer(rng, layout, kind, format):
    flat = normal(rng, layout.size)
    one = Case(kind, flat, format, layout=layout, lr=0.01)
    parts = [view.copy() for view in layout.views(flat).values()]
    many = Case(kind, parts, format, layout=layout, lr=0.01)
    for _ in range(3):
        g = normal(rng, layout.size)
        first = one.step(g, max_norm=0.5)
        second = many.step([view.copy() for view in layout.views(g).values()], max_norm=0.5)
        assert first == second
        assert_same_bits(one.values(), many.values())
    assert one.everything()[1] == many.everything()[1]


def test_groups_against_float64(rng, layout):
    flat = rng.standard_normal(layout.size)
    exact = {name: (view.copy(), 0 * view, 0 * view) for name, view in layout.views(flat).items()}
    optimizer = fs.AdamW(flat, layout=layout, lr=3e-3, weight_decay=0.1, eps=1e-6)
    for step in range(1, 11):
        g = rng.standard_normal(layout.size)
        for name, (p, m, v) in exact.items():
            options = own_options(name, {"lr": 3e-3, "weight_decay": 0.1, "betas": (0.9, 0.999)})
            own = layout.views(g)[name]
            exact[name] = oracle.adam(p, own, m, v, step, eps=1e-6, decoupled=True, **options)
        optimizer.step(g)
    for name, (wanted, _, _) in exact.items():
        got = layout.views(flat)[name]
        assert np.all(np.abs(got - wanted) <= 1e-13 * (1 + np.abs(wanted))), name


def test_betas_of_an_entry(layout):
    assert layout["weight"].betas is None
    assert tuple(layout["gate"].betas) == (0.8, 0.99)


@pytest.mark.parametrize("decay_vectors", (True, False))
def test_decay_vectors(rng, decay_vectors):
    """Tensors of fewer than two dimensions do not decay, unless they have a decay of their own."""
    entries = [
        ("w", (3, 4)),
        ("bias", (7,)),
        ("scalar", ()),
        ("decayed", (2,), {"weight_decay": 0.5}),
        ("free", (2, 2), {"weight_decay": 0.0}),
        ("cube", (2, 1, 2)),
    ]
    layout = fs.Layout(entries, decay_vectors=decay_vectors)
    decays = {name: layout[name].weight_decay for name in layout.names}
    vectors = None if decay_vectors else 0.0
    assert decays == {
        "w": None,
        "bias": vectors,
        "scalar": vectors,
        "decayed": 0.5,
        "free": 0.0,
        "cube": None,
    }
    p = np.ones(layout.size, np.float32)
    fs.AdamW(p, lr=0.1, weight_decay=0.2, layout=layout).step(np.zeros(layout.size, np.float32))
    for name, view in layout.views(p).items():
        decay = 0.2 if decays[name] is None else decays[name]
        np.testing.assert_allclose(view, 1 - 0.1 * decay, rtol=1e-6)


TABLE = """\
tensor  shape   weight decay      lr scale  betas
w       3 x 4   as the optimizer  1
bias    7       0                 1
scalar  scalar  0                 1
own     2       0.5               0.25      0.8, 0.9
14 of 22 elements decay"""


def test_table():
    options = {"weight_decay": 0.5, "betas": (0.8, 0.9), "lr_scale": 0.25}
    entries = [("w", (3, 4)), ("bias", (7,)), ("scalar", ()), ("own", (2,), options)]
    layout = fs.Layout(entries, decay_vectors=False)
    assert str(layout) == layout.table() == TABLE
    given = layout.table(0.1).splitlines()
    assert given[1].split() == ["w", "3", "x", "4", "0.1", "1"]
    assert layout.table(0.0).endswith("2 of 22 elements decay")
    many = fs.Layout([("w", (1000, 1234))])
    assert str(many).endswith("1,234,000 of 1,234,000 elements decay")
    assert str(fs.Layout([])).endswith("0 of 0 elements decay")
