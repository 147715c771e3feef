"""The options of `flatstep train`: each field of TrainConfig is one of them, and a line of
config.toml; its help text and limits stand beside it.
"""

from dataclasses import dataclass, field

SCHEDULES = (
    "constant", "warmup_constant", "warmup_linear", "warmup_cosine", "inverse_sqrt", "noam",
    "polynomial", "wsd", "one_cycle", "cosine_restarts",
)  # fmt: skip
DECAYING = (
    "warmup_linear", "warmup_cosine", "polynomial", "wsd", "one_cycle", "cosine_restarts",
)  # fmt: skip
MOST_THREADS, _MOST_LAYERS = 4096, 10_000
_MOST_FLOAT = 1e30  # the update computes with float32
VOCABULARIES = ("auto", "byte", "char", "bpe", "ids")


def _group(group):
    """A function that makes the fields of one group of the help text.

    least, most, above, below: limits of a number; choices: of a text; metavar: how the help text
    calls a value. free: the value may differ
    when a run is resumed, since it does not change what a step computes.
    """

    def option(default, help, **rules):
        return field(default=default, metadata={"group": group, "help": help, **rules})

    return option


# In the order of the help text.
GROUPS = (
    "text", "model", "steps and batches", "optimizer", "watching the run", "keeping it",
)  # fmt: skip
_text, _model, _batch, _update, _watch, _keep = map(_group, GROUPS)


