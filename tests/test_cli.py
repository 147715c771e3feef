"""The command line as a user meets it: a process, its output and its exit code."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
from run_case import SAMPLE

import flatstep as fs
from flatstep.cli import COMMANDS
from flatstep.data.vocabulary import ByteVocabulary, CharVocabulary, IdVocabulary
from flatstep.errors import InputError
from flatstep.training.config import make_config
from flatstep.training.options import SCHEDULES, TrainConfig
from flatstep.training.parts import make_schedule
from flatstep.training.run_folder import read_config, write_config
from flatstep.training.sampling import _decoded, stop_token_of

TINY = [
    "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "16", "--batch-size", "4",
    "--no-plot",
]  # fmt: skip


def flatstep(*arguments, cwd=None):
    command = [sys.executable, "-m", "flatstep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=120)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "a file.txt"
    path.write_text(SAMPLE)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory, text):
    """A finished run of 20 steps."""
    run = tmp_path_factory.mktemp("runs") / "run"
    done = flatstep("train", text, *TINY, "--steps", 20, "--eval-every", 10, "--out", run)
    assert done.returncode == 0, done.stderr
    return run


def assert_one_line_error(done, code, *parts):
    assert done.returncode == code, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("flatstep: error: ")
    for part in parts:
        assert part in done.stderr


def steps_of(run):
    return [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_version_cmake_root_and_help():
    assert flatstep("--version").stdout == f"flatstep {fs.__version__}\n"
    root = Path(flatstep("--cmake-root").stdout.strip())
    assert root == Path(fs.__file__).resolve().parent
    for command in ((), *((module.__name__.rpartition(".")[2],) for module in COMMANDS)):
        done = flatstep(*command, "--help")
        assert done.returncode == 0
        assert "examples:\n  flatstep" in done.stdout


def test_info_tells_what_the_library_tells():
    info = json.loads(flatstep("info", "--json").stdout)
    assert info["version"] == fs.__version__
    assert info["isa"] in info["isa_available"]
    lines = flatstep("info").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "flatstep", "isa", "threads", "openmp", "blas", "cuda",
    ]  # fmt: skip
    assert len({len(line) - len(line.split(None, 1)[1]) for line in lines}) == 1
    if not info["cuda"]["built"]:
        assert lines[-1].split(None, 1)[1] == f"not built: {info['cuda']['why_not']}"


def test_a_run_shows_what_it_does_and_leaves_a_whole_folder(tmp_path, text):
    done = flatstep("train", text, *TINY, "--steps", 20, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for part in ("device  cpu", "text    1 document", "model   1 layers", "steps   20 of 4 x 16",
                 "loss    train", "sample  400 tokens", "flatstep sample runs/001",
                 "flatstep train --resume runs/001"):  # fmt: skip
        assert part in done.stdout
    assert "step 20/20" in done.stderr
    assert "Traceback" not in done.stderr
    run = tmp_path / "runs" / "001"
    assert sorted(path.name for path in run.iterdir()) == [
        "checkpoints", "config.toml", "metrics.jsonl", "vocabulary.json",
    ]  # fmt: skip
    config = tomllib.loads((run / "config.toml").read_text())
    assert config["data_files"] == [str(text)]
    assert config["n_embd"] == 16
    assert steps_of(run) == list(range(1, 21))


def test_quiet_run_prints_nothing_and_runs_are_numbered(tmp_path, text):
    for number in (1, 2):
        done = flatstep("train", text, *TINY, "--steps", 2, "--quiet", cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (tmp_path / f"runs/00{number}/checkpoints/step-2").is_dir()


def test_without_files_the_standard_library_is_the_text(tmp_path):
    done = flatstep("train", *TINY, "--steps", 2, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "Python's standard library" in done.stdout
    config = tomllib.loads((tmp_path / "run/config.toml").read_text())
    assert config["data_files"] == []
    assert 1e6 < config["data_bytes"] <= 12e6
    done = flatstep("train", "--resume", tmp_path / "run", "--steps", 3)
    assert done.returncode == 0, done.stderr


BAD_CALLS = [
    ((), "COMMAND"),
    (("trian",), "did you mean 'train'?"),
    (("train", "--stpes", "3"), "unrecognized arguments: --stpes; did you mean '--steps'?"),
    (("train", "--schedule", "cosine"), "did you mean 'warmup_cosine'?"),
    (("train", "--config", "none.toml"), "--config none.toml: cannot be read: No such file"),
    (("train", "--preset", "tny"), "did you mean 'tiny'?"),
    (("train", "--preset", "tiny", "--resume", "full"), "--preset and --resume"),
    (("train", "--ste", "3"), "--ste"),
    (("train", "--steps", "many"), "--steps"),
    (("train", "--steps", "0"), "--steps must be at least 1, got 0"),
    (("train", "--lr", "nan"), "--lr must be a finite number, got nan"),
    (("train", "--lr", "inf"), "--lr must be a finite number"),
    (("train", "--lr", "0"), "--lr must be above 0"),
    (("train", "--min-lr", "1"), "--min-lr 1.0 must not exceed --lr"),
    (("train", "--min-lr", "1e-4", "--schedule", "noam"), "--min-lr has no meaning"),
    (("train", "--dropout", "1"), "--dropout must be below 1"),
    (("train", "--beta2", "1.5"), "--beta2 must be below 1"),
    (("train", "--weight-decay", "-1"), "--weight-decay must be at least 0"),
    (("train", "--val-fraction", "1"), "--val-fraction must be below 1"),
    (("train", "--n-head", "5"), "--n-embd 128 must be a multiple of --n-head 5"),
    (("train", "--warmup", "30", "--steps", "20"), "--warmup 30 must not exceed --steps 20"),
    (("train", "--warmup", "0", "--schedule", "noam"), "--warmup must be at least 1"),
    (("train", "--seed", "-1"), "--seed must be at least 0"),
    (("train", "--batch-size", "9999999999"), "--batch-size must be at most"),
    (("train", "--vocab", "bqe"), "--vocab"),
    (("train", "short.txt", "--vocab", "char", "--tokenizer", "t"), "--tokenizer has no meaning"),
    (("train", "short.txt", "--vocab", "ids"), "short.txt: text, but the vocabulary is of ids"),
    (("train", "short.txt", "--vocab-size", "300"), "the byte vocabulary has 256 tokens"),
    (("train", "short.txt", "--val", "missing.txt"), "missing.txt: cannot be read"),
    (("prepare", "short.txt"), "--out"),
    (("prepare", "short.txt", "--out", "full"), "full: the folder is not empty"),
    (("prepare", "short.txt", "--out", "empty.txt"), "empty.txt is a file, not a folder"),
    (("prepare", "short.txt", "--out", "empty.txt/new/er"), "empty.txt is a file, not a folder"),
    (("prepare", "missing.txt", "--out", "new"), "missing.txt: cannot be read"),
    (("train", "--optimizer", "lion"), "--optimizer"),
    (("train", "--device", "abacus"), "abacus"),
    (("train", "missing.txt"), "missing.txt: cannot be read: No such file"),
    (("train", "empty.txt"), "empty.txt: the file is empty"),
    (("train", "binary.dat"), "binary.dat: a binary file"),
    (("train", "binary.bin"), "3 tokens in all, too few for --block-size 64"),
    (("train", "binary.bin", "short.txt"), "short.txt (text) cannot go together"),
    (("train", "short.txt"), "too few for --block-size 64"),
    (("train", "empty"), "empty: no text files in this folder"),
    (("train", "short.txt", "--block-size", "8", "--out", "full"), "full: the folder is not empty"),
    (("train", "short.txt", "--block-size", "8", "--out", "short.txt"), "--out short.txt: "),
    (("train", "--resume", "missing"), "missing: not a run"),
    (("train", "--resume", "full"), "full: not a run"),
    (("train", "--resume", "full", "--out", "new"), "--out and --resume"),
    (("sample", "missing"), "missing: no such folder"),
    (("sample",), "RUN"),
    (("sample", "full", "--tokens", "0"), "--tokens must be from 1"),
    (("sample", "full", "--temperature", "nan"), "--temperature must be 0 or a finite number"),
    (("sample", "full", "--top-k", "0"), "--top-k must be from 1"),
    (("sample", "full", "--top-p", "1.5"), "--top-p must be from 0 to 1"),
    (("sample", "full", "--top-p", "nan"), "--top-p must be from 0 to 1"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "part"), BAD_CALLS, ids=[" ".join(c) for c, _ in BAD_CALLS])
def test_bad_call_is_one_line_and_writes_nothing(tmp_path, call, part):
    (tmp_path / "empty").mkdir()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes").write_text("mine")
    (tmp_path / "empty.txt").write_bytes(b"")
    for name in ("binary.dat", "binary.bin"):
        (tmp_path / name).write_bytes(b"\x7fELF\0\0")
    (tmp_path / "short.txt").write_text("a short text, some words\n" * 4)
    before = sorted(tmp_path.rglob("*"))
    assert_one_line_error(flatstep(*call, cwd=tmp_path), 2, part)
    assert sorted(tmp_path.rglob("*")) == before


def test_debug_shows_the_traceback():
    for call in (("--debug", "train", "missing.txt"), ("train", "missing.txt", "--debug")):
        done = flatstep(*call)
        assert done.returncode == 2
        assert "Traceback" in done.stderr
        assert done.stderr.splitlines()[-1].startswith("flatstep: error: ")


def test_existing_run_is_never_overwritten(run, text):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    done = flatstep("train", text, *TINY, "--out", run)
    assert_one_line_error(done, 2, "not empty", f"--resume {run}")
    assert before == {path: path.stat().st_mtime_ns for path in run.rglob("*")}


def test_resume_refuses_another_option(run):
    done = flatstep("train", "--resume", run, "--block-size", 32)
    assert_one_line_error(done, 2, "--block-size 32 contradicts the run, which has 16")


def test_damaged_config_is_refused_by_name(tmp_path):
    (tmp_path / "config.toml").write_text("steps = ")
    assert_one_line_error(flatstep("train", "--resume", tmp_path), 2, "config.toml")
    (tmp_path / "config.toml").write_text('steps = "ten"')
    assert_one_line_error(flatstep("sample", tmp_path), 2, "config.toml: --steps: int expected")


def test_diverging_run_fails_with_one_line(tmp_path, text):
    done = flatstep("train", text, *TINY, "--quiet", "--out", tmp_path / "run", "--steps", 500,
                    "--optimizer", "sgd", "--lr", "1e30", "--max-norm", 0)  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("flatstep: error: ")
    assert "Traceback" not in done.stderr
    assert "finite" in done.stderr


def test_sample_prints_the_prompt_and_as_many_bytes_as_asked(run):
    first = flatstep("sample", run, "--prompt", "line ", "--tokens", 50)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("line ")
    assert len(first.stdout.encode(errors="replace")) >= 50
    again = flatstep("sample", run, "--prompt", "line ", "--tokens", 50)
    assert again.stdout == first.stdout
    other = flatstep("sample", run, "--prompt", "line ", "--tokens", 50, "--seed", 1)
    assert other.stdout != first.stdout
    greedy = [
        flatstep("sample", run, "--top-k", 1, "--tokens", 20, "--seed", seed).stdout
        for seed in (0, 1)
    ]
    assert greedy[0] == greedy[1]
    assert flatstep("sample", run, "--top-p", 0, "--tokens", 20).stdout == greedy[0]
    assert flatstep("sample", run, "--top-p", 0.5, "--tokens", 50).stdout != first.stdout


def test_sample_ends_with_the_stop_token(run):
    options = ["sample", run, "--prompt", "line ", "--tokens", 60, "--seed", 2]
    whole = flatstep(*options).stdout
    drawn = whole[len("line ") :]
    stop = next(c for c in drawn[3:] if c.isascii() and c not in "\n")
    cut = whole[: whole.index(stop, len("line ")) + 1]
    for option in (["--stop", stop], ["--stop-token", ord(stop)]):
        done = flatstep(*options, *option)
        assert (done.returncode, done.stdout, done.stderr) == (0, cut + "\n", "")
    for option, *parts in (
        (["--stop", "é"], "--stop: 'é' is 2 tokens of the byte vocabulary, expected text of one"),
        (["--stop", ""], "--stop: '' is 0 tokens"),
        (["--stop-token", 256], "--stop-token must be from 0 to 255, got 256"),
        (["--stop-token", -1], "--stop-token must be from 0 to 255, got -1"),
        (["--stop-token", "x"], "--stop-token"),
        (["--stop-token", 1, "--stop", "a"], "--stop", "--stop-token"),
    ):
        done = flatstep(*options, *option)
        assert_one_line_error(done, 2, *parts)
        assert done.stdout == ""


def test_text_that_is_a_stop_token():
    assert stop_token_of(ByteVocabulary(), b"\n") == 10
    assert stop_token_of(CharVocabulary("aé✓"), "é".encode()) == 1
    assert stop_token_of(IdVocabulary(500), b"499") == 499
    for vocabulary, stop, message in (
        (CharVocabulary("aé✓"), "aé", "--stop: 'aé' is 2 tokens of the char vocabulary"),
        (CharVocabulary("aé✓"), "b", r"--stop: the character 'b' .* is not in the vocabulary"),
        (IdVocabulary(500), "1 2", "--stop: '1 2' is 2 tokens of the ids vocabulary"),
        (IdVocabulary(500), "500", "--stop: the token 500 is not below 500"),
        (IdVocabulary(500), "x", "--stop: token numbers were expected, got 'x'"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            stop_token_of(vocabulary, stop.encode())


def test_sample_prints_while_it_goes(run):
    """The first characters come from a call that would take many minutes."""
    command = [sys.executable, "-m", "flatstep", "sample", str(run), "--tokens", "20000000",
               "--prompt", "line ", "--seed", "3"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        begun = process.stdout.read(60)
    finally:
        process.kill()
        process.communicate(timeout=60)
    whole = flatstep("sample", run, "--tokens", 60, "--prompt", "line ", "--seed", 3)
    shown = begun.decode(errors="ignore").rstrip("\ufffd")
    assert len(shown) > 10 and whole.stdout.startswith(shown)


def test_text_in_pieces():
    """Characters of several bytes, cut ones, and bytes that are no UTF-8."""
    text = "naïve ✓ 😀".encode() + b"\xff\xf0\x9f\x98"
    pieces = list(_decoded(ByteVocabulary().decoder(), list(text[:4]), iter(text[4:])))
    assert pieces[0] == "naï" and "".join(pieces) == text.decode(errors="replace")
    assert max(len(piece) for piece in pieces[1:]) == 1
    assert list(_decoded(ByteVocabulary().decoder(), [], iter(b""))) == ["", ""]


def test_sample_of_a_run_without_checkpoint(tmp_path, run):
    (tmp_path / "config.toml").write_bytes((run / "config.toml").read_bytes())
    assert_one_line_error(flatstep("sample", tmp_path), 2, "has no checkpoint yet")


def begin_endless(run, text, *options):
    command = [sys.executable, "-m", "flatstep", "train", *options]
    if not run.exists():
        command += [str(text), *TINY, "--steps", "100000000", "--out", str(run)]
    else:
        command += ["--resume", str(run)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_lines(process, run, count):
    for _ in range(1200):
        path = run / "metrics.jsonl"
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    raise AssertionError(f"no {count} steps within a minute")


def test_signals_save_and_say_how_to_go_on(tmp_path, text):
    run = tmp_path / "run"
    lines = 0
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = begin_endless(run, text)
        wait_for_lines(process, run, lines + 20)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
        assert process.returncode == code, err
        assert "Traceback" not in err
        assert err.splitlines()[-1].endswith(f"go on with: flatstep train --resume {run}")
        steps = steps_of(run)
        assert steps == list(range(1, len(steps) + 1))
        assert (run / "checkpoints" / f"step-{steps[-1]}").is_dir()
        lines = len(steps)
    assert "resuming" in out


def test_a_killed_run_goes_on_from_its_last_checkpoint(tmp_path, text):
    run = tmp_path / "run"
    for k in range(4):
        lines = len(steps_of(run)) if k else 0
        process = begin_endless(run, text, "--save-every", "1", "--quiet")
        wait_for_lines(process, run, lines + 3 + k)
        process.kill()
        _, err = process.communicate(timeout=60)
        assert err == ""
    done = flatstep("sample", run, "--tokens", 5)
    assert (done.returncode, done.stderr) == (0, "")


def test_config_survives_its_file(tmp_path):
    config = make_config({"lr": 3e-5, "steps": 7, "dropout": 1e-20, "seed": 2**63 - 1})
    names = ['a "quoted" \\ name\n\t\x7f.txt', "naïve ✓ 😀.txt"]
    write_config(tmp_path, config, {"data_files": names, "data_bytes": 0})
    read, extra = read_config(tmp_path)
    assert read == config
    assert extra == {"data_files": names, "data_bytes": 0}


def test_defaults_follow_optimizer_schedule_and_steps():
    assert make_config({}) == TrainConfig()
    assert make_config({"n_embd": 384, "n_head": 6}).lr == pytest.approx(1e-3)
    sgd = make_config({"optimizer": "sgd", "steps": 50})
    assert (sgd.lr, sgd.weight_decay, sgd.warmup) == (0.1, 0.0, 5)
    noam = make_config({"schedule": "noam"})
    assert (noam.lr, noam.min_lr) == (1.0, 0.0)
    assert math.isclose(make_config({"lr": 3e-4}).min_lr, 3e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_of_the_command_line(name):
    config = make_config({"schedule": name, "steps": 50})
    rates = [make_schedule(config)(step) for step in range(50)]
    assert min(rates) > 0 and max(rates) <= config.lr
    if config.min_lr:
        assert rates[-1] == pytest.approx(config.min_lr) and rates[4] == pytest.approx(config.lr)


@pytest.mark.needs("mkfifo")
def test_reader_that_goes_away_is_no_error(run):
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "flatstep", "sample", str(run), "--tokens", "5"],
        stdout=write, stderr=subprocess.PIPE, text=True, timeout=60,
    )  # fmt: skip
    os.close(write)
    assert process.returncode == 141
    assert process.stderr == ""


FULL = "flatstep: error: standard output cannot be written: No space left on device\n"


def printing(call, stdout, buffered):
    """(exit code, stderr) of a call with a stdout that Python buffers, or does not."""
    command = [sys.executable, "-m", "flatstep", *map(str, call)]
    environment = os.environ | {"PYTHONUNBUFFERED": "" if buffered else "1"}
    done = subprocess.run(
        command, stdout=stdout, stderr=subprocess.PIPE, text=True, env=environment, timeout=60
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("buffered", (True, False), ids=("buffered", "unbuffered"))
def test_stdout_that_takes_nothing(tmp_path, text, run, buffered):
    """A full disk is one line that names standard output; a reader that has gone is none."""
    train = ["train", text, *TINY, "--steps", 2, "--out"]
    for number, call in enumerate(
        [["sample", run, "--tokens", 5], ["info"], ["plan", "--json"], ["eval", run], ["--version"],
         ["--cmake-root"], ["--help"], ["train", "--help"], train]
    ):  # fmt: skip
        with open("/dev/full", "w") as full:
            own = [tmp_path / f"full{number}"] if call is train else []
            assert printing([*call, *own], full, buffered) == (1, FULL), call
        read, write = os.pipe()
        os.close(read)
        own = [tmp_path / f"gone{number}"] if call is train else []
        code, errors = printing([*call, *own], write, buffered)
        os.close(write)
        assert (code, errors) == (141, ""), call


def test_an_error_of_another_file_is_not_of_stdout(tmp_path, text):
    with open("/dev/full", "w") as full:
        code, errors = printing(["train", tmp_path / "none.txt"], full, True)
    assert code == 2 and "none.txt: cannot be read" in errors and errors.count("\n") == 1


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_may_be_closed(tmp_path, text, run, closed):
    for number, (code, call) in enumerate(
        [
            (0, ["train", text, *TINY, "--steps", 2, "--out", tmp_path / "run"]),
            (0, ["eval", run]),
            (2, ["eval", "none"]),
        ]
    ):
        shell = shlex.join([sys.executable, "-m", "flatstep", *map(str, call)])
        done = subprocess.run(["sh", "-c", f"{shell} {closed}"], capture_output=True, text=True)
        assert done.returncode == code, (number, done)
        assert "AttributeError" not in done.stdout + done.stderr
        if code:
            assert done.stdout == ""
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints", "config.toml", "metrics.jsonl", "vocabulary.json",
    ]  # fmt: skip


def test_a_reader_that_goes_does_not_end_a_run(tmp_path, text):
    run = tmp_path / "run"
    options = ["--steps", "20", "--out", run, "--on-spike", "warn"]
    command = [sys.executable, "-m", "flatstep", "train", text, *TINY, *options]
    # Buffered: what nobody reads must not count as Python ends, either.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment,
    )
    process.stderr.close()  # as `2>&1 | head` does
    assert process.wait(timeout=60) == 0
    assert steps_of(run) == list(range(1, 21)) and (run / "checkpoints/step-20").is_dir()
