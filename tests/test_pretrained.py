"""Folders of Hugging Face GPT-2: round trips to the bit, and what is refused."""

import json
import shutil

import bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import flatstep as fs
from flatstep.errors import InputError, PretrainedError

CONFIG = fs.GPTConfig(vocab_size=37, block_size=19, n_layer=3, n_head=3, n_embd=15, dropout=0.25)
WTE, WPE, LAST = "transformer.wte.weight", "transformer.wpe.weight", "transformer.ln_f.bias"
QKV = "transformer.h.1.attn.c_attn.weight"


@pytest.fixture(scope="module")
def model():
    model = fs.GPT(CONFIG, seed=4)
    rng = np.random.default_rng(2)
    model.params[...] += (rng.standard_normal(model.num_params) * 0.1).astype(np.float32)
    return model


@pytest.fixture
def folder(tmp_path, model):
    model.save_pretrained(tmp_path / "gpt")
    return tmp_path / "gpt"


def edit_config(folder, **changes):
    """None as `...` takes a key away."""
    path = folder / "config.json"
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in values.items() if v is not ...}))


def edit_weights(folder, change):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors = change(tensors) or tensors
    save_file({name: np.ascontiguousarray(t) for name, t in tensors.items()}, path)


def write_safetensors(path, tensors):
    """{name: (dtype as the format spells it, array)}, written by hand."""
    header, offset = {}, 0
    for name, (dtype, array) in tensors.items():
        ends = [offset, offset + array.nbytes]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header).encode()
    data = b"".join(array.tobytes() for _, array in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- round trips -------------------------------------------------------------------------------


def test_round_trip(folder, model):
    assert names_in(folder) == ["config.json", "model.safetensors"]
    loaded = fs.GPT.from_pretrained(folder, seed=9)
    assert loaded.config == CONFIG and loaded.seed == 9
    assert loaded.params.tobytes() == model.params.tobytes()
    assert fs.GPT.from_pretrained(str(folder), dropout=0).config.dropout == 0


@pytest.mark.parametrize(
    ("size", "limit"),
    [(1, 1), ("1KB", 1000), (3000, 3000), ("10KB", 10_000), ("9KiB", 9216), ("20kb", 20_000)],
)
def test_shards(tmp_path, model, size, limit):
    model.save_pretrained(tmp_path, max_shard_size=size)
    files = sorted(tmp_path.glob("*.safetensors"))
    count = len(files)
    assert count > 1
    assert [path.name for path in files] == [
        f"model-{k:05d}-of-{count:05d}.safetensors" for k in range(1, count + 1)
    ]
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == model.params.nbytes
    assert list(index["weight_map"]) == model.layout.names
    shards = [load_file(path) for path in files]
    sizes = [sum(tensor.nbytes for tensor in shard.values()) for shard in shards]
    assert all(s <= limit or len(shard) == 1 for s, shard in zip(sizes, shards, strict=True))
    for size_before, following in zip(sizes, files[1:], strict=False):
        first = next(n for n, file in index["weight_map"].items() if file == following.name)
        assert size_before + model[first].nbytes > limit  # as few files as that
    assert fs.GPT.from_pretrained(tmp_path).params.tobytes() == model.params.tobytes()


@pytest.mark.parametrize("prefix", ("", "transformer."))
@pytest.mark.parametrize("head", ("absent", "present", "instead of the embedding"))
def test_names(folder, model, prefix, head):
    def change(tensors):
        renamed = {prefix + n.removeprefix("transformer."): t for n, t in tensors.items()}
        if head != "absent":
            renamed["lm_head.weight"] = renamed[prefix + "wte.weight"].copy()
        if head.startswith("instead"):
            del renamed[prefix + "wte.weight"]
        for layer in range(3):
            renamed[f"{prefix}h.{layer}.attn.bias"] = np.ones((1, 1, 19, 19), bool)
            renamed[f"{prefix}h.{layer}.attn.masked_bias"] = np.float32([-1e4])
        return renamed

    edit_weights(folder, change)
    assert fs.GPT.from_pretrained(folder).params.tobytes() == model.params.tobytes()


@pytest.mark.parametrize("dtype", ("F16", "BF16", "mixed"))
def test_sixteen_bits(folder, model, dtype):
    stored, wanted = {}, {}
    for i, name in enumerate(model.layout.names):
        kind = ("F16", "BF16", "F32")[i % 3] if dtype == "mixed" else dtype
        array = model[name].copy()
        array.reshape(-1)[:2] = 1e-7, -0.0  # subnormal in float16
        if kind == "F16":
            half = array.astype(np.float16)
            stored[name], wanted[name] = (kind, half), half.astype(np.float32)
        elif kind == "BF16":
            bits = bfloat16.from_float32(array)
            stored[name], wanted[name] = (kind, bits), bfloat16.to_float32(bits)
        else:
            stored[name] = (kind, array)
            wanted[name] = array
    write_safetensors(folder / "model.safetensors", stored)
    loaded = fs.GPT.from_pretrained(folder)
    for name, array in wanted.items():
        assert loaded[name].tobytes() == array.tobytes(), name


def test_a_config_of_defaults(folder, model):
    """Absent keys have the library's defaults; other names of a key, and n_inner spelled out."""
    away = dict.fromkeys(
        ("activation_function", "layer_norm_epsilon", "scale_attn_weights", "n_inner",
         "scale_attn_by_inverse_layer_idx", "reorder_and_upcast_attn", "add_cross_attention",
         "tie_word_embeddings", "embd_pdrop", "attn_pdrop", "resid_pdrop"), ...
    )  # fmt: skip
    edit_config(folder, **away)
    assert fs.GPT.from_pretrained(folder).config.dropout == 0.1
    edit_config(folder, n_inner=60, n_positions=..., n_ctx=19, n_embd=..., hidden_size=15,
                n_layer=..., num_hidden_layers=3, reorder_and_upcast_attn=True,
                activation_function="gelu_pytorch_tanh")  # fmt: skip
    assert fs.GPT.from_pretrained(folder).params.tobytes() == model.params.tobytes()


def test_fewer_and_more_rows_of_the_vocabulary(folder, model):
    fewer = fs.GPT.from_pretrained(folder, vocab_size=30)
    assert fewer.config.vocab_size == 30
    assert fewer[WTE].tobytes() == model[WTE][:30].tobytes()
    assert fewer[WPE].tobytes() == model[WPE].tobytes()
    more = fs.GPT.from_pretrained(folder, vocab_size=64)
    assert more[WTE][:37].tobytes() == model[WTE].tobytes()
    mean = model[WTE].astype(np.float64).mean(axis=0)
    assert np.all(np.abs(more[WTE][37:] - mean) <= 1e-7)
    tokens = np.arange(19)[None]
    logits, wanted = more.logits(tokens)[0], model.logits(tokens)[0]
    scale = np.abs(wanted).max()
    assert np.all(np.abs(logits[:, :37] - wanted) <= 1e-6 * scale)
    assert np.all(np.abs(logits[:, 37:] - wanted.mean(axis=-1, keepdims=True)) <= 1e-5 * scale)


def test_a_padded_embedding_needs_a_word(folder, model):
    """The configuration speaks of 37 rows and 40 are stored, head included."""

    def pad(tensors):
        tensors[WTE] = np.concatenate([tensors[WTE], np.zeros((3, 15), np.float32)])
        tensors["lm_head.weight"] = tensors[WTE].copy()

    edit_weights(folder, pad)
    with pytest.raises(PretrainedError, match=r"config.json: vocab_size: got 37, expected 40, the"):
        fs.GPT.from_pretrained(folder)
    stripped = fs.GPT.from_pretrained(folder, vocab_size=37)
    assert stripped.params.tobytes() == model.params.tobytes()
    assert fs.GPT.from_pretrained(folder, vocab_size=40).config.vocab_size == 40


def test_training_goes_on_from_a_folder(folder, rng):
    loaded = fs.GPT.from_pretrained(folder)
    optimizer = fs.AdamW(loaded.params, layout=loaded.layout, lr=1e-3)
    tokens = rng.integers(0, 37, (2, 19))
    losses = []
    for step in range(20):
        losses.append(loaded.forward_backward(tokens, tokens, step=step))
        optimizer.step(loaded.grads)
    assert losses[-1] < 0.9 * losses[0]


# ---- refused -------------------------------------------------------------------------------------

BAD_KEYS = {
    "model_type": ("gpt_neo", None, ...),
    "activation_function": ("gelu", "relu", None),
    "layer_norm_epsilon": (1e-6, 0, "1e-5", float("nan")),
    "scale_attn_weights": (False, 1),
    "scale_attn_by_inverse_layer_idx": (True,),
    "add_cross_attention": (True, 0),
    "tie_word_embeddings": (False,),
    "quantization_config": ({"bits": 4},),
    "pruned_heads": ({"0": [1]},),
    "n_inner": (61, "60", 0),
    "n_head": (0, 4, 2.0, True, "3"),
    "n_layer": (0, 2**31, 10**30, -1),
    "n_embd": (None, 15.0),
    "n_ctx": (20, 0),
    "vocab_size": (36, 38, 0, "37"),
    "attn_pdrop": (0.1, 1.0, -0.5, "0.25", True),
    "embd_pdrop": (0.3, None),
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, v) for key, values in BAD_KEYS.items() for v in values], ids=str
)
def test_another_configuration(folder, key, value):
    edit_config(folder, **{key: value})
    with pytest.raises(PretrainedError) as caught:
        fs.GPT.from_pretrained(folder)
    assert str(caught.value).startswith(f"{folder / 'config.json'}: ")
    # A wrong embd_pdrop shows as another key's disagreement with it, n_head as that of n_embd.
    assert key in str(caught.value) and "got" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_config_that_cannot_be_read(folder):
    path = folder / "config.json"
    for text in ("", "{", "[1]", '"gpt2"', "[" * 100_000):
        path.write_text(text)
        with pytest.raises(PretrainedError, match=r"config.json: (cannot be read|an object was)"):
            fs.GPT.from_pretrained(folder)
    path.write_bytes(b"\xff\xfe{}")
    with pytest.raises(PretrainedError, match=r"config.json: cannot be read"):
        fs.GPT.from_pretrained(folder)
    path.unlink()
    with pytest.raises(PretrainedError, match=r"config.json: missing"):
        fs.GPT.from_pretrained(folder)
    with pytest.raises(PretrainedError, match=r"nowhere: no such folder"):
        fs.GPT.from_pretrained(folder / "nowhere")


