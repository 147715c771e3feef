"""The state of an optimizer as ``torch.optim`` has it, and back."""

import numpy as np

_CLASSES = {"adamw": "AdamW", "adam": "Adam", "sgd": "SGD"}


def export_state(optimizer):
    """See Optimizer.torch_state_dict."""
    try:
        import torch
    except ImportError as error:
        raise ImportError("torch_state_dict needs PyTorch: pip install torch") from error
    own = optimizer.state_dict()
    segments = optimizer._segments
    state = {}
    for index, segment in enumerate(segments):
        arrays = dict(own["state"][segment.name])
        arrays.pop("master", None)
        if any(name.endswith("_scale") for name in arrays):
            raise ValueError("torch_state_dict: got 8-bit state, expected full state")
        if own["step"] == 0 or (own["kind"] == "sgd" and not arrays):
            continue  # PyTorch makes a tensor's state at its first step
        state[index] = {name: torch.from_numpy(array) for name, array in arrays.items()}
        if own["kind"] != "sgd":
            state[index]["step"] = torch.tensor(float(own["step"]), dtype=torch.float32)
    # An optimizer of one's own has every key that this version of PyTorch expects in a group.
    placeholders = [torch.nn.Parameter(torch.empty(0)) for _ in segments]
    options = optimizer._torch_options()
    groups = getattr(torch.optim, _CLASSES[own["kind"]])(placeholders, **options)
    return {"state": state, "param_groups": groups.state_dict()["param_groups"]}


def import_state(optimizer, state_dict):
    """(step, state, lr) of a torch.optim state dict. Raises ValueError."""
    try:
        groups, found = list(state_dict["param_groups"]), state_dict["state"]
        order = [index for group in groups for index in group["params"]]
    except (KeyError, TypeError):
        raise ValueError("state_dict: expected what torch.optim's state_dict() returns") from None
    segments, own = optimizer._segments, optimizer._state.views()
    if len(order) != len(segments):
        raise ValueError(f"state_dict: got {len(order)} tensors, expected {len(segments)}")
    state, steps = {}, set()
    for index, segment in zip(order, segments, strict=True):
        given = dict(found.get(index, {}))
        step = given.pop("step", None)
        steps.add(None if step is None else int(step))
        state[segment.name] = {}
        for name, view in own[segment.name].items():
            if name == "master":
                state[segment.name][name] = view
            elif given.get(name) is not None:
                state[segment.name][name] = _numpy(given[name]).astype(view.dtype)
            elif not found:
                state[segment.name][name] = np.zeros_like(view)  # before the first step
    if len(steps) > 1:
        raise ValueError(f"state_dict: got different steps {sorted(map(str, steps))}, expected one")
    step = steps.pop() if steps else None
    if step is None:  # torch.optim.SGD does not count
        step = optimizer.step_count or int(bool(found))
    lrs = {float(group["lr"]) for group in groups}
    return step, state, lrs.pop() if len(lrs) == 1 else optimizer.lr


def _numpy(tensor):
    detached = tensor.detach() if hasattr(tensor, "detach") else tensor
    return np.asarray(detached.float().cpu() if hasattr(detached, "cpu") else detached)
