"""state="8bit": codes, scales and parameters bit for bit, the mean of what is stored, ranges."""

import numpy as np
import oracle_low_bit
import pytest
from optim_case import MOMENTS, Case, assert_same_bits, normal

import flatstep as fs

# Around a block (128), the kernel's stretch (1024) and a chunk (4096).
SIZES = (1, 127, 128, 129, 1000, 5000)
ADAM = {"lr": 3e-3, "betas": (0.9, 0.98), "eps": 1e-6, "weight_decay": 0.1}
MOMENTUM = {"lr": 0.1, "momentum": 0.9, "dampening": 0.3, "nesterov": False, "weight_decay": 0.1}
NESTEROV = MOMENTUM | {"dampening": 0.0, "nesterov": True}


def stored(optimizer, tensor="params"):
    """[(codes, scales), ...] in the order of the moments."""
    state = optimizer.state_dict()["state"][tensor]
    names = [name for name in state if not name.endswith("_scale")]
    return [(state[name].ravel(), state[name + "_scale"]) for name in names]


def assert_same_state(optimizer, wanted, what):
    for (codes, scales), (wanted_codes, wanted_scales) in zip(
        stored(optimizer), wanted, strict=True
    ):
        assert_same_bits(scales, wanted_scales, f"scales, {what}")
        assert_same_bits(codes, wanted_codes, f"codes, {what}")


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ("adamw", "adam"))
def test_adam_bits(rng, fma, kind, size):
    """Gradients of very different sizes, so that blocks have a range and numbers leave it."""
    seed = 2**63 + 12345
    p = normal(rng, size)
    case = Case(kind, p, "8bit", seed=seed, **ADAM)
    reference = oracle_low_bit.LowBitAdam(
        size, seed=seed, decoupled=kind == "adamw", fma=fma, **ADAM
    )
    sizes = np.exp(rng.standard_normal(size) * 4).astype(np.float32)
    for step in range(1, 21):
        g = normal(rng, size) * sizes * (rng.random(size) < 0.9)
        p = reference.step(p, g)
        case.step(g)
        assert_same_state(case.optimizer, reference.moments, f"step {step}")
        assert_same_bits(case.params[0], p, f"params, step {step}")


@pytest.mark.parametrize("size", (1, 129, 5000))
@pytest.mark.parametrize("options", (MOMENTUM, NESTEROV), ids=("dampening", "nesterov"))
def test_momentum_bits(rng, fma, options, size):
    p = normal(rng, size)
    case = Case("sgd", p, "8bit", seed=7, **options)
    reference = oracle_low_bit.LowBitMomentum(size, seed=7, fma=fma, **options)
    for step in range(1, 11):
        g = normal(rng, size)
        p = reference.step(p, g)
        case.step(g)
        assert_same_state(case.optimizer, reference.moments, f"step {step}")
        assert_same_bits(case.params[0], p, f"params, step {step}")


@pytest.mark.parametrize("as_list", (False, True))
def test_tensors_have_blocks_of_their_own(rng, fma, as_list):
    """A tensor's blocks begin with the tensor, in a flat buffer and in a list; its number is in
    the random bits."""
    layout = fs.Layout([("a", (130,)), ("b", (5, 5)), ("empty", (0,)), ("c", (300,))])
    flat = normal(rng, layout.size)
    start = [view.copy() for view in layout.views(flat).values()] if as_list else flat
    case = Case("adamw", start, "8bit", layout=layout, **ADAM)
    alone = {}
    for number, (name, view) in enumerate(layout.views(flat.copy()).items()):
        reference = oracle_low_bit.LowBitAdam(
            view.size, tensor=number, decoupled=True, fma=fma, **ADAM
        )
        alone[name] = [view.ravel(), reference]
    for _ in range(3):
        g = normal(rng, layout.size)
        views = layout.views(g)
        case.step(list(views.values()) if as_list else g)
        for name, own in alone.items():
            own[0] = own[1].step(own[0], views[name].ravel())
    assert_same_bits(case.values(), np.concatenate([p for p, _ in alone.values()]))
    for name, (_, reference) in alone.items():
        for (codes, _), (wanted, _) in zip(
            stored(case.optimizer, name), reference.moments, strict=True
        ):
            assert_same_bits(codes, wanted, name)


def test_properties_decode_the_state(rng):
    layout = fs.Layout([("a", (130,)), ("b", (5, 5))])
    case = Case("adamw", normal(rng, layout.size), "8bit", layout=layout, **ADAM)
    for _ in range(3):
        case.step(normal(rng, layout.size))
    for number, name in enumerate(MOMENTS["adamw"]):
        wanted = [
            oracle_low_bit.decode(*stored(case.optimizer, tensor)[number], signed=number == 0)
            for tensor in layout.names
        ]
        assert_same_bits(getattr(case.optimizer, name), np.concatenate(wanted), name)


@pytest.mark.parametrize("kind", ("adamw", "adam", "sgd"))
def test_zero_gradients_keep_zero_state_and_parameters(rng, kind):
    case = Case(kind, normal(rng, 300), "8bit", lr=0.1, weight_decay=0.0)
    before = case.values().copy()
    for _ in range(3):
        case.step(np.zeros(300, np.float32))
    assert_same_bits(case.values(), before)
    for codes, scales in stored(case.optimizer):
        assert not codes.any() and not scales.any()


