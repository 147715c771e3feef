"""The example of a PyTorch loop."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "torch_loop.py"


def test_the_loop_learns():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    losses = [float(loss) for loss in re.findall(r"loss (\d+\.\d+)", done.stdout)]
    assert losses[0] == pytest.approx(5.55, abs=0.3)  # ln 256, untrained
    assert losses[-1] < 2.5
