"""Generation: logits against whole passes, what is drawn against its formula."""

import hashlib

import numpy as np
import pytest

import flatstep as fs

# vocabulary, longest sequence, layers, heads, width.
SHAPES = {
    # no extent is a whole number of vectors; head size 5
    "odd": (37, 19, 2, 3, 15),
    # whole vectors, tiles and tasks
    "even": (256, 64, 3, 4, 64),
    # several tasks with a ragged last one
    "wide": (300, 24, 1, 2, 136),
    # one layer, one head, one position: each token moves the window
    "least": (5, 1, 1, 1, 1),
    # prompts that do not all fit one pass
    "long": (29, 400, 2, 2, 8),
}


def make_model(shape, noise=0.1):
    vocabulary, block, layers, heads, width = SHAPES[shape]
    model = fs.GPT(
        fs.GPTConfig(
            vocab_size=vocabulary, block_size=block, n_layer=layers, n_head=heads, n_embd=width
        ),
        seed=3,
    )
    rng = np.random.default_rng(2)
    model.params[...] += (rng.standard_normal(model.num_params) * noise).astype(np.float32)
    return model


def drawn_with_logits(model, prompt, n, **options):
    """-> ids [B, T + n], logits [n, B, V]"""
    buffer = np.empty((len(prompt), model.config.vocab_size), np.float32)
    ids, logits = [prompt], []
    for drawn in model.stream(prompt, n, logits=buffer, **options):
        ids.append(drawn[:, None])
        logits.append(buffer.copy())
    return np.concatenate(ids, axis=1), np.stack(logits)


# One token: nothing cached at first. The other lengths end before, at and beyond the block.
@pytest.mark.parametrize("batch", (1, 2, 3, 7))
@pytest.mark.parametrize(
    ("shape", "length", "n"),
    [("odd", 1, 24), ("odd", 4, 3), ("odd", 19, 2), ("odd", 25, 2), ("even", 10, 60),
     ("wide", 7, 9), ("least", 1, 3), ("least", 4, 3), ("long", 300, 5)],
)  # fmt: skip
def test_logits_are_those_of_a_whole_pass(rng, shape, length, n, batch):
    model = make_model(shape)
    vocabulary, block = SHAPES[shape][:2]
    prompt = rng.integers(0, vocabulary, (batch, length))
    ids, logits = drawn_with_logits(model, prompt, n, seed=4)
    assert ids.shape == (batch, length + n) and np.array_equal(ids[:, :length], prompt)
    for i in range(n):
        end = length + i
        wanted = model.logits(ids[:, max(0, end - block) : end].copy())[:, -1]
        assert np.all(np.abs(logits[i] - wanted) <= 3e-6 * np.abs(wanted).max()), (i, batch)


@pytest.mark.parametrize("shape", ("odd", "even", "wide"))
def test_greedy_tokens_are_the_most_likely_ones(rng, shape):
    model = make_model(shape)
    prompt = rng.integers(0, SHAPES[shape][0], (3, 5))
    ids = model.generate(prompt, SHAPES[shape][1], temperature=0)
    for i in range(5, ids.shape[1]):
        logits = model.logits(ids[:, max(0, i - SHAPES[shape][1]) : i].copy())[:, -1]
        chosen = np.take_along_axis(logits, ids[:, i : i + 1], axis=1)[:, 0]
        # Equal but for roundings, which may swap two that lie together.
        assert np.all(chosen >= logits.max(axis=1) - 1e-5 * np.abs(logits).max())
    assert np.array_equal(ids, model.generate(prompt, SHAPES[shape][1], top_k=1, seed=9))
    assert np.array_equal(ids, model.generate(prompt, SHAPES[shape][1], top_p=0, seed=9))


@pytest.mark.parametrize("shape", SHAPES)
def test_same_bits_for_any_number_of_threads(assert_same_for_all_threads, rng, shape):
    model = make_model(shape)
    prompt = rng.integers(0, SHAPES[shape][0], (5, 3))

    def compute():
        ids, logits = drawn_with_logits(model, prompt, SHAPES[shape][1] % 30, top_p=0.9)
        return hashlib.sha256(ids.tobytes() + logits.tobytes()).hexdigest()

    assert_same_for_all_threads(compute)


