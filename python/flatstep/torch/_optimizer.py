"""What SGD, Adam and AdamW for PyTorch share: the step, and when the core has to be made anew."""

import abc
import math
import sys
from itertools import chain

import torch

from .. import _checks, _core
from .._optimizer import MODES
from .._results import StepInfo
from ._bucket import Bucket
from ._entry import Entry
from ._settings import names_of, partition
from ._tensors import check_parameter

_NO_STATE = {}  # of SGD without momentum
_MOST_ABSENCES = 16  # plans for which a parameter without a gradient keeps its entry


class Plan:
    """The buckets of the parameters that have gradients, as long as nobody exchanges a tensor.

    old: buckets of the plan before, which go on where they can. known: {index: the entry} of
    parameters that had a gradient before, be it in an earlier plan.
    """

    def __init__(self, optimizer, settings, parameters, gradients, old, known, *, careful):
        self.careful = careful or not all(
            g is None or (g.is_contiguous() and not g.requires_grad) for g in gradients
        )
        self._partition = partition(settings)
        self._ids = [*map(id, parameters)]
        self._absent = [gradient is None for gradient in gradients]
        old = {id(bucket.entries[0].parameter): bucket for bucket in old}
        self.buckets = []
        self.entries = {}
        for (*_, count), entries in _groups(optimizer, settings, gradients, known).items():
            self.entries.update((entry.index, entry) for entry in entries)
            bucket = old.get(id(entries[0].parameter))
            if bucket is not None and bucket.serves(entries, count, settings):
                bucket.look_closely(self.careful)
            else:
                mode, counted = MODES[optimizer.mode], optimizer._counted
                bucket = Bucket(entries, mode, settings, count, counted, self.careful)
            self.buckets.append(bucket)
        # SGD's tensors differ in their first step only.
        counts = [bucket.count() for bucket in self.buckets]
        self._passing = not optimizer._counted and len(counts) > 1 and 0 in counts
        self._states = [*optimizer.state.values()]  # kept, so that their ids are not used again
        self._state_ids = [*map(id, self._states)]

    def fits(self, state, settings, parameters, gradients):
        """Whether the same parameters as before have gradients, and the same memory."""
        return (
            not self._passing
            and [*map(id, parameters)] == self._ids
            and [gradient is None for gradient in gradients] == self._absent
            and [*map(id, state.values())] == self._state_ids
            and partition(settings) == self._partition
            and all(bucket.intact() for bucket in self.buckets)
        )

    def step(self, settings, gradients, max_norm, zero_grad):
        """The step of all buckets; its StepInfo, or None if no parameter has a gradient."""
        for bucket in self.buckets:
            bucket.configure(settings)
        taken = [bucket.gradients(gradients) for bucket in self.buckets]
        if len(taken) > 1:
            return self._step_together(gradients, taken, max_norm, zero_grad)
        for bucket, own in zip(self.buckets, taken, strict=True):
            values = bucket.step(own, max_norm, 1.0, zero_grad)
            skipped = values[2] if type(values) is tuple else None
            bucket.finish(gradients, own, zero_grad, skipped)
            return bucket.info(values)
        return None

    def _step_together(self, gradients, taken, max_norm, zero_grad):
        """Several calls of the core that are clipped by one norm, and skipped if one of them is."""
        pairs = list(zip(self.buckets, taken, strict=True))
        norms, sums, fault = [], [], None
        for bucket, own in pairs:
            sums.append(None if bucket.on_cuda else _core.GradPartials())
            norm, segment, index = _core.grad_norm(own, None, sums[-1])
            norms.append(norm)
            if segment >= 0 and fault is None:
                fault = bucket.entries[segment].name, index
        total = math.hypot(*norms)
        scale = 1.0 if max_norm is None else min(1.0, max_norm / (total + 1e-6))
        for (bucket, own), norm in zip(pairs, norms, strict=True):
            if fault is None and (found := bucket.beyond(own, norm, scale)):
                fault = bucket.entries[found[0]].name, found[1]
        if fault is None:
            divisor = min(1 / scale, sys.float_info.max) if scale > 0 else sys.float_info.max
            for (bucket, own), partials in zip(pairs, sums, strict=True):
                bucket.step(own, None, divisor, zero_grad, partials)
        for bucket, own in pairs:
            bucket.finish(gradients, own, zero_grad, fault is not None)
        first = self.buckets[0]
        done = scale if fault is None else 1.0
        return StepInfo(total, done, fault is not None, fault, first.shown_lr(), first.count())


def _groups(optimizer, settings, gradients, known):
    """{what a bucket has in common, the step count last: its entries}; known ones serve again."""
    buckets, first, classes = {}, 0, partition(settings)
    for number, group in enumerate(optimizer.param_groups):
        own, names = settings[number], None
        for index, parameter in enumerate(group["params"], first):
            gradient = gradients[index]
            if gradient is None:
                continue
            kept = own.state_names or parameter.dtype is torch.bfloat16
            state = optimizer.state[parameter] if kept else _NO_STATE
            entry = known.get(index)
            if entry is None or not entry.serves(number, parameter, state, own.state_names):
                names = names or names_of(group, first)
                entry = Entry(index, number, names[index - first], parameter, state)
            check_parameter(parameter, entry.name, optimizer.mode)
            entry.absences = 0
            common = (parameter.device, parameter.dtype, gradient.dtype, classes[number])
            key = (*common, optimizer._count_of(entry.name, state, own))
            buckets.setdefault(key, []).append(entry)
        first += len(group["params"])
    return buckets


