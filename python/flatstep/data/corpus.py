"""Text in, tokens out: what a run trains on and is validated with."""

import hashlib
import os
from dataclasses import dataclass, field

from ..errors import InputError
from .prepared import read_prepared
from .sources import read_sources, standard_library_files
from .split import in_a_row, split_documents
from .token_files import map_token_file, scan_token_file
from .tokens import TokenBuffer, Tokens
from .utf8 import EncodingError, check_utf8
from .vocabulary import ByteVocabulary, CharVocabulary, IdVocabulary


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
    kept = read_sources(validation, config.text_field) if validation else None
    if sources.documents:
        corpus = _of_text(sources, kept, config, vocabulary)
    else:
        corpus = _of_tokens(sources, kept, config, vocabulary)
    for part, name in ((corpus.train, "training"), (corpus.validation, "validation")):
        if len(part) <= config.block_size:
            raise InputError(
                f"{len(part):,} tokens for {name} ({corpus.split}), too few for --block-size "
                f"{config.block_size}: {config.block_size + 1:,} are needed"
            )
    files = sources.files if paths else ()
    return _replaced(corpus, files=files, val_files=kept.files if kept else ())


def load_tokens(paths, config, vocabulary):
    """The Tokens of some files in a known vocabulary, not split.

    paths, config, errors: as in load_corpus; of a prepared folder it is the validation part.
    """
    return _tokens_of(read_sources(paths, config.text_field), vocabulary)[0]


def _replaced(corpus, **values):
    return Corpus(**(corpus.__dict__ | values))


def _of_text(sources, kept, config, vocabulary):
    """The Corpus of documents; `kept` are the Sources of the validation, or None."""
    documents = sources.documents
    known = kept.documents if kept else []
    kind = vocabulary.kind if vocabulary else {"auto": "byte"}.get(config.vocab, config.vocab)
    if config.tokenizer and not vocabulary:
        kind = "bpe"
    if kind == "ids":
        raise InputError(f"{documents[0].file}: text, but the vocabulary is of ids: .bin expected")
    if kind in ("char", "bpe"):
        _check_documents(documents + known)
    given = vocabulary or _given_vocabulary(config)
    end = kind == "bpe" if given is None else given.end_of_text is not None
    if kept is None:
        train, held, words = split_documents(
            documents, config.block_size, config.val_fraction, config.val_split, end, kind != "byte"
        )
    else:
        train, held, words = in_a_row(documents, end), in_a_row(known, end), "files of its own"
    if given is None:
        given = _make_vocabulary(config, kind, train, held)
    validation = _encode(given, held) if kept is None or known else None
    every = documents + known
    size, digest = sum(len(d.text) for d in every), _checksum(every)
    if validation is None:
        validation, extra = _tokens_of(kept, given)
        size, digest = size + extra.size, _combined(digest, extra.sha256)
    return Corpus(
        files=(), documents=len(every), size=size, sha256=digest, train=_encode(given, train),
        validation=validation, split=words, vocabulary=given,
    )  # fmt: skip


def _check_documents(documents):
    for document in documents:
        try:
            check_utf8(document.text)
        except EncodingError as error:
            raise InputError(f"{document.name}: {error}; --vocab byte takes any file") from error


def _given_vocabulary(config):
    """The vocabulary that a configuration names, if it does not depend on the text."""
    if config.tokenizer:
        from .bpe import BpeVocabulary

        given = BpeVocabulary.read(config.tokenizer)
    elif config.vocab in ("auto", "byte"):
        given = ByteVocabulary()
    else:
        return None
    _check_size(config, given)
    return given


def _check_size(config, vocabulary):
    if config.vocab_size not in (0, vocabulary.size):
        raise InputError(
            f"--vocab-size {config.vocab_size}: the {vocabulary.kind} vocabulary has "
            f"{vocabulary.size:,} tokens; leave it out"
        )


def _make_vocabulary(config, kind, train, held):
    if kind == "char":
        made = CharVocabulary.of(p.text for p in train + held if p.text is not None)
        _check_size(config, made)
        return made
    from .bpe import train_bpe

    return train_bpe((p.text for p in train if p.text is not None), config.vocab_size)


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


def _checksum(documents):
    digest = hashlib.sha256()
    for document in documents:
        digest.update(len(document.text).to_bytes(8, "little"))
        digest.update(document.text)
    return digest.hexdigest()


def _combined(*sums):
    return hashlib.sha256("".join(sums).encode()).hexdigest()


@dataclass(frozen=True)
class _Read:
    """What reading tokens found besides them."""

    documents: int
    size: int
    sha256: str


