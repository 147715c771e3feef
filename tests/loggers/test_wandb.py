"""--log wandb with the real package, offline; absent without it."""

import time

import pytest
from run_case import SAMPLE, TINY, bits

from flatstep.training import loop


@pytest.mark.filterwarnings("ignore")  # of the package and what it starts
def test_an_offline_run_is_kept_in_the_folder(tmp_path, monkeypatch, capsys):
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DIR", str(tmp_path))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    text = tmp_path / "text.txt"
    text.write_text(SAMPLE)
    run = tmp_path / "run"
    given = TINY | {"log": "wandb", "sample_every": 6}
    assert loop.start(given, [str(text)], out=run, quiet=True).step == 12
    assert "warning: --log" not in capsys.readouterr().err
    (kept,) = run.glob("wandb/offline-run-*/run-*.wandb")
    assert (run / "wandb.id").read_text().strip() in kept.name
    expected = (b"tokens_per_second", b"val_loss", b"n_embd")
    for _ in range(100):  # its own process writes the file, and may be behind
        if all(part in kept.read_bytes() for part in expected):
            break
        time.sleep(0.1)
    assert [part for part in expected if part not in kept.read_bytes()] == []
    assert loop.start(TINY, [str(text)], out=tmp_path / "plain", quiet=True).step == 12
    assert bits(run) == bits(tmp_path / "plain")
