"""SGD, Adam and AdamW with the signatures and semantics of ``torch.optim``.

They are a ``torch.optim.Optimizer``: schedulers, hooks, ``param_groups``, ``torch.amp.GradScaler``
and ``state_dict`` work, and state dicts go to PyTorch's optimizer of the same name and back. A step
is one call of flatstep's core for all parameters with the same options, dtype and step count.

Beyond PyTorch:

* Clipping is part of the step (``max_norm``), and so is zeroing the gradients (``zero_grad``).
* A step whose gradients are not finite changes nothing; ``optimizer.last_step`` has ``skipped``,
  the first such element, the norm and the clip factor.
* bfloat16 parameters have float32 moments and a float32 master, kept in the state as ``master``.
"""

from .. import _checks, _core
from ._optimizer import FlatOptimizer
from ._settings import Settings, learning_rate

__all__ = ["SGD", "Adam", "AdamW"]


class Adam(FlatOptimizer):
    """``torch.optim.Adam``: weight decay is added to the gradient (L2), and is 0 by default.

    Args:
        params: an iterable of tensors, of (name, tensor), or of groups, as in PyTorch: float32,
            float64, bfloat16, complex64 or complex128, on the CPU or, without float64, on CUDA.
            Tensors that are not contiguous are updated where they lie if they are dense (as in
            channels_last), otherwise through a copy.
        lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay: as in PyTorch, also
            per group; changes take effect at the next step. A tensor ``lr`` on the CUDA device of
            the parameters, the same in all groups, is read there: a captured graph follows it.
        foreach, fused, capturable: hints of PyTorch's own implementations, kept in the groups and
            ignored. After a first one, a step on CUDA may be captured in a graph, if all parameters
            with gradients share dtype, options other than lr, betas and decay, and step count.
        differentiable: only False.
        mode: ``"native"`` rounds most exactly; ``"torch"`` has the bits of PyTorch's
            ``fused=True`` on the CPU (float32 and float64 there, nothing else).
        max_norm: clip the global norm of all gradients to this in the step.
        zero_grad: write zeros to the gradients in the same visit; a skipped step leaves them.

    ``state[p]["step"]`` is brought up to date on CUDA by ``state_dict()``, since the device counts.
    Writing to a bfloat16 parameter between steps sets its master, but for writes through ``.data``.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        amsgrad=False,
        *,
        foreach=None,
        maximize=False,
        capturable=False,
        differentiable=False,
        fused=None,
        decoupled_weight_decay=False,
        mode="native",
        max_norm=None,
        zero_grad=False,
    ):
        defaults = {
            "lr": lr,
            "betas": _checks.pair(betas, "betas"),
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults, mode, max_norm, zero_grad)

    def _settings(self, group):
        amsgrad = bool(group["amsgrad"])
        decoupled = group["decoupled_weight_decay"]
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        return Settings(
            lr=learning_rate(group["lr"]),
            weight_decay=_checks.number(group["weight_decay"], "weight_decay"),
            betas=_checks.pair(group["betas"], "betas"),
            options=(
                ("algorithm", _core.Algorithm.adamw if decoupled else _core.Algorithm.adam),
                ("eps", _checks.number(group["eps"], "eps")),
                ("amsgrad", amsgrad),
                ("maximize", bool(group["maximize"])),
            ),
            state_names=names if amsgrad else names[:2],
        )


class AdamW(Adam):
    """``torch.optim.AdamW``: decay outside the moments, 0.01 by default.

    Arguments and errors as in :class:`Adam`.
    """

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=1e-2,
        amsgrad=False,
        *,
        maximize=False,
        foreach=None,
        capturable=False,
        differentiable=False,
        fused=None,
        mode="native",
        max_norm=None,
        zero_grad=False,
    ):
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
            mode=mode,
            max_norm=max_norm,
            zero_grad=zero_grad,
        )


class SGD(FlatOptimizer):
    """``torch.optim.SGD``: momentum, dampening, Nesterov, L2.

    PyTorch's state of SGD has no count of steps, so ``last_step.step`` is that of this object. The
    other arguments and the errors are those of :class:`Adam`; the momentum is below 1.
    """

    _counted = False

    def __init__(
        self,
        params,
        lr=1e-3,
        momentum=0.0,
        dampening=0.0,
        weight_decay=0.0,
        nesterov=False,
        *,
        maximize=False,
        foreach=None,
        differentiable=False,
        fused=None,
        mode="native",
        max_norm=None,
        zero_grad=False,
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults, mode, max_norm, zero_grad)

    def _settings(self, group):
        momentum = _checks.number(group["momentum"], "momentum")
        return Settings(
            lr=learning_rate(group["lr"]),
            weight_decay=_checks.number(group["weight_decay"], "weight_decay"),
            betas=None,
            options=(
                ("algorithm", _core.Algorithm.sgd),
                ("momentum", momentum),
                ("dampening", _checks.number(group["dampening"], "dampening")),
                ("nesterov", bool(group["nesterov"])),
                ("maximize", bool(group["maximize"])),
            ),
            state_names=("momentum_buffer",) if momentum > 0 else (),
        )

    def _count_of(self, name, state, settings):
        """0 for a first step, in which the momentum begins as the gradient."""
        if settings.state_names and state.get("momentum_buffer") is None:
            return 0
        return max(self._steps_done, 1) if settings.state_names else self._steps_done
