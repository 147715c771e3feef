"""Cross-entropy and clipping against PyTorch, on PyTorch's own tensors through DLPack."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import flatstep as fs

OPTIONS = (
    {},
    {"label_smoothing": 0.1},
    {"reduction": "sum", "label_smoothing": 0.3},
    {"reduction": "none"},
    {"ignore_index": 2},
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_batch(rows, classes, dtype=torch.float64, scale=3.0):
    logits = (torch.randn(rows, classes, dtype=torch.float64) * scale).to(dtype)
    targets = torch.randint(0, classes, (rows,))
    targets[::7] = -100
    return logits, targets


def numpy_of(array):
    return array.numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("classes", (5, 64, 1000))
def test_double_precision(classes, options):
    """Both sides in float64: any difference of convention shows."""
    logits, targets = make_batch(40, classes)
    if "ignore_index" in options:
        targets[::7] = options["ignore_index"]
    leaf = logits.clone().requires_grad_()
    wanted = F.cross_entropy(leaf, targets, **options)
    upstream = torch.rand_like(wanted)
    wanted.backward(upstream)
    given = upstream.item() if upstream.dim() == 0 else upstream
    result = fs.cross_entropy(logits, targets, grad=True, grad_output=given, **options)
    np.testing.assert_allclose(
        numpy_of(result.loss), wanted.detach().numpy(), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(numpy_of(result.grad), leaf.grad.numpy(), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("options", OPTIONS[:4], ids=str)
def test_single_precision(options):
    logits, targets = make_batch(64, 257, torch.float32)
    leaf = logits.clone().requires_grad_()
    wanted = F.cross_entropy(leaf, targets, **options)
    wanted.sum().backward()
    result = fs.cross_entropy(logits, targets, grad=True, **options)
    np.testing.assert_allclose(numpy_of(result.loss), wanted.detach().numpy(), rtol=2e-6, atol=1e-7)
    largest = leaf.grad.abs().max().item()
    assert np.all(np.abs(numpy_of(result.grad) - leaf.grad.numpy()) <= 1e-6 * largest)


@pytest.mark.parametrize("in_place", (False, True))
@pytest.mark.parametrize("classes", (7, 64, 1000))
@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16))
def test_halves_in_and_out(classes, in_place, dtype):
    """The gradient is the float32 one rounded once: at most the neighbouring number of PyTorch's
    own float32 gradient, which may lie on the other side of a tie."""
    logits, targets = make_batch(50, classes, dtype)
    leaf = logits.float().requires_grad_()
    wanted = F.cross_entropy(leaf, targets)
    wanted.backward()
    grad = logits if in_place else torch.full_like(logits, 9)
    result = fs.cross_entropy(logits, targets, grad=grad)
    assert result.grad is grad and grad.dtype == dtype
    assert result.lse.dtype == result.entropy.dtype == torch.float32
    assert result.loss == pytest.approx(wanted.item(), rel=1e-6)
    rounded = leaf.grad.to(dtype)
    distance = (grad.view(torch.int16).int() - rounded.view(torch.int16).int()).abs()
    assert distance.max() <= 1 and (distance == 0).float().mean() > 0.99


def test_wide_rows_of_a_tensor():
    """A slice of a padded vocabulary, in place: the padding keeps its bits."""
    padded = torch.randn(20, 64)
    before, targets = padded.clone(), torch.randint(0, 50, (20,))
    leaf = padded[:, :50].clone().requires_grad_()
    F.cross_entropy(leaf, targets).backward()
    view = padded[:, :50]
    fs.cross_entropy(view, targets, grad=view)
    assert torch.allclose(padded[:, :50], leaf.grad, rtol=1e-5, atol=1e-8)
    assert torch.equal(padded[:, 50:], before[:, 50:])


def test_all_ignored_as_torch_does_it():
    logits, targets = torch.randn(4, 5), torch.full((4,), -100)
    assert np.isnan(fs.cross_entropy(logits, targets, on_empty="nan").loss)
    assert torch.isnan(F.cross_entropy(logits, targets))


@pytest.mark.parametrize("max_norm", (0.1, 1e5))
def test_clip_grad_norm(max_norm):
    arrays = [torch.randn(17), torch.randn(4, 9), torch.randn(4097)]
    parameters = []
    for array in arrays:
        parameter = torch.nn.Parameter(torch.zeros_like(array, dtype=torch.float64))
        parameter.grad = array.double()
        parameters.append(parameter)
    wanted = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()
    assert fs.clip_grad_norm_(arrays, max_norm) == pytest.approx(wanted, rel=1e-12)
    for array, parameter in zip(arrays, parameters, strict=True):
        np.testing.assert_allclose(array.numpy(), parameter.grad.numpy(), rtol=2e-7, atol=0)
