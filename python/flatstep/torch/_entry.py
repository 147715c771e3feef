"""A parameter that has a gradient, with its arrays and those of its state."""

import torch

from ._tensors import ARITHMETIC, in_order, memory_order, real


class Entry:
    """Kept from step to step, since taking the arrays costs more than a small step over them.

    Attributes:
        index: in all parameters of the optimizer. group: the number of its group.
        name: in messages.
        parameter, state: PyTorch's.
        order: the dimensions as they lie in memory; None where that is their own order.
        outside: (parameter with holes, dense tensor that is updated instead), or None.
        views: what the core updates, its moments and, of a bfloat16 parameter, the parameter
            itself, whose master comes first then.
        watched, pointers: the tensors whose memory that is, and where it was.
        version: of the parameter, when its master was last in agreement with it.
        absences: the plans since it last had a gradient.
    """

    __slots__ = (
        "_ids",
        "_kind",
        "_names",
        "_state_names",
        "absences",
        "group",
        "index",
        "name",
        "order",
        "outside",
        "parameter",
        "pointers",
        "state",
        "version",
        "views",
        "watched",
    )

    def __init__(self, index, group, name, parameter, state):
        self.index, self.group, self.name = index, group, name
        self.parameter, self.state = parameter, state
        self._state_names = self.outside = None
        self.absences = 0

    def serves(self, group, parameter, state, state_names):
        """Whether its arrays are there, and still those of this parameter and its state."""
        return (
            self._state_names == state_names
            and self.parameter is parameter
            and self.state is state
            and self.group == group
            and (parameter.dtype, parameter.shape, parameter.stride()) == self._kind
            and [*map(torch.Tensor.data_ptr, self.watched)] == self.pointers
            and [*map(id, map(state.get, self._names))] == self._ids
        )

    def take_arrays(self, state_names, count):
        """Makes what the state lacks, and takes the arrays. count: of the steps so far."""
        if self._state_names is not None:
            return
        parameter, home = self.parameter, real(self.parameter)
        try:
            self.order = memory_order(home)
        except ValueError:
            dense = torch.empty_like(parameter)
            self.outside = parameter.detach(), dense
            home = real(dense)
            self.order = memory_order(home)
        updated, copies, names = in_order(home, self.order), [], state_names
        if parameter.dtype is torch.bfloat16:
            if self.state.get("master") is None:
                self.state["master"] = parameter.detach().float()
            updated, copies = self._own("master"), [updated]
            names = ("master", *state_names)
            self.follow_parameter()
        moments = []
        for name in state_names:
            if self.state.get(name) is None:
                if count > 0:
                    raise ValueError(f"state: got no {name} of {self.name} after {count} steps")
                self.state[name] = torch.zeros_like(parameter, dtype=self._state_dtype())
            moments.append(self._own(name))
        self.views = updated, *moments, *copies
        self._kind = parameter.dtype, parameter.shape, parameter.stride()
        self._names, own = names, [self.state[name] for name in names]
        self._ids = [*map(id, own)]  # of tensors that are kept, so that none is used again
        self.watched = [parameter, *own]
        self.pointers = [tensor.data_ptr() for tensor in self.watched]
        self._state_names = state_names

    def _state_dtype(self):
        dtype = self.parameter.dtype
        return dtype if dtype.is_complex else ARITHMETIC[dtype]

    def _own(self, name):
        """A tensor of the state, checked, put in the order of the parameter if need be."""
        value, parameter = self.state[name], self.parameter
        dtype = self._state_dtype()
        if not isinstance(value, torch.Tensor) or value.shape != parameter.shape:
            got = list(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
            raise ValueError(
                f"state: got {name} of {self.name} {got}, expected {list(parameter.shape)}"
            )
        if value.device != parameter.device:
            raise ValueError(
                f"state: got {name} of {self.name} on {value.device}, "
                f"expected {parameter.device}, as the parameter"
            )
        if value.dtype != dtype or not in_order(real(value), self.order).is_contiguous():
            place = torch.empty_like(parameter, dtype=dtype)
            self.state[name] = value = place.copy_(value)
        return in_order(real(value), self.order)

    def follow_parameter(self):
        """Takes over into the master what others have written to the parameter."""
        parameter, master = self.parameter.detach(), self.state["master"]
        same = master.to(parameter.dtype) == parameter
        master.copy_(torch.where(same, master, parameter.float()))
        self.version = self.parameter._version
