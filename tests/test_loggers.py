"""--log with packages that are missing, that work, and that fail in the midst of a run."""

import subprocess
import sys
import types

import pytest
from run_case import TINY, bits

from flatstep.errors import InputError
from flatstep.training import loop


@pytest.fixture
def stand_in(monkeypatch):
    """A module in place of wandb that notes the calls; `fail` tells which of them raise."""
    calls, fail = [], set()

    def called(name, result=None):
        def call(*arguments, **options):
            calls.append((name, arguments, options))
            if name in fail or (name, options.get("step")) in fail:
                raise ConnectionError("the network\nis gone")
            return result

        return call

    handle = types.SimpleNamespace(id="abc123", log=called("log"), finish=called("finish"))
    module = types.ModuleType("wandb")
    module.init, module.calls, module.fail = called("init", handle), calls, fail
    module.Settings, module.Html = dict, lambda markup: markup
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def logged(module):
    """{step: metrics} of the calls of run.log."""
    found = {}
    for name, arguments, options in module.calls:
        if name == "log":
            found.setdefault(options["step"], {}).update(arguments[0])
    return found


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_a_missing_package_is_one_line_and_nothing_is_written(tmp_path, text, monkeypatch, kind):
    monkeypatch.setitem(sys.modules, kind, None)
    with pytest.raises(InputError, match=f"--log {kind}: the package {kind} is missing") as caught:
        loop.start(TINY | {"log": kind}, [text], out=tmp_path / "run", quiet=True)
    assert str(caught.value).endswith(f"pip install 'flatstep[{kind}]'")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_the_command_says_it_in_one_line(tmp_path, text, kind):
    program = (
        f"import sys; sys.modules['{kind}'] = None\n"
        "from flatstep.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "train", text, "--log", kind, "--block-size", "16"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "run"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"flatstep: error: --log {kind}: ")
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_wandb_gets_configuration_metrics_and_samples(tmp_path, text, stand_in):
    run = tmp_path / "run"
    given = TINY | {"log": "wandb", "sample_every": 6}
    outcome = loop.start(given, [text], out=run, quiet=True)
    name, _, options = stand_in.calls[0]
    assert (name, options["project"], options["name"]) == ("init", "flatstep", "run")
    assert (options["id"], options["config"]["n_embd"]) == (None, 16)
    found = logged(stand_in)
    assert sorted(found) == list(range(1, 13))
    always = {"loss", "lr", "grad_norm", "tokens_per_second"}
    assert set(found[1]) == always and set(found[5]) == always | {"val_loss"}
    assert set(found[6]) == always | {"sample"} and found[6]["sample"].startswith("<pre>")
    assert found[12]["val_loss"] == outcome.val_loss
    assert stand_in.calls[-1][0] == "finish"
    # The run goes on as the same one there.
    stand_in.calls.clear()
    loop.resume(run, {"steps": 14}, quiet=True)
    assert (stand_in.calls[0][2]["id"], stand_in.calls[0][2]["resume"]) == ("abc123", "allow")
    assert sorted(logged(stand_in)) == [13, 14]


@pytest.mark.parametrize("failing", ["init", ("log", 4), "finish"])
def test_a_logger_that_fails_warns_once_and_the_run_goes_on(
    tmp_path, text, stand_in, capsys, failing
):
    stand_in.fail.add(failing)
    run = tmp_path / "run"
    assert loop.start(TINY | {"log": "wandb"}, [text], out=run, quiet=True).step == 12
    assert capsys.readouterr().err == (
        "flatstep: warning: --log wandb failed, the run goes on without it: "
        "ConnectionError: the network is gone\n"
    )
    asked = sorted(logged(stand_in))
    assert asked == {"init": [], ("log", 4): [1, 2, 3, 4], "finish": list(range(1, 13))}[failing]
    plain = tmp_path / "plain"
    loop.start(TINY, [text], out=plain, quiet=True)
    assert bits(run) == bits(plain)
