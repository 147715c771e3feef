"""Which text `flatstep eval` measures a model on."""

import dataclasses
from dataclasses import dataclass

from ..data.corpus import load_tokens
from ..data.tokens import Tokens
from ..errors import InputError
from .config import make_config
from .loop import load_stored
from .model_folder import token_numbers
from .run_folder import read_config

_BATCH_SIZE = 8


@dataclass(frozen=True)
class Text:
    """tokens, the vocabulary they are of, what they are in words, and windows to read at once."""

    tokens: Tokens
    vocabulary: object
    words: str
    batch_size: int


def text_to_evaluate(source, vocabulary, vocab_size, files=(), text_field=None):
    """The Text of `files`, all of it, or what a run was validated with.

    source, vocabulary: of load_model. vocab_size: of the model. text_field: the key of .jsonl
    files; None takes the run's.
    Raises InputError naming the file at fault, or if the run's text has changed.
    """
    config, entries = (make_config({}), {}) if source.run is None else read_config(source.run)
    if text_field is not None:
        config = dataclasses.replace(config, text_field=text_field)
    batch_size = _BATCH_SIZE if source.run is None else config.batch_size
    if not files and source.run is None:
        raise InputError(f"{source.path}: is no run, which would have text of its own: name FILES")
    if vocabulary is None:
        vocabulary = token_numbers(source.path, vocab_size, files)
    if files:
        tokens, words = load_tokens(files, config, vocabulary), ", ".join(map(str, files))
    else:
        corpus = load_stored(source.run, config, entries, vocabulary)
        tokens, words = corpus.validation, f"the run's validation text ({corpus.split})"
    return Text(tokens, vocabulary, words, batch_size)
