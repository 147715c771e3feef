"""Cross-entropy and its gradient beside the memory's speed and PyTorch's.

    python bench/cross_entropy.py [--rounds 9] [--threads N] [--shapes 1024x50257,...] [--json]
                                  [--dtypes float32,bfloat16] [--no-compile] [--warm-malloc]

The roof is an in-place scale, `a *= c`, of the same bytes with the same number of threads: by
NumPy, in flatstep's own buffer, or by torch's `mul_`, whichever is faster. GB/s count what has to
move: the logits read once and, with a gradient, as many bytes written; the scale counts the same
two. "of roof" compares these rates; "x in place" is the time over that of flatstep in place.

flatstep and PyTorch run in processes of their own and take turns, case by case; figures are medians
over the rounds. A turn is a few calls, of which the median counts. Before every call, outside the
clock, the logits are filled anew: in place, the gradient has overwritten them. Statistics
(log-sum-exp, entropy, hits) are part of every call of flatstep. "everything on" adds label
smoothing, z-loss, class weights and token weights.

PyTorch makes its outputs anew in each call and pays for the page faults (the last column, those of
a turn), which is what its users see, and so does "new array" of flatstep. With --warm-malloc, glibc
keeps the pages of freed arrays, in all processes: kinder to PyTorch than its default.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import pathlib
import statistics
import sys

import measure
import numpy as np

SHAPES = "1024x50257,4096x32000,256x262144,65536x256"
ROW = 262144
ROW_CALLS = 100  # a round's calls on a single row: each takes less than a millisecond
FACTOR = np.float32(0.999)
FORWARD = "flatstep forward only"
IN_PLACE = "flatstep in place"
FLATSTEP_CASES = (IN_PLACE, "flatstep given array", "flatstep new array", FORWARD,
                  "flatstep everything on", "flatstep softcap")  # fmt: skip
ROOFS = ("scale, NumPy", "scale, torch mul_")


class Inputs:
    """The same logits and targets in every process; bfloat16 as uint16 bit patterns."""

    def __init__(self, dtype, rows, classes):
        rng = np.random.default_rng(0)
        values = 3 * rng.standard_normal((rows, classes), dtype=np.float32)
        if dtype == "bfloat16":
            values = (values.view(np.uint32) >> 16).astype(np.uint16)
        self.original = values
        self.memory = values.copy()
        self.targets = rng.integers(0, classes, rows)
        flat = self.memory.reshape(-1)
        self.floats = flat[: flat.nbytes // 4 * 4 // flat.itemsize].view(np.float32)

    def refill(self):
        np.copyto(self.memory, self.original)


class Contender:
    """What the two processes share."""

    def page_faults(self, case):
        """Of as many calls as a turn makes."""
        before = measure.page_faults()
        self.seconds(case)
        return measure.page_faults() - before

    def settle(self, cases):
        """With --warm-malloc, holes between arrays let the heap grow over the first few calls."""
        for _ in range(20):
            if max(self.page_faults(case) for case in 2 * cases) < 100:
                return


class Flatstep(Contender):
    """flatstep's cases, and NumPy's scale of the same buffer."""

    def __init__(self):
        sys.path.append(str(pathlib.Path(__file__).parents[1] / "tests"))
        import bfloat16

        import flatstep

        self.bfloat16, self.flatstep = bfloat16, flatstep

    def prepare(self, dtype, rows, classes, threads):
        self.flatstep.set_num_threads(threads)
        self.inputs = Inputs(dtype, rows, classes)
        self.wrap = self.bfloat16.Bfloat16Array if dtype == "bfloat16" else lambda array: array
        self.logits = self.wrap(self.inputs.memory)
        self.gradient = self.wrap(np.ones_like(self.inputs.memory))
        rng = np.random.default_rng(1)
        self.everything = {
            "label_smoothing": 0.1,
            "z_loss": 1e-4,
            "class_weight": rng.uniform(0.5, 1.5, classes).astype(np.float32),
            "token_weight": rng.uniform(0.5, 1.5, rows).astype(np.float32),
        }
        self.scale = measure.NumpyScale(self.inputs.floats, threads)

    def seconds(self, case):
        call = (lambda: self.scale(FACTOR)) if case in ROOFS else lambda: self.loss(case)
        return measure.turn_of(self.inputs.refill, call)

    def loss(self, case):
        options = {"grad": self.logits}
        if case == "flatstep given array":
            options["grad"] = self.gradient
        elif case == "flatstep new array":
            options["grad"] = self.wrap(np.empty_like(self.inputs.memory))
        elif case == FORWARD:
            options["grad"] = False
        elif case == "flatstep everything on":
            options |= self.everything
        elif case == "flatstep softcap":
            options["softcap"] = 30.0
        return self.flatstep.cross_entropy(self.logits, self.inputs.targets, **options)

    def row(self, threads):
        """Median seconds of a call on the one row, and a digest of the bits of its results."""
        self.flatstep.set_num_threads(threads)

        def call():
            return self.flatstep.cross_entropy(
                self.inputs.original, self.inputs.targets, grad=self.gradient
            )

        for _ in range(10):
            result = call()
        bits = np.float64(result.loss).tobytes() + self.gradient.tobytes()
        seconds = statistics.median(measure.seconds_of(call) for _ in range(ROW_CALLS))
        return seconds, hashlib.sha256(bits).hexdigest()


class Torch(Contender):
    """PyTorch's cross-entropy with its backward pass, eager and compiled, and its scale."""

    def __init__(self):
        import torch

        self.torch = torch

    def prepare(self, dtype, rows, classes, threads):
        self.torch.set_num_threads(threads)
        self.inputs = Inputs(dtype, rows, classes)
        self.targets = self.torch.from_numpy(self.inputs.targets)
        logits = self.inputs.memory if dtype == "float32" else self.inputs.memory.view(np.int16)
        logits = self.torch.from_numpy(logits).view(getattr(self.torch, dtype))
        self.logits = logits.requires_grad_()
        self.floats = self.torch.from_numpy(self.inputs.floats)

    def compile(self):
        """Compiles the loss for these inputs; returns why it cannot be done here, or None."""
        self.torch._dynamo.reset()
        self.compiled = self.torch.compile(self.loss, dynamic=False)
        try:
            self.compiled(self.logits, self.targets).backward()
        except Exception as error:  # a compiler or its headers may be missing
            return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"

    def loss(self, logits, targets):
        return self.torch.nn.functional.cross_entropy(logits, targets)

    def seconds(self, case):
        def prepare():
            self.inputs.refill()
            self.logits.grad = None  # the last call's, freed before the clock starts

        if case in ROOFS:
            return measure.turn_of(prepare, lambda: self.floats.mul_(float(FACTOR)))
        loss = self.compiled if case == "torch.compile" else self.loss
        return measure.turn_of(prepare, lambda: loss(self.logits, self.targets).backward())


