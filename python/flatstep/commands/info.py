"""`flatstep info`: what this build can do."""

import json

import flatstep

from . import add_command

EXAMPLES = """examples:
  flatstep info
  flatstep info --json"""


def add(commands):
    """Adds the command's parser."""
    summary = "Show version, instruction set, threads, BLAS and CUDA."
    parser = add_command(commands, "info", run, summary, EXAMPLES)
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments):
    """Prints the lines, or one JSON object."""
    info = flatstep.info()
    if arguments.json:
        print(json.dumps(info, indent=2))
        return 0
    for name, text in _lines(info):
        print(f"{name:<9} {text}")
    return 0


def _lines(info):
    cuda = info["cuda"]
    devices = ", ".join(map(str, cuda["devices"])) or f"no device: {cuda['why_not']}"
    if not cuda["built"]:
        devices = f"not built: {cuda['why_not']}"
    available = ", ".join(info["isa_available"])
    return [
        ("flatstep", info["version"]),
        ("isa", f"{info['isa']} (of {available})"),
        ("threads", info["threads"]),
        ("openmp", "yes" if info["openmp"] else "no"),
        ("blas", info["blas"]),
        ("cuda", devices),
    ]
