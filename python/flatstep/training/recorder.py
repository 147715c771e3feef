"""Everything that a run tells the world, behind one object."""

from .loggers import Logger
from .loss_plot import LossPlot
from .progress import MetricsFile, Progress
from .samples import SamplesFile, on_screen


class Recorder:
    """metrics.jsonl, the bar, samples.txt, the logger and the picture of a run.

    beside: {name: bytes} that each checkpoint holds besides. saved: where the trainer stood at the
    newest checkpoint; at the start there is nothing to save.
    What earlier parts of the run recorded beyond the trainer's step is removed. A step whose
    validation was broken off counts as not recorded yet.
    """

    def __init__(self, trainer, run, beside, quiet):
        config = trainer.config
        recorded = trainer.step - (trainer.unfinished is not None)
        self.saved, self.beside, self.vocab = trainer.position, beside, config.vocab
        self.metrics = MetricsFile(run / "metrics.jsonl", recorded)
        self.samples = SamplesFile(run / "samples.txt", recorded)
        self.logger = Logger(config.log, run, config, recorded)
        self.plot = LossPlot(run, config.plot, recorded)
        self.progress = Progress(config.steps, recorded, quiet)

    def step(self, metrics, best=None, sample=None):
        """Records a finished step: its metrics dict, the best validation of the run so far, and
        the text of a sample."""
        self.metrics.write(metrics)
        self.progress.update(metrics, best)
        self.logger.write(metrics)
        self.plot.update(metrics)
        if sample is not None:
            self.samples.write(metrics["step"], sample)
            shown = on_screen(sample, self.vocab)
            self.progress.say(f"sample of step {metrics['step']}:\n{shown}\n")
            self.logger.sample(metrics["step"], sample)

    def sync(self):
        """Brings the metrics to the disk, so that no checkpoint is ahead of them."""
        self.metrics.sync()

    def close(self):
        """Ends all of it; the picture shows the last step."""
        self.progress.close()
        self.metrics.close()
        self.plot.draw()
        self.logger.close()
