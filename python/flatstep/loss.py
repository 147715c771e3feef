"""Cross-entropy with its gradient."""

from dataclasses import dataclass
from typing import Any

from . import _arrays, _checks, _core

_REDUCTIONS = {name: getattr(_core.Reduction, name) for name in ("mean", "sum", "none")}
_ON_EMPTY = {"zero": _core.OnEmpty.zero, "nan": _core.OnEmpty.nan}


@dataclass(frozen=True)
class CrossEntropyResult:
    """What :func:`cross_entropy` returns.

    Attributes:
        loss: float for ``mean`` and ``sum``; for ``none`` an array ``[...]``, 0 where ignored.
        grad: gradient by the logits, of their shape and dtype, or None.
        lse: log-sum-exp of each row ``[...]``; 0 for ignored rows.
        n_valid: number of targets that are not ``ignore_index``.

    ``lse`` and a per-row ``loss`` are float64 for float64 logits and float32 for all others.
    """

    loss: Any
    grad: Any
    lse: Any
    n_valid: int


def cross_entropy(
    logits,
    targets,
    *,
    reduction="mean",
    label_smoothing=0.0,
    ignore_index=-100,
    divisor=None,
    on_empty="zero",
    grad=False,
    grad_output=1.0,
):
    """Cross-entropy of logits with index targets, and its gradient in the same visit.

    For a row ``x`` of V logits, a target ``t``, ``p = softmax(x)`` and ``s = label_smoothing``::

        loss          = (1 - s) * -log(p[t]) + s / V * sum_j -log(p[j])
        d loss / d x  = p - (1 - s) * onehot(t) - s / V

    Classes whose logit is -inf are masked: they take no part in the smoothing and V counts the
    others. Arithmetic is float32 for float32 and bfloat16 logits, with sums in float64, and float64
    for float64. A row's results have the same bits in any batch and for any number of threads.

    Args:
        logits: ``[..., V]`` float32, float64 or bfloat16; the last dimension contiguous, the rows
            evenly spaced (the stride may be wider than V).
        targets: ``[...]`` int32 or int64 class indices in ``[0, V)``, or ``ignore_index``.
        reduction: ``"mean"`` over the valid targets, ``"sum"`` or ``"none"``.
        label_smoothing: in ``[0, 1)``.
        ignore_index: targets with this value have loss 0 and gradient 0.
        divisor: replaces the number of valid targets in ``"mean"``, for gradient accumulation.
        on_empty: the mean over no valid target: ``"zero"`` or ``"nan"``.
        grad: False; True for a new array; or the array to write, which may be ``logits`` itself.
        grad_output: upstream gradient: a float, or with ``"none"`` an array ``[...]`` of the dtype
            of the loss.

    Returns:
        A :class:`CrossEntropyResult`.

    Raises:
        IndexError: a target is out of range; the message names the row and the value.
        ValueError, TypeError: another argument is wrong; the message names it.
            Nothing was written in either case.

    >>> import numpy as np
    >>> probabilities = np.array([[0.20, 0.50, 0.10, 0.10, 0.10]])
    >>> loss = cross_entropy(np.log(probabilities), np.array([1])).loss
    >>> bool(np.isclose(loss, -np.log(0.50)))
    True
    """
    chosen = _checks.choice(reduction, _REDUCTIONS, "reduction")
    empty = _checks.choice(on_empty, _ON_EMPTY, "on_empty")
    shape, dtype = _arrays.describe(logits, "logits")
    if dtype not in ("float32", "float64", "bfloat16"):
        raise TypeError(f"logits: got {dtype}, expected float32, float64 or bfloat16")
    rows = shape[:-1]
    row_dtype = "float64" if dtype == "float64" else "float32"
    lse = _arrays.empty(rows, row_dtype, logits)
    loss = _arrays.empty(rows, row_dtype, logits) if reduction == "none" else None
    if grad is True:
        grad = _arrays.empty_like(logits, "grad")
    elif grad is False:
        grad = None
    per_row = _arrays.is_array(grad_output)
    value, n_valid = _core.cross_entropy(
        logits,
        targets,
        reduction=chosen,
        label_smoothing=_checks.number(label_smoothing, "label_smoothing"),
        ignore_index=ignore_index,
        divisor=None if divisor is None else _checks.number(divisor, "divisor"),
        on_empty=empty,
        grad_output=1.0 if per_row else _checks.number(grad_output, "grad_output"),
        grad_output_rows=grad_output if per_row else None,
        loss=loss,
        lse=lse,
        grad=grad,
    )
    return CrossEntropyResult(value if loss is None else loss, grad, lse, n_valid)
