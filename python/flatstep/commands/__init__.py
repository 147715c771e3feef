"""The commands of `flatstep`, one file each: add(commands) makes the parser, run(arguments) works.

A command's file imports what its work needs when it runs: the others start without.
"""

import argparse
from dataclasses import fields

import flatstep

from ..errors import InputError
from ..training.options import DERIVED, GROUPS, TrainConfig, option_name


def path_name(text):
    """A name on the command line; an empty one, as an unset variable of a shell gives, would else
    be the working directory."""
    if not text:
        raise argparse.ArgumentTypeError("the name is empty")
    return text


def add_command(commands, name, run, summary, examples):
    """The parser of one command, which `commands` (an argparse action) gets. `run` returns its exit
    code."""
    parser = commands.add_parser(name, help=summary, description=summary, epilog=examples)
    parser.set_defaults(run=run)
    # SUPPRESS: `flatstep --debug train` must not be undone by the default of `train`.
    parser.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback"
    )
    return parser


def add_model(parser):
    """The arguments that name a trained model: RUN and --checkpoint."""
    parser.add_argument(
        "folder",
        type=path_name,
        metavar="RUN",
        help="the folder of a run, of one of its checkpoints, or of a Hugging Face GPT-2",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="WHICH",
        help="of a run: best, last or step-N [the one with the best validation loss, if there is "
        "one, else the last]",
    )


def add_shape(parser, names):
    """The arguments that describe a run without a text: --vocab-size, --preset, and the fields of
    TrainConfig among `names`; shape_of reads them."""
    parser.add_argument(
        "--vocab-size", type=int, default=256, metavar="INT", help="of the text [256]"
    )
    parser.add_argument("--preset", metavar="NAME", help="the shape of a preset of flatstep train")
    add_options(parser, names)


def shape_of(arguments, names):
    """(TrainConfig, number of tokens in the vocabulary) of add_shape's arguments; the number of
    threads is set. Raises InputError."""
    from ..training.config import make_config
    from ..training.config_file import combine

    if not 1 <= arguments.vocab_size < 2**31:
        raise InputError(f"--vocab-size must be from 1 to {2**31 - 1}, got {arguments.vocab_size}")
    given, _ = combine(given_options(arguments), preset=arguments.preset)
    config = make_config({name: value for name, value in given.items() if name in names})
    if config.threads:
        flatstep.set_num_threads(config.threads)
    return config, arguments.vocab_size


def add_options(parser, names=None):
    """The fields of TrainConfig, or those among `names`, in groups."""
    wanted = [item for item in fields(TrainConfig) if names is None or item.name in names]
    for title in GROUPS:
        own = [item for item in wanted if item.metadata["group"] == title]
        group = parser.add_argument_group(title) if own else None
        for item in own:
            _add_option(group, item)


def _add_option(parser, item):
    default = "" if item.name in DERIVED else f" [{item.default}]"
    # Only what was typed arrives, so that --resume can tell it from a default.
    common = {"default": argparse.SUPPRESS, "help": item.metadata["help"] + default}
    if item.type is bool:
        common["help"] = item.metadata["help"] + (" [yes]" if item.default else " [no]")
        parser.add_argument(option_name(item.name), action=argparse.BooleanOptionalAction, **common)
        return
    parser.add_argument(
        option_name(item.name),
        type=path_name if item.type is str else item.type,
        choices=item.metadata.get("choices"),
        metavar=None if "choices" in item.metadata else _metavar(item),
        **common,
    )


def _metavar(item):
    return item.metadata.get("metavar", item.type.__name__.upper())


def given_options(arguments):
    """{field of TrainConfig: value} of those that were typed."""
    names = {item.name for item in fields(TrainConfig)}
    return {name: value for name, value in vars(arguments).items() if name in names}
