"""The Transformer: loss and every gradient against float64, masks included."""

import dataclasses

import numpy as np
import oracle
import oracle_gpt
import oracle_loss
import pytest

import flatstep as fs

# batch, length, width, heads, vocabulary, layers, longest sequence.
SHAPES = {
    # odd in every extent; head size 8; shorter than the block.
    "odd": (3, 13, 24, 3, 37, 1, 17),
    "odd-deep": (3, 13, 24, 3, 37, 3, 13),
    # an even batch of a small model, which is taken in halves; odd in every other extent.
    "halves": (6, 13, 24, 3, 37, 2, 17),
    # whole vectors and tiles.
    "even": (2, 64, 64, 4, 256, 3, 64),
    # head size 5, one head, one token: nothing to attend to but oneself.
    "single": (1, 1, 5, 1, 3, 2, 4),
    # longer than one tile of a blocked attention, with a ragged end.
    "long": (1, 150, 32, 2, 65, 1, 160),
}


def make_model(shape, dropout=0.0, seed=7):
    _, _, width, heads, vocabulary, layers, block = SHAPES[shape]
    model = fs.GPT(
        fs.GPTConfig(
            vocab_size=vocabulary,
            block_size=block,
            n_layer=layers,
            n_head=heads,
            n_embd=width,
            dropout=dropout,
        ),
        seed=seed,
    )
    # Fresh biases are 0, gains 1 and weights small: noise makes every gradient matter.
    rng = np.random.default_rng(1)
    model.params[...] += (rng.standard_normal(model.num_params) * 0.1).astype(np.float32)
    return model


def make_batch(rng, shape, ignored=0.2):
    batch, length, _, _, vocabulary, _, _ = SHAPES[shape]
    tokens = rng.integers(0, vocabulary, (batch, length))
    targets = rng.integers(0, vocabulary, (batch, length))
    targets[rng.random(targets.shape) < ignored] = -100
    targets[0, 0] = vocabulary - 1
    return tokens, targets


def make_oracle(model, shape, dropout=0.0, seed=7, step=0):
    def keep(site, extent):
        mask = fs.dropout_mask(extent, dropout, seed=seed, step=step, site=site)
        return mask * np.float64(oracle.dropout_scale(dropout))

    params = {name: model[name] for name in model.layout.names}
    _, _, _, heads, _, layers, _ = SHAPES[shape]
    return oracle_gpt.GPT(params, layers, heads, keep if dropout else None)


def assert_gradients(model, wanted, tolerance=1e-4):
    assert set(model.layout.names) == set(wanted)
    for name, array in model.layout.views(model.grads).items():
        error = np.abs(array - wanted[name])
        assert np.all(error <= tolerance * np.abs(wanted[name]).max()), (name, error.max())


def test_oracle_gradient_by_central_differences(rng):
    """The reference itself: directional derivatives of every tensor, with dropout."""
    model = make_model("odd", dropout=0.2)
    tokens, targets = make_batch(rng, "odd")
    reference = make_oracle(model, "odd", dropout=0.2)
    options = {"label_smoothing": 0.1, "loss_divisor": 11.0}
    grads = dict(reference.forward_backward(tokens, targets, **options)[1])
    for name, array in dict(reference.params).items():
        direction = rng.standard_normal(array.shape)
        losses = []
        for sign in (1, -1):
            reference.params[name] = array + sign * 1e-6 * direction
            losses.append(reference.forward_backward(tokens, targets, **options)[0])
        reference.params[name] = array
        slope = (losses[0] - losses[1]) / 2e-6
        scale = np.abs(grads[name] * direction).sum()
        assert slope == pytest.approx((grads[name] * direction).sum(), abs=1e-7 * scale), name


@pytest.mark.parametrize("dropout", (0.0, 0.25))
@pytest.mark.parametrize("shape", SHAPES)
def test_loss_and_every_gradient(rng, shape, dropout):
    model = make_model(shape, dropout)
    tokens, targets = make_batch(rng, shape)
    loss = model.forward_backward(tokens, targets, step=5)
    reference = make_oracle(model, shape, dropout, step=5)
    wanted, grads = reference.forward_backward(tokens, targets)
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert_gradients(model, grads)


@pytest.mark.parametrize("dtype", (np.int32, np.int64))
@pytest.mark.parametrize(
    "options",
    [
        {"label_smoothing": 0.1},
        {"loss_divisor": 100.0},
        {"label_smoothing": 0.3, "loss_divisor": 7.0},
    ],
    ids=str,
)
def test_loss_options(rng, options, dtype):
    model = make_model("odd-deep", dropout=0.1)
    tokens, targets = make_batch(rng, "odd-deep", ignored=0.5)
    loss = model.forward_backward(tokens.astype(dtype), targets.astype(dtype), step=2, **options)
    reference = make_oracle(model, "odd-deep", 0.1, step=2)
    wanted, grads = reference.forward_backward(tokens, targets, **options)
    assert loss == pytest.approx(wanted, rel=1e-6)
    assert_gradients(model, grads)


