"""Weights that are few and have few values."""

from collections.abc import Callable

import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import Layouts, Map, Tensors
from lc_keras.costs.values import Values

_ROUNDS = 3


def sparse_values(
    values: Values, largest: Callable[[Tensors], list[Map]], weights: Tensors, layouts: Layouts
) -> list[Map]:
    r"""Return the C step for weights that are few and have few values, under one budget.

    Keeping a weight v, with q(v) the nearest of the values, comes nearer by $v^2 - (v - q(v))^2$ than
    removing it, so the weights with the largest such gains are kept. Values are then learned anew for these,
    and so on while that gains. The first values are the better of those learned from all weights and those
    learned from the largest ones, so that the result is never further away than pruning and quantising one
    after the other, in either order.

    Args:
        values: `Values`.
        largest: Given a magnitude for each weight, returns maps that keep the largest within the budget.
        weights: Sequence of floating tensors of static shapes.
        layouts: Sequence of `Layout`, one for each tensor.

    Returns:
        List of callables, as from `Compression.maps`. Meanwhile, two copies of the weights are made.
    """
    wide = [thresholds.read(weight) for weight in weights]

    def kept(magnitudes: Tensors) -> Tensors:
        maps = zip(largest(magnitudes), magnitudes, wide, strict=True)
        return [tf.where(keep(m) != 0, v, tf.zeros_like(v)) for keep, m, v in maps]

    def kept_with(learned: Tensors) -> Tensors:
        return kept(
            [_gain(v, values.nearest(found, v.dtype)(v)) for v, found in zip(wide, learned, strict=True)]
        )

    def distance(kept: Tensors, learned: Tensors) -> tf.Tensor:
        return thresholds.l2_norm(
            [
                tf.where(k != 0, v - values.nearest(found, v.dtype)(v), v)
                for k, v, found in zip(kept, wide, learned, strict=True)
            ]
        )

    def learned_from(kept: Tensors) -> Tensors:
        return values.learn(kept, layouts, sparse=True)

    def better(learned: Tensors, best: Tensors, least: tf.Tensor) -> tuple[Tensors, tf.Tensor]:
        away = distance(kept_with(learned), learned)
        chosen = [tf.where(away < least, new, old) for new, old in zip(learned, best, strict=True)]
        return chosen, tf.minimum(away, least)

    def once_more(
        i: tf.Tensor, best: Tensors, least: tf.Tensor, _: tf.Tensor
    ) -> tuple[tf.Tensor, Tensors, tf.Tensor, tf.Tensor]:
        return (i + 1, *better(learned_from(kept_with(best)), best, least), least)

    first, never = learned_from(kept(wide)), tf.constant(float("inf"), tf.float64)
    start = better(values.learn(wide, layouts), *better(first, first, never))
    _, learned, _, _ = tf.while_loop(
        lambda i, best, least, before: least < before,
        once_more,
        (0, *start, never),
        maximum_iterations=_ROUNDS,
    )

    def of(kept: tf.Tensor, found: tf.Tensor) -> Map:
        nearest = values.nearest(found, kept.dtype)

        def theta(value: tf.Tensor) -> tf.Tensor:
            wide = tf.cast(value, kept.dtype)
            theta = tf.where(kept != 0, nearest(wide), tf.zeros_like(wide))
            return tf.cast(theta, value.dtype)

        return theta

    return [of(*pair) for pair in zip(kept_with(learned), learned, strict=True)]


def _gain(value: tf.Tensor, nearest: tf.Tensor) -> tf.Tensor:
    r"""Return $\sqrt{v^2 - (v - q)^2}$, 0 where that is negative."""
    # As a product of roots, which does not overflow.
    ratio = tf.nn.relu(2 * tf.math.divide_no_nan(value, nearest) - 1)
    return tf.abs(nearest) * tf.sqrt(ratio)
