"""Where text and tokens come from: files, folders, .jsonl, .bin, prepared folders, the standard
library."""

import json
import os
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ..errors import InputError
from .prepared import is_prepared

STANDARD_LIBRARY_LIMIT = 12_000_000
_SKIPPED_LIBRARY_FOLDERS = {
    "site-packages", "dist-packages", "test", "tests", "idle_test", "idlelib", "lib2to3",
    "__pycache__",
}  # fmt: skip
_KEYS_SHOWN = 8


class Document(NamedTuple):
    """One text: the file it is from, its line there if that is a .jsonl (else 0), its bytes."""

    file: str
    line: int
    text: bytes

    @property
    def name(self):
        """How a message calls it."""
        return f"{self.file}, line {self.line}" if self.line else self.file


@dataclass(frozen=True)
class Sources:
    """What some paths hold: documents, or .bin files (absolute names), or one prepared folder."""

    documents: list[Document] = field(default_factory=list, repr=False)
    token_files: tuple[str, ...] = ()
    prepared: str | None = None

    @property
    def files(self):
        """The absolute names of all files, or of the prepared folder, in order, each once."""
        if self.prepared is not None:
            return (self.prepared,)
        return self.token_files or tuple(dict.fromkeys(d.file for d in self.documents))


def read_sources(paths, text_field="text"):
    """The Sources of some paths: text is read, .bin files are not opened yet.

    Raises InputError naming the path that cannot be used, or two that cannot go together.
    """
    given = {os.path.abspath(path): None for path in paths}
    prepared = [path for path in given if is_prepared(path)]
    token_files = [path for path in given if path.endswith(".bin") and not os.path.isdir(path)]
    rest = [path for path in given if path not in prepared and path not in token_files]
    if prepared and len(given) > 1:
        other = next(path for path in given if path != prepared[0])
        raise InputError(f"{prepared[0]}: a prepared folder, which cannot go with {other}")
    if token_files and rest:
        raise InputError(f"{token_files[0]} (tokens) and {rest[0]} (text) cannot go together")
    if prepared:
        return Sources(prepared=_plain_name(prepared[0]))
    for path in token_files:
        if os.path.exists(path) and not os.path.isfile(path):
            raise InputError(f"{path}: neither a file nor a folder")
    if token_files:
        return Sources(token_files=tuple(map(_plain_name, token_files)))
    return Sources(documents=read_documents(rest, text_field))


def read_documents(paths, text_field="text"):
    """The Documents of the text files, .jsonl files and folders among `paths`, each file once.

    Folders are searched through and through in sorted order; hidden, empty and binary files in
    them are left out. Raises InputError naming the path that is missing, unreadable, empty,
    binary or a folder without any text; of a .jsonl also the line.
    """
    documents = {}
    for given in paths:
        path = Path(os.path.abspath(given))
        if os.path.isdir(path):
            documents.update(_read_folder(path, text_field))
        elif path.exists() and not path.is_file():
            raise InputError(f"{given}: neither a file nor a folder")
        else:
            documents[_plain_name(path)] = _read_file(path, text_field)
    return [document for own in documents.values() for document in own]


def _read_folder(root, text_field):
    found = []
    for folder, subfolders, names in os.walk(root, onerror=_refuse_folder):
        subfolders[:] = [s for s in subfolders if not s.startswith(".") and s != "__pycache__"]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    found.sort(key=lambda path: path.relative_to(root).as_posix())
    texts = {}
    for path in filter(Path.is_file, found):
        if path.suffix == ".jsonl" and path.stat().st_size:
            texts[_plain_name(path)] = _read_file(path, text_field)
            continue
        content = _read_bytes(path)
        if content and b"\0" not in content:
            texts[_plain_name(path)] = [Document(_plain_name(path), 0, content)]
    if not texts:
        hint = ""
        if any(path.suffix == ".bin" for path in found):
            hint = f"; name its files of tokens one by one: {root}/*.bin"
        raise InputError(f"{root}: no text files in this folder{hint}")
    return texts


def _refuse_folder(error):
    raise InputError(f"{error.filename}: cannot be read: {error.strerror}") from error


def _read_bytes(path):
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _read_file(path, text_field):
    """The Documents of one file: the lines of a .jsonl, else one."""
    if path.suffix == ".jsonl":
        documents = list(_json_lines(path, text_field))
        if not documents:
            raise InputError(f"{path}: no line holds any text")
        return documents
    content = _read_bytes(path)
    if not content:
        raise InputError(f"{path}: the file is empty, text was expected")
    if b"\0" in content:
        place = content.index(b"\0")
        raise InputError(f"{path}: a binary file (zero byte at {place:,}), text was expected")
    return [Document(_plain_name(path), 0, content)]


def _json_lines(path, text_field):
    """Yields a Document for each line of a .jsonl; empty lines and texts are left out."""
    name = _plain_name(path)
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    text = _text_of(f"{name}, line {number}", line, text_field)
                    if text:
                        yield Document(name, number, text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error


def _text_of(where, line, text_field):
    try:
        entry = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not UTF-8 (byte 0x{line[error.start]:02x})") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: not JSON: {error}") from error
    if not isinstance(entry, dict):
        raise InputError(f"{where}: a JSON object was expected, got {type(entry).__name__}")
    if text_field not in entry:
        keys = ", ".join(map(repr, list(entry)[:_KEYS_SHOWN]))
        keys += ", ..." if len(entry) > _KEYS_SHOWN else ""
        raise InputError(
            f"{where}: no key {text_field!r}; it has {keys or 'none'}; choose by --text-field"
        )
    text = entry[text_field]
    if not isinstance(text, str):
        raise InputError(f"{where}: {text_field!r} is not a text but {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: {text_field!r} holds half a surrogate pair") from error


def _plain_name(path):
    # The name goes into config.toml, which can only hold text.
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{str(path)!a}: the file name is not valid UTF-8") from error
    return str(path)


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
