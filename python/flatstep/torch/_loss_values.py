"""Losses and gradients of tensors, without autograd: what its functions and operators share."""

import contextlib
from typing import NamedTuple

import torch

from .. import loss as core

# PyTorch's names of the arguments, where flatstep has others.
_NAMES = {"logits": "input", "targets": "target", "class_weight": "weight"}
_LINEAR_NAMES = _NAMES | {"hidden": "input", "weight": "linear_weight", "bias": "linear_bias"}


class Options(NamedTuple):
    """The numbers that go with a call, as :func:`flatstep.cross_entropy` names them."""

    reduction: str
    label_smoothing: float
    ignore_index: int
    z_loss: float
    softcap: float | None
    divisor: float | None
    on_empty: str


def row_dtype(dtype):
    """Of losses, weights and upstream gradients."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def gradient_comes_first(options, dtype):
    """Whether the gradient is taken in the visit of the forward pass.

    A loss per row needs its upstream gradients, and float16 the loss scale that comes with it: a
    mean over thousands of rows would be 0 before it is scaled. These two are computed in the
    backward pass, with the upstream gradient inside and one rounding.
    """
    return options.reduction != "none" and dtype != torch.float16


def rows_of(tensor):
    """``[..., C]`` as ``[rows, C]`` that the core can read: a view where there is one."""
    rows = tensor.detach().reshape(-1, tensor.shape[-1])
    apart = rows.shape[0] <= 1 or rows.stride(0) >= rows.shape[1]
    return rows if apart and rows.stride(1) == 1 else rows.contiguous()


class Targets:
    """Class indices, weights and options of the rows of a call, as the core takes them."""

    def __init__(self, target, weight, token_weight, options, dtype):
        self.dtype = row_dtype(dtype)
        self.options = options
        self.indices = target.detach().reshape(-1).contiguous()
        if target.dtype not in (torch.int32, torch.int64):
            self.indices = self.indices.long()
        self.weight = self._numbers(weight)
        self.token_weight = self._numbers(token_weight)

    def _numbers(self, tensor):
        if tensor is None:
            return None
        return tensor.detach().reshape(-1).to(self.dtype).contiguous()

    @property
    def tensors(self):
        return self.indices, self.weight, self.token_weight

    def arguments(self):
        return {
            **self.options._asdict(),
            "class_weight": self.weight,
            "token_weight": self.token_weight,
        }

    def arguments_by_row(self):
        """The same for losses that are not reduced yet."""
        return self.arguments() | {"reduction": "none", "divisor": None}

    # ---- the reduction, where nothing may wait for a number ------------------------------------

    def divisor(self):
        """What "mean" divides by, a number or a 0-d tensor of float64; 1 for the others."""
        if self.options.reduction != "mean":
            return 1.0
        if self.options.divisor is not None:
            return self.options.divisor
        valid = self.indices != self.options.ignore_index
        amount = valid.to(torch.float64)
        if self.weight is not None:
            # A target out of range is told by the core; indexing with it would end the context.
            amount = amount * self.weight[self.indices.clamp(0, len(self.weight) - 1)]
        if self.token_weight is not None:
            amount = torch.where(valid, amount * self.token_weight, 0.0)
        return amount.sum()

    def reduced(self, losses, divisor):
        """The loss of all rows."""
        if self.options.reduction == "none":
            return losses
        loss = losses.sum(dtype=torch.float64) / divisor
        if self.options.on_empty == "zero" and isinstance(divisor, torch.Tensor):
            loss = torch.where(divisor == 0, 0.0, loss)
        return loss.to(self.dtype)

    def upstream_rows(self, upstream, divisor):
        """Upstream gradient of each row's loss; 0 where there is nothing to divide by."""
        if self.options.reduction == "none":
            return upstream.reshape(-1).to(self.dtype).contiguous()
        factor = upstream / divisor
        if isinstance(divisor, torch.Tensor):
            factor = torch.where(divisor == 0, 0.0, factor)
        return self.indices.new_empty(self.indices.shape, dtype=self.dtype).copy_(factor)


@contextlib.contextmanager
def _named(names):
    """Errors of the core with PyTorch's name of the argument."""
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        argument, colon, rest = str(error).partition(":")
        if not colon or argument not in names:
            raise
        raise type(error)(f"{names[argument]}:{rest}") from None


def _waits(tensor):
    """Whether a result's numbers are there at once. Elsewhere losses are summed on the device."""
    return tensor.device.type == "cpu"


def cross_entropy(logits, targets, grad):
    """(loss, gradient) of ``[rows, C]``; grad: False, True, or the tensor to write."""
    with _named(_NAMES):
        if _waits(logits):
            result = core.cross_entropy(logits, targets.indices, grad=grad, **targets.arguments())
            return _tensor(result.loss, targets.dtype), result.grad
        divisor, upstream = targets.divisor(), 1.0
        if grad is not False:
            upstream = targets.upstream_rows(_one(logits), divisor)
        result = core.cross_entropy(
            logits,
            targets.indices,
            grad=grad,
            grad_output=upstream,
            **targets.arguments_by_row(),
        )
        return targets.reduced(result.loss, divisor), result.grad


def cross_entropy_gradient(logits, targets, upstream, grad=True):
    """The gradient for this upstream gradient, a 0-d tensor or with "none" one of the rows."""
    return core.cross_entropy(
        logits,
        targets.indices,
        grad=grad,
        grad_output=targets.upstream_rows(upstream, targets.divisor()),
        **targets.arguments_by_row(),
    ).grad


class Head(NamedTuple):
    """The operands of a linear layer in the type of its product."""

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None

    @classmethod
    def cast(cls, hidden, weight, bias, dtype):
        bias = None if bias is None else bias.detach().to(dtype).contiguous()
        return cls(rows_of(hidden.to(dtype)), rows_of(weight.to(dtype)), bias)


def linear_cross_entropy(head, targets, workspace_bytes, wanted):
    """(loss, the gradients of hidden, weight and bias); None for those that are not wanted."""
    with _named(_LINEAR_NAMES):
        if _waits(head.hidden):
            result = core.linear_cross_entropy(
                head.hidden,
                head.weight,
                targets.indices,
                bias=head.bias,
                workspace_bytes=workspace_bytes,
                grad=wanted,
                **targets.arguments(),
            )
            return _tensor(result.loss, targets.dtype), gradients_of(result)
        divisor, upstream = targets.divisor(), 1.0
        if wanted:
            upstream = targets.upstream_rows(_one(head.hidden), divisor)
        result = _linear_by_row(head, targets, workspace_bytes, wanted, upstream)
        return targets.reduced(result.loss, divisor), gradients_of(result)


def linear_cross_entropy_gradients(head, targets, workspace_bytes, wanted, upstream):
    """The gradients for this upstream gradient."""
    upstream = targets.upstream_rows(upstream, targets.divisor())
    return gradients_of(_linear_by_row(head, targets, workspace_bytes, wanted, upstream))


def _linear_by_row(head, targets, workspace_bytes, wanted, upstream):
    return core.linear_cross_entropy(
        head.hidden,
        head.weight,
        targets.indices,
        bias=head.bias,
        workspace_bytes=workspace_bytes,
        grad=wanted,
        grad_output=upstream,
        **targets.arguments_by_row(),
    )


def gradients_of(result):
    return result.grad_hidden, result.grad_weight, result.grad_bias


def _one(like):
    return torch.ones((), dtype=torch.float64, device=like.device)


def _tensor(loss, dtype):
    return loss if isinstance(loss, torch.Tensor) else torch.tensor(loss, dtype=dtype)
