"""Files of tokens: those of nanoGPT and llm.c, both called .bin, read where they lie on the disk.

nanoGPT: uint16, little-endian, nothing else. llm.c: 256 int32 (magic, version, number of tokens,
zeros), then the tokens: 20240520, version 1, uint16 (GPT-2); 20240801, version 7, uint32 (Llama
3). They are told apart by the magic. A file of nanoGPT would have to begin with the tokens 55432,
308, 1, 0 to pass for one of llm.c; GPT-2 has no token 55432.
"""

import hashlib
import mmap
import os
from typing import NamedTuple

import numpy as np

from ..errors import InputError
from .tokens import as_tokens

HEADER = np.dtype("<i4")
HEADER_BYTES = 256 * 4
# {magic: (version, type of a token)}
_LLM_C = {20240520: (1, np.dtype("<u2")), 20240801: (7, np.dtype("<u4"))}
# Other files of llm.c, which are no tokens and would pass for some of nanoGPT.
_NO_TOKENS = {
    20240326: "the weights of a model",
    20240327: "the state for a debugger",
    20240328: "a tokenizer",
    20240522: "an evaluation with several choices",
    20240731: "the weights of a model",
}
FORMATS = ("llm.c", "nanogpt")
_CHUNK = 1 << 22


class TokenFile(NamedTuple):
    """A mapped file: its name, format, and tokens, a view of uint16 or uint32 without a copy."""

    path: str
    format: str
    tokens: np.ndarray


def map_token_file(path):
    """The TokenFile of a .bin. Raises InputError naming the file if it cannot be one."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0:
                raise InputError(f"{path}: the file is empty, tokens were expected")
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    header = np.frombuffer(memory, HEADER, 3) if size >= 12 else np.zeros(3, HEADER)
    magic, version, count = header.tolist()
    if magic in _NO_TOKENS:
        raise InputError(f"{path}: a file of llm.c with {_NO_TOKENS[magic]}, not with tokens")
    if int(header.byteswap()[0]) in _LLM_C:
        raise InputError(f"{path}: a file of llm.c whose bytes are in big-endian order")
    if magic not in _LLM_C:
        if size % 2:
            raise InputError(f"{path}: {size:,} bytes, an odd number: not tokens of 2 bytes each")
        return TokenFile(str(path), "nanogpt", np.frombuffer(memory, "<u2"))
    expected, kind = _LLM_C[magic]
    if version != expected:
        raise InputError(
            f"{path}: a file of llm.c ({magic}) of version {version}, this program reads {expected}"
        )
    found = max(0, size - HEADER_BYTES)
    if count < 1 or found != count * kind.itemsize:
        raise InputError(
            f"{path}: its header tells {count:,} tokens of {kind.itemsize} bytes, "
            f"{found:,} bytes follow; cut short?"
        )
    return TokenFile(str(path), "llm.c", np.frombuffer(memory, kind, offset=HEADER_BYTES))


class Scan(NamedTuple):
    """What one pass over a token file finds: its largest token, and the SHA-256 of the tokens."""

    largest: int
    sha256: bytes


def scan_token_file(file, size=None):
    """The Scan of a TokenFile, a chunk at a time.

    size: of the vocabulary; a token that is not below it is an InputError naming file and position.
    """
    digest, largest, first = hashlib.sha256(), 0, 0
    for chunk in as_tokens(file.tokens).chunks(_CHUNK):
        digest.update(chunk)
        largest = max(largest, int(chunk.max()))
        if size is not None and largest >= size:
            place = int(np.argmax(chunk >= size))
            raise InputError(
                f"{file.path}: token {chunk[place]} at position {first + place:,} is not in the "
                f"vocabulary of {size:,}"
            )
        first += len(chunk)
    return Scan(largest, digest.digest())


def write_tokens(file, tokens, format, vocab_size):
    """Writes Tokens to a binary file in one of FORMATS; returns the SHA-256 of the tokens in hex.

    Raises InputError if the format has no room for such tokens, or for so many.
    """
    check_format(format, vocab_size, len(tokens))
    magic = 20240520 if vocab_size <= 65536 else 20240801
    version, kind = _LLM_C[magic]
    if format == "llm.c":
        header = np.zeros(256, HEADER)
        header[:3] = magic, version, len(tokens)
        file.write(header.tobytes())
    digest = hashlib.sha256()
    for chunk in tokens.chunks():
        data = chunk.astype(kind).tobytes()
        digest.update(data)
        file.write(data)
    return digest.hexdigest()


def check_format(format, vocab_size, count):
    """Raises InputError if a format cannot hold `count` tokens of such a vocabulary."""
    if format == "nanogpt" and vocab_size > 65536:
        raise InputError(
            f"--format nanogpt has 2 bytes for a token, too few for a vocabulary of "
            f"{vocab_size:,}; take --format llm.c"
        )
    if format == "llm.c" and count >= 2**31:
        raise InputError(
            f"--format llm.c counts up to {2**31 - 1:,} tokens in a file, there are {count:,}; "
            "take --format nanogpt, or prepare the text in parts"
        )
