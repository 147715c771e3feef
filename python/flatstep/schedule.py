"""Schedules: pure functions of the number of optimizer steps already done.

A schedule ``s`` is called as ``s(step)`` with ``step`` from 0 to 2**53 and returns a float, which
the C++ core computes in float64 (`flatstep/schedule.h` states every formula with its source).
``W = warmup`` and ``T = total``; the warm-up goes up in equal steps, from ``init_lr`` if given.

By default (``preset="flatstep"``) the first step already learns, at ``base_lr / W``; step ``W - 1``
uses ``base_lr``; step ``T - 1`` and all later ones use ``min_lr``:

>>> s = warmup_cosine(1.0, warmup=4, total=10, min_lr=0.1)
>>> [round(s(step), 3) for step in (0, 3, 4, 9, 10, 1000)]
[0.25, 1.0, 0.94, 0.1, 0.1, 0.1]

Other presets give the values of a library, step by step, for the same arguments:

>>> s = warmup_cosine(1.0, warmup=4, total=10, preset="hf")
>>> [round(s(step), 3) for step in (0, 3, 4, 9, 10, 13)]
[0.0, 0.75, 1.0, 0.067, 0.0, 0.5]

=================  =================================================================================
``hf``             Hugging Face `transformers.get_*_schedule_*`. Its cosine rises again beyond T.
                   ``hf_cosine_warmup_with_min_lr`` is that variant of the cosine, without a dead
                   first step and, given ``init_lr``, with a warm-up from it to step W - 1
``optax``          a warm-up joined with optax's decay; `sgdr_schedule`, `*_onecycle_schedule`;
                   optax computes in float32: the same to 1e-6
``fairseq``        `inverse_sqrt` (needs a warm-up), `polynomial_decay` (steps 0 and 1 both at
                   base_lr / W, as its constructor sets), `cosine`, and `tri_stage` as `wsd`
``megatron``       Megatron-LM's `OptimizerParamScheduler`, also for its weight decay
``torchtitan``     its line falls below min_lr, even below 0, beyond T; its cosine rises again
``llm.c``          `llmc/schedulers.h`, which aborts beyond T; here it ends at min_lr
``nanogpt``        `get_lr` of nanoGPT: the warm-up is divided by W + 1
``torch``          `OneCycleLR`, which raises beyond T (here min_lr), `CosineAnnealingWarmRestarts`
``annotated``      `rate` of The Annotated Transformer: steps 0 and 1 are the same
``tensor2tensor``  "constant*linear_warmup*rsqrt_decay*rsqrt_hidden_size", factor the constant; as
                   ``tensor2tensor_legacy``, the scheme "noam" with Adam: 10 times the paper's
=================  =================================================================================

`presets` lists those of a schedule. An argument that a library does not have works as it does
elsewhere, and a number left out takes this module's default, not the library's, unless it says so.

A schedule may drive any number, for example a weight decay that rises from 0.01 to 0.1::

    wd = fs.schedule.warmup_constant(0.1, warmup=1000, init_lr=0.01)
    opt.weight_decay = wd(opt.step_count)

All raise ValueError or TypeError naming the argument that is wrong: rates are finite and at least
0, ``min_lr`` and ``init_lr`` at most ``base_lr``, ``warmup`` at most ``total``.
"""

from . import _checks, _core
from ._plot import plot

__all__ = [
    "constant",
    "cosine_restarts",
    "inverse_sqrt",
    "noam",
    "one_cycle",
    "plot",
    "polynomial",
    "presets",
    "scale_lr",
    "warmup_constant",
    "warmup_cosine",
    "warmup_linear",
    "wsd",
]

_KINDS = dict(_core.ScheduleKind.__members__)
_SHAPES = dict(_core.DecayShape.__members__)
_RULES = dict(_core.ScaleRule.__members__)
# All others may be None, which leaves them to the preset.
_NEEDED = {"warmup", "d_model", "warmup_shape", "power", "waves", "period_mult", "shrink"}
_COUNTS = {"warmup", "total", "d_model", "timescale", "decay", "cycles", "period"}


def _count(value, argument):
    value = _checks.integer(value, argument)
    if abs(value) > 2**53:
        raise ValueError(f"{argument}: got {value}, expected a number up to 2**53")
    return value


