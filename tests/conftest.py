"""Fixtures of the whole suite: random numbers, thread counts, a buffer kept under watch."""

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from run_case import SAMPLE

import flatstep as fs

# Where a script has started them behind `&`, the tests and the commands they run ignore Ctrl-C.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest.register_assert_rewrite(
    "bad_input",
    "cuda_case",
    "data_case",
    "linear_case",
    "loss_checks",
    "optim_case",
    "torch_optim_case",
)

CUDA = bool(fs.info()["cuda"]["devices"])

# Without PyTorch or Transformers there is nothing to compare with, other packages are what a part
# of flatstep is for, and kernels of a GPU need one (or the emulated build): those tests are absent,
# not skipped.
NEEDED = {
    "torch": ["parity/*"],
    "transformers": ["parity/*transformers*", "parity/test_gpt_hugging_face.py"],
    "gguf": ["gguf_file/*"],
    "llama_cpp": ["gguf_file/*llama*"],
    "matplotlib": ["plot/*"],
    "tokenizers": ["bpe/*"],
    "tensorboard": ["loggers/test_tensorboard.py"],
    "wandb": ["loggers/test_wandb.py"],
}
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
collect_ignore_glob = [path for name in MISSING for path in NEEDED[name]]
if not CUDA:
    collect_ignore_glob += ["cuda/*", "parity/cuda/*"]
elif "torch" not in MISSING:
    import torch

    if not torch.cuda.is_available():
        collect_ignore_glob.append("parity/cuda/*")


def _may_mount():
    """Whether an ordinary user can mount a small disk here, in a namespace of its own."""
    if shutil.which("unshare") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        mount = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", folder]
        return subprocess.run(mount, capture_output=True).returncode == 0


HAS = {
    # The kernels of the x86-64 baseline round a product and a sum twice; PyTorch's fuse them.
    "fma": fs.info()["isa"] not in ("x86_64", "generic"),
    "long double": np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant,
    "fork": hasattr(os, "fork"),
    "proc": Path("/proc/self/status").exists(),
    "mkfifo": hasattr(os, "mkfifo"),
    "cuda": CUDA,
    "no cuda": not CUDA,
    "cc": shutil.which("cc") is not None,
    "user namespaces": _may_mount(),
    "tokenizers": "tokenizers" not in MISSING,
    "cmake": shutil.which("cmake") is not None,
    "nvcc": shutil.which("nvcc") is not None or Path("/usr/local/cuda/bin/nvcc").exists(),
}


def pytest_collection_modifyitems(config, items):
    """Tests marked needs("fma") are absent, not skipped, where there is none."""
    absent = [i for i in items if not all(HAS[m.args[0]] for m in i.iter_markers("needs"))]
    if absent:
        config.hook.pytest_deselected(items=absent)
        items[:] = [item for item in items if item not in set(absent)]


# 1 is the serial path; 2 and 3 divide little; 5 and 7 are more threads than many tests have work.
THREADS = (1, 2, 3, 4, 7)


@pytest.fixture
def rng():
    return np.random.default_rng(20260101)


@pytest.fixture
def text(tmp_path):
    """The name of a small file of text."""
    path = tmp_path / "text.txt"
    path.write_text(SAMPLE)
    return str(path)


@pytest.fixture
def memory_path(tmp_path):
    """An empty folder, in memory where the system has such (a disk takes long to sync)."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture(autouse=True)
def restore_threads():
    before = fs.get_num_threads()
    yield
    fs.set_num_threads(before)


@pytest.fixture(params=THREADS)
def threads(request):
    fs.set_num_threads(request.param)
    return request.param


@pytest.fixture
def assert_same_for_all_threads():
    """Takes compute(), which returns a string of digests, and runs it for every thread count."""

    def check(compute):
        results = {}
        for count in THREADS:
            fs.set_num_threads(count)
            results[count] = compute()
        assert len(set(results.values())) == 1, results

    return check


@pytest.fixture
def has_fma():
    """Without fused multiply-add, formulas that have one round twice."""
    return HAS["fma"]


@pytest.fixture
def fma(has_fma):
    """The oracle's a * b + c with the roundings of these kernels."""
    import oracle

    return oracle.fused_multiply_add if has_fma else oracle.rounded_twice