def replaced(name, make):
    def change(tensors):
        tensors[name] = make(tensors[name])

    return change


def removed(name):
    return lambda tensors: {n: t for n, t in tensors.items() if n != name}


def added(name, make):
    def change(tensors):
        tensors[name] = make(tensors)

    return change


def spoiled(value, index):
    def make(array):
        array = array.copy()
        array.reshape(-1)[index] = value
        return array

    return make


BAD_WEIGHTS = {
    "a missing matrix": (removed(QKV), f"lacks the tensor {QKV}"),
    "a missing vector": (removed(LAST), f"lacks the tensor {LAST}"),
    "no embedding": (removed(WTE), f"lacks the tensor {WTE}"),
    "another tensor": (added("score.weight", lambda t: t[LAST]), "score.weight is no tensor of"),
    "another layer": (
        added("transformer.h.3.ln_1.bias", lambda t: t[LAST]),
        "transformer.h.3.ln_1.bias is no tensor of this GPT-2",
    ),
    "a name twice": (added("wpe.weight", lambda t: t[WPE]), "wpe.weight is there twice: also as"),
    "a transposed matrix": (
        replaced(QKV, np.transpose),
        f"{QKV}: got [45, 15], expected shape [15, 45]",
    ),
    "fewer positions": (
        replaced(WPE, lambda t: t[:18]),
        f"{WPE}: got [18, 15], expected shape [19, 15]",
    ),
    "a flat embedding": (
        replaced(WTE, np.ravel),
        f"{WTE}: got [555], expected [vocab_size, n_embd",
    ),
    "a wide embedding": (
        replaced(WTE, lambda t: np.repeat(t, 2, axis=1)),
        f"{WTE}: got [37, 30], expected shape [37, 15]",
    ),
    "float64": (
        replaced(QKV, lambda t: t.astype(np.float64)),
        f"{QKV}: got dtype F64, expected F32, F16 or BF16",
    ),
    "integers": (
        replaced(LAST, lambda t: t.astype(np.int32)),
        f"{LAST}: got dtype I32, expected F32, F16 or BF16",
    ),
    "NaN": (replaced(QKV, spoiled(np.nan, 50)), f"{QKV}: got nan at index 50, expected finite"),
    "infinity": (replaced(LAST, spoiled(-np.inf, 3)), f"{LAST}: got -inf at index 3, expected fin"),
    "an infinite float16": (
        replaced(QKV, lambda t: spoiled(np.inf, 1)(t).astype(np.float16)),
        f"{QKV}: got inf at index 1",
    ),
    "an untied head": (
        added("lm_head.weight", lambda t: spoiled(7, 554)(t[WTE])),
        f"lm_head.weight differs from {WTE}; this GPT-2 has one tensor for both",
    ),
    "a head of another shape": (
        added("lm_head.weight", lambda t: t[WTE][:30]),
        "lm_head.weight: got [30, 15], expected shape [37, 15]",
    ),
    "a NaN in the head": (
        added("lm_head.weight", lambda t: spoiled(np.nan, 0)(t[WTE])),
        "lm_head.weight: got nan at index 0",
    ),
}


