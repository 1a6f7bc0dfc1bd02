"""Several Lagrangians as one, for a run whose costs are trained in different ways."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from lc_keras.algorithm.beside import Reach
from lc_keras.algorithm.graphs import Arrays, Part
from lc_keras.algorithm.lagrangian import CStep, Lagrangian
from lc_keras.algorithm.shadows import Shadow
from lc_keras.costs import thresholds


class TogetherLagrangian(Lagrangian):
    """Run the C steps of several Lagrangians, each with its own weights and its own reach.

    Where other Lagrangians take a `Reach`, this takes a list of them, one for each, or one for all.

    Args:
        parts: List of `Lagrangian`s with a pull beside the optimizer. The first is asked how far weights
            moved.
    """

    def __init__(self, parts: Sequence[Lagrangian]) -> None:
        self._each = list(parts)
        shared = [shared for part in parts for shared in part.shared]
        theta = Shadow.joined([part.shadow for part in parts])
        targets = [target for part in parts for target in part.targets]
        arrays = Arrays(theta.variables, theta.copies, targets, tf.Variable(0.0, trainable=False))
        self._begin(shared, [part for each in parts for part, _ in each._parts], theta, arrays)

    def _hold(self, parts: Sequence[Part], arrays: Arrays, pulls: bool = True) -> None:
        super()._hold(parts, arrays, pulls=False)
        if pulls:
            # Each has its own pulls.
            self._parts = [pair for each in self._each for pair in each._parts]
            self.slots = [slot for each in self._each for slot in each.slots]

    @property
    def is_loose(self) -> bool:  # type: ignore[override]  # of these parts
        return any(part.is_loose for part in self._each)

    def saved(self) -> dict[str, list[tf.Variable]]:
        named = enumerate(part.saved() for part in self._each)
        return {f"{name}_{i}": variables for i, saved in named for name, variables in saved.items()}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "each": [part.state() for part in self._each]}

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        for part, of_part in zip(self._each, state["each"], strict=True):
            part.load(of_part)

    def direct_compression(self, mu: float, reach: Any = None) -> CStep:
        return self._if_finite(lambda part, own: part.direct_compression(mu, own), reach)

    def c_step(self, mu: float, next_mu: float, reach: Any = None) -> CStep:
        return self._if_finite(lambda part, own: part.c_step(mu, next_mu, own), reach)

    def latest(self, mu: float) -> CStep:
        return self._all(lambda part, _: part.latest(mu))

    def project(self) -> CStep:
        """Bring θ of all parts under their budgets."""
        found = [part.project().finite for part in self._each if part.is_loose]
        return self._found(tf.concat(found, 0))

    def moved(self) -> float:
        """Return how far kept weights of the first part have moved, as `ReachingLagrangian.moved` does."""
        return self._each[0].moved()

    def release(self) -> None:
        for part in self._each:
            part.release()

    def _if_finite(self, run: Callable[[Lagrangian, Reach | None], CStep], reach: Any) -> CStep:
        """Run a step of all parts, or of none if weights of one are not finite."""
        finite = thresholds.finite([tf.convert_to_tensor(v) for v in self.variables])
        return self._all(run, reach) if np.all(finite) else self._found(finite, self.is_loose)

    def _all(self, run: Callable[[Lagrangian, Reach | None], CStep], reach: Any = None) -> CStep:
        reaches = reach if isinstance(reach, list) else [reach] * len(self._each)
        found = [run(*pair).finite for pair in zip(self._each, reaches, strict=True)]
        return self._found(tf.concat(found, 0), self.is_loose)
