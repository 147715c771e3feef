"""What a configuration asks for: model, optimizer, schedule."""

import flatstep

from ..errors import InputError


def make_schedule(config):
    """The learning rate of a TrainConfig as a function of the steps already done."""
    make = getattr(flatstep.schedule, config.schedule)
    if config.schedule == "constant":
        return make(config.lr)
    if config.schedule == "noam":
        return make(config.n_embd, config.warmup, factor=config.lr)
    if config.schedule in ("warmup_constant", "inverse_sqrt"):
        return make(config.lr, config.warmup)
    own = {
        "wsd": {"decay": config.decay_steps},
        "polynomial": {"power": config.power},
        "cosine_restarts": {"cycles": config.cycles},
    }.get(config.schedule, {})
    return make(config.lr, config.warmup, config.steps, min_lr=config.min_lr, **own)


def model_shape(config, vocab_size):
    """The flatstep.GPTConfig of a TrainConfig."""
    return flatstep.GPTConfig(
        vocab_size=vocab_size,
        block_size=config.block_size,
        n_layer=config.n_layer,
        n_head=config.n_head,
        n_embd=config.n_embd,
        dropout=config.dropout,
    )


def make_model(config, vocab_size):
    """The flatstep.GPT of a TrainConfig, with its first weights. Raises InputError."""
    shape = model_shape(config, vocab_size)
    try:
        return flatstep.GPT(
            shape, seed=config.seed, device=config.device, recompute=config.recompute
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(f"no such model on --device {config.device}: {error}") from error


def decaying_layout(config, layout):
    """The layout of a model with weight decay 0 for what --decay leaves out."""
    if config.decay == "matrices":  # as the model itself has it
        return layout
    entries = []
    for entry in layout.entries:
        embedding = entry.name.split(".")[1] in ("wte", "wpe")
        left_out = config.decay == "layers" and (len(entry.shape) < 2 or embedding)
        entries.append((entry.name, entry.shape, {"weight_decay": 0.0} if left_out else {}))
    return flatstep.Layout(entries)


def make_optimizer(config, model):
    """The optimizer of a TrainConfig over the flat parameters of `model`."""
    return make_flat_optimizer(config, model.params, decaying_layout(config, model.layout))


def make_flat_optimizer(config, params, layout=None):
    """The optimizer of a TrainConfig over a flat array."""
    common = {
        "lr": config.lr,
        "weight_decay": config.weight_decay,
        "layout": layout,
        "state": config.optimizer_state,
        "seed": config.seed,
    }
    if config.optimizer == "sgd":
        return flatstep.SGD(params, momentum=config.beta1, nesterov=config.nesterov, **common)
    kind = {"adamw": flatstep.AdamW, "adam": flatstep.Adam}[config.optimizer]
    return kind(params, betas=(config.beta1, config.beta2), eps=config.eps, **common)
