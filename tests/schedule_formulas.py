"""Schedules of libraries that record_schedules.py cannot run, from their formulas.

fairseq and tensor2tensor do not install on a current Python; llm.c, nanoGPT and The Annotated
Transformer are programs. Each formula was written from the file named beside it.
"""

import math

B, E, INIT, W, T = 3e-3, 2e-4, 5e-4, 7, 43  # base, minimum, initial rate, warm-up, total
WIDTH, FACTOR = 24, 2.0
FORMULAS = []


def case(library, source, schedule, **arguments):
    """Registers a function that returns the rate of each step; `arguments` are flatstep's."""

    def register(function):
        FORMULAS.append((library, source, schedule, arguments, function))
        return function

    return register


@case(
    "fairseq", "optim/lr_scheduler/inverse_square_root_schedule.py", "inverse_sqrt",
    warmup=W, init_lr=INIT, preset="fairseq",
)  # fmt: skip
def _():
    return lambda n: INIT + n * ((B - INIT) / W) if n < W else B * W**0.5 * n**-0.5


for power in (1.0, 2.0):

    @case(
        "fairseq", "optim/lr_scheduler/polynomial_decay_schedule.py", "polynomial",
        warmup=W, total=T, min_lr=E, power=power, preset="fairseq",
    )  # fmt: skip
    def _(power=power):
        def rate(n):
            if n == 0:
                return B / W  # what the constructor sets
            if n <= W:
                return n / W * B
            return E if n >= T else (B - E) * (1 - (n - W) / (T - W)) ** power + E

        return rate


for mult, shrink in ((1, 0.5), (2, 0.5)):

    @case(
        "fairseq", "optim/lr_scheduler/cosine_lr_scheduler.py", "cosine_restarts",
        warmup=W, total=T, min_lr=E, period=9, period_mult=float(mult), shrink=shrink,
        preset="fairseq",
    )  # fmt: skip
    def _(mult=mult, shrink=shrink):
        def rate(n):
            if n < W:
                return E + n * (B - E) / W
            start, length, i = W, 9, 0
            while n >= start + length:
                start, length, i = start + length, length * mult, i + 1
            low, high = E * shrink**i, B * shrink**i
            return low + 0.5 * (high - low) * (1 + math.cos(math.pi * (n - start) / length))

        return rate


@case(
    "fairseq", "optim/lr_scheduler/tri_stage_lr_scheduler.py", "wsd",
    warmup=W, total=T, decay=10, init_lr=INIT, min_lr=E, preset="fairseq",
)  # fmt: skip
def _():
    def rate(n):
        if n < W:
            return INIT + (B - INIT) / W * n
        if n < T - 10:
            return B
        return B * math.exp(math.log(E / B) / 10 * (n - (T - 10))) if n <= T else E

    return rate


@case(
    "tensor2tensor 1.15.7", "utils/learning_rate.py, linear_warmup * rsqrt_decay", "noam",
    d_model=WIDTH, warmup=W, factor=FACTOR, preset="tensor2tensor",
)  # fmt: skip
def _():
    return lambda k: FACTOR * min(1.0, k / W) * max(k, W) ** -0.5 * WIDTH**-0.5


@case(
    "tensor2tensor 1.15.7", "utils/learning_rate.py, legacy, noam, Adam", "noam",
    d_model=WIDTH, warmup=W, factor=0.2, preset="tensor2tensor_legacy",
)  # fmt: skip
def _():
    return lambda k: 0.002 * 0.2 * 5000.0 * WIDTH**-0.5 * min((k + 1) * W**-1.5, (k + 1) ** -0.5)


@case(
    "The Annotated Transformer", "rate", "noam",
    d_model=WIDTH, warmup=W, factor=FACTOR, preset="annotated",
)  # fmt: skip
def _():
    def rate(k):
        s = 1 if k == 0 else k
        return FACTOR * WIDTH**-0.5 * min(s**-0.5, s * W**-1.5)

    return rate


def llm_c(schedule, decay, start=W, **arguments):
    def values():
        def rate(k):
            if k < W:
                return B * (k + 1) / W
            if k < start:
                return B
            ratio = (k - start) / (T - start)
            return E + decay(ratio) * (B - E) if ratio <= 1 else None  # it aborts

        return rate

    case(
        "llm.c", "llmc/schedulers.h", schedule, warmup=W, total=T, min_lr=E, preset="llm.c",
        **arguments,
    )(values)  # fmt: skip


llm_c("warmup_linear", lambda ratio: 1 - ratio)
llm_c("warmup_cosine", lambda ratio: 0.5 * (1 + math.cos(math.pi * ratio)))
llm_c("wsd", lambda ratio: 1 - math.sqrt(ratio), start=34)  # int(0.8f * 43)


@case(
    "nanoGPT", "train.py, get_lr", "warmup_cosine",
    warmup=W, total=T, min_lr=E, preset="nanogpt",
)  # fmt: skip
def _():
    def rate(k):
        if k < W:
            return B * (k + 1) / (W + 1)
        if k > T:
            return E
        return E + 0.5 * (1 + math.cos(math.pi * (k - W) / (T - W))) * (B - E)

    return rate
