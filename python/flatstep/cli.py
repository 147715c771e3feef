"""The command line: `flatstep train`, `flatstep sample`, `flatstep plan`, `flatstep info`.

Exit codes: 0; 1 the run failed; 2 the call was wrong (options, files, run folder);
130 and 143 stopped by SIGINT and SIGTERM, after saving a checkpoint.
"""

import argparse
import json
import os
import sys
import traceback
from dataclasses import fields
from pathlib import Path

import flatstep

from . import plan_command
from .errors import InputError
from .run_config import DERIVED, TrainConfig, make_config, option_name

TRAIN_EXAMPLES = """examples:
  flatstep train                          Python's own library, a small model, a minute or two
  flatstep train notes.txt --steps 5000   a text file
  flatstep train docs/ --out runs/docs --n-layer 6 --n-head 6 --n-embd 384 --block-size 256
  flatstep train --resume runs/docs       go on where a run stopped

Ctrl-C finishes the step and saves a checkpoint (exit code 130; SIGTERM: 143)."""
SAMPLE_EXAMPLES = """examples:
  flatstep sample runs/001 --prompt 'def main(' --tokens 500
  flatstep sample runs/001 --temperature 0.5 --seed 7
  flatstep sample runs/001 --temperature 1 --top-p 0.9

The text appears as it is made."""
PLAN_EXAMPLES = """examples:
  flatstep plan --n-layer 6 --n-head 6 --n-embd 384 --block-size 256 --batch-size 8
  flatstep plan --vocab-size 50257 --n-layer 12 --n-head 12 --n-embd 768 --block-size 1024 \\
      --batch-size 4 --recompute --optimizer-state 8bit   GPT-2 124M

Options that `flatstep train` has mean the same here; nothing is allocated."""
INFO_EXAMPLES = """examples:
  flatstep info
  flatstep info --json"""
