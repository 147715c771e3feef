"""`flatstep sample`: text from a trained model."""

import math

from ..errors import InputError
from . import add_command, add_model

EXAMPLES = """examples:
  flatstep sample runs/001 --prompt 'def main(' --tokens 500
  flatstep sample runs/001 --temperature 0.5 --seed 7
  flatstep sample runs/001 --temperature 1 --top-p 0.9 --checkpoint last
  flatstep sample gpt2/ --prompt 'Once' --stop '<|endoftext|>'  # a Hugging Face folder
  flatstep sample runs/001 --prompt 'def ' --stop ':'  # up to the first colon that is made up

The text appears as it is made."""


def add(commands):
    """Adds the command's parser."""
    summary = "Print text that a run's model makes up."
    parser = add_command(commands, "sample", run, summary, EXAMPLES)
    add_model(parser)
    parser.add_argument(
        "--prompt",
        default="",
        help="how the text begins; token numbers for a model of ids [a new text or line]",
    )
    parser.add_argument(
        "--tokens", type=int, default=400, metavar="N", help="how many to add to the prompt [400]"
    )
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="below 1 safer, above 1 wilder [0.8]"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest [all]")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="only the likeliest, up to probability P [all]"
    )
    stop = parser.add_mutually_exclusive_group()
    stop.add_argument(
        "--stop", metavar="TEXT", help="end with this text, one token of the vocabulary [none]"
    )
    stop.add_argument(
        "--stop-token", type=int, metavar="ID", help="end with this token, by its number [none]"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another text [0]")


def run(arguments):
    """Prints the text piece by piece."""
    from ..data.vocabulary import IdVocabulary
    from ..training.model_folder import load_model
    from ..training.sampling import stream_text

    _check_sampling(arguments)
    model, vocabulary, _ = load_model(arguments.folder, arguments.checkpoint, drop_padding=True)
    vocabulary = vocabulary or IdVocabulary(model.config.vocab_size)
    for piece in stream_text(
        model,
        vocabulary,
        arguments.prompt.encode(errors="surrogateescape"),
        arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
        stop_token=_stop_token(arguments, vocabulary, model.config.vocab_size),
    ):
        print(piece, end="", flush=True)
    print()
    return 0


def _stop_token(arguments, vocabulary, vocab_size):
    from ..training.sampling import stop_token_of

    if arguments.stop is not None:
        return stop_token_of(vocabulary, arguments.stop.encode(errors="surrogateescape"))
    token = arguments.stop_token
    if token is not None and not 0 <= token < vocab_size:
        raise InputError(f"--stop-token must be from 0 to {vocab_size - 1:,}, got {token}")
    return token


def _check_sampling(arguments):
    if not 0 <= arguments.temperature < math.inf:
        raise InputError(
            f"--temperature must be 0 or a finite number above, got {arguments.temperature}"
        )
    limits = [
        ("--tokens", arguments.tokens, 1, 2**31 - 1),
        ("--top-p", 1.0 if arguments.top_p is None else arguments.top_p, 0, 1),
        ("--top-k", 1 if arguments.top_k is None else arguments.top_k, 1, 2**31 - 1),
        ("--seed", arguments.seed, 0, 2**63 - 1),
    ]
    for name, value, least, most in limits:
        if not least <= value <= most:
            raise InputError(f"{name} must be from {least} to {most:,}, got {value}")
