"""What the tests of the loss share: logits of every dtype, random options, and the bounds."""

import bfloat16
import numpy as np
import oracle

import flatstep as fs

DTYPES = ("float32", "float64", "bfloat16", "float16")
SINGLE_INSIDE = ("float32", "bfloat16", "float16")  # computed in float32
HALVES = ("bfloat16", "float16")

# (scale, offset): plain logits, confident ones, rows where all but a few probabilities underflow,
# and a common offset that costs digits when the loss is taken as lse - x_t.
RANGES = ((1, 0), (10, 0), (100, 0), (1, 1e4))

# An exponential below float32's smallest normal number, 2^-126, may count as 0: a few of them,
# times weights of a few units.
FLOOR = 2.0**-112

# Formulas with fma round twice where the instruction set has none.
ROOM = 1.5 if fs.info()["isa"] in ("x86_64", "generic") else 1.0


def make_logits(rng, shape, scale=1.0, offset=0.0):
    return (rng.standard_normal(shape) * scale + offset).astype(np.float32)


def row_dtype(dtype):
    """Of losses, weights and upstream gradients."""
    return np.float64 if dtype == "float64" else np.float32


# ---- arrays of four dtypes ----------------------------------------------------------------------


def store(values, dtype):
    """values rounded to dtype; bfloat16 as bits in uint16. float16 overflows to infinity."""
    if dtype == "bfloat16":
        return bfloat16.from_float32(values)
    with np.errstate(over="ignore"):
        return np.asarray(values).astype(dtype)


def numbers_of(stored, dtype):
    """The exact numbers, as float32 or float64."""
    return bfloat16.to_float32(stored) if dtype == "bfloat16" else stored.astype(row_dtype(dtype))


def passable(stored, dtype):
    return bfloat16.Bfloat16Array(stored) if dtype == "bfloat16" else stored


def run(stored, targets, dtype, *, in_place=False, **options):
    """-> result of cross_entropy, gradient as stored. The logits keep their bits."""
    logits = stored.copy()
    given = passable(logits, dtype)
    gradient = logits if in_place else np.full_like(stored, 77)
    target = given if in_place else passable(gradient, dtype)
    result = fs.cross_entropy(given, targets, grad=target, **options)
    assert result.grad is target
    assert in_place or logits.tobytes() == stored.tobytes()
    return result, gradient


# ---- bounds -------------------------------------------------------------------------------------


def assert_same_bits(first, second):
    assert np.asarray(first).tobytes() == np.asarray(second).tobytes()


def assert_within(actual, wanted, bound, name):
    error = np.abs(np.asarray(actual, np.float64) - wanted)
    bound = np.broadcast_to(bound, error.shape)
    correct = error <= bound  # False where NaN
    if not correct.all():
        worst = np.unravel_index(np.argmax(np.where(correct, 0, error / bound)), error.shape)
        where = f"{name} at {tuple(int(i) for i in worst)}"
        raise AssertionError(
            f"{where}: got {np.asarray(actual)[worst]!r}, expected {wanted[worst]!r}, "
            f"{error[worst] / bound[worst]:.3g} times the bound"
        )


def gradient_bound(expected):
    """8 ULP of the row's largest term that goes with a probability, (W + 2 z |lse|) p, times the
    row's factor: 8 ULP of the largest probability in the plain case. Where lse is the sum of
    numbers that cancel, their size stands for its own. Where what is taken off is larger, as at the
    target, which is near -1, two roundings of the element's own on top."""
    pulled = expected.pulled.max(axis=1, keepdims=True)
    bound = ROOM * 8 * oracle.ulp(pulled) * np.abs(expected.factor).reshape(-1, 1)
    wanted = expected.grad.reshape(expected.pulled.shape)
    own = np.where(expected.pushed > pulled, 2 * oracle.ulp(wanted), 0.0)
    return (bound + own + FLOOR).reshape(expected.grad.shape)


def assert_gradient(actual, expected):
    assert_within(actual, expected.grad, gradient_bound(expected), "grad")


def assert_rows(actual, expected):
    """4 ULP of each row's loss, which may be as near 0 as float32 goes; and what 4 ULP of the
    largest logit do to the z-loss where that and log(sum) cancel."""
    shift = 4 * oracle.ulp(expected.largest)
    z_loss = expected.z_terms * (2 * np.abs(expected.lse) + shift) * shift
    bound = ROOM * 4 * oracle.ulp(expected.rows) + z_loss + FLOOR
    assert_within(actual, expected.rows, bound, "loss")


