"""Calls that a stranger makes: each ends in one line that names the culprit, or it works."""

import argparse
import os
import shlex
import shutil

import pytest
from run_case import SAMPLE

from flatstep.cli import main, make_parser
from flatstep.training.run_folder import only_process

TINY = [
    "--steps", "2", "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "16",
    "--batch-size", "2", "--no-plot", "--quiet",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """text.txt; run, a finished run of characters on it; latin.txt, which is not UTF-8."""
    folder = tmp_path_factory.mktemp("stranger")
    text = SAMPLE
    (folder / "text.txt").write_text(text)
    (folder / "latin.txt").write_bytes("caf\xe9 ".encode("latin-1") * 200)
    call = ["train", str(folder / "text.txt"), *TINY, "--vocab", "char"]
    assert main([*call, "--out", str(folder / "run")]) == 0
    return folder


@pytest.fixture(autouse=True)
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)


def content(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, *call, code=2):
    """The one line of a call that ends with `code`."""
    try:
        found = main(list(map(str, call)))
    except SystemExit as error:  # of argparse
        found = error.code
    told = capsys.readouterr()
    assert found == code and told.out == "" and told.err.count("\n") == 1, told
    assert told.err.startswith("flatstep: error: ")
    return told.err


@pytest.mark.parametrize(
    "call",
    [
        ["train", ""],
        ["train", "text.txt", "--val", ""],
        ["train", "text.txt", "--out", ""],
        ["train", "text.txt", "--init-from", ""],
        ["train", "--resume", ""],
        ["sample", ""],
        ["eval", "run", ""],
        ["export", "run", "--out", ""],
        ["prepare", "text.txt", "--out", ""],
        ["plot", ""],
    ],
)
def test_an_empty_name_is_not_the_working_directory(folder, capsys, call):
    before = content(folder)
    assert ": the name is empty" in refused(capsys, *call)
    assert content(folder) == before


@pytest.mark.parametrize("command", ["train", "plan", "bench", "eval"])
def test_too_many_threads_are_refused_by_the_option(capsys, command):
    files = {"train": ["text.txt", "--out", "new"], "eval": ["run"]}.get(command, [])
    assert "--threads must be " in refused(capsys, command, *files, "--threads", 5000)
    assert not os.path.exists("new")


def test_a_checkpoint_is_not_resumed_in_its_own_folder(folder, capsys):
    before = content(folder)
    path = folder / "run/checkpoints/step-2"
    for call in (["train", "--resume", path, "--steps", 4], ["plot", path]):
        line = refused(capsys, *call)
        assert f"{path}: is a checkpoint" in line and line.rstrip().endswith(f"{folder / 'run'}")
    assert content(folder) == before
    # From within, where its name does not tell.
    os.chdir(path)
    assert f"perhaps {folder / 'run'}" in refused(capsys, "train", "--resume", ".")
    assert content(folder) == before


@pytest.mark.parametrize("out", ["text.txt", "text.txt/run", "run"])
def test_the_place_of_a_run_is_looked_at_before_the_work(capsys, monkeypatch, out):
    monkeypatch.setattr("flatstep.training.loop.load_corpus", None)  # what would fail if called
    line = refused(capsys, "train", "text.txt", *TINY, "--out", out)
    assert line.startswith(f"flatstep: error: --out {out}: ")
    assert ("is a file, not a folder" in line) == (out != "run")


def test_the_hint_of_a_byte_vocabulary_is_given_where_it_helps(capsys):
    train = ["train", "latin.txt", *TINY, "--out", "new"]
    assert "--vocab byte takes any file" in refused(capsys, *train, "--vocab", "char")
    for call in (["eval", "run", "latin.txt"], [*train, "--init-from", "run"]):
        line = refused(capsys, *call)
        assert "latin.txt: not UTF-8" in line and "--vocab" not in line


def test_text_to_validate_that_is_too_short_is_not_answered_by_its_share(folder, capsys):
    (folder / "short.txt").write_text("line 1")
    line = refused(capsys, "train", "text.txt", "--val", "short.txt", *TINY, "--out", "new")
    assert "6 tokens for validation" in line and "--val-fraction" not in line


