"""Python's share of a training step: the time of the default run's steps outside compiled calls.

    python bench/python_share.py [--steps 300]

The compiled objects of the model and the optimizer are wrapped by a clock; all that is left of a
step (batches, schedule, checks of arguments, results) is Python.
"""

import argparse
import time

from flatstep.data.corpus import load_corpus
from flatstep.training.config import make_config
from flatstep.training.trainer import Trainer


class Clocked:
    """Passes every call on to a compiled object and adds up the time inside."""

    seconds = 0.0

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        attribute = getattr(self._inner, name)
        if not callable(attribute):
            return attribute

        def call(*arguments, **options):
            began = time.perf_counter()
            result = attribute(*arguments, **options)
            Clocked.seconds += time.perf_counter() - began
            return result

        return call


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    steps = parser.parse_args().steps
    config = make_config({})
    corpus = load_corpus((), block_size=config.block_size, val_fraction=config.val_fraction)
    trainer = Trainer(config, corpus)
    for _ in range(20):
        trainer.try_step()
    trainer.model._core = Clocked(trainer.model._core)
    trainer.optimizer._core = Clocked(trainer.optimizer._core)
    began = time.perf_counter()
    for _ in range(steps):
        trainer.try_step()
    seconds = time.perf_counter() - began
    python = seconds - Clocked.seconds
    print(
        f"step {seconds / steps * 1e3:.2f} ms, Python {python / steps * 1e3:.3f} ms, "
        f"{python / seconds:.2%}"
    )


if __name__ == "__main__":
    main()
