"""PyTorch is there for those who ask for it, and is asked for by one line where it is missing."""

import subprocess
import sys


def run(program):
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)


def test_flatstep_does_not_import_it():
    done = run("import sys, flatstep; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stderr


def test_without_it():
    done = run("import sys; sys.modules['torch'] = None; import flatstep.torch")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last == "ImportError: flatstep.torch needs PyTorch: pip install torch"
