"""`flatstep plan`: the memory of a training run, as a table or as JSON."""

import json

from .._memory import available_memory
from ..errors import InputError
from . import add_command, add_shape, shape_of

EXAMPLES = """examples:
  flatstep plan --n-layer 6 --n-head 6 --n-embd 384 --block-size 256 --batch-size 8
  flatstep plan --preset gpt2 --vocab-size 50257 --batch-size 4 --recompute --optimizer-state 8bit

Options that `flatstep train` has mean the same here; nothing is allocated."""
# Options of `flatstep train` on which memory depends.
OPTIONS = (
    "device", "threads", "n_layer", "n_head", "n_embd", "block_size", "batch_size", "grad_accum",
    "recompute", "dropout", "optimizer", "optimizer_state", "beta1",
)  # fmt: skip


def add(commands):
    """Adds the command's parser."""
    summary = "Show the memory that a training run would take, by part."
    parser = add_command(commands, "plan", run, summary, EXAMPLES)
    add_shape(parser, OPTIONS)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments):
    """Prints the plan. Raises InputError."""
    from ..training.memory import plan_run
    from ..training.parts import model_shape

    config, vocab_size = shape_of(arguments, OPTIONS)
    if config.device != "cpu":
        raise InputError(f"--device {config.device}: only cpu can be planned")
    plan = plan_run(config, model_shape(config, vocab_size))
    available = available_memory()
    largest = None if available is None else plan.largest_batch(available)
    if arguments.json:
        result = {"bytes": plan.parts, "total": plan.total, "available": available}
        print(json.dumps(result | {"largest_batch": largest}, indent=2))
    else:
        print("\n".join(_lines(plan, available, largest)))
    return 0


def _lines(plan, available, largest):
    from ..training.memory import WORDS

    shape = plan.config
    options = [plan.optimizer, f"{plan.optimizer_state} state"]
    options += ["recomputing"] if plan.recompute else []
    lines = [
        f"model      {shape.n_layer} layers, {shape.n_head} heads, {shape.n_embd} wide, context "
        f"{shape.block_size}, vocabulary {shape.vocab_size}: {plan.params // 4:,} parameters",
        f"batch      {plan.batch} x {plan.length} tokens, {', '.join(options)}",
    ]
    rows = [(WORDS[name], size) for name, size in plan.parts.items()]
    lines += [f"{size:>18,} bytes  {words}" for words, size in rows]
    lines.append(f"{plan.total:>18,} bytes  in all, {plan.total / 1e9:.2f} GB; Python on top")
    if available is None:
        return lines
    fits = f"a batch of up to {largest:,} fits" if largest else "no batch fits"
    return [*lines, f"{available:>18,} bytes  to be had: {fits}"]
