"""Loss spikes: what counts as one, and what a run does about it."""

import json
import math

import numpy as np
import pytest
from run_case import TINY, bits, metrics, stop_at

import flatstep as fs
from flatstep.errors import RunFailed
from flatstep.training import loop
from flatstep.training.checkpoint import list_checkpoints
from flatstep.training.spikes import LEAST, WINDOW, SpikeDetector
from flatstep.training.trainer import Trainer


def filled(losses, threshold=4.0, norm=1.0):
    detector = SpikeDetector(threshold)
    for loss in losses:
        detector.accept(loss, norm)
    return detector


def test_the_z_score_is_that_of_the_last_128(rng):
    losses = rng.normal(3.0, 0.1, 200).tolist()
    detector = filled(losses)
    window = np.array(losses[-WINDOW:])
    for value in (window.mean() + 4.01 * window.std(), window.mean() + 40 * window.std()):
        what, found, mean, z = detector.judge(value, 1.0)
        assert (what, found) == ("loss", value)
        assert mean == pytest.approx(window.mean(), rel=1e-12)
        assert z == pytest.approx((value - window.mean()) / window.std(), rel=1e-9)
    assert detector.judge(window.mean() + 3.99 * window.std(), 1.0) is None


def test_a_fall_is_no_spike_and_few_steps_judge_nothing(rng):
    losses = rng.normal(3.0, 0.1, LEAST).tolist()
    assert filled(losses[:-1]).judge(1e9, 1e9) is None
    detector = filled(losses)
    assert detector.judge(1e9, 1.0)[0] == "loss"
    assert detector.judge(-1e9, 0.0) is None


def test_the_greater_of_two_outliers_is_named():
    detector = filled([3.0, 3.2] * 20)
    assert detector.judge(3.1, 50.0)[0] == "gradient norm"
    assert detector.judge(1e9, 50.0)[0] == "loss"


def test_constant_figures_divide_by_no_zero():
    for constant in (2.0, 0.0):
        detector = filled([constant] * 40, norm=constant)
        assert detector.judge(constant, constant) is None
        assert math.isfinite(detector.judge(constant + 1, constant)[3])
    assert filled([2.0] * 40).judge(2.0 * (1 + 3.9e-3), 1.0) is None


def test_what_is_not_finite_is_left_to_the_optimizer():
    detector = filled([3.0, 3.1] * 20)
    before = detector.state()
    for bad in (math.nan, math.inf):
        detector.accept(bad, 1.0)
        detector.accept(1.0, bad)
        assert detector.judge(bad, bad) is None
    assert detector.state() == before


def test_the_state_goes_through_json_without_a_lost_digit(rng):
    detector = filled(rng.normal(3.0, 0.1, 150).tolist())
    other = SpikeDetector(4.0)
    other.restore(json.loads(json.dumps(detector.state())))
    for value in (3.39, 3.41, 3.5, 30.0):
        assert other.judge(value, 1.0) == detector.judge(value, 1.0)
    other.restore(None)
    assert other.judge(1e9, 1e9) is None


def test_one_spike_hides_no_other_and_a_lasting_change_becomes_normal(rng):
    detector = filled(rng.normal(3.0, 0.1, WINDOW).tolist(), threshold=8.0)
    for _ in range(2):
        spike = detector.judge(1e6, 1.0)
        assert spike[0] == "loss"
        detector.accept(1e6, 1.0, spike)
    assert detector.judge(6.0, 1.0) is not None
    warned = 0
    for loss in rng.normal(6.0, 0.1, 30).tolist():
        spike = detector.judge(loss, 1.0)
        warned += spike is not None
        detector.accept(loss, 1.0, spike)
    assert 1 <= warned < 10


STEPS = TINY | {"steps": 60, "eval_every": 0, "save_every": 0, "spike_threshold": 20.0}
SPIKES = (41, 42, 50)


@pytest.fixture
def spiking(monkeypatch):
    """Gradients of the batches 41, 42 and 50 are a thousand times too large."""
    real = fs.GPT.forward_backward

    def spoiled(self, *arguments, step=0, **options):
        loss = real(self, *arguments, step=step, **options)
        if step in SPIKES:
            self.grads *= 1000.0
            self.grad_partials = None  # they are of the gradients before
        return loss

    monkeypatch.setattr(fs.GPT, "forward_backward", spoiled)


def run_to(tmp_path, text, name, **options):
    run = tmp_path / name
    loop.start(STEPS | options, [text], out=run, quiet=True)
    return run


