"""A picture of schedules, with matplotlib where it is installed."""

from . import _checks

_POINTS = 2000


def plot(schedules, total=None, path=None):
    """Draws schedules over their steps and returns the matplotlib Axes.

    schedules: one, a list of them, or a dict {label: schedule}; any function of the step will do.
    total: steps to draw; left out, the longest total of the schedules. path: where to save the
    picture, in the format of its suffix; without it, matplotlib.pyplot.show() shows it.

    Raises ImportError with the command that installs matplotlib, ValueError or TypeError naming
    the argument.
    """
    named = _named(schedules)
    total = _total(named, total)
    axes = _new_axes(path)
    steps = _steps(total)
    for label, schedule in named:
        axes.plot(steps, [schedule(step) for step in steps], label=label)
    axes.set_xlabel("steps done")
    axes.set_ylabel("value")
    axes.legend(fontsize="small")
    if path is not None:
        axes.figure.savefig(path)
    return axes


def _named(schedules):
    if callable(schedules):
        schedules = [schedules]
    if not isinstance(schedules, (dict, list, tuple)):
        kind = type(schedules).__name__
        raise TypeError(f"schedules: got {kind}, expected a schedule, a list or a dict of them")
    named = schedules.items() if isinstance(schedules, dict) else [(repr(s), s) for s in schedules]
    for label, schedule in named:
        if not callable(schedule):
            kind = type(schedule).__name__
            raise TypeError(f"schedules: got {kind} for {label}, expected a schedule")
    if not named:
        raise ValueError("schedules: got none, expected one at least")
    return list(named)


def _total(named, total):
    if total is None:
        total = max((getattr(schedule, "total", None) or 0 for _, schedule in named), default=0)
        if not total:
            raise ValueError("total: got None, expected a number of steps: no schedule has an end")
    total = _checks.integer(total, "total")
    if not 1 <= total <= 2**53:
        raise ValueError(f"total: got {total}, expected a number of steps from 1 to 2**53")
    return total


def _steps(total):
    """Every step from 0 to total, or evenly chosen ones."""
    count = min(total, _POINTS)
    return [total * i // count for i in range(count + 1)]


def _new_axes(path):
    try:
        if path is None:
            from matplotlib import pyplot

            return pyplot.subplots(layout="constrained")[1]
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install matplotlib") from error
    # A figure of its own: pyplot would keep it, and may want a display.
    return Figure(figsize=(8, 4.5), layout="constrained").subplots()
