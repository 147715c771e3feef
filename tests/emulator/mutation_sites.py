"""Where mutate.py changes the kernels: the rules that find the sites, and the exclusions."""

import re
from dataclasses import dataclass
from pathlib import Path

from mutation_exclusions import EXCLUSIONS

CROSS_ENTROPY = (
    "cross_entropy.cu",
    "cross_entropy_capped.cu",
    "cross_entropy_ends.cu",
    "cross_entropy_finish.h",
    "cross_entropy_short.cu",
    "cross_entropy_slice.h",
    "cross_entropy_stage.h",
    "cross_entropy_team.h",
    "loss_totals.cu",
)
OPTIMIZER = (
    "decide.cu",
    "elementwise.cu",
    "find.h",
    "gradient.cu",
    "tensors.h",
    "update.cu",
    "update_lane.h",
    "update_state.h",
)
FILES = ("device.h", *CROSS_ENTROPY, *OPTIMIZER)

BARRIER = re.compile(r"\b(?:__syncthreads|__syncwarp|cluster_sync|cluster_wait)\(\);")
MASK = re.compile(r"\bkAllLanes\b")
COMPARISON = re.compile(r" (<|<=|>|>=) ")
POINTER = re.compile(r"[\w.>\[\]-]+ (==|!=) nullptr")
# Of classes, rows and elements that there are.
PREDICATE = re.compile(r"\b\w+\.has(?:_second)?\(\w+\)")
# Comparisons of what is computed, not of places.
VALUES = re.compile(r"\b(?:a|x|alignof|bits|fabs|float_of|largest|maximum|power|tops?|word)\b")
# What a kernel skips when something is wrong, true where it is.
FLAG = re.compile(
    r"(?<=[(!])fault(?= &&| \|\||\))|\w+(?:\.|->)fault != LossFault::none|"
    r"\w+\.skipped != 0(?=\))|\bbeyond != kNowhere(?=\))|\(valid >> r & 1u\) != 0(?= \|\|)"
)
PERMISSION = re.compile(r"\brows\.zero_at_fault\b")
# A limit known to the compiler: in the head of a loop it counts registers and guards nothing.
CONSTANT = re.compile(r"(?:group \+ )?(?:k[A-Z]\w*|\d+|[ */+()-])+")


@dataclass
class Site:
    """One mutation: `edits` are texts to insert, {is} standing for "this mutant is on"."""

    file: str
    line: int
    kind: str  # barrier, mask or bounds
    what: str
    source: str
    edits: list
    context: str  # the line and the next
    number: int = 0

    def __str__(self):
        return f"{self.number:3} {self.kind:7} {self.file}:{self.line} {self.what}: {self.source}"


def blank(text):
    return re.sub(r"[^\n]", " ", text)


def readable(text):
    """The text with comments, strings and what the emulator does not compile made blank."""
    text = re.sub(r'//[^\n]*|"(?:\\.|[^"\\\n])*"', lambda m: blank(m.group()), text)
    lines, stack = [], []  # of the branches around a line: whether it is compiled
    for line in text.split("\n"):
        directive = re.match(r"#\s*(if|else|elif|endif)(.*)", line)
        if directive:
            word, condition = directive.groups()
            if word == "if":
                emulated = "FLATSTEP_CUDA_EMULATED" in condition
                other = "__CUDA_ARCH__" in condition or (emulated and "!" in condition)
                stack.append(not other)
            elif word == "else":
                stack[-1] = not stack[-1]
            elif word == "endif":
                stack.pop()
        lines.append(line if all(stack) and not line.startswith("#") else blank(line))
    return "\n".join(lines)


def closing(text, place):
    """The place after the bracket that closes the one at `place`."""
    pairs, depth = {"(": ")", "[": "]", "{": "}"}, 0
    for i in range(place, len(text)):
        depth += (text[i] in pairs) - (text[i] in pairs.values())
        if depth == 0:
            return i + 1
    raise ValueError(f"no end of the bracket at {place}")


def device_bodies(text):
    """The bodies of functions that run on the device, constructors' lists of members included."""
    bodies, end = [], 0
    for mark in re.finditer(r"\b__(?:device|global)__\b", text):
        if mark.start() < end:
            continue
        begin = re.compile(r"[{;]").search(text, mark.end()).start()
        if text[begin] == ";":
            continue
        end = closing(text, begin)
        while re.match(r"\s*[,{]", text[end:]):
            end = closing(text, text.index("{", end))
        bodies.append((begin, end))
    return bodies


STOPS_LEFT = re.compile(r"(?:&&\s|\|\|\s|[?:=]\s|,\s|;|return\s)\Z")
STOPS_RIGHT = re.compile(r"(?: &&| \|\|| \?| :|,|;)")


