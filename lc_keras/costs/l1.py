"""Costs of the sum of magnitudes."""

import dataclasses

import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import NON_NEGATIVE, Layouts, Map, Tensors, check_number
from lc_keras.costs.grouped import Grouped
from lc_keras.costs.groups import WEIGHTS, Groups


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class L1Constraint(Grouped):
    r"""The sum of the magnitudes is bounded: $\lVert \theta \rVert_1 \le r$.

    The C step projects onto the ℓ1 ball: $\theta_g = (1 - \tau/m_g)_+ v_g$ with the τ ≥ 0 that brings the sum
    of magnitudes over all tensors together down to $r$ (Duchi, Shalev-Shwartz, Singer & Chandra, Efficient
    projections onto the ℓ1-ball for learning in high dimensions, ICML 2008). For groups, it is the bound of
    the group lasso (Yuan & Lin, Model selection and estimation in regression with grouped variables, JRSS-B
    2006).

    Args:
        radius: Float r ≥ 0.
        groups: `Weights()`, `Neurons()` or `Blocks(shape)`. Defaults to `Weights()`.

    Raises:
        TypeError: If `radius` or `groups` is of the wrong type.
        ValueError: If `radius` is negative or not finite.

    Example:

    >>> L1Constraint(radius=2.0).c_step([tf.constant([3.0, -1.0])], mu=1.0)[0].numpy()
    array([2., 0.], dtype=float32)
    """

    radius: float = dataclasses.field(metadata=NON_NEGATIVE)
    groups: Groups = WEIGHTS

    has_budget = can_loosen = shrinks = True

    def check(self, layouts: Layouts) -> None:
        check_number(sum(map(self.groups.count, layouts)))

    def maps(self, weights: Tensors, mu: float | tf.Tensor, layouts: Layouts) -> list[Map]:
        return self.loosened(weights, tf.constant(0.0), layouts)

    def loosened(self, weights: Tensors, slack: tf.Tensor, layouts: Layouts) -> list[Map]:
        magnitudes = self._magnitudes(weights, layouts)
        tau = thresholds.l1_ball_threshold(magnitudes, self.radius)
        return self._soft((1 - tf.cast(slack, tau.dtype)) * tau, magnitudes, layouts)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class L1Penalty(Grouped):
    r"""The cost is α times the sum of the magnitudes: $C(\theta) = \alpha \lVert \theta \rVert_1$.

    The C step is $\theta_g = (1 - \tau/m_g)_+ v_g$ with $\tau = \alpha/\mu$. For groups, it is the penalty of
    the group lasso (Yuan & Lin, Model selection and estimation in regression with grouped variables, JRSS-B
    2006), with each group counting alike, whatever its size.

    Args:
        alpha: Float α ≥ 0.
        groups: `Weights()`, `Neurons()` or `Blocks(shape)`. Defaults to `Weights()`.

    Raises:
        TypeError: If `alpha` or `groups` is of the wrong type.
        ValueError: If `alpha` is negative or not finite.

    Example:

    >>> L1Penalty(alpha=1.0).c_step([tf.constant([3.0, -0.5])], mu=1.0)[0].numpy()
    array([2., 0.], dtype=float32)
    """

    alpha: float = dataclasses.field(metadata=NON_NEGATIVE)
    groups: Groups = WEIGHTS

    def maps(self, weights: Tensors, mu: float | tf.Tensor, layouts: Layouts) -> list[Map]:
        magnitudes = self._magnitudes(weights, layouts)
        return self._soft(self.alpha / tf.cast(mu, tf.float64), magnitudes, layouts)
