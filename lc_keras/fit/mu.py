"""How strongly the L steps of a run pull: μ of each, and the scales of its variables."""

import itertools
from typing import Literal

import numpy as np

from lc_keras.algorithm import schedules
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.fit.optimizers import LearningRateLimit, relative_gradients
from lc_keras.fit.plan import Plan

# How long an epoch is taken to be until the first one has ended, if Keras does not know.
_UNKNOWN_BATCHES = 100
# How many times the gap of neurons counts: a budget of these takes a smaller part of the norm, and what
# is left of one in front of a batch normalisation moves the statistics of the layers that follow.
_NEARER = 10

Mu = Literal["auto"] | schedules.Schedule


def is_automatic(mu: Mu) -> bool:
    """Whether `mu` is to be found from what the run shows."""
    return isinstance(mu, str) and mu == "auto"


class Pull:
    """Say how μ and the scales of a run go on.

    Args:
        mu: `"auto"` or a schedule.
        plan: `Plan` of the run.
        lagrangian: `Lagrangian` of the weights.
        rate: `LearningRateLimit` of the optimizers that train them.
    """

    def __init__(self, mu: Mu, plan: Plan, lagrangian: Lagrangian, rate: LearningRateLimit) -> None:
        self._plan = plan
        self._lagrangian = lagrangian
        self._rate = rate
        self._making_neurons = np.array(
            [part.compression.needs_units for part in lagrangian.shared for _ in part.variables]
        )
        self._automatic = schedules.Automatic(plan.steps) if is_automatic(mu) else None
        self._mus = [] if self._automatic else schedules.values(mu, plan.steps)

    @property
    def given(self) -> str | list[float]:
        """What `mu` comes to in this run."""
        return "auto" if self._automatic else self._mus

    def state(self) -> list[float] | None:
        """Return what `load` needs in another run of the same plan, as JSON can hold it."""
        return self._automatic.state() if self._automatic else None

    def load(self, state: list[float] | None) -> None:
        """Go on from a `state`."""
        if self._automatic and state:
            self._automatic.load(state)

    def look_ahead(self) -> None:
        """Notes how the schedules of learning rates go on."""
        self._rate.look_ahead(self._all_batches)

    def mu(self, step: int, gap: float) -> float:
        """μ of an L step.

        Args:
            step: Int, the index of the L step; the indices must not decrease.
            gap: Float, the latest ‖w − θ‖ / ‖w‖.

        Returns:
            Float > 0.
        """
        if not self._automatic:
            return self._mus[step]
        if self._making_neurons.any():
            gap *= _NEARER
        return self._automatic(step, self._rate.effective(), self._all_batches, gap, self._rate.guessed)

    def scales(self, step: int) -> np.ndarray | None:
        """How much the distance to θ counts in each variable.

        Args:
            step: Int, the index of the L step.

        Returns:
            Array of floats, or `None`: as before.
        """
        making = list(itertools.compress(self._lagrangian.variables, self._making_neurons))
        if not (self._automatic and making):
            return None
        gradients = relative_gradients(self._rate.updating[0], making)
        if gradients is None:
            return None
        scales = np.array([slot.scale.numpy() for slot in self._lagrangian.slots])
        scales[self._making_neurons] = self._automatic.scales(step, scales[self._making_neurons], gradients)
        return scales

    def portions(self, step: int, mu: float) -> np.ndarray | None:
        r"""How much of their step the multipliers take when an L step ends.

        Neurons are few and trade places many at a time: had the loss no time to follow, a whole step would
        bring back at each C step those that the one before removed. What makes neurons takes the part of the
        gap that the L step had time to close, $1 - e^{-\eta_\text{eff}\,\mu\,T}$ in T batches.

        Args:
            step: Int, the index of the L step that ends.
            mu: Float > 0, its μ.

        Returns:
            Array of floats, or `None`: all of it.
        """
        if not (self._automatic and self._making_neurons.any()):
            return None
        epochs = self._plan.length if step else self._plan.first_length
        closed = -np.expm1(-self._rate.effective() * mu * epochs * self._batches_an_epoch)
        return np.where(self._making_neurons, closed, 1.0)

    @property
    def _all_batches(self) -> float:
        return self._plan.epochs * self._batches_an_epoch

    @property
    def _batches_an_epoch(self) -> int:
        return self._plan.batches or _UNKNOWN_BATCHES
