"""The losses of ``torch.nn.functional``."""

import torch
import torch.nn.functional as F

from . import _loss_autograd as autograd
from . import _loss_ops as ops
from . import _loss_values as values
from ._loss_checks import (
    check_divisor,
    check_operands,
    check_rows,
    loss_dtype_of,
    product_dtype,
    reduction_of,
    require_computed,
    require_floats,
)


def cross_entropy(
    input,
    target,
    weight=None,
    size_average=None,
    ignore_index=-100,
    reduce=None,
    reduction="mean",
    label_smoothing=0.0,
    *,
    token_weight=None,
    z_loss=0.0,
    softcap=None,
    divisor=None,
    on_empty="nan",
    loss_dtype=None,
    inplace=False,
):
    """``torch.nn.functional.cross_entropy`` of class indices, with the gradient in the same visit
    of the logits; the arguments after ``label_smoothing`` are :func:`flatstep.cross_entropy`'s.

    The forward pass writes the gradient, one buffer like ``input``, and the backward pass
    multiplies it by the upstream gradient, in that buffer unless the graph is kept, and not at all
    where that is 1. Where the upstream gradient has to be inside, with ``reduction="none"`` and for
    float16 with its loss scale, the logits are kept and the gradient is computed in the backward
    pass. Without gradients there is only the loss. Nothing waits for a CUDA device.

    Arithmetic is float32 for 16-bit logits too, so ``torch.autocast`` casts nothing here. Under
    ``torch.compile`` it is one operator, and the product the compiler's. A second derivative is
    refused.

    Args:
        input: ``[C]``, ``[N, C]`` or ``[N, C, d1, ...]`` float32, float64, bfloat16 or float16;
            with dimensions after C it is copied, as it is where classes are not contiguous.
        target: ``[]``, ``[N]`` or ``[N, d1, ...]``, of an integer type, in ``[0, C)`` or
            ``ignore_index``. Probabilities are not offered.
        weight: ``[C]``, a weight for each class.
        size_average, reduce: PyTorch's old names of ``reduction``.
        ignore_index: targets with this value have loss 0 and gradient 0.
        reduction: ``"mean"`` divides by the summed weight of the valid targets; ``"sum"``,
            ``"none"``.
        label_smoothing: in ``[0, 1)``. Classes whose logit is -inf take no part in it.
        token_weight: of the shape of ``target``, finite.
        z_loss: factor of the squared log-sum-exp.
        softcap: c of ``c * tanh(x / c)``, or None.
        divisor: replaces the summed weight in ``"mean"``.
        on_empty: the mean over a summed weight of 0: ``"nan"``, as PyTorch, or ``"zero"``.
        loss_dtype: of the result; None is PyTorch's: that of ``input``, float32 under autocast.
        inplace: write the gradient over ``input``, which must be the result of an operation and
            not be looked at afterwards; where that operation needs its result, autograd raises.
            Under ``torch.compile`` it does nothing.

    Returns:
        A 0-d tensor, or with ``"none"`` one of the shape of ``target``.

    Raises:
        IndexError: a target is out of range; on CUDA by a later call that waits.
        ValueError, TypeError: another argument is wrong; the message names it.
    """
    reduction = reduction_of(reduction, size_average, reduce)
    require_floats(input, "input")
    if input.dim() == 0:
        raise ValueError("input: got a tensor without dimensions, expected [C] or [N, C, ...]")
    shape = input.shape
    classes = 0 if len(shape) == 1 else 1
    rows = shape[:1] if len(shape) == 2 else shape[:classes] + shape[classes + 1 :]
    check_rows(target, weight, token_weight, rows, shape[classes])
    options = values.Options(
        reduction, label_smoothing, ignore_index, z_loss, softcap, divisor, on_empty
    )
    check_divisor(options)
    dtype = loss_dtype_of(loss_dtype, input.dtype, input)
    if input.dim() > 2:
        input = input.movedim(1, -1)
    wanted = torch.is_grad_enabled() and input.requires_grad
    if torch.compiler.is_compiling():
        loss, _ = ops.cross_entropy(input, target, weight, token_weight, *options, wanted)
    elif wanted:
        if inplace:
            require_computed(input)
        loss = autograd.CrossEntropy.apply(input, target, weight, token_weight, options, inplace)
    else:
        targets = values.Targets(target, weight, token_weight, options, input.dtype)
        loss = values.cross_entropy(values.rows_of(input), targets, False)[0]
        loss = loss.view(target.shape) if reduction == "none" else loss
    return loss if loss.dtype is dtype else loss.to(dtype)


