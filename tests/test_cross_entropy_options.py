"""Every option of cross-entropy alone and with every other one, for every dtype; rules at zero."""

import itertools
import math

import loss_checks as checks
import numpy as np
import oracle_loss
import pytest

import flatstep as fs

NAN, INF = math.nan, math.inf
SINGLES_AND_PAIRS = tuple(
    names for size in (1, 2) for names in itertools.combinations(checks.OPTIONS, size)
)

# 5 x 15 rows: a group of 64 rows and a part. 37 classes: two vectors of 16 and a tail.
SHAPE, CLASSES = (5, 15), 37


def make_case(rng, names, dtype, reduction, masked=False, scale=3.0):
    """-> logits as stored, targets, options."""
    options = checks.draw_options(rng, names, SHAPE, CLASSES, dtype, reduction)
    targets = checks.draw_targets(rng, SHAPE, CLASSES, options)
    values = rng.standard_normal((*SHAPE, CLASSES)) * scale
    if masked:
        checks.mask_classes(rng, values, targets)
    return checks.store(values, dtype), targets, options


@pytest.mark.parametrize("masked", (False, True), ids=("", "masked"))
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("dtype", ("float32", "float64"))
@pytest.mark.parametrize("names", SINGLES_AND_PAIRS, ids="+".join)
def test_against_the_oracle(rng, names, dtype, reduction, masked):
    stored, targets, options = make_case(rng, names, dtype, reduction, masked)
    expected = oracle_loss.cross_entropy(stored, targets, **options)
    result, gradient = checks.run(stored, targets, dtype, **options)
    if dtype == "float64":
        checks.assert_double(result, gradient, expected)
    else:
        checks.assert_single(result, gradient, expected, reduction)
    ignored = targets == options.get("ignore_index", -100)
    assert ignored.any() and not ignored.all()
    for array in (gradient, result.lse, result.entropy):
        assert not array[ignored].any()
    in_place, same = checks.run(stored, targets, dtype, in_place=True, **options)
    checks.assert_same_bits(same, gradient)
    checks.assert_same_bits(in_place.loss, result.loss)
    without = fs.cross_entropy(stored, targets, **options)
    assert without.grad is None
    for name in ("loss", "lse", "entropy", "n_correct", "weight_sum"):
        checks.assert_same_bits(getattr(without, name), getattr(result, name))


@pytest.mark.parametrize("dtype", checks.HALVES)
@pytest.mark.parametrize("names", SINGLES_AND_PAIRS, ids="+".join)
def test_halves_are_the_float32_results_rounded_once(rng, names, dtype):
    """All bits: the loss and the statistics as they are, the gradient rounded to nearest even."""
    for reduction, masked in itertools.product(("mean", "none"), (False, True)):
        stored, targets, options = make_case(rng, names, dtype, reduction, masked)
        single = checks.numbers_of(stored, dtype)
        wanted, wide = checks.run(single, targets, "float32", **options)
        for in_place in (False, True):
            result, gradient = checks.run(stored, targets, dtype, in_place=in_place, **options)
            checks.assert_same_bits(gradient, checks.store(wide, dtype))
            for name in ("loss", "lse", "entropy", "n_valid", "n_correct", "weight_sum"):
                checks.assert_same_bits(getattr(result, name), getattr(wanted, name))


