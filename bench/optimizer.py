"""The tail of a training step (clip, update, zero) beside the memory's speed and PyTorch's.

    python bench/optimizer.py [--cases 32M,gpt2,small] [--rounds 7] [--threads N]
        [--algorithm adamw|sgd] [--works step,clip,zero] [--contenders "NAME;NAME"]
        [--warm-malloc] [--json FILE]

Cases: one buffer of 32 Mi float32; the 148 tensors of GPT-2 124M, and for flatstep the same as one
flat buffer with a Layout; 2000 tensors of 4096. Works: step; clip + step; clip + step + zero.

Bytes are those that a call has to move for each parameter, each visit of an array once, whatever a
cache spares: AdamW 28 (parameter, two moments read and written, gradient read), SGD with momentum
20, a norm 4, PyTorch's scaling of the gradients by the clip 8, zeros 4. flatstep takes the norm in
every call, because a gradient that is not finite must be found before anything is written; "one
visit" is handed the norm by `fs.accumulate`, which has just written the gradients: that call is not
counted, nor is the backward pass that writes PyTorch's. Of PyTorch's loops the default and foreach
make more passes than are counted. "of roof" compares GB/s with those of the roof: `a *= c` in
place over at least 128 MiB, by NumPy or torch's `mul_`, whichever is faster, in the same round.

PyTorch clips by `clip_grad_norm_(params, 1.0)`, whose `foreach` is on by default on the CPU, while
its optimizers' is not, and zeros with `zero_grad(set_to_none=False)`: with True nothing would be
written, but every backward pass would allocate its gradients and pay for their pages.

flatstep on NumPy arrays is one process, everything with PyTorch's tensors another; they take turns,
and figures are medians over the rounds: ratios of those in a round, since the speed of a shared
machine's memory changes. A turn is a few calls, of which the median counts. Before every call,
outside the clock, the gradients are written anew, front to back. Contenders of a process share
parameters and gradients, and those of PyTorch their moments. All arrays are NumPy's, which asks
for huge pages from 4 MiB on, also under PyTorch's tensors.
"""

import argparse
import importlib.util
import json
import os
import statistics

import measure
from optimizer_contenders import (
    BASELINE,
    CASES,
    CONTENDERS,
    PROCESSES,
    ROOFS,
    STATE_BYTES,
    WORKS,
    parameters_of,
)


def start(case, names, arguments):
    """The children that have something to do, by process, and the floats that their scales take."""
    processes = {CONTENDERS[name].process for name in names}
    children, scaled = {}, 0
    for process in sorted(processes):
        child = measure.Child(__file__, process, arguments.threads, arguments.warm_malloc)
        own = [name for name in names if CONTENDERS[name].process == process]
        scaled = child.ask("prepare", case=case, algorithm=arguments.algorithm,
                           threads=arguments.threads, names=own)  # fmt: skip
        children[process] = child
    return children, scaled


def measure_case(case, names, works, arguments):
    """One dict a work and contender, each work with its roofs first."""
    if case != "gpt2":
        names = [name for name in names if not CONTENDERS[name].flat]
    children, scaled = start(case, names, arguments)
    whose = {name: children[process] for name, process in ROOFS.items() if process in children}
    whose |= {name: children[CONTENDERS[name].process] for name in names}
    seconds = measure.rounds_of(
        {(work, name): lambda child=child, work=work, name=name: child.ask(
            "seconds", name=name, work=work) for work in works for name, child in whose.items()},
        arguments.rounds, list(children.values()),
    )  # fmt: skip
    for child in children.values():
        child.stop()
    table = []
    for work in works:
        roofs = [seconds[work, name] for name in ROOFS if name in whose]
        roof = [8 * scaled / min(round) for round in zip(*roofs, strict=True)]
        for name in whose:
            row = {"case": case, "work": work, "contender": name}
            moved = 8 if name in ROOFS else CONTENDERS[name].bytes_moved(work, arguments.algorithm)
            count = scaled if name in ROOFS else parameters_of(case)
            fused = seconds.get((work, BASELINE)) if name not in ROOFS else None
            table.append(row | figures(seconds[work, name], moved, count, roof, fused))
    return table


def figures(seconds, moved, count, roof, fused):
    """Of one contender's seconds in each round, beside the roof's bytes a second and the
    baseline's seconds."""

    def median_ratio(above, below):
        return statistics.median(a / b for a, b in zip(above, below, strict=True))

    rates = [moved * count / s for s in seconds]
    return {
        "seconds": statistics.median(seconds),
        "bytes_per_parameter": moved,
        "bytes_per_second": statistics.median(rates),
        "of_roof": median_ratio(rates, roof),
        "times_fused": median_ratio(fused, seconds) if fused else None,
    }


def print_case(table, algorithm):
    case = table[0]["case"]
    print(f"\n{case}: {parameters_of(case)} parameters in {len(CASES[case])} tensors, {algorithm}")
    work = None
    for row in table:
        if row["work"] != work:
            work = row["work"]
            print(f"{WORKS[work]:26} {'ms':>9} {'B/param':>8} {'GB/s':>7} {'of roof':>8}", end="")
            print(f" {'x fused':>8}")
        ratio = "" if row["times_fused"] is None else f"{row['times_fused']:9.2f}"
        print(
            f"  {row['contender']:24} {row['seconds'] * 1e3:9.2f} {row['bytes_per_parameter']:8.2f}"
            f" {row['bytes_per_second'] / 1e9:7.1f} {row['of_roof']:8.0%}{ratio}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--works", default=",".join(WORKS))
    parser.add_argument("--contenders", help="separated by semicolons [all]")
    parser.add_argument("--algorithm", choices=STATE_BYTES, default="adamw")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--warm-malloc", action="store_true", help="glibc keeps freed pages")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        measure.serve(PROCESSES[arguments.serve]())
        return
    names = arguments.contenders.split(";") if arguments.contenders else list(CONTENDERS)
    if importlib.util.find_spec("torch") is None:
        names = [name for name in names if CONTENDERS[name].process == "numpy"]
    pages = f"huge pages: {measure.huge_pages()}"
    pages += f", glibc {'keeps' if arguments.warm_malloc else 'returns'} pages"
    print(f"{arguments.threads} threads, {arguments.rounds} rounds, {pages}")
    everything = []
    for case in arguments.cases.split(","):
        table = measure_case(case, names, arguments.works.split(","), arguments)
        everything += table
        print_case(table, arguments.algorithm)
    if arguments.json:
        names = ("algorithm", "threads", "warm_malloc", "rounds")
        settings = {name: getattr(arguments, name) for name in names}
        with open(arguments.json, "w") as file:
            json.dump([row | settings for row in everything], file, indent=1)


if __name__ == "__main__":
    main()
