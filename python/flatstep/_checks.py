"""Checks of plain Python arguments; arrays are checked by the core."""

import operator
import re


def number(value, argument):
    """``value`` as a float."""
    try:
        if isinstance(value, (str, bytes)):  # float() would read them
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"{argument}: got {type(value).__name__}, expected a number") from None


def pair(value, argument):
    """``value`` as two floats."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise TypeError(f"{argument}: got {value!r}, expected two numbers") from None
    return number(first, argument), number(second, argument)


def optional_number(value, argument):
    """``value`` as a float, or None."""
    return None if value is None else number(value, argument)


def integer(value, argument):
    """``value`` as an int; floats are refused."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{argument}: got {type(value).__name__}, expected an integer") from None


def choice(value, choices, argument):
    """``choices[value]`` of a dict keyed by the allowed names."""
    if isinstance(value, str) and value in choices:
        return choices[value]
    names = ", ".join(repr(name) for name in choices)
    raise ValueError(f"{argument}: got {value!r}, expected one of {names}")


def unsigned(value, argument, bits):
    """``value`` as an integer in [0, 2**bits)."""
    value = integer(value, argument)
    if not 0 <= value < 2**bits:
        raise ValueError(f"{argument}: got {value}, expected an integer from 0 to 2**{bits} - 1")
    return value


def unsigned64(value, argument):
    """A seed."""
    return unsigned(value, argument, 64)


def step_number(value, argument="step"):
    """A step count."""
    return unsigned(value, argument, 48)


def shape(value):
    """``value``, extents or a single one, as a tuple."""
    try:
        extents = tuple(value)
    except TypeError:
        extents = (value,)
    for extent in extents:
        if integer(extent, "shape") < 0:
            raise ValueError(f"shape: got {extents}, expected extents of 0 or more")
    return extents


def device_index(value):
    """The number of a CUDA device, or -1 for ``"cpu"``."""
    if value == "cpu":
        return -1
    found = isinstance(value, str) and re.fullmatch(r"cuda(:([0-9]{1,4}))?", value)
    if not found:
        raise ValueError(f"device: got {value!r}, expected 'cpu', 'cuda' or 'cuda:N'")
    return int(found[2] or 0)
