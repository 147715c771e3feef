"""Removes every barrier, mask and bounds check of the CUDA kernels, one at a time, and counts how
many of these mutants the tests under the emulator catch.

    python3 tests/emulator/mutate.py [--only FILE] [--kinds barrier,mask,bounds] [--list]

The tree is copied and built once, with all mutations in it: each asks whether the environment
variable FLATSTEP_MUTANT has its number. A mutant is caught if a test fails, the emulator or a
sanitizer reports, or the test runs past its time limit. Exit status 1 below 95 %. Needs GCC, for
the tests that find races.
"""

import argparse
import contextlib
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mutation_sites import CROSS_ENTROPY, OPTIMIZER, all_sites, mutated

ROOT = Path(__file__).resolve().parents[2]
LEAST = 0.95
# What is run against a mutant of which files, the quick ones first.
SECTIONS = (
    "missing", "targets", "rounds", "sizes", "kinds", "special", "alone", "ranges", "options",
    "faults",
)  # fmt: skip
CROSS_ENTROPY_RUNS = [["test_emulated_cross_entropy", "1", section] for section in SECTIONS]
OPTIMIZER_RUNS = [["test_emulated_gradient"], ["test_emulated_optim"]]
# In search of races: what no order of the threads shows.
NOTED_SECTIONS = ("missing", "rounds", "kinds", "special", "alone")
CROSS_ENTROPY_RUNS += [["test_races_cross_entropy", "0", section] for section in NOTED_SECTIONS]
OPTIMIZER_RUNS += [["test_races_gradient", "0"], ["test_races_optim", "0"]]
RUNS = {
    "device.h": CROSS_ENTROPY_RUNS + OPTIMIZER_RUNS,
    **dict.fromkeys(CROSS_ENTROPY, CROSS_ENTROPY_RUNS),
    "loss_totals.cu": sorted(CROSS_ENTROPY_RUNS, key=lambda run: run[2] != "faults"),
    **dict.fromkeys(OPTIMIZER, OPTIMIZER_RUNS),
}
HEADER = """#pragma once
#include <cstdlib>
namespace mutation {
inline const int chosen = [] {
  const char* number = std::getenv("FLATSTEP_MUTANT");
  return number != nullptr ? std::atoi(number) : 0;
}();
inline bool is(int number) { return number == chosen; }
}  // namespace mutation
"""
# What a test prints when it has found something.
REPORT = re.compile(
    r"CHECK\(.*failed|no \w+ with '|runtime error: .*|ERROR: \w+Sanitizer: [\w-]+|what\(\):[^\n]*\n"
)
COLOR = re.compile(r"\x1b\[[0-9;]*[mK]")


