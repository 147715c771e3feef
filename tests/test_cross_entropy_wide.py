"""Few rows of very many classes: the work is split inside the rows, the bits stay the same."""

import contextlib
import tempfile

import loss_checks as checks
import numpy as np
import oracle_loss
import pytest

import flatstep as fs


def make_case(rng, shape, dtype, weighted):
    rows, classes = shape
    values = rng.standard_normal(shape) * 5
    options = {"reduction": "none", "grad_output": rng.standard_normal(rows).astype(np.float32)}
    if weighted:
        options.update(label_smoothing=0.1, z_loss=1e-3, softcap=20.0)
        options["class_weight"] = rng.random(classes).astype(np.float32)
        options["token_weight"] = rng.standard_normal(rows).astype(np.float32)
        values[rng.random(shape) < 0.1] = -np.inf
    targets = rng.integers(0, classes, rows)
    values[np.arange(rows), targets] = 3.0
    return checks.store(values, dtype), targets, options


def bits_of(result, gradient):
    arrays = (gradient, result.loss, result.lse, result.entropy, result.weight_sum)
    return (*(np.asarray(array).tobytes() for array in arrays), result.n_correct)


# One row, which only a split of the classes can divide, and an odd number of odd rows.
@pytest.mark.parametrize("shape", ((1, 262144), (3, 100003)))
@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("weighted", (False, True), ids=("plain", "weighted"))
def test_same_bits_for_all_threads(assert_same_for_all_threads, rng, shape, dtype, weighted):
    stored, targets, options = make_case(rng, shape, dtype, weighted)

    def compute():
        apart = bits_of(*checks.run(stored, targets, dtype, **options))
        assert apart == bits_of(*checks.run(stored, targets, dtype, in_place=True, **options))
        without = fs.cross_entropy(checks.passable(stored, dtype), targets, **options)
        assert without.loss.tobytes() == apart[1]
        return apart

    assert_same_for_all_threads(compute)
    if dtype == "float32":
        expected = oracle_loss.cross_entropy(stored, targets, **options)
        checks.assert_single(*checks.run(stored, targets, dtype, **options), expected, "none")


@pytest.mark.parametrize("dtype", checks.DTYPES)
@pytest.mark.parametrize("weighted", (False, True), ids=("plain", "weighted"))
def test_same_bits_alone_and_in_a_batch(rng, dtype, weighted):
    """40 rows are enough to be divided among threads, one and two are not."""
    stored, targets, options = make_case(rng, (40, 70001), dtype, weighted)
    for name in ("grad_output", "class_weight", "token_weight"):
        if name in options:
            options[name] = options[name].astype(checks.row_dtype(dtype))

    def part(rows):
        own = {**options, "grad_output": options["grad_output"][rows]}
        if weighted:
            own["token_weight"] = options["token_weight"][rows]
        return checks.run(stored[rows], targets[rows], dtype, **own)

    batch, gradient = part(slice(0, 40))
    for threads in (1, 3):
        fs.set_num_threads(threads)
        for rows in (slice(0, 1), slice(17, 19), slice(39, 40)):
            alone, own = part(rows)
            checks.assert_same_bits(own, gradient[rows])
            for name in ("loss", "lse", "entropy"):
                checks.assert_same_bits(getattr(alone, name), getattr(batch, name)[rows])


@pytest.mark.parametrize("smoothing", (0.0, 0.1))
@pytest.mark.parametrize("masked", (False, True), ids=("", "masked"))
def test_where_the_maximum_is(rng, smoothing, masked):
    """A new one in every block, in the first, in many; alone far above the others, as target."""
    classes = 20011
    values = rng.standard_normal((5, classes)) * 3
    values[0].sort()
    values[1] = -values[0]
    values[2, rng.random(classes) < 0.01] = 17.0
    values[4] = 2.5
    if masked:
        values[:, rng.random(classes) < 0.1] = -np.inf
        values[:, 4096:8192] = -np.inf
    values[3, 12345] = 45.0
    logits = values.astype(np.float32)
    targets = np.array([classes - 2, 1, 5, 12345, 7])
    targets[logits[np.arange(5), targets] == -np.inf] = 12345
    options = {"reduction": "none", "label_smoothing": smoothing}
    expected = oracle_loss.cross_entropy(logits, targets, **options)
    result, gradient = checks.run(logits, targets, "float32", **options)
    checks.assert_single(result, gradient, expected, "none")
    forward = fs.cross_entropy(logits, targets, **options)
    in_place, own = checks.run(logits, targets, "float32", in_place=True, **options)
    checks.assert_same_bits(own, gradient)
    for name in ("loss", "lse", "entropy"):
        checks.assert_same_bits(getattr(forward, name), getattr(result, name))
        checks.assert_same_bits(getattr(in_place, name), getattr(result, name))


def test_broken_row_among_split_rows(rng):
    stored, targets, options = make_case(rng, (3, 100003), "float32", False)
    clean, wanted = checks.run(stored, targets, "float32", **options)
    for column in (0, 65536, 100002):
        spoiled = stored.copy()
        spoiled[1, column] = np.nan
        result, gradient = checks.run(spoiled, targets, "float32", **options)
        assert np.isnan(result.loss).tolist() == [False, True, False]
        assert np.isnan(gradient[1]).all()
        checks.assert_same_bits(gradient[[0, 2]], wanted[[0, 2]])
        checks.assert_same_bits(result.loss[[0, 2]], clean.loss[[0, 2]])


def test_the_first_of_equal_maxima_far_apart():
    """In different parts of a row, however it is split."""
    logits = np.zeros((1, 262144), np.float32)
    logits[0, [1, 150_000, 262_143]] = 2.0
    for threads in (1, 3):
        fs.set_num_threads(threads)
        for target, correct in ((1, 1), (150_000, 0), (262_143, 0), (0, 0)):
            assert fs.cross_entropy(logits, np.array([target])).n_correct == correct


@contextlib.contextmanager
def sparse_rows(dtype, classes, stride):
    """Two rows, stride elements apart, in a file of zeros of which only two pages are touched."""
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(np.dtype(dtype).itemsize * (stride + classes))
        buffer = np.memmap(file.name, dtype, "r+")
        yield np.lib.stride_tricks.as_strided(
            buffer, (2, classes), (stride * buffer.itemsize, buffer.itemsize)
        )


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_rows_further_apart_than_2_to_31_elements(rng, dtype):
    """The gradient's rows lie further apart than 2^32."""
    stored, targets, options = make_case(rng, (2, 77), dtype, True)
    wanted, expected = checks.run(stored, targets, dtype, **options)
    assert expected.any()
    with (
        sparse_rows(stored.dtype, 77, 2**31 + 24) as rows,
        sparse_rows(stored.dtype, 77, 2**32 + 40) as gradient,
    ):
        rows[...] = stored
        given = checks.passable(rows, dtype)
        result = fs.cross_entropy(given, targets, grad=checks.passable(gradient, dtype), **options)
        checks.assert_same_bits(rows, stored)
        checks.assert_same_bits(gradient, expected)
        checks.assert_same_bits(result.loss, wanted.loss)
        fs.cross_entropy(given, targets, grad=given, **options)
        checks.assert_same_bits(rows, expected)
