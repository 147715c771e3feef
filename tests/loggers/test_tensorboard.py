"""--log tensorboard, read back with TensorBoard's own reader; absent without it."""

import json

import pytest
from run_case import TINY, bits, stop_at
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flatstep.training import event_file, loop

NAMES = ("loss", "lr", "grad_norm", "tokens_per_second", "val_loss")


def read(run):
    """What TensorBoard shows: ({name: {step: value}}, {name: [text]})."""
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    scalars = {
        tag: {event.step: event.value for event in events.Scalars(tag)}
        for tag in events.Tags()["scalars"]
    }
    texts = {
        tag.removesuffix("/text_summary"): [
            event.tensor_proto.string_val[0].decode() for event in events.Tensors(tag)
        ]
        for tag in events.Tags()["tensors"]
    }
    return scalars, texts


def in_metrics(run, name):
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {line["step"]: line[name] for line in lines if name in line}


def compare(run):
    scalars, _ = read(run)
    assert set(scalars) == set(NAMES)
    for name in NAMES:
        expected = in_metrics(run, name)
        assert sorted(scalars[name]) == sorted(expected) != []
        for step, value in expected.items():
            assert scalars[name][step] == pytest.approx(value, rel=1e-6)  # float32 there


def test_every_figure_arrives(tmp_path, text):
    run = tmp_path / "run"
    given = TINY | {"log": "tensorboard", "sample_every": 6}
    loop.start(given, [text], out=run, quiet=True)
    compare(run)
    _, texts = read(run)
    assert len(texts["config"]) == 1
    assert "n_embd = 16" in texts["config"][0]
    assert len(texts["sample"]) == 2


def test_a_resumed_run_shows_each_step_once(tmp_path, text, monkeypatch):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        stop_at(patch, 7)
        loop.start(TINY | {"log": "tensorboard"}, [text], out=run, quiet=True)
    loop.resume(run, quiet=True)
    compare(run)


@pytest.mark.needs("proc")
def test_a_full_disk_ends_the_events_not_the_run(tmp_path, text, monkeypatch, capsys):
    real = open
    monkeypatch.setattr(
        event_file, "open", lambda path, mode: real("/dev/full", "wb", 0), raising=False
    )
    given = TINY | {"log": "tensorboard"}
    assert loop.start(given, [text], out=tmp_path / "run", quiet=True).step == 12
    errors = capsys.readouterr().err
    assert errors.startswith("flatstep: warning: --log tensorboard failed, the run goes on")
    assert "No space left on device" in errors and errors.count("\n") == 1
    loop.start(TINY, [text], out=tmp_path / "plain", quiet=True)
    assert bits(tmp_path / "run") == bits(tmp_path / "plain")
