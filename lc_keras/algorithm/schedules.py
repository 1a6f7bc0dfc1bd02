"""Schedules of μ, from one L step to the next."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lc_keras.arguments import above_one, in_single_precision, is_number, positive, whole
from lc_keras.serialization import Serializable


@dataclass(frozen=True)
class Exponential(Serializable):
    r"""$\mu_i = \text{initial} \cdot \text{factor}^i$, the schedule of the paper.

    Args:
        initial: Float > 0, μ of the first L step.
        factor: Float > 1, growth from one L step to the next.

    Raises:
        TypeError: If an argument is no number.
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
    r"""From `first` to `last` in equal ratios, over however many L steps there are.

    Unlike `Exponential` it depends on the range alone: twice the epochs grow μ
    twice as slowly.

    Args:
        first: Float > 0, μ of the first L step.
        last: Float > `first`, μ of the last L step.

    Raises:
        TypeError: If an argument is no number.
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
        """Spreads the range over a number of L steps.

        Args:
            steps: Int ≥ 1.

        Returns:
            List of `steps` floats.

        Raises:
            TypeError: If `steps` is no number.
            ValueError: If it is no whole number ≥ 1.
        """
        steps = whole("steps", steps)
        ratio = self.last / self.first
        return [self.first * ratio ** (i / max(1, steps - 1)) for i in range(steps)]


Schedule = Geometric | Callable[[int], float] | Sequence[float]


# From weights that hardly feel the pull of a run, to a time constant that is a small part of it
# (benchmarks/training/automatic_mu.py); and the batches beyond which a longer run pulls as if it had no more:
# they are better spent on weights that have settled.
PULL, MOST_BATCHES = (1.5, 80.0), 5000


class Automatic:
    r"""μ from what the run shows: the optimizer's rate, its length, and the gap.

    An L step of SGD moves a weight towards its target by $\eta_\text{eff}\,\mu$ of
    the distance in a batch. Over a run of T batches it is the product
    $\eta_\text{eff}\,\mu\,T$ that decides whether weights are still free to move or
    the gap closes; it grows geometrically from 1.5, where they hardly feel the pull,
    to 80, where the time constant is a small part of the run. T counts 5,000 batches at
    most: what a longer run has beyond them is better spent on weights that have settled.
    The rate is measured anew at each C step. If the gap still lags in the second half, μ
    grows faster.

    Both are bounded: a rate that decays to 0, or a second moment that is mostly the
    pull's own, would otherwise send μ to infinity.

    Args:
        steps: Int ≥ 1, the number of L steps.
    """

    _HALFWAY_GAP, _FINAL_GAP = 0.5, 0.02
    _RATE_RANGE, _MOST_BOOST = 10.0, 30.0

    def __init__(self, steps: int) -> None:
        self._steps = max(2, steps)
        self._boost = 1.0
        self._first_rate = 0.0
        self._previous = 0.0

    def state(self) -> list[float]:
        """Return what `load` needs, as JSON can hold it."""
        return [self._boost, self._first_rate, self._previous]

    def load(self, state: Sequence[float]) -> None:
        """Go on from a `state`."""
        self._boost, self._first_rate, self._previous = state

    def __call__(self, step: int, rate: float, batches: float, gap: float, guessed: bool = False) -> float:
        """μ of an L step.

        Args:
            step: Int, the index of the L step; the indices must not decrease.
            rate: Float ≥ 0, η_eff: how far a unit gradient that stays moves a weight
                in a batch.
            batches: Float > 0, T: how many batches the run has.
            gap: Float ≥ 0, the latest ‖w − θ‖ / ‖w‖.
            guessed: Bool, default `False`. `True`: later rates are not held near this one.

        Returns:
            Float, above the value returned before.
        """
        progress = step / (self._steps - 1)
        if progress > 0.5 and math.isfinite(gap) and gap > 0:
            expected = self._HALFWAY_GAP * (self._FINAL_GAP / self._HALFWAY_GAP) ** (2 * progress - 1)
            boost = self._boost * max(1.0, gap / expected) ** (10 / self._steps)
            self._boost = min(boost, self._MOST_BOOST)
        first_rate = self._first_rate or rate or 1.0
        if not guessed:
            self._first_rate = first_rate
        rate = min(max(rate, first_rate / self._RATE_RANGE), first_rate * self._RATE_RANGE)
        pull = PULL[0] * (PULL[1] / PULL[0]) ** progress
        mu = self._boost * pull / (rate * min(batches, MOST_BATCHES))
        self._previous = max(mu, 1.001 * self._previous)
        return self._previous


def sequence(schedule: object) -> list[Any] | None:
    """The elements of what is a sequence of μ, and `None` for anything else."""
    if isinstance(schedule, np.ndarray):
        return list(schedule) if schedule.ndim == 1 else None
    is_text = isinstance(schedule, (str, bytes))
    return list(schedule) if isinstance(schedule, Sequence) and not is_text else None


def values(schedule: Schedule | str, steps: int) -> list[float]:
    """Evaluates a schedule at every L step of a run.

    Args:
        schedule: `Geometric`, a function of the step's index, or a sequence of at
            least `steps` numbers.
        steps: Int ≥ 1.

    Returns:
        List of `steps` floats.

    Raises:
        TypeError: If `schedule` is none of these, or holds what is no number.
        ValueError: If μ, or its inverse, is not positive and finite in single precision, μ
            does not grow, or the sequence is too short.
    """
    if isinstance(schedule, Geometric):
        given = schedule.over(steps)
    elif callable(schedule) and not isinstance(schedule, type):
        given = [schedule(i) for i in range(steps)]
    elif (elements := sequence(schedule)) is not None:
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
