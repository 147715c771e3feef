"""The contenders of `bench/optimizer.py`, and what their processes do."""

import math
from dataclasses import dataclass, field

import measure
import numpy as np

WORKS = {"step": "step", "clip": "clip + step", "zero": "clip + step + zero"}
ROOFS = {"scale, NumPy": "numpy", "scale, torch mul_": "tensors"}
BASELINE = "torch fused"
ROOF_BYTES = 128 << 20
MAX_NORM = 1.0
STATE_BYTES = {"adamw": 16, "sgd": 8}  # of full moments, read and written
BLOCK8_BYTES = {"adamw": 4 + 8 / 128, "sgd": 2 + 4 / 128}


def gpt2_shapes():
    """The tensors of GPT-2 124M, in the order of its state dict."""
    shapes = [(50257, 768), (1024, 768)]
    for _ in range(12):
        shapes += [(768,), (768,), (768, 2304), (2304,), (768, 768), (768,)]
        shapes += [(768,), (768,), (768, 3072), (3072,), (3072, 768), (768,)]
    return [*shapes, (768,), (768,)]


CASES = {"32M": [(32 << 20,)], "gpt2": gpt2_shapes(), "small": [(4096,)] * 2000}


def parameters_of(case):
    return sum(math.prod(shape) for shape in CASES[case])


@dataclass(frozen=True)
class Contender:
    """Where it runs, its optimizer's options, and bytes of an element of params and grads."""

    process: str
    options: dict = field(default_factory=dict)
    torch: bool = False  # PyTorch's optimizer
    param: int = 4
    grad: int = 4
    one_visit: bool = False
    flat: bool = False

    def bytes_moved(self, work, algorithm):
        """For each parameter; see the head of the file."""
        low_bit = self.options.get("state") == "8bit"
        moved = 2 * self.param + self.grad + (BLOCK8_BYTES if low_bit else STATE_BYTES)[algorithm]
        if self.torch:
            moved += 12 * (work != "step")
        elif not self.one_visit:
            moved += self.grad
        return moved + self.grad * (work == "zero")


CONTENDERS = {
    "flatstep": Contender("numpy"),
    "flatstep one visit": Contender("numpy", one_visit=True),
    "flatstep mode torch": Contender("numpy", {"mode": "torch"}),
    "flatstep 8bit": Contender("numpy", {"state": "8bit"}),
    "flatstep flat + Layout": Contender("numpy", flat=True),
    "flatstep on tensors": Contender("tensors"),
    "flatstep 8bit, bf16 grads": Contender("tensors", {"state": "8bit"}, grad=2),
    "flatstep 8bit, all bf16": Contender(
        "tensors", {"state": "8bit", "stochastic_rounding": True}, param=2, grad=2
    ),
    "torch default": Contender("tensors", {"foreach": False, "fused": False}, torch=True),
    "torch foreach": Contender("tensors", {"foreach": True}, torch=True),
    BASELINE: Contender("tensors", {"fused": True}, torch=True),
}


def options_of(contender, algorithm):
    return contender.options | ({"momentum": 0.9} if algorithm == "sgd" else {})


class Arrays:
    """Parameters, gradients and what these are written from; 16-bit ones are bfloat16's bits."""

    def __init__(self, shapes, param, grad):
        block = 0.01 * np.random.default_rng(0).standard_normal(1 << 20, dtype=np.float32)
        self.sources = [stored(np.resize(block, shape), grad) for shape in shapes]
        self.grads = [source.copy() for source in self.sources]
        self.params = [stored(np.ones(shape, np.float32), param) for shape in shapes]

    def refill(self):
        for grad, source in zip(self.grads, self.sources, strict=True):
            np.copyto(grad, source)


def stored(floats, itemsize):
    return floats if itemsize == 4 else (floats.view(np.uint32) >> 16).astype(np.uint16)