def _tokens_of(sources, vocabulary):
    """(Tokens, _Read) of Sources in a known vocabulary."""
    if sources.documents:
        if vocabulary.kind == "ids":
            raise InputError(f"{sources.documents[0].file}: text, but the vocabulary is of ids")
        if vocabulary.needs_utf8:
            _check_documents(sources.documents)
        pieces = in_a_row(sources.documents, vocabulary.end_of_text is not None)
        size = sum(piece.size for piece in pieces)
        read = _Read(len(sources.documents), size, _checksum(sources.documents))
        return _encode(vocabulary, pieces), read
    if sources.prepared:
        prepared = read_prepared(sources.prepared)
        _check_same(sources.prepared, prepared.vocabulary, vocabulary)
        files = [prepared.validation]
    else:
        files = [map_token_file(path) for path in sources.token_files]
    return Tokens(file.tokens for file in files), _scan(files, vocabulary.size)[0]


def _check_same(folder, found, expected):
    if found.files() != expected.files():
        raise InputError(
            f"{folder}: prepared with another vocabulary ({found.kind}, {found.size:,} tokens; "
            f"{expected.kind}, {expected.size:,}, was expected)"
        )


def _scan(files, size=None):
    """(_Read, the largest token) of token files; a token not below `size` is an InputError."""
    scans = [scan_token_file(file, size) for file in files]
    digest = hashlib.sha256(b"".join(scan.sha256 for scan in scans)).hexdigest()
    read = _Read(len(files), sum(file.tokens.nbytes for file in files), digest)
    return read, max(scan.largest for scan in scans)


def _of_tokens(sources, kept, config, vocabulary):
    """The Corpus of .bin files or a prepared folder; `kept` as in _of_text."""
    if sources.prepared:
        prepared = read_prepared(sources.prepared)
        own = prepared.vocabulary
        if vocabulary is not None:
            _check_same(sources.prepared, own, vocabulary)
        elif config.tokenizer or config.vocab not in ("auto", own.kind):
            option = "--tokenizer" if config.tokenizer else f"--vocab {config.vocab}"
            raise InputError(
                f"{option}: {sources.prepared} is prepared with a vocabulary, {own.kind}"
            )
        else:
            _check_size(config, own)
        vocabulary, documents = own, prepared.description.get("documents", 1)
        train, held, words = [prepared.train], [prepared.validation], "as prepared"
    else:
        files = [map_token_file(path) for path in sources.token_files]
        documents = len(files)
        vocabulary = vocabulary or _token_vocabulary(config)
        train, held, words = _split_files(files, config, kept is not None)
    read, largest = _scan(
        train + held, vocabulary.size if vocabulary else config.vocab_size or None
    )
    if vocabulary is None:
        vocabulary = IdVocabulary(config.vocab_size or largest + 1)
    tokens = Tokens(file.tokens for file in train)
    if kept is not None:
        validation, extra = _tokens_of(kept, vocabulary)
        words, documents = "files of its own", documents + extra.documents
        read = _Read(0, read.size + extra.size, _combined(read.sha256, extra.sha256))
    elif held:
        validation = Tokens(file.tokens for file in held)
    else:
        tokens, validation = _cut_tail(tokens, config)
    return Corpus(
        files=(), documents=documents, size=read.size, sha256=read.sha256, train=tokens,
        validation=validation, split=words, vocabulary=vocabulary,
    )  # fmt: skip


def _cut_tail(tokens, config):
    needed = config.block_size + 1
    cut = len(tokens) - max(round(len(tokens) * config.val_fraction), needed)
    if cut < needed:
        raise InputError(
            f"{len(tokens):,} tokens in all, too few for --block-size {config.block_size} with "
            f"--val-fraction {config.val_fraction}: training and validation need {needed:,} each"
        )
    return tokens.part(0, cut), tokens.part(cut, len(tokens))


def _token_vocabulary(config):
    """The vocabulary of .bin files that is named; None for numbers up to the largest in them."""
    if config.vocab == "char" or (config.vocab == "bpe" and not config.tokenizer):
        hint = "; name its --tokenizer" if config.vocab == "bpe" else ""
        raise InputError(f"--vocab {config.vocab}: .bin files do not tell what text it is{hint}")
    return _given_vocabulary(config) if config.tokenizer or config.vocab == "byte" else None


def _split_files(files, config, all_train):
    """(training files, validation files, words): those with "val" in their name are for validation.

    Without such a file, or with --val-split tail, none is, and the tail is cut off later.
    """
    named = [file for file in files if "val" in os.path.basename(file.path)]
    if all_train:
        return files, [], ""
    if config.val_split != "tail" and 0 < len(named) < len(files):
        names = {file.path for file in named}
        rest = [file for file in files if file.path not in names]
        return rest, named, f"{len(named)} of {len(files)} files"
    if config.val_split == "documents":
        raise InputError(
            '--val-split documents: of .bin files, those with "val" in their name are for '
            f"validation; there are {len(named)} among {len(files)}"
        )
    return files, [], "the end of the tokens"
