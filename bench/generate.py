"""Tokens a second of generation, beside the time that reading the parameters once takes.

A new token within the block needs every parameter once, whatever the batch: the norm of the same
buffer, which does nothing but read, is the roof. Beyond the block a token costs a whole pass.

    python bench/generate.py [--threads 2] [--rounds 5]
"""

import argparse
import statistics

import numpy as np
from measure import seconds_of

import flatstep as fs

# vocabulary, block, layers, heads, width; prompt, new tokens
SHAPES = {
    "6 layers, 384 wide": ((256, 256, 6, 6, 384), 16, 200),
    "GPT-2 124M": ((50257, 1024, 12, 12, 768), 16, 48),
    "GPT-2 124M, late": ((50257, 1024, 12, 12, 768), 960, 48),
}
BATCHES = (1, 2, 4, 8, 16)


def measure(shape, prompt, count, rounds):
    """Prints a row for each batch: medians of rounds in which all take turns."""
    model = fs.GPT(fs.GPTConfig(*shape), seed=0)
    rng = np.random.default_rng(0)
    prompts = {b: rng.integers(0, shape[0], (b, prompt)) for b in BATCHES}
    turns = {"read": lambda: fs.grad_norm([model.params])}
    for b in BATCHES:
        # Two lengths, whose difference leaves the pass over the prompt out.
        turns[b, "long"] = lambda b=b: model.generate(prompts[b], count)
        turns[b, "short"] = lambda b=b: model.generate(prompts[b], 1)
    seconds = {name: [] for name in turns}
    for _ in range(rounds + 1):
        for name, call in turns.items():
            seconds[name].append(seconds_of(call))
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    print(f"  plain read of {model.params.nbytes / 1e6:.0f} MB: {median['read'] * 1e3:.2f} ms")
    for b in BATCHES:
        each = (median[b, "long"] - median[b, "short"]) / (count - 1)
        print(
            f"  batch {b:2d}: {b / each:9.1f} tokens/s, {each * 1e3:7.2f} ms a step, "
            f"{each / median['read']:5.2f} reads; prompt {median[b, 'short'] * 1e3:.1f} ms"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=fs.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    fs.set_num_threads(arguments.threads)
    info = fs.info()
    print(f"flatstep {info['version']}, {info['isa']}, {arguments.threads} threads")
    for name, (shape, prompt, count) in SHAPES.items():
        print(f"{name}, prompt of {prompt}, {count} new tokens")
        measure(shape, prompt, count, arguments.rounds)


if __name__ == "__main__":
    main()
