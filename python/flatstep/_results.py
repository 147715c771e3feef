"""What the loss and the optimizers return: plain numbers on the CPU; on a CUDA device the same
attributes, whose numbers are waited for at the first look."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class CrossEntropyResult:
    """What :func:`flatstep.cross_entropy` returns.

    Attributes:
        loss: float for ``mean`` and ``sum``; for ``none`` an array ``[...]``, 0 where ignored.
        grad: gradient by the logits, of their shape and dtype, or None.
        lse: log-sum-exp of each row ``[...]``; 0 for ignored rows.
        entropy: of each row's distribution ``[...]``, in nats; 0 for ignored rows.
        n_valid: number of targets that are not ``ignore_index``.
        n_correct: how many of them are the first of their row's largest logits.
        weight_sum: sum of class weight times token weight over the valid targets.

    ``lse``, ``entropy`` and a per-row ``loss`` are float64 for float64 logits and float32 for all
    others.

    On CUDA arrays are there at once, in the order of the stream. A float ``loss`` and the last
    three are waited for when one of them is first looked at, which raises what the call would have
    raised on the CPU, or the fault of an earlier call that nobody has looked at. Of a call that was
    captured in a graph they are read anew each time, once the device has done all its work: keep
    the result as long as the graph.
    """

    loss: Any
    grad: Any
    lse: Any
    entropy: Any
    n_valid: int
    n_correct: int
    weight_sum: float


@dataclass(frozen=True)
class LinearCrossEntropyResult:
    """What :func:`flatstep.linear_cross_entropy` returns.

    Attributes:
        grad_hidden: of the shape and dtype of ``hidden``, or None.
        grad_weight: float32 ``[V, D]``, or None.
        grad_bias: float32 ``[V]``, or None.

    The others, and what they are on CUDA, are those of :class:`CrossEntropyResult`.
    """

    loss: Any
    grad_hidden: Any
    grad_weight: Any
    grad_bias: Any
    lse: Any
    entropy: Any
    n_valid: int
    n_correct: int
    weight_sum: float


@dataclass(frozen=True)
class StepInfo:
    """What a step did.

    Attributes:
        grad_norm: global L2 norm of the gradients, after division by ``grad_scale`` and before
            clipping; not finite when a gradient was not.
        clip_scale: factor applied by clipping, ``min(1, max_norm / (grad_norm + 1e-6))``.
        skipped: a gradient was not finite, or not any more once it was scaled and, for Adam in
            native mode, squared; nothing was changed.
        nonfinite: None, or (tensor name, flat index in it) of the first such element.
        lr: learning rate of this step.
        step: steps done, this one included unless it was skipped.

    On CUDA all but ``lr`` (unless that is an array) are waited for when one of them is first looked
    at, as in :class:`CrossEntropyResult`; the error may be that of ``max_consecutive_skips``.
    """

    grad_norm: float
    clip_scale: float
    skipped: bool
    nonfinite: tuple | None
    lr: float
    step: int


def _number(index):
    """An attribute that the device writes; ``values()`` waits for it, and keeps it."""
    return property(lambda self: self._status.values()[index])


class _OnDevice:
    def __repr__(self):  # that of a dataclass would wait
        return f"<{type(self).__name__}, whose numbers are waited for>"


class _LossOnDevice(_OnDevice):
    @property
    def loss(self):
        return self._status.values()[0] if self._loss is None else self._loss

    n_valid, n_correct, weight_sum = map(_number, (1, 2, 3))


class CrossEntropyOnDevice(_LossOnDevice, CrossEntropyResult):
    """The result of a call on a CUDA device."""


class LinearCrossEntropyOnDevice(_LossOnDevice, LinearCrossEntropyResult):
    """The result of a call on a CUDA device."""


_ON_DEVICE = {
    CrossEntropyResult: CrossEntropyOnDevice,
    LinearCrossEntropyResult: LinearCrossEntropyOnDevice,
}


def result_of(kind, values, loss, **arrays):
    """What a call of the core with these values returns: a ``kind``, or its like on a device.
    ``loss``: those of the rows, or None."""
    if type(values) is tuple:
        total, n_valid, n_correct, weight_sum = values
        arrays["loss"] = total if loss is None else loss
        arrays["n_valid"] = n_valid
        arrays["n_correct"] = n_correct
        arrays["weight_sum"] = weight_sum
    else:
        kind = _ON_DEVICE[kind]
        arrays["_status"] = values
        arrays["_loss"] = loss
    result = object.__new__(kind)
    object.__setattr__(result, "__dict__", arrays)  # __init__ of a frozen dataclass takes thrice
    return result


class StepOnDevice(_OnDevice, StepInfo):
    """The result of a step on a CUDA device."""

    def __init__(self, status, segments, lr):
        self.__dict__.update(_status=status, _segments=segments, _lr=lr)

    grad_norm, clip_scale, skipped, step = map(_number, (0, 1, 2, 6))

    @property
    def nonfinite(self):
        segment, index = self._status.values()[3:5]
        return (self._segments[segment].name, index) if segment >= 0 else None

    @property
    def lr(self):
        return self._status.values()[5] if self._lr is None else self._lr