class Process:
    """The contenders of one process; `wrap_all` makes arrays its library's, `scale` the roof."""

    def prepare(self, case, algorithm, threads, names):
        import flatstep

        self.flatstep, self.algorithm = flatstep, algorithm
        self.set_threads(threads)
        self.count = parameters_of(case)
        self.arrays, self.turns = {}, {}
        self.moments = None  # PyTorch's
        for name in names:
            contender = CONTENDERS[name]
            arrays = self.arrays_for(contender, CASES[case])
            make = self.torch_calls if contender.torch else self.flatstep_calls
            self.turns[name] = arrays.refill, make(contender, arrays, CASES[case])
        floats = np.ones(max(self.count, ROOF_BYTES // 4), np.float32)
        scale = self.scale(floats, threads)
        self.turns |= dict.fromkeys(ROOFS, (lambda: None, dict.fromkeys(WORKS, scale)))
        return floats.size

    def arrays_for(self, contender, shapes):
        key = contender.param, contender.grad, contender.flat
        if key not in self.arrays:
            used = [(self.count,)] if contender.flat else shapes
            self.arrays[key] = Arrays(used, contender.param, contender.grad)
        return self.arrays[key]

    def flatstep_calls(self, contender, arrays, shapes):
        fs = self.flatstep
        params, grads = self.wrap_all(arrays.params), self.wrap_all(arrays.grads)
        kind = {"adamw": fs.AdamW, "sgd": fs.SGD}[self.algorithm]
        options = options_of(contender, self.algorithm)
        if contender.flat:
            (params,), (grads,) = params, grads
            options["layout"] = fs.Layout([(str(i), shape) for i, shape in enumerate(shapes)])
        optimizer = kind(params, **options)
        partials = None
        if contender.one_visit:
            partials = fs.accumulate(arrays.grads, arrays.sources, overwrite=True)
        return {
            "step": lambda: optimizer.step(grads, partials=partials),
            "clip": lambda: optimizer.step(grads, partials=partials, max_norm=MAX_NORM),
            "zero": lambda: optimizer.step(
                grads, partials=partials, max_norm=MAX_NORM, zero_grad=True
            ),
        }

    def seconds(self, name, work):
        refill, calls = self.turns[name]
        return measure.turn_of(refill, calls[work])


class NumpyProcess(Process):
    def set_threads(self, threads):
        self.flatstep.set_num_threads(threads)

    def wrap_all(self, arrays):
        return arrays

    def scale(self, floats, threads):
        scale = measure.NumpyScale(floats, threads)
        return lambda: scale(np.float32(0.999))


class TensorProcess(Process):
    def set_threads(self, threads):
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        self.flatstep.set_num_threads(threads)

    def wrap_all(self, arrays):
        tensors = [self.torch.from_numpy(a) for a in arrays]
        bfloat16 = self.torch.bfloat16
        return [t if t.dtype == self.torch.float32 else t.view(bfloat16) for t in tensors]

    def scale(self, floats, threads):
        tensor = self.torch.from_numpy(floats)
        return lambda: tensor.mul_(0.999)

    def torch_calls(self, contender, arrays, shapes):
        params = [p.requires_grad_() for p in self.wrap_all(arrays.params)]
        optimizer = self.torch_optimizer(contender, params)
        clip = self.torch.nn.utils.clip_grad_norm_
        for param, grad in zip(params, self.wrap_all(arrays.grads), strict=True):
            param.grad = grad

        def clip_and_step():
            clip(params, MAX_NORM)
            optimizer.step()

        def clip_step_and_zero():
            clip_and_step()
            optimizer.zero_grad(set_to_none=False)

        return {"step": optimizer.step, "clip": clip_and_step, "zero": clip_step_and_zero}

    def torch_optimizer(self, contender, params):
        """With moments in NumPy's memory, the same for all."""
        kind = {"adamw": self.torch.optim.AdamW, "sgd": self.torch.optim.SGD}[self.algorithm]
        optimizer = kind(params, **options_of(contender, self.algorithm))
        names = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}[self.algorithm]
        if self.moments is None:
            self.moments = [
                {name: self.torch.from_numpy(np.full(p.shape, 1e-4, np.float32)) for name in names}
                for p in params
            ]
        for param, moments in zip(params, self.moments, strict=True):
            step = {"step": self.torch.tensor(1.0)} if self.algorithm == "adamw" else {}
            optimizer.state[param] = step | moments
        return optimizer


PROCESSES = {"numpy": NumpyProcess, "tensors": TensorProcess}