def _checked(value, argument):
    if argument in _COUNTS:
        return _count(value, argument)
    if argument == "three_phase":
        if not isinstance(value, bool):
            raise TypeError(f"{argument}: got {type(value).__name__}, expected True or False")
        return value
    if argument in ("shape", "warmup_shape"):
        return _checks.choice(value, _SHAPES, argument)
    return _checks.number(value, argument)


def _schedule(kind, preset, base_lr, *, base_name="base_lr", **given):
    """The core's Schedule."""
    checked = {
        name: _checked(value, name)
        for name, value in given.items()
        if value is not None or name in _NEEDED
    }
    if not isinstance(preset, str):
        raise TypeError(f"preset: got {type(preset).__name__}, expected a string")
    base_lr = _checks.number(base_lr, base_name)
    return _core.Schedule(_KINDS[kind], preset, base_lr=base_lr, **checked)


def presets(schedule):
    """The names of the presets of a schedule, itself given by name.

    >>> presets("polynomial")
    ['flatstep', 'hf', 'optax', 'fairseq']
    """
    return _core.schedule_presets(_checks.choice(schedule, _KINDS, "schedule"))


def constant(base_lr, *, preset="flatstep"):
    """``base_lr`` at every step."""
    return _schedule("constant", preset, base_lr)


def warmup_constant(
    base_lr, warmup, total=None, *, init_lr=None, warmup_shape="linear", preset="flatstep"
):
    """Warm-up from ``init_lr``, then ``base_lr``. ``total`` is only checked against ``warmup``.

    warmup_shape: "linear", "cosine", "sqrt" or "exponential", the decays of `wsd` backwards.
    """
    return _schedule(
        "warmup_constant", preset, base_lr,
        warmup=warmup, total=total, init_lr=init_lr, warmup_shape=warmup_shape,
    )  # fmt: skip


def warmup_linear(base_lr, warmup, total, min_lr=0.0, *, init_lr=None, preset="flatstep"):
    """Warm-up, then linearly down to ``min_lr``."""
    return _schedule(
        "warmup_linear", preset, base_lr,
        warmup=warmup, total=total, min_lr=min_lr, init_lr=init_lr,
    )  # fmt: skip


def warmup_cosine(
    base_lr, warmup, total, min_lr=0.0, *, init_lr=None, waves=0.5, power=1.0, preset="flatstep"
):
    """Warm-up, then half a cosine down to ``min_lr`` (Loshchilov & Hutter 2017).

    waves: how many from W to T (Hugging Face's num_cycles). power: of the half cosine (optax's
    exponent).
    """
    return _schedule(
        "warmup_cosine", preset, base_lr,
        warmup=warmup, total=total, min_lr=min_lr, init_lr=init_lr, waves=waves, power=power,
    )  # fmt: skip


def inverse_sqrt(
    base_lr, warmup, total=None, min_lr=0.0, *, init_lr=None, timescale=None, preset="flatstep"
):
    """Warm-up, then ``base_lr * sqrt(max(W, 1) / (step + 1))``, at least ``min_lr``.

    total: the value of step T - 1 is kept from there on; Megatron-LM falls to ``min_lr``, "hf" and
    "fairseq" know no end. timescale: ``base_lr * sqrt(s / (step + 1 - W + s))``.
    """
    return _schedule(
        "inverse_sqrt", preset, base_lr,
        warmup=warmup, total=total, min_lr=min_lr, init_lr=init_lr, timescale=timescale,
    )  # fmt: skip


def polynomial(base_lr, warmup, total, min_lr=None, *, power=1.0, init_lr=None, preset="flatstep"):
    """Warm-up, then ``min_lr + (base_lr - min_lr) * (1 - r)**power``, r from 0 to 1.

    min_lr: 0 where it is left out, 1e-7 with "hf", as in the library.
    """
    return _schedule(
        "polynomial", preset, base_lr,
        warmup=warmup, total=total, min_lr=min_lr, power=power, init_lr=init_lr,
    )  # fmt: skip


