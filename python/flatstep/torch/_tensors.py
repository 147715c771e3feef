"""Tensors as the core takes them: dense, real, in the order in which they lie in memory."""

import torch

# What the core updates, and the type of its arithmetic and of the moments.
ARITHMETIC = {
    torch.float32: torch.float32,
    torch.float64: torch.float64,
    torch.bfloat16: torch.float32,
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
}


def check_parameter(parameter, name, mode):
    """Raises TypeError or ValueError naming a parameter that cannot be updated."""
    dtype, device = parameter.dtype, parameter.device.type
    if dtype not in ARITHMETIC:
        raise TypeError(
            f"{name}: got {dtype}, expected float32, float64, bfloat16, complex64 or complex128"
        )
    if device not in ("cpu", "cuda"):
        raise TypeError(f"{name}: got a parameter on {device}, expected one on the CPU or CUDA")
    if parameter.layout is not torch.strided:
        raise TypeError(f"{name}: got {parameter.layout}, expected torch.strided")
    if mode == "torch" and (dtype is torch.bfloat16 or device == "cuda"):
        what = "bfloat16" if dtype is torch.bfloat16 else "CUDA"
        raise ValueError(f"mode: got 'torch' with {what} parameters ({name}), expected 'native'")


def check_gradient(gradient, parameter, name):
    """Raises TypeError or ValueError naming the parameter."""
    if gradient.layout is not torch.strided:
        raise TypeError(f"{name}: got a gradient of {gradient.layout}, expected a dense one")
    if gradient.shape != parameter.shape or gradient.device != parameter.device:
        raise ValueError(
            f"{name}: got a gradient of {list(gradient.shape)} on {gradient.device}, expected "
            f"{list(parameter.shape)} on {parameter.device}"
        )


def real(tensor):
    """A tensor over the same memory that autograd does not watch; complex numbers as pairs."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def memory_order(tensor):
    """The dimensions from the widest stride to the narrowest, in which a dense tensor is
    contiguous; None where that is their own order. ValueError if the tensor has holes."""
    if tensor.is_contiguous():
        return None
    order = sorted(range(tensor.dim()), key=lambda d: (-tensor.stride(d), -tensor.size(d)))
    if not tensor.permute(order).is_contiguous():
        raise ValueError("not dense")
    return order


def in_order(tensor, order):
    """The view whose dimensions are in that order."""
    return tensor if order is None else tensor.permute(order)
