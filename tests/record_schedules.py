"""Records what other libraries' schedules give, for test_schedule_presets.py. Not a test.

    pip install torch transformers optax megatron-core torchtitan
    python tests/record_schedules.py [library ...] > values.json

Libraries are run step by step; those that cannot be are evaluated from their formulas, in
schedule_formulas.py. schedule_values.json is the output of one run with the versions it names.

W does not divide T - W, so variants that count from another step give other values everywhere.
"""

import importlib.metadata
import importlib.util
import json
import pathlib
import sys
import types

from schedule_formulas import FORMULAS, INIT, B, E, T, W

STEPS = (0, 1, 2, 5, 6, 7, 8, 11, 12, 13, 20, 24, 25, 26, 33, 34, 35, 36, 41, 42, 43, 44, 48)
CASES = []


def case(library, source, schedule, **arguments):
    """Registers a function that returns the rate of each step; `arguments` are flatstep's."""

    def register(function):
        CASES.append((library, source, schedule, arguments, function))
        return function

    return register


# ---- torch and transformers: schedulers of a torch optimizer ------------------------------------


def of_torch(make, rate=B):
    import torch

    optimizer = torch.optim.SGD([torch.zeros(1)], lr=rate)
    scheduler = make(optimizer)
    rates = []
    for _ in range(max(STEPS) + 1):
        rates.append(float(scheduler.get_last_lr()[0]))
        optimizer.step()
        try:
            scheduler.step()
        except ValueError:  # OneCycleLR has an end
            return lambda step: rates[step] if step < len(rates) else None
    return lambda step: rates[step]


def hugging_face(function, schedule, keywords, **arguments):
    def values():
        import transformers.optimization

        make = getattr(transformers.optimization, function)
        return of_torch(lambda optimizer: make(optimizer, **keywords))

    case("transformers", function, schedule, **arguments)(values)


LENGTHS = {"num_warmup_steps": W, "num_training_steps": T}
hugging_face(
    "get_constant_schedule_with_warmup", "warmup_constant", {"num_warmup_steps": W},
    warmup=W, preset="hf",
)  # fmt: skip
hugging_face(
    "get_linear_schedule_with_warmup", "warmup_linear", LENGTHS, warmup=W, total=T, preset="hf"
)
for waves in (0.5, 1.25):
    hugging_face(
        "get_cosine_schedule_with_warmup", "warmup_cosine", LENGTHS | {"num_cycles": waves},
        warmup=W, total=T, waves=waves, preset="hf",
    )  # fmt: skip
hugging_face(
    "get_cosine_with_min_lr_schedule_with_warmup", "warmup_cosine", LENGTHS | {"min_lr": E},
    warmup=W, total=T, min_lr=E, preset="hf",
)  # fmt: skip
for given in ({}, {"init_lr": INIT}):
    hugging_face(
        "get_cosine_with_min_lr_schedule_with_warmup_lr_rate", "warmup_cosine",
        LENGTHS | {"min_lr": E} | ({"warmup_lr_rate": INIT / B} if given else {}),
        warmup=W, total=T, min_lr=E, preset="hf_cosine_warmup_with_min_lr", **given,
    )  # fmt: skip
for power in (1.0, 2.0):
    hugging_face(
        "get_polynomial_decay_schedule_with_warmup", "polynomial", LENGTHS | {"power": power},
        warmup=W, total=T, power=power, preset="hf",
    )  # fmt: skip
for warmup, timescale in ((W, None), (W, 20), (0, None)):
    hugging_face(
        "get_inverse_sqrt_schedule", "inverse_sqrt",
        {"num_warmup_steps": warmup, "timescale": timescale},
        warmup=warmup, timescale=timescale, preset="hf",
    )  # fmt: skip
for shape, name, minimum in (
    ("cosine", "cosine", 0.0), ("linear", "linear", E), ("sqrt", "1-sqrt", E),
):  # fmt: skip
    hugging_face(
        "get_wsd_schedule", "wsd",
        LENGTHS | {"num_decay_steps": 10, "decay_type": name, "warmup_type": name,
                   "min_lr_ratio": minimum / B},
        warmup=W, total=T, decay=10, min_lr=minimum, shape=shape, warmup_shape=shape, preset="hf",
    )  # fmt: skip
for cycles in (1, 3):
    hugging_face(
        "get_cosine_with_hard_restarts_schedule_with_warmup", "cosine_restarts",
        LENGTHS | {"num_cycles": cycles}, warmup=W, total=T, cycles=cycles, preset="hf",
    )  # fmt: skip


