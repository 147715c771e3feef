"""Fixtures of the tests beside PyTorch."""

import pytest


@pytest.fixture
def generator():
    """PyTorch's random numbers."""
    import torch  # this file is read without it, too

    return torch.Generator().manual_seed(7)
