"""Clipping by global norm, as ``torch.nn.utils.clip_grad_norm_``."""

import math
import types
import warnings

import torch

from .. import _checks, _core
from ._tensors import in_order, memory_order, real

__all__ = ["clip_grad_norm_"]


@torch.no_grad()
def clip_grad_norm_(parameters, max_norm, norm_type=2.0, error_if_nonfinite=False, foreach=None):
    """Multiplies the gradients in place by ``min(1, max_norm / (norm + 1e-6))``.

    The squares are summed in float64 in a fixed order: the norm has the same bits for any number of
    threads, and finite gradients have a finite one. An optimizer's ``max_norm`` does the same
    inside its step, with a visit of memory less.

    Args:
        parameters: a tensor or an iterable of tensors; those without a gradient are left out.
            Gradients are float32, float64, bfloat16, float16 or complex, on the CPU or on CUDA.
        max_norm: a number >= 0; infinity only measures.
        norm_type: 2; any other norm is computed by ``torch.nn.utils.clip_grad_norm_``.
        error_if_nonfinite: raise if the norm is not finite. Otherwise such gradients are left as
            they are, where PyTorch multiplies by what then is 0 or not a number.
        foreach: a hint of PyTorch's own implementation, ignored.

    Returns:
        The norm before clipping: a tensor without dimensions, float64 if a gradient is, else
        float32, on the device of the first gradient. On CUDA the call waits for the device.

    Raises:
        ValueError, TypeError: an argument is wrong; nothing was written.
        RuntimeError: the norm is not finite and ``error_if_nonfinite`` is set.
    """
    if _checks.number(norm_type, "norm_type") != 2:
        return torch.nn.utils.clip_grad_norm_(
            parameters, max_norm, norm_type, error_if_nonfinite, foreach
        )
    max_norm = _checks.number(max_norm, "max_norm")
    if not max_norm >= 0:
        raise ValueError(f"max_norm: got {max_norm}, expected a number >= 0")
    gradients = _gradients(parameters)
    if not gradients:
        return torch.tensor(0.0)
    taken, in_place = _by_kind(gradients)
    at_once = len(taken) == 1 and in_place and 0 < max_norm < math.inf
    limit = max_norm if at_once else None
    norm = math.hypot(*(_core.grad_norm(arrays, limit)[0] for arrays in taken.values()))
    if error_if_nonfinite and not math.isfinite(norm):  # nothing was written then
        raise RuntimeError(
            "parameters: the norm of the gradients is not finite, so they cannot be clipped"
        )
    scale = max_norm / (norm + 1e-6)
    if scale < 1.0 and math.isfinite(norm):
        if limit is None:
            torch._foreach_mul_(gradients, scale)
        else:
            torch.autograd.graph.increment_version(gradients)
    dtypes = {dtype for _, dtype in taken}
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return torch.tensor(norm, dtype=dtype, device=gradients[0].device)


def _gradients(parameters):
    if isinstance(parameters, torch.Tensor):
        parameters = [parameters]
    elif isinstance(parameters, types.GeneratorType):
        parameters = list(parameters)
        if not parameters:
            warnings.warn("parameters: got an empty generator, nothing is clipped", stacklevel=3)
    return [p.grad for p in parameters if p.grad is not None]


def _by_kind(gradients):
    """{(device, dtype): the gradients as the core takes them}, and whether none is a copy."""
    found, in_place = {}, True
    for number, gradient in enumerate(gradients):
        if gradient.layout is not torch.strided:
            raise TypeError(
                f"parameters: got a gradient of {gradient.layout}, number {number}, "
                "expected dense ones"
            )
        array = real(gradient)
        try:
            array = in_order(array, memory_order(array))
        except ValueError:
            array, in_place = array.contiguous(), False
        found.setdefault((array.device, array.dtype), []).append(array)
    return found, in_place
