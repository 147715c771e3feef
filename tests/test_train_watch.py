"""Validation, best, patience and samples, and what a signal in the midst of them leaves to do."""

import json
import math
import os
import signal

import numpy as np
import pytest
from run_case import TINY, bits, metrics, stop_at

import flatstep as fs
from flatstep.data.corpus import load_corpus
from flatstep.errors import RunFailed
from flatstep.training import loop, samples
from flatstep.training import trainer as trainer_module
from flatstep.training.checkpoint import list_checkpoints
from flatstep.training.trainer import Trainer

# Noise has nothing to learn: the validation loss soon rises. With 8 characters it falls at first.
NOISE = TINY | {"steps": 120, "eval_every": 3, "lr": 3e-2, "save_every": 7, "dropout": 0.0}


@pytest.fixture
def noise(tmp_path):
    path = tmp_path / "noise.txt"
    numbers = np.random.default_rng(5).integers(0, 8, 400)
    path.write_text("".join("abcdefgh"[k] for k in numbers))
    return str(path)


def state(run):
    return json.loads((list_checkpoints(run)[0] / "state.json").read_text())


def validations(run):
    return {x["step"]: x["val_loss"] for x in metrics(run) if "val_loss" in x}


def end_by_patience(losses, patience):
    """The step at which a run with these validations {step: loss} must end, and its best step."""
    best = None
    for step, loss in losses.items():
        if best is None or loss < losses[best]:
            best, since = step, 0
        else:
            since += 1
        if since == patience:
            return step, best
    raise AssertionError(f"never without a new best for {patience} validations: {losses}")


def test_patience_ends_the_run_and_says_which_is_best(tmp_path, noise, capsys):
    long = tmp_path / "long"
    loop.start(NOISE, [noise], out=long, quiet=True)
    end, best = end_by_patience(validations(long), 4)
    assert best < end < 120
    run = tmp_path / "run"
    outcome = loop.start(NOISE | {"patience": 4, "keep_best": True}, [noise], out=run)
    assert (outcome.step, outcome.stopped_early, outcome.signal) == (end, True, None)
    assert outcome.best == {"step": best, "val_loss": validations(long)[best]}
    assert outcome.val_loss == validations(long)[end]
    assert metrics(run) == metrics(long)[:end]
    assert list_checkpoints(run)[0].name == f"step-{end}"
    assert state(run)["best"] == outcome.best
    out = capsys.readouterr().out
    assert f"stopped early after step {end}: no new best in 4 validations" in out
    assert f"best    validation {outcome.best['val_loss']:.4f} at step {best}" in out
    assert loop.resume(run, quiet=True) == loop.Outcome(
        run, end, stopped_early=True, best=outcome.best
    )
    assert loop.resume(run).step == end
    assert f"flatstep train --resume {run} --patience 0" in capsys.readouterr().out
    assert loop.resume(run, {"patience": 0}, quiet=True).step == 120
    assert bits(run) == bits(long)


