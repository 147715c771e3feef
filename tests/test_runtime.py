"""What the library says about itself, the choice of instruction set, and fork."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import flatstep as fs

TESTS = Path(__file__).parent
AVAILABLE = tuple(fs.info()["isa_available"])

# Set in the runs that this file starts, so that none of them starts runs of its own.
INNER_RUN = "FLATSTEP_TESTS_INNER_RUN"
ISA_FILES = (
    "test_generate.py",
    "test_cross_entropy.py",
    "test_cross_entropy_accuracy.py",
    "test_cross_entropy_options.py",
    "test_cross_entropy_rows.py",
    "test_linear_cross_entropy.py",
    "test_linear_cross_entropy_rows.py",
    "test_optim.py",
    "test_optim_options.py",
    "test_optim_accuracy.py",
    "test_layout_groups.py",
    "test_low_bit.py",
    "test_half_params.py",
    "test_accumulate.py",
    "test_nonfinite.py",
    "test_clip.py",
    "test_dropout.py",
    "test_gpt.py",
)


def run_python(code, timeout=120, **environment):
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, **environment},
        check=False,
    )


def test_info():
    info = fs.info()
    assert info["version"] == fs.__version__ and re.match(r"\d+\.\d+", fs.__version__)
    assert info["isa"] in info["isa_available"]
    assert info["threads"] == fs.get_num_threads() >= 1
    assert isinstance(info["openmp"], bool) and isinstance(info["blas"], str)
    cuda = info["cuda"]
    assert isinstance(cuda["built"], bool)
    assert all(isinstance(entry, str) for key in ("archs", "devices") for entry in cuda[key])
    assert cuda["devices"] or cuda["why_not"]


def test_threads_round_trip(threads):
    assert fs.get_num_threads() == fs.info()["threads"] == threads


@pytest.mark.parametrize("isa", AVAILABLE)
def test_isa_override(isa):
    done = run_python("import flatstep; print(flatstep.info()['isa'])", FLATSTEP_ISA=isa)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == isa


@pytest.mark.parametrize("isa", ("no-such-isa", "x86-64-v9", "X86-64"))
def test_unsupported_isa_is_refused(isa):
    """An exception that names the variable and what there is, not a crash."""
    code = """
    import numpy, flatstep
    flatstep.info()
    flatstep.cross_entropy(numpy.zeros((2, 3), numpy.float32), numpy.array([0, 1]))
    """
    done = run_python(code, FLATSTEP_ISA=isa)
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    last = done.stderr.strip().splitlines()[-1]
    assert "FLATSTEP_ISA" in last and isa in last
    assert all(name in last for name in AVAILABLE)


@pytest.mark.skipif(INNER_RUN in os.environ, reason="inside a run for one instruction set")
@pytest.mark.parametrize("isa", [name for name in AVAILABLE if name != fs.info()["isa"]])
def test_numerics_under_every_other_isa(isa):
    """FLATSTEP_ISA is read once for each process: the numerical tests again, in one of their
    own."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += [str(TESTS / name) for name in ISA_FILES]
    environment = {**os.environ, "FLATSTEP_ISA": isa, INNER_RUN: "1"}
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=900,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed[1]) > 100, done.stdout[-2000:]


FORK = """
import os, signal, sys, threading, time
import numpy as np
import flatstep as fs

fs.set_num_threads(2)
logits = np.random.default_rng(0).standard_normal((512, 1000)).astype(np.float32)
targets = np.arange(512)
params, gradient = np.zeros(1_000_000, np.float32), np.ones(1_000_000, np.float32)

def work():
    own = params.copy()
    fs.AdamW(own).step(gradient)
    return fs.cross_entropy(logits, targets).loss, own.tobytes()

def keep_busy():
    while not finished.is_set():
        work()

def fork_once():
    child = os.fork()
    if child == 0:
        os._exit(0 if work() == wanted else 3)
    deadline = time.monotonic() + 30
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            sys.exit("the child hangs")
        time.sleep(0.002)
    assert os.waitstatus_to_exitcode(status) == 0, status
    assert work() == wanted

wanted, finished = work(), threading.Event()
threads = [threading.Thread(target=keep_busy) for _ in range(BUSY)]
for thread in threads:
    thread.start()
try:
    for _ in range(FORKS):
        fork_once()
finally:
    finished.set()
print("survived")
"""


def run_forks(count, busy):
    """busy: Python threads that are inside the library while the others fork."""
    code = FORK.replace("FORKS", str(count)).replace("BUSY", str(busy))
    done = run_python(code, timeout=300, PYTHONWARNINGS="ignore")
    assert done.returncode == 0 and done.stdout.strip() == "survived", done.stderr[-2000:]


@pytest.mark.needs("fork")
@pytest.mark.parametrize("busy", (0, 1))
def test_fork_after_a_parallel_call(busy):
    run_forks(5, busy)


@pytest.mark.slow
@pytest.mark.needs("fork")
@pytest.mark.parametrize("busy", (0, 2))
def test_a_hundred_forks(busy):
    run_forks(100, busy)


def test_import_leaves_pytorch_alone():
    done = run_python("import flatstep, sys; print('torch' in sys.modules)")
    assert done.stdout.strip() == "False", done.stdout + done.stderr


def test_a_stride_past_2_to_31_elements():
    """Two rows 2^31 + 8 elements apart in a file of zeros of which only two pages are touched."""
    code = """
    import tempfile
    import numpy as np, flatstep as fs
    stride = 2**31 + 8
    with tempfile.NamedTemporaryFile() as file:
        file.truncate(4 * (stride + 64))
        buffer = np.memmap(file.name, np.float32, "r+")
        rows = np.lib.stride_tricks.as_strided(buffer, (2, 64), (4 * stride, 4))
        rows[...] = np.random.default_rng(0).standard_normal((2, 64))
        packed = fs.cross_entropy(rows.copy(), np.array([3, 60]), grad=True)
        result = fs.cross_entropy(rows, np.array([3, 60]), grad=rows)
        assert result.loss == packed.loss
        assert np.array_equal(rows, packed.grad)
    """
    done = run_python(code)
    assert done.returncode == 0, done.stderr[-2000:]


def test_results_are_plain_python_numbers():
    result = fs.cross_entropy(np.zeros((2, 3), np.float32), np.array([0, 1]))
    assert type(result.loss) is float and type(result.n_valid) is int
    assert type(fs.grad_norm(np.ones(3, np.float32))) is float