def copy_tree(work, sites):
    """Copies what git knows; files with the same text stay as they are and are not built again."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "CMakeLists.txt", "csrc", "tests"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split("\n")  # fmt: skip
    texts = {name: (ROOT / name).read_bytes() for name in listed if (ROOT / name).is_file()}
    texts["tests/emulator/mutation.h"] = HEADER.encode()
    for file in {site.file for site in sites}:
        name = f"csrc/cuda/{file}"
        own = [site for site in sites if site.file == file]
        texts[name] = mutated(texts[name].decode(), own).encode()
    for name, text in texts.items():
        path = work / "source" / name
        if not path.is_file() or path.read_bytes() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text)


def build(work, programs, jobs):
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    configure = ["cmake", "-S", work / "source", "-B", work / "build", *generator]
    configure += ["-DFLATSTEP_BUILD_TESTS=ON", "-DFLATSTEP_CUDA=OFF", "-DCMAKE_BUILD_TYPE=Release"]
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    command = ["cmake", "--build", work / "build", "-j", str(jobs), "--target", *programs]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        sys.exit(f"the mutants do not compile:\n{result.stdout[-5000:]}")


def run(command, number, limit):
    """What the test has to say against the mutant, or None; its lines come through a terminal, so
    that each is seen at once."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "FLATSTEP_MUTANT": str(number)}
    process = subprocess.Popen(
        command, env=environment, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    timed_out = []

    def stop(reason):
        if process.poll() is None:
            timed_out.append(reason)
            with contextlib.suppress(ProcessLookupError):  # it ended by itself meanwhile
                os.killpg(process.pid, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:

        def watch():
            try:
                process.wait(limit)
            except subprocess.TimeoutExpired:
                stop(f"ran past {limit:.0f} s")

        pool.submit(watch)
        text, found = "", None
        while found is None:
            try:
                text += os.read(ours, 65536).decode(errors="replace").replace("\r", "")
            except OSError:  # the terminal's other end is closed
                break
            found = REPORT.search(COLOR.sub("", text))
        if found is not None:
            stop(found[0])
    os.close(ours)
    if found is not None:
        return found[0].strip()
    if timed_out:
        return timed_out[0]
    if process.returncode != 0:
        return f"exit status {process.returncode}"
    return None


def verdict(site, programs, limits):
    for command in RUNS[site.file]:
        found = run([programs[command[0]], *command[1:]], site.number, limits[tuple(command)])
        if found is not None:
            return f"{' '.join(command)}: {found[:100]}"
    return None


def time_limits(commands, programs):
    """No test may find anything without a mutant; each may take five times as long with one."""
    limits = {}
    for command in commands:
        start = time.monotonic()
        found = run([programs[command[0]], *command[1:]], 0, 3600)
        if found is not None:
            sys.exit(f"without a mutant, {' '.join(command)}: {found}")
        limits[tuple(command)] = 20 + 5 * (time.monotonic() - start)
    return limits


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--list", action="store_true", help="print the mutants, run nothing")
    parser.add_argument("--only", metavar="FILE", help="mutants of one file of csrc/cuda")
    parser.add_argument("--kinds", default="barrier,mask,bounds")
    parser.add_argument("--numbers", help="these alone, as 3,7-12")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--keep-going", action="store_true", help="also past the first survivor")
    parser.add_argument("--work", type=Path, help="a folder to build in and keep")
    return parser.parse_args()


def chosen(sites, options):
    numbers = {site.number for site in sites}
    if options.numbers:
        ranges = [part.split("-") for part in options.numbers.split(",")]
        numbers = {n for r in ranges for n in range(int(r[0]), int(r[-1]) + 1)}
    return [
        site
        for site in sites
        if site.kind in options.kinds.split(",")
        and options.only in (None, site.file)
        and site.number in numbers
    ]


def main():
    options = arguments()
    every = all_sites(ROOT / "csrc/cuda")
    sites = chosen(every, options)
    if options.list:
        print(*sites, f"{len(sites)} mutants", sep="\n")
        return 0
    if not sites:
        sys.exit("no such mutants")
    work = options.work or Path(tempfile.mkdtemp(prefix="flatstep_mutants_"))
    commands = list({tuple(c): c for site in sites for c in RUNS[site.file]}.values())
    copy_tree(work, every)
    names = sorted({command[0] for command in commands})
    build(work, names, options.jobs)
    programs = {name: work / "build/tests/emulator" / name for name in names}
    limits = time_limits(commands, programs)

    survivors, done = [], 0
    with ThreadPoolExecutor(options.jobs) as pool:
        verdicts = pool.map(lambda site: verdict(site, programs, limits), sites)
        for site, found in zip(sites, verdicts, strict=True):
            done += 1
            print(f"{'caught' if found else 'SURVIVED'} {site}", flush=True)
            if found:
                print(f"      {found}", flush=True)
                continue
            survivors.append(site)
            if not options.keep_going:
                pool.shutdown(cancel_futures=True)
                break
    if options.work is None:
        shutil.rmtree(work)
    score = 1 - len(survivors) / done
    print(f"{done - len(survivors)} of {done} mutants caught: {100 * score:.1f} %")
    print(*(f"survived: {site}" for site in survivors), sep="\n")
    return 0 if score >= LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
