"""flatstep in a PyTorch program: the losses, optimizers and clipping of ``torch.nn`` and
``torch.optim``, under their names and with their signatures, on PyTorch's own tensors.

Each name has its further options behind PyTorch's, by keyword only. Tested with PyTorch 2.13.
"""

try:
    import torch as _pytorch  # noqa: F401
except ImportError as error:
    raise ImportError("flatstep.torch needs PyTorch: pip install torch") from error

from ._loss_modules import CrossEntropyLoss, LinearCrossEntropyLoss
from .clip import clip_grad_norm_
from .loss import cross_entropy, linear_cross_entropy
from .optim import SGD, Adam, AdamW

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CrossEntropyLoss",
    "LinearCrossEntropyLoss",
    "clip_grad_norm_",
    "cross_entropy",
    "linear_cross_entropy",
]
