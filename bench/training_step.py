"""A whole training step beside PyTorch's, eager and compiled, on the CPU.

    python bench/training_step.py [--shapes a,b,c,d] [--dropout 0,0.1] [--seconds 60] [--threads N]
        [--no-compile] [--autocast] [--warm-malloc] [--json]

A step is forward, backward, clipping to a norm of 1 and AdamW. Both sides have the same weights
(bench/torch_gpt.py), batches, threads and hyper-parameters, and without dropout their losses must
agree before anything is timed. Shapes:

    a  6 layers, 6 heads, width 384, batch 8 x 256, vocabulary 256
    b  GPT-2 124M: 12 layers, 12 heads, width 768, batch 4 x 64, vocabulary 50257, block 1024
    c  4 layers, 4 heads, width 128, batch 12 x 64, vocabulary 256
    d  2 layers, 2 heads, width 64, batch 8 x 32, vocabulary 256

Every contender has a process of its own, and they take turns; a figure is the median over the
rounds of the median of a turn. "over best" is the time over that of the faster one of PyTorch's.
--autocast adds PyTorch with products and attention in bfloat16, which flatstep does not have: they
are no part of "over best", and their losses are not compared.
"of 2048^3" and "of products" compare the floating-point operations of the linear layers and the
head (attention left out) a second of the whole step with the rate of NumPy's OpenBLAS: on one
product of 2048 x 2048 x 2048, and on the step's own products, each into a given array; it takes its
turn in the same rounds. On a machine that is not idle (the load before stands beside) "least ms"
tells more than the median. Memory is the most that is resident during a step, after a few steps,
less what was resident when the library had been imported and used once: weights, gradients,
optimizer and activations together. A compiled step's includes what its compiler has left behind.

The parts of flatstep's step are means over a run of their own, with a clock around every operation.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys

import measure
import numpy as np
from training_contenders import (
    AUTOCAST,
    CONTENDERS,
    LOSS_STEPS,
    SERVED,
    SHAPES,
    flops,
    products,
)


def check_losses(losses):
    """Both losses of each comparison, where nothing is dropped: they must agree to rounding."""
    first, rivals = losses["flatstep"], losses.keys() - AUTOCAST - {"flatstep"}
    others = [losses[name] for name in rivals]
    for other in others:
        for index, limit in ((0, 1e-5), (LOSS_STEPS, 1e-3)):
            if abs(first[index] - other[index]) > limit * abs(first[index]):
                raise RuntimeError(f"the losses differ: {losses}")


def start_children(names, shape, dropout, arguments):
    children = {}
    for name in names:
        child = measure.Child(__file__, name, arguments.threads, arguments.warm_malloc)
        children[name] = child
        if name == "numpy":
            child.ask("prepare", shape=shape)
        else:
            child.ask("prepare", shape=shape, dropout=dropout, threads=arguments.threads)
    return children


def measure_case(label, dropout, arguments):
    """A dict of one shape at one dropout."""
    shape, names = SHAPES[label], contender_names(arguments)
    children = start_children([*names, "numpy"], shape, dropout, arguments)
    everyone, numpy = list(children.values()), children.pop("numpy")
    load = os.getloadavg()[0]
    losses = {name: child.ask("losses") for name, child in children.items()}
    if dropout == 0:
        check_losses(losses)
    memory = {name: child.ask("memory") for name, child in children.items()}
    turns = {name: lambda child=child: child.ask("seconds") for name, child in children.items()}
    once = sum(max(turn(), 0.5) for turn in turns.values())
    rounds = min(15, max(3, round(arguments.seconds / once)))
    turns["numpy"] = lambda: numpy.ask("seconds")
    seconds = measure.rounds_of(turns, rounds, everyone)
    own, large = np.median(seconds.pop("numpy"), axis=0)
    case = {"shape": label, "dropout": dropout, "threads": arguments.threads, "rounds": rounds}
    case |= {"load": load, "openblas_2048": 2 * 2048**3 / large}
    case["openblas_products"] = flops(products(shape)) / own
    case["parts"] = children["flatstep"].ask("parts", budget=arguments.seconds / 10)
    if "torch eager" in children:
        case["torch_2048"] = children["torch eager"].ask("product_rate", size=2048)
    case["contenders"] = [
        contender_row(name, shape, seconds, memory[name], losses[name], case) for name in seconds
    ]
    for child in everyone:
        child.stop()
    return case


def contender_row(name, shape, seconds, memory, losses, case):
    medians = {n: statistics.median(values) for n, values in seconds.items()}
    best = min((medians[n] for n in medians.keys() - AUTOCAST - {"flatstep"}), default=None)
    rate = flops(products(shape)) / medians[name]
    return {
        "case": name,
        "seconds": medians[name],
        "least_seconds": min(seconds[name]),
        "over_best": medians[name] / best if best else None,
        "tokens_per_second": shape[3] * shape[4] / medians[name],
        "of_2048": rate / case["openblas_2048"],
        "of_products": rate / case["openblas_products"],
        "peak_bytes": memory,
        "losses": losses,
    }


def contender_names(arguments):
    torch = importlib.util.find_spec("torch") is not None
    names = [*CONTENDERS, *(AUTOCAST if arguments.autocast else ())]
    if arguments.no_compile:
        names = [name for name in names if not name.endswith("compiled")]
    return [name for name in names if torch or not name.startswith("torch")]


def print_case(case):
    layers, heads, width, batch, length, vocabulary, _ = SHAPES[case["shape"]]
    print(
        f"{case['shape']}: {layers} layers, {heads} heads, width {width}, batch {batch} x {length},"
        f" vocabulary {vocabulary}, dropout {case['dropout']:g}; {case['threads']} threads, "
        f"{case['rounds']} rounds, load {case['load']:.1f} before"
    )
    rates = f"OpenBLAS {case['openblas_2048'] / 1e9:.0f} GF/s on 2048^3"
    rates += f", {case['openblas_products'] / 1e9:.0f} on the step's products"
    if "torch_2048" in case:
        rates += f"; torch.mm {case['torch_2048'] / 1e9:.0f} on 2048^3"
    print(rates)
    heading = ("ms", "least ms", "over best", "tokens/s", "of 2048^3", "of products", "peak MB")
    heading += ("loss 1", f"loss {LOSS_STEPS + 1}")
    print(f"{'':20}" + "".join(f"{text:>12}" for text in heading))
    for row in case["contenders"]:
        over = "-" if row["over_best"] is None else f"{row['over_best']:.3f}"
        cells = (f"{row['seconds'] * 1e3:.2f}", f"{row['least_seconds'] * 1e3:.2f}", over)
        cells += (f"{row['tokens_per_second']:.0f}",)
        cells += (f"{row['of_2048']:.0%}", f"{row['of_products']:.0%}")
        cells += (f"{row['peak_bytes'] / 1e6:.0f}",)
        cells += (f"{row['losses'][0]:.6f}", f"{row['losses'][-1]:.6f}")
        print(f"{row['case']:20}" + "".join(f"{text:>12}" for text in cells))
    whole = sum(case["parts"].values())
    parts = sorted(case["parts"].items(), key=lambda part: -part[1])
    shares = (f"{name} {s * 1e3:.2f} ms ({s / whole:.1%})" for name, s in parts)
    print("flatstep's parts: " + ", ".join(shares) + "\n", flush=True)


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", default="a,b,c,d", help="which of a, b, c, d")
    parser.add_argument("--dropout", default="0,0.1")
    parser.add_argument("--seconds", type=float, default=60.0, help="of timed turns a case")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--autocast", action="store_true", help="PyTorch in bfloat16 as well")
    parser.add_argument(
        "--warm-malloc", action="store_true", help="glibc keeps freed pages, for all contenders"
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser


def main():
    parser = make_parser()
    arguments = parser.parse_args()
    if arguments.serve:
        measure.serve(SERVED[arguments.serve]())
        return
    labels = arguments.shapes.split(",")
    unknown = [label for label in labels if label not in SHAPES]
    if unknown:
        parser.error(f"--shapes: got {unknown[0]!r}, expected some of {', '.join(SHAPES)}")
    cases = []
    for label in labels:
        for dropout in map(float, arguments.dropout.split(",")):
            cases.append(measure_case(label, dropout, arguments))
            if arguments.json:
                print(f"{label} with dropout {dropout:g}: done", file=sys.stderr, flush=True)
            else:
                print_case(cases[-1])
    if arguments.json:
        print(json.dumps(cases, indent=1))


if __name__ == "__main__":
    main()
