"""Float64 and bit-level references, in plain NumPy, that the tests compare flatstep with.

Nothing here imports flatstep: a formula that is wrong in the library cannot be wrong here as well.
"""

import itertools
import math

import numpy as np


def ulp(value, dtype=np.float32):
    """Distance from |value|, rounded to dtype, to the next number above it."""
    return np.spacing(np.abs(np.asarray(value)).astype(dtype)).astype(np.float64)


# ---- optimizers in float64 -----------------------------------------------------------------


def adam_moments(p, g, m, v, *, betas, weight_decay=0.0, decoupled=True):
    """New (m, v), with the decay inside the gradient when it is not decoupled."""
    p, g, m, v = (np.asarray(a, dtype=np.float64) for a in (p, g, m, v))
    if not decoupled:
        g = g + weight_decay * p
    return m + (1.0 - betas[0]) * (g - m), v + (1.0 - betas[1]) * (g * g - v)


def adam_change(p, m, v, step, *, betas, eps, weight_decay=0.0, decoupled=True):
    """What lr multiplies, from the new moments; step counts from 1."""
    p, m, v = (np.asarray(a, dtype=np.float64) for a in (p, m, v))
    correction1, correction2 = 1.0 - betas[0] ** step, 1.0 - betas[1] ** step
    change = (m / correction1) / (np.sqrt(v) / math.sqrt(correction2) + eps)
    return change + weight_decay * p if decoupled else change


def adam(p, g, m, v, step, *, lr, eps, **options):
    """One whole Adam (decoupled=False) or AdamW step: new (p, m, v)."""
    m, v = adam_moments(p, g, m, v, **options)
    return p - lr * adam_change(p, m, v, step, eps=eps, **options), m, v


def sgd(p, g, buffer, step, *, lr, momentum, dampening, nesterov, weight_decay):
    """One SGD step in float64, in torch.optim.SGD's convention: the first step sets buffer = g."""
    p, g = np.asarray(p, np.float64), np.asarray(g, np.float64)
    g = g + weight_decay * p
    if not momentum:
        return p - lr * g, None
    buffer = g if step == 1 else momentum * np.asarray(buffer, np.float64) + (1 - dampening) * g
    direction = g + momentum * buffer if nesterov else buffer
    return p - lr * direction, buffer


def global_norm(arrays):
    """sqrt of the exactly rounded sum of squares (squares of float32 are exact in float64)."""
    squares = (np.asarray(a, np.float64).ravel() ** 2 for a in arrays)
    return math.sqrt(math.fsum(value for array in squares for value in array.tolist()))


def clip_scale(norm, max_norm):
    return min(1.0, max_norm / (norm + 1e-6))


# ---- optimizers bit for bit ----------------------------------------------------------------


def fused_multiply_add(a, b, c):
    """fma(a, b, c) of float32 with its single rounding, through float64 rounded to odd."""
    product = np.float64(a) * np.float64(b)  # exact: 24 + 24 bits
    addend = np.float64(c)
    total = np.asarray(product + addend)
    part = total - product
    error = (product - (total - part)) + (addend - part)
    is_even = (total.view(np.int64) & 1) == 0
    neighbour = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    return np.where((error != 0) & is_even, neighbour, total).astype(np.float32)


# PyTorch's kernels work on vectors of eight floats; what is left is rounded in another order.
TORCH_VECTOR = 8


def rounded_twice(a, b, c):
    return a * b + c


