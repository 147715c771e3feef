"""The training loop from Python: resuming, stopping, bad gradients, metrics."""

import json
import os
import signal
import threading

import numpy as np
import pytest
from run_case import TINY, bits, metrics, stop_at

import flatstep as fs
from flatstep.errors import CheckpointError, InputError, RunFailed
from flatstep.training import loop as train
from flatstep.training.checkpoint import list_checkpoints
from flatstep.training.trainer import Trainer


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"grad_accum": 3, "optimizer": "adam", "schedule": "noam", "label_smoothing": 0.1},
        {"optimizer": "sgd", "schedule": "warmup_linear", "batch_size": 7, "max_norm": 0.0},
        {"schedule": "inverse_sqrt", "seed": 2**63 - 1},
    ],
    ids=["default", "accumulated-adam", "sgd", "largest-seed"],
)
def test_a_stopped_and_resumed_run_ends_with_the_same_bits(tmp_path, text, options, monkeypatch):
    given = TINY | options
    whole = tmp_path / "whole"
    assert train.start(given, [text], out=whole, quiet=True).step == 12
    for step in (1, 2, 4, 7, 11):
        run = tmp_path / f"stopped-{step}"
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            outcome = train.start(given, [text], out=run, quiet=True)
        # One of several passes is not waited for.
        done = step - 1 if "grad_accum" in options else step
        assert (outcome.step, outcome.signal) == (done, signal.SIGINT)
        assert train.resume(run, quiet=True).signal is None
        assert bits(run) == bits(whole)
        assert metrics(run) == metrics(whole)


def test_a_run_stopped_at_every_step_ends_with_the_same_bits(tmp_path, text, monkeypatch):
    train.start(TINY, [text], out=tmp_path / "whole", quiet=True)
    run = tmp_path / "stopped"
    for step in range(1, 12):
        with monkeypatch.context() as patch:
            stop_at(patch, step, signal.SIGTERM)
            if step == 1:
                outcome = train.start(TINY, [text], out=run, quiet=True)
            else:
                outcome = train.resume(run, quiet=True)
        assert (outcome.step, outcome.signal) == (step, signal.SIGTERM)
    train.resume(run, quiet=True)
    assert bits(run) == bits(tmp_path / "whole")


def test_threads_may_differ_and_do_not_change_a_bit(tmp_path, text, monkeypatch):
    before = fs.get_num_threads()
    train.start(TINY | {"threads": 1}, [text], out=tmp_path / "one", quiet=True)
    with monkeypatch.context() as patch:
        stop_at(patch, 6)
        train.start(TINY | {"threads": 1}, [text], out=tmp_path / "two", quiet=True)
    train.resume(tmp_path / "two", {"threads": 2}, quiet=True)
    fs.set_num_threads(before)
    assert bits(tmp_path / "one") == bits(tmp_path / "two")


