"""A vocabulary's way through the command line: prepare, train, stop, resume, sample."""

import subprocess
import sys
import tomllib

from safetensors.numpy import load_file

TINY = [
    "--n-layer", "1", "--n-head", "2", "--n-embd", "16", "--block-size", "16", "--batch-size", "4",
    "--quiet",
]  # fmt: skip


def flatstep(*arguments):
    command = [sys.executable, "-m", "flatstep", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def succeed(*arguments):
    done = flatstep(*arguments)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def assert_refused(part, *arguments):
    done = flatstep(*arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done
    assert part in done.stderr


def bits(run, step):
    """Every byte of the parameters and the optimizer of a checkpoint."""
    folder = run / "checkpoints" / f"step-{step}"
    tensors = load_file(folder / "model.safetensors") | load_file(folder / "optimizer.safetensors")
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


def config_of(run):
    return tomllib.loads((run / "config.toml").read_text())


def check_prepared(folder, text, prepare, vocabulary_file, prompt):
    """Prepares `text`, trains on it in one go and in two, and from the text itself; samples.

    Returns the text of a sample that begins with `prompt`.
    """
    data, whole, stopped, direct = (
        folder / name for name in ("data", "whole", "stopped", "direct")
    )
    printed = succeed("prepare", *text, "--out", data, *prepare)
    assert f"flatstep train {data}" in printed and "bytes per token" in printed
    assert sorted(path.name for path in data.iterdir()) == sorted(
        ["data.json", "train.bin", "val.bin", vocabulary_file]
    )
    # The schedule runs over all steps, so the run in two parts needs a constant one.
    constant = [*TINY, "--schedule", "constant"]
    succeed("train", data, *constant, "--steps", 6, "--out", whole)
    succeed("train", data, *constant, "--steps", 3, "--out", stopped)
    succeed("train", "--resume", stopped, "--steps", 6, "--quiet")
    assert bits(whole, 6) == bits(stopped, 6)
    stored = config_of(stopped)
    assert stored["data_files"] == [str(data)]
    for run in (whole, stopped):
        assert (run / vocabulary_file).read_bytes() == (data / vocabulary_file).read_bytes()
    # Without preparing: the same tokens, so the same bits.
    succeed("train", *text, *prepare_options(prepare), *constant, "--steps", 6, "--out", direct)
    assert bits(direct, 6) == bits(whole, 6)
    assert config_of(direct)["vocab_size"] == stored["vocab_size"]
    sample = succeed("sample", stopped, "--prompt", prompt, "--tokens", 20)
    assert sample.startswith(prompt)
    assert len(succeed("sample", stopped, "--tokens", 20)) > 10
    return sample


def prepare_options(options):
    """Those that train has too."""
    if "--format" not in options:
        return options
    place = options.index("--format")
    return options[:place] + options[place + 2 :]
