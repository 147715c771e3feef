"""Parameters that the core updates in one call: of one device, dtype and step count."""

import math
from itertools import chain

import torch

from .. import _core
from .._results import StepInfo, StepOnDevice
from ._tensors import ARITHMETIC, check_gradient, in_order, real

# Members of the core's Segment that hold the moments, in the order of Settings.state_names.
_MOMENTS = ("state1", "state2", "state3")


class Bucket:
    """The arrays of some parameters, and the core's optimizer over them.

    entries: of one device, dtype, dtype of gradients and step count, in groups with the same
    options. count: their steps so far. counted: whether PyTorch keeps that number, as ``step``.
    """

    def __init__(self, entries, mode, settings, count, counted, careful):
        self.entries = entries
        self._mode = mode
        self._key = self._core = None
        self._count = count  # for the next core
        self._groups = sorted({entry.group for entry in entries})
        self._state_names = settings[self._groups[0]].state_names
        dtype = entries[0].parameter.dtype
        self.arithmetic = ARITHMETIC[dtype]
        self.on_cuda = entries[0].parameter.device.type == "cuda"
        self.has_masters = dtype is torch.bfloat16
        self._steps = None
        if counted:
            # One tensor, of which each parameter's step is a view: all go on in one call.
            self._steps = torch.full((len(entries),), float(count), dtype=torch.float32)
            for entry, step in zip(entries, self._steps.unbind(), strict=True):
                entry.state["step"] = step
            self._steps_version = self._steps._version
        for entry in entries:
            entry.take_arrays(self._state_names, count)
        members = ["params", *_MOMENTS[: len(self._state_names)]] + ["copy"] * self.has_masters
        arrays = zip(*(entry.views for entry in entries), strict=True)
        self._arrays = {name: [*own] for name, own in zip(members, arrays, strict=True)}
        self._sizes = [*map(torch.Tensor.numel, self._arrays["params"])]
        self._outside = [entry.outside for entry in entries if entry.outside is not None]
        self._in_order = all(entry.order is None for entry in entries)
        self.look_closely(careful)
        self._states = [entry.state for entry in entries]
        self._kept = [*self._values()]  # kept, so that their ids are not used again
        self._kept_ids = [*map(id, self._kept)]
        self._watched = [*chain.from_iterable(entry.watched for entry in entries)]
        self._pointers = [*chain.from_iterable(entry.pointers for entry in entries)]

    # ---- between steps ---------------------------------------------------------------------------

    def _values(self):
        return chain.from_iterable(map(dict.values, self._states))

    def intact(self):
        """Whether the core's arrays are still those of the parameters and of their state."""
        return (
            [*map(id, self._values())] == self._kept_ids
            and [*map(torch.Tensor.data_ptr, self._watched)] == self._pointers
            and self._untouched()
        )

    def _untouched(self):
        """Whether nobody but us has changed a step count."""
        return self._steps is None or self._steps._version == self._steps_version

    def serves(self, entries, count, settings):
        """Whether it can go on as the bucket of these entries, with so many steps done."""
        return (
            entries == self.entries
            and self._state_names == settings[self._groups[0]].state_names
            and self.intact()
            and self.count() == count
        )

    def look_closely(self, careful):
        """careful: gradients may be in another order or watched by autograd."""
        self._careful = careful or not self._in_order

    def configure(self, settings):
        """Learning rate, decay and options of this step; a new core where it cannot change them."""
        own = [settings[group] for group in self._groups]
        lr, scales = self._rates(own)
        decays = {s.weight_decay for s in own}
        decay = decays.pop() if len(decays) == 1 else None
        tuned = [
            (scale, s.weight_decay if decay is None else None, s.betas)
            for scale, s in zip(scales, own, strict=True)
        ]
        key = (own[0].options, tuned)
        if key != self._key:
            self._make_core(own[0], dict(zip(self._groups, tuned, strict=True)))
            self._key = key
        if decay is not None and decay != self._core.weight_decay:
            self._core.weight_decay = decay
        self._lr, self._first_lr = lr, own[0].lr

    def _rates(self, own):
        """(the core's lr, the factor of each group): products are exactly the groups' rates."""
        first = own[0].lr
        if all(s.lr is first for s in own) and isinstance(first, torch.Tensor) and self.on_cuda:
            return first.detach().double().reshape(()), [1.0] * len(own)
        rates = [float(s.lr) for s in own]
        if len(set(rates)) == 1:
            return rates[0], [1.0] * len(own)
        return 1.0, rates

    def _make_core(self, settings, tuned):
        count = self.count()
        segments = [  # whole arrays, in the form of Segment.for_core
            (number, 0, size, 0, *tuned[entry.group], entry.name)
            for number, (entry, size) in enumerate(zip(self.entries, self._sizes, strict=True))
        ]
        buffers = {name: arrays for name, arrays in self._arrays.items() if name != "params"}
        self._core = _core.Optimizer(
            settings.core_options(self._mode),
            self._arrays["params"],
            buffers,
            "params",
            segments,
        )
        self._core.step_count = count

    def count(self):
        """Steps done. On CUDA this waits for them."""
        return self._count if self._core is None else self._core.step_count

    def write_count(self):
        """Brings the state up to the steps done, which a CUDA device counts by itself."""
        count = self.count()
        if not self._untouched():
            return  # what others have written counts
        if self._steps is not None:
            self._steps.fill_(count)
            self._steps_version = self._steps._version
        elif count == 0:  # for PyTorch a momentum buffer says that there was a step
            for entry in self.entries:
                entry.state.pop("momentum_buffer", None)

    # ---- the step --------------------------------------------------------------------------------

    def gradients(self, all_gradients):
        """Those of this bucket, as the core takes them."""
        if not self._careful:
            if len(all_gradients) == len(self.entries):
                return all_gradients
            return [all_gradients[entry.index] for entry in self.entries]
        found = []
        for entry in self.entries:
            gradient = all_gradients[entry.index]
            check_gradient(gradient, entry.parameter, entry.name)
            found.append(in_order(real(gradient), entry.order).contiguous())
        return found

    def beyond(self, gradients, norm, factor):
        """(number of entry, index) of the first element that scaling and, for Adam in native mode,
        squaring takes beyond the range of the arithmetic, as the core would find it; or None."""
        largest = torch.finfo(self.arithmetic).max
        if "exp_avg_sq" in self._state_names and self._mode == _core.OptimizerMode.native:
            largest = math.sqrt(largest)
        if norm * factor <= largest:
            return None
        for number, gradient in enumerate(gradients):
            over = gradient.double().abs().mul_(factor).reshape(-1) > largest
            if over.any():
                return number, int(over.int().argmax())
        return None

    def step(self, gradients, max_norm, grad_scale, zero_grad, partials=None):
        """The core's step over what :meth:`gradients` returned; what it returns. partials: their
        GradPartials, if they are known."""
        for parameter, dense in self._outside:
            dense.copy_(parameter)
        if self.has_masters:
            for entry in self.entries:
                if entry.parameter._version != entry.version:
                    entry.follow_parameter()
        on_device = isinstance(self._lr, torch.Tensor)
        return self._core.step(
            gradients,
            0.0 if on_device else self._lr,
            self._lr if on_device else None,
            max_norm,
            grad_scale,
            zero_grad,
            partials,
        )

    def finish(self, all_gradients, gradients, zero_grad, skipped):
        """After a step: what PyTorch is to see of it. skipped: None if the host does not know."""
        if not skipped:
            for parameter, dense in self._outside:
                parameter.copy_(dense)
            touched = [entry.parameter for entry in self.entries]
            if zero_grad:
                own = [all_gradients[entry.index] for entry in self.entries]
                touched += own
                if self._careful:
                    self._write_back(own, gradients)
            torch.autograd.graph.increment_version(touched)
            if self.has_masters:
                for entry in self.entries:
                    entry.version = entry.parameter._version
        if skipped is not None:
            self.write_count()

    def _write_back(self, own, gradients):
        """Zeros into the gradients of which the core had copies."""
        for gradient, given, entry in zip(own, gradients, self.entries, strict=True):
            if given.data_ptr() != gradient.data_ptr():
                in_order(real(gradient), entry.order).copy_(given)

    def shown_lr(self):
        """The rate of the first group."""
        return float(self._first_lr)

    def info(self, values):
        """The StepInfo of what :meth:`step` returned."""
        if type(values) is not tuple:
            lr = None if isinstance(self._lr, torch.Tensor) else self.shown_lr()
            return StepOnDevice(values, self.entries, lr)
        norm, clip_scale, skipped, segment, index, _ = values
        nonfinite = (self.entries[segment].name, index) if segment >= 0 else None
        return StepInfo(norm, clip_scale, skipped, nonfinite, self.shown_lr(), self.count())
