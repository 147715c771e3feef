"""flatstep.torch.clip_grad_norm_ beside torch.nn.utils: value, what is written, what is refused."""

import math

import pytest
import torch

from flatstep.torch.clip import clip_grad_norm_

SHAPES = ((3, 5), (), (259,), (0,), (64, 129))


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(3)


def parameters_with(gradients):
    parameters = []
    for gradient in gradients:
        parameters.append(torch.nn.Parameter(torch.zeros_like(gradient)))
        parameters[-1].grad = gradient.clone()
    return parameters


def normals(generator, dtype=torch.float32):
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in SHAPES]


@pytest.mark.parametrize("max_norm", (1e-3, 1.0, 0.0, 1e9, float("inf")))
@pytest.mark.parametrize(
    "dtypes",
    (
        (torch.float32,),
        (torch.float64,),
        (torch.bfloat16,),
        (torch.float16,),
        (torch.complex64,),
        (torch.float32, torch.bfloat16, torch.float64),
    ),
    ids=str,
)
def test_as_pytorch(generator, dtypes, max_norm):
    gradients = [g for dtype in dtypes for g in normals(generator, dtype)]
    own, other = parameters_with(gradients), parameters_with(gradients)
    norm = clip_grad_norm_(own, max_norm)
    wanted = torch.nn.utils.clip_grad_norm_(other, max_norm)
    exact = math.sqrt(sum(g.to(torch.complex128).abs().square().sum().item() for g in gradients))
    assert norm.shape == () and norm.item() == pytest.approx(exact, rel=1e-7)
    assert norm.dtype == (torch.float64 if torch.float64 in dtypes else torch.float32)
    loose = {torch.bfloat16, torch.float16} & set(dtypes)
    assert norm.item() == pytest.approx(wanted.item(), rel=1e-2 if loose else 1e-5)
    for p, o, given in zip(own, other, gradients, strict=True):
        tolerance = {"rtol": 2e-2 if loose else 1e-5, "atol": 1e-4 if loose else 1e-9}
        torch.testing.assert_close(p.grad, o.grad, **tolerance)
        if max_norm > 1e6:
            assert torch.equal(p.grad, given)


def test_one_tensor_generators_and_none(generator):
    (one, *_, last) = parameters_with(normals(generator))
    assert clip_grad_norm_(one, 1.0).item() > 1
    assert one.grad.norm().item() == pytest.approx(1.0, rel=1e-4)
    last.grad = None
    assert clip_grad_norm_((p for p in (one, last)), 0.5).item() == pytest.approx(1.0, rel=1e-4)
    assert clip_grad_norm_([last], 1.0).item() == 0.0
    with pytest.warns(UserWarning, match="empty generator"):
        clip_grad_norm_((p for p in ()), 1.0)


def test_other_orders_of_memory(generator):
    """Transposed, with holes, repeated: all are seen and written."""
    parameters = [torch.nn.Parameter(torch.zeros(4, 6)) for _ in range(3)]
    whole = torch.randn(4, 12, generator=generator)
    parameters[0].grad = torch.randn(6, 4, generator=generator).T
    parameters[1].grad = whole[:, ::2]
    parameters[2].grad = torch.randn(4, 6, generator=generator)
    before = [p.grad.clone() for p in parameters]
    others = whole[:, 1::2].clone()
    norm = clip_grad_norm_(parameters, 1.0)
    assert norm.item() == pytest.approx(torch.cat(before).norm().item(), rel=1e-6)
    for parameter, given in zip(parameters, before, strict=True):
        torch.testing.assert_close(parameter.grad, given / norm, rtol=1e-5, atol=1e-7)
    assert torch.equal(whole[:, 1::2], others)


def test_sums_in_float64():
    """Where the squares leave float32, and where PyTorch's sum of many loses digits."""
    (large,) = parameters_with([torch.full((100,), 1e25)])
    assert clip_grad_norm_(large, 1.0).item() == pytest.approx(1e26)
    assert large.grad.norm().item() == pytest.approx(1.0)


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_gradients_that_are_not_finite(generator, value):
    parameters = parameters_with(normals(generator))
    parameters[2].grad[3] = value
    kept = [p.grad.clone() for p in parameters]
    with pytest.raises(RuntimeError, match=r"^parameters: the norm of the gradients is not finite"):
        clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)
    assert not math.isfinite(clip_grad_norm_(parameters, 1.0))
    for parameter, before in zip(parameters, kept, strict=True):
        assert torch.equal(parameter.grad.nan_to_num(), before.nan_to_num())


def test_autograd_sees_the_scaling(generator):
    (parameter,) = parameters_with([torch.randn(300, generator=generator)])
    factor = torch.ones((), requires_grad=True)
    for max_norm, written in ((1e9, False), (0.1, True)):
        product = factor * parameter.grad  # kept for the backward pass
        clip_grad_norm_(parameter, max_norm)
        if written:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                product.sum().backward()
        else:
            product.sum().backward()


def test_other_norms_are_those_of_pytorch(generator):
    gradients = normals(generator)
    for kind in (1.0, 3.0, float("inf")):
        own = [p for p in parameters_with(gradients) if p.grad.numel()]
        other = [p for p in parameters_with(gradients) if p.grad.numel()]
        norm = clip_grad_norm_(own, 0.5, kind)
        assert torch.equal(norm, torch.nn.utils.clip_grad_norm_(other, 0.5, kind))
        assert all(torch.equal(p.grad, o.grad) for p, o in zip(own, other, strict=True))


def test_refused(generator):
    parameters = parameters_with(normals(generator))
    for value in (-1.0, float("nan")):
        with pytest.raises(ValueError, match=r"^max_norm: got .*, expected a number >= 0"):
            clip_grad_norm_(parameters, value)
    with pytest.raises(TypeError, match=r"^max_norm: got str"):
        clip_grad_norm_(parameters, "1")
    parameters[0].grad = torch.ones(3, 5).to_sparse()
    with pytest.raises(TypeError, match=r"^parameters: got a gradient of torch.sparse_coo"):
        clip_grad_norm_(parameters, 1.0)
