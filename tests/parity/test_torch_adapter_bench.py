"""bench/torch_adapter.py on its smallest cases: a time for every contender."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "bench" / "torch_adapter.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=300
    )


def test_every_contender_has_a_time():
    for case, contenders in {
        "cross-entropy 16 x 64": {"torch", "drop-in"},
        "AdamW 1000 x 4096": {"torch", "drop-in", "in one call"},
        "AdamW half of 1000 x 16": {"torch", "drop-in", "in one call"},
    }.items():
        done = run("--only", case, "--rounds", "1", "--no-compile", "--json")
        assert done.returncode == 0, done.stderr
        (seconds,) = json.loads(done.stdout).values()
        assert set(seconds) == contenders
        assert all(value > 0 for value in seconds.values())


def test_an_unknown_case():
    done = run("--only", "softmax")
    assert done.returncode == 2 and "--only: got 'softmax'" in done.stderr
