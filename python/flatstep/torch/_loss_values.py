"""Losses and gradients of tensors, without autograd: what its functions and operators share."""

from typing import NamedTuple

import torch

from .. import _core
from .. import loss as core
from .._arrays import empty_tensor

# PyTorch's names of the arguments, where flatstep has others.
_NAMES = {"logits": "input", "targets": "target", "class_weight": "weight"}
_LINEAR_NAMES = _NAMES | {"hidden": "input", "weight": "linear_weight", "bias": "linear_bias"}

# torch.scalar_tensor takes half the time of torch.tensor, but refuses what rounds to infinity.
_IN_RANGE = 1e38


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
    rows = tensor.detach()
    if rows.dim() == 2 and rows.is_contiguous():
        return rows
    rows = rows.reshape(-1, rows.shape[-1])
    apart = rows.shape[0] <= 1 or rows.stride(0) >= rows.shape[1]
    return rows if apart and rows.stride(1) == 1 else rows.contiguous()


class Targets:
    """Class indices, weights and options of the rows of a call, as the core takes them."""

    def __init__(self, target, weight, token_weight, options, dtype):
        self.dtype = row_dtype(dtype)
        self.options = options
        self.indices = target
        if target.dim() != 1 or not target.is_contiguous():
            self.indices = target.reshape(-1).contiguous()
        if target.dtype not in (torch.int64, torch.int32):
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

    def for_core(self, grad_output=1.0):
        """The options of a call of the core."""
        reduction, smoothing, ignore_index, z_loss, softcap, divisor, on_empty = self.options
        return _core.LossOptions(
            reduction,
            smoothing,
            ignore_index,
            self.weight,
            self.token_weight,
            z_loss,
            softcap,
            divisor,
            on_empty,
            grad_output,
        )

    def by_row(self):
        """The same for losses that are not reduced yet."""
        if self.options.reduction == "none":
            return self
        options = self.options._replace(reduction="none", divisor=None)
        return Targets(self.indices, self.weight, self.token_weight, options, self.dtype)

    def arguments(self):
        """Those of :func:`flatstep.linear_cross_entropy`."""
        return {
            **self.options._asdict(),
            "class_weight": self.weight,
            "token_weight": self.token_weight,
        }

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


_FAULTS = (IndexError, TypeError, ValueError)


def _renamed(error, names):
    """An error of the core with PyTorch's name of the argument."""
    argument, colon, rest = str(error).partition(":")
    if not colon or argument not in names:
        return error
    return type(error)(f"{names[argument]}:{rest}")


def _waits(tensor):
    """Whether a result's numbers are there at once. Elsewhere losses are summed on the device."""
    return tensor.is_cpu


def cross_entropy(logits, targets, grad):
    """(loss, gradient) of ``[rows, C]``; grad: False, True, or the tensor to write."""
    try:
        if _waits(logits):
            return _of_logits(logits, targets, grad, 1.0)
        divisor, upstream = targets.divisor(), 1.0
        if grad is not False:
            upstream = targets.upstream_rows(_one(logits), divisor)
        losses, gradient = _of_logits(logits, targets.by_row(), grad, upstream)
    except _FAULTS as error:
        raise _renamed(error, _NAMES) from None
    return targets.reduced(losses, divisor), gradient


def cross_entropy_gradient(logits, targets, upstream, grad=True):
    """The gradient for this upstream gradient, a 0-d tensor or with "none" one of the rows."""
    upstream = targets.upstream_rows(upstream, targets.divisor())
    return _of_logits(logits, targets.by_row(), grad, upstream)[1]


def _of_logits(logits, targets, grad, grad_output):
    """:func:`flatstep.cross_entropy` without what nobody looks at here: the log-sum-exp and the
    entropy of each row, whose arrays cost as much as a small call itself."""
    options = targets.for_core(grad_output)
    losses = None
    if targets.options.reduction == "none":
        losses = empty_tensor(logits, targets.indices.shape, targets.dtype)
    if grad is True:
        grad = empty_tensor(logits, logits.shape, logits.dtype)
    elif grad is False:
        grad = None
    numbers = _core.cross_entropy(logits, targets.indices, options, losses, None, None, grad)
    return _tensor(numbers[0], targets.dtype) if losses is None else losses, grad


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
    try:
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
    except _FAULTS as error:
        raise _renamed(error, _LINEAR_NAMES) from None
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
        **targets.by_row().arguments(),
    )


def gradients_of(result):
    return result.grad_hidden, result.grad_weight, result.grad_bias


def _one(like):
    return torch.ones((), dtype=torch.float64, device=like.device)


def _tensor(loss, dtype):
    """A loss of the CPU as a tensor."""
    if isinstance(loss, torch.Tensor):
        return loss
    if abs(loss) < _IN_RANGE:
        return torch.scalar_tensor(loss, dtype=dtype, device="cpu")
    return torch.tensor(loss, dtype=dtype, device="cpu")
