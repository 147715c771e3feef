"""`flatstep train --init-from`: a new run whose first weights are those of another model."""

import os
from dataclasses import dataclass, field

import flatstep

from ..data.prepared import is_prepared
from ..errors import InputError
from .model_folder import Source, load_model, token_numbers
from .options import option_name

_SHAPE = ("n_layer", "n_head", "n_embd")
_UNDECIDED = {"vocab": "auto", "vocab_size": 0}


def load_initial(given):
    """What a new run begins with: an Initial, or NewWeights without --init-from.

    given: the options that were typed, {field of TrainConfig: value}.
    Raises InputError if one of them contradicts the model, or the folder cannot be used.
    """
    folder = given.get("init_from")
    if not folder:
        return NewWeights()
    model, vocabulary, source = load_model(folder)
    config = model.config
    options = {name: getattr(config, name) for name in _SHAPE}
    if vocabulary is not None:
        options |= {"vocab": vocabulary.kind, "vocab_size": vocabulary.size}
        if given.get("tokenizer"):
            raise InputError(f"--tokenizer {given['tokenizer']}: {folder} has its own")
    for name, value in options.items():
        if given.get(name, _UNDECIDED.get(name)) not in (value, _UNDECIDED.get(name)):
            raise _contradiction(name, given[name], folder, value)
    length = options["block_size"] = given.get("block_size", config.block_size)
    if isinstance(length, int) and length > config.block_size:  # what is no int is refused later
        raise InputError(
            f"--block-size {length} contradicts {folder}, which has {config.block_size} "
            "positions; it may only be smaller"
        )
    options["init_from"] = os.path.abspath(folder)
    return Initial(source, model, vocabulary, options)


def _contradiction(name, value, folder, expected):
    return InputError(f"{option_name(name)} {value} contradicts {folder}, which has {expected}")


def fill_again(run, trainer):
    """The first weights of a run that was killed before its first checkpoint, once more.

    Raises InputError if they came from a folder that is gone or has changed.
    """
    if trainer.config.init_from:
        shape = {name: getattr(trainer.config, name) for name in (*_SHAPE, "block_size")}
        try:
            load_initial(shape | {"init_from": trainer.config.init_from}).fill(trainer.model)
        except InputError as error:
            raise InputError(
                f"{run}: has no checkpoint yet, and cannot begin again: {error}"
            ) from error


class NewWeights:
    """Random weights: nothing follows from them."""

    options = {}  # noqa: RUF012
    bytes = 0

    def vocabulary_for(self, files, config):
        """None: the files and the configuration decide."""

    def fill(self, model):
        """Leaves the model as it was made."""

    def lines(self, model):
        """No line on the first screen."""
        return []


@dataclass(frozen=True)
class Initial:
    """A model to begin with.

    vocabulary: its Vocabulary, or None if a Hugging Face folder has no tokenizer. options: those
    of the new run that follow from the model.
    """

    source: Source
    model: flatstep.GPT = field(repr=False)
    vocabulary: object
    options: dict

    @property
    def bytes(self):
        """Memory that the parameters take until they are copied."""
        return self.model.params.nbytes

    def vocabulary_for(self, files, config):
        """What `files` are read with; None leaves it to --tokenizer, or to a prepared folder.

        Raises InputError if there is nothing that would give the model's own tokens.
        """
        if self.vocabulary is not None:
            return self.vocabulary
        if config.tokenizer or any(map(is_prepared, files)):
            return None
        hint = "name a tokenizer.json by --tokenizer, or give .bin files of tokens"
        numbers = token_numbers(self.source.path, self.model.config.vocab_size, files, hint)
        for name, value in (("vocab", "ids"), ("vocab_size", numbers.size)):
            if getattr(config, name) not in (value, _UNDECIDED[name]):
                raise _contradiction(name, getattr(config, name), self.source.path, value)
        return numbers

    def fill(self, model):
        """Copies the parameters into a model that may have fewer positions, or fewer tokens: rows
        that no token of the vocabulary uses, which pad the embedding, stay behind.

        Raises InputError if it has more tokens.
        """
        rows, wanted = self.model.config.vocab_size, model.config.vocab_size
        if wanted > rows:
            raise InputError(
                f"{self.source.path}: its model has {rows:,} tokens, the vocabulary of the text "
                f"{wanted:,}"
            )
        for name in model.layout.names:
            target = model[name]
            target[...] = self.model[name][: len(target)]

    def lines(self, model):
        """What the first screen of the run, whose model is given, says of it: one line."""
        own, new = self.model.config, model.config
        text = f"weights {self.source}"
        if new.block_size < own.block_size:
            text += f", the first {new.block_size:,} of {own.block_size:,} positions"
        if new.vocab_size < own.vocab_size:
            text += f", without {own.vocab_size - new.vocab_size:,} rows that no token has"
        return [text]
