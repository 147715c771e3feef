"""Every call with which a save touches the disk is made to fail once, in the C library."""

import collections
import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.needs("cc"), pytest.mark.needs("proc")]

FAULTS = Path(__file__).parent / "faults"
SHORT_WRITE = -1
# Python tries an interrupted call again, and goes on after a short write.
HARMLESS = (errno.EINTR, SHORT_WRITE)


@pytest.fixture
def trials(tmp_path, memory_path):
    """run(*options): the trials of save_with_faults.py, as dicts."""
    library = tmp_path / "fail_call.so"
    compiler = [shutil.which("cc"), "-std=gnu11", "-Wall", "-Werror", "-shared", "-fPIC"]
    subprocess.run([*compiler, "-o", library, FAULTS / "fail_call.c", "-ldl"], check=True)

    def run(*options):
        call = [sys.executable, FAULTS / "save_with_faults.py", library, memory_path, *options]
        environment = os.environ | {"LD_PRELOAD": str(library)}
        done = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return run


def unnoticed(trial):
    """Whether a fault was neither raised nor told: the loss of what was not written."""
    return trial["raised"] is None and not trial["warnings"]


def test_every_failing_call_is_reported_and_costs_no_checkpoint(trials):
    found = trials()
    seen = collections.Counter((trial["kind"], trial["error"]) for trial in found)
    for kind in ("open", "mkdir", "write", "fsync", "close", "rename", "unlink", "rmdir"):
        assert seen[kind, errno.ENOSPC] == seen[kind, errno.EIO] > 0
    # Five files, their folder and its parent; where nothing is replaced, the parent once more.
    assert seen["fsync", errno.EIO] == 15 and seen["write", errno.EIO] >= 10
    for trial in found:
        assert trial["failures"] == 1, trial
        assert unnoticed(trial) == (trial["error"] in HARMLESS), trial
        check_checkpoints(trial)


def check_checkpoints(trial):
    """What a trial must have left, whatever failed."""
    if trial["raised"] is not None:
        assert trial["raised"] == trial["error"] and not trial["warnings"], trial
        assert trial["before"] in trial["whole"], trial
        assert not [name for name in trial["left"] if name.endswith(".tmp")], trial
    else:
        assert trial["newest"] > trial["before"], trial
        for text in trial["warnings"]:
            assert "cannot be deleted: [Errno" in text and "\n" not in text
    assert trial["newest"] == max(trial["whole"]) >= trial["before"], trial
    assert trial["after"] > trial["newest"] and not trial["left_after"], trial


def test_the_test_sees_an_error_that_is_swallowed(trials):
    """The control: with the errors of fsync ignored, every one of them goes unnoticed."""
    found = [trial for trial in trials("ignore-fsync") if trial["error"] not in HARMLESS]
    assert len(found) == 30 and all(map(unnoticed, found))
