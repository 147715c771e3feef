"""--log with packages that are missing, that work, and that fail in the midst of a run."""

import struct
import subprocess
import sys
import types

import pytest
from test_train import TINY, bits

from flatstep.errors import InputError
from flatstep.training import event_file, loop
from flatstep.training.event_file import _masked_crc


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(f"line {k:3d} of a small sample.\n" for k in range(60)))
    return str(path)


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


def test_a_missing_package_is_one_line_and_nothing_is_written(tmp_path, text, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match="--log wandb: the package wandb is missing") as caught:
        loop.start(TINY | {"log": "wandb"}, [text], out=tmp_path / "run", quiet=True)
    assert str(caught.value).endswith("pip install 'flatstep[wandb]'")
    assert not (tmp_path / "run").exists()


def test_the_command_says_it_in_one_line(tmp_path, text):
    program = (
        "import sys; sys.modules['wandb'] = None\n"
        "from flatstep.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "train", text, "--log", "wandb", "--block-size", "16"]
    done = subprocess.run(
        [*command, "--out", tmp_path / "run"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("flatstep: error: --log wandb: ")
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


def test_checksums_are_those_of_the_standard():
    """CRC-32C of RFC 3720, B.4, under the mask of TFRecord."""
    for data, crc in (
        (bytes(32), 0x8A9136AA), (b"\xff" * 32, 0x62A8AB43), (bytes(range(32)), 0x46DD794E),
        (b"123456789", 0xE3069283),
    ):  # fmt: skip
        assert _masked_crc(data) == ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def test_events_are_records_that_can_be_walked(tmp_path, text):
    """Without TensorBoard: lengths and checksums are right up to the end of the file."""
    run = tmp_path / "run"
    loop.start(TINY | {"log": "tensorboard"}, [text], out=run, quiet=True)
    (path,) = (run / "tensorboard").iterdir()
    content, records = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        assert struct.unpack("<I", content[8:12])[0] == _masked_crc(content[:8])
        data, end = content[12 : 12 + length], content[12 + length : 16 + length]
        assert struct.unpack("<I", end)[0] == _masked_crc(data)
        records.append(data)
        content = content[16 + length :]
    # The version, the start of a session, the configuration, and a record a step.
    assert len(records) == 3 + 12
    assert records[0].endswith(b"brain.Event:2")
    assert sum(b"val_loss" in record for record in records) == 3


@pytest.mark.needs("proc")
def test_a_full_disk_ends_the_events_not_the_run(tmp_path, text, monkeypatch, capsys):
    real = open
    monkeypatch.setattr(
        event_file, "open", lambda path, mode: real("/dev/full", "wb", 0), raising=False
    )
    given = TINY | {"log": "tensorboard"}
    assert loop.start(given, [text], out=tmp_path / "run", quiet=True).step == 12
    errors = capsys.readouterr().err
    assert errors.startswith("flatstep: warning: --log tensorboard failed, the run goes on")
    assert "No space left on device" in errors and errors.count("\n") == 1
