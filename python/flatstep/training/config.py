"""A configuration with every value resolved and checked, from the options that were given."""

import difflib
import math
import operator
from dataclasses import fields

from ..errors import InputError
from .options import DECAYING, TrainConfig, option_name

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
    values = check_values(given)
    full = {item.name: values.get(item.name, item.default) for item in fields(TrainConfig)}
    for name, default in _DEFAULTS.items():
        if name not in values:
            full[name] = default(full)
    config = TrainConfig(**full)
    _check_together(config)
    return config


def check_values(given):
    """{field: value} with each value as its field wants it. Raises InputError."""
    known = {item.name: item for item in fields(TrainConfig)}
    for name in given:
        if name not in known:
            raise InputError(f"unknown option {name!r}{nearest(name, known)}")
    return {name: _checked(known[name], value) for name, value in given.items()}


def _default_lr(full):
    if full["schedule"] == "noam":
        return 1.0
    if full["optimizer"] == "sgd":
        return 0.1
    # Best of 1e-3 to 5e-3 at width 128; wider models want less, about as 1/width (GPT-2: 6e-4).
    return _rounded(min(3e-3, 0.384 / full["n_embd"]))


def _default_min_lr(full):
    return _rounded(full["lr"] / 10) if full["schedule"] in DECAYING else 0.0


def _rounded(value):
    # To three digits: for the reader of config.toml.
    return float(f"{value:.3g}")


# In this order: min_lr follows from lr.
_DEFAULTS = {
    "lr": _default_lr,
    "min_lr": _default_min_lr,
    "warmup": lambda full: max(1, min(100, full["steps"] // 10)),
    "decay_steps": lambda full: full["steps"] // 5 if full["schedule"] == "wsd" else 0,
    "weight_decay": lambda full: 0.1 if full["optimizer"] == "adamw" else 0.0,
}


def nearest(word, words):
    """ "; did you mean 'that'?" for the most similar of `words`, or nothing."""
    found = difflib.get_close_matches(word, list(words), 1)
    return f"; did you mean {found[0]!r}?" if found else ""


def _checked(item, value):
    """`value` as the type of the field, within its limits."""
    name, limits = option_name(item.name), item.metadata
    if item.type is float and type(value) is int:
        value = float(value)
    if type(value) is not item.type:
        raise InputError(f"{name}: {item.type.__name__} expected, got {value!r}")
    if "choices" in limits and value not in limits["choices"]:
        hint = nearest(value, limits["choices"])
        raise InputError(f"{name} {value!r}: choose from {', '.join(limits['choices'])}{hint}")
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
    _check_schedule(config)
    if config.nesterov and (config.optimizer != "sgd" or not config.beta1):
        raise InputError("--nesterov needs --optimizer sgd and a --beta1 above 0")
    if config.tokenizer and config.vocab not in ("auto", "bpe"):
        raise InputError(f"--tokenizer has no meaning with --vocab {config.vocab}")
    if config.patience and not config.eval_every:
        raise InputError("--patience needs validations: --eval-every above 0")


def _check_schedule(config):
    schedule, decays = config.schedule, config.schedule in DECAYING
    for name, meant in (
        ("min_lr", decays),
        ("decay_steps", schedule == "wsd"),
        ("cycles", schedule == "cosine_restarts"),
        ("power", schedule == "polynomial"),
    ):
        if not meant and getattr(config, name) not in (0, 1):
            raise InputError(f"{option_name(name)} has no meaning with --schedule {schedule}")
    if config.min_lr > config.lr:
        raise InputError(f"--min-lr {config.min_lr} must not exceed --lr {config.lr}")
    if decays and config.warmup > config.steps:
        raise InputError(f"--warmup {config.warmup} must not exceed --steps {config.steps}")
    if schedule == "wsd" and config.warmup + config.decay_steps > config.steps:
        raise InputError(
            f"--decay-steps {config.decay_steps} and --warmup {config.warmup} must not exceed "
            f"--steps {config.steps} together"
        )
    if schedule in ("inverse_sqrt", "noam") and not config.warmup:
        raise InputError(f"--warmup must be at least 1 with --schedule {schedule}")
