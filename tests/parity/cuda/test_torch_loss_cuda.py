"""flatstep.torch's losses on a CUDA device: nothing waits, and the numbers are those of the CPU."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import flatstep as fs
from flatstep.torch import _scale, cross_entropy, linear_cross_entropy

ROWS, CLASSES, WIDTH = 64, 1000, 128
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CYCLES = 50_000_000  # some hundredths of a second


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_batch(dtype=torch.float32):
    logits = (torch.randn(ROWS, CLASSES) * 3).to(dtype).cuda().requires_grad_()
    target = torch.randint(0, CLASSES, (ROWS,))
    target[::7] = -100
    return logits, target.cuda()


def close(own, wanted, dtype):
    """A rounding of the saved gradient, one of the upstream gradient and one of the product."""
    relative = 2 * torch.finfo(dtype).eps if dtype.itemsize == 2 else 1e-5
    bound = relative * wanted.abs() + 1e-5 * wanted.abs().max() + 2.0**-25
    assert torch.all((own.double() - wanted).abs() <= bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("inplace", (False, True))
def test_losses_and_gradients(dtype, reduction, inplace):
    logits, target = make_batch(dtype)
    weight = torch.rand(CLASSES, device="cuda")
    options = {"reduction": reduction, "label_smoothing": 0.1}
    wide = logits.detach().double().requires_grad_()
    wanted = F.cross_entropy(wide, target, weight.double(), **options)
    loss = cross_entropy(
        logits * 1, target, weight, inplace=inplace, loss_dtype=torch.float32, **options
    )
    assert loss.device == logits.device
    close(loss.detach(), wanted.detach(), torch.float32)
    for upstream in (torch.ones_like(loss), torch.randn_like(loss)):
        (own,) = torch.autograd.grad(loss, logits, upstream, retain_graph=True)
        (exact,) = torch.autograd.grad(wanted, wide, upstream.double(), retain_graph=True)
        close(own, exact, dtype)
    (last,) = torch.autograd.grad(loss, logits, upstream)
    assert torch.equal(last, own)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_linear(dtype, reduction):
    operands = [
        (torch.randn(shape) * 0.2).to(dtype).cuda().requires_grad_()
        for shape in ((ROWS, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    ]
    target = torch.randint(0, CLASSES, (ROWS,), device="cuda")
    loss = linear_cross_entropy(*operands[:2], target, linear_bias=operands[2], reduction=reduction)
    upstream = torch.rand_like(loss) * 1000
    own = torch.autograd.grad(loss, operands, upstream)
    wide = [operand.detach().double().requires_grad_() for operand in operands]
    wanted = F.cross_entropy(F.linear(*wide), target, reduction=reduction)
    exact = torch.autograd.grad(wanted, wide, upstream.double())
    for gradient, expected in zip(own, exact, strict=True):
        error = (gradient.double() - expected).abs().max() / expected.abs().max()
        assert error < {torch.float32: 1e-2, torch.bfloat16: 2e-2, torch.float16: 3e-3}[dtype]


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
def test_nothing_waits(dtype):
    """Forward and backward are given to a stream that still sleeps."""
    logits, target = make_batch(dtype)
    weight, tokens = torch.rand(CLASSES, device="cuda"), torch.rand(ROWS, device="cuda")

    def step():
        loss = cross_entropy(logits, target, weight, token_weight=tokens)
        return torch.autograd.grad(loss, logits)[0]

    wanted = step()  # the first launch of a kernel waits for the device, which has to load it
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(CYCLES)
        gradient = step()
        assert not stream.query()
    torch.cuda.synchronize()
    assert torch.equal(gradient, wanted)


def test_nothing_to_divide_by():
    logits, target = make_batch()
    loss = cross_entropy(logits, torch.full_like(target, -100))
    loss.backward()
    assert torch.isnan(loss) and not logits.grad.any()


def test_bad_targets():
    """Told by the next call that waits, also with weights to look up; the context lives on."""
    logits, target = make_batch()
    target[2] = CLASSES
    cross_entropy(logits, target, torch.rand(CLASSES, device="cuda")).backward()
    with pytest.raises(IndexError, match=r"^targets: row 2 holds 1000"):
        fs.synchronize()
    target[2] = 0
    assert torch.isfinite(cross_entropy(logits, target))


def test_autocast_and_loss_scale():
    """A float32 head under autocast, and gradients of float16 that need their scale."""
    hidden = torch.randn(4096, WIDTH, device="cuda", requires_grad=True)
    weight = torch.randn(CLASSES, WIDTH, device="cuda", requires_grad=True)
    target = torch.randint(0, CLASSES, (4096,), device="cuda")
    with torch.autocast("cuda", dtype=torch.float16):
        loss = linear_cross_entropy(hidden, weight, target)
    (loss * 65536).backward()
    wide = hidden.detach().clone().requires_grad_()
    (F.cross_entropy(wide @ weight.detach().t(), target) * 65536).backward()
    assert loss.dtype == hidden.grad.dtype == weight.grad.dtype == torch.float32
    error = (hidden.grad - wide.grad).abs().max() / wide.grad.abs().max()
    assert error < 1e-2


def test_compiled():
    logits, target = make_batch()

    def function(logits, target):
        return cross_entropy(logits * 2, target, label_smoothing=0.1) * 3

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    own, wanted = (
        torch.autograd.grad(call(logits, target), logits)[0] for call in (compiled, function)
    )
    torch.testing.assert_close(own, wanted, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("size", (0, 1, 4096, 10_001))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_scaling_kernel(dtype, size):
    """One rounding of the product in float32; a factor of 1 keeps every bit, a NaN too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Triton's own
        kernel = _scale._kernel()
        numbers = torch.randn(size).to(dtype).cuda()
        for factor in (1.0, 0.3, 65536.0):
            scaled = numbers.clone()
            kernel(scaled, torch.tensor(factor, device="cuda"))
            assert torch.equal(scaled, (numbers.float() * factor).to(dtype))
        numbers.fill_(float("nan"))
        kernel(numbers, torch.ones((), device="cuda"))
        assert numbers.isnan().all()


def test_scaling_in_place():
    logits, target = make_batch()
    (wanted,) = torch.autograd.grad(cross_entropy(logits, target), logits)
    seen, computed = [], logits * 1
    computed.register_hook(lambda gradient: seen.append(gradient.data_ptr()))
    loss = cross_entropy(computed, target)
    saved = loss.grad_fn.saved_tensors[0].data_ptr()
    (loss * 4).backward()
    assert seen == [saved]
    assert torch.equal(logits.grad, wanted * 4)
