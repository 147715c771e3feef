"""Layouts: where each tensor of a flat buffer lies, and views that share its memory."""

import numpy as np
import pytest

import flatstep as fs

ENTRIES = [
    ("wide", (3, 7)),
    ("scalar", ()),
    ("bias", (5,), {"weight_decay": 0.0}),
    ("empty", (0, 4)),
    ("head", (2, 2, 2), {"lr_scale": 0.5, "weight_decay": 0.2}),
]


@pytest.fixture
def layout():
    return fs.Layout(ENTRIES)


def test_offsets_follow_each_other(layout):
    assert list(layout.names) == ["wide", "scalar", "bias", "empty", "head"]
    assert layout.size == 21 + 1 + 5 + 0 + 8
    offset = 0
    for name, shape, *_ in ENTRIES:
        entry = layout[name]
        assert entry.offset == offset and tuple(entry.shape) == shape
        assert entry.size == int(np.prod(shape))
        offset += entry.size


def test_groups(layout):
    assert layout["wide"].weight_decay is None and layout["wide"].lr_scale == 1.0
    assert layout["bias"].weight_decay == 0.0 and layout["bias"].lr_scale == 1.0
    assert layout["head"].weight_decay == 0.2 and layout["head"].lr_scale == 0.5


@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_views_share_the_buffer(layout, dtype):
    buffer = np.arange(layout.size, dtype=dtype)
    views = layout.views(buffer)
    assert list(views) == list(layout.names)
    for name, view in views.items():
        entry = layout[name]
        assert view.shape == tuple(entry.shape) and view.dtype == dtype
        wanted = np.arange(entry.offset, entry.offset + entry.size)
        assert np.array_equal(view.ravel(), wanted)
    views["head"][1, 0, 1] = -1
    views["scalar"][...] = -2
    assert buffer[27 + 5] == -1 and buffer[21] == -2


def test_unknown_name(layout):
    with pytest.raises((KeyError, ValueError, IndexError), match="missing"):
        layout["missing"]


def test_no_tensors():
    layout = fs.Layout([])
    assert layout.size == 0 and list(layout.names) == []
    assert layout.views(np.empty(0, np.float32)) == {}


def test_more_than_2_to_31_elements_need_no_memory():
    layout = fs.Layout([("a", (2**20, 2**20)), ("b", (3,))])
    assert layout["b"].offset == 2**40 and layout.size == 2**40 + 3


def test_model_layout_is_that_of_gpt2():
    vocabulary, block, width = 11, 8, 6
    config = fs.GPTConfig(
        vocab_size=vocabulary, block_size=block, n_layer=2, n_head=2, n_embd=width
    )
    model = fs.GPT(config, seed=0)
    wanted = {
        "transformer.wte.weight": (vocabulary, width),
        "transformer.wpe.weight": (block, width),
    }
    for index in range(2):
        layer = f"transformer.h.{index}."
        wanted |= {
            layer + "ln_1.weight": (width,),
            layer + "ln_1.bias": (width,),
            layer + "attn.c_attn.weight": (width, 3 * width),
            layer + "attn.c_attn.bias": (3 * width,),
            layer + "attn.c_proj.weight": (width, width),
            layer + "attn.c_proj.bias": (width,),
            layer + "ln_2.weight": (width,),
            layer + "ln_2.bias": (width,),
            layer + "mlp.c_fc.weight": (width, 4 * width),
            layer + "mlp.c_fc.bias": (4 * width,),
            layer + "mlp.c_proj.weight": (4 * width, width),
            layer + "mlp.c_proj.bias": (width,),
        }
    wanted |= {"transformer.ln_f.weight": (width,), "transformer.ln_f.bias": (width,)}
    assert {name: tuple(model.layout[name].shape) for name in model.layout.names} == wanted
    assert list(model.layout.names) == list(wanted)
    assert model.num_params == model.layout.size == model.params.size == model.grads.size
    assert model.params.dtype == model.grads.dtype == np.float32
    for name, shape in wanted.items():
        assert np.shares_memory(model[name], model.params)
        # Biases, gains and nothing else are free of decay.
        assert (model.layout[name].weight_decay == 0.0) == (len(shape) == 1)
