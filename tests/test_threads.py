"""The same bits for 1, 2, 3, 4 and 7 threads, and for calls from several Python threads."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from optim_case import FORMATS, Case, as_type, normal

import flatstep as fs


def digest(*values):
    total = hashlib.sha256()
    for value in values:
        total.update(np.ascontiguousarray(value).tobytes())
    return total.hexdigest()


def as_bytes(data):
    return np.frombuffer(data, np.uint8)


# 1003 rows split unevenly for every thread count; one row is split over its classes; 50257 columns
# make each row a task of its own; what is small stays on one thread.
@pytest.mark.parametrize("shape", ((1003, 97), (1, 40_003), (37, 50257), (1, 5000)))
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("weighted", (False, True), ids=("", "weighted"))
def test_cross_entropy(assert_same_for_all_threads, rng, shape, reduction, weighted):
    rows, classes = shape
    logits = rng.standard_normal(shape).astype(np.float32) * 5
    targets = rng.integers(0, classes, rows)
    targets[::11] = -100
    targets[0] = 3
    options = {"reduction": reduction, "label_smoothing": 0.1, "grad": True}
    if weighted:
        options.update(z_loss=1e-3, softcap=30.0)
        options["class_weight"] = rng.random(classes).astype(np.float32)
        options["token_weight"] = rng.random(rows).astype(np.float32)

    def compute():
        result = fs.cross_entropy(logits, targets, **options)
        statistics = (result.lse, result.entropy, result.n_correct, result.weight_sum)
        return digest(result.loss, result.grad, *statistics)

    assert_same_for_all_threads(compute)


@pytest.mark.parametrize("size", (100, 4097, 1_000_003))
def test_norm_and_clip(assert_same_for_all_threads, rng, size):
    gradients = [rng.standard_normal(size).astype(np.float32) for _ in range(3)]

    def compute():
        own = [g.copy() for g in gradients]
        norm = fs.clip_grad_norm_(own, 0.5)
        return digest(norm, fs.grad_norm(gradients), *own)

    assert_same_for_all_threads(compute)


@pytest.mark.parametrize("kind", (fs.AdamW, fs.Adam, fs.SGD))
@pytest.mark.parametrize("sizes", ((1_000_003,), (7, 4097, 1, 300_000) + (40,) * 200))
def test_optimizers(assert_same_for_all_threads, rng, kind, sizes):
    start = [rng.standard_normal(size).astype(np.float32) for size in sizes]
    gradients = [rng.standard_normal(size).astype(np.float32) for size in sizes]

    def compute():
        params = [array.copy() for array in start]
        optimizer = kind(params, lr=0.01, weight_decay=0.1)
        for _ in range(2):
            info = optimizer.step([g.copy() for g in gradients], max_norm=1.0, zero_grad=True)
        return digest(info.grad_norm, *params)

    assert_same_for_all_threads(compute)


@pytest.mark.parametrize("format", FORMATS[1:])
@pytest.mark.parametrize("kind", ("adamw", "sgd"))
def test_optimizers_in_every_format(assert_same_for_all_threads, rng, kind, format):
    sizes = (7, 4097, 1, 300_000) + (40,) * 50
    start = [normal(rng, size) for size in sizes]
    gradients = [normal(rng, size) for size in sizes]

    def compute():
        case = Case(kind, start, format, lr=0.01, weight_decay=0.1, seed=3)
        for _ in range(2):
            info = case.step([g.copy() for g in gradients], max_norm=1.0, zero_grad=True)
        arrays, (_, state) = case.everything()
        return digest(info.grad_norm, *map(as_bytes, (*arrays, *state.values())))

    assert_same_for_all_threads(compute)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "float16"))
def test_accumulate_and_partials(assert_same_for_all_threads, rng, dtype):
    sizes = (7, 4097, 1, 300_000)
    start = [normal(rng, size) for size in sizes]
    src = [as_type(normal(rng, size), dtype)[0] for size in sizes]

    def compute():
        totals, case = [np.zeros(size, np.float32) for size in sizes], Case("adamw", start)
        for _ in range(3):
            partials = fs.accumulate(totals, src, scale=0.3)
        info = case.step(totals, partials=partials, max_norm=1.0)
        return digest(partials.norm, info.grad_norm, *totals, *case.params)

    assert_same_for_all_threads(compute)


@pytest.mark.parametrize(
    ("batch", "length", "width", "heads", "vocabulary", "layers"),
    [
        (3, 13, 24, 3, 37, 3),  # fewer rows than seven threads would like, odd everywhere
        (2, 64, 64, 4, 256, 2),
        (6, 19, 40, 4, 61, 2),  # halves of three sequences
    ],
)
def test_fifty_training_steps(
    assert_same_for_all_threads, rng, batch, length, width, heads, vocabulary, layers
):
    """Dropout, clipping and AdamW: loss, gradients and parameters after every tenth step."""
    config = fs.GPTConfig(
        vocab_size=vocabulary,
        block_size=length,
        n_layer=layers,
        n_head=heads,
        n_embd=width,
        dropout=0.1,
    )
    data = rng.integers(0, vocabulary, (50, batch, length + 1))

    def compute():
        model = fs.GPT(config, seed=1)
        optimizer = fs.AdamW(model.params, lr=3e-3, weight_decay=0.1, layout=model.layout)
        digests, losses = [], []
        for step in range(50):
            tokens, targets = data[step, :, :-1], data[step, :, 1:]
            losses.append(
                model.forward_backward(
                    np.ascontiguousarray(tokens),
                    np.ascontiguousarray(targets),
                    step=step,
                    label_smoothing=0.1,
                )
            )
            if step % 10 == 9:
                digests.append(digest(losses, model.grads, model.params))
            optimizer.step(model.grads, max_norm=1.0)
        assert np.isfinite(losses).all()
        return " ".join([*digests, digest(model.params)])

    assert_same_for_all_threads(compute)


def assert_gpt2_same_for_threads(layers, batch, length):
    """Two steps with dropout of a model with GPT-2's widths: losses, gradients, parameters."""
    model = fs.GPT(fs.GPTConfig(50257, 1024, layers, 12, 768, dropout=0.1), seed=1)
    start, results = model.params.copy(), {}
    batches = np.random.default_rng(0).integers(0, 50257, (2, 2, batch, length))
    for threads in (1, 2, 3, 4, 7):
        fs.set_num_threads(threads)
        model.params[...] = start
        optimizer = fs.AdamW(model.params, lr=1e-3, weight_decay=0.1, layout=model.layout)
        total = hashlib.sha256()
        for step, ids in enumerate(batches):
            loss = model.forward_backward(*ids, step=step)
            assert np.isfinite(loss)
            total.update(np.float64(loss))
            total.update(model.grads)
            optimizer.step(model.grads, max_norm=1.0, partials=model.grad_partials)
        total.update(model.params)
        results[threads] = total.hexdigest()
    assert len(set(results.values())) == 1, results


