"""Ctrl-C in the first moments: while Python imports what the command line needs."""

import fcntl
import signal
import subprocess
import sys

import pytest

from flatstep import cli

# Of the modules in the order of their import: before NumPy, in it, after it, and of the commands.
MOMENTS = (
    "flatstep.errors", "numpy._utils", "numpy.linalg", "flatstep._arrays", "flatstep.loss",
    "argparse", "flatstep.commands.bench", "flatstep.commands.train",
)  # fmt: skip
INTERRUPTED = (130, ["flatstep: error: interrupted"])
SCRIPT = (
    "import sys\nfrom flatstep.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
)


def interrupted(moment, *arguments, before=()):
    """(exit code, what stderr says besides) of Python, which gets SIGINT when it has imported the
    module `moment`. before: a command that runs the rest."""
    process = subprocess.Popen(
        [*before, sys.executable, "-X", "importtime", *map(str, arguments)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, bufsize=1,
    )  # fmt: skip
    # A short pipe: the process cannot run far ahead of this reader.
    fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
    seen = []
    for line in process.stderr:
        seen.append(line)
        if line.rpartition("|")[2].strip() == moment:
            break
    assert seen[-1].endswith(f"{moment}\n"), seen[-20:]
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=60)
    lines = rest.splitlines()
    return process.returncode, [line for line in lines if not line.startswith("import time:")]


@pytest.mark.parametrize("moment", MOMENTS)
def test_one_line_at_any_moment(moment):
    """bench would take some seconds, so that the last moments are none after its end."""
    assert interrupted(moment, "-m", "flatstep", "bench") == INTERRUPTED


@pytest.mark.parametrize("moment", ("numpy._utils", "flatstep.commands.bench"))
def test_the_installed_script(tmp_path, moment):
    script = tmp_path / "flatstep"
    script.write_text(SCRIPT)
    assert interrupted(moment, script, "bench") == INTERRUPTED


@pytest.mark.parametrize("name", ("job.py", "flatstep"))
def test_a_program_that_imports_the_library(tmp_path, name):
    """Nothing changes there, whatever its name: its own KeyboardInterrupt."""
    program = tmp_path / name
    program.write_text(
        "import time\ntry:\n    import flatstep\n    time.sleep(60)\nexcept KeyboardInterrupt:\n"
        "    raise SystemExit(7)\n"
    )
    # Not earlier: NumPy would make an ImportError of it.
    assert interrupted("flatstep._arrays", program, "flatstep") == (7, [])


def test_an_ignored_interrupt_stays_ignored():
    """As in `nohup` and behind the `&` of a script."""
    shell = ["sh", "-c", 'trap "" INT; exec "$@"', "sh"]
    assert interrupted("numpy._utils", "-m", "flatstep", "info", before=shell) == (0, [])


def test_a_parser_that_is_interrupted(capsys, monkeypatch):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "make_parser", interrupt)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "flatstep: error: interrupted\n"
