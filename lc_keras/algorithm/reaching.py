"""The augmented Lagrangian of a run whose pull is beside the optimizer and reaches more and more weights."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.beside import PullBeside, Reach
from lc_keras.algorithm.graphs import Part
from lc_keras.algorithm.lagrangian import CStep, Lagrangian, Slot
from lc_keras.algorithm.passes import halves_of_squares, in_place, new_target
from lc_keras.algorithm.shadows import Shadow
from lc_keras.algorithm.tasks import SharedCost
from lc_keras.costs import thresholds
from lc_keras.costs.compression import Map


class ReachingLagrangian(Lagrangian):
    r"""Keep θ and λ as a `Lagrangian` does, with a pull that a `Reach` describes.

    The C step solves for the budget of the reach, which may be looser. Weights that it removes are pulled.
    Weights that it keeps are left free if the reach says so, and then have no multiplier; if they are pulled,
    too, to a looser θ, no weight has one. If the reach says so, weights are put onto θ,
    $w \leftarrow \theta \leftarrow \Pi(w)$: the L step leaves them free, and the C step takes back what led
    away from what the cost allows. This is projected gradient descent with several batches for each
    projection (Jain, Meka & Dhillon, Guaranteed rank minimization via singular value projection, NeurIPS
    2010). After `project`, which is for code that shows the model, θ is under the budget itself.

    Args:
        shared: List of `SharedCost`, whose costs have budgets.
        multipliers: Bool, default `True`.
    """

    _nowhere = math.nan

    _in_graphs = (*Lagrangian._in_graphs, "_reaching", "_moved", "_tighten", "_put")

    def __init__(self, shared: Sequence[SharedCost], multipliers: bool = True) -> None:
        super().__init__(shared, multipliers)
        self._reach = Reach(0.0)
        # θ of the latest C step, while a θ with close values is shown: λ leads from the former to the target.
        is_close = any(s.compression.close_values and s.compression.can_loosen for s in shared)
        self._aside = Shadow(self.variables, "aside", widen=True).copies if is_close else []
        self._is_aside = False

    @property
    def is_loose(self) -> bool:  # type: ignore[override]  # of this reach
        """Return whether θ may keep more than the budget, or other values than the weights have now."""
        return self._reach.slack is not None or self._reach.frees

    def saved(self) -> dict[str, list[tf.Variable]]:
        return super().saved() | ({"aside": self._aside} if self._aside else {})

    def state(self) -> dict[str, Any]:
        return {**super().state(), "reach": asdict(self._reach), "is_aside": self._is_aside}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._reach, self._is_aside = Reach(**state["reach"]), state["is_aside"]

    def direct_compression(self, mu: float, reach: Reach | None = None) -> CStep:
        # What the reach said about λ no longer holds.
        before, self._reach, self._is_aside = self._reach, Reach(0.0), False
        return self._reached(reach or before, 0.0)

    def c_step(self, mu: float, next_mu: float, reach: Reach | None = None) -> CStep:
        reach = reach or self._reach
        self._put_back()
        found = self._reached(reach, reach.ratio)
        if reach.puts and np.all(found.finite):
            self._put()
        return found

    def latest(self, mu: float) -> CStep:
        return self.project()

    def project(self) -> CStep:
        r"""Bring θ under the budget itself, $\theta \leftarrow \Pi(w - \lambda/\mu)$, and leave the targets.

        If the kept weights were left free, λ is left aside.

        Returns:
            `CStep`. If weights are not finite, θ of the latest C step is brought under the budget.
        """
        self._put_back()
        if self._aside and self._reach.slack == 0 and not self._reach.frees:
            for aside, theta in zip(self._aside, self.thetas, strict=True):
                aside.assign(theta)
            self._is_aside = True
        found = self._found(self._solve(Reach(self._reach.part), 0.0, retargets=False))
        if not np.all(found.finite):
            self._tighten()
        return found

    def moved(self) -> float:
        r"""Return how far the weights that the budget keeps have moved since the latest C step.

        For this, θ is brought under the budget.

        Returns:
            Float, $\lVert w - \theta \rVert / \lVert \theta \rVert$ over the κ largest of θ.
        """
        self._solve(Reach(self._reach.part, slack=0.0), 0.0, retargets=False, of_theta=True)
        return float(self._moved().numpy())

    def _made_target(self, variables: Sequence[keras.Variable]) -> Shadow:
        return Shadow(variables, "target", widen=True)

    def _pull(self, variable: keras.Variable, theta: tf.Variable, target: tf.Variable) -> PullBeside:
        return PullBeside(target, self._strength)

    def _reached(self, reach: Reach, ratio: float) -> CStep:
        has_multipliers = self._multipliers and not any(map(_pulls_to_looser, (self._reach, reach)))
        finite = self._solve(reach, ratio if has_multipliers else 0.0, retargets=True)
        self._reach = reach
        return self._found(finite, self.is_loose)

    def _solve(self, reach: Reach, ratio: float, retargets: bool, of_theta: bool = False) -> tf.Tensor:
        if _pulls_to_looser(self._reach) and not of_theta:
            # λ = 0, and `project` may have changed θ.
            for slot in self.slots:
                slot.theta.assign(slot.target)
        costs = [cost.compression for cost in self.shared]
        same = all(cost.can_loosen and (cost.keeps_values or cost.shrinks) for cost in costs)
        # If a slack of 0 and none give the same, one graph serves all.
        slack = 0.0 if reach.slack is None and same else reach.slack
        numbers = tf.constant(ratio, tf.float64), None if slack is None else tf.constant(slack)
        flags = map(tf.constant, (reach.part, self._reach.frees, reach.frees, retargets, of_theta))
        return self._reaching(*numbers, *flags)

    def _reaching(
        self,
        ratio: tf.Tensor,
        slack: tf.Tensor | None,
        part: tf.Tensor,
        freed: tf.Tensor,
        frees: tf.Tensor,
        retargets: tf.Tensor,
        of_theta: tf.Tensor,
    ) -> tf.Tensor:
        def maps(part: Part, values: Sequence[tf.Tensor], _: Sequence[Slot]) -> list[Map]:
            if slack is None:
                # A budget does not depend on μ.
                return part.compression.maps(values, tf.constant(1.0), part.layouts)
            return part.compression.loosened(values, slack, part.layouts)

        def shifted(weight: tf.Tensor, theta: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
            # If weights were freed, those that are pulled go to λ/μ; those that are free have no multiplier.
            # Right after a C step, λ holds all of a removed weight, which w − λ/μ would count twice.
            offset = tf.where(freed, target, target - theta)
            has_none = tf.math.is_nan(offset) | (freed & ~retargets)
            offset = tf.where(has_none, tf.zeros([], offset.dtype), offset)
            return tf.where(of_theta, theta, thresholds.read(weight) - offset)

        def target(theta: tf.Tensor, shifted: tf.Tensor) -> tf.Tensor:
            pulled = new_target(theta, shifted, ratio)
            return tf.where(frees & (theta != 0), tf.constant(np.nan, theta.dtype), pulled)

        return self._update(maps, shifted, target, part, retargets)

    def _put_back(self) -> None:
        """Restore θ of the latest C step, from which λ/μ leads to the target."""
        if self._is_aside:
            for aside, theta in zip(self._aside, self.thetas, strict=True):
                theta.assign(aside)
            self._is_aside = False

    def _tighten(self) -> None:
        # A budget does not depend on μ.
        self.compress(self.thetas, tf.constant(1.0))

    def _put(self) -> None:
        in_place(lambda weight, theta: tf.cast(theta, weight.dtype), self.variables, self.thetas)

    def _moved(self) -> tf.Tensor:
        with tf.device(self.thetas[0].device):
            pairs = [(tf.convert_to_tensor(s.variable), tf.convert_to_tensor(s.theta)) for s in self.slots]
            away, kept = tf.unstack(_halves_of_kept(pairs))
            return tf.sqrt(tf.math.divide_no_nan(away, kept))


def _pulls_to_looser(reach: Reach) -> bool:
    return bool(reach.slack) and not reach.frees


def _of_kept(weight: tf.Tensor, theta: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return w − θ where θ is not zero, and θ."""
    return tf.where(theta != 0, weight - theta, tf.zeros([], theta.dtype)), theta


_halves_of_kept = halves_of_squares(2, _of_kept)
