"""`flatstep eval`: how well a model predicts a text."""

import json
import math
import sys
import time

from ..errors import InputError
from ..training.options import MOST_THREADS
from . import add_command, add_model, path_name

EXAMPLES = """examples:
  flatstep eval runs/001                       # the run's validation text, all of it
  flatstep eval runs/001 other.txt docs/ --json
  flatstep eval gpt2/ book.txt --stride 512    # a Hugging Face folder, more context a token

Each token but the first is predicted once, from the tokens before it in its window. Windows are as
long as the model's context and lie side by side; with --stride N they begin N tokens apart, and
each predicts only what earlier ones have not: more context, but slower."""


def add(commands):
    """Adds the command's parser."""
    summary = "Measure loss, perplexity and bits per byte of a model on text."
    parser = add_command(commands, "eval", run, summary, EXAMPLES)
    add_model(parser)
    parser.add_argument(
        "files",
        nargs="*",
        type=path_name,
        metavar="FILES",
        help="the text to measure on, all of it [the run's validation text]",
    )
    parser.add_argument(
        "--stride", type=int, metavar="N", help="tokens between windows [the model's context]"
    )
    parser.add_argument(
        "--batch-size", type=int, metavar="N", help="windows at once [the run's, else 8]"
    )
    parser.add_argument(
        "--text-field", metavar="KEY", help="the key of .jsonl files [the run's, else text]"
    )
    parser.add_argument(
        "--threads", type=int, default=0, metavar="N", help="CPU threads, 0 for all [0]"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments):
    """Prints the figures. Raises InputError."""
    import flatstep

    from ..training.evaluation import TextBatches, evaluate
    from ..training.evaluation_text import text_to_evaluate
    from ..training.model_folder import load_model

    _check(arguments)
    if arguments.threads:
        flatstep.set_num_threads(arguments.threads)
    model, vocabulary, source = load_model(arguments.folder, arguments.checkpoint)
    text = text_to_evaluate(
        source, vocabulary, model.config.vocab_size, arguments.files, arguments.text_field
    )
    length = model.config.block_size
    batches = TextBatches(
        text.tokens,
        length=length,
        stride=length if arguments.stride is None else arguments.stride,
        batch_size=arguments.batch_size or text.batch_size,
    )
    began = time.perf_counter()
    result = evaluate(model, _bar(batches), text.vocabulary.byte_lengths())
    rate = result.tokens / (time.perf_counter() - began)
    if arguments.json:
        print(json.dumps(_object(result, rate, source, text), indent=2))
    else:
        print("\n".join(_lines(result, rate, source, text)))
    return 0


def _check(arguments):
    for name, value, least, most in (
        ("--batch-size", arguments.batch_size, 1, 2**31 - 1),
        ("--threads", arguments.threads, 0, MOST_THREADS),
    ):
        if value is not None and not least <= value <= most:
            raise InputError(f"{name} must be from {least} to {most:,}, got {value}")


def _bar(batches):
    from tqdm import tqdm

    return tqdm(batches, unit="batch", leave=False, disable=not sys.stderr.isatty())


def _object(result, rate, source, text):
    return {
        "model": str(source.path),
        "step": source.step,
        "text": text.words,
        "loss": result.loss,
        "perplexity": _finite(result.perplexity),
        "bits_per_byte": _finite(result.bits_per_byte),
        "tokens": result.tokens,
        "bytes": result.bytes,
        "tokens_per_second": round(rate, 1),
    }


def _finite(value):
    # JSON has no infinity.
    return value if value is not None and math.isfinite(value) else None


def _lines(result, rate, source, text):
    size = "" if result.bytes is None else f" of {result.bytes:,} bytes"
    lines = [
        f"model          {source}",
        f"text           {text.words}",
        f"tokens         {result.tokens:,}{size}, {rate:,.0f} tokens/s",
        f"loss           {result.loss:.4f} nats per token",
        f"perplexity     {result.perplexity:.4f}",
    ]
    if result.bits_per_byte is not None:
        lines.append(f"bits per byte  {result.bits_per_byte:.4f}")
    return lines
