"""The strength of the pull in each L step."""

import math
from collections.abc import Sequence
from typing import Any, Literal

from lc_keras.algorithm import schedules
from lc_keras.algorithm.beside import Reach
from lc_keras.costs.compression import Compression
from lc_keras.fit.checkpoints import Facts, Resumable
from lc_keras.fit.optimizers import LearningRateLimit
from lc_keras.fit.plan import Plan

# The assumed length of an epoch until the first one has ended, if Keras does not know it.
_UNKNOWN_BATCHES = 100
# From weights that hardly feel the pull of a run, to a time constant that is a small part of the run
# (benchmarks/training/automatic_mu.py); and the number of batches beyond which a longer run pulls as if it
# had no more: further batches are better spent on weights that have settled.
_PULL, _MOST_BATCHES = (1.5, 80.0), 5000

Mu = Literal["auto"] | schedules.Schedule


def is_automatic(mu: Mu) -> bool:
    """Return whether `mu` is to be found from what the run shows."""
    return isinstance(mu, str) and mu == "auto"


class Pull(Resumable):
    """Base class: find the strength of the pull in each L step of a `Plan`.

    Attributes:
        given: The form in which checkpoints hold `mu`: "auto", or its values in this run.
        closes_gap: Bool, default `True`: whether the gap closes little by little. If not, w and θ meet at the
            end of a run.
    """

    given: str | list[float] = "auto"
    closes_gap = True

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    @property
    def _batches(self) -> float:
        """Return how many batches the run has."""
        return self._plan.end * (self._plan.batches or _UNKNOWN_BATCHES)

    def begin(self) -> None:
        """Note what must be known about the optimizer as training begins."""

    def looks(self, step: int) -> bool:
        """Return whether this pull asks how far weights moved in an L step."""
        return False

    def look(self, step: int, moved: float, batches: float) -> None:
        """Note how far the kept weights moved, by their norm, in the `batches` of the L step that ends."""

    def next(self, step: int, gap: float) -> tuple[float, Any]:
        """Return the strength of the pull in an L step, and its `Reach` beside the optimizer, if it has one.

        Args:
            step: Int, the index of the L step; the indices must not decrease.
            gap: Float, the latest ‖w − θ‖ / ‖w‖.
        """
        raise NotImplementedError


class Scheduled(Pull):
    """Follow a schedule of μ; the pull goes through the loss."""

    def __init__(self, plan: Plan, mu: Mu) -> None:
        super().__init__(plan)
        self._mus = self.given = schedules.values(mu, plan.steps)

    def next(self, step: int, gap: float) -> tuple[float, Reach | None]:
        return self._mus[step], None


class ThroughLoss(Pull):
    r"""Find μ of a pull through the loss from the optimizer's rate, the length of the run, and the gap.

    In an L step with SGD, each batch moves a weight towards its target by $\eta_\text{eff}\,\mu$ of the
    distance. Over a run of T batches, the product $\eta_\text{eff}\,\mu\,T$ decides whether weights are still
    free to move or the gap closes; it grows geometrically from 1.5 to 80. T counts at most 5,000 batches. The
    rate is measured anew at each C step. If the gap still lags in the second half, μ grows faster.

    Both the rate and this growth are bounded: a rate that decays to 0, or a second moment that is mostly the
    pull's own, would otherwise send μ to infinity.

    Args:
        plan: `Plan` of the run.
        rate: `LearningRateLimit` of the optimizers that train the weights.
    """

    _HALFWAY_GAP, _FINAL_GAP = 0.5, 0.02
    _RATE_RANGE, _MOST_BOOST = 10.0, 30.0

    held = ("_boost", "_first_rate", "_previous")

    def __init__(self, plan: Plan, rate: LearningRateLimit) -> None:
        super().__init__(plan)
        self._rate = rate
        self._boost = 1.0
        self._first_rate = self._previous = 0.0

    def begin(self) -> None:
        self._rate.look_ahead(self._batches)

    def next(self, step: int, gap: float) -> tuple[float, Reach | None]:
        steps = max(2, self._plan.steps)
        progress = step / (steps - 1)
        if progress > 0.5 and math.isfinite(gap) and gap > 0:
            expected = self._HALFWAY_GAP * (self._FINAL_GAP / self._HALFWAY_GAP) ** (2 * progress - 1)
            boost = self._boost * max(1.0, gap / expected) ** (10 / steps)
            self._boost = min(boost, self._MOST_BOOST)
        rate = self._rate.effective()
        first_rate = self._first_rate or rate or 1.0
        if not self._rate.guessed:
            self._first_rate = first_rate
        rate = min(max(rate, first_rate / self._RATE_RANGE), first_rate * self._RATE_RANGE)
        pull = _PULL[0] * (_PULL[1] / _PULL[0]) ** progress
        mu = self._boost * pull / (rate * min(self._batches, _MOST_BATCHES))
        self._previous = max(mu, 1.001 * self._previous)
        return self._previous, None


