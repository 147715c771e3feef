"""`flatstep train`: a new run, or on with one."""

from ..errors import InputError
from . import add_command, add_options, given_options

EXAMPLES = """examples:
  flatstep train                          Python's own library, a small model, a minute or two
  flatstep train notes.txt --steps 5000   a text file
  flatstep train docs/ --out runs/docs --n-layer 6 --n-head 6 --n-embd 384 --block-size 256
  flatstep train a.jsonl --val b.jsonl --vocab char   lines of JSON, text to validate of its own
  flatstep train fineweb_*.bin --vocab-size 50257     tokens of llm.c or nanoGPT, where they lie
  flatstep train --resume runs/docs       go on where a run stopped

Ctrl-C finishes the step and saves a checkpoint (exit code 130; SIGTERM: 143)."""


def add(commands):
    """Adds the command's parser."""
    parser = add_command(commands, "train", run, "Train a model on text.", EXAMPLES)
    parser.add_argument(
        "files",
        nargs="*",
        metavar="FILES",
        help="text files and folders, .jsonl, .bin, "
        "or a folder from flatstep prepare [Python's own library]",
    )
    parser.add_argument(
        "--val", nargs="+", default=[], metavar="FILES",
        help="what to validate with [a part of FILES]",
    )  # fmt: skip
    parser.add_argument("--out", metavar="RUN", help="folder of the new run [the next runs/NNN]")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run")
    add_options(parser)
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")


def run(arguments):
    """Trains; the exit code tells whether a signal stopped it."""
    from ..training import loop  # tqdm and the data code, which no other command needs

    given = given_options(arguments)
    if arguments.resume is None:
        outcome = loop.start(
            given,
            arguments.files,
            out=arguments.out,
            quiet=arguments.quiet,
            val_files=arguments.val,
        )
    elif arguments.out is not None:
        raise InputError("--out and --resume cannot go together: a run goes on in its own folder")
    else:
        outcome = loop.resume(
            arguments.resume,
            given,
            arguments.files,
            quiet=arguments.quiet,
            val_files=arguments.val,
        )
    return 0 if outcome.signal is None else 128 + outcome.signal
