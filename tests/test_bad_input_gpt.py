"""Wrong calls of the model: refused by name, with nothing written."""

import bad_input as bad
import numpy as np
import pytest

import flatstep as fs

NAN, INF = float("nan"), float("inf")


def make_model(device="cpu", **changes):
    config = {"vocab_size": 11, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 8}
    model = fs.GPT(fs.GPTConfig(**{**config, **changes}), seed=0, device=device)
    model.grads[...] = 7
    return model


CONFIGURATION = {
    "vocab_size": (0, -5, 2.5),
    "block_size": (0, -1),
    "n_layer": (-1, 1.5),
    "n_head": (0, 3),  # 8 is no multiple of 3
    "n_embd": (0, "wide"),
    "dropout": (1.0, -0.1, NAN),
    "device": ("abacus", 3),
}


@pytest.mark.parametrize(("argument", "value"), bad.pairs(CONFIGURATION))
def test_configuration(argument, value):
    bad.check_refusal(lambda: make_model(**{argument: value}), bad.fresh_arrays(), argument)


def put(index, value):
    return lambda array: bad.replaced(array, index, value)


TOKEN_RANGE = {"tokens": (put((0, 3), 11), put((1, 0), -1), put((1, 1), 2**40 + 1))}
TARGET_RANGE = {"targets": (put((1, 4), 11), put((0, 0), -1), put((0, 2), 2**40 + 1))}
TOKEN_KINDS = {"tokens": (*bad.OTHER_KINDS, bad.double, lambda tokens: tokens[0])}
TARGET_KINDS = {
    "targets": (*bad.OTHER_KINDS, bad.double, bad.one_short, lambda targets: targets[:, :4].copy())
}


def call_with(method, argument, spoil):
    """-> what the refused call raised."""
    arrays, model = bad.fresh_arrays(), make_model()
    given = {"tokens": arrays.tokens, "targets": arrays.next_tokens}
    given[argument] = arrays.spoiled = spoil(given[argument])
    if method in ("logits", "generate"):
        del given["targets"]
    further = (1,) if method == "generate" else ()
    return bad.check_refusal(
        lambda: getattr(model, method)(*given.values(), *further),
        arrays,
        argument,
        [lambda: model.grads, lambda: model.params],
    )


@pytest.mark.parametrize(("argument", "spoil"), bad.pairs(TOKEN_RANGE | TARGET_RANGE))
@pytest.mark.parametrize("method", ("forward_backward", "loss"))
def test_ids_out_of_range_in_training(method, argument, spoil):
    assert isinstance(call_with(method, argument, spoil), IndexError)


@pytest.mark.parametrize(("argument", "spoil"), bad.pairs(TOKEN_RANGE))
@pytest.mark.parametrize("method", ("logits", "generate"))
def test_ids_out_of_range_in_inference(method, argument, spoil):
    assert isinstance(call_with(method, argument, spoil), IndexError)


@pytest.mark.parametrize(("argument", "spoil"), bad.pairs(TOKEN_KINDS | TARGET_KINDS))
@pytest.mark.parametrize("method", ("forward_backward", "loss"))
def test_arrays_in_training(method, argument, spoil):
    call_with(method, argument, spoil)


@pytest.mark.parametrize("spoil", (*bad.OTHER_KINDS, bad.double))
@pytest.mark.parametrize("method", ("logits", "generate"))
def test_arrays_in_inference(method, spoil):
    if method == "generate" and spoil in (bad.byte_swapped, bad.misaligned):
        return  # copied into the sequence that is returned
    call_with(method, "tokens", spoil)


def test_sequence_longer_than_the_block():
    arrays, model = bad.fresh_arrays(), make_model()
    tokens = np.zeros((2, 9), np.int64)
    for call in (
        lambda: model.forward_backward(tokens, tokens),
        lambda: model.loss(tokens, tokens),
        lambda: model.logits(tokens),
    ):
        bad.check_refusal(call, arrays, "tokens", [lambda: model.grads])


TRAINING_OPTIONS = {
    "label_smoothing": (1.0, -0.5, NAN, "much"),
    "loss_divisor": (0.0, -1.0, NAN, INF, "all"),
    "step": (-1, 0.5, 2**48),
}


@pytest.mark.parametrize(("argument", "value"), bad.pairs(TRAINING_OPTIONS))
def test_training_options(argument, value):
    arrays, model = bad.fresh_arrays(), make_model(dropout=0.1)
    bad.check_refusal(
        lambda: model.forward_backward(arrays.tokens, arrays.next_tokens, **{argument: value}),
        arrays,
        argument,
        [lambda: model.grads, lambda: model.params],
    )


GENERATION_OPTIONS = {
    "tokens": (np.empty(0, np.int64), np.empty((2, 0), np.int64), np.array(3)),
    "n": (-1, 1.5, "all"),
    "temperature": (-1.0, NAN, "hot"),
    "top_k": (-1, 1.5),
    "seed": ("now", 0.5),
    "stop_token": (-1, 10**6, 1.5, "end"),
}


@pytest.mark.parametrize(("argument", "value"), bad.pairs(GENERATION_OPTIONS), ids=str)
def test_generation_options(argument, value):
    model = make_model()
    given = {"tokens": np.array([1, 2]), "n": 3, argument: value}
    tokens, n = given.pop("tokens"), given.pop("n")
    bad.check_refusal(lambda: model.generate(tokens, n, **given), bad.fresh_arrays(), argument)
