"""flatstep.torch.cross_entropy beside torch.nn.functional's: values, gradients, options, errors."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from flatstep.torch import CrossEntropyLoss, cross_entropy

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# One logit row, rows, and a dimension or two after the classes.
SHAPES = ((7,), (12, 7), (3, 7, 5), (2, 7, 3, 4), (33, 129))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def row_shape(shape):
    return shape[:1] + shape[2:] if len(shape) > 1 else ()


def draw(shape, dtype, ignore_index=-100):
    """Logits and targets, a tenth of them ignored, but never all."""
    logits = (torch.randn(shape, dtype=torch.float64) * 3).to(dtype)
    classes = shape[1] if len(shape) > 1 else shape[0]
    target = torch.randint(0, classes, row_shape(shape))
    if target.dim():
        target[torch.rand(target.shape) < 0.1] = ignore_index
        target.view(-1)[0] = 1
    return logits, target


def expected(logits, target, upstream, **options):
    """Loss and gradient of PyTorch's in float64, on the same numbers."""
    leaf = logits.double().requires_grad_()
    weight = options.pop("weight", None)
    loss = F.cross_entropy(leaf, target, None if weight is None else weight.double(), **options)
    return loss.detach(), torch.autograd.grad(loss, leaf, upstream.double())[0]


def spacing(dtype):
    return torch.finfo(dtype).eps


def assert_loss(loss, wanted, dtype):
    """A few roundings of the sum; one of the result."""
    accurate = 1e-12 if dtype == torch.float64 else 2e-6
    bound = (accurate + (spacing(dtype) if dtype.itemsize == 2 else 0)) * wanted.abs() + accurate
    assert torch.all((loss.double() - wanted).abs() <= bound)


def assert_gradient(gradient, wanted, dtype):
    """Float32's own error is a share of the largest element; 16-bit results have a rounding of the
    saved gradient and one of its product on top; the least float16 numbers are spaced by 2^-24."""
    largest = wanted.abs().max()
    bound = (1e-13 if dtype == torch.float64 else 1e-6) * largest
    if dtype.itemsize == 2:
        bound = bound + spacing(dtype) * wanted.abs()
    if dtype == torch.float16:
        bound = bound + 2.0**-25
    assert gradient.dtype == dtype
    assert torch.all((gradient.double() - wanted).abs() <= bound)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
@pytest.mark.parametrize("label_smoothing", (0.0, 0.2))
@pytest.mark.parametrize("ignore_index", (-100, 2))
@pytest.mark.parametrize("weighted", (False, True))
def test_options_of_torch(dtype, shape, reduction, label_smoothing, ignore_index, weighted):
    logits, target = draw(shape, dtype, ignore_index)
    classes = shape[1] if len(shape) > 1 else shape[0]
    options = {
        "reduction": reduction,
        "label_smoothing": label_smoothing,
        "ignore_index": ignore_index,
        "weight": torch.rand(classes).to(dtype) + 0.1 if weighted else None,
    }
    leaf = logits.clone().requires_grad_()
    loss = cross_entropy(leaf, target, **options)
    assert loss.dtype == dtype
    assert loss.shape == (row_shape(shape) if reduction == "none" else ())
    upstream = torch.randn_like(loss)
    loss.backward(upstream)
    wanted, gradient = expected(logits, target, upstream, **options)
    assert_loss(loss.detach(), wanted, dtype)
    assert_gradient(leaf.grad, gradient, dtype)
    with torch.no_grad():  # the loss alone: the same bits
        assert torch.equal(cross_entropy(leaf, target, **options), loss)


