"""Counter-based dropout: the mask is a pure function of (seed, step, site, index)."""

import math

import numpy as np

from . import _arrays, _checks, _core
from .device_array import DeviceArray


def _key(p, seed, step, site):
    site = _checks.integer(site, "site")
    if not 0 <= site < 2**32:
        raise ValueError(f"site: got {site}, expected an integer from 0 to 2**32 - 1")
    return {
        "p": _checks.number(p, "p"),
        "seed": _checks.unsigned64(seed, "seed"),
        "step": _checks.step_number(step),
        "site": site,
    }


def dropout(x, p, *, seed, step=0, site=0, out=None):
    """``x * mask / (1 - p)``.

    Args:
        x: float32 array of any shape, contiguous.
        p: probability of dropping, in ``[0, 1)``.
        seed: integer in ``[0, 2**64)``.
        step: integer in ``[0, 2**48)``, the training step.
        site: integer in ``[0, 2**32)``, which dropout layer.
        out: array to write, of the shape of ``x``; may be ``x`` itself. None makes a new one.
            On CUDA both are on one device; the call does not wait for it.

    Returns:
        ``out``. The kept elements are those of :func:`dropout_mask`, multiplied by
        ``float32(1 / (1 - p))``.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Nothing was written.
    """
    key = _key(p, seed, step, site)
    if out is None:
        out = _arrays.empty_like(x, "x")
    _core.dropout(x, out, **key)
    return out


def dropout_mask(shape, p, *, seed, step=0, site=0, device=None):
    """The mask of :func:`dropout`: a uint8 NumPy array of ``shape``, 1 where an element is kept.

    With a ``device``, such as ``"cuda"``, it is made there, the same bits in a
    :class:`flatstep.DeviceArray`, without a wait. An element's bit depends on its flat index alone,
    not on the shape. The generator is Philox4x32-10 (Salmon et al. 2011); its counter is laid out
    in ``flatstep/dropout.h``.
    """
    shape = _checks.shape(shape)
    key = _key(p, seed, step, site)
    if device is not None:
        mask = DeviceArray(shape, "uint8", device)
        _core.dropout_mask_array(mask, **key)
        return mask
    bits = _core.dropout_mask(math.prod(shape), **key)
    return np.frombuffer(bits, np.uint8).reshape(shape)
