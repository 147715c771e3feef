"""The losses as operators of PyTorch, opaque to torch.compile: what _loss_autograd.py does, but for
scaling a saved gradient, which the compiler sees and may join to what follows."""

import torch
from torch import Tensor

from . import _loss_values as values
from ._loss_autograd import once_differentiable, wanted_names

# The index at which the arguments of Options begin, and how many arguments there are.
_OPTIONS_AT, _ARGUMENTS = 4, 12
_LINEAR_OPTIONS_AT, _LINEAR_ARGUMENTS = 6, 18


def _options_of(inputs, at):
    return values.Options(*inputs[at : at + len(values.Options._fields)])


def _loss_like(target, options, dtype):
    shape = target.shape if options.reduction == "none" else ()
    return target.new_empty(shape, dtype=values.row_dtype(dtype))


# ---- of logits ----------------------------------------------------------------------------------


@torch.library.custom_op("flatstep::cross_entropy", mutates_args=())
def cross_entropy(
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    token_weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    softcap: float | None,
    divisor: float | None,
    on_empty: str,
    wanted: bool,
) -> tuple[Tensor, Tensor]:
    """The loss of ``[..., C]``, and its gradient, or nothing where that comes later."""
    options = values.Options(
        reduction, label_smoothing, ignore_index, z_loss, softcap, divisor, on_empty
    )
    targets = values.Targets(target, weight, token_weight, options, input.dtype)
    first = wanted and values.gradient_comes_first(options, input.dtype)
    loss, gradient = values.cross_entropy(values.rows_of(input), targets, first)
    loss = loss.view(target.shape) if reduction == "none" else loss
    return loss, gradient.view(input.shape) if first else input.new_empty(0)


@cross_entropy.register_fake
def _(input, target, *others):
    options = _options_of((input, target, *others), _OPTIONS_AT)
    first = others[-1] and values.gradient_comes_first(options, input.dtype)
    return _loss_like(target, options, input.dtype), input.new_empty(input.shape if first else 0)


@torch.library.custom_op("flatstep::cross_entropy_gradient", mutates_args=())
def cross_entropy_gradient(
    upstream: Tensor,
    input: Tensor,
    target: Tensor,
    weight: Tensor | None,
    token_weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    softcap: float | None,
    divisor: float | None,
    on_empty: str,
) -> Tensor:
    options = values.Options(
        reduction, label_smoothing, ignore_index, z_loss, softcap, divisor, on_empty
    )
    targets = values.Targets(target, weight, token_weight, options, input.dtype)
    gradient = values.cross_entropy_gradient(values.rows_of(input), targets, upstream)
    return gradient.view(input.shape)


@cross_entropy_gradient.register_fake
def _(upstream, input, *others):
    return input.new_empty(input.shape)


