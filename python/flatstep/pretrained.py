"""Folders of Hugging Face GPT-2, read and written without PyTorch.

A folder holds config.json and either model.safetensors or model-0000K-of-0000N.safetensors with
model.safetensors.index.json. Whatever is not the GPT-2 that flatstep computes is refused with one
line that names the file and the key or tensor.
"""

import os
import re
from pathlib import Path

import numpy as np

from . import _checks, _core
from ._files import read_json, sync, write_json
from ._pretrained_config import config_json, gpt2_end_of_text, model_config, wrong
from ._safetensors import save_file
from ._stored_tensors import first_nonfinite, read_header
from .errors import PretrainedError
from .gpt import GPT, GPTConfig

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"
# Causal masks that old versions of the library stored with the weights.
_MASK = re.compile(r"transformer\.h\.[0-9]+\.attn\.(masked_)?bias")
_TEMPORARY = ".flatstep-tmp"
SHARD = re.compile(r"model-[0-9]{5}-of-[0-9]{5}\.safetensors")


# ---- reading -------------------------------------------------------------------------------------


def load(folder, *, seed, dropout, vocab_size, device):
    """flatstep.GPT.from_pretrained."""
    folder = Path(folder)
    if not folder.is_dir():
        raise PretrainedError(f"{folder}: no such folder")
    path = folder / CONFIG
    config = model_config(path, read_json(path, PretrainedError), dropout)
    stored = _by_model_name(_find_weights(folder))
    rows = _stored_vocabulary(path, stored, config["vocab_size"], vocab_size)
    if config["n_layer"] > len(stored):  # a wrong number must not cost memory
        raise PretrainedError(
            f"{path}: n_layer: got {config['n_layer']}, the weights have {len(stored)} tensors"
        )
    try:
        expected = _core.Gpt(**config | {"vocab_size": rows}).layout.entries
    except ValueError as error:
        raise PretrainedError(f"{path}: {error}") from error
    _check_tensors(folder, stored, {entry.name: tuple(entry.shape) for entry in expected})
    size = rows if vocab_size is None else vocab_size
    model = GPT(GPTConfig(**config | {"vocab_size": size}), seed=seed, device=device)
    _read_tensors(model, stored, rows)
    return model


def _find_weights(folder):
    """[StoredTensor, ...] of all files that the folder's weights lie in."""
    if (folder / WEIGHTS).is_file():
        return read_header(folder / WEIGHTS)
    path = folder / INDEX
    if not path.is_file():
        hint = "; there is only a pickle, which is not read" if any(folder.glob("*.bin")) else ""
        raise PretrainedError(f"{folder}: has neither {WEIGHTS} nor {INDEX}{hint}")
    names = read_json(path, PretrainedError).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise wrong(path, "weight_map", names, "an object of tensor and file names")
    shards = {}
    for tensor, file in names.items():
        # A file elsewhere is none of this folder's, whatever the index says; but a link may stand
        # here for one, as in a cache of downloads.
        if not isinstance(file, str) or not re.fullmatch(r"[\w][\w.-]*\.safetensors", file):
            raise wrong(path, tensor, file, "the name of a .safetensors file in this folder")
        shards.setdefault(file, set()).add(tensor)
    stored = []
    for file, tensors in shards.items():
        found = read_header(folder / file)
        stored += found
        for name in sorted(tensors ^ {tensor.name for tensor in found}):
            raise PretrainedError(
                f"{folder / file}: lacks the tensor {name}, which {INDEX} places there"
                if name in tensors
                else f"{folder / file}: {name} has no place in {INDEX}"
            )
    return stored


def _by_model_name(stored):
    """{name in flatstep: StoredTensor}; causal masks are left out."""
    named = {}
    for tensor in stored:
        bare = tensor.name.removeprefix("transformer.")
        name = HEAD if bare == HEAD else f"transformer.{bare}"
        if _MASK.fullmatch(name):
            continue
        if name in named:
            raise PretrainedError(
                f"{tensor.path}: {tensor.name} is there twice: also as {named[name].name}"
            )
        named[name] = tensor
    # The head and the embedding are one tensor, and some writers keep the head's name.
    if EMBEDDING not in named and HEAD in named:
        named[EMBEDDING] = named.pop(HEAD)
    return named


def _stored_vocabulary(path, stored, configured, wanted):
    """Rows of the stored embedding. Other than the configuration's, they need vocab_size=..."""
    if EMBEDDING not in stored:
        raise PretrainedError(f"{path.parent}: lacks the tensor {EMBEDDING}")
    tensor = stored[EMBEDDING]
    if len(tensor.shape) != 2 or tensor.shape[0] < 1:
        raise wrong(tensor.path, tensor.name, list(tensor.shape), "[vocab_size, n_embd]")
    rows = tensor.shape[0]
    if wanted is None and rows != configured:
        raise PretrainedError(
            f"{path}: vocab_size: got {configured}, expected {rows}, the rows of {tensor.name} in "
            f"{tensor.path.name}; vocab_size=... chooses how many rows the model has"
        )
    return rows


