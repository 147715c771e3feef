"""Linear layer and cross-entropy with all gradients beside its bare matrix products and PyTorch's.

    python bench/linear_cross_entropy.py [--shape 2048x512x50257] [--rounds 5] [--threads N]
        [--gemm-program build/bench/bench_gemm] [--blas LIBRARY] [--skip NAME,...] [--json]

The shape is rows x width x classes, float32. The floor is the best of several matrix products
(logits = hidden weight^T, grad_hidden = logits' gradient weight, grad_weight = that^T hidden, each
into a given array): torch.mm, NumPy's, with --gemm-program (the built bench_gemm) flatstep's own
and those of OpenBLAS, of --blas or of scipy-openblas32. "over bare" compares with that best,
"over flatstep" with flatstep's call.

Every contender has a process of its own, and they take turns; figures are medians over the rounds.
Memory is what a first call adds at its peak, in a process where the library has been used before,
less what any contender has to hold: inputs and output gradients. flatstep gets given arrays for the
gradients; PyTorch makes them, and the fresh memory is part of its time.
"""

import argparse
import importlib.util
import json
import os

import gemm
import measure
import numpy as np

BARE = ("torch.mm", "numpy.matmul", "bench_gemm flatstep", "bench_gemm OpenBLAS")


def make_inputs(rows, width, classes):
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((rows, width), dtype=np.float32)
    weight = rng.standard_normal((classes, width), dtype=np.float32) / np.float32(width**0.5)
    return hidden, weight, rng.integers(0, classes, rows)


class Contender:
    """What contenders share; each defines `make`, which returns the call to time."""

    made_gradients = False  # whether the call makes its gradients, or has been given arrays

    def prepare(self, shape, threads):
        """Whatever the library sets up once is there before memory is looked at."""
        self.set_threads(threads)
        self.make(*make_inputs(64, 32, 128))()
        rows, width, classes = shape
        self.gradient_bytes = 4 * width * (rows + classes)
        self.call = self.make(*make_inputs(*shape))

    def set_threads(self, threads):
        pass  # OMP_NUM_THREADS has done it

    def memory(self):
        """The loss, and the bytes beside inputs and gradients, of a first call."""
        loss, peak = measure.peak_memory(self.call)
        return loss, peak - self.gradient_bytes * self.made_gradients

    def seconds(self):
        return measure.seconds_of(self.call)


class Flatstep(Contender):
    def set_threads(self, threads):
        import flatstep

        self.flatstep = flatstep
        flatstep.set_num_threads(threads)

    def make(self, hidden, weight, targets):
        # Ones, because the system has not yet given an array of zeros its memory.
        gradients = {"grad_hidden": np.ones_like(hidden), "grad_weight": np.ones_like(weight)}
        call = self.flatstep.linear_cross_entropy
        return lambda: call(hidden, weight, targets, **gradients).loss


class NumpyProducts(Contender):
    def make(self, hidden, weight, targets):
        logits = np.ones((len(hidden), len(weight)), np.float32)
        grad_hidden, grad_weight = np.ones_like(hidden), np.ones_like(weight)

        def call():
            np.matmul(hidden, weight.T, out=logits)
            np.matmul(logits, weight, out=grad_hidden)
            np.matmul(logits.T, hidden, out=grad_weight)

        return call


class Torch(Contender):
    """PyTorch's functions; subclasses say which."""

    made_gradients = True

    def set_threads(self, threads):
        import torch

        self.torch, self.functional = torch, torch.nn.functional
        torch.set_num_threads(threads)

    def make(self, hidden, weight, targets):
        hidden, weight, targets = map(self.torch.from_numpy, (hidden, weight, targets))
        self.leaves = hidden.requires_grad_(), weight.requires_grad_()

        def call():
            loss = self.loss(hidden, weight, targets)
            loss.backward()
            return loss.item()

        return call

    def seconds(self):
        for leaf in self.leaves:
            leaf.grad = None  # the last call's, freed before the clock starts
        return super().seconds()


class TorchEager(Torch):
    def loss(self, hidden, weight, targets):
        return self.functional.cross_entropy(self.functional.linear(hidden, weight), targets)


class TorchLinear(Torch):
    """In chunks, as PyTorch chooses them; without options it would be the eager one."""

    def loss(self, hidden, weight, targets):
        options = self.torch.nn.LinearCrossEntropyOptions()
        return self.functional.linear_cross_entropy(hidden, weight, targets, options=options)


