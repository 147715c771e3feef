"""GGUF files, read back with the gguf package."""

import gguf
import numpy as np
import pytest
from export_case import make_model, make_vocabulary

import flatstep as fs
from flatstep.data.vocabulary import IdVocabulary
from flatstep.errors import InputError
from flatstep.export.folder import export_model


def read(path):
    """(GGUFReader, {key: value})."""
    reader = gguf.GGUFReader(path)
    return reader, {name: field.contents() for name, field in reader.fields.items()}


# Written out: the names are what llama.cpp asks for.
NAMES = {
    "transformer.wte.weight": "token_embd.weight",
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.h.1.ln_1.weight": "blk.1.attn_norm.weight",
    "transformer.h.1.ln_1.bias": "blk.1.attn_norm.bias",
    "transformer.h.1.attn.c_attn.weight": "blk.1.attn_qkv.weight",
    "transformer.h.1.attn.c_attn.bias": "blk.1.attn_qkv.bias",
    "transformer.h.1.attn.c_proj.weight": "blk.1.attn_output.weight",
    "transformer.h.1.attn.c_proj.bias": "blk.1.attn_output.bias",
    "transformer.h.1.ln_2.weight": "blk.1.ffn_norm.weight",
    "transformer.h.1.ln_2.bias": "blk.1.ffn_norm.bias",
    "transformer.h.1.mlp.c_fc.weight": "blk.1.ffn_up.weight",
    "transformer.h.1.mlp.c_fc.bias": "blk.1.ffn_up.bias",
    "transformer.h.1.mlp.c_proj.weight": "blk.1.ffn_down.weight",
    "transformer.h.1.mlp.c_proj.bias": "blk.1.ffn_down.bias",
    "transformer.ln_f.weight": "output_norm.weight",
    "transformer.ln_f.bias": "output_norm.bias",
}
NAMES |= {ours.replace("h.1.", "h.0."): theirs.replace(".1.", ".0.") for ours, theirs in
          NAMES.items() if "h.1." in ours}  # fmt: skip


@pytest.mark.parametrize("dtype", ("f32", "f16"))
def test_every_tensor_has_its_values_in_the_right_order(tmp_path, dtype):
    model = make_model(256)
    path = tmp_path / "model.gguf"
    exported = export_model(model, make_vocabulary("byte"), path, format="gguf", dtype=dtype)
    assert exported.files == ("model.gguf",) and exported.tokenizer
    reader, _ = read(path)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert set(tensors) == set(NAMES.values()) and set(NAMES) == set(model.layout.names)
    for ours, theirs in NAMES.items():
        wanted = model[ours]
        if wanted.ndim == 2 and ".h." in ours:
            wanted = wanted.T  # [out, in], where Hugging Face's Conv1D has [in, out]
        half = dtype == "f16" and wanted.ndim == 2 and ".wpe." not in ours
        found = tensors[theirs].data
        assert found.dtype == (np.float16 if half else np.float32), theirs
        assert found.shape == wanted.shape
        assert np.array_equal(found, wanted.astype(found.dtype)), theirs
        assert list(tensors[theirs].shape) == list(reversed(wanted.shape))  # ggml's order


def test_the_metadata(tmp_path):
    path = tmp_path / "notes.gguf"
    export_model(make_model(256), make_vocabulary("byte"), path, format="gguf")
    _, values = read(path)
    expected = {
        "general.architecture": "gpt2",
        "general.name": "notes",
        "general.file_type": 0,
        "gpt2.context_length": 32,
        "gpt2.embedding_length": 16,
        "gpt2.block_count": 2,
        "gpt2.feed_forward_length": 64,
        "gpt2.attention.head_count": 2,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.ggml.eos_token_id": 0,
    }
    assert {name: values[name] for name in expected} == expected
    assert values["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)
    tokens = values["tokenizer.ggml.tokens"]
    assert len(tokens) == 256 and tokens[33] == "!" and tokens[32] == "Ġ"


@pytest.mark.needs("tokenizers")
def test_byte_pairs(tmp_path):
    vocabulary = make_vocabulary("bpe")
    model = make_model(vocabulary.size + 3)  # as if padded
    export_model(model, vocabulary, tmp_path / "bpe.gguf", format="gguf")
    _, values = read(tmp_path / "bpe.gguf")
    tokens, types = values["tokenizer.ggml.tokens"], values["tokenizer.ggml.token_type"]
    assert len(tokens) == len(types) == model.config.vocab_size
    numbers = vocabulary.tokenizer.get_vocab()
    assert all(tokens[number] == token for token, number in numbers.items())
    end = vocabulary.end_of_text
    assert tokens[end] == "<|endoftext|>" and values["tokenizer.ggml.eos_token_id"] == end
    assert [k for k, kind in enumerate(types) if kind == 3] == [end]
    assert types[-3:] == [5, 5, 5] and set(types[:-3]) == {1, 3}
    merges = values["tokenizer.ggml.merges"]
    assert len(merges) == vocabulary.size - 257
    assert all(merge.replace(" ", "") in numbers for merge in merges)


@pytest.mark.needs("tokenizers")
def test_a_tokenizer_that_llama_cpp_would_apply_otherwise_is_left_out(tmp_path):
    from flatstep.data.bpe import BpeVocabulary

    text = make_vocabulary("bpe").files()["tokenizer.json"]
    other = text.replace(b'"use_regex": true', b'"use_regex": false', 1)
    assert other != text
    exported = export_model(
        make_model(400), BpeVocabulary(other), tmp_path / "x.gguf", format="gguf"
    )
    assert not exported.tokenizer
    assert read(tmp_path / "x.gguf")[1]["tokenizer.ggml.model"] == "none"


@pytest.mark.parametrize("vocabulary", [IdVocabulary(300), None, make_vocabulary("char")])
def test_what_llama_cpp_has_no_tokenizer_for(tmp_path, vocabulary):
    size = vocabulary.size if vocabulary else 300
    exported = export_model(make_model(size), vocabulary, tmp_path / "out", format="gguf")
    assert exported.files == ("model.gguf",) and not exported.tokenizer
    _, values = read(tmp_path / "out/model.gguf")
    assert values["tokenizer.ggml.model"] == "none" and values["gpt2.vocab_size"] == size


def test_what_does_not_fit_in_half_precision_is_refused(tmp_path):
    model = make_model(256)
    model["transformer.h.0.mlp.c_fc.weight"][3, 4] = -1e5
    with pytest.raises(
        InputError, match=r"--dtype f16: transformer\.h\.0\.mlp\.c_fc\.weight holds"
    ):
        export_model(model, None, tmp_path / "x.gguf", format="gguf", dtype="f16")
    model["transformer.wpe.weight"][0, 1] = np.nan
    with pytest.raises(InputError, match=r"got nan in transformer\.wpe\.weight at index 1,"):
        export_model(model, None, tmp_path / "x.gguf", format="gguf")
    assert not any(tmp_path.iterdir())


def test_a_file_that_is_there_stays_unless_asked(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_text("mine")
    model = fs.GPT(fs.GPTConfig(256, 8, 1, 1, 8))
    with pytest.raises(InputError, match=r"x\.gguf: is a file that is there already; --overwrite"):
        export_model(model, None, path, format="gguf")
    assert path.read_text() == "mine"
    export_model(model, None, path, format="gguf", overwrite=True)
    assert read(path)[1]["gpt2.block_count"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["x.gguf"]
