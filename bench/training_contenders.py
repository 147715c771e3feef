"""Who takes part in training_step.py: the shapes, the steps and OpenBLAS on a step's products."""

import time

import measure
import numpy as np

SHAPES = {  # layers, heads, width, batch, length, vocabulary, block
    "a": (6, 6, 384, 8, 256, 256, 256),
    "b": (12, 12, 768, 4, 64, 50257, 1024),
    "c": (4, 4, 128, 12, 64, 256, 64),
    "d": (2, 2, 64, 8, 32, 256, 32),
}
HYPER_PARAMETERS = {"lr": 1e-3, "betas": (0.9, 0.95), "weight_decay": 0.1}
MAX_NORM = 1.0
FIRST = (1, 1, 8, 1, 8, 16, 8)  # a shape to use a library once with
LOSS_STEPS = 3  # steps after which the losses are compared again


def make_model(shape, dropout):
    import flatstep

    layers, heads, width, _, _, vocabulary, block = shape
    config = flatstep.GPTConfig(vocabulary, block, layers, heads, width, dropout)
    return flatstep.GPT(config, seed=1)


def make_batches(shape, count=4):
    """Tokens and targets, int64 [batch, length]."""
    _, _, _, batch, length, vocabulary, _ = shape
    ids = np.random.default_rng(0).integers(0, vocabulary, (count, batch, length + 1))
    return [(np.ascontiguousarray(i[:, :-1]), np.ascontiguousarray(i[:, 1:])) for i in ids]


def products(shape):
    """{(m, n, k, a transposed, b transposed): how often} in one step: each linear layer's output,
    weight gradient and input gradient."""
    layers, _, width, batch, length, vocabulary, _ = shape
    rows, counts = batch * length, {}

    def add(inner, outer, times, tied):
        forward = (rows, outer, inner, False, tied)
        weight = (outer, inner, rows, True, False) if tied else (inner, outer, rows, True, False)
        for key in (forward, weight, (rows, inner, outer, False, not tied)):
            counts[key] = counts.get(key, 0) + times

    for inner, outer in (
        (width, 3 * width),
        (width, width),
        (width, 4 * width),
        (4 * width, width),
    ):
        add(inner, outer, layers, False)
    add(width, vocabulary, 1, True)
    return counts


def flops(counts):
    return sum(2 * m * n * k * times for (m, n, k, _, _), times in counts.items())


class Contender:
    """What contenders share; each defines `start` and `step`, which returns the loss."""

    def prepare(self, shape, dropout, threads):
        """Sets up, after a use of the library that brings in all that it loads once."""
        self.set_threads(threads)
        self.restart(FIRST, dropout)
        self.step()
        self.baseline = measure.resident_memory()
        self.restart(shape, dropout)

    def restart(self, shape, dropout):
        self.count, self.batches = 0, make_batches(shape)
        self.start(shape, dropout)

    def losses(self):
        """The losses of the first steps, each before its update."""
        return [self.step() for _ in range(LOSS_STEPS + 1)]

    def batch(self):
        self.count += 1
        return self.batches[self.count % len(self.batches)]

    def seconds(self):
        # A step of a millisecond is in the stride of a training loop after some dozens.
        return measure.turn_of(lambda: None, self.step, calls=200, budget=0.5)

    def memory(self):
        """Bytes at the peak of a step beyond those before the model was made."""
        before = measure.resident_memory()
        return before + measure.peak_memory(self.step)[1] - self.baseline


class Flatstep(Contender):
    def set_threads(self, threads):
        import flatstep

        flatstep.set_num_threads(threads)
        self.flatstep = flatstep

    def start(self, shape, dropout):
        self.model = make_model(shape, dropout)
        self.optimizer = self.flatstep.AdamW(
            self.model.params, layout=self.model.layout, **HYPER_PARAMETERS
        )

    def step(self):
        model = self.model
        loss = model.forward_backward(*self.batch(), step=self.count)
        self.optimizer.step(model.grads, max_norm=MAX_NORM, partials=model.grad_partials)
        return loss

    def parts(self, budget):
        """Mean seconds of a step by part; "python" is what passes outside compiled code."""
        profile = self.flatstep._core.GptProfile()
        model, update = Clocked(self.model._core, profile=profile), Clocked(self.optimizer._core)
        self.model._core, self.optimizer._core = model, update
        began, steps = time.perf_counter(), 0
        while steps < 3 or time.perf_counter() - began < budget:
            self.step()
            steps += 1
        whole = time.perf_counter() - began
        self.model._core, self.optimizer._core = model.inner, update.inner
        parts = profile.seconds
        inside = parts.pop("pass")
        parts["rest of the pass"] = inside - sum(parts.values())
        parts["optimizer"] = update.seconds
        parts["python"] = whole - inside - update.seconds
        return {name: seconds / steps for name, seconds in parts.items()}


