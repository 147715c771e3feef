"""The published bounds of the loss and the gradient, over random shapes, layouts and options."""

import itertools

import loss_checks as checks
import numpy as np
import oracle_loss
import pytest

import flatstep as fs

REDUCTIONS = ("none", "none", "mean", "sum")
ROWS = 100  # of one batch: they share shape and options


def random_width(rng):
    """From 2 to 3000, as many of each order of magnitude; never whole vectors of 16."""
    classes = int(np.exp(rng.uniform(np.log(2), np.log(3000))))
    return classes + 1 if classes % 16 == 0 else classes


def random_layout(rng, values):
    """-> the same numbers in rows that lie further apart and start out of alignment."""
    before, after = rng.integers(0, 20, 2)
    rows, classes = values.shape
    wide = np.full((rows, classes + before + after), np.nan, np.float32)
    inside = wide[:, before : before + classes]
    inside[...] = values
    return inside


def random_case(rng, scale, offset):
    """-> logits, targets, options."""
    classes = random_width(rng)
    values = checks.make_logits(rng, (ROWS, classes), scale, offset)
    reduction = str(rng.choice(REDUCTIONS))
    names = [name for name in checks.OPTIONS if rng.random() < 0.4]
    options = checks.draw_options(rng, names, (ROWS,), classes, "float32", reduction)
    if reduction == "mean" and "token_weight" in options:
        # Weights that nearly cancel make a mean as large as one likes, or refuse it.
        options["token_weight"] = np.abs(options["token_weight"])
    options["grad_output"] = options.get("grad_output", 1.0) * np.float32(10 ** rng.uniform(-3, 3))
    if np.ndim(options["grad_output"]) == 0:
        options["grad_output"] = float(options["grad_output"])
    targets = checks.draw_targets(rng, ROWS, classes, options)
    if rng.random() < 0.5:  # confident and right: losses near zero
        right = values.argmax(axis=1)
        ignored = targets == options.get("ignore_index", -100)
        targets = np.where(ignored | (rng.random(ROWS) < 0.3), targets, right)
    if rng.random() < 0.3:
        checks.mask_classes(rng, values, targets)
    targets = targets.astype(rng.choice((np.int32, np.int64)))
    return random_layout(rng, values), targets, options


def check_float32(rng, batches):
    for scale, offset in itertools.islice(itertools.cycle(checks.RANGES), batches):
        logits, targets, options = random_case(rng, scale, offset)
        expected = oracle_loss.cross_entropy(logits, targets, **options)
        gradient = random_layout(rng, np.zeros_like(logits))
        in_place = rng.random() < 0.5
        if in_place:
            gradient = logits
        result = fs.cross_entropy(logits, targets, grad=gradient, **options)
        checks.assert_single(result, gradient, expected, options["reduction"])
        around = gradient.base
        assert np.isnan(around).sum() == around.size - gradient.size


def check_halves(rng, batches):
    for scale, offset in itertools.islice(itertools.cycle(checks.RANGES), batches):
        logits, targets, options = random_case(rng, scale, offset)
        for dtype in checks.HALVES:
            stored = checks.store(logits, dtype)
            single = checks.numbers_of(stored, dtype)
            wanted, wide = checks.run(single, targets, "float32", **options)
            result, gradient = checks.run(stored, targets, dtype, **options)
            checks.assert_same_bits(gradient, checks.store(wide, dtype))
            for name in ("loss", "lse", "entropy", "n_correct", "weight_sum"):
                checks.assert_same_bits(getattr(result, name), getattr(wanted, name))


@pytest.mark.parametrize("part", range(8))
def test_float32_within_the_bounds(part):
    """20,000 rows."""
    check_float32(np.random.default_rng((1, part)), 25)


@pytest.mark.parametrize("part", range(4))
def test_halves_are_rounded_once(part):
    check_halves(np.random.default_rng((2, part)), 10)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(16))
def test_a_million_rows_within_the_bounds(part):
    check_float32(np.random.default_rng((3, part)), 625)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(16))
def test_many_halves_are_rounded_once(part):
    check_halves(np.random.default_rng((4, part)), 100)


@pytest.mark.parametrize("upstream", (2.0**-20, 2.0**-14, 3e4, 1e6))
def test_float16_gradients_at_the_ends_of_the_range(rng, upstream):
    """Subnormal, a little above, close to the largest and infinite."""
    logits = checks.make_logits(rng, (50, 333), 3)
    targets = rng.integers(0, 333, 50)
    rows = (upstream * (1 + rng.random(50))).astype(np.float32)
    options = {"reduction": "none", "grad_output": rows, "label_smoothing": 0.1}
    stored = checks.store(logits, "float16")
    _, wide = checks.run(stored.astype(np.float32), targets, "float32", **options)
    _, gradient = checks.run(stored, targets, "float16", **options)
    checks.assert_same_bits(gradient, checks.store(wide, "float16"))
    assert np.isinf(gradient).any() == (upstream == 1e6)