@pytest.mark.parametrize("case", BAD_WEIGHTS)
def test_other_weights(folder, case):
    change, text = BAD_WEIGHTS[case]
    edit_weights(folder, change)
    with pytest.raises(PretrainedError) as caught:
        fs.GPT.from_pretrained(folder)
    assert text in str(caught.value)
    assert isinstance(caught.value, (ValueError, InputError))


def test_a_damaged_file(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    for damaged in (b"", whole[:7], whole[: 8 + size // 2], whole[:-1], whole + b"\0",
                    (2**62).to_bytes(8, "little") + whole[8:], b"\0" * len(whole)):  # fmt: skip
        path.write_bytes(damaged)
        with pytest.raises(PretrainedError, match=r"model.safetensors: not a whole safetensors"):
            fs.GPT.from_pretrained(folder)
    path.unlink()
    with pytest.raises(PretrainedError, match=r"has neither model.safetensors nor model.safete"):
        fs.GPT.from_pretrained(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(PretrainedError, match=r"there is only a pickle, which is not read"):
        fs.GPT.from_pretrained(folder)


@pytest.fixture
def sharded(tmp_path, model):
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    return tmp_path / "shards"


def edit_index(folder, change):
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "file",
    ["../gpt/model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", "", 3, None,
     "model.bin", "..\\model.safetensors", "C:model.safetensors", ".safetensors",
     "a\nb.safetensors"],
)  # fmt: skip
def test_a_shard_outside_the_folder(sharded, folder, file):
    """`folder` holds a file that fits: it is refused for where it is."""
    edit_index(sharded, lambda index: index["weight_map"].update({WTE: file}))
    with pytest.raises(PretrainedError) as caught:
        fs.GPT.from_pretrained(sharded)
    assert f"{WTE}: got {file!r}, expected the name of a .safetensors file in this folder" in str(
        caught.value
    )


def test_an_index_that_does_not_fit_its_shards(sharded):
    shards = sorted(path.name for path in sharded.glob("model-*"))
    copy = sharded.with_name("copy")

    def refusal(change):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(sharded, copy)
        edit_index(copy, change)
        with pytest.raises(PretrainedError) as caught:
            fs.GPT.from_pretrained(copy)
        return str(caught.value)

    assert "lacks the tensor" in refusal(lambda i: i["weight_map"].update({WTE: shards[-1]}))
    assert f"{LAST} has no place in" in refusal(lambda i: i["weight_map"].pop(LAST))
    assert "other.safetensors: missing" in refusal(
        lambda i: i["weight_map"].update({WTE: "other.safetensors"})
    )
    for value in (None, {}, [], "all"):
        assert "weight_map: got" in refusal(lambda i, value=value: i.update(weight_map=value))
    (sharded / shards[1]).unlink()
    assert f"{shards[1]}: missing" in refusal(lambda i: None)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("vocab_size", 0), ("vocab_size", 2.5), ("dropout", 1.0), ("dropout", -0.1),
     ("dropout", float("nan")), ("dropout", "much"), ("seed", -1), ("device", "abacus")],
)  # fmt: skip
def test_arguments_of_loading(folder, argument, value):
    with pytest.raises((ValueError, TypeError), match=rf"^{argument}: got"):
        fs.GPT.from_pretrained(folder, **{argument: value})


