"""The kernel of _scale.py, in the language that PyTorch's builds for CUDA bring along."""

import torch
import triton
import triton.language as tl

_BLOCK = 4096


@triton.jit
def _scale(numbers, factor_at, size, block: tl.constexpr):
    factor = tl.load(factor_at).to(tl.float32)
    if factor != 1.0:
        index = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        inside = index < size
        number = tl.load(numbers + index, mask=inside)
        tl.store(numbers + index, (number.to(tl.float32) * factor).to(number.dtype), mask=inside)


def scale_(tensor, factor):
    """tensor *= factor, both on the device and at most float32; a factor of 1 touches nothing."""
    size = tensor.numel()
    if size > 0:
        with torch.cuda.device_of(tensor):
            _scale[(triton.cdiv(size, _BLOCK),)](tensor, factor, size, _BLOCK)
