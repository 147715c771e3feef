"""Learning-rate schedules: pure functions of the number of optimizer steps already done.

A schedule ``s`` is called as ``s(step)`` with ``step`` from 0. With ``t = step + 1``,
``W = warmup`` and ``T = total``, every warm-up is ``base_lr * t / W`` for ``step < W``, so the
first step already learns; ``warmup_linear`` and ``warmup_cosine`` reach ``min_lr`` at
``step = T - 1`` and stay there.

All raise ValueError or TypeError naming the argument that is wrong.
"""

from . import _checks, _core

_Kind = _core.ScheduleKind


def _schedule(kind, base_lr, *, base_name="base_lr", **arguments):
    checked = {
        name: (_checks.number if name == "min_lr" else _checks.integer)(value, name)
        for name, value in arguments.items()
    }
    return _core.Schedule(kind, base_lr=_checks.number(base_lr, base_name), **checked)


def constant(base_lr):
    """``base_lr`` at every step."""
    return _schedule(_Kind.constant, base_lr)


def warmup_constant(base_lr, warmup):
    """Warm-up, then ``base_lr``."""
    return _schedule(_Kind.warmup_constant, base_lr, warmup=warmup)


def warmup_linear(base_lr, warmup, total, min_lr=0.0):
    """Warm-up, then linearly down to ``min_lr``."""
    return _schedule(_Kind.warmup_linear, base_lr, warmup=warmup, total=total, min_lr=min_lr)


def warmup_cosine(base_lr, warmup, total, min_lr=0.0):
    """Warm-up, then half a cosine down to ``min_lr`` (Loshchilov & Hutter 2017)."""
    return _schedule(_Kind.warmup_cosine, base_lr, warmup=warmup, total=total, min_lr=min_lr)


def inverse_sqrt(base_lr, warmup):
    """Warm-up, then ``base_lr * sqrt(max(W, 1) / t)``."""
    return _schedule(_Kind.inverse_sqrt, base_lr, warmup=warmup)


def noam(d_model, warmup, factor=1.0):
    """``factor * d_model**-0.5 * min(t**-0.5, t * W**-1.5)`` (Vaswani et al. 2017, equation 3)."""
    return _schedule(_Kind.noam, factor, base_name="factor", d_model=d_model, warmup=warmup)
