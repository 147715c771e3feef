"""Models with every kind of vocabulary, and one small text, for the tests of exports."""

import numpy as np

import flatstep as fs
from flatstep.data.bpe import train_bpe
from flatstep.data.vocabulary import ByteVocabulary, CharVocabulary

# Odd characters, contractions, runs of spaces, control characters, what looks like a special token.
ODD = (
    "héllo wörld\n\t 🙂👍🏽  'll  don't's I'M \x01\x7f\r\n\n  x ABC  12345 1,000.5 ½ ² <|endof|> "
    "日本語 عربى e\u0301 \ufeff \u200b\u00a0\u2028 «x» ▁ \ufffd ~~~ "
)
PLAIN = "".join(f"line {k:3d} of a small sample, which doesn't end.\n" for k in range(60))


def make_vocabulary(kind):
    """A Vocabulary that can encode ODD."""
    if kind == "byte":
        return ByteVocabulary()
    if kind == "char":
        return CharVocabulary.of([(ODD + PLAIN).encode()])
    return train_bpe([(PLAIN + ODD).encode()], 400)


def make_model(vocab_size, block_size=32):
    """A model of two layers whose every parameter differs from 0."""
    model = fs.GPT(fs.GPTConfig(vocab_size, block_size, 2, 2, 16, dropout=0.1), seed=1)
    noise = np.random.default_rng(0).standard_normal(model.num_params) * 0.1
    model.params[...] += noise.astype(np.float32)
    return model