def _check_tensors(folder, stored, expected):
    """Names, shapes and types, before any tensor is read."""
    for name in expected:
        if name not in stored:
            raise PretrainedError(f"{folder}: lacks the tensor {name}")
    for name, tensor in stored.items():
        if name != HEAD and name not in expected:
            raise PretrainedError(f"{tensor.path}: {tensor.name} is no tensor of this GPT-2")
        shape = expected[EMBEDDING if name == HEAD else name]
        if tensor.shape != shape:
            raise wrong(tensor.path, tensor.name, list(tensor.shape), f"shape {list(shape)}")
        tensor.check_dtype()


def _read_tensors(model, stored, rows):
    size = model.config.vocab_size
    for name in model.layout.names:
        if name != EMBEDDING or rows == size:
            stored[name].read_into(model[name])
    embedding = model[EMBEDDING]
    if rows != size:
        whole = np.empty((rows, model.config.n_embd), np.float32)
        stored[EMBEDDING].read_into(whole)
        embedding[:rows] = whole[:size]
        embedding[rows:] = whole.mean(axis=0, dtype=np.float64)
        embedding = whole
    if HEAD in stored:
        head = np.empty_like(embedding)
        stored[HEAD].read_into(head)
        if not np.array_equal(head, embedding):
            raise PretrainedError(
                f"{stored[HEAD].path}: {HEAD} differs from {stored[EMBEDDING].name}; this GPT-2 "
                "has one tensor for both"
            )


# ---- writing -------------------------------------------------------------------------------------


def save(model, folder, *, max_shard_size="5GB", overwrite=False, end_of_text=gpt2_end_of_text):
    """flatstep.GPT.save_pretrained.

    end_of_text: the token between documents, or None; or a function of the model's GPTConfig.
    """
    if callable(end_of_text):
        end_of_text = end_of_text(model.config)
    limit = shard_bytes(max_shard_size)
    check_finite(model)
    folder = Path(folder)
    present = _own_files(folder)
    if present and not overwrite:
        raise PretrainedError(f"{present[0]}: is there already; overwrite=True replaces it")
    folder.mkdir(parents=True, exist_ok=True)
    shards = _shards(model, limit)
    files = [*shards, *([INDEX] if len(shards) > 1 else []), CONFIG]
    temporary = {name: folder / f".{name}{_TEMPORARY}" for name in files}
    try:
        _write(model, shards, temporary, end_of_text)
        # config.json goes first and comes last: a folder that has it is whole.
        (folder / CONFIG).unlink(missing_ok=True)
        sync(folder)
        for old in present:
            if old.name not in temporary:
                old.unlink(missing_ok=True)
        for name in files[:-1]:
            os.replace(temporary[name], folder / name)
        sync(folder)
        os.replace(temporary[CONFIG], folder / CONFIG)
        sync(folder)
    finally:
        for path in folder.glob(f".*{_TEMPORARY}"):  # also those of a save that was killed
            path.unlink(missing_ok=True)


def check_finite(model):
    """Raises ValueError naming the first parameter that is not finite."""
    for name in model.layout.names:
        index = first_nonfinite(model[name])
        if index is not None:
            value = model[name].reshape(-1)[index]
            raise ValueError(
                f"params: got {value} in {name} at index {index}, expected finite numbers"
            )


def shard_bytes(value):
    """Bytes from an int or a text such as "5GB", "300MB" or "2GiB"."""
    units = {
        "B": 1,
        "KB": 10**3,
        "MB": 10**6,
        "GB": 10**9,
        "KIB": 2**10,
        "MIB": 2**20,
        "GIB": 2**30,
    }
    if isinstance(value, str):
        found = re.fullmatch(r"\s*([0-9]+)\s*([KMG]?i?B)\s*", value, re.IGNORECASE)
        if not found or found[2].upper() not in units:
            raise ValueError(f"max_shard_size: got {value!r}, expected bytes or a text like '5GB'")
        size = int(found[1]) * units[found[2].upper()]
    else:
        size = _checks.integer(value, "max_shard_size")
    if size < 1:
        raise ValueError(f"max_shard_size: got {value!r}, expected a size of at least 1 byte")
    return size


def _own_files(folder):
    """What this module has written there, or another version of it."""
    if not folder.is_dir():
        return []
    fixed = (CONFIG, WEIGHTS, INDEX)
    return sorted(p for p in folder.iterdir() if p.name in fixed or SHARD.fullmatch(p.name))


def _shards(model, limit):
    """{file name: [tensor, ...]} in the order of the layout, of `limit` bytes or one tensor."""
    groups, used = [[]], 0
    for name in model.layout.names:
        size = model[name].nbytes
        if groups[-1] and used + size > limit:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    if len(groups) == 1:
        return {WEIGHTS: groups[0]}
    count = len(groups)
    return {f"model-{k:05d}-of-{count:05d}.safetensors": g for k, g in enumerate(groups, 1)}


def _write(model, shards, temporary, end_of_text):
    for name, tensors in shards.items():
        # Readers of the format ask for this metadata, whatever wrote the file.
        save_file({t: model[t] for t in tensors}, temporary[name], metadata={"format": "pt"})
    if INDEX in temporary:
        weight_map = {tensor: name for name, tensors in shards.items() for tensor in tensors}
        total = {"total_size": model.params.nbytes}
        write_json(temporary[INDEX], {"metadata": total, "weight_map": weight_map})
    write_json(temporary[CONFIG], config_json(model.config, end_of_text))
    for path in temporary.values():
        sync(path)
