"""Saves checkpoints while one call of the C library fails, each call in turn.

save_with_faults.py LIBRARY FOLDER [ignore-fsync]: LIBRARY is fail_call.c, also in LD_PRELOAD;
FOLDER is empty. Prints a JSON object for each trial; see Trial. With ignore-fsync, errors of fsync
are swallowed: what the test must notice.
"""

import ctypes
import dataclasses
import errno
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from checkpoint_case import make

from flatstep.training.checkpoint import list_checkpoints, load_checkpoint, save_checkpoint

KINDS = ("open", "mkdir", "write", "fsync", "close", "rename", "unlink", "rmdir")
SHORT_WRITE = -1
HARMLESS = {SHORT_WRITE: ("write",), errno.EINTR: ("open", "write", "fsync")}


@dataclasses.dataclass
class Trial:
    """What came of one failing call.

    kind, call, error: the k-th call of this function gave this errno. path: its file, if it takes
    one. replacing: the save took the place of a checkpoint of its step. failures: calls that did
    fail. raised: the OSError of the save, or None. warnings: what the save told besides.
    before, newest: the (step, turn) of the newest checkpoint before and after, loaded. whole: of
    all that load after. left: other names in the folder then. after, left_after: newest and left
    once another save has followed.
    """

    kind: str
    call: int
    error: int
    replacing: bool
    path: str = ""
    failures: int = 0
    raised: int | None = None
    warnings: list = dataclasses.field(default_factory=list)
    before: tuple = ()
    newest: tuple = ()
    whole: list = dataclasses.field(default_factory=list)
    left: list = dataclasses.field(default_factory=list)
    after: tuple = ()
    left_after: list = dataclasses.field(default_factory=list)


class Saver:
    """A run that saves step after step; every parameter is the number of the save."""

    def __init__(self, run, library):
        self.run, self.library = run, library
        self.model, self.optimizer = make()
        self.step = self.turn = 0

    def save(self, replacing=False, warn=None, arm=lambda: None):
        self.step += not replacing
        self.turn += 1
        self.model.params[:] = self.turn
        state = {"step": self.step, "turn": self.turn}
        # Something is always left by an earlier save, so that sweeping is among the calls.
        (self.run / "checkpoints/step-0.tmp").mkdir(exist_ok=True)
        (self.run / "checkpoints/step-0.tmp/file").touch()
        options = {"files": {"config.toml": b"seed = 0\n"}, "warn": warn or refuse}
        arm()
        save_checkpoint(self.run, self.model, self.optimizer, state, **options)

    def save_with_fault(self, trial):
        """Saves with the fault of a Trial; returns how many calls of its kind there were."""
        below = os.fsencode(self.run / "checkpoints")

        def arm():
            self.library.arm(below, trial.kind.encode(), trial.call, trial.error)

        try:
            self.save(trial.replacing, trial.warnings.append, arm)
        except OSError as error:
            trial.raised = error.errno
        finally:
            calls = self.library.disarm()
        trial.failures = self.library.failures()
        trial.path = os.fsdecode(self.library.failure_path())
        return calls

    def newest(self):
        return self.load(list_checkpoints(self.run)[0])

    def load(self, path):
        state = load_checkpoint(path, self.model, self.optimizer)
        assert (self.model.params == state["turn"]).all()
        return state["step"], state["turn"]

    def whole(self):
        """The (step, turn) of all folders that load, but for those that are being swept."""
        folders = (self.run / "checkpoints").iterdir()
        return [self.load(folder) for folder in folders if folder.suffix != ".tmp"]

    def left(self):
        names = os.listdir(self.run / "checkpoints")
        return sorted(name for name in names if not name[5:].isdecimal())


def refuse(text):
    raise AssertionError(f"a save without a fault warned: {text}")


def run_trial(saver, trial):
    """Fills in a Trial, and returns the number of calls of its kind."""
    trial.before = saver.newest()
    calls = saver.save_with_fault(trial)
    trial.newest, trial.whole, trial.left = saver.newest(), saver.whole(), saver.left()
    saver.save()
    trial.after, trial.left_after = saver.newest(), saver.left()
    return calls


def main(library, folder, *options):
    if options:
        real = os.fsync
        os.fsync = lambda descriptor: swallowing(real, descriptor)
    library = ctypes.CDLL(library)
    library.arm.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_long, ctypes.c_int)
    library.disarm.restype = library.failures.restype = ctypes.c_long
    library.failure_path.restype = ctypes.c_char_p
    saver = Saver(Path(folder), library)
    (saver.run / "checkpoints").mkdir()
    for _ in range(3):
        saver.save()
    for kind in KINDS if not options else ("fsync",):
        errors = [errno.ENOSPC, errno.EIO]
        errors += [error for error, kinds in HARMLESS.items() if kind in kinds]
        for replacing in (False, True):
            calls = run_trial(saver, Trial(kind, 0, 0, replacing))
            for call in range(1, calls + 1):
                for error in errors:
                    trial = Trial(kind, call, error, replacing)
                    run_trial(saver, trial)
                    print(json.dumps(dataclasses.asdict(trial)))


def swallowing(call, *arguments):
    try:
        call(*arguments)
    except OSError:
        return


if __name__ == "__main__":
    main(*sys.argv[1:])
