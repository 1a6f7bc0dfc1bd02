"""The C step of costs along which weights can move freely, such as low rank."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.beside import PullBeside, Reach
from lc_keras.algorithm.lagrangian import CStep, Lagrangian, Slot
from lc_keras.algorithm.passes import in_place
from lc_keras.algorithm.tasks import SharedCost
from lc_keras.costs.compression import Map
from lc_keras.internals.tensorflow import compiled


class SlidingLagrangian(Lagrangian):
    r"""Keep θ, and put the weights onto it at each C step: $w \leftarrow \theta \leftarrow \Pi(w)$.

    Matrices of low rank are a smooth set, along which most of what the loss asks for leads. A pull to one θ
    holds weights back along the set, too. So the L step leaves them free, and the C step takes back what led
    away from the set. It is projected gradient descent with several batches to a projection (Jain, Meka &
    Dhillon, Guaranteed rank minimization via singular value projection, NeurIPS 2010).

    Args:
        shared: List of `SharedCost`, whose costs are smooth.
        multipliers: Ignored: there are none.
    """

    def __init__(self, shared: Sequence[SharedCost], multipliers: bool = False) -> None:
        super().__init__(shared, multipliers=False)
        self._project = compiled(self._project)  # type: ignore[method-assign]  # compiled
        self._slide = compiled(self._slide)  # type: ignore[method-assign]  # compiled

    def direct_compression(self, mu: float, reach: Reach | None = None) -> CStep:
        part = reach.part if reach else self.mu
        return self._found(self._project(tf.constant(part)))

    def c_step(self, mu: float, next_mu: float, reach: Reach | None = None) -> CStep:
        found = self.direct_compression(mu, reach)
        if np.all(found.finite):
            self._slide()
        return found

    def _slot(self, variable: keras.Variable, theta: tf.Variable, target: tf.Variable) -> Slot:
        return Slot(variable, theta, target, PullBeside(target, self._strength))

    def _project(self, part: tf.Tensor) -> tf.Tensor:
        def maps(part: SharedCost, values: Sequence[tf.Tensor], _: Sequence[Slot]) -> list[Map]:
            return part.compression.maps(values, tf.constant(1.0), part.layouts)

        return self._update(maps, lambda w, theta, t: w, lambda theta, v: theta, part)

    def _slide(self) -> None:
        in_place(lambda weight, theta: tf.cast(theta, weight.dtype), self.variables, self.thetas)
