"""Options from the command line, a TOML file and presets; nearest names for wrong ones."""

import dataclasses
import tomllib

import numpy as np
import pytest

import flatstep as fs
from flatstep.errors import InputError
from flatstep.training.config import make_config
from flatstep.training.config_file import combine, read_config_file
from flatstep.training.options import SCHEDULES, TrainConfig
from flatstep.training.parts import decaying_layout, make_schedule
from flatstep.training.presets import PRESETS
from flatstep.training.run_folder import write_config


def write(path, text):
    path.write_text(text)
    return path


def test_what_is_typed_stands_before_the_file_and_the_file_before_the_preset(tmp_path):
    path = write(tmp_path / "my.toml", 'preset = "tiny"\nlr = 1\nn_layer = 3\nfiles = ["a", "b"]\n')
    given, files = combine({"n_layer": 5}, path)
    assert files == ("a", "b")
    assert (given["n_layer"], given["lr"], given["n_embd"]) == (5, 1.0, 64)
    given, _ = combine({}, path, "char-cpu")
    assert (given["n_layer"], given["n_embd"], given["vocab"]) == (3, 128, "char")
    assert combine({}, None, None) == ({}, ())


def test_a_preset_leaves_a_vocabulary_that_is_given(tmp_path):
    """Files of tokens, a prepared folder and another model bring their own."""
    (tmp_path / "train.bin").write_bytes(b"\0\0")
    (tmp_path / "vocabulary.json").write_text("{}")
    assert combine({}, preset="char", files=["a.txt"])[0]["vocab"] == "char"
    for files in (["a.bin", "b.bin"], [str(tmp_path)]):
        given, used = combine({}, preset="char", files=files)
        assert "vocab" not in given and given["n_layer"] == 6 and used == tuple(files)
    assert "vocab" not in combine({"init_from": "gpt2"}, preset="char")[0]
    assert combine({"vocab": "bpe"}, preset="char", files=["a.bin"])[0]["vocab"] == "bpe"


def test_the_configuration_of_a_run_can_be_given(tmp_path):
    config = make_config({"steps": 77, "dropout": 0.25, "schedule": "wsd", "recompute": True})
    extra = {"data_bytes": 3, "data_sha256": "0", "flatstep_version": "9", "data_files": ["x"]}
    write_config(tmp_path, config, extra)
    given, files = combine({}, tmp_path / "config.toml")
    assert make_config(given) == config and files == ("x",)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_every_preset_is_a_configuration(name):
    what, options = PRESETS[name]
    config = make_config(options)
    assert all(getattr(config, key) == value for key, value in options.items())
    assert what and dataclasses.asdict(config) != dataclasses.asdict(TrainConfig())
    make_schedule(config)


BAD_FILES = [
    ("n_layr = 3", "unknown key 'n_layr'; did you mean 'n_layer'?"),
    ("n-layer = 3", "unknown key 'n-layer'; did you mean 'n_layer'?"),
    ("file = 'x'", "unknown key 'file'; did you mean 'files'?"),
    ("steps = 'ten'", "--steps: int expected, got 'ten'"),
    ("lr = true", "--lr: float expected, got True"),
    ("recompute = 1", "--recompute: bool expected, got 1"),
    ("schedule = 'cosine'", "did you mean 'warmup_cosine'?"),
    ("[model]\nn_layer = 3", r"\[model\]: no tables are used"),
    ("files = 'x'", "files must be a list of file names"),
    ("files = [1]", "files must be a list of file names"),
    ("preset = 'chars'", "did you mean 'char'?"),
    ("preset = 3", "--preset 3: choose from tiny"),
    ("steps =", "cannot be read"),
    ("steps = 1\nsteps = 2", "cannot be read"),
]


@pytest.mark.parametrize(("text", "message"), BAD_FILES, ids=[text for text, _ in BAD_FILES])
def test_a_wrong_file_is_named_with_its_key(tmp_path, text, message):
    path = write(tmp_path / "my.toml", text)
    with pytest.raises(InputError, match=rf"^--config .*my\.toml: .*{message}"):
        read_config_file(path)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"none\.toml: cannot be read: No such file"):
        read_config_file(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_bytes(b"steps = '\xff'")
    with pytest.raises(InputError, match=r"bad\.toml: cannot be read"):
        read_config_file(tmp_path / "bad.toml")


CONTRADICTIONS = [
    ({"schedule": "constant", "min_lr": 1e-5}, "--min-lr has no meaning"),
    ({"decay_steps": 5}, "--decay-steps has no meaning with --schedule warmup_cosine"),
    ({"cycles": 2}, "--cycles has no meaning"),
    ({"power": 2.0}, "--power has no meaning"),
    ({"schedule": "wsd", "steps": 10, "warmup": 5, "decay_steps": 6}, "must not exceed --steps 10"),
    ({"nesterov": True}, "--nesterov needs --optimizer sgd"),
    ({"nesterov": True, "optimizer": "sgd", "beta1": 0.0}, "--nesterov needs"),
    ({"vocab": "byte", "tokenizer": "x.json"}, "--tokenizer has no meaning"),
    ({"patience": 3, "eval_every": 0}, "--patience needs validations"),
    ({"spike_threshold": 0.0}, "--spike-threshold must be above 0"),
    ({"keep": 0}, "--keep must be at least 1"),
    ({"unknwon": 3}, "unknown option 'unknwon'"),
    ({"n_heads": 3}, "did you mean 'n_head'"),
]


@pytest.mark.parametrize(("given", "message"), CONTRADICTIONS)
def test_options_that_contradict(given, message):
    with pytest.raises(InputError, match=message):
        make_config(given)


def test_schedules_take_their_own_options():
    def rates(**given):
        schedule = make_schedule(make_config({"steps": 40, "lr": 1.0, "warmup": 4, **given}))
        return np.array([schedule(step) for step in range(40)])

    wsd = rates(schedule="wsd", decay_steps=10)
    assert (wsd[4:30] == 1.0).all() and (np.diff(wsd[30:]) < 0).all()
    assert np.array_equal(rates(schedule="wsd"), rates(schedule="wsd", decay_steps=8))
    restarts = rates(schedule="cosine_restarts", cycles=3, min_lr=0.0)
    assert (np.diff(restarts[4:]) > 0).sum() == 2
    linear, cubic = rates(schedule="polynomial"), rates(schedule="polynomial", power=3.0)
    assert (cubic[5:39] < linear[5:39]).all()
    assert set(SCHEDULES) <= set(fs.schedule.__all__)


def test_what_decays():
    model = fs.GPT(fs.GPTConfig(16, 8, 1, 2, 8))

    def decaying(which):
        layout = decaying_layout(make_config({"decay": which}), model.layout)
        params, grads = np.ones(model.num_params, np.float32), np.zeros_like(model.params)
        fs.AdamW(params, lr=1.0, weight_decay=0.5, layout=layout).step(grads)
        return {name for name, view in model.layout.views(params).items() if (view != 1).any()}

    names = set(model.layout.names)
    layers = {name for name in names if name.endswith(".weight") and ".h." in name}
    layers -= {name for name in layers if ".ln_" in name}
    assert decaying("layers") == layers
    assert decaying("matrices") == layers | {"transformer.wte.weight", "transformer.wpe.weight"}
    assert decaying("all") == names


def test_a_written_configuration_is_toml(tmp_path):
    write_config(tmp_path, TrainConfig(), {})
    entries = tomllib.loads((tmp_path / "config.toml").read_text())
    assert entries == dataclasses.asdict(TrainConfig())
