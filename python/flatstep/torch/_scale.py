"""A saved gradient times the upstream gradient, which is 1 more often than not."""

import functools

import torch

# Without this (it is not documented) every scaling takes memory of its own.
keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


def scaled(gradient, upstream):
    """For a 0-d upstream gradient: the gradient itself where that is 1; in place if this backward
    pass is the last one."""
    if upstream.is_cpu and upstream.item() == 1.0:
        return gradient
    last = not keeps_graph()
    kernel = _kernel() if upstream.is_cuda and gradient.is_contiguous() else None
    if kernel is None:
        return gradient.mul_(upstream) if last else gradient * upstream
    if not last:
        gradient = gradient.clone()
    kernel(gradient, upstream)  # in float32, the same bits either way
    return gradient


@functools.cache
def _kernel():
    """On a device only the device can look whether the factor is 1 without a wait, and none of
    PyTorch's operations does. None where Triton is missing or cannot compile."""
    try:
        from ._scale_triton import scale_

        one = torch.ones((), device="cuda")
        scale_(one.clone(), one)
    except Exception:  # of many kinds: no C compiler, a card that is too old
        return None
    return scale_
