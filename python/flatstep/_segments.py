"""Where the tensors of an optimizer lie, and how its state arrays are cut by tensor."""

import math
from dataclasses import dataclass

from . import _arrays, _core
from .layout import Layout

BLOCK = _core.state_block()  # elements that share a scale in 8-bit state


@dataclass(frozen=True)
class Segment:
    """One tensor: a stretch of one of the arrays, and its group's options."""

    array: int
    offset: int
    size: int
    block: int  # first block of 8-bit state in that array
    lr_scale: float
    weight_decay: float | None
    betas: tuple | None
    name: str
    shape: tuple

    def for_core(self):
        """The tuple that the core takes."""
        return (
            *(self.array, self.offset, self.size, self.block),
            *(self.lr_scale, self.weight_decay, self.betas, self.name),
        )

    @property
    def blocks(self):
        """How many blocks its 8-bit state has."""
        return -(-self.size // BLOCK)


def make_segments(params, layout, flat):
    """The segments of the parameter arrays; those of a layout, if one is given."""
    shapes = [_arrays.describe(p, array_name(i, flat))[0] for i, p in enumerate(params)]
    if layout is None:
        plain = (1.0, None, None)
        return [
            Segment(i, 0, math.prod(shape), 0, *plain, array_name(i, flat), shape)
            for i, shape in enumerate(shapes)
        ]
    if not isinstance(layout, Layout):
        raise TypeError(f"layout: got {type(layout).__name__}, expected a flatstep.Layout")
    if flat and shapes[0] != (layout.size,):
        raise ValueError(
            f"layout: got one of {layout.size} elements for params of shape {shapes[0]}, "
            "expected the same size"
        )
    if not flat and shapes != [entry.shape for entry in layout.entries]:
        raise ValueError("layout: got other tensors than the list of params, expected their shapes")
    segments, block = [], 0
    for i, entry in enumerate(layout.entries):
        place = (0, entry.offset, entry.size, block) if flat else (i, 0, entry.size, 0)
        group = (entry.lr_scale, entry.weight_decay, entry.betas)
        segments.append(Segment(*place, *group, entry.name, entry.shape))
        block += segments[-1].blocks
    return segments


def array_name(index, flat):
    """What messages call one of the parameter arrays."""
    return "params" if flat else f"params[{index}]"


def blocks_of_arrays(segments, arrays):
    """How many blocks of 8-bit state each of so many arrays has."""
    counts = [0] * arrays
    for segment in segments:
        counts[segment.array] += segment.blocks
    return counts