# ---- writing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", (0, -1, 1.5, "5", "GB", "1TB", "-1GB", "0B", None))
def test_sizes_of_shards(tmp_path, model, size):
    with pytest.raises((ValueError, TypeError), match=r"^max_shard_size: got"):
        model.save_pretrained(tmp_path / "new", max_shard_size=size)
    assert not (tmp_path / "new").exists()


def test_nothing_is_overwritten_unasked(sharded, model):
    (sharded / "tokenizer.json").write_text("{}")
    before = {path.name: path.read_bytes() for path in sharded.iterdir()}
    other = fs.GPT(CONFIG, seed=1)
    with pytest.raises(PretrainedError, match=r"config.json: is there already; overwrite=True"):
        other.save_pretrained(sharded)
    assert {path.name: path.read_bytes() for path in sharded.iterdir()} == before
    other.save_pretrained(sharded, overwrite=True)
    # No shard of the old model is left to be taken for one of the new; other files are.
    assert names_in(sharded) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert fs.GPT.from_pretrained(sharded).params.tobytes() == other.params.tobytes()
    model.save_pretrained(sharded, max_shard_size="10KB", overwrite=True)
    assert "model.safetensors" not in names_in(sharded)
    assert fs.GPT.from_pretrained(sharded).params.tobytes() == model.params.tobytes()
    for name in ("model-00007-of-00009.safetensors", "model.safetensors.index.json"):
        folder = sharded.with_name(name)
        folder.mkdir()
        (folder / name).write_bytes(b"kept")
        with pytest.raises(PretrainedError, match="is there already"):
            model.save_pretrained(folder)
        assert (folder / name).read_bytes() == b"kept"