@dataclass(frozen=True)
class TrainConfig:
    """What a run computes, every value resolved. `make_config` fills in what depends on others."""

    steps: int = _batch(1500, "optimizer steps in all", least=1, free=True)
    batch_size: int = _batch(12, "windows in one forward and backward pass", least=1)
    grad_accum: int = _batch(1, "passes summed for one optimizer step", least=1)
    seed: int = _batch(
        0, "of the first weights, the order of the data, dropout", least=0, most=2**63 - 1
    )
    device: str = _batch("cpu", "where to compute", metavar="DEVICE")
    threads: int = _batch(
        0,
        "CPU threads, 0 for all; they never change the result",
        least=0,
        most=MOST_THREADS,
        free=True,
    )
    recompute: bool = _batch(
        False,
        "compute activations again in the backward pass: less memory, up to a fifth more time, the "
        "same result",
        free=True,
    )
    vocab: str = _text(
        "auto",
        "how text becomes tokens: bytes, characters, byte pairs (needs the extra [bpe]), or the "
        "numbers of .bin files as they are; auto is byte for text, and what prepared files hold",
        choices=VOCABULARIES,
    )
    tokenizer: str = _text(
        "", "a Hugging Face tokenizer.json, for --vocab bpe [a new one]", metavar="FILE"
    )
    vocab_size: int = _text(
        0, "tokens of a new BPE vocabulary [4096], or of .bin files [their largest + 1]", least=0
    )
    text_field: str = _text("text", "the key of .jsonl files that holds the text", metavar="KEY")
    val_fraction: float = _text(0.1, "share of the text kept to validate", above=0.0, below=1.0)
    val_split: str = _text(
        "auto",
        "whole documents for validation, spread over their sizes, or the tail of the text; auto is "
        "documents where their sizes allow it",
        choices=("auto", "documents", "tail"),
    )
    init_from: str = _model(
        "",
        "start from the weights of a Hugging Face GPT-2 folder, a run or a checkpoint, whose shape "
        "and vocabulary the run then has [new weights]",
        metavar="FOLDER",
    )
    n_layer: int = _model(4, "Transformer blocks", least=1, most=_MOST_LAYERS)
    n_head: int = _model(4, "attention heads", least=1)
    n_embd: int = _model(128, "width, a multiple of --n-head", least=1)
    block_size: int = _model(64, "tokens the model sees at once", least=1)
    dropout: float = _model(0.0, "probability of dropping an activation", least=0.0, below=1.0)
    label_smoothing: float = _update(
        0.0, "share of the target that all tokens get", least=0.0, below=1.0
    )
    optimizer: str = _update("adamw", "update rule", choices=("adamw", "adam", "sgd"))
    optimizer_state: str = _update(
        "full", "how it keeps its moments: in 4 bytes each, or in 1", choices=("full", "8bit")
    )
    lr: float = _update(
        3e-3,
        "peak learning rate [by width: 0.384/n_embd, at most 0.003; sgd 0.1]; factor of noam [1]",
        above=0.0,
        most=_MOST_FLOAT,
    )
    min_lr: float = _update(3e-4, "last rate of a decaying schedule [lr/10]", least=0.0)
    warmup: int = _update(100, "steps up to the peak [100, at most a tenth of all]", least=0)
    schedule: str = _update("warmup_cosine", "learning rate over the steps", choices=SCHEDULES)
    decay_steps: int = _update(0, "steps of the last phase of wsd [a fifth of all]", least=0)
    cycles: int = _update(1, "of the schedule cosine_restarts", least=1)
    power: float = _update(1.0, "exponent of the schedule polynomial", above=0.0)
    weight_decay: float = _update(
        0.1, "of --decay's tensors [adamw 0.1; adam, sgd 0]", least=0.0, most=_MOST_FLOAT
    )
    decay: str = _update(
        "matrices",
        "what decays: matrices and embeddings, only the matrices of the layers, or all tensors",
        choices=("matrices", "layers", "all"),
    )
    beta1: float = _update(0.9, "decay of the mean gradient; momentum of sgd", least=0.0, below=1.0)
    beta2: float = _update(0.99, "decay of the mean squared gradient", least=0.0, below=1.0)
    eps: float = _update(1e-8, "added to the root of the mean square", above=0.0, most=_MOST_FLOAT)
    nesterov: bool = _update(False, "Nesterov's momentum, for sgd")
    max_norm: float = _update(1.0, "clip gradients to this global norm, 0 never", least=0.0)
    on_nonfinite: str = _watch(
        "skip",
        "a gradient that is not finite: leave the step out and warn, or end the run",
        choices=("skip", "stop"),
        free=True,
    )
    max_skips: int = _watch(10, "so many steps left out in a row end the run", least=1, free=True)
    on_spike: str = _watch(
        "warn",
        "a loss or gradient norm far above those of the last 128 steps: nothing, a warning, leave "
        "the step out, or end the run",
        choices=("off", "warn", "skip", "stop"),
        free=True,
    )
    spike_threshold: float = _watch(
        16.0, "how many standard deviations are far", above=0.0, free=True
    )
    eval_every: int = _watch(
        250, "steps between validations, 0 only at the end", least=0, free=True
    )
    eval_tokens: int = _watch(
        32768, "tokens a validation looks at, spread over its text, 0 all", least=0, free=True
    )
    patience: int = _watch(
        0, "validations without a new best that end the run, 0 none do", least=0, free=True
    )
    sample_every: int = _watch(
        0,
        "steps between samples of text (samples.txt), 0 one on the screen at the end",
        least=0,
        free=True,
    )
    log: str = _watch(
        "none",
        "besides metrics.jsonl: TensorBoard's files (extra [tensorboard]), or Weights & Biases "
        "(extra [wandb])",
        choices=("none", "tensorboard", "wandb"),
        free=True,
    )
    plot: bool = _watch(True, "write loss.png where matplotlib (extra [plot]) is there", free=True)
    save_every: int = _keep(500, "steps between checkpoints, 0 only at the end", least=0, free=True)
    keep: int = _keep(2, "newest checkpoints to keep", least=1, free=True)
    keep_best: bool = _keep(
        True, "save at each new best validation loss, and keep that checkpoint too", free=True
    )


# Defaults that follow from other options.
DERIVED = (
    "lr", "min_lr", "warmup", "weight_decay", "decay_steps", "tokenizer", "vocab_size", "init_from",
)  # fmt: skip


def option_name(name):
    """The command-line option of a field: "n_layer" is --n-layer."""
    return "--" + name.replace("_", "-")
