"""Numbers and switches that users pass, checked."""

import math
from collections.abc import Callable

import numpy as np


def positive(name: str, value: float) -> float:
    """Checks a number above 0.

    Args:
        name: String, the argument's name.
        value: What was given.

    Returns:
        Float, the value.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not positive and finite.
    """
    return _number(name, value, "a positive number", lambda number: number > 0)


def non_negative(name: str, value: float) -> float:
    """As `positive`, with 0."""
    return _number(name, value, "a number ≥ 0", lambda number: number >= 0)


def above_one(name: str, value: float) -> float:
    """As `positive`, for what is to grow."""
    return _number(name, value, "a number above 1, so that μ grows", lambda number: number > 1)


def whole(name: str, value: int) -> int:
    """As `positive`, for numbers to count with."""
    what = "a whole number ≥ 1"
    return int(_number(name, value, what, lambda number: number >= 1 and number == int(number)))


def strength(name: str, value: float) -> float:
    """As `positive`, for μ, which is held, and divided by, in single precision."""
    what = "a positive number, as is its inverse in single precision"
    return _number(name, value, what, in_single_precision)


def is_number(value: object) -> bool:
    """Whether it is a number, of Python or NumPy; a bool is none."""
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def in_single_precision(value: float) -> bool:
    """Whether a number and its inverse are positive and finite in single precision."""
    with np.errstate(all="ignore"):
        single = np.float32(value)
        return bool(single > 0 and np.isfinite(single) and np.isfinite(1 / single))


def switch(name: str, value: bool) -> bool:
    """Checks what is true or false.

    Args:
        name: String, the argument's name.
        value: What was given.

    Returns:
        Bool, the value.

    Raises:
        TypeError: If it is anything else.
    """
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"Expected `{name}` to be True or False. Received: {name}={value!r}")
    return bool(value)


def _number(name: str, value: float, what: str, fits: Callable[[float], bool]) -> float:
    error: type[Exception] | None = None
    if not is_number(value):
        error = TypeError
    elif not (math.isfinite(value) and fits(value)):
        error = ValueError
    if error:
        raise error(f"Expected `{name}` to be {what}. Received: {name}={value!r}")
    return float(value)
