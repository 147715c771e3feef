"""The benchmarks for a CUDA device, run on the CPU with tiny sizes, so that they work when there is
a device; and what they say where there is none."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
SMALL = {
    "cuda_cross_entropy.py": ["--classes", "96", "--gigabytes", "0.0001"],
    "cuda_linear_cross_entropy.py": ["--shapes", "8x16x40", "--workspace-mib", "1"],
    "cuda_optimizer.py": ["--cases", "tiny"],
}


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, BENCH / script, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        check=False,
    )


@pytest.mark.parametrize("script", SMALL)
def test_rows_of_every_contender(script):
    small = ["--device", "cpu", "--no-compile", "--json", "--seconds", "0.01"]
    done = run(script, *small, *SMALL[script])
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    names = {row["case"] for row in rows}
    assert any(name.startswith("flatstep") for name in names)
    assert any(name.startswith("torch") for name in names)
    assert all(row["seconds"] > 0 and row["device"] == "CPU" for row in rows)


@pytest.mark.parametrize("script", SMALL)
def test_one_line_without_a_device(script):
    done = run(script)
    assert done.returncode == 1
    assert done.stderr.strip() == "This benchmark needs a CUDA device, and PyTorch sees none."
