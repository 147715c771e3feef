"""The configuration of a run: options with their limits, and config.toml.

Each field of TrainConfig is one option of `flatstep train` and one line of config.toml; its help
text and limits stand beside it.
"""

import math
import operator
import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path

from .errors import InputError

SCHEDULES = (
    "constant", "warmup_constant", "warmup_linear", "warmup_cosine", "inverse_sqrt", "noam",
    "wsd", "one_cycle",
)  # fmt: skip
_DECAYING = ("warmup_linear", "warmup_cosine", "wsd", "one_cycle")
_LARGEST = 2**31 - 1


def _option(default, help, **limits):
    return field(default=default, metadata={"help": help, **limits})


@dataclass(frozen=True)
class TrainConfig:
    """What a run computes, every value resolved. `make_config` fills in what depends on others."""

    steps: int = _option(1500, "optimizer steps in all", least=1)
    seed: int = _option(0, "of the weights, the data's order, dropout", least=0, most=2**63 - 1)
    device: str = _option("cpu", "where to compute")
    threads: int = _option(0, "CPU threads, 0 for all; they never change the result", least=0)
    vocab: str = _option("byte", "how text becomes tokens", choices=("byte",))
    val_fraction: float = _option(0.1, "share of the text kept to validate", above=0.0, below=1.0)
    n_layer: int = _option(4, "Transformer blocks", least=1)
    n_head: int = _option(4, "attention heads", least=1)
    n_embd: int = _option(128, "width, a multiple of --n-head", least=1)
    block_size: int = _option(64, "tokens the model sees at once", least=1)
    batch_size: int = _option(12, "windows in one forward and backward pass", least=1)
    grad_accum: int = _option(1, "passes summed for one optimizer step", least=1)
    recompute: bool = _option(False, "less memory, up to a fifth more time, the same result")
    dropout: float = _option(0.0, "probability of dropping an activation", least=0.0, below=1.0)
    label_smoothing: float = _option(0.0, "share spread over all tokens", least=0.0, below=1.0)
    optimizer: str = _option("adamw", "update rule", choices=("adamw", "adam", "sgd"))
    optimizer_state: str = _option("full", "its moments: 4 bytes or 1", choices=("full", "8bit"))
    lr: float = _option(
        3e-3,
        "peak learning rate [by width: 0.384/n_embd, at most 0.003; sgd 0.1]; factor of noam [1]",
        above=0.0,
    )
    min_lr: float = _option(3e-4, "last rate of a decaying schedule [lr/10]", least=0.0)
    warmup: int = _option(100, "steps up to the peak [100, at most a tenth of all]", least=0)
    schedule: str = _option("warmup_cosine", "learning rate over the steps", choices=SCHEDULES)
    weight_decay: float = _option(0.1, "of the matrices [adamw 0.1; adam, sgd 0]", least=0.0)
    beta1: float = _option(0.9, "decay of the mean gradient; momentum of sgd", least=0.0, below=1.0)
    beta2: float = _option(0.99, "decay of the mean squared gradient", least=0.0, below=1.0)
    max_norm: float = _option(1.0, "clip gradients to this global norm, 0 never", least=0.0)
    eval_every: int = _option(250, "steps between validations, 0 only at the end", least=0)
    save_every: int = _option(500, "steps between checkpoints, 0 only at the end", least=0)


DERIVED = ("lr", "min_lr", "warmup", "weight_decay")
_RULES = {
    "least": (operator.ge, "at least"),
    "most": (operator.le, "at most"),
    "above": (operator.gt, "above"),
    "below": (operator.lt, "below"),
}


def option_name(name):
    """The command-line option of a field: "n_layer" is --n-layer."""
    return "--" + name.replace("_", "-")


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
        return _rounded(full["lr"] / 10) if full["schedule"] in _DECAYING else 0.0
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
    decays = config.schedule in _DECAYING
    if config.min_lr and not decays:
        raise InputError(f"--min-lr has no meaning with --schedule {config.schedule}")
    if config.min_lr > config.lr:
        raise InputError(f"--min-lr {config.min_lr} must not exceed --lr {config.lr}")
    if decays and config.warmup > config.steps:
        raise InputError(f"--warmup {config.warmup} must not exceed --steps {config.steps}")
    if config.schedule in ("inverse_sqrt", "noam") and not config.warmup:
        raise InputError(f"--warmup must be at least 1 with --schedule {config.schedule}")


def toml_value(value):
    """A str, bool, int, finite float or sequence of these in TOML's notation."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(map(_toml_character, value)) + '"'
    if isinstance(value, (list, tuple)) and not value:
        return "[]"
    if isinstance(value, (list, tuple)):
        return "[\n" + "".join(f"    {toml_value(item)},\n" for item in value) + "]"
    return repr(value)


def _toml_character(character):
    if character in '"\\':
        return "\\" + character
    if ord(character) < 0x20 or ord(character) == 0x7F:
        return f"\\u{ord(character):04x}"
    return character


def write_config(run, config, extra):
    """Writes RUN/config.toml: the configuration, then the entries of the dict `extra`.

    The file is replaced as a whole, so that a crash leaves the old or the new one.
    """
    entries = {item.name: getattr(config, item.name) for item in fields(config)} | extra
    text = "".join(f"{name} = {toml_value(value)}\n" for name, value in entries.items())
    temporary = Path(run, ".config.toml.tmp")
    with open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, Path(run, "config.toml"))


def read_config(run):
    """(TrainConfig, the other entries) of RUN/config.toml.

    Raises InputError if RUN is no run folder or its config.toml is damaged.
    """
    path = Path(run, "config.toml")
    if not path.is_file():
        raise InputError(f"{run}: not a run (a folder with config.toml was expected)")
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    names = {item.name for item in fields(TrainConfig)}
    given = {name: value for name, value in entries.items() if name in names}
    extra = {name: value for name, value in entries.items() if name not in names}
    try:
        return make_config(given), extra
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def create_run_folder(out=None):
    """Makes the folder of a new run and returns its Path; never touches an existing run.

    out: the folder, which must be new or empty; None takes the next free number in runs/.
    Raises InputError if the folder is in use or cannot be made.
    """
    try:
        if out is None:
            return _next_numbered(Path("runs"))
        run = Path(out)
        if run.is_dir() and any(run.iterdir()):
            raise InputError(
                f"--out {out}: the folder is not empty; choose another, or go on with "
                f"an existing run by --resume {out}"
            )
        run.mkdir(parents=True, exist_ok=True)
        return run
    except OSError as error:
        raise InputError(f"--out {out or 'runs'}: {error.strerror}") from error


def _next_numbered(parent):
    parent.mkdir(exist_ok=True)
    number = max((int(p.name) for p in parent.iterdir() if p.name.isdecimal()), default=0) + 1
    while True:
        try:
            run = parent / f"{number:03d}"
            run.mkdir()
            return run
        except FileExistsError:
            number += 1
