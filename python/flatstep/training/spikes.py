"""Loss spikes: a step whose loss or gradient norm is far above those before it."""

import math
from collections import deque

WINDOW = 128
LEAST = 32
# Of the mean: the least standard deviation that is believed, so that steps that hardly differ do
# not make a spike of the next one that does.
FLOOR = 1e-3


class SpikeDetector:
    """Judges a loss and a gradient norm by the last 128 steps that were accepted.

    threshold: how many standard deviations above the mean are a spike. Until 32 steps were
    accepted nothing is one, and neither is a fall.
    """

    def __init__(self, threshold):
        self.threshold = threshold
        self.windows = {"loss": deque(maxlen=WINDOW), "gradient norm": deque(maxlen=WINDOW)}

    def judge(self, loss, grad_norm):
        """(what, value, mean, z) of the greater outlier beyond the threshold, or None.

        What is not finite is left to the optimizer, which refuses it by itself.
        """
        worst = None
        for (what, window), value in zip(self.windows.items(), (loss, grad_norm), strict=True):
            if len(window) < LEAST or not math.isfinite(value):
                continue
            mean, deviation = _mean_and_deviation(window)
            z = (value - mean) / deviation
            if z > self.threshold and (worst is None or z > worst[3]):
                worst = (what, value, mean, z)
        return worst

    def accept(self, loss, grad_norm, spike=None):
        """Takes a step that was done into the windows; spike: what `judge` said about it.

        A spike goes in as no more than the threshold: it would else hide the next 128 steps'
        spikes, but a lasting change is soon the new normal.
        """
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return
        for window, value in zip(self.windows.values(), (loss, grad_norm), strict=True):
            if spike is not None:
                mean, deviation = _mean_and_deviation(window)
                value = min(value, mean + self.threshold * deviation)
            window.append(value)

    def state(self):
        """What `restore` takes, for state.json; every number has all its digits there."""
        return [list(window) for window in self.windows.values()]

    def restore(self, state):
        """Goes on with the windows of a run that was stopped; None begins with empty ones."""
        for window, values in zip(self.windows.values(), state or ([], []), strict=True):
            window.clear()
            window.extend(values)


def _mean_and_deviation(window):
    """Sums are exact (fsum), so that another machine decides the same."""
    mean = math.fsum(window) / len(window)
    variance = math.fsum((x - mean) ** 2 for x in window) / len(window)
    return mean, max(math.sqrt(variance), FLOOR * abs(mean), 1e-12)


def describe(spike):
    """The words for what `judge` returned."""
    what, value, mean, z = spike
    return f"the {what} is {value:.4g}, {z:.1f} standard deviations above its mean of {mean:.4g}"
