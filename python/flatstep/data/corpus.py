"""Text in, tokens out: what a run trains on and is validated with."""

import dataclasses
import hashlib
import os
from dataclasses import dataclass, field
from typing import NamedTuple

from ..errors import InputError
from .chosen_vocabulary import (
    check_size,
    made_vocabulary,
    named_vocabulary,
    vocabulary_of_token_files,
)
from .prepared import read_prepared
from .sources import read_sources, standard_library_files
from .split import in_a_row, split_documents
from .token_files import map_token_file, scan_token_file
from .tokens import TokenBuffer, Tokens
from .utf8 import EncodingError, check_utf8
from .vocabulary import IdVocabulary

_OWN_FILES = "files of its own"
_HINT = "; --vocab byte takes any file"


@dataclass(frozen=True)
class Corpus:
    """The tokens of a run.

    files: absolute names; empty for the standard library; a prepared folder is one.
    documents: how many; .bin files count as one each. size: bytes of text, or of tokens in .bin
    files. sha256: of the documents in the order in which they were read, so that it does not depend
    on the split, or of the tokens of each .bin file. split: in words, how training and validation
    were told apart. val_files: those that were named for validation.
    """

    files: tuple[str, ...]
    documents: int
    size: int
    sha256: str
    train: Tokens = field(repr=False)
    validation: Tokens = field(repr=False)
    split: str
    vocabulary: object = field(repr=False)
    val_files: tuple[str, ...] = ()


class _Contents(NamedTuple):
    """What was read, whatever the split: as in Corpus."""

    documents: int
    size: int
    sha256: str

    def __add__(self, other):
        """With other contents behind it."""
        digest = hashlib.sha256((self.sha256 + other.sha256).encode()).hexdigest()
        return _Contents(self.documents + other.documents, self.size + other.size, digest)


def load_corpus(paths, config, vocabulary=None, validation=None):
    """The Corpus of some files, split for training and validation.

    paths: text files, folders, .jsonl and .bin files, or one prepared folder; empty for Python's
    standard library.
    config: a TrainConfig; block_size, val_fraction, val_split, text_field and, where no vocabulary
    is given, vocab, vocab_size and tokenizer count. Each part gets block_size + 1 tokens at least.
    vocabulary: the one of a run or model; None: what the configuration says.
    validation: files of the validation text; all of `paths` is then for training.
    Raises InputError naming the file or option at fault.
    """
    sources = read_sources(paths or standard_library_files(), config.text_field)
    held = read_sources(validation, config.text_field) if validation else None
    if sources.documents:
        corpus = _of_text(sources.documents, held, config, vocabulary)
    elif sources.prepared:
        corpus = _of_prepared(sources.prepared, held, config, vocabulary)
    else:
        corpus = _of_token_files(sources.token_files, held, config, vocabulary)
    for part, name in ((corpus.train, "training"), (corpus.validation, "validation")):
        if len(part) <= config.block_size:
            raise InputError(
                f"{len(part):,} tokens for {name} ({corpus.split}), too few for --block-size "
                f"{config.block_size}: {config.block_size + 1:,} are needed; more text, or "
                f"{'a smaller --block-size' if held else 'another --val-fraction'}"
            )
    files = sources.files if paths else ()
    return dataclasses.replace(corpus, files=files, val_files=held.files if held else ())


def load_tokens(paths, config, vocabulary):
    """The Tokens of some files in a known vocabulary, not split.

    paths, config, errors: as in load_corpus; of a prepared folder it is the validation part.
    """
    return _tokens_of(read_sources(paths, config.text_field), vocabulary)[0]


def _corpus(contents, train, validation, split, vocabulary):
    return Corpus((), *contents, train, validation, split, vocabulary)


def _of_text(documents, held, config, vocabulary):
    """The Corpus of documents; held: the Sources of the validation, or None for a split."""
    kind = vocabulary.kind if vocabulary else "bpe" if config.tokenizer else config.vocab
    if kind == "ids":
        raise InputError(f"{documents[0].file}: text, but the vocabulary is of ids: .bin expected")
    known = vocabulary or named_vocabulary(config)
    ends = kind == "bpe" if known is None else known.end_of_text is not None
    needs_utf8 = known is None or known.needs_utf8
    if needs_utf8:
        _check_documents(documents, "" if vocabulary else _HINT)
    if held is None:
        train, kept, words = split_documents(
            documents, config.block_size, config.val_fraction, config.val_split, ends, needs_utf8
        )
    else:
        if needs_utf8:
            _check_documents(held.documents, "" if vocabulary else _HINT)
        train, kept = in_a_row(documents, ends), in_a_row(held.documents, ends)
    known = known or made_vocabulary(config, train, kept)
    contents, tokens = _contents(documents), _encode(known, train)
    if held is None:
        return _corpus(contents, tokens, _encode(known, kept), words, known)
    validation, more = _tokens_of(held, known)
    return _corpus(contents + more, tokens, validation, _OWN_FILES, known)


def _check_documents(documents, hint=""):
    for document in documents:
        try:
            check_utf8(document.text)
        except EncodingError as error:
            raise InputError(f"{document.name}: {error}{hint}") from error


