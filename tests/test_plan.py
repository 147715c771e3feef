"""The plan of a run's memory against what is allocated."""

import json
import subprocess
import sys

import pytest
from run_case import SAMPLE
from test_cli import assert_one_line_error, flatstep

import flatstep as fs
from flatstep._memory import available_memory

SMALL = fs.GPTConfig(vocab_size=37, block_size=17, n_layer=3, n_head=3, n_embd=24)
GPT2 = fs.GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768)


@pytest.mark.parametrize("recompute", (False, True))
@pytest.mark.parametrize("shape", ((1, 1), (3, 13), (5, 17)))
def test_the_workspace_is_what_is_allocated(rng, threads, shape, recompute):
    model = fs.GPT(SMALL, recompute=recompute)
    ids = rng.integers(0, 37, shape)
    model.forward_backward(ids, ids)
    plan = model.plan(*shape)
    assert plan.workspace == model._core.held_bytes > 0
    assert plan.batch_bytes == 2 * ids.nbytes
    assert (plan.params, plan.grads) == (model.params.nbytes, model.grads.nbytes)
    assert plan == fs.plan(SMALL, *shape, recompute=recompute)
    assert sum(plan.parts.values()) == plan.total


@pytest.mark.parametrize("state", ("full", "8bit"))
@pytest.mark.parametrize("name", ("adamw", "adam", "sgd", "sgd without momentum"))
def test_the_state_is_what_is_allocated(name, state):
    model = fs.GPT(SMALL)
    kind = {"adamw": fs.AdamW, "adam": fs.Adam}.get(name, fs.SGD)
    momentum = name != "sgd without momentum"
    options = {"lr": 0.1, "momentum": 0.9 if momentum else 0.0} if kind is fs.SGD else {}
    optimizer = kind(model.params, layout=model.layout, state=state, **options)
    arrays = optimizer._state_views()["state"].values()
    held = sum(array.nbytes for views in arrays for array in views.values())
    planned = model.plan(
        2, 5, optimizer=name.split()[0], optimizer_state=state, momentum=momentum
    ).optimizer_bytes
    assert planned == held and (held > 0) == momentum


def test_the_default_length_is_the_block():
    assert fs.plan(SMALL, 2) == fs.plan(SMALL, 2, 17)


def test_gpt2_fits_where_it_should():
    """Four times the parameters, and the activations of 256 tokens."""
    plan = fs.plan(GPT2, 4, 64)
    assert plan.params == 4 * 124_439_808
    assert plan.total < 2.25e9
    assert fs.plan(GPT2, 4, 64, recompute=True).total < plan.total - 0.1e9


@pytest.mark.parametrize("recompute", (False, True))
def test_largest_batch(recompute):
    plan = fs.plan(SMALL, 1, recompute=recompute)
    for available in (plan.total - 1, plan.total, 10**7, 3 * 10**8):
        batch = plan.largest_batch(available)
        assert batch == 0 or plan.with_batch(batch).total <= available
        assert plan.with_batch(batch + 1).total > available
    assert plan.largest_batch(plan.total - 1) == 0 and plan.largest_batch(plan.total) == 1


PROGRAM = """
import sys, tempfile
import numpy as np
import flatstep as fs
from flatstep.training.checkpoint import load_newest, save_checkpoint

def status(field):
    lines = open("/proc/self/status")
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

def train(config, batch, recompute):
    model = fs.GPT(config, recompute=recompute)
    optimizer = fs.AdamW(model.params, layout=model.layout)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, (batch, config.block_size))
    for step in range(2):
        model.forward_backward(ids, ids, step=step)
        optimizer.step(model.grads, max_norm=1.0, partials=model.grad_partials)
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(folder, model, optimizer, {"step": 2})
        load_newest(folder, model, optimizer, warn=print)
    return model.plan(*ids.shape).total

train(fs.GPTConfig(256, 8, 1, 1, 8), 1, False)
before = status("VmRSS")
planned = train(fs.GPTConfig(256, 128, 6, 6, 384, 0.1), 8, bool(int(sys.argv[1])))
print(planned, status("VmHWM") - before)
"""


@pytest.mark.needs("proc")
@pytest.mark.parametrize("recompute", (0, 1))
def test_the_peak_of_a_run_is_the_plan(recompute):
    """Training, a checkpoint and back: within 5 % of the plan, of which scratch is not all used."""
    command = [sys.executable, "-c", PROGRAM, str(recompute)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    planned, peak = map(int, done.stdout.split())
    assert peak == pytest.approx(planned, rel=0.05)


BAD = [
    ({"config": {}}, TypeError, "config: got dict, expected a GPTConfig"),
    ({"batch": 0}, ValueError, "batch: got 0"),
    ({"batch": 1.5}, TypeError, "batch"),
    ({"length": 18}, ValueError, "length: got 18, expected a number from 1 to block_size 17"),
    ({"length": 0}, ValueError, "length: got 0"),
    ({"optimizer": "lion"}, ValueError, "optimizer: got 'lion'"),
    ({"optimizer_state": "4bit"}, ValueError, "optimizer_state: got '4bit'"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), BAD, ids=lambda value: str(value)[:40])
def test_bad_arguments(changes, kind, message):
    with pytest.raises(kind) as caught:
        fs.plan(**({"config": SMALL, "batch": 2} | changes))
    assert message in str(caught.value)


def write(path, **files):
    path.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)


