"""flatstep.torch's losses within autograd: upstream gradients, memory, graphs that are kept,
checkpoints, autocast, and the sums that a CUDA device does itself."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

import flatstep as fs
from flatstep.torch import LinearCrossEntropyLoss, cross_entropy, linear_cross_entropy
from flatstep.torch import _loss_values as values

REDUCTIONS = ("mean", "sum", "none")
EVERYTHING = {"label_smoothing": 0.1, "z_loss": 0.02, "softcap": 4.0}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_batch(dtype=torch.float32, rows=6, classes=5):
    logits = torch.randn(rows, classes).to(dtype).requires_grad_()
    target = torch.randint(0, classes, (rows,))
    target[1] = -100
    return logits, target


def copy_of(logits):
    """What an operation has computed, as logits are; its backward pass does not look at it."""
    return logits * 1


# ---- derivatives --------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("shape", ((5,), (4, 5), (2, 5, 3)), ids=str)
@pytest.mark.parametrize("options", ({}, EVERYTHING), ids=("plain", "everything"))
def test_gradcheck(reduction, shape, options):
    logits = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    rows = shape[:1] + shape[2:] if len(shape) > 1 else ()
    target = torch.randint(0, 5, rows)
    weight, token_weight = torch.rand(5, dtype=torch.float64), torch.rand(rows, dtype=torch.float64)

    def loss(x):
        return cross_entropy(
            x, target, weight, reduction=reduction, token_weight=token_weight, **options
        )

    assert torch.autograd.gradcheck(loss, logits)


@pytest.mark.parametrize("linear", (False, True))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_second_derivative_is_refused(reduction, linear):
    """Also where the upstream gradient has none of its own, and a penalty on the gradient would
    otherwise be left out in silence."""
    logits, target = make_batch()
    if linear:
        loss = linear_cross_entropy(logits, torch.randn(5, 5), target, reduction=reduction)
    else:
        loss = cross_entropy(logits, target, reduction=reduction)
    (gradient,) = torch.autograd.grad(loss.sum(), logits, create_graph=True)
    (plain,) = torch.autograd.grad(loss.sum(), logits, retain_graph=True)
    assert torch.equal(gradient, plain)
    penalty = loss.sum() + gradient.square().sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        penalty.backward()


def test_upstream_gradient_of_one_costs_nothing():
    """The saved buffer itself is handed on; the last pass scales it in place, others leave it."""
    logits, target = make_batch()
    seen = []
    computed = copy_of(logits)
    computed.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    loss = cross_entropy(computed, target)
    (saved,) = loss.grad_fn.saved_tensors
    pointer, before = saved.data_ptr(), saved.clone()
    del saved
    loss.backward(retain_graph=True)
    loss.backward(torch.tensor(3.0), retain_graph=True)
    assert torch.equal(loss.grad_fn.saved_tensors[0], before)
    loss.backward(torch.tensor(0.5))
    assert seen[0] == seen[2] == pointer != seen[1]
    torch.testing.assert_close(logits.grad, 4.5 * before)


@pytest.mark.parametrize("inplace", (False, True))
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_a_graph_that_is_kept(dtype, reduction, inplace):
    """Every pass gives the same; a graph that is gone says so."""
    logits, target = make_batch(dtype)
    loss = cross_entropy(copy_of(logits), target, reduction=reduction, inplace=inplace)
    upstream = torch.randn_like(loss)
    first, second = (
        torch.autograd.grad(loss, logits, upstream, retain_graph=True)[0] for _ in range(2)
    )
    (last,) = torch.autograd.grad(loss, logits, upstream)
    assert torch.equal(first, second) and torch.equal(first, last)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward(upstream)


def test_no_gradient_without_need():
    logits, target = make_batch()
    assert cross_entropy(logits.detach(), target).grad_fn is None
    with torch.no_grad():
        assert not cross_entropy(logits, target).requires_grad
    with torch.inference_mode():
        assert torch.isfinite(cross_entropy(logits, target))


# ---- in place -----------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16))
def test_in_place(dtype, reduction):
    """The gradient lies where the logits did."""
    logits, target = make_batch(dtype)
    apart = cross_entropy(copy_of(logits), target, reduction=reduction)
    upstream = torch.randn_like(apart)
    (wanted,) = torch.autograd.grad(apart, logits, upstream)
    computed, seen = copy_of(logits), []
    computed.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    loss = cross_entropy(computed, target, reduction=reduction, inplace=True)
    assert torch.equal(loss, apart)
    loss.backward(upstream)
    assert seen == [computed.data_ptr()] and torch.equal(logits.grad, wanted)


@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_in_place_of_what_somebody_needs(reduction):
    """exp keeps its result: autograd says that it has changed."""
    logits, target = make_batch()
    loss = cross_entropy(logits.exp(), target, reduction=reduction, inplace=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


@pytest.mark.parametrize("options", ({"inplace": True}, {"reduction": "none"}), ids=str)
def test_logits_that_change_too_early(options):
    logits, target = make_batch()
    computed = copy_of(logits)
    loss = cross_entropy(computed, target, **options).sum()
    computed.detach().zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_graph_holds_one_buffer_of_logits():
    """The gradient; the logits are gone once nobody else has them."""
    logits, target = make_batch()
    computed = copy_of(logits)
    gone = weakref.ref(computed)
    loss = cross_entropy(computed, target)
    assert [saved.shape for saved in loss.grad_fn.saved_tensors] == [computed.shape]
    del computed
    gc.collect()
    assert gone() is None


# ---- with the rest of PyTorch -------------------------------------------------------------------


@pytest.mark.parametrize("inplace", (False, True))
@pytest.mark.parametrize("reentrant", (False, True))
def test_checkpoint(reentrant, inplace):
    hidden, target = torch.randn(6, 3, requires_grad=True), torch.randint(0, 5, (6,))
    weight = torch.randn(5, 3, requires_grad=True)

    def head(hidden):
        return cross_entropy(hidden @ weight.t(), target, label_smoothing=0.1, inplace=inplace)

    wanted = torch.autograd.grad(head(hidden), (hidden, weight))
    checkpoint(head, hidden, use_reentrant=reentrant).backward()
    assert torch.equal(hidden.grad, wanted[0]) and torch.equal(weight.grad, wanted[1])


def test_saved_tensors_elsewhere():
    logits, target = make_batch()
    (wanted,) = torch.autograd.grad(cross_entropy(logits, target) * 3, logits)
    with torch.autograd.graph.save_on_cpu():
        loss = cross_entropy(logits, target) * 3
    loss.backward()
    assert torch.equal(logits.grad, wanted)


def test_autocast_casts_nothing():
    """16-bit logits, a float32 loss as with PyTorch, a 16-bit gradient with one rounding."""
    logits, target = make_batch(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = cross_entropy(logits, target)
        theirs = F.cross_entropy(logits, target)
    assert loss.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(loss, theirs)
    loss.backward()
    result = fs.cross_entropy(logits.detach(), target, grad=True)
    assert torch.equal(logits.grad, result.grad) and loss.item() == pytest.approx(result.loss)


def test_loss_scale_of_float16():
    """Elements of the mean's gradient are below float16's least number before they are scaled."""
    rows, classes = 8192, 40
    logits = torch.randn(rows, classes).half().requires_grad_()
    target = torch.randint(0, classes, (rows,))
    with torch.autocast("cpu", dtype=torch.float16):
        loss = cross_entropy(logits, target)
    (loss * 2.0**16).backward()
    wide = logits.detach().float().requires_grad_()
    (F.cross_entropy(wide, target) * 2.0**16).backward()
    error = (logits.grad.float() - wide.grad).abs()
    assert torch.all(error <= 2.0**-11 * wide.grad.abs() + 1e-5 * wide.grad.abs().max())
    assert torch.all(logits.grad != 0)


def test_loss_dtype():
    logits, target = make_batch(torch.bfloat16)
    assert cross_entropy(logits, target).dtype == torch.bfloat16
    loss = cross_entropy(logits, target, loss_dtype=torch.float32)
    wanted = F.cross_entropy(logits.detach().float(), target)
    torch.testing.assert_close(loss.detach(), wanted, rtol=1e-6, atol=0)
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("kind", ("cross_entropy", "linear"))
def test_training_loop(kind):
    """A model that is trained with either loss takes the same way."""
    torch.manual_seed(3)
    inputs, target = torch.randn(8, 16, 6), torch.randint(0, 11, (8, 16))

    def train(own):
        torch.manual_seed(4)
        body = torch.nn.Sequential(torch.nn.Linear(6, 12), torch.nn.GELU())
        head = LinearCrossEntropyLoss(12, 11, bias=True)
        optimizer = torch.optim.AdamW([*body.parameters(), *head.parameters()], lr=1e-2)
        losses = []
        for x, t in zip(inputs, target, strict=True):
            optimizer.zero_grad()
            hidden = body(x)
            if own and kind == "linear":
                loss = head(hidden, t)
            else:
                function = cross_entropy if own else F.cross_entropy
                loss = function(head.linear(hidden), t)
            (loss / 2).backward()
            torch.nn.utils.clip_grad_norm_([*body.parameters(), *head.parameters()], 0.5)
            optimizer.step()
            losses.append(loss.item())
        return torch.tensor(losses), head.linear.weight.detach()

    for own, theirs in zip(train(True), train(False), strict=True):
        torch.testing.assert_close(own, theirs, rtol=1e-5, atol=1e-6)


# ---- the way of a CUDA device, on the CPU -------------------------------------------------------


@pytest.mark.parametrize("on_empty", ("nan", "zero"))
@pytest.mark.parametrize("case", ("plain", "weights", "divisor", "all ignored", "zero weights"))
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_sums_without_a_wait(monkeypatch, reduction, case, on_empty):
    """Losses and gradients by row, with a divisor that stays a tensor: the same numbers."""
    logits, target = make_batch(rows=9)
    weight = token_weight = divisor = None
    if case == "weights":
        weight, token_weight = torch.rand(5), torch.rand(9)
    elif case == "zero weights":
        weight = torch.zeros(5)
    elif case == "all ignored":
        target[:] = -100
    elif case == "divisor" and reduction == "mean":
        divisor = 5.0
    options = {
        "reduction": reduction,
        "token_weight": token_weight,
        "divisor": divisor,
        "on_empty": on_empty,
    }
    results = []
    for waits in (True, False):
        monkeypatch.setattr(values, "_waits", lambda tensor, waits=waits: waits)
        loss = cross_entropy(logits, target, weight, **options)
        upstream = torch.full_like(loss, 1.5)
        results.append((loss.detach(), torch.autograd.grad(loss, logits, upstream)[0]))
    for waited, summed in zip(*results, strict=True):
        torch.testing.assert_close(summed, waited, rtol=1e-6, atol=1e-8, equal_nan=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_linear_sums_without_a_wait(monkeypatch, reduction):
    operands = [torch.randn(shape, requires_grad=True) for shape in ((9, 4), (5, 4), (5,))]
    target, weight = torch.randint(0, 5, (9,)), torch.rand(5)
    results = []
    for waits in (True, False):
        monkeypatch.setattr(values, "_waits", lambda tensor, waits=waits: waits)
        loss = linear_cross_entropy(
            *operands[:2], target, linear_bias=operands[2], weight=weight, reduction=reduction
        )
        upstream = torch.full_like(loss, 1.5)
        results.append((loss.detach(), *torch.autograd.grad(loss, operands, upstream)))
    for waited, summed in zip(*results, strict=True):
        torch.testing.assert_close(summed, waited, rtol=1e-6, atol=1e-7)


def test_bad_targets_do_not_index(monkeypatch):
    """On a device an index out of range would end the context before the core tells of it."""
    logits, target = make_batch()
    target[2] = 1000
    monkeypatch.setattr(values, "_waits", lambda tensor: False)
    with pytest.raises(IndexError, match=r"^target: row 2 holds 1000"):
        cross_entropy(logits, target, torch.rand(5))
