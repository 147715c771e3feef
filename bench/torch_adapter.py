"""flatstep.torch beside what it stands in for in a PyTorch loop, on the CPU.

The loss with its backward pass, and clipping, AdamW and zeroing: in place of PyTorch's functions
one by one ("drop-in"), and with the clipping and zeroing inside the step ("in one call").

    python bench/torch_adapter.py [--threads 2] [--rounds 5] [--no-compile] [--only TEXT] [--json]
"""

import argparse
import json
import random
import sys

from measure import Child, serve, take_turns, turn_of

# rows, classes
LOSSES = [(16, 64), (4096, 256), (1024, 32000), (1024, 50257)]
# width, layers of a GPT; or the number and the size of equal tensors, of which all have a gradient,
# or another half in each step
STEPS = {
    "GPT 6 x 384": (384, 6),
    "GPT 12 x 768": (768, 12),
    "1000 x 4096": (1000, 4096),
    "half of 1000 x 16": (1000, 16),
}
FUNCTIONS = ("loss", "step")
CONTENDERS = {
    "torch": FUNCTIONS,
    "torch compiled": ("loss",),
    "drop-in": FUNCTIONS,
    "in one call": ("step",),
}


def shapes_of(name):
    first, second = STEPS[name]
    if not name.startswith("GPT"):
        return [(second,)] * first
    c = first
    block = [(c,), (c,), (3 * c, c), (3 * c,), (c, c), (c,), (c,), (c,)]
    block += [(4 * c, c), (4 * c,), (c, 4 * c), (c,)]
    return [(256, c), (256, c), *block * second, (c,), (c,)]


class Contender:
    """One way to call, in a process of its own."""

    def __init__(self, name):
        import torch

        import flatstep.torch

        self._torch, self._name = torch, name
        own = name in ("drop-in", "in one call")
        library = flatstep.torch if own else torch.nn.functional
        self._cross_entropy = library.cross_entropy
        if name == "torch compiled":
            self._cross_entropy = torch.compile(library.cross_entropy)
        self._clip = (flatstep.torch if own else torch.nn.utils).clip_grad_norm_
        self._adamw = (flatstep.torch if own else torch.optim).AdamW
        self._extra = {} if own else {"fused": True}
        self._prepared = {}

    def loss(self, rows, classes):
        """Seconds of the loss and its backward pass."""
        torch = self._torch
        if (rows, classes) not in self._prepared:
            torch.manual_seed(0)
            logits = torch.randn(rows, classes).requires_grad_()
            self._prepared = {(rows, classes): (logits, torch.randint(classes, (rows,)))}
        logits, targets = self._prepared[rows, classes]

        def prepare():
            logits.grad = None

        return turn_of(prepare, lambda: self._cross_entropy(logits, targets).backward(), calls=9)

    def step(self, name):
        """Seconds of clipping, the step and zeroing."""
        torch = self._torch
        if name not in self._prepared:
            torch.manual_seed(0)
            parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes_of(name)]
            inside = self._name == "in one call"
            extra = {"max_norm": 1.0, "zero_grad": True} if inside else self._extra
            optimizer = self._adamw(parameters, lr=1e-4, **extra)
            gradients = [torch.empty_like(parameter) for parameter in parameters]
            self._prepared = {name: (parameters, optimizer, gradients, random.Random(0))}
        parameters, optimizer, gradients, generator = self._prepared[name]
        absent = 0.5 if name.startswith("half") else 0.0

        def prepare():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                gradient.fill_(1e-3)
                parameter.grad = None if generator.random() < absent else gradient

        def call():
            if self._name != "in one call":
                self._clip(parameters, 1.0)
            optimizer.step()
            if self._name != "in one call":
                optimizer.zero_grad(set_to_none=False)

        return turn_of(prepare, call, calls=9)


def measure(children, method, rounds, **arguments):
    """{contender: median seconds} of those that have the method."""
    turns = {
        name: lambda child=child: child.ask(method, **arguments)
        for name, child in children.items()
        if method in CONTENDERS[name]
    }
    return take_turns(turns, rounds, list(children.values()))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(Contender(arguments.serve))
        return
    cases = {f"cross-entropy {r} x {c}": ("loss", {"rows": r, "classes": c}) for r, c in LOSSES}
    cases |= {f"AdamW {name}": ("step", {"name": name}) for name in STEPS}
    cases = {name: case for name, case in cases.items() if arguments.only in name}
    if not cases:
        parser.error(f"--only: got {arguments.only!r}, which is in no case's name")
    names = [n for n in CONTENDERS if not (arguments.no_compile and n == "torch compiled")]
    children = {name: Child(sys.argv[0], name, arguments.threads) for name in names}
    for name, (method, shape) in cases.items():
        cases[name] = measure(children, method, arguments.rounds, **shape)
    for child in children.values():
        child.stop()
    if arguments.json:
        print(json.dumps(cases))
        return
    print(f"{arguments.threads} threads; ms, and torch's time over this")
    for case, seconds in cases.items():
        row = "".join(
            f"  {name} {value * 1e3:.3f} ({seconds['torch'] / value:.2f})"
            for name, value in seconds.items()
        )
        print(f"{case:26}{row}")


if __name__ == "__main__":
    main()
