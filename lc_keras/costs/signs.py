"""Signs times one learned magnitude, with or without zero."""

import dataclasses

import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import Layouts, Tensors, check_number
from lc_keras.costs.kmeans import Bins, counted, range_of
from lc_keras.costs.values import Values

# Rounds of averaging what is above half of the last mean, which has mostly settled after a few.
_ROUNDS = 20


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Binary(Values):
    r"""Each weight is plus or minus one learned magnitude: $\theta_i \in \{-a, a\}$.

    The C step takes the sign of each weight and $a = \frac{1}{N} \sum_i |v_i|$, over all tensors together
    (Rastegari et al., XNOR-Net, ECCV 2016; Carreira-Perpiñán & Idelbayev, Model compression as constrained
    optimization, with application to neural nets, part II: quantization, arXiv:1707.04319).

    Example:

    >>> Binary().c_step([tf.constant([3.0, -1.0])], mu=1.0)[0].numpy()
    array([ 2., -2.], dtype=float32)
    """

    def learn(self, weights: Tensors, layouts: Layouts, sparse: bool = False) -> list[tf.Tensor]:
        a = _mean_above(weights, tf.constant(0.0 if sparse else -1.0, tf.float64))
        return [tf.stack([-a, a])] * len(weights)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Ternary(Values):
    r"""Each weight is zero, or plus or minus one learned magnitude: $\theta_i \in \{-a, 0, a\}$.

    The j largest magnitudes become their mean $a$, where j maximises $\sum_{i \le j} |v_{(i)}| / \sqrt{j}$,
    over all tensors together (Li, Zhang & Liu, Ternary weight networks, 2016; Carreira-Perpiñán & Idelbayev,
    Model compression as constrained optimization, with application to neural nets, part II: quantization,
    arXiv:1707.04319). A histogram gives a first j; the magnitudes above $a/2$ are then averaged anew until
    they are exactly those that are kept.

    Example:

    >>> Ternary().c_step([tf.constant([3.0, -2.0, 0.5])], mu=1.0)[0].numpy()
    array([ 2.5, -2.5,  0. ], dtype=float32)
    """

    def check(self, layouts: Layouts) -> None:
        check_number(sum(layout.size for layout in layouts))

    def learn(self, weights: Tensors, layouts: Layouts, sparse: bool = False) -> list[tf.Tensor]:
        dtype = thresholds.common_dtype(weights)
        low, high = range_of(weights, dtype)
        bins = Bins.between(tf.zeros([], dtype), tf.maximum(high, -low))
        counts = counted(weights, bins, lambda x: bins.place(tf.abs(x)))
        number, total = (tf.cumsum(x, reverse=True) for x in (counts, counts * bins.centres()))
        best = tf.argmax(total / tf.sqrt(tf.maximum(number, 1)), output_type=tf.int32)
        least = tf.cast(best, tf.float64) * bins.width

        def go_on(a: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
            return a != before

        a = _mean_above(weights, least)
        a, _ = tf.while_loop(
            go_on, lambda a, _: (_mean_above(weights, a / 2), a), (a, -a), maximum_iterations=_ROUNDS
        )
        return [tf.stack([-a, tf.zeros_like(a), a])] * len(weights)


def _mean_above(weights: Tensors, least: tf.Tensor) -> tf.Tensor:
    """Return the mean of the magnitudes above a bound, in double precision; 0 if there are none."""

    def update(sums: tf.Tensor, chunk: tf.Tensor) -> tf.Tensor:
        magnitudes = tf.abs(tf.cast(chunk, tf.float64))
        above = tf.cast(magnitudes > least, tf.float64)
        return sums + tf.stack([tf.reduce_sum(above * magnitudes), tf.reduce_sum(above)])

    total, number = tf.unstack(thresholds.fold(weights, tf.zeros([2], tf.float64), update))
    return total / tf.maximum(number, 1)
