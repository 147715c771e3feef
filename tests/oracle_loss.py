"""Cross-entropy of logits and of a linear head in float64 (or longer), in plain NumPy.

Nothing here imports flatstep: a formula that is wrong in the library cannot be wrong here as well.
"""

import math

import numpy as np


class CrossEntropy:
    """What cross_entropy returns.

    loss, grad, lse, entropy, n_valid, n_correct, weight_sum: as in flatstep.
    rows: the loss of each row, also where loss is their mean or sum.
    For the bounds, each row being a sum of terms times a factor:
    factor: upstream * token weight / divisor, 0 where ignored.
    scale: 1 / divisor, 1 unless the reduction is mean.
    largest: the row's largest capped logit.
    pulled: (W + 2 z |lse|) * p_j, what of each term goes with the probability.
    pushed: (1 - e) w_t [j == t] + (e / |A|) w_j, what is taken off it.
    slope: dy_j / dx_j.
    """


def soft_cap(x, softcap):
    """-> capped logits, their derivative. -inf is a masked class and stays."""
    if softcap is None:
        return x, np.ones_like(x)
    ratio = x / softcap
    decay = np.exp(-2.0 * np.abs(ratio))
    slope = 4.0 * decay / (1.0 + decay) ** 2  # 1 - tanh^2 without cancellation
    return np.where(x == -np.inf, x, softcap * np.tanh(ratio)), slope


def zero_or_product(factor, value):
    """A factor of 0 gives 0 also where the value is infinite or NaN."""
    return np.where(factor == 0.0, 0.0, factor * value)


def total_of(rows):
    """The exact sum, rounded, in float64, where fsum takes it; longer types need no such care."""
    exact = rows.dtype == np.float64 and np.isfinite(rows).all()
    return math.fsum(rows) if exact else rows.sum()


class Rows:
    """Maximum, log-sum-exp and probabilities of rows of capped logits; broken rows have none."""

    def __init__(self, y):
        largest = y.max(axis=1)
        self.broken = ~np.isfinite(largest)  # NaN anywhere, +inf anywhere, or -inf everywhere
        y = np.where(self.broken[:, None], 0.0, y)
        largest = np.where(self.broken, 0.0, largest)
        self.allowed = y != -np.inf
        self.shifted = y - largest[:, None]
        exponentials = np.exp(self.shifted)
        rest = exponentials.copy()
        rest[np.arange(len(y)), y.argmax(axis=1)] = 0.0
        rest = rest.sum(axis=1)
        # log1p keeps the digits of a loss near zero, where one class holds all the probability.
        self.log_sum = np.log1p(rest)
        self.largest = largest
        self.lse = np.where(self.broken, np.nan, largest + self.log_sum)
        self.probability = exponentials / (1.0 + rest[:, None])
        # Both parts are positive or zero: nothing cancels.
        spent = np.where(self.allowed, self.probability * self.shifted, 0.0).sum(axis=1)
        self.entropy = np.where(self.broken, np.nan, self.log_sum - spent)

    def cost(self):
        """-log p of every class; 0 stands for masked ones."""
        return self.log_sum[:, None] - np.where(self.allowed, self.shifted, 0.0)


