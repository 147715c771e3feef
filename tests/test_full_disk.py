"""A disk that is really full: a small one, mounted in a namespace of the test's own."""

import json
import os
import shlex
import subprocess
import sys

import pytest
from checkpoint_case import make
from run_case import SAMPLE

from flatstep.training.checkpoint import list_checkpoints, load_checkpoint
from flatstep.training.manifest import verify_files

pytestmark = pytest.mark.needs("user namespaces")

SHAPE = {"block_size": 8, "n_layer": 1, "n_head": 2, "n_embd": 64}
# A checkpoint of this model takes 0.8 MB.
OPTIONS = (
    " ".join(
        f"--{name.replace('_', '-')} {value}"
        for name, value in (SHAPE | {"steps": 6, "batch_size": 2, "save_every": 1}).items()
    )
    + " --no-plot"
)  # which would warn, too


@pytest.fixture
def train(tmp_path):
    """train(size, before, options): (exit code, stderr, what the run folder has then)."""
    text = tmp_path / "text.txt"
    text.write_text(SAMPLE)
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()

    def run(size, before="true", options=OPTIONS):
        command = f"{shlex.quote(sys.executable)} -m flatstep train {shlex.quote(str(text))}"
        script = f"""
            set -e; cd {shlex.quote(str(disk))}
            mount -t tmpfs -o size={size} tmpfs .; cd {shlex.quote(str(disk))}
            {before}
            code=0; {command} --quiet --out run {options} || code=$?
            cp -r run {shlex.quote(str(kept))}; exit $code"""
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script],
            capture_output=True, text=True, timeout=120,
            env=os.environ | {"OMP_NUM_THREADS": "2"},
        )  # fmt: skip
        return done.returncode, done.stderr, kept

    return run


def is_one_line(errors, name):
    """Whether stderr is one line that names a file and the cause."""
    lines = errors.splitlines()
    return len(lines) == 1 and name in lines[0] and "No space left on device" in lines[0]


def test_a_checkpoint_that_does_not_fit(train):
    """Two fit, the third does not: one line, and the second loads."""
    code, errors, run = train("2m")
    assert code == 1 and is_one_line(errors, "run: the checkpoint cannot be written"), errors
    assert [path.name for path in list_checkpoints(run)] == ["step-2", "step-1"]
    assert sorted(os.listdir(run / "checkpoints")) == ["step-1", "step-2"]
    model, optimizer = make(**SHAPE)
    assert load_checkpoint(list_checkpoints(run)[0], model, optimizer)["step"] == 2
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3]


def test_the_first_checkpoint_does_not_fit(train):
    code, errors, run = train("512k")
    assert code == 1 and is_one_line(errors, "run: the checkpoint cannot be written"), errors
    assert os.listdir(run / "checkpoints") == []


def test_a_line_of_metrics_that_does_not_fit(train):
    """One page is left for metrics.jsonl, which holds some thirty lines."""
    fill = "mkdir run; head -c 69632 /dev/zero > filler"
    options = OPTIONS.replace("--steps 6", "--steps 90").replace("--save-every 1", "--save-every 0")
    code, errors, run = train("80k", fill, options)
    assert code == 1 and is_one_line(errors, "run/metrics.jsonl: cannot be written"), errors
    assert 10 < len((run / "metrics.jsonl").read_text().splitlines()) < 90


def test_not_even_the_first_file_of_a_run_fits(train):
    fill = "mkdir run; cat /dev/zero > filler 2> /dev/null || true"
    code, errors, run = train("64k", fill)
    assert code == 1 and is_one_line(errors, ": cannot be written"), errors
    assert "error: run/" in errors and os.listdir(run) == []


def test_a_disk_that_is_large_enough(train):
    """The control: it is not the mounting that ends these runs."""
    code, errors, run = train("8m")
    assert code == 0 and errors == ""
    assert [path.name for path in list_checkpoints(run)] == ["step-6", "step-5"]
    for path in list_checkpoints(run):
        verify_files(path)
