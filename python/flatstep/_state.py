"""The state arrays of an optimizer: made, cut by tensor, checked and read back."""

import numpy as np

from . import _arrays, _segments

# Members of the core's Segment that hold the moments, in the order of an optimizer's names.
_MOMENTS = ("state1", "state2", "state3")
_SCALES = ("scale1", "scale2")


class State:
    """What an optimizer keeps for each element, in flat arrays, one for each array of params.

    sizes: of params, in elements. names: the moments' names. low_bit: one byte a moment, and for
    each 128 elements a scale in "NAME_scale". master: float32 arrays of parameters that are kept
    beside 16-bit ones, or None. On the CPU the arrays are NumPy's; on CUDA they are on the device
    of params, and come to the host as copies.
    """

    def __init__(self, segments, params, sizes, dtype, names, low_bit, master):
        self._segments = segments
        self._low_bit = low_bit
        self._names = tuple(names)
        moment = "uint8" if low_bit else dtype

        def zeros(counts, dtype):
            return [_arrays.zeros(n, dtype, p) for n, p in zip(counts, params, strict=True)]

        self._arrays = {name: zeros(sizes, moment) for name in names}
        if low_bit:
            blocks = _segments.blocks_of_arrays(segments, len(sizes))
            for name in names:
                self._arrays[name + "_scale"] = zeros(blocks, "uint16")
        if master is not None:
            flat = [array.reshape(size) for array, size in zip(master, sizes, strict=True)]
            self._arrays["master"] = flat

    def for_core(self):
        """The buffers that the core takes, by the names of its segments' members."""
        buffers = {}
        for name, member, scale in zip(self._names, _MOMENTS, (*_SCALES, ""), strict=False):
            buffers[member] = self._arrays[name]
            if self._low_bit:
                buffers[scale] = self._arrays[name + "_scale"]
        return buffers

    def moment(self, name):
        """A moment as numbers, flat, one array for each of params; decoded from 8 bits."""
        if not self._low_bit:
            return self._arrays[name]
        host = self.on_host((name, name + "_scale"))
        decoded = [np.zeros(array.size, np.float32) for array in host[name]]
        for segment in self._segments:
            codes, scales = (_view(host, each, segment) for each in host)
            out = decoded[segment.array][segment.offset : segment.offset + segment.size]
            out[:] = decode(codes.reshape(-1), scales, signed=name == self._names[0])
        return decoded

    def on_host(self, names=None):
        """``{name: NumPy arrays}``: the state itself, or copies that wait for a device."""
        return {
            name: [_arrays.on_host(array) for array in self._arrays[name]]
            for name in names or self._arrays
        }

    def put_back(self, host):
        """Takes over what :meth:`on_host` returned."""
        for name, arrays in host.items():
            for array, own in zip(arrays, self._arrays[name], strict=True):
                _arrays.put_back(array, own)

    def views(self, host):
        """``{tensor name: {state name: view}}``; scales are flat, the others have its shape."""
        return {
            segment.name: {name: _view(host, name, segment) for name in host}
            for segment in self._segments
        }

    def pairs(self, host, given):
        """(own view, given array) for each array of ``{tensor name: {state name: array}}``.

        Raises ValueError naming the tensor if anything is missing, unknown or of another kind.
        """
        own = self.views(host)
        if not isinstance(given, dict):
            raise TypeError(f"state_dict: got a state of {type(given).__name__}, expected a dict")
        _same_names(given, own, "tensors")
        found = []
        for tensor, views in own.items():
            _same_names(given[tensor], views, f"the state of {tensor!r}")
            for name, view in views.items():
                value = np.asarray(given[tensor][name])
                if value.shape != view.shape or value.dtype != view.dtype:
                    raise ValueError(
                        f"state_dict: {name} of {tensor!r} has shape {value.shape} and dtype "
                        f"{value.dtype}, expected {view.shape} and {view.dtype}"
                    )
                found.append((view, value))
        return found


def _view(host, name, segment):
    array = host[name][segment.array]
    if name.endswith("_scale"):
        return array[segment.block : segment.block + segment.blocks]
    return array[segment.offset : segment.offset + segment.size].reshape(segment.shape)


def _same_names(given, own, what):
    if not isinstance(given, dict):
        raise TypeError(f"state_dict: got {type(given).__name__} for {what}, expected a dict")
    for name in own:
        if name not in given:
            raise ValueError(f"state_dict: {what} lack {name!r}")
    for name in given:
        if name not in own:
            raise ValueError(f"state_dict: {what} have an unexpected {name!r}")


def decode(codes, scales, *, signed):
    """Numbers from 8-bit moments; the format is StateFormat::block8 in ``flatstep/optim.h``."""
    scale = np.repeat(scales.astype(np.uint32), _segments.BLOCK)[: codes.size]
    steps = codes.astype(np.uint32)
    if not signed:
        return ((steps + scale) << 20).view(np.float32)
    sign, steps = (steps & 0x80) << 24, steps & 0x7F
    return (np.where(steps == 0, 0, (steps + scale) << 20).astype(np.uint32) | sign).view(
        np.float32
    )
