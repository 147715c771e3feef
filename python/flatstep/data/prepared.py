"""A folder of prepared tokens: train.bin, val.bin, the vocabulary, and data.json, which is written
last: a folder that has it is whole."""

import hashlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from .._files import read_json, write_whole
from ..errors import InputError
from .token_files import FORMATS, TokenFile, map_token_file, scan_token_file, write_tokens
from .vocabulary import TOKENIZER, VOCABULARY, load_vocabulary

DATA = "data.json"
FORMAT, VERSION = "flatstep data", 1
PARTS = ("train", "val")


class Prepared(NamedTuple):
    """What a prepared folder holds.

    documents: of the text that it was made of. size: bytes of its tokens. sha256: of them.
    """

    documents: int
    size: int
    sha256: str
    vocabulary: object
    train: TokenFile
    validation: TokenFile


def is_prepared(path):
    """Whether a folder was written by `flatstep prepare`, unfinished or damaged as it may be."""
    if os.path.exists(os.path.join(path, "train.bin")):
        beside = (os.path.join(path, name) for name in (DATA, VOCABULARY, TOKENIZER))
        return any(map(os.path.exists, beside))
    try:
        with open(Path(path, DATA), "rb") as file:
            return FORMAT.encode() in file.read(100)
    except OSError:
        return False


def read_prepared(folder):
    """The Prepared of a folder, every file checked. Raises InputError naming the one at fault."""
    path = Path(folder, DATA)
    description = read_json(path, InputError)
    if description.get("format") != FORMAT:
        raise InputError(f"{path}: not of a folder that flatstep prepared")
    if description.get("version") != VERSION:
        raise InputError(
            f"{path}: format version {description.get('version')}, this program reads {VERSION}"
        )
    documents = description.get("documents")
    if type(documents) is not int:
        raise InputError(f"{path}: damaged: the number of documents is {documents!r}")
    vocabulary = load_vocabulary(folder)
    if _vocabulary_sum(vocabulary) != description.get("vocabulary_sha256"):
        raise InputError(
            f"{folder}: its vocabulary is not the one it was prepared with ({DATA} tells "
            f"{description.get('vocab')} of {description.get('vocab_size')} tokens)"
        )
    parts, digest = [], hashlib.sha256()
    for name in PARTS:
        file = map_token_file(str(Path(folder, f"{name}.bin")))
        told = description.get(name)
        if not isinstance(told, dict) or told.get("tokens") != len(file.tokens):
            raise InputError(f"{file.path}: {len(file.tokens):,} tokens, {DATA} tells others")
        found = scan_token_file(file, vocabulary.size).sha256
        digest.update(found)
        if found.hex() != told.get("sha256"):
            raise InputError(f"{file.path}: damaged: its SHA-256 is not the one in {DATA}")
        parts.append(file)
    size = sum(file.tokens.nbytes for file in parts)
    return Prepared(documents, size, digest.hexdigest(), vocabulary, *parts)


def _vocabulary_sum(vocabulary):
    digest = hashlib.sha256()
    for name, content in sorted(vocabulary.files().items()):
        digest.update(name.encode() + b"\0" + content)
    return digest.hexdigest()


def write_prepared(folder, corpus, format, version):
    """Writes a Corpus as a prepared folder, which is made; returns the Paths of its files.

    format: one of token_files.FORMATS. version: of flatstep, for data.json.
    Raises InputError if the folder is in use or the format does not fit; OSError if the disk
    refuses: what was written is then removed.
    """
    if format not in FORMATS:
        raise ValueError(f"format: got {format!r}, expected one of {FORMATS}")
    folder, vocabulary, written = Path(folder), corpus.vocabulary, []
    description = {
        "format": FORMAT, "version": VERSION, "flatstep_version": version, "vocab": vocabulary.kind,
        "vocab_size": vocabulary.size, "documents": corpus.documents, "bytes": corpus.size,
        "vocabulary_sha256": _vocabulary_sum(vocabulary), "sha256": corpus.sha256,
        "split": corpus.split, "file_format": format,
    }  # fmt: skip
    check_new_folder(folder)
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, tokens in zip(PARTS, (corpus.train, corpus.validation), strict=True):
            written.append(folder / f"{name}.bin")
            with write_whole(written[-1]) as file:
                digest = write_tokens(file, tokens, format, vocabulary.size)
            description[name] = {"tokens": len(tokens), "sha256": digest}
        for name, content in vocabulary.files().items():
            written.append(folder / name)
            with write_whole(written[-1]) as file:
                file.write(content)
        written.append(folder / DATA)
        with write_whole(written[-1]) as file:
            file.write((json.dumps(description, indent=1) + "\n").encode())
    except BaseException:
        for path in reversed(written):
            path.unlink(missing_ok=True)
        if new and folder.is_dir():
            folder.rmdir()
        raise
    return written


def check_new_folder(folder):
    """Raises InputError unless a folder is empty, or new and can be made."""
    if os.path.isdir(folder) and os.listdir(folder):
        raise InputError(f"--out {folder}: the folder is not empty; choose another")
    check_place(folder)


def check_place(folder):
    """Raises InputError unless a folder can be made, or written to if it is there."""
    place = Path(os.path.abspath(folder))
    while not os.path.exists(place):
        place = place.parent
    if not os.path.isdir(place):
        raise InputError(f"--out {folder}: {place} is a file, not a folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise InputError(f"--out {folder}: no permission to write in {place}")
