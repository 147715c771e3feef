"""Sequences that grow token by token: what GPT.generate and GPT.stream share."""

import numpy as np

from . import _checks, _core


class Sampler:
    """One generation: the sequences and how they go on. Arguments as those of GPT.stream."""

    def __init__(
        self, model, tokens, n, *, temperature, top_k, top_p, seed, stop_token, logits=None
    ):
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
        self.stop_token = stop_token
        if stop_token is not None:
            self.stop_token = _checks.integer(stop_token, "stop_token")
            if not 0 <= self.stop_token < model.config.vocab_size:
                raise ValueError(
                    f"stop_token: got {stop_token}, expected a token of the vocabulary, 0 to "
                    f"{model.config.vocab_size - 1}"
                )
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

    def whole(self):
        """The sequences with all that is drawn: what generate returns."""
        ids = self.ids
        if self.stop_token is None:
            self.draw(self.n)
        else:
            ids = np.column_stack([ids[:, : self.length], *self._rows(at_once=8)])
        return ids[0] if self.single else ids

    def each(self):
        """What stream returns."""
        for drawn in self._rows(at_once=1):
            yield int(drawn[0]) if self.single else drawn

    def _rows(self, at_once):
        """Yields the next token of each row, int64 [B].

        at_once: tokens of a call of the core, which costs some time of its own, a lot of it on a
        busy machine; what is drawn beyond the end is left out.
        """
        ended, end = np.zeros(len(self.ids), bool), self.length + self.n
        for place in range(self.length, end):
            if place == self.length:
                self.draw(min(at_once, end - place))
            # A copy: a row that has ended goes on in self.ids, whose keys and values are kept.
            drawn = self.ids[:, place].copy()
            if self.stop_token is not None:
                drawn[ended] = self.stop_token
                ended |= drawn == self.stop_token
            yield drawn
            if ended.all():
                return