def adam_moment_bits(
    p, g, m, v, *, betas, weight_decay, decoupled, mode="native", fma=fused_multiply_add
):
    """New (m, v) in float32, rounding for rounding; g is scaled and has its sign already."""
    single = np.float32
    beta1, beta2 = betas
    if not decoupled and weight_decay:
        g = fma(single(weight_decay), p, g)
    if mode == "native" or 1.0 - beta1 < 0.5:
        m = fma(single(1.0 - beta1), g - m, m)
    else:
        m = fma(single(1.0 - beta1) - single(1), g - m, g)
    if mode == "native":
        return m, fma(single(1.0 - beta2), g * g - v, v)
    tail = slice(p.size // TORCH_VECTOR * TORCH_VECTOR, None)
    last = fma(single(beta2), v[tail], single(1.0 - beta2) * g[tail] * g[tail])
    v = fma(single(1.0 - beta2) * g, g, single(beta2) * v)
    v[tail] = last
    return m, v


def adam_param_bits(
    p,
    m,
    v,
    step,
    *,
    lr,
    betas,
    eps,
    weight_decay,
    decoupled,
    mode="native",
    short=False,
    fma=fused_multiply_add,
):
    """The new parameter from the new moments; v is the largest one with AMSGrad.

    short: with the one division of 8-bit state.
    """
    single = np.float32
    correction1, root = 1.0 - betas[0] ** step, math.sqrt(1.0 - betas[1] ** step)
    if mode == "torch":
        if decoupled:
            p = p * single(1.0 - lr * weight_decay)
        denominator = np.sqrt(v) / single(root) + single(eps)
        return p - (single(lr / correction1) * m) / denominator
    if short:
        update = single(root / correction1) * m / (np.sqrt(v) + single(eps * root))
    else:
        update = (m / single(correction1)) / (np.sqrt(v) / single(root) + single(eps))
    if decoupled:
        update = fma(single(weight_decay), p, update)
    return fma(single(-lr), update, p)


def adam_bits(p, g, m, v, step, *, lr, eps, **options):
    """The float32 operations of mode="native" or "torch": new (p, m, v)."""
    m, v = adam_moment_bits(p, g, m, v, **options)
    return adam_param_bits(p, m, v, step, lr=lr, eps=eps, **options), m, v


def sgd_bits(p, g, buffer, step, *, lr, momentum, dampening, nesterov, weight_decay, mode, fma):
    """SGD; native mode rounds (1 - dampening) * g before it adds, torch mode momentum * buffer."""
    single = np.float32
    if weight_decay:
        g = fma(single(weight_decay), p, g)
    if not momentum:
        return fma(single(-lr), g, p), None
    if step == 1:
        buffer = g.copy()
    else:
        native = fma(single(momentum), buffer, single(1.0 - dampening) * g)
        if mode == "torch":
            whole = slice(0, p.size // TORCH_VECTOR * TORCH_VECTOR)
            torch_form = fma(single(1.0 - dampening), g, single(momentum) * buffer)
            native[whole] = torch_form[whole]
        buffer = native
    direction = fma(single(momentum), buffer, g) if nesterov else buffer
    return fma(single(-lr), direction, p), buffer


# ---- schedules: step counts from 0, t = step + 1 ---------------------------------------------


def warm(step, warmup):
    """(k + 1) / W: the first step already moves, the last one of the warm-up is at the full lr."""
    return (step + 1) / warmup if step < warmup else 1.0


def noam(step, d_model, warmup, factor=1.0):
    t = step + 1
    return factor * d_model**-0.5 * min(t**-0.5, t * warmup**-1.5)


def progress(step, warmup, total):
    """Reaches 1, and with it min_lr, in the last step (total - 1), and stays there."""
    return min(max((step + 1 - warmup) / (total - warmup), 0.0), 1.0) if total > warmup else 1.0


def warmup_linear(step, base_lr, warmup, total, min_lr=0.0):
    if step < warmup:
        return base_lr * warm(step, warmup)
    return min_lr + (base_lr - min_lr) * (1.0 - progress(step, warmup, total))


def warmup_cosine(step, base_lr, warmup, total, min_lr=0.0):
    if step < warmup:
        return base_lr * warm(step, warmup)
    half_wave = 0.5 * (1.0 + math.cos(math.pi * progress(step, warmup, total)))
    return min_lr + (base_lr - min_lr) * half_wave


def inverse_sqrt(step, base_lr, warmup):
    if step < warmup:
        return base_lr * warm(step, warmup)
    return base_lr * math.sqrt(max(warmup, 1) / (step + 1))


def polynomial(step, base_lr, warmup, total, min_lr=0.0, power=1.0):
    if step < warmup:
        return base_lr * warm(step, warmup)
    return min_lr + (base_lr - min_lr) * (1.0 - progress(step, warmup, total)) ** power


FALLS = {
    "linear": lambda r: 1.0 - r,
    "cosine": lambda r: math.cos(math.pi * r / 2.0) ** 2,
    "sqrt": lambda r: 1.0 - math.sqrt(r),
    "exponential": lambda r: 2.0 ** (1.0 - r) - 1.0,
}


def wsd(step, base_lr, warmup, total, min_lr=0.0, *, decay, shape="sqrt"):
    """The first of the `decay` last steps is already below base_lr, the last one at min_lr."""
    left = min(max(total - 1 - step, 0), decay)
    if step < warmup:
        return base_lr * warm(step, warmup)
    r = 1.0 - left / decay if decay else float(step >= total)
    if shape == "geometric":
        return math.exp((1.0 - r) * math.log(base_lr) + r * math.log(min_lr))
    return min_lr + (base_lr - min_lr) * FALLS[shape](r)


def one_cycle(step, base_lr, warmup, total, min_lr, *, init_lr, shape="cosine", second=None):
    """Through (0, init), (W - 1, base), with three phases (second, init), and (T - 1, min)."""
    corners = [(0, init_lr), (warmup - 1, base_lr), (total - 1, min_lr)]
    if second is not None:
        corners.insert(2, (second, init_lr))
    for (start, high), (end, low) in itertools.pairwise(corners):
        if step <= end:
            return low + (high - low) * FALLS[shape]((step - start) / (end - start))
    return min_lr


def cosine_restarts(step, base_lr, warmup, total, min_lr=0.0, *, period, period_mult=1, shrink=1.0):
    """Counts step by step: each cycle's last step is at min_lr, the next one's first is high."""
    if step < warmup:
        return base_lr * warm(step, warmup)
    if total is not None and step >= total:
        return min_lr
    position, height = step - warmup, base_lr
    while position >= period:
        position, period, height = position - period, period * period_mult, height * shrink
    return min_lr + (height - min_lr) * FALLS["cosine"]((position + 1) / period)


# ---- Philox4x32 (Salmon et al., SC'11) and the dropout mask ------------------------------------

PHILOX_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
PHILOX_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter, key, rounds=10):
    """counter: four arrays or ints below 2^32, key: two ints; returns four uint32 arrays."""
    mask = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(word, dtype=np.uint64) for word in counter)
    k0, k1 = key
    for _ in range(rounds):
        product0 = np.uint64(PHILOX_MULTIPLIERS[0]) * c0
        product1 = np.uint64(PHILOX_MULTIPLIERS[1]) * c2
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & mask,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & mask,
        )
        k0 = (k0 + PHILOX_WEYL[0]) & 0xFFFFFFFF
        k1 = (k1 + PHILOX_WEYL[1]) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def dropout_mask(shape, p, *, seed, step=0, site=0):
    """1 = kept. Element i is word i % 4 of block i // 4; it is kept iff word >= round(p 2^32)."""
    count = math.prod(shape) if isinstance(shape, tuple) else int(shape)
    block = np.arange((count + 3) // 4, dtype=np.uint64)
    high = ((block >> np.uint64(32)) & np.uint64(0xFFFF)) | np.uint64((step >> 32 & 0xFFFF) << 16)
    low = block & np.uint64(0xFFFFFFFF)
    step_word = np.full_like(block, step & 0xFFFFFFFF)
    site_word = np.full_like(block, site)
    key = (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)
    words = np.stack(philox((low, high, step_word, site_word), key), axis=1).reshape(-1)[:count]
    threshold = min(math.floor(p * 2.0**32 + 0.5), 2**32 - 1)
    return (words >= threshold).astype(np.uint8).reshape(shape)


def dropout_scale(p):
    return np.float32(1.0 / (1.0 - p))
