"""What a parameter group says, as the core takes it."""

import math
from typing import Any, NamedTuple

import torch

from .. import _checks
from .._optimizer import core_options


class Settings(NamedTuple):
    """What a parameter group says, checked."""

    lr: Any  # a float, or a tensor on a CUDA device
    weight_decay: float
    betas: tuple | None
    options: tuple  # (name, value) of the core's options that all tensors of a call share
    state_names: tuple

    def core_options(self, mode):
        beta1, beta2 = self.betas or (0.0, 0.0)
        own = dict(self.options)
        return core_options(
            own, mode=mode, weight_decay=self.weight_decay, beta1=beta1, beta2=beta2
        )


def partition(settings):
    """Of each group: the first one with the same options, and what state these take."""
    options = [own.options for own in settings]
    return [(options.index(own.options), own.state_names) for own in settings]


def names_of(group, first):
    """What messages call the parameters of a group, the first of which has that number."""
    names = group.get("param_names")
    return names or [f"params[{first + i}]" for i in range(len(group["params"]))]


def learning_rate(value):
    """A rate as a finite float, or as it is if it lies on a CUDA device."""
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(f"lr: got a tensor of {list(value.shape)}, expected one number")
        if value.is_cuda:
            return value
    value = _checks.number(value, "lr")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"lr: got {value}, expected a finite number >= 0")
    return value