def test_masks_depend_on_seed_and_step(rng):
    tokens, targets = make_batch(rng, "odd")
    losses = {}
    for seed, step in ((7, 0), (7, 1), (8, 0), (7, 2**32)):
        model = make_model("odd", dropout=0.25, seed=seed)
        model.params[...] = make_model("odd").params
        losses[seed, step] = model.forward_backward(tokens, targets, step=step)
        wanted, _ = make_oracle(model, "odd", 0.25, seed, step).forward_backward(tokens, targets)
        assert losses[seed, step] == pytest.approx(wanted, rel=1e-6)
    assert len(set(losses.values())) == 4


def test_gradients_are_overwritten_or_added(rng):
    model = make_model("odd")
    tokens, targets = make_batch(rng, "odd")
    model.grads[...] = np.nan
    first_loss = model.forward_backward(tokens, targets)
    first = model.grads.copy()
    assert np.isfinite(first).all()
    assert model.forward_backward(tokens, targets, accumulate=True) == first_loss
    # g + g, whether added at the end or term by term.
    largest = max(np.abs(view).max() for view in model.layout.views(first).values())
    assert np.all(np.abs(model.grads - 2 * first) <= 1e-6 * largest)


@pytest.mark.parametrize("pieces", (2, 4))
def test_micro_batches_equal_the_big_batch(rng, pieces):
    """With the big batch's count as divisor, losses and gradients add up to rounding."""
    model = make_model("even")
    tokens, targets = (np.concatenate([part] * 2) for part in make_batch(rng, "even"))
    targets[2:] = np.where(targets[2:] == -100, -100, (targets[2:] + 1) % 256)
    whole = model.forward_backward(tokens, targets)
    wanted = {name: view.copy() for name, view in model.layout.views(model.grads).items()}
    n_valid, total = float((targets != -100).sum()), 0.0
    for index, rows in enumerate(np.split(np.arange(4), pieces)):
        total += model.forward_backward(
            tokens[rows], targets[rows], accumulate=index > 0, loss_divisor=n_valid
        )
    assert total == pytest.approx(whole, rel=1e-6)
    assert_gradients(model, wanted, tolerance=1e-5)


@pytest.mark.parametrize("dropout", (0.0, 0.25))
def test_ragged_micro_batches(rng, dropout):
    """Micro-batches of other sizes, with few, many and no valid targets: summed with the count of
    the whole, against float64. Each divided by its own count, it would be another gradient."""
    model = make_model("odd-deep", dropout)
    tokens, targets = (np.concatenate([part] * 3) for part in make_batch(rng, "odd-deep"))
    tokens, targets = rng.permuted(tokens, axis=1), rng.permuted(targets, axis=1)
    targets[1:3, 2:] = -100
    targets[3] = -100
    pieces = [slice(0, 1), slice(1, 3), slice(3, 4), slice(4, 9)]
    valid = [int((targets[rows] != -100).sum()) for rows in pieces]
    assert valid[2] == 0 and len(set(valid)) == 4
    wanted, grads = 0.0, {}
    for step, rows in enumerate(pieces):
        reference = make_oracle(model, "odd-deep", dropout, step=step)
        loss, own = reference.forward_backward(tokens[rows], targets[rows], loss_divisor=sum(valid))
        wanted += loss
        grads = {name: grads.get(name, 0) + gradient for name, gradient in own.items()}

    def accumulated(divisors):
        return sum(
            model.forward_backward(
                tokens[rows], targets[rows], step=step, accumulate=step > 0, loss_divisor=divisor
            )
            for step, (rows, divisor) in enumerate(zip(pieces, divisors, strict=True))
        )

    assert accumulated([sum(valid)] * 4) == pytest.approx(wanted, rel=1e-6)
    assert_gradients(model, grads, tolerance=1e-5 if dropout == 0 else 1e-4)
    whole = {name: view.copy() for name, view in model.layout.views(model.grads).items()}
    if dropout == 0:
        assert model.forward_backward(tokens, targets) == pytest.approx(wanted, rel=1e-6)
        assert_gradients(model, whole, tolerance=1e-5)
    assert accumulated([None] * 4) != pytest.approx(wanted, rel=1e-2)
    with pytest.raises(AssertionError):
        assert_gradients(model, grads, tolerance=1e-1)


@pytest.mark.parametrize("accumulate", (False, True), ids=("overwrite", "accumulate"))
def test_a_small_batch_is_the_sum_of_its_halves(rng, accumulate):
    """Bit for bit: halves of three sequences are odd, and not taken in halves themselves."""
    model = make_model("halves")
    tokens, targets = make_batch(rng, "halves")
    targets[:3] = np.where(rng.random(targets[:3].shape) < 0.7, -100, targets[:3])  # fewer count
    before = rng.standard_normal(model.grads.size).astype(np.float32) if accumulate else None
    options = {"loss_divisor": 29.0, "label_smoothing": 0.1}
    loss, wanted = 0.0, None
    for half in (slice(0, 3), slice(3, 6)):
        if before is not None and wanted is None:
            model.grads[...] = before
        loss += model.forward_backward(
            tokens[half], targets[half], accumulate=accumulate and wanted is None, **options
        )
        wanted = model.grads.copy() if wanted is None else wanted + model.grads
    if before is not None:
        model.grads[...] = before
    assert model.forward_backward(tokens, targets, accumulate=accumulate, **options) == loss
    assert model.grads.tobytes() == wanted.tobytes()
    assert model.grad_partials.norm == fs.grad_norm(list(model.layout.views(model.grads).values()))


