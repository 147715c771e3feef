"""The options of cross-entropy, and the linear head, against PyTorch and autograd."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import flatstep as fs

REDUCTIONS = ("mean", "sum", "none")
HALVES = (torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def numpy_of(array):
    return array.numpy() if isinstance(array, torch.Tensor) else np.asarray(array)


def make_batch(rows, classes, ignore_index=-100):
    logits = torch.randn(rows, classes, dtype=torch.float64) * 3
    targets = torch.randint(0, classes, (rows,))
    targets[::7] = ignore_index
    return logits, targets


def differentiate(loss, *leaves):
    """A random upstream gradient -> it, as flatstep takes it; the gradients."""
    upstream = torch.randn_like(loss)
    gradients = torch.autograd.grad(loss, leaves, upstream)
    return upstream.item() if upstream.dim() == 0 else upstream, gradients


def assert_doubles(result, loss, gradient):
    np.testing.assert_allclose(numpy_of(result.loss), loss.detach().numpy(), rtol=1e-12, atol=1e-14)
    largest = gradient.abs().max().item()
    np.testing.assert_allclose(
        numpy_of(result.grad), gradient.numpy(), rtol=1e-12, atol=1e-14 * largest
    )


def half_a_unit(array, dtype):
    """In the last place of dtype, for numbers that are float32 or longer; at most."""
    if dtype == torch.float32:
        return 0.0
    relative, least = (2.0**-8, 0.0) if dtype == torch.bfloat16 else (2.0**-11, 2.0**-25)
    return torch.clamp(relative * array.abs(), min=least)


# ---- against torch.nn.functional.cross_entropy ------------------------------------------------


# torch smooths over all classes with label_smoothing / V and weights each class by its weight:
# flatstep's formula where no class is masked.
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("ignore_index", (-100, 2))
@pytest.mark.parametrize("label_smoothing", (0.0, 0.1, 0.7))
@pytest.mark.parametrize("weighted", (False, True))
@pytest.mark.parametrize("classes", (5, 64, 1000))
def test_class_weights_and_smoothing(classes, weighted, label_smoothing, ignore_index, reduction):
    logits, targets = make_batch(40, classes, ignore_index)
    logits.requires_grad_()
    weight = torch.rand(classes, dtype=torch.float64) * 2 if weighted else None
    if weighted:
        weight[::3] = 0
    options = {
        "reduction": reduction,
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
    }
    loss = F.cross_entropy(logits, targets, weight=weight, **options)
    upstream, (gradient,) = differentiate(loss, logits)
    result = fs.cross_entropy(
        logits.detach(), targets, class_weight=weight, grad=True, grad_output=upstream, **options
    )
    assert_doubles(result, loss, gradient)
    valid = targets != ignore_index
    wanted = (weight if weighted else torch.ones(classes)).double()[targets[valid]].sum()
    assert result.weight_sum == pytest.approx(wanted.item(), rel=1e-13)


# ---- against formulas put together from operations of torch ------------------------------------


def compose(logits, targets, *, softcap=None, z_loss=0.0, token_weight=None, weight=None):
    """The loss of each row, and the log-probabilities."""
    capped = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    rows = F.cross_entropy(capped, targets, weight=weight, label_smoothing=0.1, reduction="none")
    lse = torch.logsumexp(capped, dim=-1)
    rows = rows + z_loss * lse.square() * (targets != -100)
    if token_weight is not None:
        rows = rows * token_weight
    return rows, torch.log_softmax(capped, dim=-1), lse


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("softcap", (None, 2.5, 30.0))
@pytest.mark.parametrize("z_loss", (0.0, 1e-3, 0.5))
@pytest.mark.parametrize("weighted", (False, True))
def test_z_loss_softcap_and_weights(weighted, z_loss, softcap, reduction):
    logits, targets = make_batch(40, 129)
    logits.requires_grad_()
    options = {"z_loss": z_loss, "softcap": softcap}
    weight = tokens = None
    if weighted:
        weight = torch.rand(129, dtype=torch.float64)
        tokens = torch.randn(40, dtype=torch.float64) * 0.3 + 1
    rows, log_probability, lse = compose(
        logits, targets, weight=weight, token_weight=tokens, **options
    )
    valid = targets != -100
    weights = torch.ones(40, dtype=torch.float64) if tokens is None else tokens
    if weighted:
        weights = weights * weight[targets.clamp(min=0)]
    total = weights[valid].sum()
    loss = {"none": rows, "sum": rows.sum(), "mean": rows.sum() / total}[reduction]
    upstream, (gradient,) = differentiate(loss, logits)
    result = fs.cross_entropy(
        logits.detach(),
        targets,
        class_weight=weight,
        token_weight=tokens,
        label_smoothing=0.1,
        reduction=reduction,
        grad=True,
        grad_output=upstream,
        **options,
    )
    assert_doubles(result, loss, gradient)
    entropy = -(log_probability.exp() * log_probability).sum(dim=-1)
    for array, wanted in ((result.lse, lse), (result.entropy, entropy)):
        wanted = torch.where(valid, wanted.detach(), 0.0)
        np.testing.assert_allclose(numpy_of(array), wanted.numpy(), rtol=1e-12, atol=1e-14)
    assert result.n_valid == valid.sum().item()
    assert result.n_correct == (logits.argmax(dim=-1) == targets).sum().item()
    assert result.weight_sum == pytest.approx(total.item(), rel=1e-13)


@pytest.mark.parametrize("dtype", (torch.float32, *HALVES))
def test_all_options_in_other_dtypes(dtype):
    """Against float64 from the same numbers; the gradient has one rounding of its own."""
    logits, targets = make_batch(60, 515)
    logits = logits.to(dtype)
    leaf = logits.double().requires_grad_()
    weight, tokens = torch.rand(515), torch.rand(60)
    options = {"z_loss": 0.01, "softcap": 20.0}
    rows, _, _ = compose(
        leaf, targets, weight=weight.double(), token_weight=tokens.double(), **options
    )
    upstream, (gradient,) = differentiate(rows.sum(), leaf)
    result = fs.cross_entropy(
        logits,
        targets,
        class_weight=weight,
        token_weight=tokens,
        label_smoothing=0.1,
        reduction="sum",
        grad=True,
        grad_output=upstream,
        **options,
    )
    assert result.grad.dtype == dtype and result.lse.dtype == torch.float32
    assert result.loss == pytest.approx(rows.sum().item(), rel=1e-6)
    bound = 1e-6 * gradient.abs().max() + half_a_unit(gradient, dtype)
    assert torch.all((result.grad.double() - gradient).abs() <= bound)


# ---- the linear head ---------------------------------------------------------------------------


def make_head(dtype, bias):
    """-> hidden, weight, bias, targets; 45 rows, a head of 301 classes."""
    hidden = torch.randn(3, 15, 64).to(dtype)
    weight = (torch.randn(301, 64) * 0.3).to(dtype)
    targets = torch.randint(0, 301, (3, 15))
    targets[:, ::5] = -100
    return hidden, weight, torch.randn(301).to(dtype) if bias else None, targets


def least_workspace(*arrays, **options):
    with pytest.raises(ValueError, match=r"^workspace_bytes: ") as caught:
        fs.linear_cross_entropy(*arrays, workspace_bytes=1, **options)
    return int(str(caught.value).rsplit(maxsplit=1)[1])


@pytest.mark.parametrize("chunks", ("many", "one"))
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("dtype", (torch.float32, *HALVES))
def test_linear_cross_entropy(dtype, bias, reduction, chunks):
    """Float32 inside, halves too: F.linear and F.cross_entropy in float32 on the same numbers."""
    hidden, weight, offset, targets = make_head(dtype, bias)
    given = [hidden, weight] if offset is None else [hidden, weight, offset]
    leaves = [tensor.float().clone().requires_grad_() for tensor in given]
    logits = F.linear(*leaves)
    class_weight = torch.rand(301)
    loss = F.cross_entropy(
        logits.flatten(0, 1),
        targets.flatten(),
        weight=class_weight,
        label_smoothing=0.1,
        reduction=reduction,
    )
    upstream, gradients = differentiate(loss, *leaves)
    options = {"bias": offset, "class_weight": class_weight, "label_smoothing": 0.1}
    least = least_workspace(hidden, weight, targets, **options)
    result = fs.linear_cross_entropy(
        hidden,
        weight,
        targets,
        **options,
        reduction=reduction,
        grad_output=upstream if reduction != "none" else upstream.view(3, 15),
        workspace_bytes=least if chunks == "many" else 64_000_000,
    )
    wanted = loss.detach().view(numpy_of(result.loss).shape).numpy()
    np.testing.assert_allclose(numpy_of(result.loss), wanted, rtol=2e-5, atol=1e-6)
    assert result.grad_hidden.dtype == dtype and result.grad_weight.dtype == torch.float32
    found = [result.grad_hidden, result.grad_weight]
    if bias:
        found.append(result.grad_bias)
    else:
        assert result.grad_bias is None
    # Sums of products in float32 on both sides; grad_hidden is then rounded to the dtype.
    for index, (own, theirs) in enumerate(zip(found, gradients, strict=True)):
        bound = 1e-5 * theirs.abs().max()
        if index == 0:
            bound = bound + half_a_unit(theirs, dtype)
        assert torch.all((own.float() - theirs).abs() <= bound), index


def test_tied_weights_of_a_model():
    """The head's gradient added to one that is there, as with an embedding of the same matrix."""
    hidden, weight, _, targets = make_head(torch.float32, False)
    leaf = weight.clone().requires_grad_()
    F.cross_entropy(F.linear(hidden, leaf).flatten(0, 1), targets.flatten()).backward()
    gradient = torch.ones_like(weight)
    result = fs.linear_cross_entropy(hidden, weight, targets, grad_weight=gradient, accumulate=True)
    assert result.grad_weight is gradient
    assert torch.allclose(gradient, leaf.grad + 1, rtol=1e-6, atol=1e-6)
