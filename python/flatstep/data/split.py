"""Which documents, or which part of the text, are kept for validation."""

import math
from typing import NamedTuple

from ..errors import InputError
from .utf8 import character_start


class Piece(NamedTuple):
    """A stretch of a document: which one, where in it, and its bytes; None is the end of text."""

    name: str
    place: int
    text: bytes | memoryview | None

    @property
    def size(self):
        """Bytes."""
        return 0 if self.text is None else len(self.text)


def in_a_row(documents, end_of_text):
    """The Pieces of documents one after the other.

    end_of_text: whether each ends in the token of that name; else one that lacks its last line
    end gets it, except the last: it would run into the next one.
    """
    pieces, last = [], len(documents) - 1
    for number, document in enumerate(documents):
        text = document.text
        pieces.append(Piece(document.name, 0, text))
        if end_of_text:
            pieces.append(Piece(document.name, len(text), None))
        elif number != last and not text.endswith(b"\n"):
            pieces.append(Piece(document.name, len(text), b"\n"))
    return pieces


def split_documents(
    documents, block_size, val_fraction, how="auto", end_of_text=False, characters=False
):
    """Splits documents into (training Pieces, validation Pieces, words), the same on every call.

    how: "documents" sets whole ones aside, spread evenly over their sizes; "tail" takes the end of
    the whole text; "auto" takes documents unless that misses the wished share by more than a
    factor of two (few or very unequal ones). characters: the tail begins with a whole character.
    Raises InputError if a part would be shorter than block_size + 1 bytes, or documents are asked
    for and cannot be had.
    """
    needed = block_size + 1
    if how != "tail":
        chosen, why_not = _choose(documents, val_fraction, needed, forced=how == "documents")
        if chosen:
            train = [document for k, document in enumerate(documents) if k not in chosen]
            validation = [documents[k] for k in sorted(chosen)]
            words = f"{len(chosen)} of {len(documents)} documents"
            return in_a_row(train, end_of_text), in_a_row(validation, end_of_text), words
        if how == "documents":
            raise InputError(f"--val-split documents cannot be done: {why_not}")
    pieces = in_a_row(documents, end_of_text)
    total = sum(piece.size for piece in pieces)
    tail = max(round(total * val_fraction), needed)
    if total - tail < needed:
        raise InputError(
            f"the text holds {total:,} bytes, too few for --block-size {block_size} with "
            f"--val-fraction {val_fraction}: training and validation need {needed:,} each"
        )
    return *_cut(pieces, total - tail, characters), "the end of the text"


def _choose(documents, fraction, needed, forced):
    """(numbers of the documents for validation or None, why there are none)."""
    sizes = [len(document.text) for document in documents]
    total = sum(sizes)
    if len(sizes) < 2:
        return None, "there is one document only; take --val-split tail"
    chosen = _spread_choice(sizes, fraction)
    if forced and not chosen:
        chosen = {min(range(len(sizes)), key=lambda k: abs(sizes[k] - fraction * total))}
    held = sum(sizes[k] for k in chosen)
    if not forced and not (fraction / 2 <= held / total <= min(fraction * 2, (1 + fraction) / 2)):
        return None, "their sizes are too unequal"
    if min(held, total - held) < needed:
        return None, (
            f"{len(chosen)} of {len(sizes)} documents would hold {held:,} of {total:,} bytes, and "
            f"training and validation need {needed:,} each"
        )
    return chosen, None


def _spread_choice(sizes, fraction):
    """Numbers of the documents for validation: every 1/fraction-th one in order of size."""
    by_size = sorted(range(len(sizes)), key=lambda k: (sizes[k], k))
    quota = [math.floor(k * fraction + 0.5) for k in range(len(sizes) + 1)]
    return {number for k, number in enumerate(by_size) if quota[k + 1] > quota[k]}


def _cut(pieces, position, characters):
    """The Pieces before and from byte `position` on, without a copy of their text."""
    begin = 0
    for number, piece in enumerate(pieces):
        if piece.size and position < begin + piece.size:
            place = position - begin
            if characters:
                place = character_start(piece.text, place)
            view = memoryview(piece.text)
            before = [piece._replace(text=view[:place])] if place else []
            after = piece._replace(place=piece.place + place, text=view[place:])
            return pieces[:number] + before, [after, *pieces[number + 1 :]]
        begin += piece.size
    raise ValueError(f"position: got {position}, expected less than the text's {begin}")
