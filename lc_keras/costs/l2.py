"""Costs of the norm of the weights. They make weights smaller and prune nothing."""

import dataclasses

import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import NON_NEGATIVE, Compression, Layouts, Map, Tensors


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class L2Constraint(Compression):
    r"""The norm of the weights is bounded: $\lVert \theta \rVert_2 \le r$.

    The C step is $\theta = \min(1, r / \lVert v \rVert_2)\, v$, with the norm over all tensors together.

    Args:
        radius: Float r ≥ 0.

    Raises:
        TypeError: If `radius` is not a number.
        ValueError: If `radius` is negative or not finite.

    Example:

    >>> L2Constraint(radius=1.0).c_step([tf.constant([3.0]), tf.constant([4.0])], mu=1.0)[1].numpy()
    array([0.8], dtype=float32)
    """

    radius: float = dataclasses.field(metadata=NON_NEGATIVE)

    has_budget = can_loosen = shrinks = True

    def maps(self, weights: Tensors, mu: float | tf.Tensor, layouts: Layouts) -> list[Map]:
        return self.loosened(weights, tf.constant(0.0), layouts)

    def loosened(self, weights: Tensors, slack: tf.Tensor, layouts: Layouts) -> list[Map]:
        norm, slack = thresholds.l2_norm(weights), tf.cast(slack, tf.float64)
        inside = norm <= self.radius
        factor = self.radius / tf.where(inside, tf.ones_like(norm), norm)
        return [_scale(slack + (1 - slack) * factor, inside)] * len(weights)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class L2Penalty(Compression):
    r"""The cost is α times the squared norm: $C(\theta) = \alpha \lVert \theta \rVert_2^2$.

    The C step is $\theta = \frac{\mu}{\mu + 2\alpha}\, v$.

    Args:
        alpha: Float α ≥ 0.

    Raises:
        TypeError: If `alpha` is not a number.
        ValueError: If `alpha` is negative or not finite.

    Example:

    >>> L2Penalty(alpha=0.5).c_step([tf.constant([4.0])], mu=1.0)[0].numpy()
    array([2.], dtype=float32)
    """

    alpha: float = dataclasses.field(metadata=NON_NEGATIVE)

    def maps(self, weights: Tensors, mu: float | tf.Tensor, layouts: Layouts) -> list[Map]:
        mu = tf.cast(mu, tf.float64)
        return [_scale(mu / (mu + 2 * self.alpha), tf.constant(self.alpha == 0))] * len(weights)


def _scale(factor: tf.Tensor, unchanged: tf.Tensor) -> Map:
    def theta(value: tf.Tensor) -> tf.Tensor:
        wide = thresholds.read(value)
        return tf.where(unchanged, value, tf.cast(wide * tf.cast(factor, wide.dtype), value.dtype))

    return theta