def test_killed_before_the_first_checkpoint_begins_again(tmp_path, text):
    train.start(TINY, [text], out=tmp_path / "whole", quiet=True)
    run = tmp_path / "killed"
    run.mkdir()
    (run / "config.toml").write_bytes((tmp_path / "whole/config.toml").read_bytes())
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 5.5}\n{"step": 2, "lo')
    train.resume(run, quiet=True)
    assert bits(run) == bits(tmp_path / "whole")
    assert [line["step"] for line in metrics(run)] == list(range(1, 13))


def test_resume_passes_over_a_damaged_checkpoint(tmp_path, text, capsys):
    train.start(TINY, [text], out=tmp_path / "whole", quiet=True)
    run = tmp_path / "damaged"
    train.start(TINY, [text], out=run, quiet=True)
    newest, _ = list_checkpoints(run)
    (newest / "model.safetensors").write_bytes(b"")
    train.resume(run, quiet=True)
    assert "using the older step-8" in capsys.readouterr().err
    assert bits(run) == bits(tmp_path / "whole")
    assert metrics(run) == metrics(tmp_path / "whole")
    for path in list_checkpoints(run):
        (path / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"state\.json: missing"):
        train.resume(run, quiet=True)


def test_steps_may_be_raised_only(tmp_path, text, capsys):
    run = tmp_path / "run"
    train.start(TINY | {"schedule": "constant"}, [text], out=run, quiet=True)
    assert train.resume(run).step == 12
    assert "all 12 steps are done" in capsys.readouterr().out
    assert train.resume(run, {"steps": 20}).step == 20
    assert "raised from 12" in capsys.readouterr().out
    train.start(TINY | {"schedule": "constant", "steps": 20, "warmup": 1}, [text],
                out=tmp_path / "whole", quiet=True)  # fmt: skip
    assert bits(run) == bits(tmp_path / "whole")
    with pytest.raises(InputError, match="--steps 19 is less than the run's 20"):
        train.resume(run, {"steps": 19})


def test_resume_refuses_what_contradicts_the_run(tmp_path, text):
    run = tmp_path / "run"
    train.start(TINY, [text], out=run, quiet=True)
    with pytest.raises(InputError, match="--n-embd 32 contradicts the run, which has 16"):
        train.resume(run, {"steps": 20, "n_embd": 32})
    assert train.resume(run, {"n_embd": 16}, quiet=True).step == 12


def test_resume_refuses_changed_text_and_takes_moved_text(tmp_path, text):
    run = tmp_path / "run"
    train.start(TINY, [text], out=run, quiet=True)
    with open(text, "r+b") as file:
        good = file.read()
        file.seek(100)
        file.write(b"?")
    with pytest.raises(InputError, match=r"not what the run began with: still 1,.* but others"):
        train.resume(run, {"steps": 14}, quiet=True)
    (tmp_path / "text.txt").write_bytes(good + b"more")
    with pytest.raises(InputError, match=r"not what the run began with: .* bytes now"):
        train.resume(run, {"steps": 14}, quiet=True)
    (tmp_path / "text.txt").unlink()
    with pytest.raises(InputError, match=r"text\.txt: cannot be read"):
        train.resume(run, {"steps": 14}, quiet=True)
    (tmp_path / "moved.txt").write_bytes(good)
    moved = str(tmp_path / "moved.txt")
    assert train.resume(run, {"steps": 14}, [moved], quiet=True).step == 14
    assert train.resume(run, {"steps": 15}, quiet=True).step == 15


def spoil_gradient(monkeypatch, steps):
    """Plants a NaN into the gradient of the batches with the given numbers."""
    real = fs.GPT.forward_backward

    def spoiling(self, *arguments, step, **options):
        loss = real(self, *arguments, step=step, **options)
        if step in steps:
            self.grads[5] = np.nan
            self.grad_partials = None  # they are of the gradients before
        return loss

    monkeypatch.setattr(fs.GPT, "forward_backward", spoiling)


def test_bad_gradients_are_passed_over_with_a_warning(tmp_path, text, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        spoil_gradient(patch, {3, 4, 9})
        train.start(TINY, [text], out=tmp_path / "whole", quiet=True)
        warnings = capsys.readouterr().err.splitlines()
        assert len(warnings) == 3
        assert "step 4 left out: the gradient of transformer.wte.weight" in warnings[0]
        for step in (3, 5):
            with patch.context() as stopping:
                stop_at(stopping, step)
                train.start(TINY, [text], out=tmp_path / f"run-{step}", quiet=True)
            train.resume(tmp_path / f"run-{step}", quiet=True)
            assert bits(tmp_path / f"run-{step}") == bits(tmp_path / "whole")
    assert [line["step"] for line in metrics(tmp_path / "whole")] == list(range(1, 13))


def test_ten_bad_gradients_in_a_row_end_the_run(tmp_path, text, monkeypatch):
    spoil_gradient(monkeypatch, set(range(6, 100)))
    with pytest.raises(RunFailed, match="10 in a row"):
        train.start(TINY, [text], out=tmp_path / "run", quiet=True)
    assert list_checkpoints(tmp_path / "run")[0].name == "step-4"


def test_parameters_that_are_not_finite_are_never_saved(tmp_path, text, monkeypatch):
    real = Trainer.try_step

    def spoiling(self):
        result = real(self)
        if self.step == 7:
            self.model["transformer.wpe.weight"][0, 0] = np.inf
        return result

    monkeypatch.setattr(Trainer, "try_step", spoiling)
    stop_at(monkeypatch, 7)
    with pytest.raises(RunFailed, match=r"transformer\.wpe\.weight is no longer finite"):
        train.start(TINY | {"max_skips": 10**9}, [text], out=tmp_path / "run", quiet=True)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-4"]


def test_metrics_hold_every_step_once_with_the_right_keys(tmp_path, text):
    outcome = train.start(TINY, [text], out=tmp_path / "run", quiet=True)
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    assert [entry["step"] for entry in entries] == list(range(1, 13))
    always = {"step", "loss", "lr", "grad_norm", "tokens_per_second"}
    for entry in entries:
        validated = {"val_loss"} if entry["step"] in (5, 10, 12) else set()
        assert set(entry) == always | validated
    assert entries[-1]["val_loss"] == outcome.val_loss
    assert entries[0]["lr"] == pytest.approx(3e-3)
    assert outcome.val_loss < entries[0]["loss"]


def test_handlers_are_restored_and_not_needed_outside_the_main_thread(tmp_path, text):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train.start(TINY, [text], out=tmp_path / "run", quiet=True)
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    outcomes = []

    def work():
        outcomes.append(train.start(TINY, [text], out=tmp_path / "thread", quiet=True))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcomes[0].step == 12
    assert bits(tmp_path / "thread") == bits(tmp_path / "run")


def test_a_signal_breaks_a_step_off_between_its_passes(tmp_path, text, monkeypatch):
    """A step of many passes may take minutes; it is done again by the resumed run."""
    given = TINY | {"grad_accum": 4}
    train.start(given, [text], out=tmp_path / "whole", quiet=True)
    real, passes = fs.GPT.forward_backward, []

    def stopping(self, *arguments, **options):
        passes.append(options.get("accumulate"))
        if len(passes) == 2 * 4 + 2:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(fs.GPT, "forward_backward", stopping)
        outcome = train.start(given, [text], out=tmp_path / "run", quiet=True)
    assert (outcome.step, outcome.signal, len(passes)) == (2, signal.SIGINT, 2 * 4 + 2)
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-2"]
    assert train.resume(tmp_path / "run", quiet=True).step == 12
    assert bits(tmp_path / "run") == bits(tmp_path / "whole")
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
