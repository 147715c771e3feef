"""Contenders in processes of their own that take turns, and the memory that a call needs.

A library's threads spin for a while after a call, and would slow its neighbour's. So each contender
runs in a child process, and a turn begins when every child is at rest.
"""

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np

# glibc then gives no page back, and none is faulted in anew by a call's fresh arrays. Raising the
# threshold above which it maps memory would not do: glibc refuses more than 32 MiB.
WARM_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_MAX_": "0"}


class Child:
    """A process that runs `script --serve contender`; `ask` calls a method of its contender."""

    def __init__(self, script, contender, threads, warm_malloc=False):
        # Settings that force OpenBLAS's kernels can halve its rate.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("OPENBLAS_")}
        environment |= {"OMP_NUM_THREADS": str(threads), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        environment |= WARM_MALLOC if warm_malloc else {}
        self._contender = contender
        self._process = subprocess.Popen(
            [sys.executable, script, "--serve", contender],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def ask(self, method, **arguments):
        self._process.stdin.write(json.dumps([method, arguments]) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self._contender}: the process ended with {self._process.wait()}")
        return json.loads(answer)

    def processor_seconds(self):
        return time.clock_gettime(~self._process.pid << 3 | 2)  # Linux: that process's CPU clock

    def stop(self):
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve(contender):
    """Answers `Child.ask` until the parent closes the pipe."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints does not get among the answers
    for line in sys.stdin:
        method, arguments = json.loads(line)
        print(json.dumps(getattr(contender, method)(**arguments)), file=answers, flush=True)


def wait_for_rest(children):
    """Returns when no child's threads are spinning any more, or after two seconds."""
    for _ in range(400):
        before = [child.processor_seconds() for child in children]
        time.sleep(0.005)
        if all(
            child.processor_seconds() - b < 1e-4 for child, b in zip(children, before, strict=True)
        ):
            return


def take_turns(turns, rounds, children):
    """Medians of `{name: function that returns seconds}` over interleaved rounds."""
    seconds = rounds_of(turns, rounds, children)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rounds_of(turns, rounds, children):
    """`{name: [seconds in each round]}`, interleaved, after a round to warm up.

    Every other round goes backwards, so that nobody always follows the same neighbour.
    """
    seconds = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name in list(turns)[:: 1 if number % 2 else -1]:
            wait_for_rest(children)
            seconds[name].append(turns[name]())
    return {name: values[1:] for name, values in seconds.items()}


def seconds_of(call):
    began = time.perf_counter()
    result = call()
    seconds = time.perf_counter() - began
    del result  # freed behind the clock
    return seconds


def turn_of(prepare, call, calls=5, budget=0.25):
    """Median seconds of a few calls, each prepared behind the clock: a single short call after a
    rest would time how threads and the processor wake up."""
    seconds = []
    while len(seconds) < calls and sum(seconds) < budget:
        prepare()
        seconds.append(seconds_of(call))
    return statistics.median(seconds)


class NumpyScale:
    """`a *= c` in place on several threads: the last part on this one, the others on a pool's."""

    def __init__(self, floats, threads):
        self._pool = ThreadPoolExecutor(threads)
        self._parts = np.array_split(floats, threads)

    def __call__(self, factor):
        *others, last = self._parts
        running = [self._pool.submit(np.multiply, part, factor, out=part) for part in others]
        np.multiply(last, factor, out=last)
        wait(running)


def page_faults():
    """How many pages this process has been given so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_memory(call):
    """What `call` returns, and by how many bytes the resident memory grew at its peak."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak starts again from what is resident now
    before = _status_bytes("VmRSS")
    result = call()
    return result, _status_bytes("VmHWM") - before


def resident_memory():
    """Bytes of this process that are in memory now."""
    return _status_bytes("VmRSS")


def _status_bytes(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))


def huge_pages():
    """The system's setting for transparent huge pages, which decides the price of fresh memory."""
    with open("/sys/kernel/mm/transparent_hugepage/enabled") as file:
        return file.read().partition("[")[2].partition("]")[0]