class Carrying(Pull):
    r"""Pull weights all the way to θ in each L step, and let θ change less and less.

    In L steps of n batches, $a = 1 - e^{-5/n}$ brings a weight whose value changed to the new value in time.
    Of the distance that the optimizer moves a weight in a batch, $(1 - a) / a$ is left in the end. Multiplied
    by $n a / (1 - a)$, this is the distance of n batches. That factor falls to 0 after nine tenths of the
    run; the rest of the run trains the values and what is not compressed. If values are near one another,
    less of the distance counts, but at least that of four batches.
    """

    closes_gap = False

    _ARRIVES, _FALLING, _AT_LEAST = 5.0, 0.9, 4

    def next(self, step: int, gap: float) -> tuple[float, Reach | None]:
        batches = max(1.0, self._plan.length * (self._plan.batches or _UNKNOWN_BATCHES))
        strength = self._ARRIVES / batches
        falling = max(0.0, 1 - step / self._plan.steps / self._FALLING)
        ratio, least = falling * batches * math.expm1(strength), min(1.0, self._AT_LEAST / batches)
        return strength, Reach(-math.expm1(-strength), ratio, least=least)


class Sliding(Pull):
    """Leave weights free and let each C step put them onto θ; in the last quarter, also pull them there.

    Matrices of low rank are a smooth set, and the loss mostly leads along this set. A pull to one θ holds
    weights back along the set, too. The pull grows from 0 to 0.3 of the way in a batch: the closer weights
    stay to θ, the better the net that ships, and by then the pull holds back little.
    """

    closes_gap = False

    _FREE, _LAST = 0.75, 0.3

    def next(self, step: int, gap: float) -> tuple[float, Reach | None]:
        part = self._LAST * max(0.0, step / self._plan.steps - self._FREE) / (1 - self._FREE)
        return part, Reach(part, puts=True)


