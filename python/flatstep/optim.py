"""SGD, Adam and AdamW over flat buffers, with clipping folded into the step."""

from . import _checks, _core
from ._optimizer import Optimizer, StepInfo, as_list

__all__ = ["SGD", "Adam", "AdamW", "StepInfo", "clip_grad_norm_", "grad_norm"]


class _Moments(Optimizer):
    _state_names = ("exp_avg", "exp_avg_sq")

    def __init__(self, params, *, betas, eps, **options):
        try:
            beta1, beta2 = betas
        except (TypeError, ValueError):
            raise TypeError(f"betas: got {betas!r}, expected two numbers") from None
        super().__init__(
            params,
            beta1=_checks.number(beta1, "betas"),
            beta2=_checks.number(beta2, "betas"),
            eps=_checks.number(eps, "eps"),
            **options,
        )

    @property
    def exp_avg(self):
        """First moment, a flat NumPy array (a list of them when ``params`` is a list)."""
        return self._state_array("exp_avg")

    @property
    def exp_avg_sq(self):
        """Second moment, like :attr:`exp_avg`."""
        return self._state_array("exp_avg_sq")


class AdamW(_Moments):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), bias-corrected.

    Args:
        params: float32 or float64: one array, or a list of arrays; updated in place.
        lr, betas, eps, weight_decay: as in ``torch.optim.AdamW``.
        layout: a :class:`flatstep.Layout` of the one flat array: its tensors may have a weight
            decay and an lr scale of their own, and name what is not finite.
        mode: ``"native"`` has the most exact rounding; ``"torch"`` that of the fused CPU kernels of
            ``torch.optim``. Both are spelled out in ``flatstep/optim.h``.
        max_consecutive_skips: raise RuntimeError at so many non-finite steps in a row.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
    """

    _algorithm = _core.Algorithm.adamw
    _kind = "adamw"

    def __init__(
        self,
        params,
        *,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        layout=None,
        mode="native",
        max_consecutive_skips=None,
    ):
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            layout=layout,
            mode=mode,
            max_consecutive_skips=max_consecutive_skips,
        )


class Adam(_Moments):
    """Adam (Kingma & Ba 2015); weight decay is added to the gradient (L2).

    Arguments and errors as in :class:`AdamW`.
    """

    _algorithm = _core.Algorithm.adam
    _kind = "adam"

    def __init__(
        self,
        params,
        *,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        layout=None,
        mode="native",
        max_consecutive_skips=None,
    ):
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            layout=layout,
            mode=mode,
            max_consecutive_skips=max_consecutive_skips,
        )


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, dampening, Nesterov and L2.

    The other arguments and the errors are those of :class:`AdamW`.
    """

    _algorithm = _core.Algorithm.sgd
    _kind = "sgd"

    def __init__(
        self,
        params,
        *,
        lr=1e-3,
        momentum=0.0,
        dampening=0.0,
        nesterov=False,
        weight_decay=0.0,
        layout=None,
        mode="native",
        max_consecutive_skips=None,
    ):
        momentum = _checks.number(momentum, "momentum")
        self._state_names = ("momentum_buffer",) if momentum > 0 else ()
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=_checks.number(dampening, "dampening"),
            nesterov=bool(nesterov),
            weight_decay=weight_decay,
            layout=layout,
            mode=mode,
            max_consecutive_skips=max_consecutive_skips,
        )

    @property
    def momentum_buffer(self):
        """Momentum, a flat NumPy array or a list of them; None without momentum."""
        return self._state_array("momentum_buffer") if self._state else None


def grad_norm(grads):
    """The global L2 norm of an array, or of a list of arrays, float32 or float64.

    Squares are summed in float64 over fixed chunks, so the result has the same bits for any number
    of threads. Not finite when an element is not.
    """
    return _core.grad_norm(as_list(grads))[0]


def clip_grad_norm_(grads, max_norm):
    """Multiplies the gradients in place by ``min(1, max_norm / (norm + 1e-6))``.

    Returns:
        The norm before clipping. Gradients that are not finite are left as they are.
    """
    return _core.grad_norm(as_list(grads), _checks.number(max_norm, "max_norm"))[0]