def test_an_element_without_gradients_does_not_move(rng):
    """Its first moment is an exact 0 beside others that are large."""
    case = Case("adamw", normal(rng, 256), "8bit", lr=0.1, weight_decay=0.0)
    before = case.values().copy()
    still = np.arange(256) % 5 == 0
    for _ in range(20):
        case.step(normal(rng, 256, 100.0) * ~still)
    assert_same_bits(case.values()[still], before[still])
    assert np.all(case.values()[~still] != before[~still])


def test_second_moment_moves_in_the_mean(rng):
    """At beta2 = 0.999 a step changes v by less than the spacing of its numbers, a sixteenth to an
    eighth: rounded to nearest it would stand still. Here it falls to a hundredth."""
    size, steps = 4096, 2000
    case = Case("adamw", np.zeros(size, np.float32), "8bit", lr=0.0, betas=(0.9, 0.999))
    exact = np.zeros(size)
    for step in range(steps):
        g = normal(rng, size, 1.0 if step < 50 else 0.1)
        exact += (1 - 0.999) * (g.astype(np.float64) ** 2 - exact)
        case.step(g)
    v = case.optimizer.exp_avg_sq.astype(np.float64)
    assert abs(np.mean(v / exact) - 1) <= 0.03
    assert np.all((v > exact / 4) & (v < exact * 4))


@pytest.mark.parametrize("kind", ("adamw", "sgd"))
def test_first_moment_is_right_in_the_mean(rng, kind):
    size, g = 100_000, 0.3
    options = {"momentum": 0.9, "dampening": 0.5} if kind == "sgd" else {"betas": (0.9, 0.99)}
    case = Case(kind, np.zeros(size, np.float32), "8bit", lr=0.0, **options)
    exact = 0.0
    for step in range(20):
        case.step(np.full(size, g, np.float32))
        new = 0.5 * g if kind == "sgd" else 0.1 * g
        exact = g if kind == "sgd" and step == 0 else 0.9 * exact + new
    m = getattr(case.optimizer, MOMENTS[kind][0]).astype(np.float64)
    assert abs(m.mean() / exact - 1) <= 3e-3
    assert m.std() <= 0.2 * exact


def test_range_of_a_block():
    """First moments below 2^-16 of the largest become 0; second ones below 2^-32 count as the end
    of the range, never as less: sqrt(v) in the denominator would make the update huge."""
    g = np.float32(2.0) ** -np.arange(0, 64, dtype=np.float32)
    case = Case("adamw", np.zeros(64, np.float32), "8bit", lr=1.0, weight_decay=0.0)
    for _ in range(5):
        case.step(g)
    m, v = case.optimizer.exp_avg, case.optimizer.exp_avg_sq
    ratio = m / (g * np.float32(1 - 0.9**5))
    assert np.all(np.abs(ratio[:15] - 1) <= 0.3) and np.all(m[17:] == 0)
    assert np.all(v >= v[0] * 2.0**-33) and np.all(v[:15] <= 2 * g[:15] ** 2 * 0.005)
    assert np.all(np.abs(case.values()) <= 5 * 1.5)


@pytest.mark.parametrize("value", (1e18, 1e-15))
def test_large_and_small_gradients(value):
    """Adam's update does not depend on the size of gradients whose squares are normal numbers."""
    case = Case("adamw", np.zeros(3000, np.float32), "8bit", lr=0.1, eps=1e-30, weight_decay=0.0)
    for _ in range(10):
        case.step(np.full(3000, value, np.float32))
    assert np.all(np.abs(case.values() + 1.0) <= 0.5) and abs(case.values().mean() + 1.0) <= 0.02


@pytest.mark.parametrize("value", (1e20, 1e-25))
def test_gradients_beyond_the_range_of_squares(value):
    """Clipped, 1e20 is a gradient like any other; 1e-25 has a second moment of 0."""
    case = Case("adamw", np.zeros(300, np.float32), "8bit", lr=0.1, weight_decay=0.0)
    full = Case("adamw", np.zeros(300, np.float32), "full", lr=0.1, weight_decay=0.0)
    for own in (case, full):
        for _ in range(5):
            assert not own.step(np.full(300, value, np.float32), max_norm=1.0).skipped
    assert np.all(np.isfinite(case.values()))
    np.testing.assert_allclose(case.values(), full.values(), rtol=0.1)


def test_memory(rng):
    """Both moments in 2.03 bytes a parameter."""
    size = 100_000
    state = Case("adamw", normal(rng, size), "8bit").optimizer.state_dict()["state"]["params"]
    assert sum(array.nbytes for array in state.values()) <= 2.1 * size


@pytest.mark.parametrize("kind", ("adamw", "sgd"))
def test_regression_converges_like_full_state(rng, kind):
    x, true = rng.standard_normal((2000, 300)), rng.standard_normal(300)
    y = x @ true + rng.standard_normal(2000)
    losses = {}
    for format in ("full", "8bit"):
        options = {"lr": 0.05, "weight_decay": 0.0} if kind == "adamw" else {"lr": 0.01}
        case = Case(kind, np.zeros(300, np.float32), format, **options)
        order = np.random.default_rng(1)
        for step in range(400):
            rows = order.integers(0, 2000, 64)
            error = x[rows] @ case.values() - y[rows]
            lr = options["lr"] * (1 - step / 400)
            case.step((x[rows].T @ error / 64).astype(np.float32), lr=lr)
        losses[format] = np.mean((x @ case.values() - y) ** 2)
    assert losses["full"] <= 1.2 and losses["8bit"] <= losses["full"] * 1.02, losses
