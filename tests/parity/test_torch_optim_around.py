"""What runs around a step of flatstep.torch's optimizers: clipping, gradients that are not finite,
hooks, scalers, autograd."""

import numpy as np
import pytest
import torch
from torch_optim_case import ADAM, Pair, kinds, normals, parameters_of, same_bits, two_groups

from flatstep.torch import optim as ours

pytestmark = pytest.mark.needs("fma")


# ---- clipping, zeroing, what is not finite -------------------------------------------------------


@kinds
@pytest.mark.parametrize("groups", (False, True))
def test_clipping_and_zeroing_in_the_step(generator, name, options, groups):
    """One norm over all groups, also where these take several calls of the core."""
    pair = Pair(name, normals(generator), options, two_groups if groups else list)
    pair.optimizer = getattr(ours, name)(
        two_groups(pair.ours) if groups else pair.ours, max_norm=0.5, zero_grad=True, **options
    )
    for _ in range(5):
        pair.give(normals(generator))
        norm = torch.nn.utils.clip_grad_norm_(pair.theirs, 0.5)
        pair.reference.step()
        pair.optimizer.step()
        torch.testing.assert_close(pair.ours, pair.theirs, rtol=1e-4, atol=1e-6)
        info = pair.optimizer.last_step
        assert info.grad_norm == pytest.approx(float(norm), rel=1e-6)
        assert info.clip_scale == pytest.approx(0.5 / float(norm), rel=1e-5)
        assert not any(p.grad.any() for p in pair.ours)


def state_bytes(optimizer):
    return [
        [value.numpy().tobytes() for value in state.values()] for state in optimizer.state.values()
    ]


@kinds
@pytest.mark.parametrize("groups", (False, True))
@pytest.mark.parametrize("before", (0, 2))
def test_a_gradient_that_is_not_finite(generator, name, options, groups, before):
    """Nothing changes, in no group; the next good step is as if it had not been."""
    pair = Pair(name, normals(generator), options, two_groups if groups else list)
    for _ in range(before):
        pair.step(normals(generator))
    kept, state = [p.detach().clone() for p in pair.ours], state_bytes(pair.optimizer)
    bad = normals(generator)
    bad[2][37] = float("nan")
    pair.give(bad)
    pair.optimizer.step()
    info = pair.optimizer.last_step
    assert info.skipped and info.nonfinite == ("params[2]", 37)
    assert not np.isfinite(info.grad_norm) and info.clip_scale == 1.0
    assert all(map(same_bits, kept, pair.ours))
    if name == "SGD" and not before:  # a buffer would say that there was a step
        assert not any(pair.optimizer.state.values())
    if before:
        assert state_bytes(pair.optimizer) == state
        assert info.step == before
    for _ in range(2):
        pair.step(normals(generator))
        pair.check()
    assert not pair.optimizer.last_step.skipped


def test_squares_beyond_the_range_skip_all_groups(generator):
    """In native mode, where the second moment would overflow; as one call of the core does."""
    for groups in (list, two_groups):
        pair = Pair("AdamW", normals(generator), ADAM, groups)
        optimizer = ours.AdamW(groups(pair.ours), **ADAM)
        gradients = normals(generator)
        gradients[4][7, 7] = -1e30
        pair.give(gradients)
        kept = [p.detach().clone() for p in pair.ours]
        optimizer.step()
        assert optimizer.last_step.nonfinite == ("params[4]", 63)
        assert all(map(same_bits, kept, pair.ours))
        optimizer.max_norm = 1.0
        optimizer.step()
        assert not optimizer.last_step.skipped and not same_bits(kept[4], pair.ours[4])


# ---- what runs around a step ---------------------------------------------------------------------


def test_closure_and_hooks(generator):
    (parameter,) = parameters_of(normals(generator, [(5,)]))
    optimizer = ours.SGD([parameter], lr=0.1)
    seen = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("pre"))
    optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(o.last_step.step))

    def closure():
        optimizer.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        seen.append("closure")
        return loss

    before = parameter.detach().clone()
    loss = optimizer.step(closure)
    assert loss.item() == pytest.approx(before.square().sum().item())
    torch.testing.assert_close(parameter.detach(), before - 0.1 * 2 * before)
    assert seen == ["pre", "closure", 1]
    assert optimizer.step() is None


@pytest.mark.parametrize("name", ("AdamW", "SGD"))
def test_grad_scaler(generator, name):
    """Unscales, skips what overflowed, goes on."""
    (parameter,) = parameters_of(normals(generator, [(5,)]))
    (other,) = parameters_of([parameter])
    optimizer = getattr(ours, name)([parameter], lr=0.1, mode="torch")
    reference = getattr(torch.optim, name)([other], lr=0.1)
    scalers = [torch.amp.GradScaler("cpu", init_scale=2.0**10) for _ in range(2)]
    for factor in (1.0, float("inf"), 0.5, 0.25):
        for p, o, scaler in zip((parameter, other), (optimizer, reference), scalers, strict=True):
            o.zero_grad()
            scaler.scale((p * p).sum() * factor).backward()
            scaler.step(o)
            scaler.update()
        torch.testing.assert_close(parameter, other)
    assert scalers[0].get_scale() == scalers[1].get_scale() == 2.0**9


def test_autograd_sees_the_write(generator):
    """A backward pass through what a step has changed is an error, not a wrong gradient."""
    (parameter,) = parameters_of(normals(generator, [(5,)]))
    optimizer = ours.AdamW([parameter])
    loss = (parameter * parameter).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_with_a_graph(generator):
    (parameter,) = parameters_of(normals(generator, [(5,)]))
    optimizer = ours.SGD([parameter], lr=0.5)
    before = parameter.detach().clone()
    for watched in (False, True, False):
        parameter.grad = torch.ones(5, requires_grad=watched)
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), before - 1.5)


def test_a_module_learns(generator):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
    optimizer = ours.AdamW(module.parameters(), lr=1e-2, max_norm=1.0, zero_grad=True)
    x = torch.randn(64, 8, generator=generator)
    losses = []
    for _ in range(100):
        loss = (module(x) - x[:, :1]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.05 * losses[0]


def test_nothing_has_a_gradient(generator):
    optimizer = ours.AdamW(parameters_of(normals(generator)))
    optimizer.step()
    assert optimizer.last_step is None and not optimizer.state
    with pytest.raises(TypeError, match=r"^params argument"):
        ours.AdamW(torch.zeros(3))