def operands(text, begin, end):
    """Where the comparison with its operator at begin..end starts and ends."""
    depth, left = 0, begin
    while depth > 0 or not STOPS_LEFT.search(text[max(0, left - 8) : left]):
        depth += (text[left - 1] in ")]}") - (text[left - 1] in "([{")
        if depth < 0:
            break
        left -= 1
    depth, right = 0, end
    while depth > 0 or not STOPS_RIGHT.match(text, right):
        depth += (text[right] in "([{") - (text[right] in ")]}")
        if depth < 0:
            break
        right += 1
    while text[left].isspace():
        left += 1
    return left, right


def in_head_of_loop(text, place):
    depth = 0
    while depth <= 0:
        place -= 1
        if text[place] in "{}":
            return False
        depth += (text[place] == "(") - (text[place] == ")")
    return text[:place].endswith(("for ", "while "))


def plain(text):
    return re.sub(r"static_cast<[^>]*>\((.*?)\)", r"\1", text).strip()


def is_clamp(text, left, operator, right):
    """a < b ? a : b, where a + 1 in the place of a = b makes no difference."""
    match = re.match(r" \? (.*?) : (.*?)[;,)]", text[right:])
    a, b = text[left : operator[0]], text[operator[1] : right]
    return match and {plain(match[1]), plain(match[2])} == {plain(a), plain(b)}


def always(left, right):
    return [(left, "({is} || "), (right, ")")]


def never(left, right):
    return [(left, "(!{is} && "), (right, ")")]


def sites_in(name, original):
    text = readable(original)
    sites = []

    def add(place, kind, what, edits):
        line = original.count("\n", 0, place)
        lines = [each.strip() for each in original.split("\n")[line : line + 2]]
        sites.append(Site(name, line + 1, kind, what, lines[0], edits, " ".join(lines)))

    def matches(pattern):
        for begin, end in device_bodies(text):
            yield from pattern.finditer(text, begin, end)

    for m in matches(BARRIER):
        add(m.start(), "barrier", "removed", [(m.start(), "if (!{is}) ")])
    for m in matches(MASK):
        edits = [(m.start(), "({is} ? 0x0000ffffu : "), (m.end(), ")")]
        add(m.start(), "mask", "without the upper half", edits)
    for m in matches(COMPARISON):
        left, right = operands(text, m.start(), m.end())
        limit, operator, loop = text[m.end() : right], m[1], in_head_of_loop(text, left)
        if (loop and CONSTANT.fullmatch(limit)) or VALUES.search(text[left:right]):
            continue
        change = " - {is}" if operator == ">" else " + {is}"
        if not is_clamp(text, left, m.span(), right):
            add(left, "bounds", f"{text[left:right]}, off by one", [(right, change)])
        # Without its check a loop never ends, which any test sees.
        if not loop:
            good = (operator in ("<", "<=")) != (limit == "0")
            edits = always(left, right) if good else never(left, right)
            add(left, "bounds", f"{text[left:right]}, no check", edits)
    for m in matches(POINTER):
        edits = always(*m.span()) if m[1] == "!=" else never(*m.span())
        add(m.start(), "bounds", f"{m[0]}, no check", edits)
    for pattern, change in ((PREDICATE, always), (PERMISSION, always), (FLAG, never)):
        for m in matches(pattern):
            add(m.start(), "bounds", f"{m[0]}, no check", change(*m.span()))
    return sites


def all_sites(directory):
    """The sites in csrc/cuda, numbered from 1; an exclusion that excludes nothing is an error."""
    sites, used = [], set()
    for name in FILES:
        found = sites_in(name, (Path(directory) / name).read_text())
        for site in sorted(found, key=lambda s: (s.line, s.edits[0][0])):
            fitting = [
                i
                for i, (file, part, what, _) in enumerate(EXCLUSIONS)
                if file == name and part in site.context and re.search(what, site.what)
            ]
            used.update(fitting)
            if not fitting:
                sites.append(site)
    for i, exclusion in enumerate(EXCLUSIONS):
        if i not in used:
            raise ValueError(f"an exclusion fits nothing: {exclusion}")
    for number, site in enumerate(sites, 1):
        site.number = number
    return sites


def mutated(text, sites):
    """The text of a file with all of its sites, each of which asks whether its mutant is on."""
    edits = [
        (place, -index if inserted.startswith("(") else index, inserted, site.number)
        for site in sites
        for index, (place, inserted) in enumerate(site.edits)
    ]
    for place, _, inserted, number in sorted(
        edits, key=lambda e: (e[0], e[2] == ")"), reverse=True
    ):
        inserted = inserted.replace("{is}", f"::mutation::is({number})")
        text = text[:place] + inserted + text[place:]
    return '#include "mutation.h"\n#line 1\n' + text
