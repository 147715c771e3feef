"""Models between here and the transformers library: trained here and read there, and back."""

import json
import math

import numpy as np
import pytest
import torch
from export_case import ODD, PLAIN, make_vocabulary
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from flatstep.data.tokens import Tokens
from flatstep.export.folder import export_model
from flatstep.training import loop as train
from flatstep.training.evaluation import TextBatches, evaluate
from flatstep.training.model_folder import load_model

TINY = {
    "steps": 20, "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "batch_size": 4,
    "dropout": 0.1, "eval_every": 10, "warmup": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(PLAIN + ODD + PLAIN + ODD)
    return str(path)


def their_logits(folder, tokens):
    theirs, report = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    with torch.no_grad():
        return theirs.eval()(torch.from_numpy(tokens)).logits.numpy(), theirs


@pytest.mark.parametrize("kind", ("byte", "char", "bpe"))
def test_trained_here_and_read_there(tmp_path, text, kind):
    given = TINY | {"vocab": kind} | ({"vocab_size": 400} if kind == "bpe" else {})
    train.start(given, [text], out=tmp_path / "run", quiet=True)
    model, vocabulary, _ = load_model(tmp_path / "run")
    export_model(model, vocabulary, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    for words in (ODD, PLAIN, "", " ", "\n", "a"):
        ids = tokenizer(words)["input_ids"]
        assert ids == vocabulary.encode(words.encode()).tolist()
        assert tokenizer.decode(ids) == words
    assert tokenizer.model_max_length == 32 and tokenizer.pad_token is None
    tokens = vocabulary.encode((PLAIN + ODD).encode())[-64:].reshape(2, 32).astype(np.int64)
    wanted, theirs = their_logits(tmp_path / "out", tokens)
    assert np.abs(model.logits(tokens) - wanted).max() <= 1e-5 * np.abs(wanted).max()
    end = vocabulary.end_of_text
    assert (end is None) == (kind != "bpe")
    for settings in (theirs.config, theirs.generation_config, tokenizer):
        assert settings.eos_token_id == settings.bos_token_id == end
        assert settings.pad_token_id is None
    if end is not None:
        assert tokenizer(f"a{tokenizer.eos_token}b")["input_ids"][1] == end


def test_a_character_that_a_model_lacks_is_an_error_there_too(tmp_path, text):
    train.start(TINY | {"vocab": "char", "steps": 2}, [text], out=tmp_path / "run", quiet=True)
    model, vocabulary, _ = load_model(tmp_path / "run")
    export_model(model, vocabulary, tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    with pytest.raises(Exception, match=r"Missing \[UNK\] token"):
        tokenizer("line Ω")


@pytest.fixture(scope="module", params=("tokenizer.json", "vocab.json"))
def theirs(request, tmp_path_factory):
    """A GPT-2 of the library with random weights, a padded embedding and a trained tokenizer."""
    folder = tmp_path_factory.mktemp("theirs") / "gpt2"
    vocabulary = make_vocabulary("bpe")
    torch.manual_seed(1)
    config = GPT2Config(
        vocab_size=vocabulary.size + (5 if request.param == "vocab.json" else 0),
        n_positions=40, n_layer=2, n_head=2, n_embd=32,
        bos_token_id=vocabulary.end_of_text, eos_token_id=vocabulary.end_of_text,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).eval()
    model.save_pretrained(folder)
    if request.param == "tokenizer.json":
        end = "<|endoftext|>"
        PreTrainedTokenizerFast(
            tokenizer_object=vocabulary.tokenizer, bos_token=end, eos_token=end
        ).save_pretrained(folder)
    else:
        vocabulary.tokenizer.model.save(str(folder))
        assert (folder / "merges.txt").exists() and not (folder / "tokenizer.json").exists()
    return folder


def test_their_model_is_trained_on_here_and_goes_back(tmp_path, text, theirs):
    given = {
        "init_from": str(theirs), "steps": 30, "batch_size": 4, "lr": 3e-3, "eval_every": 10,
        "block_size": 32,
    }  # fmt: skip
    train.start(given, [text], out=tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["val_loss"] < lines[9]["val_loss"] < lines[0]["loss"] - 0.3
    model, vocabulary, _ = load_model(tmp_path / "run", "last")
    assert model.config.vocab_size == vocabulary.size and model.config.block_size == 32
    export_model(model, vocabulary, tmp_path / "back")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "back")
    ids = tokenizer(ODD)["input_ids"]
    assert ids == vocabulary.encode(ODD.encode()).tolist() == make_vocabulary("bpe").encode(
        ODD.encode()
    ).tolist()  # fmt: skip
    tokens = np.array([ids[:32]])
    wanted, _ = their_logits(tmp_path / "back", tokens)
    assert np.abs(model.logits(tokens) - wanted).max() <= 1e-5 * np.abs(wanted).max()


@pytest.mark.parametrize("stride", (40, 16))
def test_perplexity_of_their_folder_is_theirs(theirs, stride):
    """The loop of the library's guide to perplexity, but that a window of 40 reads 40 tokens."""
    model, vocabulary, _ = load_model(theirs)
    tokens = vocabulary.encode((PLAIN + ODD).encode())
    their_model = GPT2LMHeadModel.from_pretrained(theirs).eval()
    losses, row = [], torch.from_numpy(tokens.astype(np.int64))
    for begin in range(0, len(tokens), stride):
        window = row[begin : begin + 41]
        with torch.no_grad():
            logits = their_model(window[None, :-1]).logits[0].double()
        own = torch.nn.functional.cross_entropy(logits, window[1:], reduction="none")
        losses += own[len(losses) - begin :].tolist()
        if begin + 41 >= len(tokens):
            break
    assert len(losses) == len(tokens) - 1
    batches = TextBatches(Tokens([tokens]), length=40, stride=stride, batch_size=3)
    result = evaluate(model, batches, vocabulary.byte_lengths())
    assert result.loss == pytest.approx(np.mean(losses), rel=1e-6)
    assert result.perplexity == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    text = vocabulary.decode(tokens[1:]).encode()  # the first token is whole characters
    assert result.bytes == len(text)
    assert result.bits_per_byte == pytest.approx(sum(losses) / math.log(2) / len(text), rel=1e-6)