class Clocked:
    """Passes calls on to a compiled object and adds up their time; `extra` goes to
    forward_backward."""

    def __init__(self, inner, **extra):
        self.inner, self.extra, self.seconds = inner, extra, 0.0

    def forward_backward(self, *arguments, **options):
        return self.inner.forward_backward(*arguments, **options, **self.extra)

    def step(self, *arguments, **options):
        began = time.perf_counter()
        result = self.inner.step(*arguments, **options)
        self.seconds += time.perf_counter() - began
        return result

    def __getattr__(self, name):
        return getattr(self.inner, name)


class Torch(Contender):
    """PyTorch, eager."""

    def set_threads(self, threads):
        import torch

        torch.set_num_threads(threads)
        self.torch = torch

    def start(self, shape, dropout):
        import torch_gpt

        self.twin = torch_gpt.torch_twin(make_model(shape, dropout))
        self.optimizer = torch_gpt.make_optimizer(self.twin, **HYPER_PARAMETERS)
        self.loss = self.loss_function()

    def loss_function(self):
        return self.twin

    def batch(self):
        return [self.torch.from_numpy(ids) for ids in super().batch()]

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(*self.batch())
        loss.backward()
        self.torch.nn.utils.clip_grad_norm_(self.twin.parameters(), MAX_NORM)
        self.optimizer.step()
        return loss.item()

    def product_rate(self, size):
        """Operations a second of torch.mm on a product of size^3."""
        left, right = self.torch.randn(size, size), self.torch.randn(size, size)
        out = self.torch.empty(size, size)
        call = lambda: self.torch.mm(left, right, out=out)  # noqa: E731
        call()
        return 2 * size**3 / measure.turn_of(lambda: None, call, calls=15, budget=1.0)


class TorchCompiled(Torch):
    """The model compiled, forward and backward; the optimizer is the fused one in both."""

    def loss_function(self):
        return self.torch.compile(self.twin)


class TorchAutocast(Torch):
    """Products and attention in bfloat16, weights, gradients and the rest in float32."""

    def loss_function(self):
        loss = super().loss_function()

        def in_bfloat16(*batch):
            with self.torch.autocast("cpu", self.torch.bfloat16):
                return loss(*batch)

        return in_bfloat16


class TorchAutocastCompiled(TorchAutocast, TorchCompiled):
    """The same, compiled."""


class NumpyProducts:
    """OpenBLAS on the step's products, and on one large one."""

    def prepare(self, shape):
        self.counts = products(shape)
        sizes = [(2048, 2048, 2048, False, False), *self.counts]
        self.calls = {key: self.make(*key) for key in sizes}

    @staticmethod
    def make(m, n, k, left_transposed, right_transposed):
        rng = np.random.default_rng(0)
        left = rng.standard_normal((k, m) if left_transposed else (m, k), np.float32)
        right = rng.standard_normal((n, k) if right_transposed else (k, n), np.float32)
        out = np.ones((m, n), np.float32)
        left, right = left.T if left_transposed else left, right.T if right_transposed else right
        return lambda: np.matmul(left, right, out=out)

    def seconds(self):
        """Of all products of a step, and of the large one."""
        own = sum(self.turn(key) * times for key, times in self.counts.items())
        return own, self.turn((2048, 2048, 2048, False, False))

    def turn(self, key):
        call = self.calls[key]
        call()
        return measure.turn_of(lambda: None, call, calls=3, budget=0.1)


CONTENDERS = {"flatstep": Flatstep, "torch eager": Torch, "torch compiled": TorchCompiled}
AUTOCAST = {"torch bf16": TorchAutocast, "torch bf16 compiled": TorchAutocastCompiled}
SERVED = CONTENDERS | AUTOCAST | {"numpy": NumpyProducts}