def measure_shape(children, dtype, rows, classes, arguments):
    """One dict a case, the roof first."""
    flatstep, torch = children[0], children[-1]
    for child in children:
        child.ask("prepare", dtype=dtype, rows=rows, classes=classes, threads=arguments.threads)
    turns = dict.fromkeys((ROOFS[0], *FLATSTEP_CASES), flatstep)
    if torch is not flatstep:
        turns |= dict.fromkeys((ROOFS[1], "torch eager"), torch)
        failure = "--no-compile" if arguments.no_compile else torch.ask("compile")
        if failure is None:
            turns["torch.compile"] = torch
        elif not arguments.no_compile:
            print(f"torch.compile, {dtype} {rows}x{classes}: {failure}", file=sys.stderr)
    if arguments.warm_malloc:
        for child in children:
            child.ask("settle", cases=[case for case, whose in turns.items() if whose is child])
    medians = measure.take_turns(
        {case: lambda child=child, case=case: child.ask("seconds", case=case)
         for case, child in turns.items()},
        arguments.rounds, children,
    )  # fmt: skip
    moved = 2 * rows * classes * (4 if dtype == "float32" else 2)
    roof = min(medians[name] for name in ROOFS if name in medians)
    table = []
    for case in sorted(medians, key=lambda name: name not in ROOFS):
        seconds = medians[case]
        rate = moved / seconds / (2 if case == FORWARD else 1)
        figures = {"seconds": seconds, "bytes_per_second": rate, "of_roof": rate * roof / moved,
                   "over_in_place": seconds / medians[IN_PLACE],
                   "page_faults": turns[case].ask("page_faults", case=case)}  # fmt: skip
        table.append({"dtype": dtype, "rows": rows, "classes": classes, "case": case} | figures)
    return table


