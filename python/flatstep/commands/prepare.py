"""`flatstep prepare`: text as tokens in a folder, made once for many runs."""

import shlex

import flatstep

from ..errors import RunFailed
from . import add_command, add_options, given_options, path_name

EXAMPLES = """examples:
  flatstep prepare docs/ --out data/docs --vocab bpe --vocab-size 8192
  flatstep prepare stories.jsonl --text-field story --out data/stories --vocab char
  flatstep train data/docs  # trains on what was prepared

The folder gets train.bin, val.bin, the vocabulary, and data.json with counts and checksums."""
OPTIONS = (
    "vocab", "tokenizer", "vocab_size", "text_field", "val_fraction", "val_split",
)  # fmt: skip


def add(commands):
    """Adds the command's parser."""
    summary = "Turn text into files of tokens."
    parser = add_command(commands, "prepare", run, summary, EXAMPLES)
    parser.add_argument(
        "files",
        nargs="+",
        type=path_name,
        metavar="FILES",
        help="text files and folders, .jsonl, .bin",
    )
    parser.add_argument(
        "--out",
        required=True,
        type=path_name,
        metavar="FOLDER",
        help="folder to write, new or empty",
    )
    parser.add_argument(
        "--val", nargs="+", default=[], type=path_name, metavar="FILES",
        help="what to validate with [a part of FILES]",
    )  # fmt: skip
    parser.add_argument(
        "--format", choices=("llm.c", "nanogpt"), default="llm.c", help="of the .bin files [llm.c]"
    )
    add_options(parser, OPTIONS)


def run(arguments):
    """Writes the folder and prints what is in it. Raises InputError, RunFailed."""
    from ..data.corpus import load_corpus
    from ..data.prepared import check_new_folder, write_prepared
    from ..training.config import make_config

    # The shortest window: what length a run will want is not known yet.
    config = make_config(given_options(arguments) | {"block_size": 1})
    check_new_folder(arguments.out)  # before the work
    corpus = load_corpus(arguments.files, config, validation=arguments.val)
    try:
        write_prepared(arguments.out, corpus, arguments.format, flatstep.__version__)
    except OSError as error:
        raise RunFailed(f"{arguments.out}: cannot be written: {error.strerror}") from error
    print("\n".join(_lines(corpus, arguments.out)))
    return 0


def _lines(corpus, folder):
    tokens = len(corpus.train) + len(corpus.validation)
    vocabulary = corpus.vocabulary
    return [
        f"text    {corpus.documents:,} document{'s' if corpus.documents > 1 else ''}, "
        f"{corpus.size:,} bytes",
        f"tokens  {len(corpus.train):,} to train, {len(corpus.validation):,} to validate "
        f"({corpus.split}); {corpus.size / tokens:.2f} bytes per token, {vocabulary.kind} "
        f"vocabulary of {vocabulary.size:,}",
        f"folder  {folder}",
        f"        flatstep train {shlex.quote(str(folder))}",
    ]