def test_a_resumed_run_loses_its_patience_at_the_same_step(tmp_path, noise, monkeypatch):
    given = NOISE | {"patience": 4}
    whole = tmp_path / "whole"
    end = loop.start(given, [noise], out=whole, quiet=True).step
    for step in (1, end // 2, end - 4, end - 1):
        run = tmp_path / f"stopped-{step}"
        with monkeypatch.context() as patch:
            stop_at(patch, step)
            assert loop.start(given, [noise], out=run, quiet=True).signal
        outcome = loop.resume(run, quiet=True)
        assert (outcome.step, outcome.stopped_early) == (end, True)
        assert bits(run) == bits(whole) and metrics(run) == metrics(whole)
        assert state(run)["best"] == state(whole)["best"]


def test_each_new_best_is_saved_when_wished(tmp_path, noise, monkeypatch):
    saved = []
    real = Trainer.save

    def watching(self, *arguments, **options):
        saved.append((self.step, dict(self.best) if self.best else None))
        return real(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "save", watching)
    for keep_best in (True, False):
        saved.clear()
        given = NOISE | {"keep_best": keep_best, "save_every": 0, "steps": 30}
        run = tmp_path / str(keep_best)
        loop.start(given, [noise], out=run, quiet=True)
        expected, lowest = [], float("inf")
        for step, loss in validations(run).items():
            if loss < lowest:
                lowest = loss
                expected.append((step, {"step": step, "val_loss": loss}))
        last = (30, expected[-1][1])
        expected = [*expected, *([] if expected[-1][0] == 30 else [last])]
        assert saved == (expected if keep_best else [last])
        assert len(expected) > 1


def test_a_validation_that_is_no_number_is_never_the_best(tmp_path, text):
    corpus = loop._load(loop.make_config(TINY), [text])
    trainer = Trainer(loop.make_config(TINY), corpus)
    assert not trainer.note_validation(float("nan"))
    assert (trainer.best, trainer.since_best) == (None, 1)
    assert trainer.note_validation(2.0) and not trainer.note_validation(2.0)
    assert (trainer.best["val_loss"], trainer.since_best) == (2.0, 1)


def test_eval_tokens_says_how_many_are_looked_at(tmp_path, text, monkeypatch):
    seen = []
    real = fs.GPT.loss
    monkeypatch.setattr(
        fs.GPT, "loss", lambda self, t, y: seen.append(t.size) or real(self, t, y)
    )  # fmt: skip
    config = loop.make_config(TINY | {"val_fraction": 0.5})
    trainer = Trainer(config, loop._load(config, [text]))
    validation = trainer.corpus.validation
    for tokens, expected in ((32, 32), (0, (len(validation) - 1) // 16 * 16)):
        config = loop.make_config(TINY | {"val_fraction": 0.5, "eval_tokens": tokens})
        trainer.config = config
        seen.clear()
        trainer.evaluate(validation)
        assert sum(seen) == expected


def test_the_last_screen_has_the_bytes_of_the_last_validation(tmp_path, monkeypatch, capsys):
    """Bits per byte as counted by hand, characters of one to four bytes; nothing is read again."""
    rng, passes = np.random.default_rng(7), []
    path, run = tmp_path / "text.txt", tmp_path / "run"
    path.write_text("".join("aeé✓😀"[k] for k in rng.integers(0, 5, 2000)))
    real = trainer_module.evaluation_batches

    def counting(tokens, **options):
        passes.append(len(tokens))
        return real(tokens, **options)

    monkeypatch.setattr(trainer_module, "evaluation_batches", counting)
    given = TINY | {"vocab": "char", "val_fraction": 0.3, "eval_tokens": 320}
    outcome = loop.start(given, [str(path)], out=run)
    corpus = load_corpus([str(path)], loop.make_config(given))
    text = corpus.vocabulary.decode(np.concatenate(list(corpus.validation.chunks())))
    windows = (len(text) - 1) // 16
    starts = [k * windows // 20 * 16 for k in range(20)]
    size = sum(len(text[start + 1 : start + 17].encode()) for start in starts)
    assert size != 320 and len(text) > 400
    expected = outcome.val_loss * 320 / math.log(2) / size
    assert outcome.val_bits_per_byte == pytest.approx(expected, rel=1e-9)
    assert f"nats per token ({expected:.3f} bits per byte)\n" in capsys.readouterr().out
    # Validations after steps 5, 10 and 12, then the training text once.
    assert passes == [len(text)] * 3 + [len(corpus.train)]


def signal_within(monkeypatch, owner, name, number):
    """Sends a SIGTERM in the midst of call `number` (from 1) of owner.name; the list of calls."""
    real, calls = getattr(owner, name), []

    def killing(*arguments, **options):
        calls.append(arguments)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **options)

    monkeypatch.setattr(owner, name, killing)
    return calls


# Each validation looks at 8 batches: of steps 5, 10 and 12, the last; then come those of the end.
WATCHED = TINY | {"val_fraction": 0.4, "eval_tokens": 8 * 4 * 16, "keep_best": True, "patience": 9}


@pytest.mark.parametrize(("call", "step"), [(1, 5), (6, 5), (11, 10), (18, 12), (27, 12)])
def test_a_signal_breaks_a_validation_off_and_it_is_made_up_for(
    tmp_path, text, monkeypatch, call, step
):
    whole, run = tmp_path / "whole", tmp_path / "run"
    outcome = loop.start(WATCHED, [text], out=whole, quiet=True)
    with monkeypatch.context() as patch:
        calls = signal_within(patch, fs.GPT, "loss", call)
        stopped = loop.start(WATCHED, [text], out=run, quiet=True)
    assert len(calls) == call  # not one batch more
    assert (stopped.step, stopped.signal) == (step, signal.SIGTERM)
    assert list_checkpoints(run)[0].name == f"step-{step}"
    if call <= 24:
        assert "val_loss" not in metrics(run)[-1] and metrics(run)[-1]["step"] == step
        resumed = loop.resume(run, quiet=True)
        assert resumed.val_loss == outcome.val_loss and resumed.best == outcome.best
    assert bits(run) == bits(whole) and metrics(run) == metrics(whole)
    assert {k: v for k, v in state(run).items() if k != "seconds"} == {
        k: v for k, v in state(whole).items() if k != "seconds"
    }


def test_a_validation_may_be_broken_off_again_and_again(tmp_path, text, monkeypatch):
    whole, run = tmp_path / "whole", tmp_path / "run"
    loop.start(WATCHED, [text], out=whole, quiet=True)
    for k in range(3):
        with monkeypatch.context() as patch:
            signal_within(patch, fs.GPT, "loss", 3 + k)
            stopped = (
                loop.resume(run, quiet=True)
                if k
                else loop.start(WATCHED, [text], out=run, quiet=True)
            )
        assert stopped.step == 5
    loop.resume(run, quiet=True)
    assert bits(run) == bits(whole) and metrics(run) == metrics(whole)


def headings(run):
    lines = (run / "samples.txt").read_text().splitlines()
    return [int(line.split()[2]) for line in lines if line.startswith("== step ")]


def test_samples_come_on_schedule_and_once(tmp_path, text, monkeypatch, capsys):
    given = TINY | {"sample_every": 3, "save_every": 5}
    whole, run = tmp_path / "whole", tmp_path / "run"
    loop.start(given, [text], out=whole)
    assert headings(whole) == [3, 6, 9, 12]
    shown = capsys.readouterr().err
    assert all(f"sample of step {step}:" in shown for step in (3, 6, 9, 12))
    # Killed after step 7: the run goes on from step 5.
    real = Trainer.try_step

    def dying(self):
        if self.step == 7:
            raise RuntimeError("killed")
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "try_step", dying)
        with pytest.raises(RuntimeError, match="killed"):
            loop.start(given, [text], out=run, quiet=True)
    assert headings(run) == [3, 6]
    loop.resume(run, quiet=True)
    assert (run / "samples.txt").read_bytes() == (whole / "samples.txt").read_bytes()
    assert bits(run) == bits(whole)


def test_a_signal_breaks_a_sample_off(tmp_path, text, monkeypatch):
    given = TINY | {"sample_every": 4, "eval_every": 4}
    whole, run = tmp_path / "whole", tmp_path / "run"
    loop.start(given, [text], out=whole, quiet=True)
    real, pieces = samples.stream_text, []

    def killing(*arguments, **options):
        for piece in real(*arguments, **options):
            pieces.append(piece)
            if len(pieces) == 20:
                os.kill(os.getpid(), signal.SIGINT)
            yield piece

    with monkeypatch.context() as patch:
        patch.setattr(samples, "stream_text", killing)
        assert loop.start(given, [text], out=run, quiet=True).step == 4
    assert len(pieces) == 20 and not (run / "samples.txt").exists()
    assert loop.resume(run, quiet=True).step == 12
    assert (run / "samples.txt").read_bytes() == (whole / "samples.txt").read_bytes()
    assert bits(run) == bits(whole) and metrics(run) == metrics(whole)


def test_token_numbers_take_a_part_of_the_screen(tmp_path, capsys):
    """Ten lines of them, and how many there are; samples.txt has all."""
    data, run = tmp_path / "data.bin", tmp_path / "run"
    np.random.default_rng(3).integers(1_000, 5_000, 4_000).astype("<u2").tofile(data)
    loop.start(TINY | {"steps": 2, "sample_every": 2, "warmup": 1}, [str(data)], out=run)
    told = capsys.readouterr()
    [whole] = [x for x in (run / "samples.txt").read_text().splitlines() if x[:1].isdigit()]
    assert len(whole.split()) == 200
    for shown, heading, count in (
        (told.err, "sample of step 2:\n", 200),
        (told.out, "sample  400 tokens at temperature 0.7\n", 400),
    ):
        lines = shown.partition(heading)[2].splitlines()
        first = " ".join(lines[:10]).split()
        assert lines[10:12] == [f"(the first {len(first)} of {count} numbers)", ""]
        assert 160 <= len(first) < 200 and first == whole.split()[: len(first)]
        assert max(map(len, lines[:10])) <= 79


def test_samples_that_fit_the_screen_are_shown_whole():
    assert samples.on_screen("1 23 4", "ids") == "1 23 4"
    long = " ".join(["12345"] * 130)  # 13 in a line
    assert samples.on_screen(long, "ids").split() == long.split()
    cut = samples.on_screen(long + " 12345", "ids")
    assert cut == samples.on_screen(long, "ids") + "\n(the first 130 of 131 numbers)"
    text = "a line of text, longer than any screen is wide " * 100
    assert samples.on_screen(text, "char") == text


def test_a_sample_cannot_pass_for_a_heading(tmp_path):
    path = tmp_path / "samples.txt"
    file = samples.SamplesFile(path, 0)
    file.write(1, "good\r== step 9 ==\x0b== step 9 ==\n== step 8 ==")
    file.write(2, "== step 1 ==")
    before = path.read_bytes()
    samples.SamplesFile(path, 2)
    assert path.read_bytes() == before
    samples.SamplesFile(path, 1)
    assert path.read_bytes() == before[: before.index(b"== step 2 ==")]
    samples.SamplesFile(path, 0)
    assert path.read_bytes() == b""


def test_samples_that_cannot_be_written_are_named(tmp_path):
    path = tmp_path / "samples.txt"
    path.symlink_to(tmp_path / "missing" / "samples.txt")
    with pytest.raises(RunFailed, match=rf"{path}: cannot be written: No such file or directory"):
        samples.SamplesFile(path, 0).write(4, "text")


def test_a_signal_while_time_is_estimated_leaves_a_run_to_go_on_with(
    tmp_path, text, monkeypatch, capsys
):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        calls = signal_within(patch, fs.GPT, "forward_backward", 2)
        outcome = loop.start(TINY, [text], out=run)
    assert len(calls) == 2
    assert (outcome.step, outcome.signal) == (0, signal.SIGTERM)
    assert "stopped by SIGTERM before the first step" in capsys.readouterr().err
    assert loop.resume(run, quiet=True).step == 12
