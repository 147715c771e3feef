"""A run that is stopped at any step goes on to the same bits; a run of another version is named."""

import errno
import json
import os
import re
import shutil
import signal

import numpy as np
import pytest
from run_case import SAMPLE, bits

import flatstep as fs
from flatstep.errors import CheckpointError, InputError, RunFailed
from flatstep.training import loop
from flatstep.training.checkpoint import find_checkpoint, list_checkpoints
from flatstep.training.evaluation import Evaluation
from flatstep.training.manifest import verify_files
from flatstep.training.run_folder import read_config
from flatstep.training.trainer import Trainer

STEPS = 50
TINY = {
    "steps": STEPS, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 8, "batch_size": 3,
    "dropout": 0.1, "eval_every": 0, "save_every": 0, "threads": 2,
}  # fmt: skip


@pytest.fixture
def text(memory_path):
    path = memory_path / "text.txt"
    path.write_text(SAMPLE)
    return str(path)


@pytest.fixture
def stop_at(monkeypatch):
    """stop_at(step): SIGTERM in the middle of that step; None sends none."""
    real, wanted = Trainer.try_step, []

    def stopping(self):
        if wanted == [self.step + 1]:
            wanted.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self)

    monkeypatch.setattr(Trainer, "try_step", stopping)
    return lambda step: wanted.append(step)


@pytest.mark.parametrize(
    ("options", "stops"),
    [({}, range(1, STEPS + 1)), ({"grad_accum": 2}, range(5, STEPS + 1, 5))],
    ids=["each-step", "accumulated"],
)
def test_stopped_at_a_step_and_resumed_with_fewer_threads(
    memory_path, text, stop_at, options, stops
):
    """2 threads until the stop, 1 after it, dropout throughout."""
    given = TINY | options
    loop.start(given, [text], out=memory_path / "whole", quiet=True)
    expected = bits(memory_path / "whole")
    assert expected[0] == f"step-{STEPS}"
    for step in stops:
        run = memory_path / "stopped"
        stop_at(step)
        outcome = loop.start(given, [text], out=run, quiet=True)
        done = step - 1 if "grad_accum" in options else step  # between its passes
        assert (outcome.step, outcome.signal) == (done, signal.SIGTERM)
        assert fs.get_num_threads() == 2
        assert loop.resume(run, {"threads": 1}, quiet=True).step == STEPS
        assert fs.get_num_threads() == 1
        assert bits(run) == expected, step
        shutil.rmtree(run)


def test_the_test_sees_state_that_was_not_restored(memory_path, text, stop_at, monkeypatch):
    """The control: parameters alone are not enough, nor is a step that is off by one."""
    loop.start(TINY, [text], out=memory_path / "whole", quiet=True)
    real = Trainer.restore

    def without_moments(self, run, warn):
        real(self, run, warn)
        self.optimizer.exp_avg_sq[:] = 0

    def one_batch_late(self, run, warn):
        real(self, run, warn)
        self.skipped += 1

    for number, planted in enumerate((without_moments, one_batch_late)):
        run = memory_path / f"stopped-{number}"
        stop_at(STEPS - 1)
        loop.start(TINY, [text], out=run, quiet=True)
        with monkeypatch.context() as patch:
            patch.setattr(Trainer, "restore", planted)
            loop.resume(run, quiet=True)
        assert bits(run) != bits(memory_path / "whole")


@pytest.fixture
def run(memory_path, text):
    """A run folder after its 4 steps."""
    path = memory_path / "run"
    loop.start(TINY | {"steps": 4, "save_every": 2}, [text], out=path, quiet=True)
    return path


def test_the_checkpoint_has_the_configuration(run):
    for path in list_checkpoints(run):
        assert "config.toml" in verify_files(path)["files"]
        assert (path / "config.toml").read_bytes() == (run / "config.toml").read_bytes()
        assert read_config(path) == read_config(run)


def test_the_best_is_remembered_over_a_resume(run, monkeypatch):
    """Step 6 is the best; later saves keep its checkpoint, and pass it on."""
    best = {"step": 6, "val_loss": 0.25}
    monkeypatch.setattr(
        Trainer,
        "evaluate",
        lambda self, tokens, stop=None: Evaluation(0.25 if self.step == 6 else 1.0, 1, None),
    )
    for last in (6, 8, 10):
        loop.resume(run, {"steps": last}, quiet=True)
    assert [path.name for path in list_checkpoints(run)] == ["step-10", "step-8", "step-6"]
    assert find_checkpoint(run, "best").name == "step-6"
    state = json.loads((find_checkpoint(run) / "state.json").read_text())
    assert state["best"] == best


