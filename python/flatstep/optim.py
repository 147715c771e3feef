"""SGD, Adam and AdamW over flat buffers, with clipping folded into the step."""

from . import _checks, _core
from ._optimizer import Optimizer, StepInfo

__all__ = ["SGD", "Adam", "AdamW", "StepInfo"]


class _Moments(Optimizer):
    _weight_decay = 0.0

    def __init__(
        self,
        params,
        *,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=None,
        amsgrad=False,
        maximize=False,
        layout=None,
        mode="native",
        state="full",
        stochastic_rounding=False,
        bf16_copy=None,
        seed=0,
        max_consecutive_skips=None,
    ):
        beta1, beta2 = _checks.pair(betas, "betas")
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        super().__init__(
            params,
            state_names=names if amsgrad else names[:2],
            lr=lr,
            beta1=beta1,
            beta2=beta2,
            eps=_checks.number(eps, "eps"),
            weight_decay=self._weight_decay if weight_decay is None else weight_decay,
            amsgrad=bool(amsgrad),
            maximize=bool(maximize),
            layout=layout,
            mode=mode,
            state=state,
            stochastic_rounding=stochastic_rounding,
            bf16_copy=bf16_copy,
            seed=seed,
            max_consecutive_skips=max_consecutive_skips,
        )

    @property
    def exp_avg(self):
        """First moment, a flat NumPy array (a list of them when ``params`` is a list); on CUDA an
        array of the params' library on the device. With 8-bit state, a decoded copy in NumPy."""
        return self._like_params(self._state.moment("exp_avg"))

    @property
    def exp_avg_sq(self):
        """Second moment, like :attr:`exp_avg`."""
        return self._like_params(self._state.moment("exp_avg_sq"))


class AdamW(_Moments):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019), bias-corrected.

    On CUDA parameters, gradients and state are on one device, with the bits that the CPU has; only
    float64 and ``mode="torch"`` are refused. Each step runs on the current stream of the params'
    library, PyTorch or CuPy (otherwise the legacy default stream), and does not wait for it.

    Args:
        params: one array, or a list of arrays of one library on one device; updated in place.
            float32, float64, or bfloat16: the optimizer then keeps float32 masters and the arrays
            follow them, rounded to nearest, or see ``stochastic_rounding``.
        lr, betas, eps, amsgrad, maximize: as in ``torch.optim.AdamW``.
        weight_decay: None is 0.01.
        layout: a :class:`flatstep.Layout` of the one flat array, or of the list: its tensors may
            have a weight decay, betas and an lr scale of their own, and name what is not finite.
        mode: ``"native"`` has the most exact rounding; ``"torch"`` that of the fused CPU kernels of
            ``torch.optim``, bit for bit. Both are spelled out in ``flatstep/optim.h``.
        state: ``"full"`` keeps moments as float32 (float64 for float64 parameters); ``"8bit"`` as
            one byte each and 2 bytes per 128, stochastically rounded: 2.03 bytes per parameter for
            both moments instead of 8. Not with float64, ``amsgrad`` or ``mode="torch"``.
        stochastic_rounding: bfloat16 parameters without masters, rounded up or down at random so
            that small updates move them in the mean.
        bf16_copy: bfloat16 arrays like float32 ``params`` that always hold them, rounded to
            nearest; written at once and by every step.
        seed: of the stochastic rounding, in ``[0, 2**64)``. The random bits are a function of
            (seed, step, tensor, index) alone.
        max_consecutive_skips: raise RuntimeError at so many non-finite steps in a row.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
    """

    _algorithm = _core.Algorithm.adamw
    _kind = "adamw"
    _weight_decay = 1e-2


class Adam(_Moments):
    """Adam (Kingma & Ba 2015); weight decay is added to the gradient (L2), and is 0 by default.

    Arguments and errors as in :class:`AdamW`.
    """

    _algorithm = _core.Algorithm.adam
    _kind = "adam"


class SGD(Optimizer):
    """Stochastic gradient descent with momentum, dampening, Nesterov and L2.

    ``weight_decay`` is a number, 0 by default. The other arguments and the errors are those of
    :class:`AdamW`.
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
        maximize=False,
        layout=None,
        mode="native",
        state="full",
        stochastic_rounding=False,
        bf16_copy=None,
        seed=0,
        max_consecutive_skips=None,
    ):
        momentum = _checks.number(momentum, "momentum")
        super().__init__(
            params,
            state_names=("momentum_buffer",) if momentum > 0 else (),
            lr=lr,
            momentum=momentum,
            dampening=_checks.number(dampening, "dampening"),
            nesterov=bool(nesterov),
            weight_decay=weight_decay,
            maximize=bool(maximize),
            layout=layout,
            mode=mode,
            state=state,
            stochastic_rounding=stochastic_rounding,
            bf16_copy=bf16_copy,
            seed=seed,
            max_consecutive_skips=max_consecutive_skips,
        )
        self._momentum = momentum

    @property
    def momentum_buffer(self):
        """Momentum, a flat NumPy array or a list of them; None without momentum. On CUDA and with
        8-bit state as :attr:`AdamW.exp_avg`."""
        return self._like_params(self._state.moment("momentum_buffer")) if self._momentum else None
