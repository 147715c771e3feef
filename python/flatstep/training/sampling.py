"""Text from a trained run."""

import codecs
import itertools

import numpy as np

from ..errors import InputError
from .checkpoint import load_newest
from .progress import warn
from .run_folder import read_config
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


def stream_text(model, prompt, count, *, temperature=1.0, top_k=None, top_p=None, seed=0):
    """`prompt` (bytes) and `count` more bytes by a byte-level model, as pieces of text.

    A piece comes as soon as its bytes are drawn and make whole characters; the first is the prompt.
    An empty prompt stands for a line end. Bytes that are not UTF-8 show as U+FFFD.
    temperature, top_k, top_p, seed: as flatstep.GPT.generate. Raises InputError at once if they
    make no sense.
    """
    start = np.frombuffer(prompt or b"\n", dtype=np.uint8).astype(np.int32)
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
    try:
        tokens = model.stream(start, count, **options)
    except ValueError as error:
        raise InputError(str(error)) from error
    return _decoded(itertools.chain(prompt, tokens), len(prompt))


def _decoded(values, at_once):
    """Text of byte values: of the first `at_once` together, then piece by piece."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    yield decoder.decode(bytes(itertools.islice(values, at_once)))
    for value in values:
        yield decoder.decode(bytes([value]))
    yield decoder.decode(b"", final=True)


def generate_text(model, prompt, count, **options):
    """The pieces of stream_text, whose arguments it takes, in one."""
    return "".join(stream_text(model, prompt, count, **options))
