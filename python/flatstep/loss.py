"""Cross-entropy with its gradient, of logits and of a linear layer's output."""

from . import _arrays, _checks, _core
from ._results import CrossEntropyResult, LinearCrossEntropyResult, result_of

_GRADIENT_OF = {name: f"grad_{name}" for name in ("hidden", "weight", "bias")}
_GRADIENTS = tuple(_GRADIENT_OF.values())


def _row_arrays(rows, dtype, like, reduction):
    """What is kept of each row: its loss, if that is asked for, its log-sum-exp and its entropy."""
    loss = _arrays.empty(rows, dtype, like) if reduction == "none" else None
    return loss, _arrays.empty(rows, dtype, like), _arrays.empty(rows, dtype, like)


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
    grad=False,
    grad_output=1.0,
):
    """Cross-entropy of logits with index targets, and its gradient in the same visit.

    For a row ``x`` of V logits with target ``t``, ``p = softmax(x)``, ``s = label_smoothing``,
    ``w = class_weight``, ``u = token_weight`` and ``lse = log(sum(exp(x)))``::

        loss          = u * ((1 - s) * w[t] * -log(p[t]) + s / V * sum_j w[j] * -log(p[j])
                             + z_loss * lse**2)
        d loss / d x  = u * ((W + 2 * z_loss * lse) * p - s / V * w - (1 - s) * w[t] * onehot(t))
        W             = (1 - s) * w[t] + s / V * sum_j w[j]

    With ``softcap`` c, ``x`` stands for ``c * tanh(x / c)``, and the gradient goes through it.
    Classes whose logit is -inf are masked, also with softcap: they take no part in the smoothing,
    and V counts the others. A term whose weight is 0 is 0, whatever it multiplies. A row with a
    NaN, or with every class masked, has a NaN loss and gradient; other rows are not touched by it.

    Arithmetic is float32 for float32, bfloat16 and float16 logits, with sums in float64, and
    float64 for float64. For float32 the error of a row's loss is at most 4 ULP, the gradient's
    8 ULP of the row's largest ``(W + 2 * z_loss * abs(lse)) * p`` times its factor (half as much
    again on x86-64 without fused multiply-add). A 16-bit gradient is the float32 one rounded once.
    A row's results have the same bits in any batch and for any number of threads.

    On CUDA all arrays are on one device, and float64 logits are refused. The call runs on the
    current stream of PyTorch or CuPy, if ``logits`` is theirs, else on the legacy default stream,
    and does not wait for it; it may be captured in a graph. New arrays are of that library, else
    :class:`flatstep.DeviceArray`. Arrays of a library that works on another stream, such as JAX,
    are given back after a wait.

    Args:
        logits: ``[..., V]`` float32, float64, bfloat16 or float16; the last dimension contiguous,
            the rows evenly spaced (the stride may be wider than V).
        targets: ``[...]`` int32 or int64 class indices in ``[0, V)``, or ``ignore_index``; on CUDA
            contiguous.
        reduction: ``"mean"`` divides by the summed weight ``w[t] * u`` of the valid targets; or
            ``"sum"``, or ``"none"``.
        label_smoothing: in ``[0, 1)``.
        ignore_index: targets with this value have loss 0 and gradient 0.
        class_weight: ``[V]``, finite and not negative, float32 (float64 for float64 logits).
        token_weight: ``[...]``, finite, of the same dtype.
        z_loss: factor of the squared log-sum-exp, not negative.
        softcap: positive, or None.
        divisor: replaces the summed weight in ``"mean"``, for gradient accumulation.
        on_empty: the mean over a summed weight of 0: ``"zero"`` or ``"nan"``.
        grad: False; True for a new array; or the array to write, which may be ``logits`` itself.
        grad_output: upstream gradient: a float, or with ``"none"`` an array ``[...]`` of the dtype
            of the loss.

    Returns:
        A :class:`CrossEntropyResult`.

    Raises:
        IndexError: a target is out of range; the message names the row and the value.
        ValueError, TypeError: another argument is wrong; the message names it.
            Nothing was written in either case. On CUDA the contents of targets and weights are
            looked at on the device: what is wrong with them is raised by the numbers of the result,
            or by the next call that waits for the device.

    >>> import numpy as np
    >>> probabilities = np.array([[0.20, 0.50, 0.10, 0.10, 0.10]])
    >>> loss = cross_entropy(np.log(probabilities), np.array([1])).loss
    >>> bool(np.isclose(loss, -np.log(0.50), rtol=1e-15))
    True
    """
    shape, dtype = _arrays.describe(logits, "logits")
    if dtype not in ("float32", "float64", "bfloat16", "float16"):
        raise TypeError(f"logits: got {dtype}, expected float32, float64, bfloat16 or float16")
    # Arguments of the core go by position: a short row takes no longer than their names would.
    options = _core.LossOptions(
        reduction,
        label_smoothing,
        ignore_index,
        class_weight,
        token_weight,
        z_loss,
        softcap,
        divisor,
        on_empty,
        grad_output,
    )
    row_dtype = "float64" if dtype == "float64" else "float32"
    loss, lse, entropy = _row_arrays(shape[:-1], row_dtype, logits, reduction)
    if grad is True:
        grad = _arrays.empty_like(logits, "grad")
    elif grad is False:
        grad = None
    values = _core.cross_entropy(logits, targets, options, loss, lse, entropy, grad)
    return result_of(CrossEntropyResult, values, loss, grad=grad, lse=lse, entropy=entropy)


