"""Names, shapes and offsets of the tensors that share one flat buffer."""

from . import _arrays, _checks, _core

_OPTIONS = ("weight_decay", "lr_scale")


class Layout:
    """Tensors that lie one behind the other, without padding, in one flat buffer.

    Args:
        entries: a list of ``(name, shape)`` or ``(name, shape, options)``. Options are
            ``weight_decay``, which replaces the optimizer's, and ``lr_scale``, which multiplies its
            learning rate.

    Raises:
        ValueError, TypeError: a name is empty or repeated, a shape or an option is wrong.

    >>> layout = Layout([("w", (2, 3)), ("b", (3,), {"weight_decay": 0.0})])
    >>> layout.size, layout["b"].offset, layout["b"].shape
    (9, 6, (3,))
    """

    def __init__(self, entries):
        self._core = _core.Layout()
        for entry in entries:
            self._add(*_split(entry))

    @classmethod
    def _from_core(cls, core):
        layout = cls(())
        layout._core = core
        return layout

    def _add(self, name, shape, options):
        for option in options:
            if option not in _OPTIONS:
                expected = " or ".join(_OPTIONS)
                raise ValueError(f"options: got {option!r} for {name!r}, expected {expected}")
        decay = options.get("weight_decay")
        self._core.add(
            name,
            [_checks.integer(extent, "shape") for extent in shape],
            lr_scale=_checks.number(options.get("lr_scale", 1.0), "lr_scale"),
            weight_decay=None if decay is None else _checks.number(decay, "weight_decay"),
        )

    @property
    def names(self):
        """The names in the order of the buffer."""
        return [entry.name for entry in self._core.entries]

    @property
    def entries(self):
        """The entries in the order of the buffer, as returned by ``layout[name]``."""
        return self._core.entries

    @property
    def size(self):
        """Elements in the whole buffer."""
        return self._core.size

    def __len__(self):
        return len(self._core.entries)

    def __contains__(self, name):
        return isinstance(name, str) and self._core.contains(name)

    def __getitem__(self, name):
        """The entry of that name: ``.offset``, ``.size``, ``.shape``, ``.weight_decay``,
        ``.lr_scale``, all in elements. Raises KeyError."""
        if name not in self:
            raise KeyError(f"name: got {name!r}, expected a tensor of this layout")
        return self._core.at(name)

    def views(self, buffer):
        """``{name: view}`` of a flat array of ``size`` elements; nothing is copied."""
        shape, _ = _arrays.describe(buffer, "buffer")
        if shape != (self.size,):
            raise ValueError(f"buffer: got shape {shape}, expected ({self.size},), one flat array")
        return {
            entry.name: buffer[entry.offset : entry.offset + entry.size].reshape(entry.shape)
            for entry in self._core.entries
        }


def _split(entry):
    try:
        name, shape, *rest = entry
        (options,) = rest or ({},)
        if not isinstance(name, str):
            raise TypeError
        return name, tuple(shape), dict(options)
    except (TypeError, ValueError):
        raise TypeError(
            f"entries: got {entry!r}, expected (name, shape) or (name, shape, options)"
        ) from None