def test_available_memory(tmp_path):
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    assert available_memory(proc, groups) is None
    write(proc, meminfo="MemTotal: 900 kB\nMemAvailable:    500 kB\n")
    assert available_memory(proc, groups) == 500 * 1024
    # Version 2: the parent's limit counts as well, and pages of files can be dropped.
    write(proc / "self", cgroup="0::/outer/inner\n")
    files = {"memory__current": "90000", "memory__stat": "anon 1\ninactive_file 10000\n"}
    write(groups / "outer/inner", memory__max="max", **files)
    assert available_memory(proc, groups) == 500 * 1024
    write(groups / "outer", memory__max="100000", **files)
    assert available_memory(proc, groups) == 20000
    write(groups / "outer/inner", memory__max="80001", **files)
    assert available_memory(proc, groups) == 1
    # Version 1, where the kernel writes a huge number for no limit.
    write(proc / "self", cgroup="5:cpu:/\n3:memory:/job\n")
    usage = {"memory__usage_in_bytes": "30000", "memory__stat": "cache 5\n"}
    write(groups / "memory", memory__limit_in_bytes=str(2**63 - 4096), **usage)
    assert available_memory(proc, groups) == 500 * 1024
    write(groups / "memory/job", memory__limit_in_bytes="40000", **usage)
    assert available_memory(proc, groups) == 10000


def test_the_command():
    options = ["--vocab-size", 37, "--n-layer", 3, "--n-head", 3, "--n-embd", 24]
    options += ["--block-size", 17, "--batch-size", 5, "--optimizer-state", "8bit", "--threads", 2]
    fs.set_num_threads(2)
    for more, recompute in (([], False), (["--recompute"], True)):
        plan = fs.plan(SMALL, 5, optimizer_state="8bit", recompute=recompute)
        done = flatstep("plan", *options, *more, "--json")
        assert done.returncode == 0, done.stderr
        result = json.loads(done.stdout)
        assert (result["bytes"], result["total"]) == (plan.parts, plan.total)
        text = flatstep("plan", *options, *more).stdout
        for size in (*plan.parts.values(), plan.total):
            assert f" {size:,} bytes  " in text
        assert ("recomputing" in text) == recompute
        if result["available"] is not None:
            assert result["largest_batch"] == plan.largest_batch(result["available"])
            assert "bytes  to be had: a batch of up to " in text
    plain = flatstep("plan", *options, "--optimizer", "sgd", "--beta1", 0, "--json")
    assert json.loads(plain.stdout)["bytes"]["optimizer_bytes"] == 0


def test_bad_calls_of_the_command():
    assert_one_line_error(flatstep("plan", "--vocab-size", 0), 2, "--vocab-size")
    assert_one_line_error(flatstep("plan", "--n-embd", 10, "--n-head", 3), 2, "--n-embd 10")
    assert_one_line_error(flatstep("plan", "--device", "cuda"), 2, "--device cuda")
    assert_one_line_error(flatstep("plan", "--lr", 1), 2, "--lr")


def test_training_with_recompute(tmp_path):
    """The same weights; a run may change its mind when it is resumed."""
    text = tmp_path / "text"
    text.write_text(SAMPLE)
    tiny = ["--n-layer", 2, "--n-head", 2, "--n-embd", 16, "--block-size", 16, "--batch-size", 4]
    tiny += ["--dropout", 0.1, "--warmup", 2, "--schedule", "constant", "--quiet"]
    for name, option in (("plain", "--no-recompute"), ("again", "--recompute")):
        run = tmp_path / name
        for step, more in ((3, [text, *tiny, option, "--out", run]), (6, ["--resume", run])):
            done = flatstep("train", *more, "--steps", step, "--quiet")
            assert done.returncode == 0, done.stderr
    weights = [
        (tmp_path / name / "checkpoints/step-6/model.safetensors").read_bytes()
        for name in ("plain", "again")
    ]
    assert weights[0] == weights[1]
    assert "recompute = true" in (tmp_path / "again/config.toml").read_text()
    done = flatstep("train", "--resume", tmp_path / "again", "--no-recompute", "--steps", 7)
    assert done.returncode == 0, done.stderr
    assert "recompute = false" in (tmp_path / "again/config.toml").read_text()


def test_the_largest_batch_is_past_a_drop_of_the_scratch():
    """The head takes its rows in equal parts: one part more, and each takes less than before."""
    plan = fs.plan(fs.GPTConfig(256, 16, 1, 2, 16), 1)
    totals = [plan.with_batch(batch).total for batch in range(1, 4000)]
    more = max(batch for batch in range(2, 4000) if totals[batch - 1] < totals[batch - 2])
    assert more > 3000
    for available in (plan.with_batch(more).total, plan.with_batch(more - 1).total):
        batch = plan.largest_batch(available)
        assert batch >= more and plan.with_batch(batch).total <= available
        assert all(plan.with_batch(batch + above).total > available for above in range(1, 2000, 7))


def test_a_deep_model_is_planned_at_once(monkeypatch):
    """Laying it out takes a while: once for all batches."""
    from flatstep import _core

    made = []
    real = _core.Gpt
    plan = fs.plan(SMALL, 1)
    monkeypatch.setattr(_core, "Gpt", lambda **shape: made.append(shape) or real(**shape))
    assert plan.largest_batch(10**9) > 1 and len(made) == 1
