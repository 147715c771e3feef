"""Calls that between them launch every kernel of the library.

python tests/gpu/calls.py --once      # small, for a sanitizer to watch
python tests/gpu/calls.py --runs 20   # larger; every run must give the same bits
"""

import argparse
import hashlib
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import bfloat16
from cuda_case import fetch, place

import flatstep as fs

DTYPES = ("float32", "bfloat16", "float16")


def store(values, dtype):
    if dtype == "bfloat16":
        return bfloat16.from_float32(values.astype(np.float32))
    return values.astype(dtype)


def loss(rng, rows, classes, dtype, plain):
    options = {"label_smoothing": 0.1, "z_loss": 1e-4, "softcap": 20.0 if classes % 2 else None,
               "class_weight": place(rng.random(classes, np.float32) + 0.5),
               "token_weight": place(rng.random(rows, np.float32) + 0.5)}  # fmt: skip
    targets = rng.integers(0, classes, rows)
    targets[::5] = -100
    logits = place(store(rng.standard_normal((rows, classes)) * 3, dtype), dtype)
    result = fs.cross_entropy(logits, place(targets), grad=logits, **({} if plain else options))
    return [result.grad, result.lse, result.entropy, np.float64(result.loss)]


def linear(rng, rows, width, classes, dtype):
    arrays = (rng.standard_normal((rows, width)), rng.standard_normal((classes, width)) / 8)
    hidden, weight = (place(store(x, dtype), dtype) for x in arrays)
    bias = place(store(rng.standard_normal(classes), dtype), dtype)
    targets = place(rng.integers(0, classes, rows))
    result = fs.linear_cross_entropy(hidden, weight, targets, bias=bias, grad=True)
    return [result.grad_hidden, result.grad_weight, result.grad_bias, np.float64(result.loss)]


def optimizer(rng, sizes, param, grad, kind="AdamW", steps=3, **options):
    params = [place(store(rng.standard_normal(n), param), param) for n in sizes]
    made = getattr(fs, kind)(params, lr=1e-2, **options)
    norms = []
    for step in range(steps):
        grads = [place(store(rng.standard_normal(n), grad), grad) for n in sizes]
        if step == 1:  # skipped as a whole
            broken = rng.standard_normal(sizes[-1])
            broken[sizes[-1] // 2] = np.nan
            grads[-1] = place(store(broken, grad), grad)
        info = made.step(grads, max_norm=1.0, zero_grad=True)
        norms.append([info.grad_norm, float(info.skipped)])
    return [*params, *grads, np.array(norms[::2])]


def gradients(rng, sizes, dtype):
    totals = [place(rng.standard_normal(n, np.float32)) for n in sizes]
    grads = [place(store(rng.standard_normal(n), dtype), dtype) for n in sizes]
    partials = fs.accumulate(totals, grads)
    params = [place(rng.standard_normal(n, np.float32)) for n in sizes]
    info = fs.SGD(params, lr=0.1, momentum=0.9).step(totals, max_norm=1.0, partials=partials)
    norm = fs.clip_grad_norm_(grads, 0.5)
    return [*totals, *grads, *params, np.array([info.grad_norm, norm])]


def dropout(rng, size):
    x = place(rng.standard_normal(size, np.float32))
    return [fs.dropout(x, 0.1, seed=3, step=2, site=1)]


def calls(large):
    """`{name: function of a generator that returns arrays}`"""
    rows = 700 if large else 9
    widths = (5, 32, 1000, 4097, 50257, 131072) if large else (5, 32, 1000, 4097, 20011)
    sizes = (3, 4096, 100_003, 1_000_001) if large else (3, 4096, 9001)
    made = {}
    for dtype in DTYPES:
        for classes in widths:
            few = min(rows, 2_000_000 // classes + 2)
            for plain in (True, False):
                name = f"loss {dtype} {classes} {'plain' if plain else 'everything'}"
                made[name] = lambda rng, n=few, c=classes, d=dtype, p=plain: loss(rng, n, c, d, p)
        shape = (300, 256, 5003) if large else (20, 24, 131)
        made[f"linear {dtype}"] = lambda rng, d=dtype, s=shape: linear(rng, *s, d)
        made[f"gradients {dtype}"] = lambda rng, d=dtype: gradients(rng, sizes, d)
        made[f"AdamW, {dtype} gradients"] = lambda rng, d=dtype: optimizer(
            rng, sizes, "float32", d, amsgrad=True
        )
    formats = {
        "8bit": ("float32", {"state": "8bit"}),
        "8bit, masters": ("bfloat16", {"state": "8bit"}),
        "stochastic": ("bfloat16", {"stochastic_rounding": True}),
        "SGD": ("float32", {"kind": "SGD", "momentum": 0.9, "nesterov": True}),
    }
    for name, (param, options) in formats.items():
        made[name] = lambda rng, p=param, o=options: optimizer(rng, sizes, p, p, **o)
    made["dropout"] = lambda rng: dropout(rng, sizes[-1])
    return made


def digest(arrays):
    """Of all arrays' bits; a result that is not finite is a fault."""
    total = hashlib.sha256()
    for array in arrays:
        stored = np.asarray(fetch(array))
        assert stored.dtype.kind != "f" or np.isfinite(stored).all()
        total.update(stored.tobytes())
    return total.hexdigest()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--once", action="store_true")
    parser.add_argument("--runs", type=int, default=20)
    arguments = parser.parse_args()
    runs = 1 if arguments.once else arguments.runs
    emulated = fs.info()["cuda"]["archs"] == ["emulated"]
    different = []
    for name, call in calls(large=not arguments.once and not emulated).items():
        digests = {digest(call(np.random.default_rng(7))) for _ in range(runs)}
        if len(digests) > 1:
            different.append(name)
        print(f"{name}: {runs} runs, {len(digests)} results", flush=True)
    sys.exit(f"not the same bits: {different}" if different else 0)


if __name__ == "__main__":
    main()
