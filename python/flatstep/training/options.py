"""The options of `flatstep train`: each field of TrainConfig is one of them, and a line of
config.toml; its help text and limits stand beside it.
"""

from dataclasses import dataclass, field

SCHEDULES = (
    "constant", "warmup_constant", "warmup_linear", "warmup_cosine", "inverse_sqrt", "noam",
    "wsd", "one_cycle",
)  # fmt: skip
DECAYING = ("warmup_linear", "warmup_cosine", "wsd", "one_cycle")


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


# Defaults that follow from other options.
DERIVED = ("lr", "min_lr", "warmup", "weight_decay")


def option_name(name):
    """The command-line option of a field: "n_layer" is --n-layer."""
    return "--" + name.replace("_", "-")