class Beside(Pull):
    r"""Find the reach of the pull beside the optimizer, from the progress of the run and how weights move.

    There is a method for each case: budgets loosen or are fixed, and weights shrink to a norm or settle on
    few values. In each of the E batches that it has, the pull brings weights $1 - e^{-s/E}$ of the way, where
    s grows over these batches.

    Most constants were chosen in trials on LeNet-300 and a small ResNet, some on other nets, too, as
    docs/results.md says; `benchmarks/robustness/matrix.py` shows what they achieve.

    Args:
        plan: `Plan` of the run.
        by_gradient: Bool, whether all optimizers take steps like those of SGD or Muon.
        costs: Sequence of `Compression`s that have budgets.
        normalizes: Bool, default `False`, whether training moves statistics, such as those of batch
            normalisation.
    """

    _REMOVING, _FALLING, _SETTLED = 0.75, 0.9, 0.9
    # The part that is left for later, the same in a run of few batches, and how many batches are few.
    _LATER, _LATER_OF_FEW, _FEW = 0.25, 0.1, 400
    _PATH = 50.0, 300.0
    # The number of first batches in which L steps that begin pull all the way; the batch by which the other
    # weights have made up for it.
    _AT_ONCE, _MADE_UP = 5, 25
    _SHRUNK, _SHRINKING = 0.4, (5.0, _PULL[1])
    _FAR, _IN_A_ROW, _LOOKS = 1.0, 3, 0.15

    held = ("_is_fixed", "_far", "_strength")

    def __init__(
        self, plan: Plan, by_gradient: bool, costs: Sequence[Compression], normalizes: bool = False
    ) -> None:
        super().__init__(plan)
        # If one budget cannot be loosened, all are fixed.
        self._is_fixed = not all(cost.can_loosen for cost in costs)
        self._shrinks = any(cost.shrinks for cost in costs)
        # Of a budget that loosens it does not, unless it is fixed on the way.
        self.closes_gap = all(cost.shrinks or not cost.can_loosen for cost in costs)
        # Kept weights must also come to other values. These do not count at first and, if close, never do.
        others = [cost for cost in costs if not (cost.keeps_values or cost.shrinks)]
        self._values_wait = bool(others) and not self._is_fixed
        self._settles = self._values_wait and not all(cost.close_values for cost in others)
        self._units = any(cost.needs_units for cost in costs)
        self._by_gradient = by_gradient and not self._shrinks
        self._normalizes = normalizes
        self._far = 0
        self._strength = 0.0

    def looks(self, step: int) -> bool:
        has_made_up = self._batches_before(step) >= self._MADE_UP
        is_early = step <= self._LOOKS * self._plan.steps
        asks = self._by_gradient and not self._normalizes and not self._is_fixed
        return asks and has_made_up and is_early

    def look(self, step: int, moved: float, batches: float) -> None:
        if not batches:
            return
        left = self._batches * (1 - (step + 1) / self._plan.steps)
        self._far = self._far + 1 if moved * left / batches > self._FAR else 0
        if self._far == self._IN_A_ROW:
            self._is_fixed = True
            # λ/μ belonged to a much stronger pull.
            self._strength = 0.0

    def next(self, step: int, gap: float) -> tuple[float, Reach | None]:
        if self._settles and self._removed(step) >= 1:
            reach = self._settling(step)
        elif self._is_fixed:
            reach = self._fixed(step)
        elif self._shrinks:
            reach = self._shrinking(step)
        else:
            reach = self._loosening(step)
        return self._strength, reach

    def _loosening(self, step: int) -> Reach:
        """Return the reach of a pull to a budget that comes down from all weights to its final value.

        The pull reaches more and more weights, the smallest first, as gradual pruning removes them (Zhu &
        Gupta, "To prune, or not to prune", 2017), but it brings them to zero little by little. Removal takes
        three quarters of the run. After a part q of that time, $1 - (1 - q/0.9)^3 / 4$ of the weights beyond
        the budget are pulled: the smallest three quarters of them are next to nothing. In runs of fewer than
        400 batches, a tenth is left for later instead of a quarter, since few batches remain to make up for
        what goes late. For units it is $1 - (1 - q/0.9)^3$, since each unit counts for much. The last quarter
        of the run trains what is left.

        s grows from 50 to 300, or to E if the removal has more batches. So in the end a batch brings weights
        at least $1 - e^{-1}$ of the way. A gradient g and a rate η hold a weight at about η g / a from zero,
        where a is the part of the way. If a stayed small, weights that the loss wants would hold out, and go
        together when the rate has fallen and few batches remain.

        With SGD or Muon, which do not normalise the step of each weight, single weights within reach of an
        L step that begins in the first five batches become zero at once. If they went little by little, the
        loss would rise in each of these batches, and momentum would carry the other weights far away. With
        batch normalisation they go at once in all L steps. A ResNet-32 ends better that way, a small net that
        overfits in a long run ends worse (docs/results.md).
        """
        removed = self._removed(step)
        later = self._LATER_OF_FEW if self._batches < self._FEW else self._LATER
        slack = (1.0 if self._units else later) * max(0.0, 1 - removed / self._FALLING) ** 3
        first, last = self._PATH
        batches = self._REMOVING * self._batches
        part, ratio = self._grown((first, max(last, batches)), removed, batches)
        may_go_at_once = self._by_gradient and not self._units
        is_first = self._batches_before(step) < self._AT_ONCE
        if removed >= 1 or (may_go_at_once and (is_first or self._normalizes)):
            part, ratio = 1.0, 0.0
        return Reach(part, ratio, slack, frees=True)

    def _fixed(self, step: int) -> Reach:
        """Return the reach of a pull of all weights to θ of the budget itself.

        This is better where SGD or Muon carry weights far: then training itself finds which weights to keep.
        If the kept weights, at the pace of the latest L step, would move by more than their norm in the rest
        of the run, and if this is so three times in a row in the first 15 % of the run, the budget is fixed
        from then on. The first 25 batches do not count: in them, the kept weights make up for those that went
        at once. With batch normalisation, neither the length of a kernel nor how far it moves means anything:
        there the budget always loosens. Other optimizers move weights that do not matter as far as those that
        do, and a fixed budget then keeps the wrong ones.

        s grows from 1.5 to 80. Units are removed in three quarters of the run: what goes with a late unit,
        when the rate has fallen, is lost. Values do not count yet.
        """
        progress, batches = step / self._plan.steps, min(self._batches, _MOST_BATCHES)
        if self._units or self._settles:
            progress, batches = self._removed(step), self._REMOVING * batches
        part, ratio = self._grown(_PULL, progress, batches)
        if self._units and progress >= 1:
            return Reach(part=1.0, slack=0.0, frees=True)
        return Reach(part, ratio, slack=0.0 if self._values_wait else None)

    def _shrinking(self, step: int) -> Reach:
        """Return the reach of a pull of all weights to a budget that makes them smaller, such as a norm's.

        Free weights do not keep such a budget. It falls over 0.4 of the run, as described in `_loosening`,
        and s grows from 5 to 80. Multipliers begin where it stops falling, so that weights which the loss
        cannot move end as with direct compression.
        """
        progress = step / self._plan.steps
        slack = max(0.0, 1 - progress / self._SHRUNK) ** 3 or None
        return Reach(*self._grown(self._SHRINKING, progress, min(self._batches, _MOST_BATCHES)), slack)

    def _settling(self, step: int) -> Reach:
        """Return the reach of a pull of kept weights to few values, after three quarters of the run.

        Until then, budgets loosen or are fixed as if there were no values. s grows from 1.5 to 80 until nine
        tenths of the run. From then on, each C step puts weights onto their values, so that it is the values
        that train. Close values need none of this: the last C step takes the nearest one.
        """
        progress = step / self._plan.steps
        if progress >= self._SETTLED:
            return Reach(part=1.0, frees=True, puts=True)
        of_settling = (progress - self._REMOVING) / (self._SETTLED - self._REMOVING)
        return Reach(*self._grown(_PULL, of_settling, (1 - self._REMOVING) * self._batches))

    def _removed(self, step: int) -> float:
        """Return the part of the removal that is over; 1 or more after three quarters of the run."""
        return step / self._plan.steps / self._REMOVING

    def _grown(self, bounds: tuple[float, float], progress: float, batches: float) -> tuple[float, float]:
        """Let s grow geometrically; return the part of the way, and the ratio of old to new strength."""
        first, last = bounds
        before, self._strength = self._strength, first * (last / first) ** min(progress, 1.0) / batches
        # Not above 1, not even if an epoch turns out to be longer than assumed.
        return -math.expm1(-self._strength), min(1.0, before / self._strength)

    def _batches_before(self, step: int) -> float:
        """Return how many batches have run when an L step begins."""
        return step * self._batches / self._plan.steps


class Together(Pull):
    """Pull several parts of the weights, each in its own way; μ is that of the first.

    Args:
        plan: `Plan` of the run.
        pulls: List of `Pull`s beside the optimizer.
    """

    closes_gap = False

    def __init__(self, plan: Plan, pulls: Sequence[Pull]) -> None:
        super().__init__(plan)
        self._pulls = pulls

    def looks(self, step: int) -> bool:
        return self._pulls[0].looks(step)

    def look(self, step: int, moved: float, batches: float) -> None:
        self._pulls[0].look(step, moved, batches)

    def next(self, step: int, gap: float) -> tuple[float, list[Reach]]:
        strengths, reaches = zip(*(pull.next(step, gap) for pull in self._pulls), strict=True)
        return strengths[0], list(reaches)

    def state(self) -> Facts:
        return {"pulls": [pull.state() for pull in self._pulls]}

    def load(self, state: Facts) -> None:
        for pull, own in zip(self._pulls, state["pulls"], strict=True):
            pull.load(own)
