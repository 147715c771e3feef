"""Checks of the losses' arguments, and the types that follow from them."""

import math

import torch

from .. import _checks

_FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
_INTEGERS = (torch.int64, torch.int32, torch.uint8, torch.int16, torch.int8)


_REDUCTIONS = {name: name for name in ("mean", "sum", "none")}


def reduction_of(reduction, size_average, reduce):
    if size_average is not None or reduce is not None:
        reduction = torch.nn._reduction.legacy_get_string(size_average, reduce)
    return _checks.choice(reduction, _REDUCTIONS, "reduction")


def require_floats(tensor, argument):
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{argument}: got {type(tensor).__name__}, expected a torch.Tensor")
    if tensor.dtype not in _FLOATS:
        raise TypeError(
            f"{argument}: got {_name(tensor.dtype)}, expected float32, float64, bfloat16 or float16"
        )


def require_computed(input):
    """Parameters are not to be written over, be it through a view of them."""
    if (input._base if input._is_view() else input).is_leaf:
        raise ValueError("inplace: got True for a leaf, expected logits that were computed")


def check_rows(target, weight, token_weight, shape, classes):
    """What goes with the rows: ``shape`` of them, ``classes`` each."""
    if not isinstance(target, torch.Tensor):
        raise TypeError(f"target: got {type(target).__name__}, expected a torch.Tensor")
    if target.is_floating_point():
        raise TypeError(
            f"target: got {_name(target.dtype)}, expected class indices (int64); probabilities of "
            "classes are not offered, torch.nn.functional.cross_entropy has them"
        )
    if target.dtype not in _INTEGERS:
        raise TypeError(f"target: got {_name(target.dtype)}, expected class indices (int64)")
    if classes == 0:
        raise ValueError("input: got 0 classes, expected at least one")
    _require_shape(target, shape, "target")
    if weight is not None:
        _check_weight(weight, (classes,), "weight")
    if token_weight is not None:
        _check_weight(token_weight, shape, "token_weight")


def _check_weight(tensor, expected, argument):
    require_floats(tensor, argument)
    _require_shape(tensor, expected, argument)
    if tensor.requires_grad:
        raise ValueError(f"{argument}: got a tensor that requires a gradient, expected none")


def _require_shape(tensor, expected, argument):
    if tensor.shape != expected:
        raise ValueError(f"{argument}: got shape {list(tensor.shape)}, expected {list(expected)}")


def check_operands(input, linear_weight, linear_bias):
    if input.dim() == 0 or linear_weight.dim() < 2:
        name, tensor = ("input", input) if input.dim() == 0 else ("linear_weight", linear_weight)
        expected = "[..., D]" if name == "input" else "[C, D]"
        raise ValueError(f"{name}: got shape {list(tensor.shape)}, expected {expected}")
    if input.shape[-1] != linear_weight.shape[-1]:
        raise ValueError(
            f"linear_weight: got {linear_weight.shape[-1]} columns, expected {input.shape[-1]}, "
            "the width of input"
        )
    if linear_bias is not None:
        _require_shape(linear_bias, linear_weight.shape[:-1], "linear_bias")


def check_divisor(options):
    """On CUDA the core sees losses by row, and no divisor."""
    if options.divisor is None:
        return
    if options.reduction != "mean":
        raise ValueError(
            f"divisor: got a value with reduction {options.reduction!r}, expected reduction 'mean'"
        )
    if not 0 < _checks.number(options.divisor, "divisor") < math.inf:
        raise ValueError(f"divisor: got {options.divisor}, expected a finite number > 0")


# ---- types --------------------------------------------------------------------------------------


def _name(dtype):
    return str(dtype).removeprefix("torch.")


def loss_dtype_of(given, dtype, input):
    """PyTorch's type of a loss, unless one is given."""
    if given is not None:
        if given not in _FLOATS:
            raise TypeError(f"loss_dtype: got {given!r}, expected a floating-point torch.dtype")
        return given
    if dtype is torch.float32 or dtype is torch.float64:
        return dtype  # under autocast too
    return torch.float32 if torch.is_autocast_enabled(input.device.type) else dtype


def product_dtype(input, linear_weight, linear_bias):
    """Of a linear layer's operands: autocast's, else that of all of them."""
    cast = input.dtype != torch.float64 and torch.is_autocast_enabled(input.device.type)
    for tensor, argument in ((linear_weight, "linear_weight"), (linear_bias, "linear_bias")):
        if tensor is None or tensor.dtype == input.dtype:
            continue
        if not cast or tensor.dtype == torch.float64:
            raise TypeError(
                f"{argument}: got {_name(tensor.dtype)}, expected {_name(input.dtype)}, the type "
                "of input"
            )
    return torch.get_autocast_dtype(input.device.type) if cast else input.dtype
