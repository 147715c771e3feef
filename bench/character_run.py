"""A whole run, from text to a trained model: flatstep's command line beside a PyTorch script.

    python bench/character_run.py FILES... [--preset char-cpu] [--steps N] [--json FILE]

Everyone trains the same GPT-2 on the same characters: the preset's shape, AdamW with decay on
matrices and embeddings, clipping at 1, cosine with warm-up, validation every 250 steps. PyTorch has
the batches, first weights and validation windows of flatstep, its fused AdamW, eager and compiled;
dropout masks would differ. One process each, one after the other, on as many threads. "whole" is
the process from start to end, with imports, reading, saving and compilation; "steps" the steps
alone, in PyTorch's case with their validations.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measure

import flatstep

CONTENDERS = ("flatstep", "torch eager", "torch compiled")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+")
    parser.add_argument("--preset", default="char-cpu")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", choices=CONTENDERS, action="append")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--torch", choices=("eager", "compiled"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.torch:
        print(json.dumps(train_with_torch(arguments)))
        return
    rows = [measured(name, arguments) for name in arguments.only or CONTENDERS]
    for row in rows:
        print(
            f"{row['contender']:15} whole {row['whole']:7.1f} s   steps {row['steps']:7.1f} s   "
            f"validation {row['val_loss']:.4f}   {row['whole'] / rows[0]['whole']:.2f} x"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))


def measured(name, arguments):
    """One contender's process: its whole duration, that of its steps and its last validation."""
    environment = os.environ | measure.WARM_MALLOC | {"OMP_NUM_THREADS": str(arguments.threads)}
    began = time.perf_counter()
    if name == "flatstep":
        result = train_with_flatstep(arguments, environment)
    else:
        command = [sys.executable, *sys.argv, "--torch", name.split()[1]]
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
        result = json.loads(done.stdout)
    return {"contender": name, "whole": time.perf_counter() - began} | result


def train_with_flatstep(arguments, environment):
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder, "run")
        command = [sys.executable, "-m", "flatstep", "train", *arguments.files, "--out", run]
        command += ["--preset", arguments.preset, "--no-plot", "--quiet"]
        command += ["--steps", str(arguments.steps)] if arguments.steps else []
        subprocess.run(command, env=environment, check=True)
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        state = json.loads((run / f"checkpoints/step-{len(lines)}/state.json").read_text())
    return {"steps": state["seconds"], "val_loss": lines[-1]["val_loss"]}


def train_with_torch(arguments):
    import torch
    import torch_gpt

    from flatstep.data.batches import Batches, evaluation_batches
    from flatstep.data.corpus import load_corpus
    from flatstep.training.config import make_config
    from flatstep.training.config_file import combine
    from flatstep.training.parts import make_schedule, model_shape

    typed = {"steps": arguments.steps} if arguments.steps else {}
    config = make_config(combine(typed, preset=arguments.preset)[0])
    torch.manual_seed(config.seed)
    torch.set_num_threads(arguments.threads)
    corpus = load_corpus(arguments.files, config)
    shape = model_shape(config, corpus.vocabulary.size)
    twin = torch_gpt.torch_twin(flatstep.GPT(shape, seed=config.seed))
    optimizer = torch_gpt.make_optimizer(
        twin, config.lr, (config.beta1, config.beta2), config.weight_decay
    )
    forward = torch.compile(twin) if arguments.torch == "compiled" else twin
    schedule = make_schedule(config)
    windows = {"block_size": config.block_size, "batch_size": config.batch_size}
    batches = Batches(corpus.train, seed=config.seed, **windows)

    def validate():
        twin.eval()
        total, count = 0.0, 0
        with torch.no_grad():
            for batch in evaluation_batches(
                corpus.validation, max_tokens=config.eval_tokens, **windows
            ):
                tokens, targets = (torch.from_numpy(part).long() for part in batch)
                total += forward(tokens, targets).item() * targets.numel()
                count += targets.numel()
        twin.train()
        return total / count

    began = time.perf_counter()
    for step in range(config.steps):
        tokens, targets = (torch.from_numpy(part).long() for part in batches.batch(step))
        for group in optimizer.param_groups:
            group["lr"] = schedule(step)
        optimizer.zero_grad(set_to_none=True)
        loss = forward(tokens, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), config.max_norm)
        optimizer.step()
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"step {step}: loss {loss.item()}")
        if (step + 1) % config.eval_every == 0 or step + 1 == config.steps:
            val_loss = validate()
    return {"steps": time.perf_counter() - began, "val_loss": val_loss}


if __name__ == "__main__":
    main()