def _encode(vocabulary, pieces):
    """The Tokens of Pieces in one array."""
    size = sum(piece.size for piece in pieces) + len(pieces)
    buffer = TokenBuffer(vocabulary.dtype, size // vocabulary.dtype.itemsize)
    encoded = vocabulary.encode_many(piece.text for piece in pieces if piece.text is not None)
    for piece in pieces:
        try:
            buffer.extend([[vocabulary.end_of_text]] if piece.text is None else next(encoded))
        except EncodingError as error:
            raise InputError(
                f"{piece.name}: {error.reason}, at byte {piece.place + error.place:,}"
            ) from error
    return Tokens([buffer.finish()])


def _contents(documents):
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document.text).to_bytes(8, "little"))
        digest.update(document.text)
    size = sum(len(document.text) for document in documents)
    return _Contents(len(documents), size, digest.hexdigest())


def _tokens_of(sources, vocabulary):
    """(Tokens, _Contents) of Sources in a known vocabulary, not split."""
    if sources.documents:
        if vocabulary.kind == "ids":
            raise InputError(f"{sources.documents[0].file}: text, but the vocabulary is of ids")
        if vocabulary.needs_utf8:
            _check_documents(sources.documents)
        pieces = in_a_row(sources.documents, vocabulary.end_of_text is not None)
        return _encode(vocabulary, pieces), _contents(sources.documents)
    if sources.prepared:
        prepared = read_prepared(sources.prepared)
        _check_same(sources.prepared, prepared.vocabulary, vocabulary)
        contents = _Contents(prepared.documents, prepared.size, prepared.sha256)
        return _joined([prepared.validation]), contents
    files = [map_token_file(path) for path in sources.token_files]
    return _joined(files), _scan(files, vocabulary.size)[0]


def _joined(files):
    return Tokens(file.tokens for file in files)


def _check_same(folder, found, expected):
    if found.meaning() != expected.meaning():
        raise InputError(
            f"{folder}: prepared with another vocabulary ({found.kind}, {found.size:,} tokens; "
            f"{expected.kind}, {expected.size:,}, was expected)"
        )


def _scan(files, size=None):
    """(_Contents, the largest token) of files; a token not below `size` is an InputError."""
    scans = [scan_token_file(file, size) for file in files]
    digest = hashlib.sha256(b"".join(scan.sha256 for scan in scans)).hexdigest()
    contents = _Contents(len(files), sum(file.tokens.nbytes for file in files), digest)
    return contents, max(scan.largest for scan in scans)


def _of_prepared(folder, held, config, vocabulary):
    """The Corpus of a prepared folder; held: as in _of_text."""
    prepared = read_prepared(folder)
    own = prepared.vocabulary
    if vocabulary is not None:
        _check_same(folder, own, vocabulary)
    elif config.tokenizer or config.vocab not in ("auto", own.kind):
        option = "--tokenizer" if config.tokenizer else f"--vocab {config.vocab}"
        raise InputError(f"{option}: {folder} is prepared with a vocabulary, {own.kind}")
    else:
        check_size(config, own)
    contents = _Contents(prepared.documents, prepared.size, prepared.sha256)
    train = _joined([prepared.train])
    if held is None:
        return _corpus(contents, train, _joined([prepared.validation]), "as prepared", own)
    validation, more = _tokens_of(held, own)
    return _corpus(contents + more, train, validation, _OWN_FILES, own)


def _of_token_files(paths, held, config, vocabulary):
    """The Corpus of .bin files; held: as in _of_text."""
    files = [map_token_file(path) for path in paths]
    known = vocabulary or vocabulary_of_token_files(config)
    contents, largest = _scan(files, known.size if known else config.vocab_size or None)
    known = known or IdVocabulary(config.vocab_size or largest + 1)
    if held is not None:
        validation, more = _tokens_of(held, known)
        return _corpus(contents + more, _joined(files), validation, _OWN_FILES, known)
    return _corpus(contents, *_split_files(files, config), known)


def _split_files(files, config):
    """(training Tokens, validation Tokens, words).

    Files with "val" in their name are for validation; without such, or with --val-split tail, the
    tail of all is.
    """
    named = [file for file in files if "val" in os.path.basename(file.path)]
    if config.val_split != "tail" and 0 < len(named) < len(files):
        names = {file.path for file in named}
        rest = [file for file in files if file.path not in names]
        return _joined(rest), _joined(named), f"{len(named)} of {len(files)} files"
    if config.val_split == "documents":
        raise InputError(
            '--val-split documents: of .bin files, those with "val" in their name are for '
            f"validation; there are {len(named)} among {len(files)}"
        )
    tokens, needed = _joined(files), config.block_size + 1
    cut = len(tokens) - max(round(len(tokens) * config.val_fraction), needed)
    if cut < needed:
        raise InputError(
            f"{len(tokens):,} tokens in all, too few for --block-size {config.block_size} with "
            f"--val-fraction {config.val_fraction}: training and validation need {needed:,} each"
        )
    return tokens.part(0, cut), tokens.part(cut, len(tokens)), "the end of the tokens"
