"""The losses as functions of autograd. Under torch.compile the operators of _loss_ops.py stand in
their place, since these call into the core, which cannot be traced."""

import functools

import torch

from . import _loss_values as values
from ._scale import keeps_graph, scaled


class _Refusal(torch.autograd.Function):
    """The identity, for a gradient that cannot be differentiated once more."""

    @staticmethod
    def forward(ctx, gradient, anchor):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, upstream):
        raise RuntimeError("flatstep.torch: the losses have no second derivative")


def once_differentiable(backward):
    """PyTorch's own decorator refuses only where the upstream gradient has a derivative: the
    derivative by the logits would be left out in silence."""

    @functools.wraps(backward)
    def refusing(ctx, *upstream):
        if not torch.is_grad_enabled():
            return backward(ctx, *upstream)
        with torch.no_grad():
            gradients = backward(ctx, *upstream)
        anchor = torch.empty(0, requires_grad=True)
        return tuple(None if g is None else _Refusal.apply(g, anchor) for g in gradients)

    return refusing


class CrossEntropy(torch.autograd.Function):
    """Loss of ``[..., C]``: one visit of the logits where the gradient can come first."""

    @staticmethod
    def forward(ctx, input, target, weight, token_weight, options, inplace):
        logits = values.rows_of(input)
        targets = values.Targets(target, weight, token_weight, options, input.dtype)
        ctx.first = values.gradient_comes_first(options, input.dtype)
        ctx.options, ctx.inplace = options, inplace
        ctx.shape = None if input.dim() == 2 else input.shape  # of the gradient, if another
        if ctx.first:
            loss, gradient = values.cross_entropy(logits, targets, logits if inplace else True)
            if inplace:  # whoever saved the logits for a backward pass of their own is told
                torch.autograd.graph.increment_version(input)
            ctx.save_for_backward(gradient)
        else:
            loss, _ = values.cross_entropy(logits, targets, False)
            ctx.save_for_backward(logits, *targets.tensors)
        return loss.view(target.shape) if options.reduction == "none" else loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        if ctx.first:
            (saved,) = ctx.saved_tensors
            gradient = scaled(saved, upstream)
        else:
            logits, *others = ctx.saved_tensors
            targets = values.Targets(*others, ctx.options, logits.dtype)
            over = ctx.inplace and not keeps_graph()
            gradient = values.cross_entropy_gradient(
                logits, targets, upstream, logits if over else True
            )
            if over:
                torch.autograd.graph.increment_version(logits)
        if ctx.shape is not None:
            gradient = gradient.view(ctx.shape)
        return gradient, None, None, None, None, None


class LinearCrossEntropy(torch.autograd.Function):
    """Loss of a linear layer's output, with products in ``dtype``."""

    @staticmethod
    def forward(
        ctx, input, weight, bias, target, class_weight, token_weight, options, dtype, workspace
    ):
        targets = values.Targets(target, class_weight, token_weight, options, dtype)
        head = values.Head.cast(input, weight, bias, dtype)
        ctx.wanted = wanted_names(ctx.needs_input_grad[:3])
        ctx.first = values.gradient_comes_first(options, dtype)
        ctx.options, ctx.dtype, ctx.workspace, ctx.shape = options, dtype, workspace, input.shape
        ctx.dtypes = [None if given is None else given.dtype for given in (input, weight, bias)]
        wanted = ctx.wanted if ctx.first else ()
        loss, gradients = values.linear_cross_entropy(head, targets, workspace, wanted)
        if ctx.first:
            ctx.save_for_backward(*gradients)
        else:
            ctx.save_for_backward(input, weight, bias, *targets.tensors)
        return loss.view(target.shape) if options.reduction == "none" else loss

    @staticmethod
    @once_differentiable
    def backward(ctx, upstream):
        if ctx.first:
            gradients = [
                None if saved is None else scaled(saved, upstream) for saved in ctx.saved_tensors
            ]
        else:
            *given, target, class_weight, token_weight = ctx.saved_tensors
            head = values.Head.cast(*given, ctx.dtype)
            targets = values.Targets(target, class_weight, token_weight, ctx.options, ctx.dtype)
            gradients = values.linear_cross_entropy_gradients(
                head, targets, ctx.workspace, ctx.wanted, upstream
            )
        hidden, *others = (
            None if gradient is None else gradient.to(dtype)
            for gradient, dtype in zip(gradients, ctx.dtypes, strict=True)
        )
        if hidden is not None:
            hidden = hidden.view(ctx.shape)
        return hidden, *others, None, None, None, None, None, None


def wanted_names(needed):
    """The names of those gradients that are needed, for flatstep.linear_cross_entropy."""
    names = zip(("hidden", "weight", "bias"), needed, strict=True)
    return tuple(name for name, need in names if need)
