"""Costs of the sum of magnitudes."""

from collections.abc import Sequence

import tensorflow as tf

from lc_keras.arguments import non_negative
from lc_keras.costs import thresholds
from lc_keras.costs.compression import Map, axes_of
from lc_keras.costs.grouped import Grouped
from lc_keras.costs.groups import Groups


class L1Constraint(Grouped):
    r"""The sum of the magnitudes is bounded: $\lVert \theta \rVert_1 \le r$.

    The C step projects on the ℓ1 ball: $\theta_g = (1 - \tau/m_g)_+ v_g$ with the τ ≥ 0 that brings the sum
    of magnitudes of all tensors together down to $r$.

    Args:
        radius: Float r ≥ 0.
        groups: `Weights()`, `Neurons()` or `Blocks(shape)`. Defaults to `Weights()`.

    Raises:
        TypeError: If `radius` or `groups` is of another type.
        ValueError: If `radius` is negative or not finite.

    Example:

    >>> L1Constraint(radius=2.0).c_step([tf.constant([3.0, -1.0])], mu=1.0)[0].numpy()
    array([2., 0.], dtype=float32)
    """

    has_budget = True

    def __init__(self, radius: float, groups: Groups | None = None) -> None:
        super().__init__(groups)
        self.radius = non_negative("radius", radius)

    def maps(
        self,
        weights: Sequence[tf.Tensor],
        mu: float | tf.Tensor,
        output_axes: Sequence[Sequence[int]] | None = None,
    ) -> list[Map]:
        output_axes = axes_of(output_axes, weights)
        measured = self._measure(weights, output_axes)
        tau = thresholds.l1_ball_threshold(measured, self.radius)
        return self._soft(tau, measured, output_axes)

    def get_config(self) -> dict[str, object]:
        return {"radius": self.radius, "groups": self.groups}


class L1Penalty(Grouped):
    r"""The sum of the magnitudes costs α each unit: $C(\theta) = \alpha \lVert \theta \rVert_1$.

    The C step is $\theta_g = (1 - \tau/m_g)_+ v_g$ with $\tau = \alpha/\mu$.

    Args:
        alpha: Float α ≥ 0.
        groups: `Weights()`, `Neurons()` or `Blocks(shape)`. Defaults to `Weights()`.

    Raises:
        TypeError: If `alpha` or `groups` is of another type.
        ValueError: If `alpha` is negative or not finite.

    Example:

    >>> L1Penalty(alpha=1.0).c_step([tf.constant([3.0, -0.5])], mu=1.0)[0].numpy()
    array([2., 0.], dtype=float32)
    """

    def __init__(self, alpha: float, groups: Groups | None = None) -> None:
        super().__init__(groups)
        self.alpha = non_negative("alpha", alpha)

    def maps(
        self,
        weights: Sequence[tf.Tensor],
        mu: float | tf.Tensor,
        output_axes: Sequence[Sequence[int]] | None = None,
    ) -> list[Map]:
        output_axes = axes_of(output_axes, weights)
        measured = self._measure(weights, output_axes)
        return self._soft(self.alpha / tf.cast(mu, tf.float64), measured, output_axes)

    def get_config(self) -> dict[str, object]:
        return {"alpha": self.alpha, "groups": self.groups}
