"""The shape of a GPT."""

from dataclasses import dataclass, fields

from . import _checks


@dataclass(frozen=True)
class GPTConfig:
    """The shape of a GPT.

    Attributes:
        vocab_size: number of token ids.
        block_size: the longest sequence.
        n_layer, n_head, n_embd: blocks, attention heads, width (a multiple of ``n_head``).
        dropout: probability on embeddings, attention weights, attention output and feed-forward
            output, in training.
    """

    vocab_size: int = 256
    block_size: int = 256
    n_layer: int = 6
    n_head: int = 6
    n_embd: int = 384
    dropout: float = 0.0

    def __post_init__(self):
        for field in fields(self):
            check = _checks.number if field.name == "dropout" else _checks.integer
            object.__setattr__(self, field.name, check(getattr(self, field.name), field.name))