def test_a_layer_of_gpt2():
    """Its width, heads and vocabulary; rows that neither tiles nor threads divide."""
    assert_gpt2_same_for_threads(layers=1, batch=3, length=23)


@pytest.mark.slow
def test_the_whole_gpt2():
    assert_gpt2_same_for_threads(layers=12, batch=4, length=64)


def test_evaluation_and_generation(assert_same_for_all_threads, rng):
    config = fs.GPTConfig(vocab_size=65, block_size=100, n_layer=2, n_head=3, n_embd=48)
    model = fs.GPT(config, seed=1)
    tokens = rng.integers(0, 65, (2, 99))

    def compute():
        return digest(
            model.logits(tokens),
            model.loss(tokens, tokens),
            model.generate(tokens[:, :10], 20, seed=5),
        )

    assert_same_for_all_threads(compute)


def test_calls_from_eight_python_threads(rng):
    """The interpreter lock is released inside: calls overlap and must not meet."""
    logits = rng.standard_normal((64, 1000)).astype(np.float32)
    targets = rng.integers(0, 1000, 64)
    start = rng.standard_normal(50_000).astype(np.float32)

    def work(_):
        params = start.copy()
        optimizer = fs.AdamW(params)
        for _ in range(5):
            result = fs.cross_entropy(logits, targets, grad=True)
            optimizer.step(start.copy(), max_norm=1.0)
        return digest(result.loss, result.grad, params)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(work, range(32)))) == 1


def test_one_optimizer_from_two_python_threads(rng):
    """A step that finds another one running raises; the count is that of the finished steps."""
    params = rng.standard_normal(1_000_000).astype(np.float32)
    gradient = rng.standard_normal(1_000_000).astype(np.float32)
    optimizer = fs.SGD(params, lr=1e-3)
    barrier = threading.Barrier(4)

    def work(_):
        done = 0
        barrier.wait(timeout=60)
        for _ in range(10):
            try:
                done += not optimizer.step(gradient).skipped
            except RuntimeError as error:
                assert "step" in str(error)
        return done

    with ThreadPoolExecutor(4) as pool:
        finished = sum(pool.map(work, range(4)))
    assert optimizer.step_count == finished >= 1
