"""What SGD, Adam and AdamW share: segments, state arrays, the step and the state dict."""

import math
from dataclasses import dataclass

import numpy as np

from . import _arrays, _checks, _core
from .layout import Layout

_MODES = {"native": _core.OptimizerMode.native, "torch": _core.OptimizerMode.torch}


@dataclass(frozen=True)
class StepInfo:
    """What a step did.

    Attributes:
        grad_norm: global L2 norm of the gradients, after division by ``grad_scale`` and before
            clipping; not finite when a gradient was not.
        clip_scale: factor applied by clipping, ``min(1, max_norm / (grad_norm + 1e-6))``.
        skipped: a gradient was not finite and nothing was changed.
        nonfinite: None, or (tensor name, flat index in it) of the first such element.
        lr: learning rate of this step.
        step: steps done, this one included unless it was skipped.
    """

    grad_norm: float
    clip_scale: float
    skipped: bool
    nonfinite: tuple | None
    lr: float
    step: int


class Optimizer:
    """What the three algorithms share: segments, state arrays, the step and the state dict."""

    _algorithm = None
    _kind = ""
    _state_names = ()

    def __init__(self, params, *, lr, weight_decay, layout, mode, max_consecutive_skips, **options):
        self._params = list(params) if isinstance(params, (list, tuple)) else [params]
        self._flat = not isinstance(params, (list, tuple))
        described = [_arrays.describe(p, _name(i, self._flat)) for i, p in enumerate(self._params)]
        self._segments = _segments([shape for shape, _ in described], layout, self._flat)
        self.lr = lr
        self._state = {
            name: [np.zeros(math.prod(shape), _state_dtype(dtype)) for shape, dtype in described]
            for name in self._state_names
        }
        arrays = [
            [array.reshape(shape) for array, (shape, _) in zip(state, described, strict=True)]
            for state in self._state.values()
        ]
        arrays += [[]] * (2 - len(arrays))
        core_options = _core.OptimizerOptions(
            algorithm=self._algorithm,
            mode=_checks.choice(mode, _MODES, "mode"),
            weight_decay=_checks.number(weight_decay, "weight_decay"),
            max_consecutive_skips=_checks.integer(
                0 if max_consecutive_skips is None else max_consecutive_skips,
                "max_consecutive_skips",
            ),
            **{name: options.get(name, default) for name, default in _UNUSED.items()},
        )
        self._core = _core.Optimizer(core_options, self._params, *arrays, self._segments)

    @property
    def lr(self):
        """Learning rate of the next step, unless the step is given one."""
        return self._lr

    @lr.setter
    def lr(self, value):
        value = _checks.number(value, "lr")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"lr: got {value}, expected a finite number >= 0")
        self._lr = value

    @property
    def step_count(self):
        """Steps done; skipped ones do not count."""
        return self._core.step_count

    def step(self, grads, *, lr=None, max_norm=None, grad_scale=1.0, zero_grad=False):
        """Unscale, clip, update and zero, in two visits of memory.

        Args:
            grads: like ``params``: one array or a list of arrays, same shapes and dtype.
            lr: learning rate of this step; None takes ``self.lr``.
            max_norm: clip the global norm to this; None does not clip.
            grad_scale: the gradients are divided by this first.
            zero_grad: write zeros to the gradients in the same visit; a skipped step leaves them.

        Returns:
            A :class:`StepInfo`. When a gradient is not finite, no byte of parameters or state
            changes, and ``nonfinite`` names the first such element.

        Raises:
            ValueError, TypeError: an argument is wrong; nothing was written.
            RuntimeError: another thread is inside ``step``, or ``max_consecutive_skips`` steps in a
                row were not finite.
        """
        used_lr = self._lr if lr is None else _checks.number(lr, "lr")
        norm, clip_scale, skipped, segment, index = self._core.step(
            as_list(grads),
            lr=used_lr,
            max_norm=None if max_norm is None else _checks.number(max_norm, "max_norm"),
            grad_scale=_checks.number(grad_scale, "grad_scale"),
            zero_grad=bool(zero_grad),
        )
        nonfinite = (self._segments[segment][-1], index) if segment >= 0 else None
        return StepInfo(norm, clip_scale, skipped, nonfinite, used_lr, self.step_count)

    def _state_array(self, name):
        arrays = self._state[name]
        return arrays[0] if self._flat else arrays

    def state_dict(self):
        """Copies of the state: ``{"kind", "step", "lr", "state": {name: array or list}}``."""
        return {
            "kind": self._kind,
            "step": self.step_count,
            "lr": self.lr,
            "state": {
                name: arrays[0].copy() if self._flat else [a.copy() for a in arrays]
                for name, arrays in self._state.items()
            },
        }

    def load_state_dict(self, state_dict):
        """Takes over what :meth:`state_dict` returned.

        Raises:
            ValueError: another kind of optimizer, or a shape or dtype that differs; nothing was
                changed.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict: got {type(state_dict).__name__}, expected a dict")
        missing = {"kind", "step", "state"} - set(state_dict)
        if missing:
            raise ValueError(f"state_dict: got no {sorted(missing)[0]!r}, expected one")
        if state_dict["kind"] != self._kind:
            raise ValueError(
                f"state_dict: got kind {state_dict['kind']!r}, expected {self._kind!r}"
            )
        step = _checks.step_number(state_dict["step"])
        pairs = []
        for name, arrays in self._state.items():
            given = state_dict["state"].get(name)
            given = [given] if self._flat else given
            if given is None or len(given) != len(arrays):
                raise ValueError(f"state_dict: {name} is missing or has another number of arrays")
            for array, value in zip(arrays, given, strict=True):
                value = np.asarray(value)
                if value.shape != array.shape or value.dtype != array.dtype:
                    raise ValueError(
                        f"state_dict: {name} has shape {value.shape} and dtype {value.dtype}, "
                        f"expected {array.shape} and {array.dtype}"
                    )
                pairs.append((array, value))
        self.lr = state_dict.get("lr", self.lr)
        for array, value in pairs:
            array[...] = value
        self._core.step_count = step


# Options of the core that an algorithm does not use keep these values.
_UNUSED = {
    "beta1": 0.9,
    "beta2": 0.999,
    "eps": 1e-8,
    "momentum": 0.0,
    "dampening": 0.0,
    "nesterov": False,
}


def _name(index, flat):
    return "params" if flat else f"params[{index}]"


def _state_dtype(dtype):
    return np.float64 if dtype == "float64" else np.float32


def _segments(shapes, layout, flat):
    """The core's segments: (array, offset, size, lr scale, weight decay, name)."""
    if layout is None:
        return [
            (i, 0, math.prod(shape), 1.0, None, _name(i, flat)) for i, shape in enumerate(shapes)
        ]
    if not isinstance(layout, Layout):
        raise TypeError(f"layout: got {type(layout).__name__}, expected a flatstep.Layout")
    if not flat:
        raise ValueError("layout: got a layout with a list of arrays, expected one flat array")
    if shapes[0] != (layout.size,):
        raise ValueError(
            f"layout: got one of {layout.size} elements for params of shape {shapes[0]}, "
            "expected the same size"
        )
    return [
        (0, entry.offset, entry.size, entry.lr_scale, entry.weight_decay, entry.name)
        for entry in layout.entries
    ]


def as_list(grads):
    return list(grads) if isinstance(grads, (list, tuple)) else [grads]