def test_all_targets_ignored(rng):
    model = make_model("odd")
    tokens, targets = make_batch(rng, "odd", ignored=0.0)
    assert model.forward_backward(tokens, np.full_like(targets, -100)) == 0.0
    assert not model.grads.any()


def test_unused_positions_and_tokens_have_no_gradient(rng):
    model = make_model("odd")
    tokens, targets = make_batch(rng, "odd")
    model.grads[...] = 3
    model.forward_backward(tokens, targets)
    assert not model.layout.views(model.grads)["transformer.wpe.weight"][13:].any()


@pytest.mark.parametrize("shape", SHAPES)
def test_evaluation_ignores_dropout(rng, shape):
    model = make_model(shape, dropout=0.5)
    tokens, targets = make_batch(rng, shape)
    reference = make_oracle(model, shape)
    wanted = reference.forward(tokens)
    logits = model.logits(tokens)
    assert logits.dtype == np.float32 and logits.shape == wanted.shape
    assert np.all(np.abs(logits - wanted) <= 1e-5 * np.abs(wanted).max())
    loss = oracle_loss.cross_entropy(wanted, targets).loss
    assert model.loss(tokens, targets) == pytest.approx(loss, rel=1e-6)


def test_causal(rng):
    """A later token changes no earlier logit, not even its last bit."""
    model = make_model("odd-deep")
    tokens, _ = make_batch(rng, "odd-deep")
    before = model.logits(tokens)
    tokens[:, 7] = (tokens[:, 7] + 1) % 37
    after = model.logits(tokens)
    assert before[:, :7].tobytes() == after[:, :7].tobytes()
    assert not np.array_equal(before[:, 7:], after[:, 7:])


def test_same_seed_same_parameters():
    config = fs.GPTConfig(vocab_size=50, block_size=8, n_layer=2, n_head=2, n_embd=16)
    first, again, other = fs.GPT(config, seed=3), fs.GPT(config, seed=3), fs.GPT(config, seed=4)
    assert first.params.tobytes() == again.params.tobytes() != other.params.tobytes()
    assert dataclasses.asdict(first.config) == dataclasses.asdict(config)
    weights = first["transformer.h.0.mlp.c_fc.weight"]
    assert weights.std() == pytest.approx(0.02, rel=0.1)  # 1024 draws: 4.5 deviations
    assert first["transformer.h.0.mlp.c_proj.weight"].std() == pytest.approx(0.01, rel=0.1)
    assert not first["transformer.h.0.attn.c_attn.bias"].any()
    assert np.all(first["transformer.ln_f.weight"] == 1)


def test_generate_takes_the_most_likely_token(rng):
    model = make_model("odd-deep")
    prompt = rng.integers(0, 37, (2, 4))
    sequence = model.generate(prompt, 6, top_k=1)
    assert sequence.shape == (2, 10) and np.array_equal(sequence[:, :4], prompt)
    for position in range(4, 10):
        logits = model.logits(sequence[:, :position])[:, -1]
        assert np.array_equal(logits.argmax(axis=-1), sequence[:, position])
    alone = model.generate(prompt[0], 6, temperature=0.0)
    assert alone.shape == (10,) and np.array_equal(alone, sequence[0])


def test_generate_samples(rng):
    model = make_model("odd")
    prompt = rng.integers(0, 37, 4)
    first = model.generate(prompt, 30, seed=1)  # goes past the block of 17
    assert first.shape == (34,) and first.min() >= 0 and first.max() < 37
    assert np.array_equal(first, model.generate(prompt, 30, seed=1))
    assert not np.array_equal(first, model.generate(prompt, 30, seed=2))
    assert model.generate(prompt, 0).shape == (4,)


def test_profile(rng):
    """Every part has its time, none is counted twice, and the bits are the same."""
    model = make_model("even", dropout=0.1)
    tokens, targets = make_batch(rng, "even")
    loss = model.forward_backward(tokens, targets, step=3)
    grads = model.grads.copy()
    profile = fs._core.GptProfile()
    options = {"label_smoothing": 0.0, "seed": 7, "step": 3, "accumulate": False}
    options |= {"loss_divisor": 0.0, "partials": fs._core.GradPartials(), "profile": profile}
    again = model._core.forward_backward(model.params, model.grads, tokens, targets, **options)
    assert again == loss and model.grads.tobytes() == grads.tobytes()
    parts = profile.seconds
    whole = parts.pop("pass")
    assert min(parts.values()) > 0 and sum(parts.values()) <= whole
    model._core.forward_backward(model.params, model.grads, tokens, targets, **options)
    assert all(profile.seconds[name] > seconds for name, seconds in parts.items())