class TorchProducts(Torch):
    made_gradients = False

    def make(self, hidden, weight, targets):
        torch = self.torch
        arrays = (hidden, weight, np.ones((len(hidden), len(weight)), np.float32),
                  np.ones_like(hidden), np.ones_like(weight))  # fmt: skip
        # NumPy's memory, because it asks for huge pages and PyTorch does not.
        hidden, weight, logits, grad_hidden, grad_weight = map(torch.from_numpy, arrays)
        self.leaves = ()

        def call():
            torch.mm(hidden, weight.t(), out=logits)
            torch.mm(logits, weight, out=grad_hidden)
            torch.mm(logits.t(), hidden, out=grad_weight)

        return call


CONTENDERS = {
    "flatstep": Flatstep,
    "torch.mm": TorchProducts,
    "numpy.matmul": NumpyProducts,
    "torch eager": TorchEager,
    "torch linear_cross_entropy": TorchLinear,
}


def program_seconds(shape, command):
    """The three products by bench_gemm: a measured run of each after one to warm up."""
    rows, width, classes = shape
    products = (
        f"{rows},{classes},{width},0,1",
        f"{rows},{width},{classes},0,0",
        f"{classes},{width},{rows},1,0",
    )
    options = [part for product in products for part in ("--shape", product)]
    return sum(row["seconds"] for row in gemm.run([*command, "--repeats", "1", *options]).values())


def available(arguments):
    """Names of the contenders that can run here, and the commands of the programs among them."""
    names = list(CONTENDERS)
    if importlib.util.find_spec("torch") is None:
        names = [name for name in names if not name.startswith("torch")]
    else:
        import torch

        if not hasattr(torch.nn.functional, "linear_cross_entropy"):
            names.remove("torch linear_cross_entropy")
    commands = {}
    if arguments.gemm_program:
        commands["bench_gemm flatstep"] = [arguments.gemm_program]
        if arguments.blas or importlib.util.find_spec("scipy_openblas32"):
            blas = str(arguments.blas or gemm.default_blas())
            commands["bench_gemm OpenBLAS"] = [arguments.gemm_program, blas]
    skipped = arguments.skip.split(",")
    names = [name for name in names if name not in skipped]
    return names, {name: command for name, command in commands.items() if name not in skipped}


def measure_shape(shape, arguments):
    """One dict a contender."""
    names, commands = available(arguments)
    children = {name: measure.Child(__file__, name, arguments.threads) for name in names}
    for child in children.values():
        child.ask("prepare", shape=shape, threads=arguments.threads)
    firsts = {name: child.ask("memory") for name, child in children.items()}
    losses = [loss for loss, _ in firsts.values() if loss is not None]
    if losses and max(losses) - min(losses) > 1e-4 * abs(losses[0]):
        raise RuntimeError(f"the losses differ: {losses}")
    turns = {name: lambda child=child: child.ask("seconds") for name, child in children.items()}
    for name, command in commands.items():
        turns[name] = lambda command=command: program_seconds(shape, command)
    seconds = measure.take_turns(turns, arguments.rounds, list(children.values()))
    bare = min((seconds[name] for name in BARE if name in seconds), default=None)
    table = []
    for name, median in seconds.items():
        row = {"rows": shape[0], "width": shape[1], "classes": shape[2], "case": name}
        row |= {"seconds": median, "over_bare": median / bare if bare else None}
        row["over_flatstep"] = median / seconds["flatstep"] if "flatstep" in seconds else None
        row["extra_bytes"] = firsts[name][1] if name not in BARE else None
        table.append(row)
    for child in children.values():
        child.stop()
    return table


def print_table(table, threads):
    first = table[0]
    print(f"{first['rows']} x {first['width']} x {first['classes']} float32, {threads} threads")
    print(f"{'':28} {'ms':>9} {'over bare':>10} {'over flatstep':>14} {'extra MB':>9}")
    for row in table:
        ratios = [row["over_bare"], row["over_flatstep"]]
        bare, ours = ("-" if ratio is None else f"{ratio:.2f}" for ratio in ratios)
        extra = "-" if row["extra_bytes"] is None else f"{row['extra_bytes'] / 1e6:.0f}"
        print(f"{row['case']:28} {row['seconds'] * 1e3:9.1f} {bare:>10} {ours:>14} {extra:>9}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2048x512x50257", help="rows x width x classes")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--gemm-program", help="the built bench_gemm")
    parser.add_argument("--blas", help="a shared CBLAS library [that of scipy-openblas32, if any]")
    parser.add_argument("--skip", default="", help="names of contenders to leave out, with commas")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        measure.serve(CONTENDERS[arguments.serve]())
        return
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)  # for the programs
    table = measure_shape([int(size) for size in arguments.shape.split("x")], arguments)
    if arguments.json:
        print(json.dumps(table, indent=1))
    else:
        print_table(table, arguments.threads)


if __name__ == "__main__":
    main()