def linear_cross_entropy(
    hidden,
    weight,
    targets,
    *,
    bias=None,
    workspace_bytes=None,
    grad=True,
    grad_hidden=None,
    grad_weight=None,
    grad_bias=None,
    accumulate=False,
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
):
    """:func:`cross_entropy` of the logits ``hidden @ weight.T + bias``, which never exist at once.

    Rows are taken in chunks; a chunk's logits, their loss and the gradients come one after the
    other in a workspace. Logits, their gradient and the sums over rows are float32 for every dtype.
    Results do not depend on the number of threads; the gradients of weight and bias depend on
    ``workspace_bytes`` by their rounding. On CUDA the products are cuBLASLt's, 16-bit ones take the
    gradient of the logits rounded to that type, and a fault in targets or weights, which shows too
    late to write nothing, makes the gradients zeros.

    Args:
        hidden: ``[..., D]`` float32, bfloat16 or float16; the rows may be wider than D.
        weight: ``[V, D]`` of the same dtype; the rows may be wider than D.
        targets: ``[...]`` int32 or int64.
        bias: ``[V]`` of the same dtype, or None.
        workspace_bytes: the most memory to use besides inputs and outputs; it sets the chunk size.
            Each thread after the first adds a few kilobytes, half a megabyte where V is large
            beside D, and with softcap at most ``4 * V`` bytes or 128 KB, whichever is more. On
            CUDA it is the device's memory, and larger chunks make faster products. None is 64 MB on
            the CPU and 1 GB on CUDA.
        grad: whether the gradients are wanted, or the names of those that are, of ``"hidden"``,
            ``"weight"`` and ``"bias"``. New arrays are made for those not given.
        grad_hidden: array to write, of the shape and dtype of ``hidden``.
        grad_weight: array to write, float32 ``[V, D]``.
        grad_bias: array to write, float32 ``[V]``.
        accumulate: add to the given ``grad_weight`` and ``grad_bias`` instead.

    The other arguments are those of :func:`cross_entropy`, with weights in float32.

    Returns:
        A :class:`LinearCrossEntropyResult`.

    Raises:
        IndexError, ValueError, TypeError: as :func:`cross_entropy`.

    >>> import numpy as np
    >>> hidden, weight = np.eye(2, dtype=np.float32), np.ones((3, 2), np.float32)
    >>> result = linear_cross_entropy(hidden, weight, np.array([0, 2]))
    >>> round(result.loss, 4), result.grad_weight.shape
    (1.0986, (3, 2))
    """
    shape, dtype = _arrays.describe(hidden, "hidden")
    weight_shape, _ = _arrays.describe(weight, "weight")
    if dtype not in ("float32", "bfloat16", "float16"):
        raise TypeError(f"hidden: got {dtype}, expected float32, bfloat16 or float16")
    given = {"grad_hidden": grad_hidden, "grad_weight": grad_weight, "grad_bias": grad_bias}
    wanted = _wanted_gradients(grad)
    for name, array in given.items():
        if array is not None and name not in wanted:
            raise ValueError(f"{name}: got an array, expected None with grad={grad!r}")
    if grad_bias is not None and bias is None:
        raise ValueError("grad_bias: got an array without a bias, expected None")
    if accumulate and (grad_weight is None or (bias is not None and grad_bias is None)):
        raise ValueError(
            "accumulate: got True, expected False where grad_weight (and grad_bias) are not given"
        )
    options = _core.LossOptions(
        reduction,
        label_smoothing,
        ignore_index,
        class_weight,
        token_weight,
        z_loss,
        softcap,
        divisor,
        on_empty,
        grad_output,
    )
    loss, lse, entropy = _row_arrays(shape[:-1], "float32", hidden, reduction)
    if "grad_hidden" in wanted and grad_hidden is None:
        given["grad_hidden"] = _arrays.empty_like(hidden, "grad_hidden")
    if "grad_weight" in wanted and grad_weight is None:
        given["grad_weight"] = _arrays.empty(weight_shape, "float32", weight)
    if "grad_bias" in wanted and bias is not None and grad_bias is None:
        given["grad_bias"] = _arrays.empty(weight_shape[:1], "float32", weight)
    if workspace_bytes is None:
        workspace_bytes = 64_000_000 if _arrays.cuda_index(hidden) is None else 1_000_000_000
    values = _core.linear_cross_entropy(
        hidden,
        weight,
        bias,
        targets,
        options,
        workspace_bytes=_checks.integer(workspace_bytes, "workspace_bytes"),
        accumulate=bool(accumulate),
        loss=loss,
        lse=lse,
        entropy=entropy,
        **given,
    )
    return result_of(LinearCrossEntropyResult, values, loss, lse=lse, entropy=entropy, **given)


def _wanted_gradients(grad):
    """The arguments that ``grad`` of linear_cross_entropy asks for."""
    if not isinstance(grad, (tuple, list, set, frozenset)):
        return _GRADIENTS if grad else ()
    return [_checks.choice(name, _GRADIENT_OF, "grad") for name in grad]
