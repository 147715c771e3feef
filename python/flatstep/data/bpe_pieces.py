"""Where a long text may be cut so that the tokens of its pieces are those of the whole.

Byte pairs are merged within a word of the pre-tokenizer, never across two. Its words are found from
left to right, none of the known expressions looks back, and only white space looks ahead; so a text
can be cut where a word always ends: before a space (GPT-2: also a line end) behind anything else.
"""

import re

from .utf8 import character_start

PIECE = 1 << 16
# The expressions of Llama 3 and of Qwen 2. Their words may end in line ends, never in a space.
_KNOWN = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + digits
    + r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    for digits in ("{1,3}", "")
}  # fmt: skip
GPT2_CUT = re.compile(rb"[^\s][ \n]")
SPACE_CUT = re.compile(rb"[^\s] ")


def where_to_cut(description):
    """The expression (bytes) in whose middle a text may be cut, for a tokenizer.json; or None."""
    if description.get("normalizer") or any(
        entry.get("rstrip") or re.search(r"\s", entry["content"])
        for entry in description.get("added_tokens") or []
    ):
        return None
    first = description.get("pre_tokenizer") or {}
    parts = first.get("pretokenizers") or [first]
    last = parts[-1]
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if len(parts) == 1 and last.get("use_regex", True):
        return GPT2_CUT
    if len(parts) != 2 or parts[0].get("type") != "Split" or last.get("use_regex", True):
        return None
    pattern = (parts[0].get("pattern") or {}).get("Regex")
    isolated = parts[0].get("behavior") == "Isolated" and not parts[0].get("invert")
    return SPACE_CUT if isolated and pattern in _KNOWN else None


def pieces_of(text, cut, size=PIECE):
    """Yields the parts of bytes or a memoryview, each a little longer than `size`.

    cut: an expression of where_to_cut; None leaves the text whole.
    """
    first = 0
    while first < len(text):
        last = _cut_after(text, first + size, cut) if cut else len(text)
        yield text[first:last]
        first = last


def _cut_after(text, place, cut):
    while found := cut.search(text, place):
        place = found.start() + 1
        begin = character_start(text, found.start())
        # White space of several bytes does not look like it byte by byte.
        if not str(text[begin:place], "utf-8").isspace():
            return place
    return len(text)
