"""The augmented Lagrangian of a run whose pull is beside the optimizer, and reaches more and more weights."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.beside import PullBeside, Reach
from lc_keras.algorithm.lagrangian import CStep, Lagrangian, Slot
from lc_keras.algorithm.shadows import Shadow, read
from lc_keras.algorithm.tasks import SharedCost
from lc_keras.costs.compression import Map
from lc_keras.internals import compiled


class ReachingLagrangian(Lagrangian):
    r"""Keep θ and λ as a `Lagrangian` does, with a pull that a `Reach` describes.

    The C step solves for the budget of the reach, which may be looser. What it removes is pulled; what it
    keeps is left free, if the reach says so, and has no multiplier then. θ is under the budget itself after
    `project`, which is for whoever shows the model.

    Args:
        shared: List of `SharedCost`, whose costs can be loosened.
        multipliers: Bool, default `True`.
    """

    _nowhere = math.nan

    def __init__(self, shared: Sequence[SharedCost], multipliers: bool = True) -> None:
        super().__init__(shared, multipliers)
        self._reach = Reach(0.0)
        self._reaching = compiled(self._reaching)  # type: ignore[method-assign]  # compiled
        self._project = compiled(self._project)  # type: ignore[method-assign]  # compiled
        self._moved = compiled(self._moved)  # type: ignore[method-assign]  # compiled
        self._tighten = compiled(self._tighten)  # type: ignore[method-assign]  # compiled

    @property
    def is_loose(self) -> bool:
        """Tell if θ may keep more than the budget, or other values than the weights have now."""
        return self._reach.slack > 0 or self._reach.frees

    def state(self) -> dict[str, Any]:
        return {**super().state(), "reach": asdict(self._reach)}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        self._reach = Reach(**state["reach"])

    def direct_compression(self, mu: float, reach: Reach | None = None) -> CStep:
        # What was said of λ is over.
        before, self._reach = self._reach, Reach(0.0)
        return self._solve(reach or before, 0.0)

    def c_step(self, mu: float, next_mu: float, reach: Reach | None = None) -> CStep:
        reach = reach or self._reach
        return self._solve(reach, reach.ratio)

    def latest(self, mu: float) -> CStep:
        return self.project()

    def project(self) -> CStep:
        r"""Bring θ under the budget itself, $\theta \leftarrow \Pi(w - \lambda/\mu)$, and leave the targets.

        Returns:
            `CStep`. If weights are not finite, θ of the latest C step is brought under the budget.
        """
        found = self._project(tf.constant(self._reach.frees))
        if not np.all(found.finite):
            self._tighten()
        return found

    def moved(self) -> float:
        r"""Return how far the weights that the budget keeps have moved since the latest C step.

        Returns:
            Float, $\lVert w - \theta \rVert / \lVert \theta \rVert$ over the κ largest of θ.
        """
        return float(self._moved().numpy())

    def _made_target(self, variables: Sequence[keras.Variable]) -> Shadow:
        return Shadow(variables, "target", widen=True)

    def _slot(self, variable: keras.Variable, theta: tf.Variable, target: tf.Variable) -> Slot:
        return Slot(variable, theta, target, PullBeside(target, self._strength))

    def _solve(self, reach: Reach, ratio: float) -> CStep:
        freed, self._reach = self._reach.frees, reach
        return self._reaching(
            tf.constant(ratio if self._multipliers else 0.0, tf.float64),
            tf.constant(reach.slack, tf.float32),
            tf.constant(reach.part, tf.float32),
            tf.constant(freed),
            tf.constant(reach.frees),
        )

    def _reaching(
        self, ratio: tf.Tensor, slack: tf.Tensor, part: tf.Tensor, freed: tf.Tensor, frees: tf.Tensor
    ) -> CStep:
        def target(theta: tf.Tensor, shifted: tf.Tensor) -> tf.Tensor:
            pulled = theta + tf.cast(ratio, theta.dtype) * (theta - shifted)
            return tf.where(frees & (theta != 0), tf.constant(np.nan, theta.dtype), pulled)

        return self._if_finite(lambda: self._update(_loosened(slack), _offset(freed), target), part)

    def _project(self, freed: tf.Tensor) -> CStep:
        return self._if_finite(lambda: self._update(_loosened(tf.constant(0.0)), _offset(freed), None))

    def _tighten(self) -> None:
        # A budget does not depend on μ.
        self.compress(self.thetas, tf.constant(1.0))

    def _moved(self) -> tf.Tensor:
        moved = norm = tf.constant(0.0, tf.float64)
        for part, slots in self._parts:
            maps = _loosened(tf.constant(0.0))(part, [read(slot.theta) for slot in slots])
            for slot, solve in zip(slots, maps, strict=True):
                with tf.device(slot.variable.value.device), tf.control_dependencies([moved, norm]):
                    theta = solve(read(slot.theta))
                    away = tf.where(theta != 0, read(slot.variable) - theta, tf.zeros([], theta.dtype))
                    moved += tf.cast(tf.nn.l2_loss(away), tf.float64)
                    norm += tf.cast(tf.nn.l2_loss(theta), tf.float64)
        return tf.sqrt(tf.math.divide_no_nan(moved, norm))


def _loosened(slack: tf.Tensor) -> Any:
    def maps(part: SharedCost, values: Sequence[tf.Tensor]) -> list[Map]:
        return part.compression.loosened(values, slack, part.layouts)

    return maps


def _offset(freed: tf.Tensor) -> Any:
    def offset(slot: Slot) -> tf.Tensor:
        # Where weights were freed, those that are pulled go to λ/μ itself; what is free has no multiplier.
        offset = tf.where(freed, slot.target, slot.target - slot.theta)
        return tf.where(tf.math.is_nan(offset), tf.zeros([], offset.dtype), offset)

    return offset
