"""What the benchmarks on a CUDA device share: timing by events, the speed of a copy, tables.

A contender is a pair of functions: `prepare`, outside the clock, and `call`, between two events of
the current stream. Contenders take turns, so that a clock that changes slows them all, and figures
are medians. With `--device cpu` the same code runs on the CPU, with tiny sizes, to test itself.
"""

import argparse
import json
import statistics
import sys
import time

COPY_BYTES = 2 << 30


def parser_of(doc):
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=0.4, help="a contender's time in a case")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--device", default="cuda", help="cuda, or cpu to test the script itself")
    return parser


def torch_with(device):
    """PyTorch, or an exit in one line where it or the device is missing."""
    try:
        import torch
    except ImportError:
        sys.exit("This benchmark needs PyTorch.")
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("This benchmark needs a CUDA device, and PyTorch sees none.")
    torch.backends.cuda.matmul.allow_tf32 = False
    return torch


def optional(name):
    """A module that may be missing, or None."""
    try:
        return __import__(name, fromlist=["_"])
    except Exception as error:  # some fail in ways of their own where there is no device
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return None


class Clock:
    """Seconds of calls on a device."""

    def __init__(self, torch, device):
        self._torch, self._cuda = torch, device == "cuda"

    def seconds(self, prepare, call):
        """Of one call; the device has nothing else to do."""
        prepare()
        if not self._cuda:
            began = time.perf_counter()
            call()
            return time.perf_counter() - began
        begin, end = (self._torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._torch.cuda.synchronize()
        begin.record()
        result = call()
        end.record()
        self._torch.cuda.synchronize()
        del result  # freed behind the clock
        return begin.elapsed_time(end) / 1e3

    def medians(self, contenders, budget, least=7, most=200):
        """`{name: median seconds}` of `{name: (prepare, call)}`, in turns, after three to warm up.

        One that fails is left out, with its reason on stderr.
        """
        contenders, rounds = dict(contenders), {}
        for name, (prepare, call) in list(contenders.items()):
            try:
                for _ in range(3):
                    seconds = self.seconds(prepare, call)
                rounds[name] = min(most, max(least, int(budget / max(seconds, 1e-6))))
            except Exception as error:
                print(f"{name}: {type(error).__name__}: {first_line(error)}", file=sys.stderr)
                del contenders[name]
        seconds = {name: [] for name in contenders}
        for number in range(max(rounds.values(), default=0)):
            for name, (prepare, call) in contenders.items():
                if number < rounds[name]:
                    seconds[name].append(self.seconds(prepare, call))
        return {name: statistics.median(values) for name, values in seconds.items()}

    def copy_rate(self, device, size=COPY_BYTES):
        """Bytes a second, read and written, of a copy within the device's memory."""
        source = self._torch.randint(0, 255, (size,), dtype=self._torch.uint8, device=device)
        target = self._torch.empty_like(source)
        copy = {"copy": (lambda: None, lambda: target.copy_(source))}
        return 2 * size / self.medians(copy, 0.3, least=20)["copy"]


def first_line(error):
    return (str(error).strip().splitlines() or [""])[0]


def card(torch, device):
    """The card and versions that belong to a table."""
    import flatstep

    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    return {
        "device": name,
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "flatstep": flatstep.__version__,
        "archs": flatstep.info()["cuda"]["archs"],
    }


def print_rows(title, rows, columns):
    """A table of dicts: `columns` is [(heading, key, format, factor)]."""
    print(f"\n{title}")
    print(f"{'':30}" + "".join(f"{heading:>15}" for heading, *_ in columns))
    for row in rows:
        cells = ""
        for _, key, form, factor in columns:
            value = row.get(key)
            cells += f"{'' if value is None else format(value * factor, form):>15}"
        print(f"{row['case']:30}{cells}", flush=True)


def print_all(rows, settings, as_json):
    """The end of a run: everything once more as JSON, if that was asked for."""
    if as_json:
        print(json.dumps([row | settings for row in rows], indent=1))
