"""Schedules of μ, from one L step to the next."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lc_keras.arguments import above_one, in_single_precision, is_number, positive, whole
from lc_keras.costs.serialization import Serializable


@dataclass(frozen=True)
class Exponential(Serializable):
    r"""Follow the schedule of the paper, $\mu_i = \text{initial} \cdot \text{factor}^i$.

    Args:
        initial: Float > 0, μ of the first L step.
        factor: Float > 1, growth from one L step to the next.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range.

    Example:

    >>> lc_keras.Exponential(9e-5, 1.1)(0)
    9e-05
    """

    initial: float
    factor: float

    def __post_init__(self) -> None:
        positive("initial", self.initial)
        above_one("factor", self.factor)

    def __call__(self, step: int) -> float:
        try:
            return self.initial * self.factor**step
        except OverflowError:
            return math.inf


@dataclass(frozen=True)
class Geometric(Serializable):
    r"""Grow μ from `first` to `last` in equal ratios, over however many L steps there are.

    Unlike `Exponential`, this depends on the range alone: with twice the epochs, μ grows
    half as fast.

    Args:
        first: Float > 0, μ of the first L step.
        last: Float > `first`, μ of the last L step.

    Raises:
        TypeError: If an argument is not a number.
        ValueError: If an argument is out of its range.

    Example:

    >>> lc_keras.Geometric(1e-3, 1e-1).over(3)
    [0.001, 0.01, 0.1]
    """

    first: float
    last: float

    def __post_init__(self) -> None:
        positive("first", self.first)
        positive("last", self.last)
        if self.last <= self.first:
            raise ValueError(
                "Expected `last` to be above `first`, so that μ grows. "
                f"Received: first={self.first}, last={self.last}"
            )

    def over(self, steps: int) -> list[float]:
        """Return a list with μ of each L step, for `steps` ≥ 1 of them."""
        steps = whole("steps", steps)
        ratio = self.last / self.first
        return [self.first * ratio ** (i / max(1, steps - 1)) for i in range(steps)]


Schedule = Geometric | Callable[[int], float] | Sequence[float]


def sequence(schedule: object) -> list[Any] | None:
    """Return the elements of a sequence of μ, or `None` for anything else."""
    if isinstance(schedule, np.ndarray):
        return list(schedule) if schedule.ndim == 1 else None
    is_text = isinstance(schedule, (str, bytes))
    return list(schedule) if isinstance(schedule, Sequence) and not is_text else None


def values(schedule: Schedule | str, steps: int) -> list[float]:
    """Return μ of every L step of a run.

    Raises:
        TypeError: If `schedule` is not a `Schedule`, or contains something that is not a number.
        ValueError: If μ or its inverse is not positive and finite in single precision, if μ
            does not grow, or if the sequence is too short.
    """
    if isinstance(schedule, Geometric):
        given = schedule.over(steps)
    elif callable(schedule) and not isinstance(schedule, type):
        given = [schedule(i) for i in range(steps)]
    elif (elements := sequence(schedule)) is not None:
        if not elements:
            raise ValueError(f"Expected `mu` to hold a value for each L step. Received: mu={schedule!r}")
        if len(elements) < steps:
            raise ValueError(
                f"Expected `mu` to hold a value for each of {steps} L steps. "
                f"Received: {len(elements)} values."
            )
        given = elements[:steps]
    else:
        raise TypeError(
            'Expected `mu` to be "auto", a schedule such as Exponential(9e-5, 1.1), a function '
            f"of the L step's index, or a sequence of numbers. Received: mu={schedule!r}"
        )
    for i, mu in enumerate(given):
        if not is_number(mu):
            raise TypeError(f"Expected every μ to be a number. Received: μ={mu!r} at L step {i}")
        if not in_single_precision(mu):
            raise ValueError(
                "Expected every μ to be positive and finite, and its inverse, in single precision. "
                f"Received: μ={mu} at L step {i}"
            )
    mus = [float(mu) for mu in given]
    for i, mu in enumerate(mus):
        if i and mu <= mus[i - 1]:
            raise ValueError(f"Expected μ to grow. Received: μ={mu} at L step {i} after μ={mus[i - 1]}")
    return mus
