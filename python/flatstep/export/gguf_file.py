"""A GPT-2 as one GGUF file for llama.cpp and what is built on it, through the `gguf` package.

Names, shapes and metadata are those of llama.cpp's architecture "gpt2". The head is the embedding:
llama.cpp takes it where a file has no tensor of its own for it.
"""

import json

import numpy as np

from ..data.bpe import byte_characters
from ..data.vocabulary import TOKENIZER
from ..errors import InputError
from .tokenizer import token_texts

# What follows transformer.h.N. in flatstep, and blk.N. in the file.
_LAYER = {
    "ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
_OUTSIDE = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama.cpp's types of tokens
_LARGEST_F16 = 65504.0


def write_gguf(model, vocabulary, path, *, name, dtype="f32"):
    """Writes a new file and returns what it holds of the vocabulary, in words, or None for nothing.

    dtype: "f32", or "f16" for the matrices. Raises InputError if the package is missing, or a
    weight is too large for f16.
    """
    gguf = _package()
    writer = gguf.GGUFWriter(path, "gpt2")
    config = model.config
    writer.add_name(name)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.n_embd)
    writer.add_block_count(config.n_layer)
    writer.add_feed_forward_length(4 * config.n_embd)
    writer.add_head_count(config.n_head)
    writer.add_layer_norm_eps(1e-5)
    kinds = gguf.LlamaFileType
    writer.add_file_type(kinds.ALL_F32 if dtype == "f32" else kinds.MOSTLY_F16)
    told = _add_vocabulary(writer, vocabulary, config.vocab_size)
    types = {tensor: _type(tensor, model[tensor], dtype) for tensor in model.layout.names}
    for tensor, kind in types.items():
        shape = _in_file(model[tensor], tensor).shape
        size = int(np.prod(shape)) * kind.itemsize
        writer.add_tensor_info(gguf_name(tensor), shape, kind, size)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor, kind in types.items():  # one copy at a time
            array = _in_file(model[tensor], tensor)
            writer.write_tensor_data(np.ascontiguousarray(array, dtype=kind))
    finally:
        writer.close()
    return told


def _package():
    try:
        import gguf
    except ImportError as error:
        raise InputError(
            "--format gguf needs the package gguf: pip install 'flatstep[gguf]'"
        ) from error
    return gguf


def gguf_name(name):
    """The name in the file of a tensor of flatstep."""
    parts = name.split(".")[1:]
    if parts[0] == "h":
        return f"blk.{parts[1]}.{_LAYER['.'.join(parts[2:-1])]}.{parts[-1]}"
    return f"{_OUTSIDE[parts[0]]}.{parts[-1]}"


def _in_file(array, name):
    # flatstep's layers hold [in, out], as Hugging Face's Conv1D; the file holds [out, in].
    return array.T if array.ndim == 2 and name.startswith("transformer.h.") else array


def _type(name, array, dtype):
    """Vectors and positions stay float32, as llama.cpp demands: it adds them as they are."""
    if dtype == "f32" or array.ndim < 2 or ".wpe." in name:
        return np.dtype(np.float32)
    largest = float(np.abs(array).max())
    if largest > _LARGEST_F16:
        raise InputError(f"--dtype f16: {name} holds {largest:g}, more than f16 can: use f32")
    return np.dtype(np.float16)


# ---- the vocabulary ------------------------------------------------------------------------------


def _add_vocabulary(writer, vocabulary, rows):
    """Adds the tokens, if llama.cpp can make them of text as flatstep does, else their number."""
    kind = None if vocabulary is None else vocabulary.kind
    end = None if vocabulary is None else vocabulary.end_of_text
    if kind == "byte":
        tokens, types = byte_characters(), [_NORMAL] * 256
        # llama.cpp wants merges and an end of text. 0xFF never stands in UTF-8, nor 0 in a text.
        merges, end = ["ÿ ÿ"], 0
    elif kind == "bpe" and (tokenizer := _gpt2_tokenizer(vocabulary)) is not None:
        texts = token_texts(tokenizer)
        added = {t["id"]: t for t in tokenizer.get("added_tokens") or []}
        tokens = [texts.get(number, f"[UNUSED{number}]") for number in range(rows)]
        types = [_type_of_token(added.get(number), number in texts) for number in range(rows)]
        pairs = tokenizer["model"]["merges"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in pairs]
        merges = merges or ["ÿ ÿ"]
    else:
        writer.add_tokenizer_model("none")
        writer.add_vocab_size(rows)
        return None
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_add_bos_token(False)
    if end is not None:
        writer.add_bos_token_id(end)
        writer.add_eos_token_id(end)
    return f"{len(tokens):,} tokens"


def _type_of_token(added, exists):
    """added: its entry among the tokenizer's added tokens, or None."""
    if added is not None:
        return _CONTROL if added.get("special") else _USER_DEFINED
    return _NORMAL if exists else _UNUSED


def _gpt2_tokenizer(vocabulary):
    """The tokenizer.json of a vocabulary that cuts text as GPT-2 does, or None."""
    tokenizer = json.loads(vocabulary.files()[TOKENIZER])
    cut = tokenizer.get("pre_tokenizer") or {}
    same = (
        tokenizer["model"].get("type") == "BPE"
        and not tokenizer.get("normalizer")
        and cut.get("type") == "ByteLevel"
        and cut.get("use_regex", True)
        and not cut.get("add_prefix_space")
    )
    return tokenizer if same else None
