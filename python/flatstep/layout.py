"""Names, shapes and offsets of the tensors that share one flat buffer."""

from . import _arrays, _checks, _core

_OPTIONS = ("weight_decay", "lr_scale", "betas")


class Layout:
    """Tensors that lie one behind the other, without padding, in one flat buffer.

    Args:
        entries: a list of ``(name, shape)`` or ``(name, shape, options)``. Options are
            ``weight_decay`` and ``betas``, which replace the optimizer's, and ``lr_scale``, which
            multiplies its learning rate.
        decay_vectors: False gives weight decay 0 to tensors of fewer than two dimensions (biases,
            norms), unless their options say otherwise.

    Raises:
        ValueError, TypeError: a name is empty or repeated, a shape or an option is wrong.

    >>> layout = Layout([("w", (2, 3)), ("b", (3,), {"weight_decay": 0.0})])
    >>> layout.size, layout["b"].offset, layout["b"].shape
    (9, 6, (3,))
    """

    def __init__(self, entries, *, decay_vectors=True):
        self._core = _core.Layout()
        for entry in entries:
            self._add(*_split(entry))
        if not decay_vectors:
            self._core.leave_vectors_undecayed()

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
        decay, betas = options.get("weight_decay"), options.get("betas")
        self._core.add(
            name,
            [_checks.integer(extent, "shape") for extent in shape],
            lr_scale=_checks.number(options.get("lr_scale", 1.0), "lr_scale"),
            weight_decay=None if decay is None else _checks.number(decay, "weight_decay"),
            betas=None if betas is None else _checks.pair(betas, "betas"),
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
        """The entry of that name: ``.name``, ``.offset`` and ``.size`` in elements, ``.shape``,
        ``.weight_decay``, ``.lr_scale`` and ``.betas``. Raises KeyError."""
        if name not in self:
            raise KeyError(f"name: got {name!r}, expected a tensor of this layout")
        return self._core.at(name)

    def table(self, weight_decay=None):
        """Text that shows the group of every tensor: who decays, and with what.

        weight_decay: the optimizer's; without it, "as the optimizer" stands in its place.
        """
        default = "as the optimizer" if weight_decay is None else f"{weight_decay:g}"
        rows = [("tensor", "shape", "weight decay", "lr scale", "betas")]
        decayed = 0
        for entry in self.entries:
            decay = default if entry.weight_decay is None else f"{entry.weight_decay:g}"
            if decay != "0":
                decayed += entry.size
            shape = " x ".join(str(extent) for extent in entry.shape) or "scalar"
            betas = "" if entry.betas is None else f"{entry.betas[0]:g}, {entry.betas[1]:g}"
            rows.append((entry.name, shape, decay, f"{entry.lr_scale:g}", betas))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return "\n".join([*lines, f"{decayed:,} of {self.size:,} elements decay"])

    def __str__(self):
        return self.table()

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