@pytest.mark.parametrize(("shape", "length"), [("odd", 1), ("odd", 6), ("even", 3), ("long", 150)])
def test_a_row_does_not_depend_on_the_batch(rng, shape, length):
    """1 to 9 rows: every size of a group of rows; 150 positions each: two passes over prompts."""
    model = make_model(shape)
    prompt = rng.integers(0, SHAPES[shape][0], (9, length))
    options = {"top_k": 11, "top_p": 0.95, "temperature": 1.3}
    alone = [
        drawn_with_logits(model, prompt[b : b + 1], 20, seed=50 + b, **options) for b in range(9)
    ]
    for batch in range(2, 10):
        ids, logits = drawn_with_logits(model, prompt[:batch], 20, seed=50, **options)
        for b in range(batch):
            assert np.array_equal(ids[b], alone[b][0][0])
            assert logits[:, b].tobytes() == alone[b][1][:, 0].tobytes()


@pytest.mark.parametrize("prompt_shape", [(4,), (3, 4)], ids=str)
@pytest.mark.parametrize("options", [{}, {"top_k": 5, "temperature": 0.7}, {"top_p": 0.8}], ids=str)
def test_a_stream_has_the_tokens_of_generate(rng, prompt_shape, options):
    model = make_model("odd")
    prompt = rng.integers(0, 37, prompt_shape)
    whole = model.generate(prompt, 25, seed=8, **options)  # past the block of 19
    assert np.array_equal(whole, model.generate(prompt, 25, seed=8, **options))
    stream = list(model.stream(prompt, 25, seed=8, **options))
    assert isinstance(stream[0], int if len(prompt_shape) == 1 else np.ndarray)
    assert np.array_equal(np.stack(stream, axis=-1), whole[..., 4:])
    assert not np.array_equal(whole, model.generate(prompt, 25, seed=12, **options))
    assert list(model.stream(prompt, 0, **options)) == []


def test_two_streams_side_by_side(rng):
    model = make_model("even")
    prompts = rng.integers(0, 256, (2, 6))
    wanted = [list(model.stream(prompt, 30, seed=i)) for i, prompt in enumerate(prompts)]
    both = zip(*(model.stream(p, 30, seed=i) for i, p in enumerate(prompts)), strict=True)
    assert [list(tokens) for tokens in zip(*both, strict=True)] == wanted


def allowed_tokens(logits, temperature=1.0, top_k=None, top_p=None):
    """{token: probability} in float64: top_k first, then the fewest that reach top_p of those."""
    order = np.lexsort((np.arange(len(logits)), -logits))
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    order = order[:top_k]
    shares = weights[order] / weights[order].sum()
    if top_p is not None:
        before = np.concatenate([[0.0], np.cumsum(shares)[:-1]])
        order = order[(before < top_p) | (np.arange(len(order)) == 0)]
    kept = weights[order]
    return dict(zip(order.tolist(), (kept / kept.sum()).tolist(), strict=True))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_k": 36, "temperature": 2.0},
        {"top_k": 37},
        {"top_k": 1000},
        {"top_p": 0.3},
        {"top_p": 0.75, "temperature": 1.5},
        {"top_p": 0.999},
        {"top_p": 1.0},
        {"top_p": 1e-9},
        {"top_k": 6, "top_p": 0.6},
        {"top_k": 2, "top_p": 0.99, "temperature": 3.0},
    ],
    ids=str,
)
def test_what_is_drawn_and_how_often(options):
    """4000 rows of one prompt: nothing beyond the exact set, and counts by a chi-square test."""
    model, draws = make_model("odd", noise=0.3), 4000
    prompt = np.broadcast_to(np.array([3, 1, 4]), (draws, 3))
    ids, logits = drawn_with_logits(model, prompt, 1, seed=1000, **options)
    assert (logits[0] == logits[0, 0]).all()
    wanted = allowed_tokens(logits[0, 0], **options)
    counts = np.bincount(ids[:, -1], minlength=37)
    assert set(np.flatnonzero(counts)) <= set(wanted)
    likely = {token for token, share in wanted.items() if share * draws > 20}
    assert likely <= set(np.flatnonzero(counts))
    expected = np.array([wanted.get(token, 0.0) * draws for token in range(37)])
    tested = expected > 0
    statistic = ((counts - expected)[tested] ** 2 / expected[tested]).sum()
    freedom = tested.sum() - 1
    assert statistic <= freedom + 5 * np.sqrt(2 * freedom) + 5, (statistic, freedom)


