"""The linear layer with cross-entropy on a CUDA device beside its three products and PyTorch.

    python bench/cuda_linear_cross_entropy.py [--shapes 8192x2048x50257] [--dtypes bfloat16,float32]
                                              [--workspace-mib 256,1024] [--no-compile] [--json]

Shapes are rows x width x classes. "over products" is the time over that of the bare products that
the step is made of (logits, gradient of the hidden states, gradient of the weight), by PyTorch in
the same type, one after the other; float32 without TF32. The peak is what a call allocates in
PyTorch's pool on top of its inputs; flatstep's gradient of the weight is float32 in any case.
"""

import functools

import cuda_measure

SHAPES = "8192x2048x50257,4096x4096x131072"
PRODUCTS = "three products"
COLUMNS = [
    ("ms", "seconds", ".3f", 1e3),
    ("TFLOP/s", "flops_per_second", ".0f", 1e-12),
    ("over products", "over_products", ".2f", 1),
    ("peak MiB", "peak_bytes", ".0f", 1 / (1 << 20)),
]


class Case:
    """Hidden states and a weight of one shape and type, and what everybody does with them."""

    def __init__(self, torch, device, dtype, rows, width, classes):
        import flatstep

        self.torch, self.flatstep = torch, flatstep
        generator = torch.Generator(device=device).manual_seed(0)
        make = functools.partial(torch.randn, device=device, generator=generator)
        dtype = getattr(torch, dtype)
        self.hidden = make(rows, width).to(dtype)
        self.weight = (make(classes, width) * (2 / width**0.5)).to(dtype)
        self.targets = torch.randint(0, classes, (rows,), device=device, generator=generator)
        self.leaves = [x.detach().requires_grad_() for x in (self.hidden, self.weight)]
        self.compiled = torch.compile(self.eager_loss, dynamic=False)

    def forget(self):
        for leaf in self.leaves:
            leaf.grad = None

    def products(self):
        logits = self.hidden @ self.weight.T
        return logits @ self.weight, logits.T @ self.hidden

    def ours(self, workspace_bytes):
        return self.flatstep.linear_cross_entropy(
            self.hidden, self.weight, self.targets, workspace_bytes=workspace_bytes
        )

    def eager_loss(self, hidden, weight, targets):
        return self.torch.nn.functional.cross_entropy(hidden @ weight.T, targets)

    def backward(self, loss_of):
        loss_of(*self.leaves, self.targets).backward()

    def contenders(self, workspaces, compiled):
        calls = {PRODUCTS: self.products}
        for mib in workspaces:
            calls[f"flatstep, {mib} MiB"] = lambda mib=mib: self.ours(mib << 20)
        calls["torch eager"] = lambda: self.backward(self.eager_loss)
        if compiled:
            calls["torch.compile"] = lambda: self.backward(self.compiled)
        if liger := cuda_measure.optional("liger_kernel.transformers"):
            loss = liger.LigerFusedLinearCrossEntropyLoss()
            calls["Liger"] = lambda: self.backward(lambda x, w, t: loss(w, x, t))
        return {name: (self.forget, call) for name, call in calls.items()}

    def peak(self, call):
        """Bytes that a call allocates at its peak, or None off CUDA."""
        cuda = self.torch.cuda
        if self.hidden.device.type != "cuda":
            return None
        self.forget()
        cuda.synchronize()
        before = cuda.memory_allocated()
        cuda.reset_peak_memory_stats()
        result = call()
        cuda.synchronize()
        del result
        return cuda.max_memory_allocated() - before


def measure_case(torch, clock, arguments, dtype, rows, width, classes):
    case = Case(torch, arguments.device, dtype, rows, width, classes)
    workspaces = list(map(int, arguments.workspace_mib.split(",")))
    contenders = case.contenders(workspaces, not arguments.no_compile)
    medians = clock.medians(contenders, arguments.seconds)
    flops = 6 * rows * width * classes
    return [
        {"case": name, "dtype": dtype, "rows": rows, "width": width, "classes": classes,
         "seconds": seconds, "flops_per_second": flops / seconds,
         "over_products": seconds / medians[PRODUCTS], "peak_bytes": case.peak(contenders[name][1])}
        for name, seconds in medians.items()
    ]  # fmt: skip


def main():
    parser = cuda_measure.parser_of(__doc__)
    parser.add_argument("--shapes", default=SHAPES)
    parser.add_argument("--dtypes", default="bfloat16,float32")
    parser.add_argument("--workspace-mib", default="256,1024")
    arguments = parser.parse_args()
    torch = cuda_measure.torch_with(arguments.device)
    clock = cuda_measure.Clock(torch, arguments.device)
    settings = cuda_measure.card(torch, arguments.device)
    if not arguments.json:
        print(settings)
    table = []
    for shape in arguments.shapes.split(","):
        for dtype in arguments.dtypes.split(","):
            sizes = list(map(int, shape.split("x")))
            rows = measure_case(torch, clock, arguments, dtype, *sizes)
            table += rows
            if not arguments.json:
                cuda_measure.print_rows(f"{shape} {dtype}", rows, COLUMNS)
            if arguments.device == "cuda":
                torch.cuda.empty_cache()
    cuda_measure.print_all(table, settings, arguments.json)


if __name__ == "__main__":
    main()