def linear_cross_entropy(
    input,
    linear_weight,
    target,
    *,
    linear_bias=None,
    weight=None,
    reduction="mean",
    ignore_index=None,
    label_smoothing=0.0,
    options=None,
    token_weight=None,
    z_loss=0.0,
    softcap=None,
    divisor=None,
    on_empty="nan",
    loss_dtype=None,
    workspace_bytes=None,
):
    """``torch.nn.functional.linear_cross_entropy``: :func:`cross_entropy` of the logits
    ``input @ linear_weight.T + linear_bias``, which never exist at once.

    The gradients that are needed come from the same pass over the chunks of logits, those of weight
    and bias in float32 until the upstream gradient is known. With ``reduction="none"`` and in
    float16 the backward pass computes the logits again, as in :func:`cross_entropy`. Under
    ``torch.autocast`` the products are in its type, and a float32 weight has its gradient without
    a rounding to that.

    float64, and a ``linear_weight`` of more than two dimensions, are ``torch.nn.functional.linear``
    and :func:`cross_entropy`, whose logits do exist.

    Args:
        input: ``[..., D]`` float32, bfloat16 or float16 (PyTorch has ``[D]`` and ``[N, D]`` alone).
        linear_weight: ``[C, D]`` of the same dtype, or ``[C, d1, ..., D]`` with ``input [N, D]``.
        target: ``[...]``, or ``[N, d1, ...]``, as for :func:`cross_entropy`.
        linear_bias: ``[C]`` or ``[C, d1, ...]`` of the same dtype, or None.
        ignore_index: None is -100.
        options: PyTorch's, taken and not used: chunks follow ``workspace_bytes``.
        workspace_bytes: as for :func:`flatstep.linear_cross_entropy`.

    The other arguments, the result and the errors are those of :func:`cross_entropy`.
    """
    require_floats(input, "input")
    require_floats(linear_weight, "linear_weight")
    if linear_bias is not None:
        require_floats(linear_bias, "linear_bias")
    check_operands(input, linear_weight, linear_bias)
    ignore_index = -100 if ignore_index is None else ignore_index
    dtype = product_dtype(input, linear_weight, linear_bias)
    if linear_weight.dim() > 2 or dtype == torch.float64:
        return _of_all_logits(
            input,
            linear_weight,
            target,
            linear_bias,
            weight=weight,
            reduction=reduction,
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            token_weight=token_weight,
            z_loss=z_loss,
            softcap=softcap,
            divisor=divisor,
            on_empty=on_empty,
            loss_dtype=loss_dtype,
        )
    reduction = reduction_of(reduction, None, None)
    check_rows(target, weight, token_weight, input.shape[:-1], linear_weight.shape[0])
    choices = values.Options(
        reduction, label_smoothing, ignore_index, z_loss, softcap, divisor, on_empty
    )
    check_divisor(choices)
    loss_dtype = loss_dtype_of(loss_dtype, input.dtype, input)
    operands = (input, linear_weight, linear_bias)
    needed = [
        torch.is_grad_enabled() and tensor is not None and tensor.requires_grad
        for tensor in operands
    ]
    if torch.compiler.is_compiling():
        loss, *_ = ops.linear_cross_entropy(
            *operands, target, weight, token_weight, *choices, dtype, workspace_bytes, *needed
        )
    elif any(needed):
        loss = autograd.LinearCrossEntropy.apply(
            *operands, target, weight, token_weight, choices, dtype, workspace_bytes
        )
    else:
        head = values.Head.cast(*operands, dtype)
        targets = values.Targets(target, weight, token_weight, choices, dtype)
        loss = values.linear_cross_entropy(head, targets, workspace_bytes, ())[0]
        loss = loss.view(target.shape) if reduction == "none" else loss
    return loss.to(loss_dtype)


def _of_all_logits(input, linear_weight, target, linear_bias, **options):
    """The linear loss where the core has none."""
    if linear_weight.dim() > 2:
        if input.dim() != 2:
            raise ValueError(f"input: got shape {list(input.shape)}, expected [N, D]")
        bias = None if linear_bias is None else linear_bias.reshape(-1)
        logits = F.linear(input, linear_weight.flatten(0, -2), bias)
        logits = logits.view(len(input), *linear_weight.shape[:-1])
        return cross_entropy(logits, target, **options)
    logits = F.linear(input, linear_weight, linear_bias)
    return cross_entropy(logits.movedim(-1, min(1, logits.dim() - 1)), target, **options)
