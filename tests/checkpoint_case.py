"""A small model with its optimizer, for tests of checkpoints."""

import numpy as np

import flatstep as fs

OPTIMIZERS = {"adamw": fs.AdamW, "adam": fs.Adam, "sgd": fs.SGD}


def make(seed=0, optimizer="adamw", **shape):
    shape = {"vocab_size": 256, "block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 16} | shape
    model = fs.GPT(fs.GPTConfig(**shape), seed=seed)
    options = {"momentum": 0.9} if optimizer == "sgd" else {}
    return model, OPTIMIZERS[optimizer](model.params, lr=0.01, layout=model.layout, **options)


def train(model, optimizer, steps, first=0):
    for step in range(first, first + steps):
        tokens = (np.arange(32, dtype=np.int32).reshape(4, 8) * 7 + step) % 256
        model.forward_backward(tokens, (tokens + 7) % 256, step=step)
        optimizer.step(model.grads, max_norm=1.0)
