"""bfloat16 parameters with masters, bf16 copies, 16-bit gradients and stochastic rounding."""

import bfloat16
import numpy as np
import oracle
import oracle_low_bit
import pytest
from optim_case import KINDS, Case, as_type, assert_same_bits, normal

OPTIONS = {"lr": 3e-3, "weight_decay": 0.1}
SIZES = (1, 17, 1024, 1025, 5003)


def bfloat16_start(rng, size):
    """float32 numbers that bfloat16 can hold."""
    return bfloat16.to_float32(bfloat16.from_float32(normal(rng, size)))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("state", ("", "8bit "))
def test_masters_move_like_float32(rng, kind, state, size):
    """Same bits as a float32 run; the parameters are the masters rounded to nearest."""
    start = bfloat16_start(rng, size)
    single = Case(kind, start, state + "full", **OPTIONS)
    half = Case(kind, start, state + "master", **OPTIONS)
    copy = Case(kind, start, state + "copy", **OPTIONS)
    for _ in range(6):
        g = normal(rng, size)
        for case in (single, half, copy):
            case.step(g.copy(), max_norm=1.0)
        assert_same_bits(half.optimizer.master, single.params[0])
        assert_same_bits(copy.params[0], single.params[0])
        wanted = bfloat16.from_float32(single.params[0])
        assert_same_bits(half.params[0], wanted)
        assert_same_bits(copy.copies[0], wanted)


def test_copy_is_written_at_once(rng):
    start = normal(rng, 300)
    case = Case("adamw", [start, start[:7]], "copy")
    assert_same_bits(case.copies[0], bfloat16.from_float32(start))
    assert_same_bits(case.copies[1], bfloat16.from_float32(start[:7]))
    assert case.optimizer.master is None


def test_master_of_a_list(rng):
    start = [bfloat16_start(rng, 30).reshape(5, 6), bfloat16_start(rng, 7)]
    masters = Case("adamw", start, "master").optimizer.master
    assert [m.shape for m in masters] == [(5, 6), (7,)]
    for master, wanted in zip(masters, start, strict=True):
        assert_same_bits(master, wanted)


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
@pytest.mark.parametrize("format", ("full", "8bit", "copy", "master", "stochastic"))
@pytest.mark.parametrize("kind", KINDS)
def test_half_gradients_are_widened(rng, kind, format, dtype):
    start = bfloat16_start(rng, 5003)
    half, single = (Case(kind, start, format, **OPTIONS) for _ in range(2))
    for _ in range(3):
        given, wide = as_type(normal(rng, 5003, 0.3), dtype)
        first = half.step(given, max_norm=2.0, grad_scale=4.0)
        second = single.step(wide, max_norm=2.0, grad_scale=4.0)
        assert first == second and 0 < first.clip_scale < 1
        assert half.everything() == single.everything()


@pytest.mark.parametrize(("dtype", "value"), [("bfloat16", 1e20), ("bfloat16", 1e-25)])
@pytest.mark.parametrize("kind", ("sgd", "adamw"))
def test_extreme_half_gradients_clip(kind, dtype, value):
    """Norm and clip factor as of the same numbers in float64."""
    given, wide = as_type(np.full(1000, value, np.float32), dtype)
    case = Case(kind, np.zeros(1000, np.float32), lr=1.0, weight_decay=0.0)
    info = case.step(given, max_norm=1.0)
    norm = oracle.global_norm([wide])
    assert info.grad_norm == pytest.approx(norm, rel=1e-12, abs=0) and not info.skipped
    assert info.clip_scale == pytest.approx(oracle.clip_scale(norm, 1.0), rel=1e-12)
    if kind == "sgd":
        wanted = -wide.astype(np.float64) * oracle.clip_scale(norm, 1.0)
        assert np.all(np.abs(case.values() - wanted) <= 1e-6 * np.abs(wanted))


@pytest.mark.parametrize("value", (65504.0, 6e-8))
def test_extreme_float16_gradients_clip(value):
    """The largest and the smallest number of the type."""
    given, wide = as_type(np.full(1000, value, np.float32), "float16")
    case = Case("sgd", np.zeros(1000, np.float32), lr=1.0, momentum=0.0)
    info = case.step(given, max_norm=1e-3)
    norm = oracle.global_norm([wide])
    assert info.grad_norm == pytest.approx(norm, rel=1e-12, abs=0)
    wanted = -wide.astype(np.float64) * oracle.clip_scale(norm, 1e-3)
    assert np.all(np.abs(case.values() - wanted) <= 1e-6 * np.abs(wanted))


@pytest.mark.parametrize("dtype", ("bfloat16", "float16"))
def test_zero_grad_of_half_gradients(rng, dtype):
    given, _ = as_type(normal(rng, 4099), dtype)
    Case("adamw", normal(rng, 4099)).step(given, zero_grad=True)
    assert not np.asarray(getattr(given, "bits", given)).view(np.uint16).any()


