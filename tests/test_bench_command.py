"""`flatstep bench`: the figures agree with each other and with what was asked."""

import json

import pytest

import flatstep as fs
from flatstep.cli import main
from flatstep.commands.bench import flops_per_token, median_seconds

TINY = [
    "--n-layer",
    "1",
    "--n-head",
    "2",
    "--n-embd",
    "16",
    "--block-size",
    "8",
    "--batch-size",
    "3",
]


def test_the_figures_of_a_small_model(capsys, monkeypatch):
    monkeypatch.setattr("flatstep.commands.bench.PARAMETERS", 100_000)
    monkeypatch.setattr("flatstep.commands.bench.ROWS", 8)
    threads = fs.get_num_threads()
    call = ["bench", "--seconds", "0.01", "--json", "--optimizer-state", "8bit", "--threads", "1"]
    try:
        assert main([*call, *TINY]) == 0
    finally:
        fs.set_num_threads(threads)
    result = json.loads(capsys.readouterr().out)
    assert result["threads"] == 1 and result["isa"] == fs.info()["isa"]
    roof, loss, update = (
        result[k] for k in ("roof_bytes_per_second", "cross_entropy", "optimizer")
    )
    moved = loss["bytes_per_second"] * loss["seconds"]
    assert moved == pytest.approx(2 * 4 * 8 * 50257)
    assert loss["of_roof"] == pytest.approx(loss["bytes_per_second"] / roof)
    scales = 2 * 2 * -(-100_000 // 128)  # two moments, two bytes for 128 elements
    moved = update["bytes_per_second"] * update["seconds"]
    assert moved == pytest.approx((4 * 4 + 2 * 2) * 100_000 + 2 * scales)
    step = result["step"]
    assert step["batch"] == [3, 8] and step["parameters"] == 256 * 16 + 8 * 16 + 3280 + 32
    assert step["tokens_per_second"] == pytest.approx(24 / step["seconds"])
    rate = step["tokens_per_second"] * (6 * (256 * 16 + 3280 + 32) + 12 * 16 * 8)
    assert step["flops_per_second"] == pytest.approx(rate)
    assert main(["bench", "--seconds", "0.01", *TINY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:5]] == [
        "flatstep", "roof", "loss", "optimizer", "step",
    ]  # fmt: skip


def test_flops_of_gpt2():
    """0.855 GF a token of 124M at 1024, as nanoGPT and PaLM count."""

    class Model:
        config = fs.GPTConfig(50257, 1024, 12, 12, 768)
        num_params = 124_439_808

    assert flops_per_token(Model) == pytest.approx(0.855e9, rel=1e-3)


def test_the_first_call_is_not_counted():
    calls = []
    median_seconds(lambda: calls.append(0), 0.0)
    assert len(calls) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["--seconds", "0"], "--seconds must be above 0"),
        (["--seconds", "nan"], "--seconds must be above 0"),
        (["--vocab-size", "0"], "--vocab-size must be from 1"),
        (["--preset", "gtp2"], "did you mean 'gpt2'?"),
        (["--threads", "5000"], "--threads must be at most 4096"),
        (["--n-embd", "1000000000", "--n-head", "1"], "no such model"),
        (["--n-head", "5"], "must be a multiple of --n-head"),
    ],
)
def test_wrong_calls(capsys, call, message):
    assert main(["bench", *call]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.needs("proc")
def test_what_does_not_fit_is_refused(capsys):
    assert main(["bench", "--preset", "gpt2", "--batch-size", "10000000"]) == 2
    error = capsys.readouterr().err
    assert "are available; " in error and "the largest batch that fits is" in error
    assert error.count("\n") == 1