def test_parameters_that_are_not_finite(tmp_path):
    model = fs.GPT(CONFIG, seed=1)
    model[QKV][1, 2] = np.nan
    with pytest.raises(ValueError, match=rf"^params: got nan in {QKV} at index 47, expected fin"):
        model.save_pretrained(tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("failing", ("write", "first rename", "last rename"))
def test_a_save_that_fails_leaves_no_half_model(sharded, model, monkeypatch, failing):
    """The disk refuses: before anything is replaced the old model is whole; then there is none."""
    import os

    original, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if failing == "first rename" or target.name == "config.json":
            raise OSError(28, "No space left on device")
        original(source, target)

    def write(*_, **__):
        raise OSError(28, "No space left on device")

    if failing == "write":
        monkeypatch.setattr("flatstep.pretrained.write_json", write)
    else:
        monkeypatch.setattr("os.replace", replace)
    with pytest.raises(OSError, match="No space left"):
        fs.GPT(CONFIG, seed=1).save_pretrained(sharded, overwrite=True)
    monkeypatch.undo()
    assert not list(sharded.glob(".*"))
    if failing == "write":
        assert fs.GPT.from_pretrained(sharded).params.tobytes() == model.params.tobytes()
    else:
        with pytest.raises(PretrainedError, match=r"config.json: missing"):
            fs.GPT.from_pretrained(sharded)


def test_leftovers_of_a_killed_save_go(tmp_path, model):
    (tmp_path / ".model-00003-of-00009.safetensors.flatstep-tmp").write_bytes(b"half")
    model.save_pretrained(tmp_path)
    assert names_in(tmp_path) == ["config.json", "model.safetensors"]
