"""A configuration with every value resolved and checked, from the options that were given."""

import math
import operator
from dataclasses import fields

from ..errors import InputError
from .options import DECAYING, DERIVED, TrainConfig, option_name

_LARGEST = 2**31 - 1
_RULES = {
    "least": (operator.ge, "at least"),
    "most": (operator.le, "at most"),
    "above": (operator.gt, "above"),
    "below": (operator.lt, "below"),
}


def make_config(given):
    """A checked TrainConfig from {field: value}; what is missing gets its default.

    Raises InputError naming the option that is unknown, of the wrong kind or out of its limits.
    """
    known = {item.name: item for item in fields(TrainConfig)}
    values = {}
    for name, value in given.items():
        if name not in known:
            raise InputError(f"unknown option {name!r}")
        values[name] = _checked(known[name], value)
    full = {name: values.get(name, item.default) for name, item in known.items()}
    for name in DERIVED:
        if name not in values:
            full[name] = _derived_default(name, full)
    config = TrainConfig(**full)
    _check_together(config)
    return config


def _derived_default(name, full):
    if name == "lr":
        return _default_lr(full)
    if name == "min_lr":
        return _rounded(full["lr"] / 10) if full["schedule"] in DECAYING else 0.0
    if name == "warmup":
        return max(1, min(100, full["steps"] // 10))
    return 0.1 if full["optimizer"] == "adamw" else 0.0


def _default_lr(full):
    if full["schedule"] == "noam":
        return 1.0
    if full["optimizer"] == "sgd":
        return 0.1
    # Best of 1e-3 to 5e-3 at width 128; wider models want less, about as 1/width (GPT-2: 6e-4).
    return _rounded(min(3e-3, 0.384 / full["n_embd"]))


def _rounded(value):
    # To three digits: for the reader of config.toml.
    return float(f"{value:.3g}")


def _checked(item, value):
    """`value` as the type of the field, within its limits."""
    name, limits = option_name(item.name), item.metadata
    if item.type is float and type(value) is int:
        value = float(value)
    if type(value) is not item.type:
        raise InputError(f"{name}: {item.type.__name__} expected, got {value!r}")
    if "choices" in limits and value not in limits["choices"]:
        raise InputError(f"{name} {value!r}: choose from {', '.join(limits['choices'])}")
    if item.type in (str, bool):
        return value
    if not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, got {value}")
    if item.type is int:
        limits = {"most": _LARGEST, **limits}
    for rule, (holds, words) in _RULES.items():
        if rule in limits and not holds(value, limits[rule]):
            raise InputError(f"{name} must be {words} {limits[rule]}, got {value}")
    return value


def _check_together(config):
    if config.n_embd % config.n_head:
        raise InputError(f"--n-embd {config.n_embd} must be a multiple of --n-head {config.n_head}")
    decays = config.schedule in DECAYING
    if config.min_lr and not decays:
        raise InputError(f"--min-lr has no meaning with --schedule {config.schedule}")
    if config.min_lr > config.lr:
        raise InputError(f"--min-lr {config.min_lr} must not exceed --lr {config.lr}")
    if decays and config.warmup > config.steps:
        raise InputError(f"--warmup {config.warmup} must not exceed --steps {config.steps}")
    if config.schedule in ("inverse_sqrt", "noam") and not config.warmup:
        raise InputError(f"--warmup must be at least 1 with --schedule {config.schedule}")