def one_cycle_of_torch(keywords, **arguments):
    def values():
        from torch.optim.lr_scheduler import OneCycleLR

        return of_torch(
            lambda optimizer: OneCycleLR(
                optimizer, B, total_steps=T, cycle_momentum=False, **keywords
            )
        )

    case("torch", "OneCycleLR", "one_cycle", total=T, preset="torch", **arguments)(values)


one_cycle_of_torch({}, warmup=None)
one_cycle_of_torch({"pct_start": W / T}, warmup=W)
one_cycle_of_torch({"anneal_strategy": "linear"}, warmup=None, shape="linear")
one_cycle_of_torch({"three_phase": True}, warmup=None, three_phase=True)
one_cycle_of_torch(
    {"pct_start": 0.25, "div_factor": B / INIT, "final_div_factor": INIT / E},
    warmup=None, pct_start=0.25, init_lr=INIT, min_lr=E,
)  # fmt: skip

for mult in (1, 2):

    def warm_restarts(mult=mult):
        from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts

        return of_torch(
            lambda optimizer: CosineAnnealingWarmRestarts(optimizer, 12, T_mult=mult, eta_min=E)
        )

    case(
        "torch", "CosineAnnealingWarmRestarts", "cosine_restarts",
        warmup=0, period=12, period_mult=float(mult), min_lr=E, preset="torch",
    )(warm_restarts)  # fmt: skip


# ---- optax, in float64 --------------------------------------------------------------------------


def of_optax(make):
    import jax

    jax.config.update("jax_enable_x64", True)
    schedule = make()
    return lambda step: float(schedule(step))


def optax_joined(decay):
    import optax

    return optax.join_schedules([optax.linear_schedule(INIT, B, W), decay], [W])


@case(
    "optax", "warmup_constant_schedule", "warmup_constant", warmup=W, init_lr=INIT, preset="optax"
)
def _():
    import optax

    return of_optax(lambda: optax.warmup_constant_schedule(INIT, B, W))


@case(
    "optax", "join_schedules(linear_schedule, linear_schedule)", "warmup_linear",
    warmup=W, total=T, min_lr=E, init_lr=INIT, preset="optax",
)  # fmt: skip
def _():
    import optax

    return of_optax(lambda: optax_joined(optax.linear_schedule(B, E, T - W)))


for power in (1.0, 2.5):

    @case(
        "optax", "warmup_cosine_decay_schedule", "warmup_cosine",
        warmup=W, total=T, min_lr=E, init_lr=INIT, power=power, preset="optax",
    )  # fmt: skip
    def _(power=power):
        import optax

        return of_optax(
            lambda: optax.warmup_cosine_decay_schedule(INIT, B, W, T, end_value=E, exponent=power)
        )


@case(
    "optax", "join_schedules(linear_schedule, polynomial_schedule)", "polynomial",
    warmup=W, total=T, min_lr=E, init_lr=INIT, power=1.5, preset="optax",
)  # fmt: skip
def _():
    import optax

    return of_optax(lambda: optax_joined(optax.polynomial_schedule(B, E, 1.5, T - W)))


@case("optax", "cosine_onecycle_schedule", "one_cycle", warmup=None, total=T, preset="optax")
def _():
    import optax

    return of_optax(lambda: optax.cosine_onecycle_schedule(T, B))


@case(
    "optax", "linear_onecycle_schedule", "one_cycle",
    warmup=None, total=T, shape="linear", preset="optax",
)  # fmt: skip
def _():
    import optax

    return of_optax(lambda: optax.linear_onecycle_schedule(T, B))


@case(
    "optax", "sgdr_schedule", "cosine_restarts",
    warmup=W, total=W + 12 + 24, min_lr=E, init_lr=INIT, period=12, period_mult=2.0, preset="optax",
)  # fmt: skip
def _():
    import optax

    cycle = {"peak_value": B, "end_value": E}
    first = cycle | {"init_value": INIT, "warmup_steps": W, "decay_steps": W + 12}
    second = cycle | {"init_value": B, "warmup_steps": 0, "decay_steps": 24}
    return of_optax(lambda: optax.sgdr_schedule([first, second]))


# ---- Megatron-LM --------------------------------------------------------------------------------