def test_warn_takes_the_step_and_notes_it(tmp_path, text, spiking, capsys):
    run = run_to(tmp_path, text, "warn")
    noted = [line["step"] for line in metrics(run) if "spike" in line]
    assert noted == [42, 43, 51]  # batch 41 is of step 42
    assert min(line["spike"] for line in metrics(run) if "spike" in line) > 20.0
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and "step 42: the gradient norm is " in errors[0]
    assert "standard deviations above its mean" in errors[0]


def test_off_says_nothing_and_computes_the_same(tmp_path, text, spiking, capsys):
    off = run_to(tmp_path, text, "off", on_spike="off")
    assert capsys.readouterr().err == ""
    assert not any("spike" in line for line in metrics(off))
    assert bits(off) == bits(run_to(tmp_path, text, "warn", on_spike="warn"))


def test_skip_changes_no_byte_and_the_data_moves_on(tmp_path, text, spiking, monkeypatch, capsys):
    real, changed, batches = Trainer.try_step, [], []

    def state_of(trainer):
        arrays = trainer.optimizer.state_dict()["state"].values()
        held = [array.tobytes() for views in arrays for array in views.values()]
        return trainer.model.params.tobytes(), held, trainer.optimizer.step_count, trainer.step

    def watching(self):
        before = state_of(self)
        result = real(self)
        batches.append(self.step + self.skipped)
        if result[0] is None:
            changed.append(state_of(self) != before)
        return result

    monkeypatch.setattr(Trainer, "try_step", watching)
    run = run_to(tmp_path, text, "skip", on_spike="skip")
    assert changed == [False] * 3
    assert batches == list(range(1, 64))
    assert [line["step"] for line in metrics(run)] == list(range(1, 61))
    # Two batches were left out before step 42, one before step 49.
    assert {x["step"]: x["skipped"] for x in metrics(run) if "skipped" in x} == {42: 2, 49: 1}
    assert "step 42 left out: the gradient norm is " in capsys.readouterr().err


def test_skips_are_the_same_after_a_stop(tmp_path, text, spiking, monkeypatch):
    whole = run_to(tmp_path, text, "whole", on_spike="skip")
    for step in (20, 41, 42, 43, 48):
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            run = run_to(tmp_path, text, f"stopped-{step}", on_spike="skip")
        assert loop.resume(run, quiet=True).step == 60
        assert bits(run) == bits(whole)
        assert metrics(run) == metrics(whole)


def test_stop_saves_and_the_run_can_go_on_without_the_batch(tmp_path, text, spiking, monkeypatch):
    with pytest.raises(RunFailed) as caught:
        run_to(tmp_path, text, "stop", on_spike="stop")
    run = tmp_path / "stop"
    assert "step 42: the gradient norm is " in str(caught.value)
    assert f"step 41 is saved; to go on without that batch: flatstep train --resume {run} " in str(
        caught.value
    )
    assert str(caught.value).endswith("--on-spike skip")
    assert [path.name for path in list_checkpoints(run)] == ["step-41"]
    with pytest.raises(RunFailed, match="step 42"):
        loop.resume(run, quiet=True)
    assert loop.resume(run, {"on_spike": "skip"}, quiet=True).step == 60
    assert bits(run) == bits(run_to(tmp_path, text, "skip", on_spike="skip"))


def test_so_many_skips_in_a_row_end_the_run(tmp_path, text, spiking):
    with pytest.raises(RunFailed, match="2 in a row, so the run stops"):
        run_to(tmp_path, text, "skip", on_spike="skip", max_skips=2)
    assert run_to(tmp_path, text, "three", on_spike="skip", max_skips=3).is_dir()


def test_nonfinite_stop_names_the_tensor_and_saves(tmp_path, text, monkeypatch):
    real = fs.GPT.forward_backward

    def spoiled(self, *arguments, step=0, **options):
        loss = real(self, *arguments, step=step, **options)
        if step == 7:
            self.grads[5] = np.nan
            self.grad_partials = None
        return loss

    monkeypatch.setattr(fs.GPT, "forward_backward", spoiled)
    for on_spike in ("off", "skip"):
        name = f"run-{on_spike}"
        with pytest.raises(RunFailed, match=r"step 8: the gradient of transformer\.wte\.weight"):
            run_to(tmp_path, text, name, on_nonfinite="stop", on_spike=on_spike)
        run = tmp_path / name
        assert [path.name for path in list_checkpoints(run)] == ["step-7"]
        assert loop.resume(run, {"on_nonfinite": "skip", "steps": 60}, quiet=True).step == 60