def test_the_nucleus_ends_with_the_token_that_reaches_top_p():
    """Four tokens of exactly 1/4: each 1/4 of top_p lets one more in, the smaller ids first."""
    model = fs.GPT(fs.GPTConfig(vocab_size=4, block_size=4, n_layer=1, n_head=1, n_embd=8), seed=0)
    model["transformer.wte.weight"][...] = model["transformer.wte.weight"][0]
    prompt = np.zeros((400, 1), np.int64)
    for top_p, count in ((0.2, 1), (0.25, 1), (0.26, 2), (0.5, 2), (0.51, 3), (0.75, 3), (0.9, 4)):
        ids = model.generate(prompt, 1, top_p=top_p)
        assert set(ids[:, 1].tolist()) == set(range(count)), top_p
    for top_k in (1, 2, 3):
        assert set(model.generate(prompt, 1, top_k=top_k)[:, 1].tolist()) == set(range(top_k))
    # A share of the top_k, not of all: of two halves the first reaches 1/2.
    assert not model.generate(prompt, 1, top_k=2, top_p=0.5)[:, 1].any()


@pytest.mark.parametrize("value", (np.nan, np.inf))
@pytest.mark.parametrize("temperature", (0.0, 1.0))
def test_parameters_that_are_not_finite(rng, value, temperature):
    model = make_model("odd")
    model["transformer.ln_f.bias"][2] = value
    with pytest.raises(RuntimeError, match="logits: got NaN or no finite maximum for row 0, posi"):
        model.generate(rng.integers(0, 37, (2, 4)), 3, temperature=temperature)


def test_a_token_that_can_never_come():
    """A logit of -inf is no fault as long as another is finite."""
    model = make_model("odd")
    buffer = np.empty(37, np.float32)
    # A row of the head against all signs of the last hidden state: its products overflow downwards.
    hidden = make_model("odd")
    hidden["transformer.wte.weight"][3:18] = np.eye(15, dtype=np.float32)
    next(hidden.stream([1, 2], 1, logits=buffer))
    model["transformer.wte.weight"][30] = -3e38 * np.sign(buffer[3:18])
    next(model.stream([1, 2], 1, logits=buffer))
    assert buffer[30] == -np.inf and np.isfinite(np.delete(buffer, 30)).all()
    for options in ({}, {"top_p": 0.99}, {"top_k": 36}, {"temperature": 5.0}):
        ids = model.generate(np.tile([1, 2], (500, 1)), 1, **options)
        assert 30 not in ids[:, 2] and len(set(ids[:, 2].tolist())) > 10


BAD_LOGITS = {
    "a float64 array": np.empty(37),
    "another shape": np.empty(36, np.float32),
    "a column": np.empty((37, 1), np.float32),
    "read-only": np.broadcast_to(np.float32(0), (37,)),
    "no array": "logits",
}


@pytest.mark.parametrize("kind", BAD_LOGITS)
def test_logits_that_cannot_be_written(kind):
    model = make_model("odd")
    with pytest.raises((ValueError, TypeError), match="logits"):
        model.stream([1, 2], 3, logits=BAD_LOGITS[kind])


