"""`flatstep train`: a new run, or on with one."""

from ..errors import InputError
from ..training.presets import PRESETS
from . import add_command, add_options, given_options, path_name

EXAMPLES = """examples:
  flatstep train                        # Python's own library, a small model, a minute or two
  flatstep train notes.txt --steps 5000  # a text file
  flatstep train docs/ --out runs/docs --n-layer 6 --n-head 6 --n-embd 384 --block-size 256
  flatstep train a.jsonl --val b.jsonl --vocab char  # lines of JSON, text to validate of its own
  flatstep train fineweb_*.bin --vocab-size 50257   # tokens of llm.c or nanoGPT, where they lie
  flatstep train --resume runs/docs     # go on where a run stopped
  flatstep train play.txt --preset char-cpu --steps 3000
  flatstep train --config my.toml --lr 1e-3  # a file of options; what is typed stands before it
  flatstep train notes.txt --init-from gpt2/ --preset finetune  # on with a Hugging Face GPT-2

Presets:
{presets}

A configuration file is TOML, one line for each option (n_layer = 6), and may have files = [...] and
preset = "..."; the config.toml of a run is one.
Ctrl-C finishes the pass and saves a checkpoint (exit code 130; SIGTERM: 143)."""


def add(commands):
    """Adds the command's parser."""
    presets = "\n".join(f"  {name:<12} {what}" for name, (what, _) in PRESETS.items())
    examples = EXAMPLES.format(presets=presets)
    parser = add_command(commands, "train", run, "Train a model on text.", examples)
    parser.add_argument(
        "files",
        nargs="*",
        type=path_name,
        metavar="FILES",
        help="text files and folders, .jsonl, .bin, "
        "or a folder from flatstep prepare [Python's own library]",
    )
    parser.add_argument(
        "--val", nargs="+", default=[], type=path_name, metavar="FILES",
        help="what to validate with [a part of FILES]",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=path_name, metavar="RUN", help="folder of the new run [the next runs/NNN]"
    )
    parser.add_argument("--resume", type=path_name, metavar="RUN", help="go on with this run")
    parser.add_argument("--config", type=path_name, metavar="FILE", help="options from a TOML file")
    parser.add_argument(
        "--preset", metavar="NAME", help=f"a known-good shape: {', '.join(PRESETS)}"
    )
    add_options(parser)
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")


def run(arguments):
    """Trains; the exit code tells whether a signal stopped it."""
    from ..training import loop  # tqdm and the data code, which no other command needs
    from ..training.config_file import combine

    if arguments.resume is not None:
        return _resume(loop, arguments)
    typed = given_options(arguments)
    given, files = combine(typed, arguments.config, arguments.preset, arguments.files)
    outcome = loop.start(
        given,
        files,
        out=arguments.out,
        quiet=arguments.quiet,
        val_files=arguments.val,
    )
    return _exit_code(outcome)


def _resume(loop, arguments):
    for name in ("out", "config", "preset"):
        if getattr(arguments, name) is not None:
            raise InputError(
                f"--{name} and --resume cannot go together: a run goes on in its own folder, with "
                "its own options"
            )
    given = given_options(arguments)
    outcome = loop.resume(
        arguments.resume,
        given,
        arguments.files,
        quiet=arguments.quiet,
        val_files=arguments.val,
    )
    return _exit_code(outcome)


def _exit_code(outcome):
    return 0 if outcome.signal is None else 128 + outcome.signal
