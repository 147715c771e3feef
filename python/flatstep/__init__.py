"""flatstep: the training step of a Transformer as one small library.

Cross-entropy, backward, gradient clipping, SGD/Adam/AdamW, learning-rate schedules and dropout over
flat buffers. Arrays are anything with ``__dlpack__`` (NumPy, PyTorch, JAX, CuPy).
"""

from flatstep import schedule
from flatstep._core import __version__
from flatstep.dropout import dropout, dropout_mask
from flatstep.gpt import GPT, GPTConfig
from flatstep.layout import Layout
from flatstep.loss import CrossEntropyResult, cross_entropy
from flatstep.optim import SGD, Adam, AdamW, StepInfo, clip_grad_norm_, grad_norm
from flatstep.runtime import get_num_threads, info, set_num_threads

__all__ = [
    "GPT",
    "SGD",
    "Adam",
    "AdamW",
    "CrossEntropyResult",
    "GPTConfig",
    "Layout",
    "StepInfo",
    "__version__",
    "clip_grad_norm_",
    "cross_entropy",
    "dropout",
    "dropout_mask",
    "get_num_threads",
    "grad_norm",
    "info",
    "schedule",
    "set_num_threads",
]
