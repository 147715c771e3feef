"""The kinds of error that the command line turns into its exit codes."""


class InputError(ValueError):
    """What the caller gave cannot be used: a file, an option or a run folder (exit code 2)."""


class CheckpointError(InputError):
    """A checkpoint is incomplete, damaged or belongs to another model (exit code 2)."""


class PretrainedError(InputError):
    """A folder of weights is incomplete, damaged or not of this GPT-2 (exit code 2)."""


class RunFailed(RuntimeError):
    """A training run began and could not go on (exit code 1)."""