def assert_statistics(result, expected):
    """lse = max + log(sum): one rounding of each term and of the sum; entropy is log(sum) less a
    mean of shifted logits, both of one sign; counts are exact, the weights a sum in float64."""
    largest = np.maximum(np.abs(expected.lse), np.abs(expected.largest))
    assert_within(result.lse, expected.lse, 4 * oracle.ulp(largest), "lse")
    bound = 8 * oracle.ulp(expected.entropy) + FLOOR
    assert_within(result.entropy, expected.entropy, bound, "entropy")
    assert_counts(result, expected)


def assert_counts(result, expected):
    assert result.n_valid == expected.n_valid
    assert result.n_correct == expected.n_correct
    assert abs(result.weight_sum - expected.weight_sum) <= 1e-12 * max(1, abs(result.weight_sum))


def assert_single(result, gradient, expected, reduction):
    """Everything that a float32 call returns."""
    if reduction == "none":
        assert_rows(result.loss, expected)
    else:
        size = np.abs(expected.rows).sum() * abs(expected.scale)
        assert abs(result.loss - expected.loss) <= 4 * oracle.ulp(size) + FLOOR
    assert_gradient(gradient, expected)
    assert_statistics(result, expected)


def assert_double(result, gradient, expected):
    """The oracle itself is float64: a few roundings on either side."""
    size = np.abs(expected.rows)
    total = size if np.ndim(result.loss) else size.sum() * abs(expected.scale)
    assert_within(result.loss, expected.loss, 1e-13 * total, "loss")
    largest = expected.pulled.max(axis=1) + expected.pushed.max(axis=1)
    scale = np.abs(expected.factor) * largest.reshape(expected.factor.shape)
    assert_within(gradient, expected.grad, 1e-14 * scale[..., None], "grad")
    for name in ("lse", "entropy"):
        wanted = getattr(expected, name)
        size = np.maximum(np.abs(wanted), np.abs(expected.largest))
        assert_within(getattr(result, name), wanted, 1e-14 * size, name)
    assert_counts(result, expected)


# ---- options ------------------------------------------------------------------------------------

# Every option that changes a number, with a function that draws a value. Weights of rows and
# classes include 0, those of rows also numbers below 0; softcap and z_loss are no float32 numbers.
OPTIONS = {
    "label_smoothing": lambda rng, shape, classes: float(rng.choice((0.1, 0.3, 0.9))),
    "ignore_index": lambda rng, shape, classes: int(rng.choice((0, classes - 1, -1))),
    "class_weight": lambda rng, shape, classes: some_zeros(rng, rng.random(classes) * 3),
    "token_weight": lambda rng, shape, classes: some_zeros(rng, rng.random(shape) * 3 - 0.3),
    "z_loss": lambda rng, shape, classes: float(rng.choice((1e-4, 0.01, 0.3))),
    "softcap": lambda rng, shape, classes: float(rng.choice((3.3, 15.0, 30.0, 50.1))),
    "divisor": lambda rng, shape, classes: float(rng.uniform(1, 100)),
    "grad_output": lambda rng, shape, classes: some_zeros(rng, rng.standard_normal(shape)),
}


def some_zeros(rng, values):
    return np.where(rng.random(values.shape) < 0.1, 0.0, values)


def draw_options(rng, names, shape, classes, dtype, reduction):
    """Values for these names, as they are passed: an upstream array only where it may be one."""
    options = {"reduction": reduction}
    for name in names:
        value = OPTIONS[name](rng, shape, classes)
        if name == "grad_output" and reduction != "none":
            value = float(rng.standard_normal())
        if isinstance(value, np.ndarray):
            value = value.astype(row_dtype(dtype))
        if name != "divisor" or reduction == "mean":
            options[name] = value
    return options


def draw_targets(rng, shape, classes, options):
    """A tenth of the rows is ignored, whatever ignore_index is."""
    targets = rng.integers(0, classes, shape)
    targets[rng.random(shape) < 0.1] = options.get("ignore_index", -100)
    return targets


def mask_classes(rng, logits, targets, share=0.3):
    """Puts -inf in place, not at the targets."""
    mask = rng.random(logits.shape) < share
    safe = np.where((targets >= 0) & (targets < logits.shape[-1]), targets, 0)
    np.put_along_axis(mask, safe[..., None], False, axis=-1)
    logits[mask] = -np.inf
    return mask
