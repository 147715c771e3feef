"""Which checkpoints stay, which one is found, and what takes the place of another."""

import json
import os

import numpy as np
import pytest
from checkpoint_case import make

from flatstep._files import write_json
from flatstep.errors import CheckpointError
from flatstep.training.checkpoint import (
    find_checkpoint,
    list_checkpoints,
    load_checkpoint,
    load_newest,
    save_checkpoint,
)
from flatstep.training.manifest import verify_files


@pytest.fixture
def case(tmp_path):
    """(run, save(step, ...)); a save makes every parameter the number of its step."""
    model, optimizer = make()

    def save(step, best=None, **options):
        model.params[:] = step
        best = best and {"step": best, "val_loss": 1.5}
        return save_checkpoint(tmp_path, model, optimizer, {"step": step, "best": best}, **options)

    return tmp_path, save


def names(run):
    return sorted(os.listdir(run / "checkpoints"), key=lambda name: (len(name), name))


def content(path):
    model, optimizer = make()
    state = load_checkpoint(path, model, optimizer)
    assert np.unique(model.params).size == 1
    return int(model.params[0]), state


def test_the_newest_stay(case):
    run, save = case
    for step in (9, 10, 100):
        save(step)
    assert names(run) == ["step-10", "step-100"]
    save(101, keep=1)
    assert names(run) == ["step-101"]
    for step in range(102, 107):
        save(step, keep=4)
    assert names(run) == [f"step-{step}" for step in range(103, 107)]
    assert [path.name for path in list_checkpoints(run)] == names(run)[::-1]


def test_the_best_stays_until_another_is(case):
    run, save = case
    save(1, best=1)
    for step in (2, 3, 4):
        save(step, best=1)
    assert names(run) == ["step-1", "step-3", "step-4"]
    save(5, best=5, keep=1)
    assert names(run) == ["step-5"]
    save(6, best=5, keep=1)
    save(7, best=5, keep=1)
    assert names(run) == ["step-5", "step-7"]
    assert content(find_checkpoint(run, "best"))[0] == 5
    save(8, best=3, keep=1)  # which was never saved, or is gone
    assert names(run) == ["step-8"]
    save(9, best=8, keep=1, keep_best=False)
    assert names(run) == ["step-9"]


def test_leftovers_are_swept_and_refused_ones_stay(case):
    run, save = case
    save(1)
    for name in ("step-7.tmp", "step-1.old.tmp", "step-3.refused", "notes"):
        (run / "checkpoints" / name).mkdir()
        (run / "checkpoints" / name / "file").touch()
    save(2)
    assert names(run) == ["notes", "step-1", "step-2", "step-3.refused"]


def test_a_save_of_the_same_step_takes_the_place(case):
    run, save = case
    save(1)
    first = save(2)
    inode = first.stat().st_ino
    assert save(2) == first and first.stat().st_ino != inode
    assert names(run) == ["step-1", "step-2"]
    verify_files(first)


def test_what_was_put_aside_counts_until_it_is_replaced(case, monkeypatch):
    """A kill between the two renames of a replacement leaves step-2.old and step-2.tmp."""
    run, save = case
    save(1)
    final = save(2)
    aside = final.rename(final.with_name("step-2.old"))
    final.with_name("step-2.tmp").mkdir()
    assert list_checkpoints(run)[0] == find_checkpoint(run, 2) == aside
    model, optimizer = make()
    path, state = load_newest(run, model, optimizer, warn=pytest.fail)
    assert path == aside and state["step"] == 2
    save(3)
    assert names(run) == ["step-2", "step-3"]
    assert content(final)[0] == 2
    # Killed after both renames: the old one goes.
    final.with_name("step-3.old").mkdir()
    assert list_checkpoints(run)[0].name == "step-3"
    save(4)
    assert names(run) == ["step-3", "step-4"]


def test_a_failed_replacement_puts_the_old_one_back(case, monkeypatch):
    run, save = case
    save(2)
    real = os.rename

    def failing(source, target):
        if str(source).endswith(".tmp"):
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(OSError, match="Input/output"):
        save(2)
    assert names(run) == ["step-2"]
    verify_files(run / "checkpoints/step-2")


