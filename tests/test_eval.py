"""How well a model predicts a text: every token once, against a float64 softmax."""

import json
import math

import numpy as np
import pytest
from test_cli import TINY, assert_one_line_error, flatstep

import flatstep as fs
from flatstep.data.tokens import Tokens
from flatstep.errors import InputError
from flatstep.training.evaluation import TextBatches, evaluate, window_batches
from flatstep.training.model_folder import load_model


@pytest.fixture(scope="module")
def model():
    model = fs.GPT(fs.GPTConfig(31, 8, 2, 2, 16), seed=3)
    noise = np.random.default_rng(0).standard_normal(model.num_params) * 0.3
    model.params[...] += noise.astype(np.float32)
    return model


def token_losses(model, tokens, stride):
    """-log p of tokens[1:], float64, each from the first window that reaches it."""
    losses, length, start = [], model.config.block_size, 0
    while len(losses) < len(tokens) - 1:
        window = tokens[start : start + length + 1]
        logits = model.logits(window[None, :-1].astype(np.int32))[0].astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        own = -log_p[np.arange(len(window) - 1), window[1:]]
        losses += own[len(losses) - start :].tolist()
        start += stride
    return np.array(losses)


@pytest.mark.parametrize("stride", (1, 3, 7, 8))
@pytest.mark.parametrize("count", (2, 3, 8, 9, 10, 16, 17, 18, 40, 101))
def test_every_token_once_as_a_float64_softmax_has_it(model, count, stride):
    tokens = np.random.default_rng(count).integers(0, 31, count)
    lengths = np.arange(31) % 4
    text = Tokens([tokens[: count // 3], tokens[count // 3 :]])
    result = evaluate(model, TextBatches(text, length=8, stride=stride, batch_size=3), lengths)
    losses = token_losses(model, tokens, stride)
    assert result.tokens == count - 1 == len(losses)
    assert result.loss == pytest.approx(losses.mean(), rel=1e-6)
    assert result.perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-5)
    size = lengths[tokens[1:]].sum()
    assert result.bytes == size
    if size:  # else what is predicted is no text
        assert result.bits_per_byte == pytest.approx(losses.sum() / np.log(2) / size, rel=1e-6)
    else:
        assert result.bits_per_byte == math.inf


def test_the_batch_size_does_not_change_the_result(model):
    tokens = Tokens([np.random.default_rng(1).integers(0, 31, 300)])
    results = [
        evaluate(model, TextBatches(tokens, length=8, stride=5, batch_size=size)).loss
        for size in (1, 4, 100)
    ]
    assert results == pytest.approx([results[0]] * 3, rel=1e-9)


@pytest.mark.parametrize(("length", "stride"), [(8, 8), (8, 1), (8, 5), (1, 1), (1000, 1000)])
def test_windows_lie_within_the_text_and_predict_each_place_once(length, stride):
    for count in range(2, 60):
        predicted = []
        for starts, inputs, new in window_batches(count, length, stride, 4):
            assert 1 <= len(starts) <= 4 and 1 <= new <= inputs <= length
            for start in starts:
                assert start + inputs < count
                predicted += range(start + inputs - new + 1, start + inputs + 1)
        assert predicted == list(range(1, count))


def test_strides_and_texts_that_cannot_be():
    tokens = Tokens([np.zeros(20, np.int64)])
    for stride in (0, -1, 9):
        with pytest.raises(InputError, match=rf"--stride must be from 1 to 8.*, got {stride}"):
            TextBatches(tokens, length=8, stride=stride, batch_size=1)
    with pytest.raises(InputError, match="has 1 tokens: 2 are needed"):
        TextBatches(tokens.part(0, 1), length=8, stride=8, batch_size=1)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run over 40 lines, of which the tail validates, and the text of that tail."""
    folder = tmp_path_factory.mktemp("runs")
    text = "".join(f"line {k:3d} of a sämple.\n" for k in range(60)).encode()
    (folder / "text.txt").write_bytes(text)
    options = ["--steps", 6, "--eval-every", 3, "--val-split", "tail"]
    done = flatstep("train", folder / "text.txt", *TINY, *options, "--out", folder / "run")
    assert done.returncode == 0, done.stderr
    return folder / "run", text[-round(len(text) * 0.1) :]


def evaluated(*arguments):
    done = flatstep("eval", *arguments, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


def figures(result):
    return {name: result[name] for name in ("loss", "perplexity", "bits_per_byte", "tokens")}


def test_the_validation_text_of_a_run_is_all_of_it(tmp_path, run):
    run, tail = run
    result = evaluated(run, "--checkpoint", "last")
    model = load_model(run, "last")[0]
    losses = token_losses(model, np.frombuffer(tail, np.uint8), 16)
    assert result["tokens"] == result["bytes"] == len(tail) - 1 == len(losses)
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-6)
    assert result["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-5)
    assert result["bits_per_byte"] == pytest.approx(losses.mean() / math.log(2), rel=1e-6)
    assert result["step"] == 6 and result["model"] == str(run)
    # The same as a file of its own, and from a checkpoint.
    (tmp_path / "tail.txt").write_bytes(tail)
    again = evaluated(run / "checkpoints/step-6", tmp_path / "tail.txt", "--batch-size", 2)
    assert figures(again) == pytest.approx(figures(result), rel=1e-9)
    assert evaluated(run / "checkpoints/step-6")["loss"] == result["loss"]


def test_a_stride_and_several_files(tmp_path, run):
    run, tail = run
    (tmp_path / "a.txt").write_bytes(tail)
    (tmp_path / "b.txt").write_bytes(b"another text")
    result = evaluated(
        run, tmp_path / "a.txt", tmp_path / "b.txt", "--stride", 5, "--checkpoint", "last"
    )
    whole = np.frombuffer(tail + b"another text", np.uint8)
    losses = token_losses(load_model(run, "last")[0], whole, 5)
    assert result["tokens"] == len(losses)
    assert result["loss"] == pytest.approx(losses.mean(), rel=1e-6)


def test_the_lines_for_a_reader(run):
    run, tail = run
    done = flatstep("eval", run, "--checkpoint", "last", "--threads", 1)
    lines = [line.split(None, 1) for line in done.stdout.splitlines()]
    assert [line[0] for line in lines] == ["model", "text", "tokens", "loss", "perplexity", "bits"]
    assert lines[0][1] == f"{run}, step 6"
    assert lines[1][1] == "the run's validation text (the end of the text)"
    assert lines[2][1].startswith(f"{len(tail) - 1:,} of {len(tail) - 1:,} bytes, ")
    assert lines[3][1] == f"{evaluated(run, '--checkpoint', 'last')['loss']:.4f} nats per token"


def test_token_numbers_have_no_bytes(tmp_path):
    model = fs.GPT(fs.GPTConfig(300, 8, 1, 2, 8), seed=1)
    model.save_pretrained(tmp_path / "bare")
    tokens = (np.arange(50) * 7 % 300).astype("<u2")
    (tmp_path / "some.bin").write_bytes(tokens.tobytes())
    result = evaluated(tmp_path / "bare", tmp_path / "some.bin")
    assert result["loss"] == pytest.approx(token_losses(model, tokens, 8).mean(), rel=1e-6)
    assert result["bits_per_byte"] is None and result["bytes"] is None


def test_calls_that_cannot_be(tmp_path, run):
    run, _ = run
    model = fs.GPT(fs.GPTConfig(300, 8, 1, 2, 8), seed=1)
    model.save_pretrained(tmp_path / "bare")
    (tmp_path / "text.txt").write_text("some text")
    (tmp_path / "one.txt").write_text("x")
    (tmp_path / "empty.txt").write_text("")
    text = tmp_path / "text.txt"
    for call, parts in (
        ((tmp_path / "none",), ["none: no such folder"]),
        ((tmp_path / "bare",), ["bare: is no run", "name FILES"]),
        ((tmp_path / "bare", text), ["bare: has neither tokenizer.json nor vocab.json"]),
        ((run, tmp_path / "missing.txt"), ["missing.txt: cannot be read"]),
        ((run, tmp_path / "empty.txt"), ["empty.txt: the file is empty"]),
        ((run, tmp_path / "one.txt"), ["the text has 1 tokens"]),
        ((run, "--stride", 17), ["--stride must be from 1 to 16", "got 17"]),
        ((run, "--batch-size", 0), ["--batch-size must be from 1"]),
        ((run, "--checkpoint", "step-5"), ["step-5"]),
    ):
        assert_one_line_error(flatstep("eval", *call), 2, *parts)


def test_a_text_that_has_changed_is_not_measured_unnoticed(tmp_path, run):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(run[0], folder)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("text.txt", "gone.txt"))
    assert_one_line_error(flatstep("eval", folder), 2, "gone.txt: cannot be read")
    text = run[0].parent / "text.txt"
    (tmp_path / "text.txt").write_bytes(text.read_bytes() + b"more")
    changed = config.read_text().replace(str(text.parent / "gone.txt"), str(tmp_path / "text.txt"))
    config.write_text(changed)
    assert_one_line_error(flatstep("eval", folder), 2, "not what the run began with")
