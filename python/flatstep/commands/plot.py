"""`flatstep plot`: the picture of a run's figures."""

from pathlib import Path

from ..errors import InputError
from . import add_command, path_name

EXAMPLES = """examples:
  flatstep plot runs/001                  # writes runs/001/loss.png
  flatstep plot runs/001 --out curve.svg  # in the format of the suffix

Needs matplotlib: pip install 'flatstep[plot]'. It can be done while the run goes on."""


def add(commands):
    """Adds the command's parser."""
    summary = "Draw a run's loss, learning rate and gradient norm."
    parser = add_command(commands, "plot", run, summary, EXAMPLES)
    parser.add_argument("folder", type=path_name, metavar="RUN", help="the folder of a run")
    parser.add_argument("--out", type=path_name, metavar="FILE", help="the picture [RUN/loss.png]")


def run(arguments):
    """Writes the picture and says where. Raises InputError."""
    from ..training.loss_plot import draw_figures, read_figures
    from ..training.run_folder import read_config, refuse_checkpoint

    run = Path(arguments.folder)
    refuse_checkpoint(run, "a picture is drawn of its run")
    read_config(run)
    figures = read_figures(run / "metrics.jsonl")
    if not figures["step"]:
        raise InputError(f"{run}: its metrics.jsonl has no step yet")
    out = Path(arguments.out or run / "loss.png")
    try:
        draw_figures(figures, out)
    except InputError:  # matplotlib is missing
        raise
    except (OSError, ValueError) as error:
        # matplotlib's ValueError: a format that it does not know.
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise InputError(f"--out {out}: {reason}") from error
    print(out)
    return 0
