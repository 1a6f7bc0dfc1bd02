"""Numbers and switches that users pass, checked."""

import math
import numbers
from collections.abc import Callable
from typing import Any

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
    """Whether it is a number, or a scalar that holds one; a bool is none."""
    value = _plain(value)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


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
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise TypeError(f"Expected `{name}` to be True or False. Received: {name}={value!r}")
    return plain


def _number(name: str, value: float, what: str, fits: Callable[[float], bool]) -> float:
    error: type[Exception] | None = None
    plain = _plain(value)
    if not is_number(plain):
        error = TypeError
    elif not (math.isfinite(plain) and fits(plain)):
        error = ValueError
    if error:
        raise error(f"Expected `{name}` to be {what}. Received: {name}={value!r}")
    return float(plain)


def _plain(value: Any) -> Any:
    """What a scalar of NumPy, TensorFlow or Keras holds."""
    value = value.numpy() if hasattr(value, "numpy") else value
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0 else value
