"""Clipping, AdamW and zeroing on a CUDA device beside a copy and PyTorch's fused optimizer.

    python bench/cuda_optimizer.py [--cases 124M,1B,small] [--seconds 0.4] [--json]

"124M" and "1B" are one flat buffer, "small" 2000 tensors of 4096 elements, "gpt2" the tensors of
GPT-2 124M. A call clips the global norm, steps and zeroes the gradients; PyTorch does so by
clip_grad_norm_(foreach=True), step() and zero_grad(set_to_none=False). Gradients are written anew
before every call, outside the clock, and their norm is above the limit. GB/s count what two visits
of float32 move, for PyTorch too: the gradient for the norm (4 bytes an element), then parameter and
moments read and written, the gradient read and zeroed (32); other formats by their own bytes. "of
copy" compares this rate with that of a copy of 2 GiB within the device's memory in the same run.
"""

import math

import cuda_measure
from optimizer_contenders import gpt2_shapes

CASES = {
    "124M": [(124_000_000,)],
    "1B": [(1_000_000_000,)],
    "small": [(4096,)] * 2000,
    "gpt2": gpt2_shapes(),
    "tiny": [(4096,)] * 20,  # to test the script
}
BASELINE = "flatstep"
# Bytes an element: moments of 8 bits and their scales are read and written.
BLOCK8 = 4 + 8 / 128
COLUMNS = [
    ("ms", "seconds", ".3f", 1e3),
    ("GB/s", "bytes_per_second", ".0f", 1e-9),
    ("of copy", "of_copy", ".0%", 1),
    ("x flatstep", "over_flatstep", ".2f", 1),
]


class Case:
    """Gradients of one case's shapes; each contender has parameters of its own."""

    def __init__(self, torch, device, shapes):
        import flatstep

        self.torch, self.flatstep, self.device, self.shapes = torch, flatstep, device, shapes
        self.size = sum(math.prod(shape) for shape in shapes)
        self.source = self.flat(torch.float32).normal_(0, 1)

    def flat(self, dtype):
        return self.torch.zeros(self.size, dtype=dtype, device=self.device)

    def views(self, flat):
        sizes = [math.prod(shape) for shape in self.shapes]
        return [x.view(s) for x, s in zip(flat.split(sizes), self.shapes, strict=True)]

    def ours(self, dtype="float32", one_visit=False, **options):
        dtype = getattr(self.torch, dtype)
        params, grads = self.flat(dtype), self.flat(dtype)
        views = self.views(grads)
        optimizer = self.flatstep.AdamW(self.views(params), lr=1e-6, **options)
        if one_visit:
            partials = [None]

            def prepare():
                grads.zero_()
                partials[0] = self.flatstep.accumulate(views, self.views(self.source))

            return prepare, lambda: optimizer.step(
                views, max_norm=1.0, zero_grad=True, partials=partials[0]
            )
        return (lambda: grads.copy_(self.source)), (
            lambda: optimizer.step(views, max_norm=1.0, zero_grad=True)
        )

    def theirs(self, **options):
        params = [x.requires_grad_() for x in self.views(self.flat(self.torch.float32))]
        grads = self.flat(self.torch.float32)
        for param, grad in zip(params, self.views(grads), strict=True):
            param.grad = grad
        optimizer = self.torch.optim.AdamW(params, lr=1e-6, **options)

        def call():
            self.torch.nn.utils.clip_grad_norm_(params, 1.0, foreach=True)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)

        return (lambda: grads.copy_(self.source)), call

    def contenders(self):
        """`{name: (bytes an element, function that makes (prepare, call))}`"""
        return {
            BASELINE: (36, self.ours),
            "flatstep one visit": (32, lambda: self.ours(one_visit=True)),
            "flatstep 8bit": (20 + BLOCK8, lambda: self.ours(state="8bit")),
            "flatstep 8bit, all bf16": (
                10 + BLOCK8,
                lambda: self.ours("bfloat16", state="8bit", stochastic_rounding=True),
            ),
            "torch fused": (36, lambda: self.theirs(fused=True)),
            "torch foreach": (36, lambda: self.theirs(foreach=True)),
        }


def measure_case(torch, clock, copy_rate, arguments, name):
    """One contender after the other: all at once would not fit the device's memory."""
    case = Case(torch, arguments.device, CASES[name])
    table = []
    for contender, (moved, make) in case.contenders().items():
        try:
            pair = make()
        except Exception as error:
            print(f"{contender}: {type(error).__name__}: {cuda_measure.first_line(error)}")
            continue
        seconds = clock.medians({contender: pair}, arguments.seconds).get(contender)
        del pair
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
        if seconds is None:
            continue
        rate = moved * case.size / seconds
        first = table[0]["seconds"] if table else seconds
        figures = {"seconds": seconds, "bytes_per_second": rate, "of_copy": rate / copy_rate,
                   "over_flatstep": seconds / first}  # fmt: skip
        table.append({"case": contender, "tensors": name, "elements": case.size} | figures)
    return table


def main():
    parser = cuda_measure.parser_of(__doc__)
    parser.add_argument("--cases", default="124M,1B,small", help=", ".join(CASES))
    arguments = parser.parse_args()
    torch = cuda_measure.torch_with(arguments.device)
    clock = cuda_measure.Clock(torch, arguments.device)
    copied = cuda_measure.COPY_BYTES if arguments.device == "cuda" else 1 << 20
    copy_rate = clock.copy_rate(arguments.device, copied)
    settings = cuda_measure.card(torch, arguments.device) | {"copy_bytes_per_second": copy_rate}
    if not arguments.json:
        print(f"{settings}\ncopy within the device: {copy_rate / 1e9:.0f} GB/s")
    rows = []
    for name in arguments.cases.split(","):
        table = measure_case(torch, clock, copy_rate, arguments, name)
        rows += table
        if not arguments.json:
            cuda_measure.print_rows(f"{name}: {len(CASES[name])} tensors", table, COLUMNS)
    cuda_measure.print_all(rows, settings, arguments.json)


if __name__ == "__main__":
    main()
