"""Text from a trained run."""

import numpy as np

from .checkpoint import load_newest
from .errors import InputError
from .progress import warn
from .run_config import read_config
from .trainer import make_model


def load_run(run):
    """The flatstep.GPT of a run with the parameters of its newest whole checkpoint.

    Raises InputError if `run` is no run, CheckpointError (an InputError) if it has no checkpoint
    that can be used; a damaged one is passed over with a warning.
    """
    config, _ = read_config(run)
    model = make_model(config)
    load_newest(run, model, warn=warn)
    return model


def generate_text(model, prompt, count, *, temperature=1.0, top_k=None, seed=0):
    """`prompt` (bytes) and `count` more bytes by a byte-level model, as text.

    An empty prompt stands for a line end. Bytes that are not UTF-8 show as U+FFFD.
    temperature, top_k, seed: as flatstep.GPT.generate. Raises InputError if they make no sense.
    """
    start = np.frombuffer(prompt or b"\n", dtype=np.uint8).astype(np.int32)
    try:
        tokens = model.generate(start, count, temperature=temperature, top_k=top_k, seed=seed)
    except ValueError as error:
        raise InputError(str(error)) from error
    shown = np.asarray(tokens)[0 if prompt else len(start) :]
    return shown.astype(np.uint8).tobytes().decode(errors="replace")
