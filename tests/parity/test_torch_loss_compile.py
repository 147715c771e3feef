"""flatstep.torch's losses under torch.compile: operators of whole graphs, without a break."""

import pytest
import torch
from torch.library import opcheck

from flatstep.torch import _loss_ops as ops
from flatstep.torch import _loss_values as values
from flatstep.torch import cross_entropy, linear_cross_entropy

REDUCTIONS = ("mean", "sum", "none")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NUMBERS = (0.1, -100, 0.01, 5.0, None, "nan")


@pytest.fixture(autouse=True)
def fresh():
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def of_logits(hidden, weight, bias, target, **options):
    logits = (hidden * 2) @ weight.t() + bias
    return (cross_entropy(logits, target, **options) * 3).sum()


def of_a_head(hidden, weight, bias, target, **options):
    return (linear_cross_entropy(hidden * 2, weight, target, linear_bias=bias, **options) * 3).sum()


def make_head(dtype, rows=7):
    shapes = ((rows, 4), (5, 4), (5,))
    operands = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    return operands, torch.randint(0, 5, (rows,))


def assert_the_same(compiled, function, operands, target, dtype, **options):
    results = []
    for call in (compiled, function):
        loss = call(*operands, target, **options)
        results.append((loss.detach(), *torch.autograd.grad(loss, operands)))
    tolerance = 1e-6 if dtype == torch.float32 else 2 * torch.finfo(dtype).eps
    for own, wanted in zip(*results, strict=True):
        torch.testing.assert_close(own, wanted, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("function", (of_logits, of_a_head))
def test_whole_graphs(function, reduction, dtype):
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    operands, target = make_head(dtype)
    options = {"reduction": reduction, "z_loss": 0.01, "label_smoothing": 0.1}
    assert_the_same(compiled, function, operands, target, dtype, **options)


@pytest.mark.parametrize("function", (of_logits, of_a_head))
def test_as_part_of_a_graph(function):
    """Other numbers of rows, frozen operands, no gradients, a batch that is not flat."""
    compiled = torch.compile(function, backend="aot_eager")
    for rows in (7, 9, 12):
        operands, target = make_head(torch.float32, rows)
        assert_the_same(compiled, function, operands, target, torch.float32)
    operands[1] = operands[1].detach()
    for call in (compiled, function):
        loss = call(*operands, target)
        (gradient,) = torch.autograd.grad(loss, operands[2])
    with torch.no_grad():
        torch.testing.assert_close(compiled(*operands, target), loss)
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*operands, target), operands[2])[0], gradient
    )


def test_a_dimension_after_the_classes():
    def function(logits, target):
        return cross_entropy(logits, target, reduction="sum", inplace=True)

    logits, target = torch.randn(3, 5, 4, requires_grad=True), torch.randint(0, 5, (3, 4))
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    found, wanted = (
        torch.autograd.grad(call(logits, target), logits)[0]
        for call in (compiled, lambda x, t: cross_entropy(x, t, reduction="sum"))
    )
    torch.testing.assert_close(found, wanted)


def test_autocast():
    def function(hidden, weight, bias, target):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return linear_cross_entropy(hidden, weight, target, linear_bias=bias)

    operands, target = make_head(torch.float32)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    assert_the_same(compiled, function, operands, target, torch.float32)


def test_errors_come_through():
    compiled = torch.compile(of_logits, backend="aot_eager")
    operands, target = make_head(torch.float32)
    with pytest.raises(IndexError, match=r"^target: row 2 holds 5"):
        compiled(*operands, torch.full_like(target, 5).index_fill_(0, torch.tensor([0, 1]), 0))


# ---- what PyTorch itself checks of an operator --------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("reduction", ("mean", "none"))
def test_operator_of_logits(reduction, dtype):
    logits = torch.randn(6, 5).to(dtype).requires_grad_()
    target = torch.randint(0, 5, (6,))
    arguments = (logits, target, torch.rand(5), None, reduction, *NUMBERS)
    opcheck(ops.cross_entropy, (*arguments, True))
    upstream = torch.rand(() if reduction == "mean" else (6,))
    opcheck(ops.cross_entropy_gradient, (upstream, logits.detach(), *arguments[1:]))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16), ids=str)
@pytest.mark.parametrize("wanted", ((True, True, True), (True, False, True)), ids=str)
def test_operator_of_a_head(wanted, dtype):
    operands, target = make_head(dtype)
    operands = [o if want else o.detach() for o, want in zip(operands, wanted, strict=True)]
    options = (target, None, torch.rand(7), "mean", *NUMBERS, dtype, None, *wanted)
    opcheck(ops.linear_cross_entropy, (*operands, *options))
    detached = [operand.detach() for operand in operands]
    opcheck(ops.linear_cross_entropy_gradients, (torch.rand(()), *detached, *options))


def test_options_are_in_the_order_of_the_operators():
    names = list(values.Options._fields)
    schemas = (ops.cross_entropy, ops.linear_cross_entropy)
    for operator, at in zip(schemas, (4, 6), strict=True):
        arguments = [argument.name for argument in operator._opoverload._schema.arguments]
        assert arguments[at : at + len(names)] == names
