"""The losses of ``torch.nn``."""

import math

import torch

from ._loss_checks import reduction_of
from .loss import cross_entropy, linear_cross_entropy


class CrossEntropyLoss(torch.nn.CrossEntropyLoss):
    """``torch.nn.CrossEntropyLoss`` of class indices, computed by :func:`cross_entropy`.

    PyTorch's arguments, then those of :func:`cross_entropy` by keyword; ``token_weight`` goes with
    the call: ``loss(input, target, token_weight=...)``.
    """

    def __init__(
        self,
        weight=None,
        size_average=None,
        ignore_index=-100,
        reduce=None,
        reduction="mean",
        label_smoothing=0.0,
        *,
        z_loss=0.0,
        softcap=None,
        divisor=None,
        on_empty="nan",
        loss_dtype=None,
        inplace=False,
    ):
        reduction = reduction_of(reduction, size_average, reduce)
        super().__init__(
            weight,
            ignore_index=ignore_index,
            reduction=reduction,
            label_smoothing=label_smoothing,
        )
        self.z_loss, self.softcap, self.divisor = z_loss, softcap, divisor
        self.on_empty, self.loss_dtype, self.inplace = on_empty, loss_dtype, inplace

    def forward(self, input, target, token_weight=None):
        """See :func:`cross_entropy`."""
        return cross_entropy(
            input,
            target,
            self.weight,
            ignore_index=self.ignore_index,
            reduction=self.reduction,
            label_smoothing=self.label_smoothing,
            token_weight=token_weight,
            z_loss=self.z_loss,
            softcap=self.softcap,
            divisor=self.divisor,
            on_empty=self.on_empty,
            loss_dtype=self.loss_dtype,
            inplace=self.inplace,
        )


class LinearCrossEntropyLoss(torch.nn.Module):
    """``torch.nn.LinearCrossEntropyLoss``: a linear layer (``linear``, the same names in a state
    dict) and :func:`linear_cross_entropy` of its output.

    PyTorch's arguments, then those of :func:`linear_cross_entropy`; ``token_weight`` goes with the
    call.
    """

    def __init__(
        self,
        in_features,
        num_classes,
        *,
        out_features=(),
        bias=False,
        device=None,
        dtype=None,
        reduction="mean",
        weight=None,
        ignore_index=None,
        label_smoothing=0.0,
        options=None,
        z_loss=0.0,
        softcap=None,
        divisor=None,
        on_empty="nan",
        loss_dtype=None,
        workspace_bytes=None,
    ):
        super().__init__()
        if weight is not None and weight.shape != (num_classes,):
            raise ValueError(f"weight: got shape {list(weight.shape)}, expected [{num_classes}]")
        self.register_buffer("weight", weight)
        self.in_features, self.num_classes = in_features, num_classes
        self.out_features = tuple(out_features)
        self.reduction, self.ignore_index = reduction, ignore_index
        self.label_smoothing, self.options = label_smoothing, options
        self.z_loss, self.softcap, self.divisor = z_loss, softcap, divisor
        self.on_empty, self.loss_dtype = on_empty, loss_dtype
        self.workspace_bytes = workspace_bytes
        rows = math.prod(self.out_features, start=num_classes)
        self.linear = torch.nn.Linear(in_features, rows, bias=bias, device=device, dtype=dtype)

    def forward(self, input, target, token_weight=None):
        """See :func:`linear_cross_entropy`."""
        shape = (self.num_classes, *self.out_features)
        bias = self.linear.bias
        return linear_cross_entropy(
            input,
            self.linear.weight.view(*shape, self.in_features),
            target,
            linear_bias=None if bias is None else bias.view(shape),
            weight=self.weight,
            reduction=self.reduction,
            ignore_index=self.ignore_index,
            label_smoothing=self.label_smoothing,
            token_weight=token_weight,
            z_loss=self.z_loss,
            softcap=self.softcap,
            divisor=self.divisor,
            on_empty=self.on_empty,
            loss_dtype=self.loss_dtype,
            workspace_bytes=self.workspace_bytes,
        )

    def extra_repr(self):
        return (
            f"in_features={self.in_features}, num_classes={self.num_classes}, "
            f"out_features={self.out_features}, bias={self.linear.bias is not None}, "
            f"reduction={self.reduction}, ignore_index={self.ignore_index}, "
            f"label_smoothing={self.label_smoothing}"
        )
