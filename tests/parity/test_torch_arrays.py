"""New arrays beside PyTorch's tensors."""

import math

import pytest
import torch

from flatstep import _arrays


@pytest.mark.parametrize("shape", ((), (5,), (3, 0), (2048, 1024)), ids=str)
@pytest.mark.parametrize("dtype", ("float32", "bfloat16", "int8"))
def test_tensors_beside_one_of_the_cpu(shape, dtype):
    """Those of megabytes have memory of another kind."""
    made = _arrays.empty(shape, dtype, torch.empty(3))
    assert made.shape == shape and made.dtype == getattr(torch, dtype)
    assert made.is_contiguous() and made.device.type == "cpu"
    made.fill_(7)
    assert made.double().sum() == 7 * math.prod(shape)


@pytest.mark.parametrize("shape", (5, (5,), (2048, 1024)), ids=str)
def test_tensors_elsewhere(shape):
    """On the device of the tensor beside them; optimizers ask for a number of elements."""
    made = _arrays.empty(shape, "float32", torch.empty(3, device="meta"))
    assert made.device.type == "meta"
    assert made.shape == (shape if isinstance(shape, tuple) else (shape,))