def compose(logits, target, weight, token_weight, options):
    """flatstep's formula of logits [N, C] from operations of PyTorch."""
    cap, smoothing = options["softcap"], options["label_smoothing"]
    x = logits if cap is None else cap * torch.tanh(logits / cap)
    lse = x.logsumexp(1)
    costs = lse[:, None] - x
    valid = target != -100
    own = torch.where(valid, target, 0)
    chosen = weight[own]
    rows = (1 - smoothing) * chosen * costs.gather(1, own[:, None])[:, 0]
    rows = rows + smoothing / x.shape[1] * (costs * weight).sum(1) + options["z_loss"] * lse**2
    rows = torch.where(valid, token_weight * rows, 0)
    if options["reduction"] == "none":
        return rows
    if options["reduction"] == "sum":
        return rows.sum()
    total = torch.where(valid, token_weight * chosen, 0).sum()
    return rows.sum() / (total if options["divisor"] is None else options["divisor"])


@pytest.mark.parametrize("dtype", (torch.float64, torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("case", range(24))
def test_options_of_flatstep(case, dtype):
    """Random ones together; float64 and float32 scale a saved gradient, float16 and "none" compute
    it with the upstream gradient inside."""
    rng = np.random.default_rng(case)
    logits, target = draw((19, 23), dtype)
    weight, token_weight = torch.rand(23).to(dtype), torch.rand(19).to(dtype)
    reduction = ("mean", "sum", "none")[case % 3]
    options = {
        "reduction": reduction,
        "label_smoothing": float(rng.choice((0, 0.3))),
        "z_loss": float(rng.choice((0, 0.01))),
        "softcap": rng.choice((None, 4.5)),
        "divisor": rng.choice((None, 7.5)) if reduction == "mean" else None,
    }
    leaf = logits.clone().requires_grad_()
    loss = cross_entropy(
        leaf, target, weight, token_weight=token_weight, loss_dtype=torch.float64, **options
    )
    upstream = torch.randn_like(loss)
    loss.backward(upstream)
    wide = logits.double().requires_grad_()
    wanted = compose(wide, target, weight.double(), token_weight.double(), options)
    wanted.backward(upstream)
    assert_loss(loss.detach(), wanted.detach(), torch.promote_types(dtype, torch.float32))
    assert_gradient(leaf.grad, wide.grad, dtype)


@pytest.mark.parametrize("reduction", ("mean", "none"))
@pytest.mark.parametrize("layout", ("transposed", "wide", "expanded", "every second", "3-D slice"))
def test_layouts(layout, reduction):
    """Logits whose classes are not contiguous or whose rows overlap are copied; wide rows not."""
    base = torch.randn(12, 24, dtype=torch.float64)
    logits = {
        "transposed": lambda: torch.randn(9, 12, dtype=torch.float64).t(),
        "wide": lambda: base[:, 3:12],
        "expanded": lambda: torch.randn(1, 9, dtype=torch.float64).expand(12, 9),
        "every second": lambda: base[:, :18:2],
        "3-D slice": lambda: torch.randn(4, 5, 9, dtype=torch.float64)[:, 1:4].reshape(12, 9),
    }[layout]()
    target = torch.randint(0, 9, (12,))
    leaf = logits.detach().requires_grad_()
    assert leaf.stride() == logits.stride()
    loss = cross_entropy(leaf, target, reduction=reduction)
    upstream = torch.randn_like(loss)
    (gradient,) = torch.autograd.grad(loss, leaf, upstream)
    wanted, wanted_gradient = expected(logits, target, upstream, reduction=reduction)
    assert_loss(loss.detach(), wanted, torch.float64)
    assert_gradient(gradient, wanted_gradient, torch.float64)


@pytest.mark.parametrize("dtype", (torch.uint8, torch.int8, torch.int32))
def test_integer_targets(dtype):
    logits, target = torch.randn(6, 5), torch.randint(0, 5, (6,))
    assert torch.equal(cross_entropy(logits, target.to(dtype)), cross_entropy(logits, target))


def test_a_batch_of_int_slices():
    """Targets need not be contiguous: the shifted ones of a language model."""
    tokens = torch.randint(0, 5, (4, 8))
    logits = torch.randn(4, 7, 5)
    target = tokens[:, 1:]
    found = cross_entropy(logits.transpose(1, 2), target)
    torch.testing.assert_close(found, F.cross_entropy(logits.transpose(1, 2), target))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gradient_of_some_megabytes(dtype):
    """Its memory is not PyTorch's; the tensor and its bits are as those of a small one."""
    logits, target = draw((3, 1 << 20), dtype)
    leaf = logits.clone().requires_grad_()
    cross_entropy(leaf, target, reduction="sum").backward()
    assert leaf.grad.shape == leaf.shape and leaf.grad.dtype == dtype
    assert leaf.grad.is_contiguous() and leaf.grad.data_ptr() % 16 == 0
    for row in range(3):
        alone = logits[row : row + 1].clone().requires_grad_()
        cross_entropy(alone, target[row : row + 1], reduction="sum").backward()
        assert torch.equal(leaf.grad[row], alone.grad[0])


def test_the_logits_and_targets_keep_their_bits():
    logits, target = draw((12, 7), torch.float32)
    before = logits.clone(), target.clone()
    cross_entropy(logits.requires_grad_(), target).backward()
    assert torch.equal(logits.detach(), before[0]) and torch.equal(target, before[1])


# ---- nothing to divide by -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
def test_all_ignored(dtype):
    logits = torch.randn(4, 5).to(dtype).requires_grad_()
    target = torch.full((4,), -100)
    loss = cross_entropy(logits, target)
    loss.backward()
    assert torch.isnan(loss) and torch.isnan(F.cross_entropy(logits.float(), target))
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert cross_entropy(logits, target, on_empty="zero") == 0
    assert cross_entropy(logits, target, reduction="sum") == 0


def test_no_rows():
    logits = torch.randn(0, 5, requires_grad=True)
    target = torch.zeros(0, dtype=torch.long)
    loss = cross_entropy(logits, target)
    loss.backward()
    assert torch.isnan(loss) and logits.grad.shape == (0, 5)
    assert cross_entropy(logits, target, reduction="sum") == 0
    assert cross_entropy(logits, target, reduction="none").shape == (0,)


def test_weights_that_sum_to_zero():
    logits = torch.randn(3, 5, requires_grad=True)
    weight = torch.tensor([1.0, 0, 0, 0, 0])
    for dtype in (torch.float32, torch.float16):
        given = logits.to(dtype)
        loss = cross_entropy(given, torch.tensor([1, 2, -100]), weight)
        (gradient,) = torch.autograd.grad(loss, given)
        assert torch.isnan(loss) and not gradient.any()


# ---- the module ---------------------------------------------------------------------------------


def test_a_loss_beyond_the_range_of_float32():
    logits = torch.tensor([[3e38, 0.0]] * 2).requires_grad_()
    target = torch.tensor([1, 1])
    loss = cross_entropy(logits, target, reduction="sum")
    loss.backward()
    assert loss.item() == math.inf and loss.dtype == torch.float32
    assert logits.grad.tolist() == [[1.0, -1.0]] * 2
    largest = cross_entropy(logits[:1], target[:1])
    assert largest.item() == logits[0, 0].item()


def test_the_loss_is_where_the_logits_are():
    """Not on the default device of new tensors."""
    logits, target = torch.randn(4, 7), torch.tensor([1, 2, 3, 4])
    with torch.device("meta"):
        loss = cross_entropy(logits, target)
    assert loss.item() == cross_entropy(logits, target).item()


def test_module():
    weight = torch.rand(5)
    options = {"label_smoothing": 0.1, "ignore_index": 3, "reduction": "sum"}
    own, theirs = (
        kind(weight, **options) for kind in (CrossEntropyLoss, torch.nn.CrossEntropyLoss)
    )
    logits, target = torch.randn(6, 5), torch.tensor([0, 1, 2, 3, 4, 0])
    torch.testing.assert_close(own(logits, target), theirs(logits, target))
    assert own.state_dict().keys() == theirs.state_dict().keys() == {"weight"}
    assert own.double().weight.dtype == torch.float64
    assert isinstance(own, torch.nn.CrossEntropyLoss)
    tokens = torch.rand(6)
    further = CrossEntropyLoss(z_loss=0.01, softcap=5.0, divisor=3.0, on_empty="zero")
    assert torch.equal(
        further(logits, target, tokens),
        cross_entropy(logits, target, z_loss=0.01, softcap=5.0, divisor=3.0, token_weight=tokens),
    )
    assert further(logits, torch.full((6,), -100)) == 0


def test_old_names_of_the_reduction():
    logits, target = torch.randn(6, 5), torch.randint(0, 5, (6,))
    with pytest.warns(UserWarning, match="size_average"):
        found = cross_entropy(logits, target, size_average=False)
    assert torch.equal(found, cross_entropy(logits, target, reduction="sum"))
    with pytest.warns(UserWarning, match="size_average"):
        module = CrossEntropyLoss(reduce=False)
    assert module.reduction == "none"


# ---- errors -------------------------------------------------------------------------------------

LOGITS, TARGET = torch.zeros(4, 5), torch.tensor([0, 1, 2, 3])
WRONG = (
    ((LOGITS, TARGET + 2), {}, IndexError, r"^target: row 3 holds 5, expected a class from 0 to 4"),
    ((LOGITS, torch.rand(4, 5)), {}, TypeError, "^target: got float32, expected class indices"),
    ((LOGITS, TARGET.bool()), {}, TypeError, "^target: got bool"),
    ((LOGITS, TARGET[:3]), {}, ValueError, r"^target: got shape \[3\], expected \[4\]$"),
    ((LOGITS, TARGET.numpy()), {}, TypeError, "^target: got ndarray"),
    ((LOGITS.numpy(), TARGET), {}, TypeError, "^input: got ndarray"),
    ((LOGITS.long(), TARGET), {}, TypeError, "^input: got int64"),
    ((LOGITS[0, 0], TARGET[0]), {}, ValueError, "^input: got a tensor without dimensions"),
    ((LOGITS[:, :0], TARGET), {}, ValueError, "^input: got 0 classes"),
    ((LOGITS, TARGET, torch.ones(4)), {}, ValueError, r"^weight: got shape \[4\], expected \[5\]$"),
    ((LOGITS, TARGET, -torch.ones(5)), {}, ValueError, "^weight: element 0 holds -1"),
    ((LOGITS, TARGET), {"weight": torch.ones(5, requires_grad=True)}, ValueError, "^weight: got a"),
    ((LOGITS, TARGET), {"token_weight": torch.ones(5)}, ValueError, r"^token_weight: got shape"),
    ((LOGITS, TARGET), {"reduction": "max"}, ValueError, "^reduction: got 'max'"),
    ((LOGITS, TARGET), {"label_smoothing": 1.0}, ValueError, "^label_smoothing: got 1"),
    ((LOGITS, TARGET), {"on_empty": "inf"}, ValueError, "^on_empty: got 'inf'"),
    ((LOGITS, TARGET), {"softcap": 0.0}, ValueError, "^softcap: got 0"),
    ((LOGITS, TARGET), {"divisor": 0.0}, ValueError, "^divisor: got 0.0"),
    ((LOGITS, TARGET), {"divisor": 2.0, "reduction": "sum"}, ValueError, "^divisor: got a value"),
    ((LOGITS, TARGET), {"loss_dtype": torch.int64}, TypeError, "^loss_dtype: got torch.int64"),
)


@pytest.mark.parametrize(("arguments", "options", "kind", "message"), WRONG, ids=range(len(WRONG)))
def test_wrong_arguments(arguments, options, kind, message):
    with pytest.raises(kind, match=message) as caught:
        cross_entropy(*arguments, **options)
    assert "\n" not in str(caught.value)


def test_wrong_arguments_with_a_gradient():
    leaf = LOGITS.clone().requires_grad_()
    with pytest.raises(IndexError, match=r"^target: row 3 holds 5"):
        cross_entropy(leaf, TARGET + 2)
    for given in (leaf, leaf[:], leaf.view(2, 10).view(4, 5)):
        with pytest.raises(ValueError, match=r"^inplace: got True for a leaf"):
            cross_entropy(given, TARGET, inplace=True)
