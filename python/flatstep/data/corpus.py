"""Text in, tokens out: which files are read and how they are split for validation."""

import hashlib
import math
import os
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError

STANDARD_LIBRARY_LIMIT = 12_000_000
_SKIPPED_LIBRARY_FOLDERS = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3",
    "__pycache__",
}  # fmt: skip


@dataclass(frozen=True)
class Corpus:
    """The text of a run as one array of tokens, the training part first.

    `files` is empty for the standard library; `size` counts bytes. `sha256` covers the documents
    in the order in which they were read, so that it does not depend on the split.
    """

    files: tuple[str, ...]
    documents: int
    size: int
    sha256: str
    tokens: np.ndarray = field(repr=False)
    train_size: int
    split: str

    @property
    def train(self):
        """The training tokens: a view, uint8."""
        return self.tokens[: self.train_size]

    @property
    def validation(self):
        """The validation tokens: a view, uint8."""
        return self.tokens[self.train_size :]


def standard_library_files(limit=STANDARD_LIBRARY_LIMIT):
    """The .py files of Python's own library, sorted by path, at most `limit` bytes in all.

    Tests, site-packages and the two large retired packages (idlelib, lib2to3) are left out.
    Raises InputError where this Python comes without its sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED_LIBRARY_FOLDERS]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    found.sort(key=lambda path: path.relative_to(root).as_posix())
    chosen, total = [], 0
    for path in found:
        size = path.stat().st_size
        if size and total + size <= limit:
            chosen.append(str(path))
            total += size
    if not chosen:
        raise InputError(f"this Python has no .py files under {root}: name the FILES to train on")
    return chosen


def read_documents(paths):
    """Reads the text files among `paths`, each a file or a folder: {absolute name: bytes}.

    Folders are searched through and through in sorted order; hidden, empty and binary files in
    them are left out. Raises InputError naming the path that is missing, unreadable, empty,
    binary or a folder without any text.
    """
    documents = {}
    for given in paths:
        path = Path(os.path.abspath(given))
        if path.is_dir():
            documents.update(_read_folder(path))
        elif path.exists() and not path.is_file():
            raise InputError(f"{given}: neither a file nor a folder")
        else:
            documents[_plain_name(path)] = _read_text(path)
    return documents


def _read_folder(root):
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [s for s in subfolders if not s.startswith(".") and s != "__pycache__"]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    found.sort(key=lambda path: path.relative_to(root).as_posix())
    texts = {}
    for path in filter(Path.is_file, found):
        content = _read_bytes(path)
        if content and b"\0" not in content:
            texts[_plain_name(path)] = content
    if not texts:
        raise InputError(f"{root}: no text files in this folder")
    return texts


def _read_bytes(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _read_text(path):
    content = _read_bytes(path)
    if not content:
        raise InputError(f"{path}: the file is empty, text was expected")
    if b"\0" in content:
        place = content.index(b"\0")
        raise InputError(f"{path}: a binary file (zero byte at {place:,}), text was expected")
    return content


def _plain_name(path):
    # The name goes into config.toml, which can only hold text.
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{str(path)!a}: the file name is not valid UTF-8") from error
    return str(path)


def load_corpus(paths, *, block_size, val_fraction):
    """Reads text and splits it for training and validation.

    paths: files and folders; empty for Python's standard library.
    block_size: tokens in a window; each part gets block_size + 1 tokens at least.
    val_fraction: share of the text for validation, between 0 and 1.
    Raises InputError naming the file or option at fault.
    """
    contents = read_documents(paths or standard_library_files())
    documents = list(contents.values())
    train, validation, split = split_documents(documents, block_size, val_fraction)
    train, validation = _join(train), _join(validation)
    return Corpus(
        files=tuple(contents) if paths else (),
        documents=len(documents),
        size=sum(map(len, documents)),
        sha256=_checksum(documents),
        tokens=np.frombuffer(train + validation, dtype=np.uint8),
        train_size=len(train),
        split=split,
    )


def _join(documents):
    # A document that lacks its last line end would otherwise run into the next one.
    last = len(documents) - 1
    return b"".join(
        text if k == last or text.endswith(b"\n") else text + b"\n"
        for k, text in enumerate(documents)
    )


def _checksum(documents):
    digest = hashlib.sha256()
    for text in documents:
        digest.update(len(text).to_bytes(8, "little"))
        digest.update(text)
    return digest.hexdigest()


def split_documents(documents, block_size, val_fraction):
    """Splits documents into (training, validation, how), the same way on every call.

    Whole documents are set aside, spread evenly over their sizes. Where that misses the wished
    share by more than a factor of two (few or very unequal documents) the tail of the whole
    text is taken instead. Raises InputError if a part would be shorter than block_size + 1.
    """
    total = sum(map(len, documents))
    needed = block_size + 1
    chosen = _spread_choice([len(text) for text in documents], val_fraction)
    share = sum(len(documents[k]) for k in chosen) / total
    if val_fraction / 2 <= share <= min(val_fraction * 2, (1 + val_fraction) / 2):
        train = [text for k, text in enumerate(documents) if k not in chosen]
        validation = [documents[k] for k in sorted(chosen)]
        if min(sum(map(len, train)), sum(map(len, validation))) >= needed:
            return train, validation, f"{len(chosen)} of {len(documents)} documents"
    text = _join(documents)
    tail = max(round(len(text) * val_fraction), needed)
    if len(text) - tail < needed:
        raise InputError(
            f"the text holds {len(text):,} bytes, too few for --block-size {block_size} with "
            f"--val-fraction {val_fraction}: training and validation need {needed:,} each"
        )
    return [text[:-tail]], [text[-tail:]], "the end of the text"


def _spread_choice(sizes, fraction):
    """Numbers of the documents for validation: every 1/fraction-th one in order of size."""
    by_size = sorted(range(len(sizes)), key=lambda k: (sizes[k], k))
    quota = [math.floor(k * fraction + 0.5) for k in range(len(sizes) + 1)]
    return {number for k, number in enumerate(by_size) if quota[k + 1] > quota[k]}