def of_megatron(name="lr", **options):
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    defaults = {
        "init_lr": INIT, "max_lr": B, "min_lr": E, "lr_warmup_steps": W, "lr_decay_steps": T,
        "lr_decay_style": "constant", "start_wd": 0.01, "end_wd": 0.1, "wd_incr_steps": W,
        "wd_incr_style": "linear",
    }  # fmt: skip
    group = {}
    optimizer = types.SimpleNamespace(param_groups=[group])
    scheduler = OptimizerParamScheduler(optimizer, **(defaults | options))
    rates = []
    for _ in range(max(STEPS) + 1):
        rates.append(float(group[name]))
        scheduler.step(1)
    return lambda step: rates[step]


def megatron(style, schedule, options=None, **arguments):
    case(
        "megatron-core", f"OptimizerParamScheduler, {style}", schedule,
        warmup=W, total=T, init_lr=INIT, preset="megatron", **arguments,
    )(lambda: of_megatron(lr_decay_style=style, **(options or {})))  # fmt: skip


megatron("constant", "warmup_constant")
megatron("linear", "warmup_linear", min_lr=E)
megatron("cosine", "warmup_cosine", min_lr=E)
megatron("inverse-square-root", "inverse_sqrt", min_lr=E)
for shape in ("linear", "cosine", "exponential", "sqrt"):
    megatron(
        "WSD", "wsd",
        {"wsd_decay_steps": 10, "lr_wsd_decay_style": {"sqrt": "minus_sqrt"}.get(shape, shape)},
        decay=10, shape=shape, min_lr=E,
    )  # fmt: skip
for style in ("linear", "cosine"):
    case(
        "megatron-core", f"OptimizerParamScheduler, weight decay, {style}", "warmup_constant",
        base_lr=0.1, init_lr=0.01, warmup=W, warmup_shape=style, preset="megatron",
    )(lambda style=style: of_megatron("weight_decay", wd_incr_style=style))  # fmt: skip


# ---- torchtitan ---------------------------------------------------------------------------------


def torchtitan_container():
    """The module of the schedules alone: its package would import all of torchtitan."""

    class Configurable:
        class Config:
            __slots__ = ()

    for name, contents in {
        "config": {"Configurable": Configurable}, "tools": {}, "tools.logging": {"logger": None},
        "schedules": {"__path__": []}, "schedules.optimizer": {"OptimizersContainer": list},
    }.items():  # fmt: skip
        module = sys.modules.setdefault(f"torchtitan.{name}", types.ModuleType(name))
        vars(module).update(contents)
    root = pathlib.Path(importlib.util.find_spec("torchtitan").origin).parent
    path = root / "components" / "optimizer" / "lr_scheduler.py"
    spec = importlib.util.spec_from_file_location("torchtitan.schedules.lr_scheduler", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.LRSchedulersContainer


def torchtitan(schedule, decay_type, decay_ratio=None, **arguments):
    def values():
        config = torchtitan_container().Config(
            warmup_steps=W, decay_ratio=decay_ratio, decay_type=decay_type, min_lr_factor=E / B
        )

        def make(optimizer):
            return config.build(optimizers=[optimizer], training_steps=T).schedulers[0]

        return of_torch(make)

    case(
        "torchtitan", f"LRSchedulersContainer, {decay_type}, decay_ratio {decay_ratio}", schedule,
        warmup=W, total=T, min_lr=E, preset="torchtitan", **arguments,
    )(values)  # fmt: skip


torchtitan("warmup_linear", "linear")
torchtitan("warmup_cosine", "cosine")
torchtitan("wsd", "linear")
for shape in ("linear", "cosine", "sqrt"):
    torchtitan("wsd", shape, decay_ratio=10 / T, decay=10, shape=shape)


def main(only):
    records = []
    for library, source, schedule, arguments, values in CASES + FORMULAS:
        if only and library not in only:
            continue
        try:
            how = f"run, version {importlib.metadata.version(library)}"
        except importlib.metadata.PackageNotFoundError:
            how = "from the formula"
        rate = values()
        if schedule != "noam":
            arguments = {"base_lr": B, **arguments}
        records.append({
            "library": library, "source": source, "how": how,
            "schedule": schedule, "arguments": arguments,
            "values": {str(step): rate(step) for step in STEPS},
        })  # fmt: skip
    lines = ",\n".join(
        json.dumps({k: v for k, v in record.items() if k != "values"})[:-1]
        + ',\n "values": '
        + json.dumps(record["values"])
        + "}"
        for record in records
    )
    print(f"[\n{lines}\n]")


if __name__ == "__main__":
    main(sys.argv[1:])
