"""`flatstep bench`: how fast this machine does the parts of a training step, and the whole."""

import json
import statistics
import time

import flatstep

from .._memory import available_memory
from ..errors import InputError
from . import add_command, add_shape, shape_of

EXAMPLES = """examples:
  flatstep bench
  flatstep bench --preset char-cpu
  flatstep bench --n-layer 6 --n-head 6 --n-embd 384 --block-size 256 --batch-size 8 --dropout 0.1
  flatstep bench --vocab-size 50257 --preset gpt2 --batch-size 1 --seconds 20 --json

"of roof" compares bytes a second with those of `a *= c` over a large array, on as many threads, in
the same run. Other libraries are compared in the folder bench/ of the source."""
# Options of `flatstep train` on which a step's time depends.
OPTIONS = (
    "threads", "n_layer", "n_head", "n_embd", "block_size", "dropout", "batch_size", "recompute",
    "optimizer", "optimizer_state", "label_smoothing",
)  # fmt: skip
ROWS, CLASSES, PARAMETERS = 512, 50257, 16_000_000


def add(commands):
    """Adds the command's parser."""
    summary = "Measure the training step on this machine."
    parser = add_command(commands, "bench", run, summary, EXAMPLES)
    parser.add_argument(
        "--seconds", type=float, default=2.0, metavar="S", help="for each measurement [2]"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_shape(parser, OPTIONS)


def run(arguments):
    """Prints the figures. Raises InputError."""
    if not 0 < arguments.seconds < 1e6:
        raise InputError(f"--seconds must be above 0, got {arguments.seconds}")
    config, vocab_size = shape_of(arguments, OPTIONS)
    result = measure(config, vocab_size, arguments.seconds)
    print(json.dumps(result, indent=2) if arguments.json else "\n".join(_lines(result)))
    return 0


def measure(config, vocab_size, seconds):
    """All figures as one dict. Raises InputError if they would not fit in memory."""
    _check_memory(config, vocab_size)
    roof = _roof(seconds)
    info = flatstep.info()
    return {
        "flatstep": info["version"],
        "isa": info["isa"],
        "threads": flatstep.get_num_threads(),
        "roof_bytes_per_second": roof,
        "cross_entropy": _cross_entropy(seconds, roof),
        "optimizer": _optimizer(config, seconds, roof),
        "step": _step(config, vocab_size, seconds),
    }


def _check_memory(config, vocab_size):
    from ..training.memory import bytes_in_words, require_memory
    from ..training.parts import model_shape

    require_memory(config, model_shape(config, vocab_size))
    needed, available = 16 * PARAMETERS, available_memory()
    if available is not None and needed > available:
        raise InputError(
            f"the measurement takes {bytes_in_words(needed)}, and {bytes_in_words(available)} are "
            "available"
        )


def median_seconds(call, seconds):
    """Median duration of `call` over about so many seconds, three calls at least, after a first
    that is not counted."""
    call()
    durations = []
    while len(durations) < 3 or sum(durations) < seconds:
        began = time.perf_counter()
        call()
        durations.append(time.perf_counter() - began)
    return statistics.median(durations)


def _roof(seconds):
    """Bytes a second of `a *= c` in place: each element is read and written."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    threads = flatstep.get_num_threads()
    array = np.ones(4 * PARAMETERS, np.float32)
    parts = np.array_split(array, threads)
    with ThreadPoolExecutor(threads) as pool:

        def scale():
            list(pool.map(lambda part: np.multiply(part, np.float32(1), out=part), parts))

        return 2 * array.nbytes / median_seconds(scale, seconds)


def _cross_entropy(seconds, roof):
    """Loss and gradient in place, float32, which reads and writes each logit once."""
    import numpy as np

    rng = np.random.default_rng(0)
    logits = rng.standard_normal((ROWS, CLASSES), np.float32)
    targets = rng.integers(0, CLASSES, ROWS)
    duration = median_seconds(
        # The gradient of a gradient is as good an input: no element is special.
        lambda: flatstep.cross_entropy(logits, targets, grad=logits),
        seconds,
    )
    return _memory_bound([ROWS, CLASSES], duration, 2 * logits.nbytes, roof)


def _optimizer(config, seconds, roof):
    """Norm, clipping, update and zeroing of one flat float32 buffer."""
    import numpy as np

    from ..training.parts import make_flat_optimizer

    params, grads = (np.full(PARAMETERS, 0.5, np.float32) for _ in range(2))
    optimizer = make_flat_optimizer(config, params)
    duration = median_seconds(lambda: optimizer.step(grads, max_norm=1.0), seconds)
    # Gradients twice; parameters and moments are read and written.
    moments = sum(array.nbytes for part in optimizer._state_views()["state"].values()
                  for array in part.values())  # fmt: skip
    moved = 2 * grads.nbytes + 2 * params.nbytes + 2 * moments
    return {"kind": config.optimizer} | _memory_bound([PARAMETERS], duration, moved, roof)


def _memory_bound(shape, duration, moved, roof):
    rate = moved / duration
    return {
        "shape": shape, "seconds": duration, "bytes_per_second": rate, "of_roof": rate / roof,
    }  # fmt: skip


def _step(config, vocab_size, seconds):
    """Forward, backward and update of the model on random tokens."""
    import numpy as np

    from ..training.parts import make_optimizer, model_shape

    model = flatstep.GPT(model_shape(config, vocab_size), recompute=config.recompute)
    optimizer = make_optimizer(config, model)
    shape = (config.batch_size, config.block_size)
    tokens, targets = np.random.default_rng(0).integers(0, vocab_size, (2, *shape), np.int32)

    def step():
        model.forward_backward(tokens, targets, label_smoothing=config.label_smoothing)
        optimizer.step(model.grads, max_norm=1.0, partials=model.grad_partials)

    duration = median_seconds(step, seconds)
    flops = tokens.size * flops_per_token(model)
    return {
        "layers": config.n_layer, "heads": config.n_head, "width": config.n_embd,
        "vocabulary": vocab_size, "parameters": model.num_params, "batch": list(shape),
        "dropout": config.dropout, "seconds": duration,
        "tokens_per_second": tokens.size / duration, "flops_per_second": flops / duration,
    }  # fmt: skip


def flops_per_token(model):
    """Of a forward and backward pass: 6 N + 12 L C T, N without the position embedding, as nanoGPT
    and PaLM (Chowdhery et al. 2022, appendix B) count, attention unmasked."""
    shape = model.config
    counted = model.num_params - shape.block_size * shape.n_embd
    return 6 * counted + 12 * shape.n_layer * shape.n_embd * shape.block_size


def _lines(result):
    loss, update, step = result["cross_entropy"], result["optimizer"], result["step"]
    rows, classes = loss["shape"]
    batch, length = step["batch"]
    return [
        f"flatstep   {result['flatstep']}, {result['isa']}, {result['threads']} threads",
        f"roof       {result['roof_bytes_per_second'] / 1e9:9.1f} GB/s   a *= c in place",
        f"loss       {_rate(loss)}   cross-entropy and gradient, float32 {rows:,} x {classes:,}",
        f"optimizer  {_rate(update)}   norm, clip and {update['kind']} of {PARAMETERS:,}",
        f"step       {step['seconds'] * 1e3:9.2f} ms     {step['layers']} layers, {step['heads']} "
        f"heads, {step['width']} wide, {batch} x {length} tokens of {step['vocabulary']:,}, "
        f"dropout {step['dropout']:g}",
        f"           {step['tokens_per_second']:9,.0f} tokens/s",
        f"           {step['flops_per_second'] / 1e9:9.1f} GFLOP/s of 6 N + 12 L C T a token",
    ]


def _rate(part):
    return f"{part['bytes_per_second'] / 1e9:9.1f} GB/s  {part['of_roof']:4.0%} of roof"
