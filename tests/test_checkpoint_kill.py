"""SIGKILL at random moments of saving: what a save has returned is never lost."""

import os
import signal
import struct
import time

import numpy as np
import pytest
from checkpoint_case import make

from flatstep.errors import CheckpointError
from flatstep.training import checkpoint
from flatstep.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint
from flatstep.training.manifest import verify_files

pytestmark = pytest.mark.needs("fork")

TRIALS = 200
REPORT = struct.Struct("qq")


def save(run, model, optimizer, step, turn):
    """Saves parameters that are all `step` and all `turn` (the how-manieth save of that step)."""
    model.params[:] = step
    model.params[-1] = turn
    best = {"step": step - step % 5, "val_loss": 1.0} if step >= 5 else None
    save_checkpoint(run, model, optimizer, {"step": step, "turn": turn, "best": best})


def save_on_and_on(run, model, optimizer, step, pipe):
    """Every step twice, so that half of the saves take the place of another; never returns."""
    while True:
        step += 1
        for turn in (0, 1):
            save(run, model, optimizer, step, turn)
            os.write(pipe, REPORT.pack(step, turn))


def killed_after(seconds, run, model, optimizer, step):
    """Saves in a child that is killed after its first save and so many seconds.

    Returns the (step, turn) of the last save that it has reported.
    """
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_on_and_on(run, model, optimizer, step, theirs)
        finally:
            os._exit(1)  # not into pytest's own ending
    os.close(theirs)
    try:
        reports = os.read(ours, REPORT.size)  # the child is at work
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            pass
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the child's own saving failed"
        while block := os.read(ours, 1 << 16):
            reports += block
    finally:
        os.close(ours)
    return list(REPORT.iter_unpack(reports))[-1]


def check(run, model, optimizer, reported):
    """All are whole, and the newest is of one save, not older than the one reported."""
    newest, *older = list_checkpoints(run)
    for path in older:
        verify_files(path)
    state = load_checkpoint(newest, model, optimizer)
    found = (state["step"], state["turn"])
    assert found >= reported
    assert (model.params[:-1] == found[0]).all() and model.params[-1] == found[1]
    return found[0]


def duration(run, model, optimizer):
    """Seconds of a save, the median of some."""
    times = []
    for step in range(1, 12):
        began = time.perf_counter()
        save(run, model, optimizer, step, 0)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


@pytest.fixture
def case(memory_path):
    model, optimizer = make(vocab_size=1024, n_embd=32)
    return memory_path, model, optimizer, duration(memory_path, model, optimizer)


def left_behind(run):
    """What a kill has left besides whole checkpoints: names without their numbers."""
    names = os.listdir(run / "checkpoints")
    return {name.partition(".")[2] for name in names} - {""}


def test_a_kill_at_any_moment_loses_nothing(case, rng):
    run, model, optimizer, seconds = case
    step, left = 11, []
    for moment in rng.permutation(TRIALS) / TRIALS:  # all over two saves: a new one, a replacement
        reported = killed_after(2 * seconds * moment, run, model, optimizer, step)
        left.append(left_behind(run))
        step = check(run, model, optimizer, reported)
    inside = [names for names in left if names]
    assert len(inside) > TRIALS // 4, "the kills did not fall into saves"
    save(run, model, optimizer, step + 1, 0)
    assert not left_behind(run)
    assert len(list_checkpoints(run)) <= 3


def test_the_test_sees_a_save_that_writes_in_place(case, rng, monkeypatch):
    """The control: without the folder of another name, a kill leaves a torn checkpoint."""
    run, model, optimizer, seconds = case
    real = checkpoint._write_files

    def in_place(folder, *arguments):
        folder.rmdir()
        final = folder.with_suffix("")
        final.mkdir(exist_ok=True)
        real(final, *arguments)

    monkeypatch.setattr(checkpoint, "_write_files", in_place)
    monkeypatch.setattr(checkpoint, "_put_in_place", lambda temporary, final: None)
    step = 11
    with pytest.raises(CheckpointError, match=r"step-\d+/"):
        for moment in rng.permutation(TRIALS) / TRIALS:
            reported = killed_after(2 * seconds * moment, run, model, optimizer, step)
            step = check(run, model, optimizer, reported)
