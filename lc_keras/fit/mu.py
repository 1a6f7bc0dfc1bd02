"""The strength of the pull in each L step."""

import math
from collections.abc import Sequence
from typing import Literal

from lc_keras.algorithm import schedules
from lc_keras.algorithm.beside import Reach
from lc_keras.fit.optimizers import LearningRateLimit
from lc_keras.fit.plan import Plan

# How long an epoch is taken to be until the first one has ended, if Keras does not know.
_UNKNOWN_BATCHES = 100

Mu = Literal["auto"] | schedules.Schedule


def is_automatic(mu: Mu) -> bool:
    """Tell if `mu` is to be found from what the run shows."""
    return isinstance(mu, str) and mu == "auto"


class ThroughLoss:
    """Find μ of the L steps of a run whose pull goes through the loss.

    Args:
        mu: `"auto"` or a schedule.
        plan: `Plan` of the run.
        rate: `LearningRateLimit` of the optimizers that train the weights.
    """

    def __init__(self, mu: Mu, plan: Plan, rate: LearningRateLimit) -> None:
        self._plan = plan
        self._rate = rate
        self._automatic = schedules.Automatic(plan.steps) if is_automatic(mu) else None
        self._mus = [] if self._automatic else schedules.values(mu, plan.steps)

    @property
    def given(self) -> str | list[float]:
        """The form in which checkpoints hold `mu`: "auto", or its values in this run."""
        return "auto" if self._automatic else self._mus

    def state(self) -> list[float] | None:
        """Return what `load` needs in another run of the same plan, as JSON can hold it."""
        return self._automatic.state() if self._automatic else None

    def load(self, state: list[float] | None) -> None:
        """Go on from a `state`."""
        if self._automatic and state:
            self._automatic.load(state)

    def begin(self) -> None:
        """Note how the schedules of learning rates go on."""
        self._rate.look_ahead(_batches(self._plan))

    def next(self, step: int, gap: float) -> tuple[float, Reach | None]:
        """Return μ of an L step.

        Args:
            step: Int, the index of the L step; the indices must not decrease.
            gap: Float, the latest ‖w − θ‖ / ‖w‖.

        Returns:
            Tuple of a float > 0 and `None`.
        """
        if not self._automatic:
            return self._mus[step], None
        rate, guessed = self._rate.effective(), self._rate.guessed
        return self._automatic(step, rate, _batches(self._plan), gap, guessed), None


class Beside:
    r"""Find the reach of the pull beside the optimizer, from the progress of the run and how weights move.

    At first the pull reaches more and more weights, the smallest first, as gradual pruning removes them (Zhu
    & Gupta, "To prune, or not to prune", 2017), but it brings them to zero little by little. Of the weights
    beyond the budget, $1 - (1 - q/0.9)^3$ are pulled after the part q of the removing, which takes three
    quarters of the run. Weights within reach are pulled $1 - e^{-s/E}$ of the way in each of the E batches of
    the removing, where s grows from 50 to 300. The last quarter trains what is left.

    Where SGD or Muon carry weights far, a fixed budget is better: then the training itself finds which
    weights to keep. If the kept weights, going on as in the latest L step, would move by more than 0.7 of
    their norm in the rest of the run, and that three times in a row in the first 15 % of it, all weights are
    pulled from then on, to θ of the budget itself, with s from 1.5 to 80. Other optimizers move weights that
    do not matter as far as those that do, and a fixed budget then keeps the wrong ones.

    The constants were chosen in trials on LeNet-300 and a small ResNet; `benchmarks/robustness/matrix.py`
    shows what they come to on these and other nets.

    Args:
        plan: `Plan` of the run.
        by_gradient: Bool, whether all steps of the optimizers are as SGD's or Muon's.
    """

    _REMOVING, _FALLING = 0.75, 0.9
    _PATH = 50.0, 300.0
    _FAR, _IN_A_ROW, _LOOKS = 0.7, 3, 0.15

    given = "auto"

    def __init__(self, plan: Plan, by_gradient: bool) -> None:
        self._plan = plan
        self._by_gradient = by_gradient
        self._is_fixed = False
        self._far = 0
        self._strength = 0.0

    def state(self) -> Sequence[float]:
        """Return what `load` needs in another run of the same plan, as JSON can hold it."""
        return [self._is_fixed, self._far, self._strength]

    def load(self, state: Sequence[float]) -> None:
        """Go on from a `state`."""
        self._is_fixed, self._far, self._strength = bool(state[0]), int(state[1]), state[2]

    def begin(self) -> None:
        """Nothing is to be known of the optimizer."""

    def looks(self, step: int) -> bool:
        """Tell if it asks how far weights moved in an L step."""
        return self._by_gradient and not self._is_fixed and step <= self._LOOKS * self._plan.steps

    def look(self, step: int, moved: float, batches: float) -> None:
        """Note how far weights moved.

        Args:
            step: Int, the index of the L step that ends.
            moved: Float, how far the kept weights moved, by their norm.
            batches: Float ≥ 0, in how many batches; of none nothing is to be seen.
        """
        if not batches:
            return
        left = _batches(self._plan) * (1 - (step + 1) / self._plan.steps)
        self._far = self._far + 1 if moved * left / batches > self._FAR else 0
        if self._far == self._IN_A_ROW:
            self._is_fixed = True
            # λ/μ was of a much stronger pull.
            self._strength = 0.0

    def next(self, step: int, gap: float) -> tuple[float, Reach | None]:
        """Return the strength of the pull in an L step, and its `Reach`.

        Args:
            step: Int, the index of the L step; the indices must not decrease.
            gap: Float, not used.

        Returns:
            Tuple of a float > 0, s/E, and a `Reach`.
        """
        progress, before = step / self._plan.steps, self._strength
        if self._is_fixed:
            (first, last), length = schedules.PULL, min(_batches(self._plan), schedules.MOST_BATCHES)
            slack = 0.0
        else:
            (first, last), length = self._PATH, self._REMOVING * _batches(self._plan)
            progress /= self._REMOVING
            slack = max(0.0, 1 - progress / self._FALLING) ** 3
        self._strength = first * (last / first) ** min(progress, 1.0) / length
        if not self._is_fixed and progress >= 1:
            return self._strength, Reach(part=1.0, frees=True)
        # Not above 1, as where an epoch turns out to be longer than it was taken to be.
        part, ratio = -math.expm1(-self._strength), min(1.0, before / self._strength)
        return self._strength, Reach(part, ratio, slack, frees=not self._is_fixed)


def _batches(plan: Plan) -> float:
    """Return how many batches a run has."""
    return plan.epochs * (plan.batches or _UNKNOWN_BATCHES)