def _waiting(known, present):
    """Those known that had a gradient not long ago: for longer they are to hold no memory."""
    waiting = {}
    for index, entry in known.items():
        if index not in present and entry.absences < _MOST_ABSENCES:
            entry.absences += 1
            waiting[index] = entry
    return waiting


class FlatOptimizer(torch.optim.Optimizer, abc.ABC):
    """A ``torch.optim.Optimizer`` whose step is one call of flatstep's core.

    Attributes:
        mode: ``"native"`` or ``"torch"``.
        max_norm: clip the gradients' norm to this in each step, or None; may be assigned.
        last_step: what the last step did, a :class:`flatstep.StepInfo`; None before the first one,
            and if no parameter had a gradient.
    """

    _counted = True  # whether the state of a parameter has its number of steps

    def __init__(self, params, defaults, mode, max_norm, zero_grad):
        if defaults["differentiable"]:
            raise ValueError("differentiable: got True, expected False")
        _checks.choice(mode, MODES, "mode")
        self.mode = mode
        self.max_norm = max_norm
        self._zero_grad = bool(zero_grad)
        self._steps_done = 0  # for what PyTorch does not count
        self._plan = self.last_step = None
        self._entries = {}  # of parameters that have a gradient now or had one not long ago
        super().__init__(params, defaults)

    @property
    def max_norm(self):
        return self._max_norm

    @max_norm.setter
    def max_norm(self, value):
        value = _checks.optional_number(value, "max_norm")
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"max_norm: got {value}, expected a finite number > 0")
        self._max_norm = value

    @abc.abstractmethod
    def _settings(self, group):
        """The Settings of a parameter group. Raises ValueError or TypeError."""

    def _count_of(self, name, state, settings):
        """The steps that a parameter with this name and state has seen."""
        if "step" in state:
            return int(state["step"])
        if state.keys() - {"master"}:
            got, wanted = ", ".join(state), ", ".join(settings.state_names)
            raise ValueError(f"state: got {got} of {name}, expected step, {wanted}")
        return 0

    def add_param_group(self, param_group):
        """As in PyTorch; what flatstep cannot update is refused, and nothing is added."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            # An optimizer over nothing checks the options.
            _core.Optimizer(
                self._settings(group).core_options(MODES[self.mode]), [], {}, "params", []
            )
            first = sum(len(other["params"]) for other in self.param_groups[:-1])
            for name, parameter in zip(names_of(group, first), group["params"], strict=True):
                check_parameter(parameter, name, self.mode)
        except Exception:
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure=None):
        """Clips, updates and, if asked to, zeroes the gradients, in two visits of memory.

        Parameters without a gradient are left out, and their step count stays. When a gradient is
        not finite, nothing is changed and no count goes on: see :attr:`last_step`. On CUDA the
        numbers there are waited for at the first look.

        Args:
            closure: computes loss and gradients anew, and returns the loss.

        Returns:
            What the closure returned, or None.

        Raises:
            ValueError, TypeError: an option, a parameter, its state or its gradient cannot be
                used; the message names it, and nothing was written.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        settings = [self._settings(group) for group in self.param_groups]
        parameters = [p for group in self.param_groups for p in group["params"]]
        gradients = [p.grad for p in parameters]

        def new_plan(careful):
            old, known = self._forget_plan(), self._entries
            plan = Plan(self, settings, parameters, gradients, old, known, careful=careful)
            self._entries = plan.entries | _waiting(known, plan.entries)
            return plan

        plan, given = self._plan, (settings, gradients, self._max_norm, self._zero_grad)
        if plan is None or not plan.fits(self.state, settings, parameters, gradients):
            plan = self._plan = new_plan(careful=False)
        else:  # the others may not come back soon, and are to hold no memory
            self._entries = plan.entries
        try:
            self.last_step = plan.step(*given)
        except (TypeError, ValueError):
            if plan.careful:
                raise
            # Gradients of another kind than before, or a fault, which is found with its name.
            plan = self._plan = new_plan(careful=True)
            self.last_step = plan.step(*given)
        return loss

    def _write_counts(self):
        if self._plan is not None:
            for bucket in self._plan.buckets:
                bucket.write_count()
                self._steps_done = max(self._steps_done, bucket.count())

    def _forget_plan(self):
        """The buckets that there were."""
        self._write_counts()
        plan, self._plan = self._plan, None
        return [] if plan is None else plan.buckets

    # ---- state -----------------------------------------------------------------------------------

    def state_dict(self):
        """As in PyTorch, and for PyTorch's optimizer of the same name. On CUDA this waits for the
        steps before."""
        self._write_counts()
        return super().state_dict()

    def load_state_dict(self, state_dict):
        """Takes over what :meth:`state_dict`, also that of PyTorch's optimizer, returned. Moments
        and masters of bfloat16 parameters stay float32."""
        final = {}
        handle = self.register_load_state_dict_pre_hook(lambda _, given: final.update(given))
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        numbers = chain.from_iterable(group["params"] for group in final["param_groups"])
        own = chain.from_iterable(group["params"] for group in self.param_groups)
        for number, parameter in zip(numbers, own, strict=True):
            if parameter.dtype is torch.bfloat16:
                for name, value in final["state"].get(number, {}).items():
                    if name != "step" and isinstance(value, torch.Tensor):
                        moved = value.to(parameter.device, torch.float32)
                        self.state[parameter][name] = moved

    def __getstate__(self):
        self._write_counts()
        own = {"mode", "_max_norm", "_zero_grad", "_steps_done"}
        return super().__getstate__() | {name: getattr(self, name) for name in own}

    def __setstate__(self, state):
        super().__setstate__(state)
        self._plan = self.last_step = None
        self._entries = {}
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)