def test_an_option_of_another_command_is_answered_by_the_command(capsys):
    line = refused(capsys, "sample", "run", "--tokns", "3")
    assert "did you mean '--tokens'?" in line and "flatstep sample --help" in line
    assert "did you mean" not in refused(capsys, "info", "--save-every", "3")


def test_limits_are_numbers_that_can_be_read(capsys):
    assert "from 1 to 2,147,483,647, got 0" in refused(capsys, "sample", "run", "--tokens", 0)
    assert "--n-layer must be at most 10000" in refused(capsys, "plan", "--n-layer", 10**6)
    assert "text.txt: a file, not a folder" in refused(capsys, "sample", "text.txt")


def test_a_name_that_no_disk_takes(capsys):
    name = "x" * 300
    for call in (["sample", name], ["train", name], ["train", "--resume", name], ["plot", name]):
        assert "File name too long" in refused(capsys, *call)
    assert "[Errno" not in refused(capsys, "sample", name)


def test_a_folder_that_cannot_be_searched(folder, capsys, monkeypatch):
    """As for another user than root: nothing below it is left out in silence."""
    (folder / "docs/locked").mkdir(parents=True)
    (folder / "docs/open.txt").write_text("text")
    real = os.scandir

    def scandir(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    line = refused(capsys, "eval", "run", "docs")
    assert "docs/locked: cannot be read: Permission denied" in line


def test_a_preset_gives_way_to_what_is_typed(folder):
    """Its warm-up and last rate follow from the steps and the rate, which are the user's here."""
    from flatstep.training.config_file import combine

    assert combine({"steps": 50}, preset="char-cpu")[0]["warmup"] == 5
    assert combine({}, preset="char-cpu")[0]["warmup"] == 100
    assert combine({"steps": 50, "warmup": 9}, preset="char-cpu")[0]["warmup"] == 9
    assert "min_lr" not in combine({"lr": 1e-5}, preset="char-cpu")[0]
    assert combine({}, preset="char-cpu")[0]["min_lr"] == 1e-4
    for number, more in enumerate((["--lr", "1e-5"], ["--schedule", "constant"])):
        call = ["train", "text.txt", "--preset", "char-cpu", *TINY, *more]
        assert main([*call, "--out", str(folder / f"preset-{number}")]) == 0


def test_two_processes_do_not_train_in_one_folder(folder, capsys):
    before = content(folder / "run")
    with only_process(folder / "run"):
        line = refused(capsys, "train", "--resume", "run", "--steps", 4)
        assert "run: another process is training in this folder" in line
    assert content(folder / "run") == before
    (folder / "empty").mkdir()
    with only_process(folder / "empty"):  # it has begun, but written nothing yet
        line = refused(capsys, "train", "text.txt", *TINY, "--out", "empty")
        assert "empty: another process is training in this folder" in line
    assert os.listdir("empty") == []
    assert main(["train", "text.txt", *TINY, "--out", "empty"]) == 0


def test_every_example_of_the_help_parses():
    """As it stands, with its comment."""
    parser = make_parser()
    (commands,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    found = []
    for help_text in (parser.epilog, *(own.epilog for own in commands.choices.values())):
        for line in help_text.splitlines():
            if line.startswith("  flatstep "):
                words = shlex.split(line, comments=True)[1:]
                found.append(parser.parse_args(words).command)
    assert set(found) == set(commands.choices) and len(found) > 30


def test_a_preset_can_be_planned(capsys):
    assert main(["plan", "--preset", "gpt2", "--vocab-size", "50257", "--batch-size", "4"]) == 0
    out = capsys.readouterr().out
    assert "124,439,808 parameters" in out and "batch      4 x 1024 tokens" in out
    assert "did you mean 'gpt2'?" in refused(capsys, "plan", "--preset", "gtp2")


@pytest.mark.parametrize("option", ["--lr", "--weight-decay", "--eps"])
def test_a_number_that_float32_does_not_have(capsys, option):
    line = refused(capsys, "train", "text.txt", *TINY, "--out", "new", option, "1e308")
    assert f"{option} must be at most 1e+30, got 1e+308" in line and not os.path.exists("new")


def test_a_best_checkpoint_without_another_is_refused_in_one_line(folder, capsys):
    shutil.copytree(folder / "run", folder / "torn")
    path = folder / "torn/checkpoints/step-2/model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert "step-2/model.safetensors: 1,000 bytes instead of" in refused(capsys, "sample", "torn")
