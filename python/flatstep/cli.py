"""The command line: its parser, exit codes and errors; the commands are in `commands/`.

Exit codes: 0; 1 the run failed; 2 the call was wrong (options, files, run folder);
130 and 143 stopped by SIGINT and SIGTERM, after saving a checkpoint.
"""

import argparse
import contextlib
import errno
import os
import re
import sys
import traceback
from pathlib import Path

import flatstep

from . import _interrupt
from ._stdout import StandardOutput
from .commands import bench, export, info, plan, plot, prepare, sample, train
from .commands import eval as evaluate
from .errors import InputError
from .training.config import nearest

COMMANDS = (train, prepare, sample, evaluate, export, plot, plan, bench, info)
_WRONG_PATH = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
    errno.ELOOP,
}  # fmt: skip
EXAMPLES = """examples:
  flatstep train                # train a small model on Python's own library
  flatstep prepare docs/ --out data/docs --vocab bpe  # tokens, made once for many runs
  flatstep sample runs/001      # text from that run
  flatstep eval runs/001        # its loss, perplexity and bits per byte
  flatstep export runs/001 --out my-model  # for transformers, or llama.cpp
  flatstep plot runs/001        # its loss as a picture
  flatstep plan --batch-size 32  # the memory that training would take
  flatstep bench                # how fast this machine trains
  flatstep info                 # what this build can do
  cmake -Dflatstep_ROOT="$(flatstep --cmake-root)" ..

Exit codes: 0; 1 the run failed; 2 the call was wrong; 130, 143 stopped by SIGINT, SIGTERM."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options):
        super().__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **options
        )

    def error(self, message):
        _complain(f"{message}{self._hint(message)} (see {self.prog} --help)")
        raise SystemExit(2)

    def _hint(self, message):
        """What was perhaps meant by an unknown option, command or value."""
        if found := re.match(r"unrecognized arguments: .*?(--[\w-]+)", message):
            return nearest(found[1], self._options())
        if found := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            return nearest(found[1], re.findall(r"[\w-]+", found[2]))
        return ""

    def _options(self):
        """The options of this parser and of all commands below it."""
        found = set()
        for action in self._actions:
            found.update(action.option_strings)
            if isinstance(action, argparse._SubParsersAction):
                found.update(*(parser._options() for parser in action.choices.values()))
        return found


class _PrintCMakeRoot(argparse.Action):
    def __call__(self, parser, namespace, values, option_string=None):
        print(Path(flatstep.__file__).resolve().parent)
        parser.exit()


def _complain(message):
    # An error is one line, whatever the text of an exception was.
    with contextlib.suppress(OSError):  # nobody can read it; the exit code tells
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
    for command in COMMANDS:
        command.add(commands)
    return parser


def _parse(parser, arguments):
    try:
        parsed, extras = parser.parse_known_args(arguments)
    except SystemExit:
        sys.stdout.flush()  # of --help, of which argparse passes errors over
        raise
    if extras:  # they were left over by the command, whose help and options count
        commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        commands.choices[parsed.command].error(f"unrecognized arguments: {' '.join(extras)}")
    return parsed


def main(arguments=None):
    """Runs one command and returns its exit code; arguments default to sys.argv[1:]."""
    _open_closed_streams()
    try:
        return _run(arguments)
    finally:
        _drop_what_nobody_reads()


def _drop_what_nobody_reads():
    """Of stderr, whose reader may have gone: Python would try again and exit with 120."""
    try:
        sys.stderr.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def _run(arguments):
    parsed = None
    with StandardOutput() as output:
        try:
            _interrupt.imported()
            parsed = _parse(make_parser(), arguments)
            for stream in (sys.stdout, sys.stderr):
                if hasattr(stream, "reconfigure"):
                    stream.reconfigure(errors="replace")  # for a sample that no terminal can show
            code = parsed.run(parsed)
            output.flush()  # here, where its errors are caught
            return code
        except KeyboardInterrupt:
            _complain("interrupted")
            return 130
        except BrokenPipeError:  # the reader has gone (`| head`)
            return 141
        except Exception as error:
            if parsed is not None and parsed.debug:
                traceback.print_exc()
            _complain(_describe(error))
            return 2 if _is_wrong_call(error) else 1


def _open_closed_streams():
    """Gives a process without stdout or stderr (`>&-`) a place to print to; else the next file that
    is opened would be it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115


def _is_wrong_call(error):
    # A command that reads names its file itself; what is left are folders that cannot be searched.
    return isinstance(error, InputError) or getattr(error, "errno", None) in _WRONG_PATH


def _describe(error):
    if isinstance(error, MemoryError):
        return "out of memory: a smaller model or --batch-size, or --recompute, is needed"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    known = (InputError, OSError, RuntimeError, ValueError)
    text = str(error) if isinstance(error, known) else f"{type(error).__name__}: {error}"
    return text if str(error) else type(error).__name__