EXAMPLES = """examples:
  flatstep train                  train a small model on Python's own library
  flatstep sample runs/001        text from that run
  flatstep plan --batch-size 32   the memory that training would take
  flatstep info                   what this build can do
  cmake -Dflatstep_ROOT="$(flatstep --cmake-root)" ..

Exit codes: 0; 1 the run failed; 2 the call was wrong; 130, 143 stopped by SIGINT, SIGTERM."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def error(self, message):
        _complain(f"{message} (see {self.prog} --help)")
        raise SystemExit(2)


class _PrintCMakeRoot(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        print(Path(flatstep.__file__).resolve().parent)
        parser.exit()


def _complain(message):
    # An error is one line, whatever the text of an exception was.
    print("flatstep: error: " + " ".join(str(message).split()), file=sys.stderr)


def make_parser():
    """The argparse parser of the whole command line."""
    parser = _Parser(
        prog="flatstep",
        description="Trains small GPT models: a fast, exact training step in one small library.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--version", action="version", version=f"flatstep {flatstep.__version__}")
    parser.add_argument(
        "--cmake-root", action=_PrintCMakeRoot, nargs=0, help="print the folder for find_package"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_train(commands)
    _add_sample(commands)
    _add_plan(commands)
    _add_info(commands)
    return parser


def _add_command(commands, name, run, summary, examples):
    parser = commands.add_parser(name, help=summary, description=summary, epilog=examples)
    parser.set_defaults(run=run)
    # SUPPRESS: `flatstep --debug train` must not be undone by the default of `train`.
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback"
    )
    return parser


def _add_train(commands):
    parser = _add_command(commands, "train", _train, "Train a model on text.", TRAIN_EXAMPLES)
    parser.add_argument(
        "files", nargs="*", metavar="FILES", help="text files and folders [Python's own library]"
    )
    parser.add_argument("--out", metavar="RUN", help="folder of the new run [the next runs/NNN]")
    parser.add_argument("--resume", metavar="RUN", help="go on with this run")
    for item in fields(TrainConfig):
        _add_option(parser, item)
    parser.add_argument("--quiet", action="store_true", help="show warnings and errors only")


def _add_option(parser, item):
    """One field of TrainConfig."""
    default = "" if item.name in DERIVED else f" [{item.default}]"
    # Only what was typed arrives, so that --resume can tell it from a default.
    common = {"default": argparse.SUPPRESS, "help": item.metadata["help"] + default}
    if item.type is bool:
        common["help"] = item.metadata["help"]
        parser.add_argument(option_name(item.name), action=argparse.BooleanOptionalAction, **common)
        return
    parser.add_argument(
        option_name(item.name),
        type=item.type,
        choices=item.metadata.get("choices"),
        metavar=None if "choices" in item.metadata else item.type.__name__.upper(),
        **common,
    )


def _add_sample(commands):
    summary = "Print text that a run's model makes up."
    parser = _add_command(commands, "sample", _sample, summary, SAMPLE_EXAMPLES)
    parser.add_argument("folder", metavar="RUN", help="the folder of a run")
    parser.add_argument("--prompt", default="", help="how the text begins [a new line]")
    parser.add_argument("--tokens", type=int, default=400, metavar="N", help="how many [400]")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="below 1 safer, above 1 wilder [0.8]"
    )
    parser.add_argument("--top-k", type=int, metavar="K", help="only the K likeliest [all]")
    parser.add_argument(
        "--top-p", type=float, metavar="P", help="only the likeliest, up to probability P [all]"
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another text [0]")


def _add_plan(commands):
    summary = "Show the memory that a training run would take, by part."
    parser = _add_command(commands, "plan", _plan, summary, PLAN_EXAMPLES)
    parser.add_argument("--vocab-size", type=int, default=256, metavar="INT", help="tokens [256]")
    for item in fields(TrainConfig):
        if item.name in plan_command.OPTIONS:
            _add_option(parser, item)
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def _add_info(commands):
    summary = "Show version, instruction set, threads, BLAS and CUDA."
    parser = _add_command(commands, "info", _info, summary, INFO_EXAMPLES)
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def _train(arguments):
    from . import train  # tqdm and the data code, which no other command needs

    names = {item.name for item in fields(TrainConfig)}
    given = {name: value for name, value in vars(arguments).items() if name in names}
    if arguments.resume is None:
        outcome = train.start(given, arguments.files, out=arguments.out, quiet=arguments.quiet)
    elif arguments.out is not None:
        raise InputError("--out and --resume cannot go together: a run goes on in its own folder")
    else:
        outcome = train.resume(arguments.resume, given, arguments.files, quiet=arguments.quiet)
    return 0 if outcome.signal is None else 128 + outcome.signal


def _sample(arguments):
    from .sample import load_run, stream_text

    _check_sampling(arguments)
    for piece in stream_text(
        load_run(arguments.folder),
        arguments.prompt.encode(errors="surrogateescape"),
        arguments.tokens,
        temperature=arguments.temperature,
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        seed=arguments.seed,
    ):
        print(piece, end="", flush=True)
    print()
    return 0


def _check_sampling(arguments):
    limits = [
        ("--tokens", arguments.tokens, 1, 2**31 - 1),
        ("--temperature", arguments.temperature, 0.0, sys.float_info.max),
        ("--top-p", 1.0 if arguments.top_p is None else arguments.top_p, 0.0, 1.0),
        ("--top-k", 1 if arguments.top_k is None else arguments.top_k, 1, 2**31 - 1),
        ("--seed", arguments.seed, 0, 2**63 - 1),
    ]
    for name, value, least, most in limits:
        if not least <= value <= most:
            raise InputError(f"{name} must be from {least} to {most:g}, got {value}")


def _plan(arguments):
    names = {item.name for item in fields(TrainConfig)}
    config = make_config({k: v for k, v in vars(arguments).items() if k in names})
    plan_command.run(config, arguments.vocab_size, arguments.json)
    return 0


def _info(arguments):
    info = flatstep.info()
    if arguments.json:
        print(json.dumps(info, indent=2))
        return 0
    for name, text in _info_lines(info):
        print(f"{name:<9} {text}")
    return 0


def _info_lines(info):
    cuda = info["cuda"]
    devices = ", ".join(map(str, cuda["devices"])) or f"no device: {cuda['why_not']}"
    if not cuda["built"]:
        devices = f"not built: {cuda['why_not']}"
    available = ", ".join(info["isa_available"])
    return [
        ("flatstep", info["version"]),
        ("isa", f"{info['isa']} (of {available})"),
        ("threads", info["threads"]),
        ("openmp", "yes" if info["openmp"] else "no"),
        ("blas", info["blas"]),
        ("cuda", devices),
    ]


def main(arguments=None):
    """Runs one command and returns its exit code; arguments default to sys.argv[1:]."""
    arguments = make_parser().parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a sample may hold what no terminal can show
    try:
        code = arguments.run(arguments)
        sys.stdout.flush()  # here, where a reader that has gone is no error
        return code
    except KeyboardInterrupt:
        _complain("interrupted")
        return 130
    except BrokenPipeError:
        # The reader has gone (`| head`); Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if arguments.debug:
            traceback.print_exc()
        _complain(_describe(error))
        return 2 if isinstance(error, InputError) else 1


def _describe(error):
    if isinstance(error, MemoryError):
        return "out of memory: a smaller model or --batch-size, or --recompute, is needed"
    known = (InputError, OSError, RuntimeError, ValueError)
    text = str(error) if isinstance(error, known) else f"{type(error).__name__}: {error}"
    return text if str(error) else type(error).__name__