# ---- stochastic rounding ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_stochastic_rounding_bits(rng, kind, size):
    """The parameters are those of a float32 step, with the stated random bits added below."""
    seed = 0xFEDCBA9876543210
    case = Case(kind, bfloat16_start(rng, size), "stochastic", seed=seed, **OPTIONS)
    for step in range(1, 6):
        single = Case(kind, case.values(), **OPTIONS)
        state = case.optimizer.state_dict()
        single.optimizer.load_state_dict(state | {"seed": 0})
        g = normal(rng, size)
        case.step(g)
        single.step(g)
        random = oracle_low_bit.rounding_bits(seed, step, 0, size)
        assert_same_bits(
            case.params[0], oracle_low_bit.round_to_bfloat16(single.params[0], random), step
        )


@pytest.mark.parametrize("step", (2**31 - 1, 2**31, 2**32 - 1, 2**40 + 3, 2**48 - 2))
def test_stochastic_rounding_late_and_in_a_list(rng, step):
    """The number of the tensor and all bits of the step are in the counter."""
    start = [bfloat16_start(rng, size) for size in (200, 130)]
    case = Case("sgd", start, "stochastic", seed=5, lr=0.1, momentum=0.0)
    case.optimizer.load_state_dict(case.optimizer.state_dict() | {"step": step})
    g = [normal(rng, size) for size in (200, 130)]
    single = Case("sgd", start, lr=0.1, momentum=0.0)
    single.step(g)
    assert case.step(g).step == step + 1
    for number, size in enumerate((200, 130)):
        random = oracle_low_bit.rounding_bits(5, step + 1, number, size)
        wanted = oracle_low_bit.round_to_bfloat16(single.params[number], random)
        assert_same_bits(case.params[number], wanted)


@pytest.mark.parametrize("start", (1.0, -1.0, 1.3e-3))
def test_small_updates_move_the_mean(start):
    """A hundredth of the spacing: rounded to nearest, no parameter would ever move."""
    size, steps = 20_000, 50
    start = float(bfloat16.to_float32(bfloat16.from_float32(np.float32([start])))[0])
    lr = abs(start) * 2.0**-8 / 100
    case = Case("sgd", np.full(size, start, np.float32), "stochastic", lr=lr, momentum=0.0)
    for _ in range(steps):
        case.step(np.ones(size, np.float32))
    moved = start - case.values().astype(np.float64)
    wanted = steps * lr
    # The deviation of one element is below a spacing; of the mean, that over sqrt(size).
    assert abs(moved.mean() - wanted) <= 5 * abs(start) * 2.0**-7 / np.sqrt(size)
    assert wanted > 20 * abs(start) * 2.0**-7 / np.sqrt(size)


def test_the_mean_over_seeds(rng):
    size = 300
    start, g = bfloat16_start(rng, size), normal(rng, size)
    exact = Case("sgd", start, lr=0.05, momentum=0.0)
    exact.step(g)
    total = np.zeros(size)
    for seed in range(400):
        case = Case("sgd", start, "stochastic", seed=seed, lr=0.05, momentum=0.0)
        case.step(g)
        total += case.values()
    spacing = np.abs(exact.values()) * 2.0**-7
    assert np.all(np.abs(total / 400 - exact.values()) <= 5 * spacing / 2 / np.sqrt(400))


def test_never_further_than_the_neighbour(rng):
    size = 20_000
    start, g = bfloat16_start(rng, size), normal(rng, size)
    single, half = Case("adamw", start, **OPTIONS), Case("adamw", start, "stochastic", **OPTIONS)
    single.step(g)
    half.step(g)
    below = single.params[0].view(np.uint32) >> 16  # towards zero
    distance = half.params[0].astype(np.int64) - below
    exact = (single.params[0].view(np.uint32) & 0xFFFF) == 0
    assert np.all((distance == 0) | (distance == 1)) and np.all(distance[exact] == 0)
    assert 0.3 < distance.mean() < 0.7


def test_seeds_steps_and_tensors_have_bits_of_their_own(rng):
    start, g = bfloat16_start(rng, 4096), normal(rng, 4096)

    def after(seed=0, step=0, number=0):
        arrays = [start[:1].copy() for _ in range(number)] + [start]
        case = Case("sgd", arrays, "stochastic", seed=seed, lr=0.05, momentum=0.0)
        case.optimizer.load_state_dict(case.optimizer.state_dict() | {"step": step})
        case.step([g[:1].copy() for _ in range(number)] + [g])
        return case.params[-1].tobytes()

    variants = [after(), after(seed=1), after(seed=2**32), after(step=1), after(number=1)]
    assert len(set(variants)) == len(variants)
    assert after() == variants[0]