def test_one_exponential(rng):
    """Against a logit of 0 the loss is the exponential of the other one: some 40,000 of each of
    sixteen parts of an octave, and the ends of the range."""
    others = np.concatenate([rng.uniform(-60, -20, 640_000), [-16.0, -86.0]]).astype(np.float32)
    logits = np.stack([np.zeros_like(others), others], axis=1)
    result = fs.cross_entropy(logits, np.zeros(len(others), np.int32), reduction="none")
    exact = np.log1p(np.exp(others.astype(np.float64)))
    ulps = (result.loss - exact) / np.spacing(exact.astype(np.float32))
    assert np.abs(ulps).max() < 1.25 and abs(ulps.mean()) < 0.05


def test_every_tie():
    """Two classes of probability 1/2, and upstream gradients in [1, 2) of one bit more than the
    dtype has: every gradient lies halfway between two neighbours."""
    for dtype, bits in (("bfloat16", 8), ("float16", 11)):
        numerators = np.arange(2 ** (bits - 1), 2**bits) * 2 + 1
        upstream = (numerators / 2.0**bits).astype(np.float32)
        stored = checks.store(np.zeros((len(upstream), 2)), dtype)
        targets = np.zeros(len(upstream), np.int64)
        _, gradient = checks.run(stored, targets, dtype, reduction="none", grad_output=upstream)
        exact = np.stack([-upstream / 2, upstream / 2], axis=1)
        checks.assert_same_bits(gradient, checks.store(exact, dtype))
        distance = np.abs(checks.numbers_of(gradient, dtype) - exact)
        assert np.all(distance == 2.0 ** -(bits + 1))


# ---- float64 against a longer type ---------------------------------------------------------------


@pytest.mark.needs("long double")
@pytest.mark.parametrize(("scale", "offset"), checks.RANGES)
@pytest.mark.parametrize("options", ("plain", "all"))
def test_float64_against_long_double(rng, scale, offset, options):
    """1e-14 of each row's loss, which may be near 0, and of the row's largest term."""
    for classes in (2, 7, 64, 1001):
        logits = rng.standard_normal((20, classes)) * scale + offset
        targets = rng.integers(0, classes, 20)
        targets[::2] = logits[::2].argmax(axis=1)
        names = checks.OPTIONS if options == "all" else ("grad_output",)
        given = checks.draw_options(rng, names, (20,), classes, "float64", "none")
        targets[3] = given.get("ignore_index", -100)
        expected = oracle_loss.cross_entropy(logits, targets, precision=np.longdouble, **given)
        result, gradient = checks.run(logits, targets, "float64", **given)
        tiny = 1e-300
        checks.assert_within(
            result.loss, expected.rows, 1e-14 * np.abs(expected.rows) + tiny, "loss"
        )
        largest = np.abs(expected.factor) * expected.pulled.max(axis=1)
        own = np.abs(expected.grad)
        checks.assert_within(
            gradient, expected.grad, 1e-14 * (largest[:, None] + own) + tiny, "grad"
        )
        size = np.maximum(np.abs(expected.lse), np.abs(expected.largest))
        checks.assert_within(result.lse, expected.lse, 1e-14 * size + tiny, "lse")
        checks.assert_within(
            result.entropy, expected.entropy, 1e-14 * np.abs(expected.entropy) + tiny, "entropy"
        )


@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("offset", (2.0**14, -(2.0**14)))
def test_blocks_on_both_sides_of_the_largest_unit(rng, offset, dtype):
    """Blocks of classes whose maximum is beyond 2^14 are shifted by it, the others are not; here
    both kinds meet in one row with sums that count alike."""
    level = np.repeat(np.array([-4, 0, -4]), 2048)[:5000]
    logits = (offset + level + rng.standard_normal((20, 5000))).astype(dtype)
    targets = rng.integers(0, 5000, 20)
    options = {"reduction": "none", "label_smoothing": 0.1}
    expected = oracle_loss.cross_entropy(logits, targets, **options)
    result = fs.cross_entropy(logits, targets, grad=True, **options)
    if dtype == "float64":
        checks.assert_double(result, result.grad, expected)
    else:
        checks.assert_single(result, result.grad, expected, "none")
