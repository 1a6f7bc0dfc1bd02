"""Check numbers, switches and models that users pass, and warn where they lead to something bad.

Each check takes the name of an argument and the given value, and returns that value as a plain Python type.
It raises a TypeError if the value is of another kind, and a ValueError if it is out of range, or is none of
the options of `one_of`.
"""

import inspect
import math
import numbers
import os
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

# Packages whose lines no warning points to.
_INSIDE = {"lc_keras", "keras", "tensorflow", "contextlib"}


def positive(name: str, value: float) -> float:
    """Check a number above 0."""
    return _number(name, value, "a positive number", lambda number: number > 0)


def non_negative(name: str, value: float) -> float:
    """Check a number ≥ 0."""
    return _number(name, value, "a number ≥ 0", lambda number: number >= 0)


def above_one(name: str, value: float) -> float:
    """Check a number above 1, by which something is to grow."""
    return _number(name, value, "a number above 1, so that μ grows", lambda number: number > 1)


def whole(name: str, value: int) -> int:
    """Check a whole number ≥ 1, used as a count."""
    what = "a whole number ≥ 1"
    return int(_number(name, value, what, lambda number: number >= 1 and number == int(number)))


def number_or_fraction(name: str, value: float, most: float = 1.0) -> int | float:
    """Check how much is kept: an int ≥ 0, a float in [0, 1], or one up to `most` that is no fraction."""
    plain = _plain(value)
    is_int = isinstance(plain, int)
    what = "a whole number ≥ 0 or a float in [0, 1], such as 0.05 for 5 %"
    fraction = _number(name, value, what, lambda number: number >= 0 and (is_int or number <= most))
    return int(plain) if is_int else fraction


def strength(name: str, value: float) -> float:
    """Check μ, which is stored, and used as a divisor, in single precision."""
    what = "a positive number, as is its inverse in single precision"
    return _number(name, value, what, in_single_precision)


def one_of(*options: str) -> Callable[[str, str], str]:
    """Return a check that a string is one of the options."""

    def check(name: str, value: str) -> str:
        if not isinstance(value, str) or value not in options:
            what = " or ".join(f'"{option}"' for option in options)
            raise ValueError(f"Expected `{name}` to be {what}. Received: {name}={value!r}")
        return value

    return check


def optional(check: Callable[[str, Any], Any]) -> Callable[[str, Any], Any]:
    """Return a check that lets `None` pass."""
    return lambda name, value: None if value is None else check(name, value)


def is_number(value: object) -> bool:
    """Return whether a value is a number, or a scalar that holds one; a bool is not."""
    value = _plain(value)
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def in_single_precision(value: float) -> bool:
    """Return whether a number and its inverse are positive and finite in single precision."""
    if not _is_finite(value):
        return False
    with np.errstate(all="ignore"):
        single = np.float32(value)
        return bool(single > 0 and np.isfinite(single) and np.isfinite(1 / single))


def switch(name: str, value: bool) -> bool:
    """Check a value that is true or false."""
    plain = _plain(value)
    if not isinstance(plain, bool):
        raise TypeError(f"Expected `{name}` to be True or False. Received: {name}={value!r}")
    return plain


def keras_model(model: keras.Model) -> keras.Model:
    """Check the `model` that a user passes."""
    if not isinstance(model, keras.Model):
        hint = "; load it by `keras.saving.load_model`" if isinstance(model, (str, os.PathLike)) else ""
        raise TypeError(
            "Expected `model` to be a keras.Model. "
            f"Received: {model!r} (of type {type(model).__name__}){hint}"
        )
    return model


def warn(message: str) -> None:
    """Warn at the user's line of code, however deep in this library or in Keras the problem is noticed."""
    frame, level = inspect.currentframe(), 1
    while frame and frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _INSIDE:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def _number(name: str, value: float, what: str, fits: Callable[[float], bool]) -> float:
    scalar, plain = _scalar(value), _plain(value)
    if is_number(plain) and _is_finite(plain) and fits(plain):
        # By its digits: 0.05 in single precision is 0.05000000074505806, but stands for 0.05.
        return float(str(scalar) if isinstance(scalar, np.generic) else plain)
    error = ValueError if is_number(plain) else TypeError
    raise error(f"Expected `{name}` to be {what}. Received: {name}={value!r}")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False


def _plain(value: Any) -> Any:
    """Return the Python number that a scalar of NumPy, TensorFlow or Keras holds."""
    value = _scalar(value)
    return value.item() if isinstance(value, np.generic) else value


def _scalar(value: Any) -> Any:
    """Return the NumPy scalar that an array, tensor or variable without axes holds."""
    value = value.numpy() if hasattr(value, "numpy") else value
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value