def _keep(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.options = _options_of(inputs, _OPTIONS_AT)
    ctx.first = values.gradient_comes_first(ctx.options, inputs[0].dtype)
    ctx.save_for_backward(*([output[1]] if ctx.first else inputs[:_OPTIONS_AT]))


@once_differentiable
def _backward(ctx, upstream, _):
    gradient = None
    if upstream is not None:
        if ctx.first:
            gradient = ctx.saved_tensors[0] * upstream
        else:
            gradient = cross_entropy_gradient(upstream, *ctx.saved_tensors, *ctx.options)
    return gradient, *[None] * (_ARGUMENTS - 1)


cross_entropy.register_autograd(_backward, setup_context=_keep)


# ---- of a linear layer's output -----------------------------------------------------------------


@torch.library.custom_op("flatstep::linear_cross_entropy", mutates_args=())
def linear_cross_entropy(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    token_weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    softcap: float | None,
    divisor: float | None,
    on_empty: str,
    dtype: torch.dtype,
    workspace_bytes: int | None,
    input_wanted: bool,
    weight_wanted: bool,
    bias_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss and the gradients; nothing for those that come later or are not wanted."""
    options = values.Options(
        reduction, label_smoothing, ignore_index, z_loss, softcap, divisor, on_empty
    )
    targets = values.Targets(target, weight, token_weight, options, dtype)
    head = values.Head.cast(input, linear_weight, linear_bias, dtype)
    wanted = wanted_names((input_wanted, weight_wanted, bias_wanted))
    if not values.gradient_comes_first(options, dtype):
        wanted = ()
    loss, gradients = values.linear_cross_entropy(head, targets, workspace_bytes, wanted)
    loss = loss.view(target.shape) if reduction == "none" else loss
    return loss, *_all_tensors(gradients, input)


@linear_cross_entropy.register_fake
def _(*inputs):
    input, linear_weight, _, target = inputs[:4]
    options, dtype = _options_of(inputs, _LINEAR_OPTIONS_AT), inputs[-5]
    wanted = inputs[-3:]
    if not values.gradient_comes_first(options, dtype):
        wanted = (False, False, False)
    loss = _loss_like(target, options, dtype)
    return loss, *_all_tensors(_like(input, linear_weight, dtype, wanted), input)


@torch.library.custom_op("flatstep::linear_cross_entropy_gradients", mutates_args=())
def linear_cross_entropy_gradients(
    upstream: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    token_weight: Tensor | None,
    reduction: str,
    label_smoothing: float,
    ignore_index: int,
    z_loss: float,
    softcap: float | None,
    divisor: float | None,
    on_empty: str,
    dtype: torch.dtype,
    workspace_bytes: int | None,
    input_wanted: bool,
    weight_wanted: bool,
    bias_wanted: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    options = values.Options(
        reduction, label_smoothing, ignore_index, z_loss, softcap, divisor, on_empty
    )
    targets = values.Targets(target, weight, token_weight, options, dtype)
    head = values.Head.cast(input, linear_weight, linear_bias, dtype)
    wanted = wanted_names((input_wanted, weight_wanted, bias_wanted))
    gradients = values.linear_cross_entropy_gradients(
        head, targets, workspace_bytes, wanted, upstream
    )
    return _all_tensors(gradients, input)


@linear_cross_entropy_gradients.register_fake
def _(upstream, *inputs):
    return _all_tensors(_like(inputs[0], inputs[1], inputs[-5], inputs[-3:]), inputs[0])


def _like(input, linear_weight, dtype, wanted):
    """Gradients of these shapes and types."""
    shapes = input.shape, linear_weight.shape, linear_weight.shape[:1]
    dtypes = dtype, torch.float32, torch.float32
    return [
        input.new_empty(shape, dtype=kind) if want else None
        for shape, kind, want in zip(shapes, dtypes, wanted, strict=True)
    ]


def _all_tensors(gradients, input):
    """An operator returns no None."""
    hidden, *others = (input.new_empty(0) if given is None else given for given in gradients)
    return hidden.view(input.shape) if gradients[0] is not None else hidden, *others


def _linear_keep(ctx, inputs, output):
    ctx.set_materialize_grads(False)
    ctx.options, dtype = _options_of(inputs, _LINEAR_OPTIONS_AT), inputs[-5]
    ctx.others, ctx.wanted = inputs[-5:], inputs[-3:]
    ctx.dtypes = [None if given is None else given.dtype for given in inputs[:3]]
    ctx.first = values.gradient_comes_first(ctx.options, dtype)
    ctx.save_for_backward(*(output[1:] if ctx.first else inputs[:_LINEAR_OPTIONS_AT]))


@once_differentiable
def _linear_backward(ctx, upstream, *_):
    gradients = [None] * 3
    if upstream is not None:
        if ctx.first:
            gradients = [saved * upstream for saved in ctx.saved_tensors]
        else:
            gradients = linear_cross_entropy_gradients(
                upstream, *ctx.saved_tensors, *ctx.options, *ctx.others
            )
        gradients = [
            gradient.to(dtype) if want else None
            for gradient, dtype, want in zip(gradients, ctx.dtypes, ctx.wanted, strict=True)
        ]
    return *gradients, *[None] * (_LINEAR_ARGUMENTS - 3)


linear_cross_entropy.register_autograd(_linear_backward, setup_context=_linear_keep)
