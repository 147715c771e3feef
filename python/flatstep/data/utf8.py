"""UTF-8 in pieces: a long text as one str could take four times its size."""

from ..errors import InputError

CHUNK = 1 << 20


class EncodingError(InputError):
    """Text that a vocabulary cannot encode: `reason`, and the `place` of the byte at fault."""

    def __init__(self, reason, place):
        super().__init__(f"{reason}, at byte {place:,}")
        self.reason, self.place = reason, place


def character_start(text, place):
    """The first byte of the character that the byte at `place` belongs to."""
    for back in range(min(4, place + 1)):
        if place < len(text) and text[place - back] & 0xC0 != 0x80:
            return place - back
    return place


def utf8_chunks(text, size=CHUNK):
    """Yields (place, str) of bytes or a memoryview in UTF-8, some `size` bytes at a time.

    Raises EncodingError naming the byte that is not.
    """
    first = 0
    while first < len(text):
        last = min(first + size, len(text))
        if last < len(text):
            last = character_start(text, last)
        try:
            chunk = str(text[first:last], "utf-8")
        except UnicodeDecodeError as error:
            place = first + error.start
            raise EncodingError(f"not UTF-8 (byte 0x{text[place]:02x})", place) from error
        yield first, chunk
        first = last


def check_utf8(text):
    """Raises EncodingError if bytes are not UTF-8."""
    if not text.isascii():
        for _ in utf8_chunks(text):
            pass
