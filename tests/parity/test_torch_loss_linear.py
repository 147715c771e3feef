"""flatstep.torch.linear_cross_entropy beside torch.nn.functional's."""

import pytest
import torch
import torch.nn.functional as F

import flatstep as fs
from flatstep.torch import LinearCrossEntropyLoss, cross_entropy, linear_cross_entropy

ROWS, WIDTH, CLASSES = 37, 24, 301
REDUCTIONS = ("mean", "sum", "none")


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def make_head(dtype=torch.float32, bias=True, rows=(ROWS,)):
    """input, linear_weight, linear_bias, all leaves, and the target."""
    shapes = ((*rows, WIDTH), (CLASSES, WIDTH), (CLASSES,))
    operands = [(torch.randn(shape) * 0.5).to(dtype).requires_grad_() for shape in shapes]
    target = torch.randint(0, CLASSES, rows)
    target.view(-1)[::7] = -100
    return operands if bias else [*operands[:2], None], target


def run(function, operands, target, upstream, **options):
    """The loss, and the gradients of those operands that need one."""
    hidden, weight, bias = operands
    loss = function(hidden, weight, target, linear_bias=bias, **options)
    leaves = [leaf for leaf in operands if leaf is not None and leaf.requires_grad]
    return loss.detach(), torch.autograd.grad(loss, leaves, upstream.to(loss.dtype))


def wide(operands):
    return [None if o is None else o.detach().double().requires_grad_() for o in operands]


def bound(dtype, wanted):
    """Sums of products in float32; 16-bit gradients have a rounding, and a second one for the
    upstream gradient of those of the hidden state."""
    relative = torch.finfo(dtype).eps if dtype.itemsize == 2 else 0.0
    return relative * wanted.abs() + 1e-5 * wanted.abs().max() + 2.0**-25 * (relative > 0)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("bias", (False, True))
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", ({}, {"label_smoothing": 0.1, "weight": True}), ids=str)
@pytest.mark.parametrize("chunks", ("one", "many"))
def test_options_of_torch(dtype, bias, reduction, options, chunks):
    operands, target = make_head(dtype, bias)
    weight = torch.rand(CLASSES).to(dtype)
    options = {"reduction": reduction} | options
    own, theirs = dict(options), dict(options)
    if "weight" in options:
        own["weight"], theirs["weight"] = weight, weight.double()
    upstream = torch.randn(ROWS if reduction == "none" else (), dtype=torch.float64)
    upstream = upstream.to(dtype).double()
    space = 120_000 if chunks == "many" else None
    loss, gradients = run(
        linear_cross_entropy, operands, target, upstream, workspace_bytes=space, **own
    )
    wanted, expected = run(F.linear_cross_entropy, wide(operands), target, upstream, **theirs)
    assert loss.dtype == dtype and loss.shape == wanted.shape
    assert torch.all((loss.double() - wanted).abs() <= bound(dtype, wanted) + 1e-5)
    for gradient, exact, operand in zip(gradients, expected, operands, strict=False):
        assert gradient.dtype == operand.dtype and gradient.shape == operand.shape
        assert torch.all((gradient.double() - exact).abs() <= bound(dtype, exact))
    with torch.no_grad():
        assert torch.equal(
            linear_cross_entropy(
                *operands[:2], target, linear_bias=operands[2], workspace_bytes=space, **own
            ),
            loss,
        )


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("frozen", ({0}, {1}, {2}, {1, 2}, {0, 1}), ids=str)
def test_only_what_is_needed(frozen, reduction):
    """Gradients that nobody needs are not computed; the others keep their bits."""
    operands, target = make_head()
    upstream = torch.randn(ROWS if reduction == "none" else ())
    _, every = run(linear_cross_entropy, operands, target, upstream, reduction=reduction)
    for index in frozen:
        operands[index] = operands[index].detach()
    loss = linear_cross_entropy(*operands[:2], target, linear_bias=operands[2], reduction=reduction)
    if reduction != "none":
        saved = [tensor is not None for tensor in loss.grad_fn.saved_tensors]
        assert saved == [index not in frozen for index in range(3)]
    _, some = run(linear_cross_entropy, operands, target, upstream, reduction=reduction)
    left = [every[index] for index in range(3) if index not in frozen]
    assert len(some) == len(left) and all(map(torch.equal, some, left))


