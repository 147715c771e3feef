"""A trained model from wherever it lies: a run, a checkpoint, a folder of Hugging Face GPT-2."""

import os
from dataclasses import dataclass
from pathlib import Path

import flatstep

from ..data.bpe import load_hugging_face_tokenizer
from ..data.vocabulary import TOKENIZER, VOCABULARY, IdVocabulary, load_vocabulary
from ..errors import CheckpointError, InputError
from .checkpoint import find_checkpoint, load_checkpoint, load_newest
from .manifest import MANIFEST, STATE
from .parts import make_model
from .progress import warn
from .run_folder import read_config, read_vocabulary

VOCABULARY_FILES = (VOCABULARY, TOKENIZER)
HUGGING_FACE, RUN = "config.json", "config.toml"


@dataclass(frozen=True)
class Source:
    """Where a model came from. str() is for a reader.

    path: as it was given. run: the folder with its config.toml, or None. step: of the checkpoint,
    or None.
    """

    path: Path
    run: Path | None = None
    step: int | None = None

    def __str__(self):
        return str(self.path) if self.step is None else f"{self.path}, step {self.step:,}"


def load_model(path, which=None, *, drop_padding=False):
    """(flatstep.GPT, Vocabulary or None, Source) of a folder.

    path: a run, a checkpoint of one, or a folder of Hugging Face GPT-2; only the last may be
    without a vocabulary.
    which: "best", "last" or "step-N" of a run; None is the best, if there is one, else the last.
    Models of Hugging Face folders come without dropout, whatever config.json says: it is an option
    of a new run. So is what is exported of them.
    drop_padding: leave out the rows of a Hugging Face embedding that no token of the tokenizer
    uses, instead of keeping what is in the folder as it is.
    Raises InputError, of which CheckpointError and PretrainedError are kinds, naming the file at
    fault. If `which` is not given, a damaged checkpoint is passed over with a warning.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(f"{path}: {'a file, not a folder' if path.exists() else 'no such folder'}")
    if (path / MANIFEST).is_file() or (path / STATE).is_file():
        _refuse_which(path, which, "a checkpoint itself")
        return _load_checkpoint(path)
    if (path / RUN).is_file():
        return _load_run(path, which)
    if (path / HUGGING_FACE).is_file():
        _refuse_which(path, which, "no run")
        return _load_hugging_face(path, drop_padding)
    raise InputError(
        f"{path}: neither a run (a folder with {RUN}), nor a checkpoint ({MANIFEST}), nor a "
        f"Hugging Face GPT-2 ({HUGGING_FACE})"
    )


def _refuse_which(path, which, what):
    if which is not None:
        raise InputError(f"--checkpoint {which}: {path} is {what}")


def _load_run(run, which):
    model, vocabulary = _empty_model(run, run)
    if which == "last":
        state = load_newest(run, model, warn=warn)[1]
    elif which is not None:
        state = load_checkpoint(find_checkpoint(run, which), model)
    else:
        state = _load_best_or_newest(run, model)
    return model, vocabulary, Source(run, run, state["step"])


def _load_best_or_newest(run, model):
    try:
        path = find_checkpoint(run, "best")
    except CheckpointError:  # there is none, or its record is damaged
        return load_newest(run, model, warn=warn)[1]
    try:
        return load_checkpoint(path, model)
    except CheckpointError as error:
        state = load_newest(run, model, warn=warn)[1]  # which may be the same, and refused
        warn(f"{error}; this was the best checkpoint, the newest is used instead")
        return state


def _load_checkpoint(path):
    # What lies beside the tensors goes along when the folder is moved; old ones have it in the run.
    run = path if (path / RUN).is_file() else Path(os.path.abspath(path)).parent.parent
    own = any((path / name).is_file() for name in VOCABULARY_FILES)
    model, vocabulary = _empty_model(run, path if own else run)
    state = load_checkpoint(path, model)
    return model, vocabulary, Source(path, run, state["step"])


def _empty_model(run, vocabulary_folder):
    config, _ = read_config(run)
    vocabulary = read_vocabulary(vocabulary_folder, config)
    return make_model(config, vocabulary.size), vocabulary


def _load_hugging_face(path, drop_padding):
    vocabulary = _hugging_face_vocabulary(path)
    # With as many rows as config.json says; a tokenizer tells how many of them mean something.
    model = flatstep.GPT.from_pretrained(path, dropout=0.0)
    rows = model.config.vocab_size
    if vocabulary is not None and vocabulary.size > rows:
        raise InputError(
            f"{path}: its tokenizer has {vocabulary.size:,} tokens, its model {rows:,}: they do "
            "not belong together"
        )
    if vocabulary is not None and vocabulary.size < rows and drop_padding:
        model = flatstep.GPT.from_pretrained(path, dropout=0.0, vocab_size=vocabulary.size)
    return model, vocabulary, Source(path)


def _hugging_face_vocabulary(folder):
    if (folder / VOCABULARY).is_file():  # exported by flatstep
        return load_vocabulary(folder)
    return load_hugging_face_tokenizer(folder)


def token_numbers(folder, vocab_size, files, hint="give .bin files of tokens"):
    """The vocabulary of a model without one, for .bin files; else an InputError says why not, and
    what to do, the hint."""
    if files and all(str(name).endswith(".bin") for name in files):
        return IdVocabulary(vocab_size)
    raise InputError(
        f"{folder}: has neither tokenizer.json nor vocab.json with merges.txt, so text cannot "
        f"become its tokens; {hint}"
    )
