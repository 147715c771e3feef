"""bench/training_step.py on its smallest shape: every contender's row, and losses that agree."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "bench" / "training_step.py"


def run(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *arguments], capture_output=True, text=True, timeout=300
    )


def test_rows_of_every_contender():
    done = run("--shapes", "d", "--dropout", "0,0.1", "--seconds", "0.1", "--no-compile", "--json")
    assert done.returncode == 0, done.stderr
    without, with_dropout = json.loads(done.stdout)
    for case in (without, with_dropout):
        rows = {row["case"]: row for row in case["contenders"]}
        assert set(rows) == {"flatstep", "torch eager"}
        assert all(row["seconds"] > 0 and row["of_2048"] > 0 for row in rows.values())
        assert min(case["parts"][part] for part in ("gemm", "attention", "optimizer")) > 0
    losses = [row["losses"] for row in without["contenders"]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert with_dropout["contenders"][0]["losses"][0] != losses[0][0]


def test_bfloat16_is_no_part_of_the_comparison():
    done = run(
        *("--shapes", "d", "--dropout", "0", "--seconds", "0.1", "--no-compile"),
        *("--autocast", "--json"),
    )
    assert done.returncode == 0, done.stderr
    rows = {row["case"]: row for row in json.loads(done.stdout)[0]["contenders"]}
    assert set(rows) == {"flatstep", "torch eager", "torch bf16"}
    loss, rounded = rows["flatstep"]["losses"][0], rows["torch bf16"]["losses"][0]
    assert loss != rounded == pytest.approx(loss, rel=1e-2)
    best = rows["torch eager"]["seconds"]
    assert rows["torch bf16"]["over_best"] == pytest.approx(rows["torch bf16"]["seconds"] / best)


def test_an_unknown_shape():
    done = run("--shapes", "a,z")
    assert done.returncode == 2 and "got 'z', expected some of a, b, c, d" in done.stderr