def test_names_of_gradients():
    """What that rests on in flatstep itself."""
    operands, target = make_head()
    hidden, weight, bias = (operand.detach() for operand in operands)
    every = fs.linear_cross_entropy(hidden, weight, target, bias=bias)
    one = fs.linear_cross_entropy(hidden, weight, target, bias=bias, grad=["weight"])
    assert one.grad_hidden is None and one.grad_bias is None
    assert torch.equal(one.grad_weight, every.grad_weight)
    with pytest.raises(ValueError, match=r"^grad: got 'all', expected one of 'hidden'"):
        fs.linear_cross_entropy(hidden, weight, target, grad=["all"])
    with pytest.raises(ValueError, match=r"^grad_hidden: got an array, expected None with grad="):
        fs.linear_cross_entropy(hidden, weight, target, grad=["bias"], grad_hidden=hidden.clone())


@pytest.mark.parametrize("rows", ((), (3, 5), (2, 3, 4)), ids=str)
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_rows_of_any_shape(rows, reduction):
    operands, target = make_head(rows=rows)
    if not rows:
        target = torch.tensor(4)
    upstream = torch.randn(rows if reduction == "none" else ())
    loss, gradients = run(linear_cross_entropy, operands, target, upstream, reduction=reduction)
    flat = wide(operands)
    logits = F.linear(*flat).reshape(-1, CLASSES)
    wanted = F.cross_entropy(logits, target.reshape(-1), reduction=reduction)
    wanted = wanted.view(upstream.shape)
    torch.testing.assert_close(loss.double(), wanted.detach(), rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad(wanted, flat, upstream.double())
    for gradient, exact in zip(gradients, expected, strict=True):
        assert torch.all((gradient.double() - exact).abs() <= bound(torch.float32, exact))


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("options", ({}, {"z_loss": 0.02, "softcap": 4.0, "divisor": 3.0}), ids=str)
def test_options_of_flatstep(options, reduction):
    operands, target = make_head()
    tokens = torch.rand(ROWS)
    options = {k: v for k, v in options.items() if k != "divisor" or reduction == "mean"}
    options |= {"reduction": reduction, "token_weight": tokens, "label_smoothing": 0.2}
    upstream = torch.randn(ROWS if reduction == "none" else ())
    loss, gradients = run(linear_cross_entropy, operands, target, upstream, **options)
    flat = wide(operands)
    wanted = cross_entropy(F.linear(*flat), target, **options)
    torch.testing.assert_close(loss.double(), wanted.detach(), rtol=1e-5, atol=1e-6)
    expected = torch.autograd.grad(wanted, flat, upstream.double())
    for gradient, exact in zip(gradients, expected, strict=True):
        assert torch.all((gradient.double() - exact).abs() <= bound(torch.float32, exact))


# ---- float64 and more dimensions: through logits ------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("rows", ((), (4,), (2, 3)), ids=str)
def test_gradcheck(rows, reduction):
    shapes = ((*rows, 3), (5, 3), (5,))
    operands = [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]
    target = torch.randint(0, 5, rows)

    def loss(hidden, weight, bias):
        return linear_cross_entropy(
            hidden, weight, target, linear_bias=bias, reduction=reduction, label_smoothing=0.1
        )

    assert loss(*operands).shape == (rows if reduction == "none" else ())
    assert torch.autograd.gradcheck(loss, operands)


@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_more_dimensions(reduction):
    weight, bias = torch.randn(5, 4, 3, 6, requires_grad=True), torch.randn(5, 4, 3)
    hidden, target = torch.randn(7, 6), torch.randint(0, 5, (7, 4, 3))
    found, wanted = (
        function(hidden, weight, target, linear_bias=bias, reduction=reduction)
        for function in (linear_cross_entropy, F.linear_cross_entropy)
    )
    torch.testing.assert_close(found, wanted)
    upstream = torch.randn_like(found)
    gradients = [torch.autograd.grad(loss, weight, upstream)[0] for loss in (found, wanted)]
    torch.testing.assert_close(*gradients)


# ---- autocast -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_autocast(dtype):
    """Products in its type; a float32 weight's gradient is not rounded to it on the way."""
    operands, target = make_head()
    with torch.autocast("cpu", dtype=dtype):
        loss = linear_cross_entropy(*operands[:2], target, linear_bias=operands[2])
    assert loss.dtype == torch.float32
    scale = 1024.0
    gradients = torch.autograd.grad(loss, operands, torch.tensor(scale))
    rounded = [operand.detach().to(dtype) for operand in operands]
    result = fs.linear_cross_entropy(
        rounded[0], rounded[1], target, bias=rounded[2], grad_output=scale
    )
    assert loss.item() == pytest.approx(result.loss, rel=1e-6)
    assert [gradient.dtype for gradient in gradients] == [torch.float32] * 3
    torch.testing.assert_close(gradients[0], result.grad_hidden.float(), rtol=1e-2, atol=1e-4)
    for own, exact in zip(gradients[1:], (result.grad_weight, result.grad_bias), strict=True):
        assert torch.all((own - exact).abs() <= 1e-5 * exact.abs().max())


# ---- the module ---------------------------------------------------------------------------------


@pytest.mark.parametrize("out_features", ((), (4, 3)), ids=str)
def test_module(out_features):
    options = {"bias": True, "label_smoothing": 0.1, "weight": torch.rand(5)}
    own, theirs = (
        kind(6, 5, out_features=out_features, **options)
        for kind in (LinearCrossEntropyLoss, torch.nn.LinearCrossEntropyLoss)
    )
    own.load_state_dict(theirs.state_dict())
    hidden, target = torch.randn(7, 6), torch.randint(0, 5, (7, *out_features))
    torch.testing.assert_close(own(hidden, target), theirs(hidden, target))
    assert "in_features=6, num_classes=5" in repr(own)
    own(hidden, target).backward()
    assert own.linear.weight.grad.shape == own.linear.weight.shape
    if not out_features:
        tokens = torch.rand(7)
        found = LinearCrossEntropyLoss(6, 5, reduction="sum", z_loss=0.1, softcap=3.0)
        weight = found.linear.weight
        torch.testing.assert_close(
            found(hidden, target, tokens),
            cross_entropy(
                hidden @ weight.t(),
                target,
                reduction="sum",
                z_loss=0.1,
                softcap=3.0,
                token_weight=tokens,
            ),
        )


# ---- errors -------------------------------------------------------------------------------------

INPUT, WEIGHT, TARGET = torch.zeros(4, 3), torch.zeros(5, 3), torch.tensor([0, 1, 2, 3])
WRONG = (
    ((INPUT, WEIGHT, TARGET + 2), {}, IndexError, r"^target: row 3 holds 5"),
    ((INPUT, WEIGHT, torch.rand(4, 5)), {}, TypeError, r"^target: got float32, expected class"),
    ((INPUT, WEIGHT, TARGET[:2]), {}, ValueError, r"^target: got shape \[2\], expected \[4\]$"),
    ((INPUT, WEIGHT[:, :2], TARGET), {}, ValueError, r"^linear_weight: got 2 columns, expected 3"),
    ((INPUT, WEIGHT[0], TARGET), {}, ValueError, r"^linear_weight: got shape \[3\]"),
    ((INPUT, WEIGHT.bfloat16(), TARGET), {}, TypeError, r"^linear_weight: got bfloat16"),
    (
        (INPUT.double(), WEIGHT, TARGET),
        {},
        TypeError,
        r"^linear_weight: got float32, expected float",
    ),
    ((INPUT.long(), WEIGHT, TARGET), {}, TypeError, r"^input: got int64"),
    ((INPUT, WEIGHT, TARGET), {"linear_bias": torch.ones(3)}, ValueError, r"^linear_bias: got sha"),
    ((INPUT, WEIGHT, TARGET), {"weight": torch.ones(3)}, ValueError, r"^weight: got shape \[3\]"),
    ((INPUT, WEIGHT, TARGET), {"workspace_bytes": 10}, ValueError, r"^workspace_bytes: got 10"),
    ((INPUT[0], WEIGHT.view(5, 1, 3), TARGET[:1]), {}, ValueError, r"^input: got shape \[3\], exp"),
)


@pytest.mark.parametrize(("arguments", "options", "kind", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments(arguments, options, kind, message):
    for gradient in (False, True):
        leaf = arguments[0]
        if gradient and leaf.is_floating_point():
            leaf = leaf.clone().requires_grad_()
        with pytest.raises(kind, match=message) as caught:
            linear_cross_entropy(leaf, *arguments[1:], **options)
        assert "\n" not in str(caught.value)