def wsd(
    base_lr, warmup, total, min_lr=0.0, *,
    decay=None, shape=None, init_lr=None, warmup_shape="linear", preset="flatstep",
):  # fmt: skip
    """Warm-up, stable at ``base_lr``, and down to ``min_lr`` in the last ``decay`` steps.

    decay: left out, a fifth of ``total``; "torchtitan": all after the warm-up. shape: with r from 0
    to 1 over the decay, "linear" 1 - r ("torchtitan"), "cosine" (1 + cos(pi r)) / 2 ("hf"), "sqrt"
    1 - sqrt(r) ("flatstep", "llm.c"; Haegele et al. 2024), "exponential" 2 * 2**-r - 1
    ("megatron"), "geometric" ``base_lr * (min_lr / base_lr)**r``, which needs ``min_lr > 0``
    ("fairseq"). In brackets the presets that use it when ``shape`` is left out.
    """
    return _schedule(
        "wsd", preset, base_lr,
        warmup=warmup, total=total, min_lr=min_lr, decay=decay, shape=shape, init_lr=init_lr,
        warmup_shape=warmup_shape,
    )  # fmt: skip


def one_cycle(
    base_lr, warmup, total, min_lr=None, *,
    init_lr=None, shape="cosine", pct_start=None, pct_final=None, three_phase=None,
    preset="flatstep",
):  # fmt: skip
    """From ``init_lr`` up to ``base_lr`` at W - 1 and down to ``min_lr`` at T - 1 (Smith 2018).

    warmup: None for ``pct_start``, a share of the total (0.3). init_lr: left out, base_lr / 25.
    min_lr: left out, init_lr / 10000. shape: "cosine" or "linear". three_phase: down to ``init_lr``
    first, at step ``2 W - 2`` or ``pct_final * T - 1``, and from there to ``min_lr``. "optax" is at
    its peak at ``int(pct_start * T)`` and ends at T; if linear, it has three phases and pct_final
    0.85, as the library.
    """
    if warmup is not None and pct_start is not None:
        raise ValueError(f"pct_start: got {pct_start}, expected None or warmup=None")
    return _schedule(
        "one_cycle", preset, base_lr,
        warmup=0 if warmup is None else warmup, total=total, min_lr=min_lr, init_lr=init_lr,
        shape=shape,
        pct_start=0.3 if warmup is None and pct_start is None else pct_start,
        pct_final=pct_final, three_phase=three_phase,
    )  # fmt: skip


def cosine_restarts(
    base_lr, warmup, total=None, min_lr=0.0, *,
    cycles=None, period=None, period_mult=1.0, shrink=1.0, init_lr=None, preset="flatstep",
):  # fmt: skip
    """Warm-up, then cycles of half a cosine down to ``min_lr`` (Loshchilov & Hutter 2017).

    cycles: that fill T - W (1). period: the steps of the first cycle instead; without ``total``
    there is no end. period_mult: each cycle is so many times longer. shrink: each cycle's height is
    so many times lower. "torch" and "fairseq" know no end; fairseq shrinks ``min_lr`` as well.
    """
    return _schedule(
        "cosine_restarts", preset, base_lr,
        warmup=warmup, total=total, min_lr=min_lr, cycles=cycles, period=period,
        period_mult=period_mult, shrink=shrink, init_lr=init_lr,
    )  # fmt: skip


def noam(d_model, warmup, factor=1.0, *, preset="flatstep"):
    """``factor * d_model**-0.5 * min(t**-0.5, t * W**-1.5)``, t = step + 1.

    Vaswani et al. 2017, equation 3. The peak, at step W - 1, is ``factor * (d_model * W)**-0.5``.
    """
    return _schedule("noam", preset, factor, base_name="factor", d_model=d_model, warmup=warmup)


def scale_lr(base_lr, batch, base_batch, rule="linear"):
    """``base_lr``, found with batches of ``base_batch``, for batches of ``batch``.

    rule: "linear" for ``base_lr * batch / base_batch`` (Goyal et al. 2017), "sqrt" for
    ``base_lr * sqrt(batch / base_batch)`` (Krizhevsky 2014; common with Adam).

    >>> scale_lr(1e-3, 1024, 256), scale_lr(1e-3, 1024, 256, rule="sqrt")
    (0.004, 0.002)
    """
    return _core.scale_lr(
        _checks.number(base_lr, "base_lr"),
        _count(batch, "batch"),
        _count(base_batch, "base_batch"),
        _checks.choice(rule, _RULES, "rule"),
    )