def test_nothing_old_goes_before_the_new_one_is_whole(case, monkeypatch):
    """At every rename and every deletion, `keep` whole checkpoints and the best are there."""
    run, save = case
    for step in (1, 2, 3):
        save(step, best=1)
    seen = []

    def watching(real):
        def call(*arguments, **options):
            whole = [path.name for path in list_checkpoints(run) if verify_files(path)]
            assert len(set(whole) - {"step-1"}) >= 2 and "step-1" in whole
            seen.append(real.__name__)
            return real(*arguments, **options)

        return call

    for name in ("rename", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, watching(getattr(os, name)))
    save(4, best=1)
    assert seen.count("rename") == 2 and seen.count("unlink") == 4 and seen.count("rmdir") == 1
    assert names(run) == ["step-1", "step-3", "step-4"]


def test_what_cannot_be_deleted_is_told_and_tried_again(case, monkeypatch):
    run, save = case
    save(1)
    told = []

    def failing(*arguments, **options):
        raise OSError(39, "Directory not empty")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rmdir", failing)
        save(2, keep=1, warn=told.append)
    assert len(told) == 1 and "cannot be deleted: [Errno 39]" in told[0]
    assert names(run) == ["step-2", "step-1.tmp"]
    save(3, keep=1, warn=pytest.fail)
    assert names(run) == ["step-3"]


def test_find(case):
    run, save = case
    for step in (4, 8, 12):
        save(step, best=4)
    folder = run / "checkpoints/step-8"
    assert find_checkpoint(run).name == find_checkpoint(str(run), "last").name == "step-12"
    assert find_checkpoint(run, "best").name == "step-4"
    for which in (8, "8", "step-8"):
        assert find_checkpoint(run, which) == find_checkpoint(folder, which) == folder
    assert find_checkpoint(folder) == folder
    model, _ = make()
    assert load_newest(folder, model, warn=pytest.fail)[0] == folder
    assert model.params[0] == 8
    moved = folder.rename(run / "elsewhere")  # a copy may have any other name
    assert find_checkpoint(moved) == moved
    assert content(moved)[0] == 8


def test_a_run_may_be_called_like_a_checkpoint(tmp_path):
    run = tmp_path / "step-5"
    run.mkdir()
    path = save_checkpoint(run, *make(), {"step": 2})
    assert find_checkpoint(run) == path
    (path / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-2/manifest\.json: missing"):
        load_newest(path, make()[0], warn=pytest.fail)


def test_what_is_not_found_is_said(case):
    run, save = case
    with pytest.raises(CheckpointError, match="neither a run nor a checkpoint"):
        find_checkpoint(run)
    (run / "config.toml").touch()
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        find_checkpoint(run, "best")
    save(4)
    path = save(8)
    for which in (5, "step-5"):
        with pytest.raises(CheckpointError, match=r"no checkpoint step-5; .* step-8, step-4$"):
            find_checkpoint(run, which)
    for which in ("newest", "step-", "-1", "step-1.old", ""):
        with pytest.raises(CheckpointError, match="expected last, best or step-N"):
            find_checkpoint(run, which)
    with pytest.raises(CheckpointError, match="no validation is recorded"):
        find_checkpoint(run, "best")
    with pytest.raises(CheckpointError, match="a checkpoint itself, so it has no 'best'"):
        find_checkpoint(path, "best")
    with pytest.raises(CheckpointError, match="a checkpoint itself, so it has no 4"):
        find_checkpoint(path, 4)


def test_the_best_is_found_past_a_damaged_checkpoint(case):
    run, save = case
    save(4, best=4)
    newest = save(8, best=4)
    state = json.loads((newest / "state.json").read_text())
    write_json(newest / "state.json", state | {"best": {"step": 8, "val_loss": 0.0}})
    assert find_checkpoint(run, "best").name == "step-4"
    (run / "checkpoints/step-4/state.json").unlink()
    with pytest.raises(CheckpointError, match=r"step-8/state\.json"):
        find_checkpoint(run, "best")
    save(12, best=8, keep=1)
    (run / "checkpoints/step-8").rename(run / "gone")
    with pytest.raises(CheckpointError, match="no checkpoint step-8; it has step-12"):
        find_checkpoint(run, "best")
