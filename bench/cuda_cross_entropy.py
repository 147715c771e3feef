"""Cross-entropy and its gradient on a CUDA device beside a copy, PyTorch, Liger and QuACK.

    python bench/cuda_cross_entropy.py [--classes 4096,...] [--dtypes float32,bfloat16] [--json]
                                       [--gigabytes 2] [--no-compile] [--compile-classes 50257]

GB/s count what has to move: the logits read once and their gradient written once. "of copy"
compares this rate with that of a copy of 2 GiB within the device's memory in the same run, which
reads and writes as well. Logits are filled anew before every call, outside the clock, since in
place the gradient has overwritten them. No call reads the loss back; losses are compared once.
Contenders that are not installed, or fail, are left out with the reason on stderr.
"""

import functools

import cuda_measure

CLASSES = "4096,32000,50257,65536,131072,262144"
BASELINE = "flatstep in place"
FORWARD = "flatstep forward only"
COLUMNS = [
    ("ms", "seconds", ".3f", 1e3),
    ("GB/s", "bytes_per_second", ".0f", 1e-9),
    ("of copy", "of_copy", ".0%", 1),
    ("x flatstep", "over_flatstep", ".2f", 1),
]


class Case:
    """Logits of one shape and type, and what everybody does with them."""

    def __init__(self, torch, device, dtype, rows, classes):
        import flatstep

        self.torch, self.flatstep = torch, flatstep
        generator = torch.Generator(device=device).manual_seed(0)
        self.original = torch.empty(rows, classes, dtype=getattr(torch, dtype), device=device)
        self.original.normal_(0, 3, generator=generator)
        self.logits = torch.empty_like(self.original)
        self.targets = torch.randint(0, classes, (rows,), device=device, generator=generator)
        self.leaf = self.logits.detach().requires_grad_()
        uniform = functools.partial(torch.rand, device=device, generator=generator)
        self.everything = {
            "label_smoothing": 0.1,
            "z_loss": 1e-4,
            "class_weight": uniform(classes) + 0.5,
            "token_weight": uniform(rows) + 0.5,
        }
        self.fresh = None
        self.compiled = torch.compile(self.eager_loss, dynamic=False)

    def refill(self):
        self.logits.copy_(self.original)
        self.leaf.grad = None

    def eager_loss(self, logits, targets):
        return self.torch.nn.functional.cross_entropy(logits, targets)

    def ours(self, **options):
        return self.flatstep.cross_entropy(self.logits, self.targets, **options)

    def new_array(self):
        return self.ours(grad=self.torch.empty_like(self.logits))

    def backward(self, loss_of):
        loss = loss_of(self.leaf, self.targets)
        loss.backward()
        return loss

    def contenders(self, compiled):
        calls = {
            BASELINE: lambda: self.ours(grad=self.logits),
            "flatstep new array": self.new_array,
            "flatstep everything on": lambda: self.ours(grad=self.logits, **self.everything),
            "flatstep softcap": lambda: self.ours(grad=self.logits, softcap=30.0),
            FORWARD: lambda: self.ours(),
            "torch eager": lambda: self.backward(self.eager_loss),
        }
        if compiled:
            calls["torch.compile"] = lambda: self.backward(self.compiled)
        if liger := cuda_measure.optional("liger_kernel.transformers"):
            calls["Liger"] = lambda: self.backward(liger.LigerCrossEntropyLoss())
        if quack := cuda_measure.optional("quack.cross_entropy"):
            loss = functools.partial(quack.cross_entropy, reduction="mean", inplace_backward=True)
            calls["QuACK in place"] = lambda: self.backward(loss)
        return {name: (self.refill, call) for name, call in calls.items()}

    def losses_agree(self):
        """Whether flatstep's loss is PyTorch's, of the same logits in float64, row by row."""
        few = min(64, len(self.original))
        logits, targets = self.original[:few].clone(), self.targets[:few]
        ours = self.flatstep.cross_entropy(logits, targets, reduction="none", grad=logits)
        wide = self.original[:few].double().requires_grad_()
        theirs = self.torch.nn.functional.cross_entropy(wide, targets, reduction="none")
        theirs.sum().backward()
        close = functools.partial(self.torch.testing.assert_close, check_dtype=False)
        close(self.torch.as_tensor(ours.loss), theirs.detach(), rtol=1e-5, atol=1e-5)
        narrow = logits.dtype != self.torch.float32
        close(logits, wide.grad, rtol=1e-2 if narrow else 1e-4, atol=1e-6)


def measure_case(torch, clock, copy_rate, arguments, dtype, classes):
    size = 4 if dtype == "float32" else 2
    rows = max(8, int(arguments.gigabytes * (1 << 30)) // (classes * size) // 8 * 8)
    case = Case(torch, arguments.device, dtype, rows, classes)
    case.losses_agree()
    compiled = not arguments.no_compile and str(classes) in arguments.compile_classes.split(",")
    medians = clock.medians(case.contenders(compiled), arguments.seconds)
    matrix = rows * classes * size
    table = []
    for name, seconds in medians.items():
        rate = matrix * (1 if name == FORWARD else 2) / seconds
        table.append({
            "case": name, "dtype": dtype, "rows": rows, "classes": classes, "seconds": seconds,
            "bytes_per_second": rate, "of_copy": rate / copy_rate,
            "over_flatstep": seconds / medians[BASELINE],
        })  # fmt: skip
    return table


def main():
    parser = cuda_measure.parser_of(__doc__)
    parser.add_argument("--classes", default=CLASSES)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of each matrix of logits")
    parser.add_argument("--compile-classes", default=CLASSES, help="where torch.compile runs")
    arguments = parser.parse_args()
    torch = cuda_measure.torch_with(arguments.device)
    clock = cuda_measure.Clock(torch, arguments.device)
    copied = cuda_measure.COPY_BYTES if arguments.device == "cuda" else 1 << 20
    copy_rate = clock.copy_rate(arguments.device, copied)
    settings = cuda_measure.card(torch, arguments.device) | {"copy_bytes_per_second": copy_rate}
    if not arguments.json:
        print(f"{settings}\ncopy within the device: {copy_rate / 1e9:.0f} GB/s")
    rows = []
    for classes in map(int, arguments.classes.split(",")):
        for dtype in arguments.dtypes.split(","):
            table = measure_case(torch, clock, copy_rate, arguments, dtype, classes)
            rows += table
            if not arguments.json:
                title = f"{table[0]['rows']} x {classes} {dtype}"
                cuda_measure.print_rows(title, table, COLUMNS)
            if arguments.device == "cuda":
                torch.cuda.empty_cache()
    cuda_measure.print_all(rows, settings, arguments.json)


if __name__ == "__main__":
    main()
