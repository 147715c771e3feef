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
    return {"state": state, "param_groups": _groups(torch, optimizer, own["kind"])}


def _groups(torch, optimizer, kind):
    """A group for each run of tensors with the same options, since their order must stay."""
    groups, last = [], None
    for segment in optimizer._segments:
        options = optimizer._torch_options(segment)
        if options != last:
            groups.append({"params": [], **options})
            last = options
        groups[-1]["params"].append(torch.nn.Parameter(torch.empty(0)))
    # An optimizer of one's own has every key that this version of PyTorch expects in a group.
    return getattr(torch.optim, _CLASSES[kind])(groups).state_dict()["param_groups"]


def import_state(optimizer, state_dict):
    """(step, state, lr) of a torch.optim state dict. Raises ValueError."""
    try:
        groups, found = list(state_dict["param_groups"]), dict(state_dict["state"])
        order = [(index, float(group["lr"])) for group in groups for index in group["params"]]
        given = [dict(found.get(index, {})) for index, _ in order]
    except (KeyError, TypeError, ValueError):
        raise ValueError("state_dict: expected what torch.optim's state_dict() returns") from None
    segments = optimizer._segments
    own = optimizer._state.views(optimizer._state.on_host())
    if len(order) != len(segments):
        raise ValueError(f"state_dict: got {len(order)} tensors, expected {len(segments)}")
    state, steps, moments = {}, set(), False
    for arrays, segment in zip(given, segments, strict=True):
        step = arrays.pop("step", None)
        steps.add(None if step is None else int(step))
        state[segment.name] = {}
        for name, view in own[segment.name].items():
            moments |= name != "master"
            if name == "master":
                state[segment.name][name] = view
            elif arrays.get(name) is not None:
                state[segment.name][name] = _numpy(arrays[name]).astype(view.dtype)
            elif not found:
                state[segment.name][name] = np.zeros_like(view)  # before the first step
    if len(steps) > 1:
        raise ValueError(f"state_dict: got different steps {sorted(map(str, steps))}, expected one")
    step = steps.pop() if steps else None
    if step is None:  # torch.optim.SGD does not count: there is momentum after the first step
        step = optimizer.step_count
        if moments:
            step = max(step, 1) if found else 0
    return step, state, _common_lr(order, segments, optimizer.lr)


def _common_lr(order, segments, own):
    """The lr of all groups but for the tensors' scales; if there is none, that of the optimizer."""
    scaled = zip(order, segments, strict=True)
    lrs = [lr / segment.lr_scale for (_, lr), segment in scaled if segment.lr_scale > 0]
    return lrs[0] if lrs and np.allclose(lrs, lrs[0], rtol=1e-12, atol=0) else own


def _numpy(value):
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    return (tensor.float() if tensor.element_size() < 4 else tensor).numpy()  # bf16 is not NumPy's
