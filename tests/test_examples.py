"""The example programs, and a C++ project that finds the installed package."""

import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def run(*command, **options):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(output):
    return [float(value) for value in re.findall(r"loss (\d+\.\d+)", output)]


def test_the_python_loop_learns():
    seen = losses(run(sys.executable, ROOT / "examples" / "numpy_loop.py"))
    assert seen[0] == pytest.approx(5.55, abs=0.3)  # ln 256, untrained
    assert seen[-1] < 3.0


@pytest.fixture(scope="module")
def consumer(tmp_path_factory):
    """The consumer project, built against the package that Python imports."""
    assert shutil.which("cmake"), "cmake and ninja come with pip install '.[test]'"
    build = tmp_path_factory.mktemp("consumer")
    root = run(sys.executable, "-m", "flatstep", "--cmake-root").strip()
    # A build folder of the caller's generator must not leak in.
    environment = {k: v for k, v in os.environ.items() if not k.startswith("CMAKE_")}
    run("cmake", "-S", ROOT / "tests" / "consumer", "-B", build, f"-Dflatstep_ROOT={root}",
        "-DCMAKE_BUILD_TYPE=Release", "-G", "Ninja", env=environment)  # fmt: skip
    run("cmake", "--build", build, env=environment)
    return build


class TestConsumer:
    def test_bigram(self, consumer):
        seen = losses(run(consumer / "bigram"))
        assert seen[0] == pytest.approx(4.852, abs=1e-3)  # ln 128: the table starts at zero
        assert seen[-1] < 2.0

    def test_gpt(self, consumer):
        first, last = map(float, run(consumer / "gpt").split())
        assert last < first / 2
