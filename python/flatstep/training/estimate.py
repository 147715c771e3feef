"""How long a run will take, measured before its first step without changing anything."""

import time

import flatstep

LIMIT_SECONDS = 5.0
# What any machine does for sure: a model for which even this takes too long is not tried.
_LEAST_RATE = 2e10  # floating-point operations a second and thread
_OPTIMIZER_VISITS = 7  # of the parameters' bytes: four arrays read, three written


def estimate_seconds(trainer, stop):
    """Seconds that the steps left will take, validations included, or None where measuring would
    take more than some 5 seconds.

    Measured are passes over the first batch, which fill the gradients and nothing else, and a
    visit of the gradients, in place of the optimizer's. Raises Stopped on a signal.
    """
    config, model = trainer.config, trainer.model
    one_window = 6 * model.num_params * config.block_size
    if 2 * one_window > LIMIT_SECONDS * _LEAST_RATE * flatstep.get_num_threads():
        return None
    tokens, targets = trainer.batches.batch(0)
    _timed(stop, model.forward_backward, tokens[:1], targets[:1])
    window = _timed(stop, model.forward_backward, tokens[:1], targets[:1])
    if 2 * window * config.batch_size > LIMIT_SECONDS:
        return None
    _timed(stop, model.forward_backward, tokens, targets)
    batch = _timed(stop, model.forward_backward, tokens, targets)
    update = _OPTIMIZER_VISITS * _timed(stop, flatstep.grad_norm, model.grads)
    left = config.steps - trainer.step
    return left * (config.grad_accum * batch + update) + _validations(trainer, left) * batch / 3


def _timed(stop, call, *arguments):
    stop.check()
    began = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - began


def _validations(trainer, left):
    """Batches of all validations left; a forward pass is a third of a step's."""
    config = trainer.config
    tokens = len(trainer.corpus.validation)
    windows = min(config.eval_tokens or tokens, tokens) // config.block_size
    times = 2 + (left // config.eval_every if config.eval_every else 0)
    return times * windows / config.batch_size
