"""Tokens beside those of transformers' GPT-2 tokenizer, from the same files."""

import json

import numpy as np
import pytest
from transformers import GPT2TokenizerFast

from flatstep.data.bpe import load_hugging_face_tokenizer, train_bpe

TEXT = "The fox doesn't jump:\n\n    naïve ✓ 😀, 1234 times...  \tTHE END<|endoftext|>x \n"


@pytest.fixture
def folder(tmp_path):
    """vocab.json and merges.txt as GPT-2's folder has them, the end of text last."""
    model = json.loads(train_bpe([TEXT.encode() * 9], 320).files()["tokenizer.json"])["model"]
    names = sorted(model["vocab"], key=model["vocab"].get)
    names = [name for name in names if name != "<|endoftext|>"] + ["<|endoftext|>"]
    numbers = {name: number for number, name in enumerate(names)}
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    (tmp_path / "vocab.json").write_text(json.dumps(numbers))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")
    return tmp_path


def test_tokens_and_text_are_those_of_transformers(folder):
    theirs = GPT2TokenizerFast(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))
    ours = load_hugging_face_tokenizer(folder)
    for text in (TEXT, TEXT * 3, " ", "a", "\n\n \n", "é" * 50):
        expected = theirs(text)["input_ids"]
        tokens = ours.encode(text.encode())
        assert tokens.tolist() == expected
        assert ours.decode(tokens) == theirs.decode(expected) == text
    assert len(theirs) == ours.size and theirs.eos_token_id == ours.end_of_text
    theirs.save_pretrained(folder / "saved")
    saved = load_hugging_face_tokenizer(folder / "saved")
    assert (folder / "saved/tokenizer.json").exists()
    assert np.array_equal(saved.encode(TEXT.encode()), ours.encode(TEXT.encode()))