@pytest.mark.parametrize("dtype", checks.HALVES)
@pytest.mark.parametrize("classes", (256, 300, 2047, 2048 + 288, 6000))
@pytest.mark.parametrize("scale", (1, 25))
@pytest.mark.parametrize(
    "names", ((), ("smoothing",), ("softcap",), ("smoothing", "class_weight")), ids="+".join
)
def test_halves_of_every_size_are_rounded_once(rng, names, scale, classes, dtype):
    """Gradients down to 0 through the subnormal numbers, which conversions of some processors take
    for 0, in a few of the elements or in all."""
    upstream = np.append(2.0 ** -np.arange(0, 152, 4), (-1.5, -(2.0**-126), 2.0**-149, 0, 2.0**90))
    upstream = upstream.astype(np.float32)
    logits = (scale * rng.standard_normal((upstream.size, classes))).astype(np.float32)
    logits[::3, rng.integers(0, classes, 2)] = -np.inf
    stored, targets = checks.store(logits, dtype), np.full(upstream.size, 1)
    options = {"reduction": "none", "grad_output": upstream}
    if "smoothing" in names:
        options["label_smoothing"] = 0.1
    if "class_weight" in names:
        options["class_weight"] = rng.uniform(0, 2, classes).astype(np.float32)
        options["class_weight"][::7] = 0
    if "softcap" in names:
        options["softcap"] = 8.0
    _, wide = checks.run(checks.numbers_of(stored, dtype), targets, "float32", **options)
    wanted = checks.store(wide, dtype)
    smallest = np.finfo(np.float32).tiny
    assert ((wide != 0) & (np.abs(wide) < smallest)).any() and (np.abs(wide) >= smallest).any()
    for in_place in (False, True):
        _, gradient = checks.run(stored, targets, dtype, in_place=in_place, **options)
        checks.assert_same_bits(gradient, wanted)


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_float_upstream_with_one_loss_a_row(rng, dtype):
    stored, targets, options = make_case(rng, ("class_weight",), dtype, "none")
    upstream = np.full(SHAPE, -0.37, checks.row_dtype(dtype))
    number, _ = checks.run(stored, targets, dtype, grad_output=float(upstream[0, 0]), **options)
    array, wanted = checks.run(stored, targets, dtype, grad_output=upstream, **options)
    _, gradient = checks.run(stored, targets, dtype, grad_output=float(upstream[0, 0]), **options)
    checks.assert_same_bits(gradient, wanted)
    checks.assert_same_bits(number.loss, array.loss)


def test_types_of_the_results(rng):
    for dtype in checks.DTYPES:
        stored, targets, _ = make_case(rng, (), dtype, "mean")
        result, _ = checks.run(stored, targets, dtype)
        assert type(result.loss) is type(result.weight_sum) is float
        assert type(result.n_valid) is type(result.n_correct) is int
        for array in (result.lse, result.entropy):
            assert array.shape == SHAPE and array.dtype == checks.row_dtype(dtype)
        per_row, _ = checks.run(stored, targets, dtype, reduction="none")
        assert per_row.loss.shape == SHAPE and per_row.loss.dtype == checks.row_dtype(dtype)


# ---- weights that add up to nothing -----------------------------------------------------------


@pytest.mark.parametrize("dtype", checks.DTYPES)
@pytest.mark.parametrize("how", ("class_weight", "token_weight", "cancelled", "ignored"))
def test_mean_over_no_weight(rng, dtype, how):
    stored, targets, _ = make_case(rng, (), dtype, "mean")
    targets[targets == -100] = 3
    tokens = np.ones(SHAPE, checks.row_dtype(dtype))
    options = {"z_loss": 0.1, "label_smoothing": 0.1}
    if how == "class_weight":
        targets[...] = rng.choice((4, 7), SHAPE)
        options["class_weight"] = np.ones(CLASSES, checks.row_dtype(dtype))
        options["class_weight"][[4, 7]] = 0
    elif how == "token_weight":
        options["token_weight"] = np.zeros_like(tokens)
    elif how == "cancelled":  # 44 rows of +1 and -1, one of 0
        tokens.reshape(-1)[::2] = -1
        tokens[0, 0] = 0
        options["token_weight"] = tokens
    else:
        targets[...] = -100
    for on_empty, wanted in (("zero", 0.0), ("nan", NAN)):
        result, gradient = checks.run(stored, targets, dtype, on_empty=on_empty, **options)
        assert result.weight_sum == 0 and np.array_equal(result.loss, wanted, equal_nan=True)
        assert not gradient.any()
        assert result.n_valid == (0 if how == "ignored" else targets.size)
    # A divisor takes the place of the weights: only rows without a valid target are empty.
    options.update(divisor=8.0, on_empty="nan")
    result, gradient = checks.run(stored, targets, dtype, **options)
    expected = oracle_loss.cross_entropy(checks.numbers_of(stored, dtype), targets, **options)
    assert np.isnan(result.loss) == np.isnan(expected.loss) == (how == "ignored")
    assert bool(gradient.any()) == (how in ("class_weight", "cancelled"))


