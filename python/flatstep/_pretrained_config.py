"""config.json of a Hugging Face GPT-2, in both directions."""

from dataclasses import asdict

from .errors import PretrainedError

# Names of a key, the first of them the usual one, and the value where there is none: those of the
# library's own configuration.
_EXTENTS = {
    "vocab_size": (("vocab_size",), 50257),
    "block_size": (("n_positions", "n_ctx", "max_position_embeddings"), 1024),
    "n_layer": (("n_layer", "num_hidden_layers"), 12),
    "n_head": (("n_head", "num_attention_heads"), 12),
    "n_embd": (("n_embd", "hidden_size"), 768),
}
# What has to be so, or absent. reorder_and_upcast_attn is free: it is the same function.
_FIXED = {
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
    "is_encoder_decoder": (False,),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
_WRITTEN = (
    "activation_function",
    "layer_norm_epsilon",
    "scale_attn_weights",
    "scale_attn_by_inverse_layer_idx",
    "add_cross_attention",
    "tie_word_embeddings",
)
_DROPOUT = ("embd_pdrop", "attn_pdrop", "resid_pdrop")


def model_config(path, found, dropout):
    """{field of GPTConfig: value} of the object `found` in the file `path`.

    dropout: None takes that of the object. Raises PretrainedError naming the key that makes it
    another model than flatstep's.
    """
    if found.get("model_type") != "gpt2":
        raise wrong(path, "model_type", found.get("model_type"), "'gpt2'")
    for key, allowed in _FIXED.items():
        value = found.get(key, allowed[0])
        # 1 == True, but a configuration means what it says
        if not any(type(value) is type(a) and value == a for a in allowed):
            raise wrong(path, key, value, " or ".join(map(repr, allowed)))
    config = {field: _extent(path, found, *names) for field, names in _EXTENTS.items()}
    inner = found.get("n_inner")
    if inner is not None and inner != 4 * config["n_embd"]:
        raise wrong(path, "n_inner", inner, f"null or 4 * n_embd, {4 * config['n_embd']}")
    config["dropout"] = _dropout(path, found) if dropout is None else dropout
    return config


def _extent(path, found, names, default):
    given = {name: found[name] for name in names if name in found}
    for name, value in given.items():
        if type(value) is not int or not 1 <= value < 2**31:
            raise wrong(path, name, value, "an integer from 1 to 2**31 - 1")
        first = next(iter(given))
        if value != given[first]:
            raise wrong(path, name, value, f"the value of {first}, {given[first]}")
    return next(iter(given.values()), default)


def _dropout(path, found):
    values = [found.get(key, 0.1) for key in _DROPOUT]
    for key, value in zip(_DROPOUT, values, strict=True):
        if type(value) not in (int, float) or not 0 <= value < 1:
            raise wrong(path, key, value, "a probability in [0, 1)")
        if value != values[0]:
            raise wrong(
                path, key, value, f"that of {_DROPOUT[0]}, {values[0]}; dropout=... replaces all"
            )
    return float(values[0])


def wrong(path, key, got, expected):
    """The error of one key of a file, or of one tensor."""
    return PretrainedError(f"{path}: {key}: got {got!r}, expected {expected}")


def gpt2_end_of_text(config):
    """The end of a text in GPT-2's own vocabulary, if a GPTConfig has room for it, else None."""
    return 50256 if config.vocab_size > 50256 else None


def config_json(config, end_of_text):
    """The object that model_config reads back, for a GPTConfig.

    end_of_text: the token between documents, or None.
    """
    values = asdict(config)
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        **{names[0]: values[field] for field, (names, _) in _EXTENTS.items()},
        "n_inner": None,
        **{key: _FIXED[key][0] for key in _WRITTEN},
        "reorder_and_upcast_attn": False,
        **dict.fromkeys(_DROPOUT, config.dropout),
        "initializer_range": 0.02,
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "pad_token_id": None,
        "torch_dtype": "float32",
    }
