"""The C step for few values, which remembers where the optimizer would have carried the weights."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.beside import PullBeside, Reach
from lc_keras.algorithm.graphs import Part
from lc_keras.algorithm.lagrangian import CStep, Lagrangian, Slot
from lc_keras.algorithm.passes import distances, in_place
from lc_keras.algorithm.shadows import Shadow
from lc_keras.costs.compression import Map
from lc_keras.costs.thresholds import read

# The upper limit of 1 / (1 − g²).
_MOST = 3.0
# The part of r that counts, as a multiple of ‖v − θ‖ / ‖v‖.
_PER_DISTANCE = 1.5


class CarryingLagrangian(Lagrangian):
    r"""Keep θ, and the weights v as the optimizer alone would have carried them.

    A weight on one of two values that are far apart seldom leaves it: an L step moves it little, and the move
    is pulled back. So the move is remembered. The L step pulls w to θ, and the C step is

    $$v \leftarrow v + r (w - \theta), \qquad \theta \leftarrow \Pi(v),$$

    or, with r = 0, that of w itself. If there are many values, one is always near: then v is what trains, and
    r, which stands for many batches at once, would carry it too far. So r is multiplied by
    $1.5\,\lVert v - \theta \rVert / \lVert v \rVert$, but by at most 1, and never falls below the r of four
    batches: with two values it counts nearly whole, with sixteen about a fifth. The values are learned from
    w, whose equal weights were moved together. Here λ/μ is $\theta - v$, as it is if μ stays the same; but
    the pull leaves it out, and it adds up from L step to L step. If w stays at θ, this is BinaryConnect
    (Courbariaux, Bengio & David, NeurIPS 2015).

    The fewer the values, the smaller is Π(w): its norm is $\sqrt{1 - g^2} \lVert w \rVert$ if the values are
    means, with g the gap. So θ begins as $\Pi(w) / (1 - g^2)^2$; a sum is not learned from w, and its v
    begins larger by the same factor. With one power less, θ would be as large along w as w itself (Vargaftik
    et al., DRIVE: one-bit distributed mean estimation, NeurIPS 2021); with both powers, two values had a
    lower error on held-out images with LeNet-300.

    Args:
        shared: List of `SharedCost`, whose costs have few values.
        multipliers: `True`.
    """

    _in_graphs = (*Lagrangian._in_graphs, "_carry", "_enlarge")

    def direct_compression(self, mu: float, reach: Reach | None = None) -> CStep:
        found = self._carried(Reach(reach.part if reach else self.mu))
        if np.all(found.finite):
            self._enlarge()
            found = self._found(found.finite)
        return found

    def c_step(self, mu: float, next_mu: float, reach: Reach | None = None) -> CStep:
        return self._carried(reach or Reach(self.mu))

    def _made_target(self, variables: Sequence[keras.Variable]) -> Shadow:
        # v is kept where others keep targets.
        return Shadow(variables, "carried", widen=True)

    def _pull(self, variable: keras.Variable, theta: tf.Variable, target: tf.Variable) -> PullBeside:
        return PullBeside(theta, self._strength)

    def _carried(self, reach: Reach) -> CStep:
        return self._found(self._carry(*map(tf.constant, (reach.part, reach.ratio, reach.least))))

    def _carry(self, part: tf.Tensor, ratio: tf.Tensor, least: tf.Tensor) -> tf.Tensor:
        with tf.device(self.thetas[0].device):
            away, all_of_it, _ = tf.unstack(distances(self.targets, self.thetas))
        distance = tf.sqrt(tf.math.divide_no_nan(away, all_of_it))
        ratio = ratio * tf.clip_by_value(_PER_DISTANCE * tf.cast(distance, ratio.dtype), least, 1.0)

        def maps(part: Part, values: Sequence[tf.Tensor], slots: Sequence[Slot]) -> list[Map]:
            if part.compression.maps_others:
                values = [read(slot.variable) for slot in slots]
            return part.compression.maps(values, tf.constant(1.0), part.layouts)

        def carried(weight: tf.Tensor, theta: tf.Tensor, v: tf.Tensor) -> tf.Tensor:
            # In half precision, weights are at best next to θ.
            now, there = read(weight), tf.cast(tf.cast(theta, weight.dtype), v.dtype)
            return tf.where(ratio == 0, now, v + tf.cast(ratio, v.dtype) * (now - there))

        return self._update(maps, carried, lambda theta, v: v, part)

    def _enlarge(self) -> None:
        for part, slots in self._parts:
            away, all_of_it, _ = tf.unstack(distances([s.variable for s in slots], [s.theta for s in slots]))
            # 1 − g² of the weights that share their values.
            left = tf.maximum(1 - tf.math.divide_no_nan(away, all_of_it), 1 / _MOST)

            def enlarge(array: tf.Tensor, left: tf.Tensor = left) -> tf.Tensor:
                return array / tf.cast(left**2, array.dtype)

            in_place(enlarge, [slot.theta for slot in slots])
            if not part.compression.maps_others:
                in_place(enlarge, [slot.target for slot in slots])
        # Given values stay what they are.
        self.compress(self.thetas, tf.constant(1.0))
