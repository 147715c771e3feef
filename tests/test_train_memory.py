"""Memory and time of a run before it begins: the first screen, and runs that would not fit."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from run_case import TINY
from test_cli import assert_one_line_error, flatstep

import flatstep as fs
from flatstep.data.token_files import map_token_file
from flatstep.data.tokens import Tokens
from flatstep.errors import InputError
from flatstep.training import estimate, loop, memory
from flatstep.training.config import make_config
from flatstep.training.parts import model_shape
from flatstep.training.progress import StopSignals
from flatstep.training.trainer import Trainer


def planned(**options):
    config = make_config(TINY | options)
    return memory.plan_run(config, model_shape(config, 256))


def test_the_first_screen_says_what_is_taken_to_the_byte(tmp_path, text, capsys):
    loop.start(TINY | {"threads": 2}, [text], out=tmp_path / "run")
    out = capsys.readouterr().out
    lines = dict(line.split(None, 1) for line in out.split("\n\n")[0].splitlines())
    plan = planned()
    assert lines["device"] == f"cpu, {fs.info()['isa']}, 2 threads"
    total = plan.total + Path(text).stat().st_size
    assert lines["memory"].startswith(f"{total:,} bytes of ")
    # The parts are in the line below, and add up.
    parts = re.search(r"^ +(model and gradients .*)$", out, re.MULTILINE)[1]
    sizes = [int(size.replace(",", "")) for size in re.findall(r"[\d,]*\d", parts)]
    assert sum(sizes) == total and f"activations {plan.activations:,}" in parts
    assert re.fullmatch(r"about \d+ s for 12 steps, [\d,]+ tokens/s", lines["time"])


def refusal(monkeypatch, available, call):
    monkeypatch.setattr(memory, "available_memory", lambda: available)
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


def test_a_run_that_does_not_fit_is_refused_with_the_batch_that_does(tmp_path, text, monkeypatch):
    run = tmp_path / "run"
    made = []
    monkeypatch.setattr(loop, "Trainer", lambda *arguments: made.append(arguments))

    def start(**options):
        return lambda: loop.start(TINY | options, [text], out=run, quiet=True)

    big = planned(batch_size=128)
    available = big.total - 1
    said = refusal(monkeypatch, available, start(batch_size=128))
    assert f"the run takes {big.total:,} bytes" in said and "with --batch-size 128," in said
    assert f"{available:,} bytes" in said
    # Odd ones take less than the even ones beside them, which have gradients of each half.
    fits = max(batch for batch in range(1, 256) if planned(batch_size=batch).total <= available)
    assert fits >= 127 and said.endswith(f"; the largest batch that fits is --batch-size {fits}")
    # Too little for one window, but not with its activations computed again.
    deep = {"n_layer": 40, "batch_size": 3}
    one, less = planned(**deep | {"batch_size": 1}), planned(**deep | {"recompute": True})
    assert less.total < one.total
    said = refusal(monkeypatch, less.total, start(**deep))
    assert said.endswith("; with --recompute the largest batch that fits is --batch-size 3")
    small = planned(**deep | {"batch_size": 1, "recompute": True, "optimizer_state": "8bit"})
    said = refusal(monkeypatch, small.total, start(**deep))
    assert said.endswith("with --recompute --optimizer-state 8bit the largest batch that fits is "
                         "--batch-size 1")  # fmt: skip
    assert "a smaller model is needed" in refusal(monkeypatch, small.total - 1, start(**deep))
    assert not made and not run.exists()


def test_what_fits_exactly_runs_and_unknown_memory_refuses_nothing(tmp_path, text, monkeypatch):
    for available in (planned().total, None):
        monkeypatch.setattr(memory, "available_memory", lambda available=available: available)
        run = tmp_path / str(available)
        assert loop.start(TINY, [text], out=run, quiet=True).step == 12


def test_a_resumed_run_may_recompute_but_not_change_its_batch(tmp_path, text, monkeypatch):
    run = tmp_path / "run"
    given = TINY | {"n_layer": 8}
    loop.start(given, [text], out=run, quiet=True)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    plain, less = planned(n_layer=8), planned(n_layer=8, recompute=True)

    def resume(**options):
        return lambda: loop.resume(run, {"steps": 14} | options, quiet=True)

    assert refusal(monkeypatch, plain.total - 1, resume()).endswith("with --recompute it fits")
    said = refusal(monkeypatch, less.total - 5, resume())
    assert said.endswith("free 5 bytes (0.00 GB) and add --recompute")
    said = refusal(monkeypatch, less.total - 5, resume(recompute=True))
    assert said.endswith("free 5 bytes (0.00 GB)")
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    monkeypatch.setattr(memory, "available_memory", lambda: less.total)
    assert resume(recompute=True)().step == 14


def test_the_command_refuses_in_one_line_before_it_writes(tmp_path, text):
    if memory.available_memory() is None:
        pytest.fail("this test is for Linux")
    wide = ["--n-embd", 65536, "--n-head", 64, "--block-size", 16]
    done = flatstep("train", text, *wide, "--out", tmp_path / "run")
    assert_one_line_error(done, 2, "the run takes ", " are available; ")
    for command in (("train", text, "--out", tmp_path / "run"), ("plan",)):
        done = flatstep(*command, "--n-embd", 2**31 - 1, "--n-head", 1)
        assert_one_line_error(done, 2, "no such model: ")
    assert not (tmp_path / "run").exists()


def test_the_estimate_changes_nothing(tmp_path, text):
    config = make_config(TINY | {"grad_accum": 2})
    corpus = loop._load(config, [text])
    trainers = [Trainer(config, corpus) for _ in range(2)]
    with StopSignals() as stop:
        seconds = estimate.estimate_seconds(trainers[0], stop)
    assert 0 < seconds < 60
    for trainer in trainers:
        for _ in range(5):
            trainer.try_step()
    first, second = trainers
    assert first.model.params.tobytes() == second.model.params.tobytes()
    assert first.seconds > 0 and (first.step, first.skipped) == (second.step, second.skipped)


def test_what_would_take_long_is_not_measured(tmp_path, text, monkeypatch, capsys):
    config = make_config(TINY)
    trainer = Trainer(config, loop._load(config, [text]))
    calls = []
    monkeypatch.setattr(trainer.model, "forward_backward", lambda *a, **k: calls.append(a))
    with StopSignals() as stop:
        # A window takes 3 s: the batch of 4 is not tried.
        monkeypatch.setattr(
            estimate.time, "perf_counter", lambda: 3.0 * (len(calls))
        )  # fmt: skip
        assert estimate.estimate_seconds(trainer, stop) is None
        assert [len(tokens) for tokens, _ in calls] == [1, 1]
        # By its size alone: not even a window is tried.
        monkeypatch.setattr(estimate, "_LEAST_RATE", 1.0)
        assert estimate.estimate_seconds(trainer, stop) is None
    assert len(calls) == 2
    monkeypatch.undo()
    monkeypatch.setattr(estimate, "_LEAST_RATE", 1.0)
    loop.start(TINY, [text], out=tmp_path / "run")
    assert "time    to be seen after the first steps" in capsys.readouterr().out


def test_the_estimate_counts_steps_updates_and_validations(text, monkeypatch):
    config = make_config(TINY | {"grad_accum": 3, "steps": 100, "eval_every": 10})
    trainer = Trainer(config, loop._load(config, [text]))
    trainer.step = 40
    now = iter(range(0, 1000))
    monkeypatch.setattr(estimate, "LIMIT_SECONDS", 1e9)
    monkeypatch.setattr(estimate.time, "perf_counter", lambda: float(next(now)))
    with StopSignals() as stop:
        seconds = estimate.estimate_seconds(trainer, stop)
    # Every call took a second: a pass, and a visit of the gradients, of which an update is 7.
    windows = len(trainer.corpus.validation) // 16
    assert seconds == pytest.approx(60 * (3 + 7) + (6 + 2) * windows / 4 / 3)


def test_files_mapped_into_memory_take_none(tmp_path):
    np.arange(500, dtype="<u2").tofile(tmp_path / "some.bin")
    mapped = map_token_file(tmp_path / "some.bin").tokens
    held = np.arange(500, dtype=np.uint16)
    parts = SimpleNamespace(train=Tokens([mapped[5:], held]), validation=Tokens([mapped[:5]]))
    assert memory.text_bytes(parts) == held.nbytes