@pytest.mark.parametrize("top_p", (-0.1, 1.5, float("nan"), "most"))
def test_top_p_out_of_range(top_p):
    model = make_model("odd")
    for call in (model.generate, model.stream):  # a stream complains before its first token
        with pytest.raises((ValueError, TypeError), match=r"^top_p: got .*, expected a number"):
            call([1, 2], 3, top_p=top_p)


def test_tokens_out_of_range():
    model = make_model("odd")
    for call in (model.generate, model.stream):
        with pytest.raises(
            IndexError, match=r"^tokens: row 1, position 2 holds 37, expected an id"
        ):
            call([[0, 1, 2], [3, 4, 37]], 3)


def cut_by_hand(ids, length, stop):
    """What a batch [B, T + n] without a stop token becomes with it."""
    rows = [row[: length + 1 + row[length:].tolist().index(stop)] if stop in row[length:] else row
            for row in ids]  # fmt: skip
    longest = max(map(len, rows))
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=stop) for row in rows])


@pytest.mark.parametrize("options", [{}, {"top_k": 9, "temperature": 1.5}, {"top_p": 0.9}], ids=str)
def test_a_stop_token_cuts_the_same_tokens(rng, options):
    """One row to five, within the block of 19 and beyond."""
    model, n = make_model("odd"), 25
    prompt = rng.integers(0, 37, (5, 4))
    whole = model.generate(prompt, n, seed=5, **options)
    lengths = set()
    for stop in np.unique(whole[:, 4:])[::3].tolist():
        for rows in (1, 2, 5):
            given = {"seed": 5, "stop_token": stop, **options}
            ended = model.generate(prompt[:rows], n, **given)
            assert ended.dtype == np.int64
            assert np.array_equal(ended, cut_by_hand(whole[:rows], 4, stop)), (stop, rows)
            lengths.add(ended.shape[1])
            stream = list(model.stream(prompt[:rows], n, **given))
            assert np.array_equal(np.stack(stream, axis=1), ended[:, 4:])
        single = model.generate(prompt[0], n, **given)
        assert np.array_equal(single, cut_by_hand(whole[:1], 4, stop)[0])
        stream = list(model.stream(prompt[0], n, **given))
        assert stream == single[4:].tolist() and all(type(token) is int for token in stream)
    assert 4 + n in lengths and len(lengths) > 5


def test_all_rows_that_have_ended_end_the_call(rng):
    """So that a text of a few tokens does not cost the many that were allowed."""
    model = make_model("odd")
    prompt = rng.integers(0, 37, (3, 4))
    first = model.generate(prompt, 1, seed=2)[:, 4]
    for row, stop in enumerate(first.tolist()):
        assert model.generate(prompt[row], 10**6, seed=2 + row, stop_token=stop).shape == (5,)
    # 3000 tokens have every one of 37 somewhere.
    assert model.generate(prompt, 3000, seed=2, stop_token=5).shape[1] < 3004


def test_a_stop_token_in_the_prompt_ends_nothing():
    model = make_model("odd")
    for stop in range(37):
        start = np.array([3, stop, stop])
        whole = model.generate(start, 6, temperature=0)
        if stop not in whole[3:]:
            break
    assert stop not in whole[3:]
    assert np.array_equal(model.generate(start, 6, temperature=0, stop_token=stop), whole)
    assert np.array_equal(model.generate(start, 0, stop_token=stop), start)
    assert list(model.stream(start, 0, stop_token=stop)) == []


@pytest.mark.parametrize("value", (-1, 37, 2**70))
def test_stop_token_out_of_range(value):
    model = make_model("odd")
    for call in (model.generate, model.stream):
        with pytest.raises(
            ValueError,
            match=rf"^stop_token: got {value}, expected a token of the vocabulary, 0 to 36$",
        ):
            call([1, 2], 3, stop_token=value)


def test_prompts_of_any_integer_type():
    model = make_model("odd")
    wanted = model.generate(np.array([1, 2, 3]), 5)
    for prompt in ([1, 2, 3], np.array([1, 2, 3], np.uint8), np.array([1, 2, 3], ">i4")):
        assert np.array_equal(model.generate(prompt, 5), wanted)
