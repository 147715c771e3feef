"""Gradients as a whole: global norm, clipping and accumulation."""

from . import _arrays, _checks, _core
from ._optimizer import as_list
from .layout import Layout

GradPartials = _core.GradPartials

__all__ = ["GradPartials", "accumulate", "clip_grad_norm_", "grad_norm"]


def grad_norm(grads):
    """The global L2 norm of an array, or of a list of arrays of one dtype: float32, float64,
    bfloat16 or float16.

    Squares are summed in float64 over fixed chunks, so the result has the same bits for any number
    of threads. Not finite when an element is not. On CUDA all arrays are on one device, the bits
    are those of the CPU, and the call waits for the device; float64 is refused.

    Raises:
        ValueError, TypeError: an array is not contiguous, of another dtype or on another device.
        IndexError, ValueError, RuntimeError: on CUDA, the first fault that an earlier call's result
            would have raised, had anybody looked at it.
    """
    return _core.grad_norm(as_list(grads))[0]


def clip_grad_norm_(grads, max_norm):
    """Multiplies the gradients in place by ``min(1, max_norm / (norm + 1e-6))``.

    Args:
        grads: as in :func:`grad_norm`; written.
        max_norm: a finite number above 0.

    Returns:
        The norm before clipping. Gradients of which one is not finite, and float64 ones whose norm
        is beyond the range of doubles, are left as they are. On CUDA the call waits for the device.

    Raises:
        ValueError, TypeError: an argument is wrong; nothing was written.
        IndexError, ValueError, RuntimeError: as :func:`grad_norm`; the gradients are clipped.
    """
    return _core.grad_norm(as_list(grads), _checks.number(max_norm, "max_norm"))[0]


def accumulate(totals, src, *, scale=1.0, overwrite=False, layout=None):
    """Adds ``scale * src`` to ``totals``, and takes the norm of the result from the same visit.

    Args:
        totals: one array or a list of arrays, float32 or float64 (on CUDA float32 alone), written
            in place.
        src: arrays of the same shapes; float64 for float64 totals, else float32, bfloat16 or
            float16.
        scale: a factor of what is added, rounded to the dtype of the totals.
        overwrite: write ``scale * src``, whatever ``totals`` held (the first of several batches).
        layout: the :class:`flatstep.Layout` of one flat array, if the optimizer has one.

    Returns:
        :class:`GradPartials` for :meth:`flatstep.AdamW.step`, which then need not read the
        gradients once more for their norm: ``opt.step(totals, partials=partials, max_norm=1.0)``.
        ``partials.norm`` is the norm itself. They hold as long as the totals do not change. On
        CUDA, where all arrays are on one device, they stay there: the call does not wait, ``norm``
        does.

    Raises:
        ValueError, TypeError: an argument is wrong; nothing was written.
    """
    sizes = None
    if layout is not None:
        if not isinstance(layout, Layout) or isinstance(totals, (list, tuple)):
            raise TypeError("layout: expected a flatstep.Layout, with one flat array")
        sizes = [entry.size for entry in layout.entries]
        if _arrays.describe(totals, "totals")[0] != (layout.size,):
            raise ValueError(f"layout: got one of {layout.size} elements, expected those of totals")
    return _core.accumulate(
        as_list(totals), as_list(src), sizes, _checks.number(scale, "scale"), bool(overwrite)
    )
