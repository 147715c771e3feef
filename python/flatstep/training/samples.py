"""Short samples of a run's model: on the screen and in RUN/samples.txt."""

import re
import textwrap

from ..errors import RunFailed
from .run_folder import write_file
from .sampling import stream_text

OPERATIONS = 10**12
TEMPERATURE = 0.7
SCREEN_LINES, SCREEN_COLUMNS = 10, 79  # of a sample of token numbers
_HEADING = re.compile(r"== step (\d+) ==")


def sample_length(trainer, most):
    """How many tokens of a sample a model can make in some seconds, `most` at most."""
    # A token within the context costs a visit of the parameters, each as long as ten operations
    # in a pass; one beyond costs a pass over the whole context.
    size, context = 2 * trainer.model.num_params, trainer.config.block_size
    within = min(context - 4, OPERATIONS // (10 * size))
    return min(most, max(within, OPERATIONS // (size * context)))


def draw_sample(trainer, count, stop):
    """Text of `count` tokens, the same for the same parameters. Raises Stopped on a signal."""
    start = b"" if trainer.corpus.files else b"def "  # the library's own text is Python
    vocabulary, seed = trainer.corpus.vocabulary, trainer.config.seed
    pieces = []
    for piece in stream_text(
        trainer.model, vocabulary, start, count, temperature=TEMPERATURE, seed=seed
    ):
        stop.check()
        pieces.append(piece)
    return "".join(pieces).strip()


def on_screen(sample, kind):
    """A sample as a screen shows it: the first lines of token numbers, any other text as it is.

    kind: of the vocabulary.
    """
    if kind != "ids":
        return sample
    lines = textwrap.wrap(sample, SCREEN_COLUMNS)
    shown = "\n".join(lines[:SCREEN_LINES])
    if len(lines) > SCREEN_LINES:
        shown += f"\n(the first {len(shown.split()):,} of {len(sample.split()):,} numbers)"
    return shown


class SamplesFile:
    """RUN/samples.txt: each sample under "== step N ==". It comes to be with the first one.

    step: samples of later steps are removed first, so that a resumed run has each once. Everything
    raises RunFailed naming the file if the disk refuses.
    """

    def __init__(self, path, step):
        self.path = path
        if path.exists():
            self._keep_until(step)

    def _keep_until(self, step):
        kept, keep = [], True
        content = self.path.read_bytes().decode("utf-8", errors="replace")
        for line in re.findall(r"[^\n]*\n|[^\n]+", content):  # nothing else ends a line here
            if heading := _HEADING.fullmatch(line.rstrip("\n")):
                keep = int(heading[1]) <= step
            if keep:
                kept.append(line)
        write_file(self.path, "".join(kept).encode())

    def write(self, step, text):
        """Appends a sample; a line of it that looks like a heading gets a space in front."""
        lines = [f" {x}" if _HEADING.fullmatch(x) else x for x in re.split(r"\r\n|\r|\n", text)]
        body = "\n".join(lines)
        try:
            with open(self.path, "ab") as file:
                file.write(f"== step {step} ==\n{body}\n\n".encode(errors="replace"))
        except OSError as error:
            raise RunFailed(f"{self.path}: cannot be written: {error.strerror}") from error