def cross_entropy(
    logits,
    targets,
    *,
    reduction="mean",
    label_smoothing=0.0,
    ignore_index=-100,
    class_weight=None,
    token_weight=None,
    z_loss=0.0,
    softcap=None,
    divisor=None,
    on_empty="zero",
    grad_output=1.0,
    precision=np.float64,
):
    """Each row: tw ((1-e) w_t (lse - y_t) + (e/|A|) sum_A w_j (lse - y_j) + z lse^2)."""
    with np.errstate(all="ignore"):
        x = np.asarray(logits, dtype=precision)
        targets = np.asarray(targets)
        classes = x.shape[-1]
        x = x.reshape(-1, classes)
        count = len(x)
        flat_targets = targets.reshape(-1).astype(np.int64)
        valid = flat_targets != ignore_index
        at_target = np.arange(count), np.where(valid, flat_targets, 0)
        weights = np.ones(classes, precision)
        if class_weight is not None:
            weights = np.asarray(class_weight, precision)
        tokens = np.ones(count, precision)
        if token_weight is not None:
            tokens = np.asarray(token_weight, precision).reshape(-1)

        capped, slope = soft_cap(x, softcap)
        rows = Rows(capped)
        target_weight = weights[at_target[1]]
        target_share = (1.0 - label_smoothing) * target_weight
        allowed_count = np.maximum(rows.allowed.sum(axis=1), 1).astype(precision)
        shares = rows.allowed * weights * (label_smoothing / allowed_count)[:, None]
        loss = zero_or_product(target_share, rows.log_sum - rows.shifted[at_target])
        loss += (shares * rows.cost()).sum(axis=1) + zero_or_product(z_loss, rows.lse**2)
        loss = zero_or_product(tokens, np.where(rows.broken, np.nan, loss))
        loss[~valid] = 0.0

        weight_sum = total_of(np.where(valid, target_weight * tokens, 0.0))
        upstream = np.asarray(grad_output, precision).reshape(-1)
        scale = 1.0
        if reduction == "mean":
            total_weight = weight_sum if divisor is None else divisor
            if total_weight < 0:
                raise ValueError("token_weight: the weights of the rows sum to less than 0")
            scale = 1.0 / total_weight if total_weight else 0.0
        factor = np.where(valid, upstream * scale * tokens, 0.0)
        probability_share = target_share + shares.sum(axis=1)
        tilt = zero_or_product(2.0 * z_loss, rows.lse)
        pushed = shares
        pushed[at_target] += target_share
        slant = (probability_share + tilt)[:, None] * rows.probability - pushed
        slant = np.where(rows.broken[:, None], np.nan, slant * slope)

        result = CrossEntropy()
        result.grad = zero_or_product(factor[:, None], slant).reshape(np.shape(logits))
        # Where the largest logit and log(sum) cancel, lse is as exact as they are.
        size, top = np.abs(rows.lse), np.abs(rows.largest)
        cancels = size < top / 2
        reach = np.where(cancels, top, size)
        result.pulled = (probability_share + 2 * z_loss * reach)[:, None] * rows.probability
        result.z_terms = np.where(cancels, np.abs(tokens) * z_loss, 0.0).reshape(targets.shape)
        result.pushed, result.slope = pushed, slope
        result.scale, result.largest = scale, rows.largest.reshape(targets.shape)
        result.factor = factor.reshape(targets.shape)
        result.rows = loss.reshape(targets.shape)
        result.lse = np.where(valid, rows.lse, 0.0).reshape(targets.shape)
        result.entropy = np.where(valid, rows.entropy, 0.0).reshape(targets.shape)
        result.n_valid = int(valid.sum())
        # tanh is monotone: the first of the largest logits is that of the largest capped ones.
        hit = x.argmax(axis=1) == at_target[1]
        result.n_correct = int((hit & valid & ~rows.broken).sum())
        result.weight_sum = weight_sum
        result.loss = result.rows
        if reduction != "none":
            result.loss = total_of(loss) * scale if scale else 0.0
        empty = weight_sum == 0 if divisor is None else result.n_valid == 0
        if reduction == "mean" and empty:
            result.loss = math.nan if on_empty == "nan" else 0.0
        return result


def linear_cross_entropy(hidden, weight, targets, *, bias=None, **options):
    """cross_entropy of hidden @ weight.T + bias and the gradients by these three.

    scale_of: for each gradient the same sum over absolute values, in which rounding is measured.
    """
    h, w = np.asarray(hidden, np.float64), np.asarray(weight, np.float64)
    logits = h @ w.T
    if bias is not None:
        logits = logits + np.asarray(bias, np.float64)
    result = cross_entropy(logits, targets, **options)
    rows = h.reshape(-1, h.shape[-1])
    gradient = result.grad.reshape(-1, len(w))
    factor = np.abs(result.factor).reshape(-1, 1)
    size = np.where(factor == 0, 0.0, (result.pulled + result.pushed) * result.slope * factor)
    result.grad_hidden = (gradient @ w).reshape(h.shape)
    result.grad_weight = gradient.T @ rows
    result.grad_bias = gradient.sum(axis=0)
    result.scale_of = {
        "grad_hidden": (size @ np.abs(w)).reshape(h.shape),
        "grad_weight": size.T @ np.abs(rows),
        "grad_bias": size.sum(axis=0),
    }
    return result