def change_config(run, pattern, text):
    path = run / "config.toml"
    changed, count = re.subn(pattern, text, path.read_text(), flags=re.MULTILINE)
    assert count == 1
    path.write_text(changed)


@pytest.mark.parametrize("version", ["99.0.0", "0.999.1", "1000.0"])
def test_a_run_of_a_newer_version_is_refused(run, version):
    change_config(run, "^flatstep_version = .*$", f'flatstep_version = "{version}"')
    with pytest.raises(InputError, match=rf"config\.toml: written by flatstep {version}, newer"):
        loop.resume(run, {"steps": 6}, quiet=True)


@pytest.mark.parametrize("version", ['"unknown"', "7", "[]"])
def test_a_version_that_is_none_is_refused(run, version):
    change_config(run, "^flatstep_version = .*$", f"flatstep_version = {version}")
    with pytest.raises(InputError, match=r"config\.toml: flatstep_version .* is no version"):
        read_config(run)


@pytest.mark.parametrize("line", ['flatstep_version = "0.0.1"', ""])
def test_a_run_of_an_older_version_goes_on(run, line):
    change_config(run, "^flatstep_version = .*$", line)
    change_config(run, "^on_spike = .*\n", "")  # an option that it did not have yet
    assert loop.resume(run, {"steps": 6}, quiet=True).step == 6


def test_an_unknown_option_in_a_run_is_refused(run):
    change_config(run, "^n_layer = ", "n_layers = ")
    with pytest.raises(InputError, match=r"config\.toml: unknown option 'n_layers'; .* 'n_layer'"):
        read_config(run)


def test_a_checkpoint_of_another_format_is_refused(run):
    for path in list_checkpoints(run):
        manifest = path / "manifest.json"
        manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(CheckpointError, match=r"manifest\.json: format version 3, .* reads 1 to 2"):
        loop.resume(run, {"steps": 6}, quiet=True)


# Of 8 bits: the code, and the scale with which the two are the upper bits of an infinity.
@pytest.mark.parametrize(
    ("kind", "code", "scale"),
    [
        ("exp_avg", None, None),
        ("exp_avg_sq", None, None),
        ("exp_avg", 0x80 | 8, 0x7F8 - 8),
        ("exp_avg_sq", 136, 0x7F8 - 136),
    ],
)
def test_moments_that_are_not_finite_are_never_saved(
    memory_path, text, monkeypatch, kind, code, scale
):
    real = Trainer.try_step

    def spoiling(self):
        result = real(self)
        if self.step == 3:
            own = self.optimizer._state_views()["state"]["transformer.ln_f.weight"]
            if code is None:
                own[kind][7] = np.inf
            else:
                own[kind][7], own[kind + "_scale"][0] = code, scale
        return result

    state = "8bit" if code else "full"
    monkeypatch.setattr(Trainer, "try_step", spoiling)
    given = TINY | {"steps": 3, "save_every": 1, "optimizer_state": state}
    with pytest.raises(
        RunFailed, match=rf"^{kind} of transformer\.ln_f\.weight is no longer finite"
    ):
        loop.start(given, [text], out=memory_path / "run", quiet=True)
    assert [path.name for path in list_checkpoints(memory_path / "run")] == ["step-2", "step-1"]


@pytest.mark.parametrize("name", ["config.toml", "metrics.jsonl"])
def test_a_write_that_fails_is_one_line(run, monkeypatch, name):
    """The disk refuses to sync the new version of a file: the old one stays."""

    def failing(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    before = (run / name).read_bytes()
    with monkeypatch.context() as patch:
        if name == "metrics.jsonl":  # which is written after the other
            patch.setattr(loop, "write_config", lambda *arguments: None)
        patch.setattr(os, "fsync", failing)
        with pytest.raises(RunFailed, match=f"{name}: cannot be written: Input/output error"):
            loop.resume(run, {"steps": 6}, quiet=True)
    assert (run / name).read_bytes() == before
    assert not [each for each in os.listdir(run) if each.endswith(".tmp")]
    assert loop.resume(run, {"steps": 6}, quiet=True).step == 6
