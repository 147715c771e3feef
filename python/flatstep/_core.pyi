"""The compiled core. Private: the names of the flatstep package are the public ones."""

import enum
from collections.abc import Sequence
from typing import Any

__version__: str

def info() -> dict[str, Any]: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def describe(array: Any, argument: str) -> tuple[tuple[int, ...], str]: ...
def dropout(x: Any, out: Any, p: float, seed: int, step: int, site: int) -> None: ...
def dropout_mask(size: int, p: float, seed: int, step: int, site: int) -> bytearray: ...
def schedule_presets(kind: ScheduleKind) -> list[str]: ...
def scale_lr(base_lr: float, batch: int, base_batch: int, rule: ScaleRule) -> float: ...

class ScheduleKind(enum.Enum):
    constant = ...
    warmup_constant = ...
    warmup_linear = ...
    warmup_cosine = ...
    inverse_sqrt = ...
    noam = ...
    polynomial = ...
    wsd = ...
    one_cycle = ...
    cosine_restarts = ...

class DecayShape(enum.Enum):
    linear = ...
    cosine = ...
    sqrt = ...
    exponential = ...
    geometric = ...

class ScaleRule(enum.Enum):
    linear = ...
    sqrt = ...

class Schedule:
    def __init__(
        self,
        kind: ScheduleKind,
        preset: str,
        *,
        base_lr: float,
        min_lr: float | None = None,
        warmup: int = 0,
        total: int | None = None,
        d_model: int = 0,
        init_lr: float | None = None,
        warmup_shape: DecayShape = DecayShape.linear,
        power: float = 1.0,
        waves: float = 0.5,
        timescale: int | None = None,
        decay: int | None = None,
        shape: DecayShape | None = None,
        pct_start: float | None = None,
        pct_final: float | None = None,
        three_phase: bool | None = None,
        cycles: int | None = None,
        period: int | None = None,
        period_mult: float = 1.0,
        shrink: float = 1.0,
    ) -> None: ...
    @property
    def kind(self) -> ScheduleKind: ...
    @property
    def warmup(self) -> int: ...
    @property
    def total(self) -> int | None: ...
    @property
    def preset(self) -> str: ...
    def __call__(self, step: int) -> float: ...

class LayoutEntry:
    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def offset(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def lr_scale(self) -> float: ...
    @property
    def weight_decay(self) -> float | None: ...
    @property
    def betas(self) -> tuple[float, float] | None: ...

class Layout:
    def __init__(self) -> None: ...
    def add(
        self,
        name: str,
        shape: Sequence[int],
        lr_scale: float = 1.0,
        weight_decay: float | None = None,
        betas: tuple[float, float] | None = None,
    ) -> None: ...
    def leave_vectors_undecayed(self) -> None: ...
    def at(self, name: str) -> LayoutEntry: ...
    def contains(self, name: str) -> bool: ...
    @property
    def entries(self) -> list[LayoutEntry]: ...
    @property
    def size(self) -> int: ...

class Reduction(enum.Enum):
    mean = ...
    sum = ...
    none = ...

class OnEmpty(enum.Enum):
    zero = ...
    nan = ...

class LossOptions:
    def __init__(
        self,
        reduction: Reduction,
        label_smoothing: float,
        ignore_index: int,
        class_weight: Any,
        token_weight: Any,
        z_loss: float,
        softcap: float | None,
        divisor: float | None,
        on_empty: OnEmpty,
        grad_output: float,
        grad_output_rows: Any,
    ) -> None: ...

def cross_entropy(
    logits: Any,
    targets: Any,
    options: LossOptions,
    loss: Any,
    lse: Any,
    entropy: Any,
    grad: Any,
) -> tuple[float, int, int, float]: ...
def linear_cross_entropy(
    hidden: Any,
    weight: Any,
    bias: Any,
    targets: Any,
    options: LossOptions,
    workspace_bytes: int,
    loss: Any,
    lse: Any,
    entropy: Any,
    grad_hidden: Any,
    grad_weight: Any,
    grad_bias: Any,
    accumulate: bool,
) -> tuple[float, int, int, float]: ...

class Algorithm(enum.Enum):
    sgd = ...
    adam = ...
    adamw = ...

class OptimizerMode(enum.Enum):
    native = ...
    torch = ...

class StateFormat(enum.Enum):
    full = ...
    block8 = ...

class OptimizerOptions:
    def __init__(self) -> None: ...
    algorithm: Algorithm
    mode: OptimizerMode
    state: StateFormat
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    momentum: float
    dampening: float
    nesterov: bool
    amsgrad: bool
    maximize: bool
    seed: int
    max_consecutive_skips: int

class GradPartials:
    def __init__(self) -> None: ...
    @property
    def sizes(self) -> list[int]: ...
    @property
    def norm(self) -> float: ...

class Optimizer:
    def __init__(
        self,
        options: OptimizerOptions,
        params: list[Any],
        buffers: dict[str, list[Any]],
        copy_name: str,
        segments: Sequence[
            tuple[int, int, int, int, float, float | None, tuple[float, float] | None, str]
        ],
    ) -> None: ...
    def step(
        self,
        grads: list[Any],
        lr: float,
        max_norm: float | None,
        grad_scale: float,
        zero_grad: bool,
        partials: GradPartials | None,
    ) -> tuple[float, float, bool, int, int]: ...
    step_count: int
    weight_decay: float

def grad_norm(grads: list[Any], max_norm: float | None = None) -> tuple[float, int, int]: ...
def accumulate(
    totals: list[Any], src: list[Any], sizes: list[int] | None, scale: float, overwrite: bool
) -> GradPartials: ...
def state_block() -> int: ...
def convert(from_array: Any, to_array: Any) -> None: ...

class Gpt:
    def __init__(
        self,
        vocab_size: int,
        block_size: int,
        n_layer: int,
        n_head: int,
        n_embd: int,
        dropout: float,
    ) -> None: ...
    @property
    def layout(self) -> Layout: ...
    def initialize(self, params: Any, seed: int) -> None: ...
    def forward_backward(
        self,
        params: Any,
        grads: Any,
        tokens: Any,
        targets: Any,
        label_smoothing: float,
        seed: int,
        step: int,
        accumulate: bool,
        loss_divisor: float,
        partials: GradPartials | None,
    ) -> float: ...
    def loss(self, params: Any, tokens: Any, targets: Any) -> float: ...
    def logits(self, params: Any, tokens: Any, logits: Any) -> None: ...
    def generate(
        self,
        params: Any,
        sequence: Any,
        length: int,
        temperature: float,
        top_k: int,
        seed: int,
    ) -> None: ...