def measure_row(flatstep, rounds, threads):
    """One row, a single call's latency: on one thread and on all, in turn."""
    flatstep.ask("prepare", dtype="float32", rows=1, classes=ROW, threads=threads)
    counts = dict.fromkeys((1, threads))
    answers = [(n, *flatstep.ask("row", threads=n)) for _ in range(rounds) for n in counts]
    seconds = {n: statistics.median(s for count, s, _ in answers if count == n) for n in counts}
    same = len({digest for _, _, digest in answers}) == 1
    return {"dtype": "float32", "rows": 1, "classes": ROW, "case": "flatstep given array",
            "seconds_one_thread": seconds[1], "seconds": seconds[threads],
            "speed_up": seconds[1] / seconds[threads], "same_bits": same}  # fmt: skip


def print_shape(table):
    first = table[0]
    print(f"\n{first['rows']} x {first['classes']} {first['dtype']}")
    print(f"{'':26} {'ms':>9} {'GB/s':>7} {'of roof':>8} {'x in place':>11} {'page faults':>12}")
    for row in table:
        print(
            f"{row['case']:26} {row['seconds'] * 1e3:9.2f} {row['bytes_per_second'] / 1e9:7.1f} "
            f"{row['of_roof']:8.0%} {row['over_in_place']:11.2f} "
            f"{row['page_faults']:12}"
        )


def print_row(row, threads):
    one, all_threads = row["seconds_one_thread"] * 1e3, row["seconds"] * 1e3
    print(
        f"\n1 x {ROW} float32, given array: {one:.3f} ms on one thread, {all_threads:.3f} ms on "
        f"{threads}: {row['speed_up']:.2f} times as fast, "
        f"{'the same' if row['same_bits'] else 'NOT the same'} bits"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--shapes", default=SHAPES, help=f"rows x classes [{SHAPES}]")
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--warm-malloc", action="store_true", help="glibc keeps freed pages")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        measure.serve({"flatstep": Flatstep, "torch": Torch}[arguments.serve]())
        return
    contenders = ["flatstep"] + ["torch"] * (importlib.util.find_spec("torch") is not None)
    children = [
        measure.Child(__file__, name, arguments.threads, arguments.warm_malloc)
        for name in contenders
    ]
    if not arguments.json:
        print(f"{arguments.threads} threads, huge pages: {measure.huge_pages()}, "
              f"glibc {'keeps' if arguments.warm_malloc else 'returns'} pages")  # fmt: skip
    everything = []
    for shape in arguments.shapes.split(","):
        for dtype in arguments.dtypes.split(","):
            table = measure_shape(children, dtype, *map(int, shape.split("x")), arguments)
            everything += table
            if not arguments.json:
                print_shape(table)
    everything.append(measure_row(children[0], arguments.rounds, arguments.threads))
    if arguments.json:
        settings = {"threads": arguments.threads, "warm_malloc": arguments.warm_malloc}
        print(json.dumps([row | settings for row in everything], indent=1))
    else:
        print_row(everything[-1], arguments.threads)
    for child in children:
        child.stop()


if __name__ == "__main__":
    main()
