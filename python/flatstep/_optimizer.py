"""What SGD, Adam and AdamW share: segments, state, the step and the state dict."""

import math

from . import _arrays, _checks, _core, _torch_state
from ._results import StepInfo, StepOnDevice
from ._segments import array_name, make_segments
from ._state import State

MODES = {"native": _core.OptimizerMode.native, "torch": _core.OptimizerMode.torch}
_FORMATS = {"full": _core.StateFormat.full, "8bit": _core.StateFormat.block8}


class Optimizer:
    """What the three algorithms share: segments, state, the step and the state dict."""

    _algorithm = None
    _kind = ""

    def __init__(
        self,
        params,
        *,
        state_names,
        lr,
        weight_decay,
        layout,
        mode,
        state,
        stochastic_rounding,
        bf16_copy,
        seed,
        max_consecutive_skips,
        **options,
    ):
        self._flat = not isinstance(params, (list, tuple))
        self._params = as_list(params)
        self._segments = make_segments(self._params, layout, self._flat)
        self._seed = _checks.unsigned64(seed, "seed")
        self.lr = lr
        described = [
            _arrays.describe(p, array_name(i, self._flat)) for i, p in enumerate(self._params)
        ]
        shapes = [shape for shape, _ in described]
        sizes = [math.prod(shape) for shape in shapes]
        dtypes = {dtype for _, dtype in described}
        core_params, copy = self._params, None if bf16_copy is None else as_list(bf16_copy)
        self._master = None
        if stochastic_rounding and dtypes != {"bfloat16"}:
            raise ValueError("stochastic_rounding: got True, expected False unless params are bf16")
        if dtypes == {"bfloat16"} and not stochastic_rounding:
            if copy is not None:
                raise ValueError("bf16_copy: got one for bfloat16 params, expected None")
            self._master = [
                _arrays.zeros(shape, "float32", p)
                for shape, p in zip(shapes, self._params, strict=True)
            ]
            core_params, copy = self._master, self._params
        self._state = State(
            self._segments,
            self._params,
            sizes,
            "float64" if dtypes == {"float64"} else "float32",
            state_names,
            _checks.choice(state, _FORMATS, "state") == _core.StateFormat.block8,
            self._master,
        )
        buffers = self._state.for_core()
        if copy is not None:
            buffers["copy"] = copy
        own_options = core_options(
            options,
            algorithm=self._algorithm,
            mode=_checks.choice(mode, MODES, "mode"),
            state=_FORMATS[state],
            seed=self._seed,
            weight_decay=_checks.number(weight_decay, "weight_decay"),
            max_consecutive_skips=_checks.unsigned(
                0 if max_consecutive_skips is None else max_consecutive_skips,
                "max_consecutive_skips",
                bits=31,
            ),
        )
        self._options = options
        segments = [segment.for_core() for segment in self._segments]
        copy_name = "bf16_copy" if self._master is None else "params"
        self._core = _core.Optimizer(own_options, core_params, buffers, copy_name, segments)
        if self._master is not None:
            convert_all(self._params, self._master)
        elif copy is not None:
            convert_all(self._params, copy)

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
    def weight_decay(self):
        """Weight decay of the tensors that have none of their own in the layout; assign to it to
        follow a schedule."""
        return self._core.weight_decay

    @weight_decay.setter
    def weight_decay(self, value):
        self._core.weight_decay = _checks.number(value, "weight_decay")

    @property
    def step_count(self):
        """Steps done; skipped ones do not count. On CUDA this waits for the steps before."""
        return self._core.step_count

    @property
    def master(self):
        """The float32 parameters behind bfloat16 ones, like ``params``; None if there are none.

        To set parameters, write to these: the next step rounds them into ``params``."""
        return self._master and self._like_params(self._master)

    def step(
        self, grads, *, lr=None, max_norm=None, grad_scale=1.0, zero_grad=False, partials=None
    ):
        """Unscale, clip, update and zero, in two visits of memory, or in one with ``partials``.

        Args:
            grads: like ``params``: one array or a list of arrays, of the same shapes; float64 for
                float64 parameters, else float32, bfloat16 or float16.
            lr: learning rate of this step; None takes ``self.lr``. On CUDA it may be an array of
                one float64 on the device, which a captured graph reads anew at each launch.
            max_norm: clip the global norm to this; None does not clip.
            grad_scale: the gradients are divided by this first.
            zero_grad: write zeros to the gradients in the same visit; a skipped step leaves them.
            partials: the :class:`flatstep.GradPartials` of these very gradients, as returned by
                :func:`flatstep.accumulate` or kept by a model: the norm needs no visit then. If
                the gradients have changed since, the norm is wrong, and what is not finite may
                pass unnoticed.

        Returns:
            A :class:`StepInfo`. When a gradient is not finite, no byte of parameters or state
            changes, and ``nonfinite`` names the first such element.

        On CUDA the gradients are on the device of ``params``, the step runs on the current stream
        of their library and does not wait for it: the numbers of the result do, at the first look.
        It may be captured in a graph.

        Raises:
            ValueError, TypeError: an argument is wrong; nothing was written.
            RuntimeError: another thread is inside ``step``, or ``max_consecutive_skips`` steps in a
                row were not finite (on CUDA, when the result or the next one is waited for).
        """
        # Between two steps the caches have lost this code: each function more takes microseconds.
        device_lr, used_lr = None, self._lr
        if type(lr) is float:
            used_lr = lr
        elif lr is not None:
            if _arrays.is_array(lr) and _arrays.cuda_index(lr) is not None:
                device_lr = lr
            else:
                used_lr = _checks.number(lr, "lr")
        if partials is not None and not isinstance(partials, _core.GradPartials):
            raise TypeError(
                f"partials: got {type(partials).__name__}, expected flatstep.GradPartials"
            )
        if max_norm is not None and type(max_norm) is not float:
            max_norm = _checks.number(max_norm, "max_norm")
        if type(grad_scale) is not float:
            grad_scale = _checks.number(grad_scale, "grad_scale")
        values = self._core.step(  # by position: names are looked up
            as_list(grads),
            used_lr,
            device_lr,
            max_norm,
            grad_scale,
            bool(zero_grad),
            partials,
        )
        if type(values) is not tuple:
            return StepOnDevice(values, self._segments, used_lr if device_lr is None else None)
        norm, clip_scale, skipped, segment, index, count = values
        nonfinite = (self._segments[segment].name, index) if segment >= 0 else None
        return StepInfo(norm, clip_scale, skipped, nonfinite, used_lr, count)

    def _like_params(self, arrays):
        return arrays[0] if self._flat else arrays

    def state_dict(self):
        """Copies of the state.

        ``{"kind", "step", "lr", "seed", "state": {tensor name: {"exp_avg": array, ...}}}``: arrays
        have the tensor's shape; 8-bit moments are uint8 and come with a flat uint16
        ``NAME_scale``; ``master`` holds the float32 parameters behind bfloat16 ones. Tensors have
        the names of the layout, else ``params`` or ``params[i]``. The arrays are NumPy's, also on
        CUDA, where this waits for the steps before.
        """
        own = self._state_views()
        state = {
            tensor: {name: view.copy() for name, view in views.items()}
            for tensor, views in own["state"].items()
        }
        return own | {"state": state}

    def _state_views(self):
        """:meth:`state_dict` without copies where the state is in the host's memory."""
        return {
            "kind": self._kind,
            "step": self.step_count,
            "lr": self.lr,
            "seed": self._seed,
            "state": self._state.views(self._state.on_host()),
        }

    def load_state_dict(self, state_dict):
        """Takes over what :meth:`state_dict` returned, on whichever device that was.

        Raises:
            ValueError, TypeError: another kind of optimizer or seed, tensors that are missing or
                unknown, or a shape or dtype that differs; nothing was changed.
        """
        if not isinstance(state_dict, dict):
            raise TypeError(f"state_dict: got {type(state_dict).__name__}, expected a dict")
        missing = {"kind", "step", "state"} - set(state_dict)
        if missing:
            raise ValueError(f"state_dict: got no {sorted(missing)[0]!r}, expected one")
        for name, own in (("kind", self._kind), ("seed", self._seed)):
            if state_dict.get(name, own) != own:
                raise ValueError(f"state_dict: got {name} {state_dict[name]!r}, expected {own!r}")
        self._load(state_dict["step"], state_dict["state"], state_dict.get("lr", self.lr))

    def _load(self, step, state, lr):
        step = _checks.step_number(step)
        host = self._state.on_host()
        pairs = self._state.pairs(host, state)
        self.lr = lr
        for view, value in pairs:
            view[...] = value
        self._state.put_back(host)
        if self._master is not None:
            convert_all(self._master, self._params)
        self._core.step_count = step

    def torch_state_dict(self):
        """The state as ``torch.optim`` has it, for ``load_state_dict`` of the PyTorch optimizer of
        the same name over the same tensors in the same order. There is a parameter group for each
        run of tensors with the same options: one, unless a layout has options of its own.

        Raises:
            ImportError: PyTorch is not installed.
            ValueError: the state has 8 bits, which PyTorch does not know.
        """
        return _torch_state.export_state(self)

    def _torch_options(self, segment):
        """The options of that tensor's group, as the PyTorch optimizer of the same name takes."""
        options = {k: v for k, v in self._options.items() if k not in ("beta1", "beta2")}
        if "beta1" in self._options:
            own = (self._options["beta1"], self._options["beta2"])
            options["betas"] = own if segment.betas is None else tuple(segment.betas)
        decay = self.weight_decay if segment.weight_decay is None else segment.weight_decay
        return options | {"lr": self.lr * segment.lr_scale, "weight_decay": decay}

    def load_torch_state_dict(self, state_dict):
        """Takes over moments, step count and lr from ``state_dict()`` of a ``torch.optim``
        optimizer of the same kind over the same tensors in the same order. Decay, betas and other
        options stay those of this optimizer.

        Raises:
            ValueError, TypeError: tensors are missing or have other shapes, or their step counts
                differ; nothing was changed.
        """
        self._load(*_torch_state.import_state(self, state_dict))


def core_options(own, **common):
    """The core's options: those of the algorithm and those that all share."""
    options = _core.OptimizerOptions()
    for name, value in (own | common).items():
        setattr(options, name, value)
    return options


def convert_all(sources, targets):
    """Rounds float32 arrays to bfloat16 ones, or widens them."""
    for source, target in zip(sources, targets, strict=True):
        _core.convert(source, target)


def as_list(arrays):
    """A list of arrays, also from a single one."""
    return list(arrays) if isinstance(arrays, (list, tuple)) else [arrays]
