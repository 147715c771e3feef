"""Folders and nuclei against the transformers library, which reads and writes the same."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.generation.logits_process import TopKLogitsWarper, TopPLogitsWarper

import flatstep as fs

SMALL = {"vocab_size": 211, "n_positions": 50, "n_layer": 2, "n_head": 4, "n_embd": 64}
GPT2 = {"vocab_size": 50257, "n_positions": 1024, "n_layer": 12, "n_head": 12, "n_embd": 768}


def make_theirs(**shape):
    torch.manual_seed(1)
    theirs = GPT2LMHeadModel(GPT2Config(**shape)).eval()
    with torch.no_grad():  # fresh biases are 0, gains 1
        for parameter in theirs.parameters():
            parameter += 0.02 * torch.randn(parameter.shape)
    return theirs


def their_logits(theirs, tokens):
    with torch.no_grad():
        return theirs(torch.from_numpy(tokens)).logits.numpy()


def assert_same_logits(ours, theirs, length):
    tokens = np.random.default_rng(3).integers(0, ours.config.vocab_size, (2, length))
    wanted = their_logits(theirs, tokens)
    assert np.all(np.abs(ours.logits(tokens) - wanted) <= 1e-5 * np.abs(wanted).max())
    # Generation goes on with their most likely tokens, but where two lie together.
    ids = ours.generate(tokens[:, :5], 10, temperature=0)
    logits = their_logits(theirs, ids)[:, 4:-1]
    chosen = np.take_along_axis(logits, ids[:, 5:, None], axis=2)[..., 0]
    assert np.all(chosen >= logits.max(axis=2) - 1e-5 * np.abs(logits).max())


@pytest.mark.parametrize("shard", ("5GB", "100KB"))
def test_theirs_to_ours(tmp_path, shard):
    theirs = make_theirs(**SMALL)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    ours = fs.GPT.from_pretrained(tmp_path)
    assert ours.config == fs.GPTConfig(211, 50, 2, 4, 64, dropout=0.1)
    state = theirs.state_dict()
    for name in ours.layout.names:
        assert ours[name].tobytes() == state[name].numpy().tobytes(), name
    assert_same_logits(ours, theirs, 50)


@pytest.mark.parametrize("shard", ("5GB", "100KB"))
def test_ours_to_theirs(tmp_path, shard):
    ours = fs.GPT(fs.GPTConfig(211, 50, 2, 4, 64, dropout=0.2), seed=3)
    rng = np.random.default_rng(0)
    ours.params[...] += (rng.standard_normal(ours.num_params) * 0.05).astype(np.float32)
    ours.save_pretrained(tmp_path, max_shard_size=shard)
    theirs, report = GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    # lm_head.weight is the embedding, and counts as found.
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    assert theirs.dtype == torch.float32 and theirs.config.resid_pdrop == 0.2
    assert theirs.lm_head.weight is theirs.transformer.wte.weight
    assert_same_logits(ours, theirs.eval(), 50)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_their_sixteen_bits(tmp_path, dtype):
    theirs = make_theirs(**SMALL).to(dtype)
    theirs.save_pretrained(tmp_path)
    ours = fs.GPT.from_pretrained(tmp_path, dropout=0)
    for name, tensor in theirs.state_dict().items():
        if name != "lm_head.weight":
            assert ours[name].tobytes() == tensor.float().numpy().tobytes(), name
    assert_same_logits(ours, theirs.float(), 50)


@pytest.mark.slow
def test_gpt2_shape_in_both_directions(tmp_path):
    """124 million parameters: their folder, ours of it, and theirs of that."""
    theirs = make_theirs(**GPT2)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = fs.GPT.from_pretrained(tmp_path / "theirs")
    assert_same_logits(ours, theirs, 16)
    ours.save_pretrained(tmp_path / "ours", max_shard_size="200MB")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "ours").eval()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


@pytest.mark.parametrize(("top_k", "top_p"), [(None, 0.5), (None, 0.9), (7, None), (20, 0.8)])
def test_what_top_k_and_top_p_leave(tmp_path, top_k, top_p):
    """Their filters of our logits leave the tokens that 3000 draws show, but for rare ones."""
    ours = fs.GPT(fs.GPTConfig(211, 50, 1, 4, 64), seed=3)
    ours["transformer.wte.weight"][...] *= 20
    prompt = np.broadcast_to(np.array([5, 6]), (3000, 2))
    logits = np.empty((3000, 211), np.float32)
    drawn = next(ours.stream(prompt, 1, top_k=top_k, top_p=top_p, temperature=0.7, logits=logits))
    scores = torch.from_numpy(logits[:1]) / 0.7
    if top_k is not None:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p is not None:
        scores = TopPLogitsWarper(top_p)(None, scores)
    shares = scores.softmax(-1)[0].numpy()
    counts = np.bincount(drawn, minlength=211)
    assert not counts[shares == 0].any()
    assert (counts[shares > 0.01] > 0).all()
    assert np.all(np.abs(counts - 3000 * shares) <= 5 * np.sqrt(3000 * shares) + 5)
