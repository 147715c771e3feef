"""Small runs for the tests of training: their text, options and what they leave behind."""

import json
import os
import signal

from safetensors.numpy import load_file

from flatstep.training.checkpoint import list_checkpoints
from flatstep.training.trainer import Trainer

# 60 x 31 bytes: with TINY, at 4 windows of 16 a step, an epoch lasts 25 steps.
SAMPLE = "".join(f"line {k:3d} of a small sample.\n" for k in range(60))
TINY = {
    "steps": 12, "n_layer": 1, "n_head": 2, "n_embd": 16, "block_size": 16, "batch_size": 4,
    "dropout": 0.1, "eval_every": 5, "save_every": 4, "keep_best": False, "plot": False,
}  # fmt: skip


def bits(run):
    """The name of a run's newest checkpoint; every byte of its parameters and optimizer state."""
    newest = list_checkpoints(run)[0]
    tensors = load_file(newest / "model.safetensors") | load_file(newest / "optimizer.safetensors")
    return newest.name, {name: tensor.tobytes() for name, tensor in tensors.items()}


def metrics(run):
    """The lines of metrics.jsonl without the timings."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "tokens_per_second"} for line in lines]


def stop_at(monkeypatch, step, number=signal.SIGINT):
    """Sends this process a signal in the middle of the given step."""
    real = Trainer.try_step

    def stopping(self):
        if self.step == step - 1:
            os.kill(os.getpid(), number)
        return real(self)

    monkeypatch.setattr(Trainer, "try_step", stopping)
