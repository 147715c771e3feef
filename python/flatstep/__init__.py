"""flatstep: the training step of a Transformer as one small library.

Cross-entropy, backward, gradient clipping, SGD/Adam/AdamW, learning-rate schedules and dropout over
flat buffers. Arrays are anything with ``__dlpack__`` (NumPy, PyTorch, JAX, CuPy), on the CPU or on
a CUDA device.
"""

from . import _interrupt  # before NumPy, which takes a while  # noqa: F401

# isort: split
from . import errors, schedule
from ._core import __version__
from .device_array import DeviceArray, to_device
from .dropout import dropout, dropout_mask
from .gpt import GPT
from .gpt_config import GPTConfig
from .grad import GradPartials, accumulate, clip_grad_norm_, grad_norm
from .layout import Layout
from .loss import (
    CrossEntropyResult,
    LinearCrossEntropyResult,
    cross_entropy,
    linear_cross_entropy,
)
from .optim import SGD, Adam, AdamW, StepInfo
from .plan import Plan, plan
from .runtime import get_num_threads, info, set_num_threads, synchronize

__all__ = [
    "GPT",
    "SGD",
    "Adam",
    "AdamW",
    "CrossEntropyResult",
    "DeviceArray",
    "GPTConfig",
    "GradPartials",
    "Layout",
    "LinearCrossEntropyResult",
    "Plan",
    "StepInfo",
    "__version__",
    "accumulate",
    "clip_grad_norm_",
    "cross_entropy",
    "dropout",
    "dropout_mask",
    "errors",
    "get_num_threads",
    "grad_norm",
    "info",
    "linear_cross_entropy",
    "plan",
    "schedule",
    "set_num_threads",
    "synchronize",
    "to_device",
]
