"""How the build looks for CUDA: csrc/cmake/detect_cuda.cmake with compilers that fail in each way
in which nvcc is known to fail. Configures only; the fake compilers are shell scripts."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DETECT = Path(__file__).parents[1] / "csrc/cmake/detect_cuda.cmake"
CMAKE = shutil.which("cmake")

pytestmark = pytest.mark.needs("cmake")

PROJECT = f"""
cmake_minimum_required(VERSION 3.18)
project(detect CXX)
include({DETECT})
message(STATUS "kind: ${{FLATSTEP_CUDA_KIND}}")
message(STATUS "status: ${{FLATSTEP_CUDA_STATUS}}")
message(STATUS "why not: ${{FLATSTEP_CUDA_WHY_NOT}}")
message(STATUS "archs: ${{FLATSTEP_CUDA_ARCHS}}")
file(WRITE text.cpp "const char* text = \\"${{FLATSTEP_CUDA_WHY_NOT}}\\";")
add_library(text text.cpp)
"""

VERSION = "Cuda compilation tools, release {0}, V{0}.88"


def fake_nvcc(folder, version="13.0", fails=""):
    """A script that answers --version, and what `fails` says, or success, when it shall compile."""
    script = folder / "nvcc"
    script.write_text(
        "#!/bin/sh\n"
        f'echo "$*" >> {folder}/calls\n'
        'if [ "$1" = --version ]; then\n'
        f"  echo '{VERSION.format(version)}'\n"
        "  exit 0\n"
        "fi\n" + (f"cat >&2 <<'END'\n{fails}\nEND\nexit 1\n" if fails else "exit 0\n")
    )
    script.chmod(0o755)
    return script


def configure(folder, choice, nvcc=None, check=True, **environment):
    """What CMake prints, as a dict of the lines of PROJECT, and all of it under "output"."""
    (folder / "CMakeLists.txt").write_text(PROJECT)
    clean = {k: v for k, v in os.environ.items() if not k.startswith("CUDA")}
    if nvcc:
        clean["CUDACXX"] = str(nvcc)
    done = subprocess.run(
        [CMAKE, "-S", folder, "-B", folder / "build", f"-DFLATSTEP_CUDA={choice}"],
        capture_output=True,
        text=True,
        env=clean | environment,
        check=False,
        timeout=300,
    )
    output = done.stdout + done.stderr
    assert (done.returncode == 0) == check, output
    return dict(re.findall(r"^-- ([a-z ]+): (.*)$", output, re.M)) | {"output": output}


FAULTS = {
    "too old": ({"version": "11.2"}, "is version 11.2.88, expected 11.8 or newer"),
    "no headers": (
        {"fails": "<built-in>:1:10: fatal error: cuda_runtime.h: No such file or directory"},
        "cannot build a program: <built-in>:1:10: fatal error: cuda_runtime.h: No such file",
    ),
    "host compiler": (
        {
            "fails": "In file included from x.h:83:\n"
            "host_config.h:143:2: error: #error -- unsupported GNU version! gcc versions later "
            'than 15 are not supported; use "-allow-unsupported-compiler"!'
        },
        "cannot build a program: host_config.h:143:2: error: #error -- unsupported GNU version!",
    ),
    "no CMake": ({}, "CMake .* cannot use .*nvcc"),  # says that all is well and makes nothing
}


@pytest.mark.parametrize("fault", FAULTS)
def test_auto_builds_for_the_cpu_and_says_why(tmp_path, fault):
    arguments, reason = FAULTS[fault]
    got = configure(tmp_path, "AUTO", fake_nvcc(tmp_path, **arguments))
    assert got["kind"] == "OFF" and re.search(reason, got["why not"]), got["output"]
    assert got["status"] == f"OFF ({got['why not']})"
    # The reason becomes a string of the library.
    subprocess.run([CMAKE, "--build", tmp_path / "build"], check=True, capture_output=True)


@pytest.mark.parametrize("fault", FAULTS)
def test_on_fails_with_the_reason(tmp_path, fault):
    arguments, reason = FAULTS[fault]
    got = configure(tmp_path, "ON", fake_nvcc(tmp_path, **arguments), check=False)
    text = " ".join(got["output"].split())
    assert re.search(f"FLATSTEP_CUDA=ON: .*{reason}", text), text


def test_a_compiler_that_does_not_run(tmp_path):
    got = configure(tmp_path, "AUTO", tmp_path / "missing")
    assert got["kind"] == "OFF" and "missing does not run" in got["why not"]


def test_a_failure_is_forgotten_when_the_compiler_works(tmp_path):
    """A build folder in which nvcc failed looks again."""
    nvcc = fake_nvcc(tmp_path)
    assert "cannot use" in configure(tmp_path, "AUTO", nvcc)["why not"]
    fake_nvcc(tmp_path, version="11.2")
    assert "is version 11.2.88" in configure(tmp_path, "AUTO", nvcc)["why not"]


def test_off_and_emulated_ask_nobody(tmp_path):
    nvcc = fake_nvcc(tmp_path)
    got = configure(tmp_path, "OFF", nvcc)
    assert got["status"] == "OFF (built with FLATSTEP_CUDA=OFF)"
    assert configure(tmp_path, "EMULATED", nvcc)["kind"] == "EMULATED"
    assert not (tmp_path / "calls").exists()


def test_an_unknown_choice_is_refused(tmp_path):
    got = configure(tmp_path, "YES", check=False)
    assert "FLATSTEP_CUDA is 'YES'" in got["output"]


@pytest.mark.needs("nvcc")
def test_nvcc_off_the_path_with_the_users_architectures(tmp_path):
    got = configure(tmp_path, "ON", PATH="/usr/bin:/bin", CUDAARCHS="80-real;90")
    assert got["kind"] == "NVCC", got["output"]
    assert got["archs"] == "sm_80;sm_90;compute_90"
    assert re.fullmatch(r"ON \(nvcc [0-9.]+, sm_80 sm_90 compute_90\)", got["status"])
