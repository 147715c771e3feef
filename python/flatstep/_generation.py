"""Sequences that grow token by token: what GPT.generate and GPT.stream share."""

import numpy as np

from . import _checks, _core


class Sampler:
    """One generation: the sequences and how they go on. Arguments as those of GPT.stream."""

    def __init__(self, model, tokens, n, temperature, top_k, top_p, seed, logits):
        tokens = np.asarray(tokens)
        if tokens.ndim not in (1, 2) or not np.issubdtype(tokens.dtype, np.integer):
            raise ValueError(
                f"tokens: got {tokens.dtype} of shape {tokens.shape}, expected integers [T] or "
                "[B, T]"
            )
        self.n = _checks.integer(n, "n")
        if self.n < 0:
            raise ValueError(f"n: got {n}, expected a number of tokens >= 0")
        if top_k is not None and _checks.integer(top_k, "top_k") < 1:
            raise ValueError(f"top_k: got {top_k}, expected a number >= 1")
        self.options = {
            "temperature": _checks.number(temperature, "temperature"),
            "top_k": top_k or 0,
            "top_p": 1.0 if top_p is None else _checks.number(top_p, "top_p"),
            "seed": _checks.unsigned64(seed, "seed"),
        }
        self.model = model
        self.single = tokens.ndim == 1
        rows = np.atleast_2d(tokens)
        self.length = rows.shape[1]
        self.ids = np.zeros((rows.shape[0], self.length + self.n), np.int64)
        self.ids[:, : self.length] = rows
        if self.single and isinstance(logits, np.ndarray) and logits.ndim == 1:
            logits = logits[None]
        self.options["logits"] = logits
        self.state = _core.Generation(*self.ids.shape, self.length)
        self.draw(0)  # checks the arguments

    def draw(self, count):
        """Appends `count` tokens to each row."""
        self.model._core.generate(self.model.params, self.ids, self.state, count, **self.options)
        self.length += count

    def each(self):
        for _ in range(self.n):
            self.draw(1)
            drawn = self.ids[:, self.length - 1]
            yield int(drawn[0]) if self.single else drawn.copy()