def test_no_rows_have_the_statistics_of_nothing():
    logits, targets = np.empty((0, 5), np.float32), np.empty(0, np.int64)
    options = {
        "class_weight": np.ones(5, np.float32),
        "token_weight": np.ones(0, np.float32),
        "softcap": 3.0,
    }
    for reduction in ("mean", "sum", "none"):
        result = fs.cross_entropy(logits, targets, reduction=reduction, grad=True, **options)
        assert not np.any(result.loss) and result.grad.shape == (0, 5)
        assert result.lse.shape == result.entropy.shape == (0,)
        assert result.n_valid == result.n_correct == result.weight_sum == 0
    assert math.isnan(fs.cross_entropy(logits, targets, on_empty="nan", **options).loss)


# ---- a factor of zero gives exactly zero -------------------------------------------------------

# Rows of five classes that no plain loss survives, and the target of each.
HOPELESS = {
    "nan": ((1, NAN, 2, 0, 3), 0),
    "nan at the target": ((1, NAN, 2, 0, 3), 1),
    "all masked": ((-INF,) * 5, 2),
    "infinite": ((1, INF, 2, 0, 3), 3),
    "masked target": ((1, -INF, 2, 0, 3), 1),
}


@pytest.mark.parametrize("dtype", checks.DTYPES)
@pytest.mark.parametrize("softcap", (None, 4.0))
@pytest.mark.parametrize("name", HOPELESS)
def test_token_weight_zero_and_upstream_zero(name, dtype, softcap):
    row, target = HOPELESS[name]
    stored = checks.store(np.array([row, (1, 2, 3, 4, 5)], np.float64), dtype)
    targets = np.array([target, 2])
    factors = np.array([0, 1.5], checks.row_dtype(dtype))
    options = {"reduction": "none", "z_loss": 0.1, "label_smoothing": 0.1, "softcap": softcap}
    _, alone = checks.run(stored[1:], targets[1:], dtype, grad_output=1.5, **options)
    result, gradient = checks.run(stored, targets, dtype, token_weight=factors, **options)
    assert result.loss[0] == 0 and result.loss[1] > 0
    assert not checks.numbers_of(gradient, dtype)[0].any()
    _, gradient = checks.run(stored, targets, dtype, grad_output=factors, **options)
    assert not checks.numbers_of(gradient, dtype)[0].any()
    checks.assert_same_bits(gradient[1:], alone)
    for reduction in ("mean", "sum"):
        whole = {**options, "reduction": reduction, "token_weight": factors}
        assert math.isfinite(checks.run(stored, targets, dtype, **whole)[0].loss)


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_class_weight_zero_with_a_masked_target(dtype):
    stored = checks.store(np.array([[1, -INF, 2, 0, 3.0]]), dtype)
    weights = np.array([1, 0, 1, 2, 0.5], checks.row_dtype(dtype))
    options = {"reduction": "none", "class_weight": weights}
    result, gradient = checks.run(stored, np.array([1]), dtype, **options)
    assert result.loss[0] == 0 and not checks.numbers_of(gradient, dtype).any()
    options.update(z_loss=0.25, label_smoothing=0.2)
    expected = oracle_loss.cross_entropy(checks.numbers_of(stored, dtype), np.array([1]), **options)
    result, gradient = checks.run(stored, np.array([1]), dtype, **options)
    assert result.loss[0] == pytest.approx(expected.loss[0], rel=1e-6)
    tolerance = 2.0**-8 if dtype in checks.HALVES else 1e-6
    np.testing.assert_allclose(
        checks.numbers_of(gradient, dtype), expected.grad, rtol=tolerance, atol=1e-7
    )


@pytest.mark.parametrize("dtype", checks.DTYPES)
def test_class_weights_anywhere_in_memory(rng, dtype):
    """Many rows copy weights that are not aligned; neither that nor their place shows."""
    rows, classes = 20, 2100
    stored = checks.store(rng.standard_normal((rows, classes)), dtype)
    targets = rng.integers(0, classes, rows)
    memory = np.empty(classes + 64, checks.row_dtype(dtype))
    start = -memory.ctypes.data % 64 // memory.itemsize
    numbers = rng.random(classes)

    def bits(offset, part):
        weights = memory[start + offset :][:classes]
        weights[:] = numbers
        options = {"label_smoothing": 0.2, "class_weight": weights, "reduction": "none"}
        result, gradient = checks.run(stored[part], targets[part], dtype, **options)
        return result.loss.tobytes(), gradient.tobytes()

    assert bits(0, slice(None)) == bits(1, slice(None))
    assert bits(0, slice(7)) == bits(1, slice(7))
    assert bits(0, slice(None))[1].startswith(bits(1, slice(7))[1])
