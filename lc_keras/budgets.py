r"""Which groups to keep where they do not cost the same.

Given magnitudes $m$, costs $c$ and a budget κ, the C step of an ℓ0 constraint asks for

$$\max_{z \in \{0, 1\}} \sum_g m_g^2 z_g \quad \text{such that} \quad \sum_g c_g z_g \le \kappa,$$

a knapsack. It is solved with a multiplier for the budget: groups are kept in the order of $m_g^2 / c_g$, until the
next one, $s$, no longer fits; what is left of the budget goes to those further down that fit. With the cost of all
groups alike this is the exact solution; else the energy kept falls short of the optimum by less than

$$m_s^2 \, \frac{\kappa - \sum_{g < s} c_g}{c_s} < m_s^2,$$

since cutting $s$ into pieces would give the bound of the relaxed problem. The budget is never exceeded. A minimum
for each layer is taken out of the budget first: the largest of the layer, whatever the others are.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from lc_keras import thresholds


@tf.autograph.experimental.do_not_convert
def choose(magnitudes: tf.Tensor, costs: np.ndarray, budget: float, parts: Sequence[tuple] = ()) -> tf.Tensor:
    """Which of some groups to keep, each with a cost of its own. They are sorted, $O(G \\log G)$ of G groups.

    Args:
        magnitudes: Vector of magnitudes.
        costs: Array of costs, whole numbers ≥ 0. What costs nothing is kept.
        budget: Number κ ≥ 0, at least what `parts` cost at most.
        parts: Sequence of pairs: the groups of a layer, as an array of their numbers, and how many of them are
            kept at least.

    Returns:
        bool vector.
    """
    count = len(costs)
    free = costs <= 0
    costs = np.where(free, 0, costs).astype("float64")
    scale = tf.constant(np.where(free, 0, np.where(free, 1, costs) ** -0.5), magnitudes.dtype)
    key = thresholds.magnitude_bits(magnitudes * scale, magnitudes.dtype)
    first = tf.constant(free)
    for groups, at_least in parts:
        if at_least:
            best = tf.gather(tf.constant(groups), tf.math.top_k(tf.gather(key, groups), at_least).indices)
            first |= tf.scatter_nd(best[:, None], tf.ones([at_least], tf.int32), [count]) > 0
    order = tf.math.top_k(tf.where(first, key.dtype.max, key), count).indices
    costs = tf.gather(tf.constant(costs), order)

    def fill(kept, _):
        left = budget - tf.reduce_sum(tf.where(kept, costs, 0))
        fits = ~kept & (costs <= left)
        more = fits & (tf.cumsum(tf.where(fits, costs, 0)) <= left)
        return kept | more, tf.reduce_any(more)

    # At first those in a row, from the first one on: the others wait until one of these does not fit.
    start = tf.cumsum(costs) <= budget
    kept, _ = tf.while_loop(lambda kept, more: more, fill, (start, tf.constant(True)))
    return tf.scatter_nd(order[:, None], tf.cast(kept, tf.int32), [count]) > 0


@tf.autograph.experimental.do_not_convert
def allocate(
    tensors: Sequence[tf.Tensor], prices: Sequence[float], budget: float, at_least: Sequence[int]
) -> list[tf.Tensor]:
    """How many elements of each tensor to keep, the largest ones, where those of a tensor cost the same.

    A radix search for the ratio at which the budget is spent, as `thresholds.kth_largest`, in $O(N)$.

    Args:
        tensors: Sequence of floating tensors of static shapes.
        prices: Sequence of whole numbers ≥ 0, what an element of each tensor costs.
        budget: Number κ, at least what `at_least` costs.
        at_least: Sequence of ints, how many elements of each tensor are kept at least.

    Returns:
        List of int32 scalars.
    """
    sizes = [int(t.shape.num_elements()) for t in tensors]
    priced = [i for i, price in enumerate(prices) if price > 0]
    counts = dict.fromkeys(range(len(tensors)))
    for i in set(counts) - set(priced):
        counts[i] = tf.constant(sizes[i])
    if not priced or sum(float(prices[i]) * sizes[i] for i in priced) <= budget:
        return [tf.constant(size) for size in sizes]
    dtype = thresholds.common_dtype(tensors)
    bits = tf.int32 if dtype == tf.float32 else tf.int64
    scales = {i: tf.constant(prices[i] ** -0.5, dtype) for i in priced}
    above, ties = dict.fromkeys(priced, tf.constant(0)), {}
    prefix, top = tf.constant(0, bits), bits.size * 8 - 16
    for low in range(top, -1, -16):
        counted, reached, spent = {}, {}, 0.0
        for i in priced:
            counted[i] = thresholds.histogram([tensors[i]], dtype, None if low == top else prefix, low, scales[i])
            reached[i] = above[i] + tf.cumsum(counted[i], reverse=True)
            spent += float(prices[i]) * tf.cast(tf.maximum(reached[i], at_least[i]), tf.float64)
        # The highest digit down to which all of them would cost too much.
        digit = tf.reduce_sum(tf.cast(spent > budget, tf.int32)) - 1
        here = tf.range(tf.size(spent)) == digit
        for i in priced:
            ties[i] = tf.reduce_sum(tf.where(here, counted[i], 0))
            above[i] = tf.reduce_sum(tf.where(here, reached[i], 0)) - ties[i]
        prefix = tf.bitwise.bitwise_or(prefix, tf.bitwise.left_shift(tf.cast(digit, bits), tf.constant(low, bits)))
    for i in priced:
        counts[i] = tf.maximum(above[i], at_least[i])
    left = tf.constant(budget, tf.float64)
    left -= sum(prices[i] * tf.cast(counts[i], tf.float64) for i in priced)
    # Those at the ratio itself, in order; then whatever fits.
    for most in ({i: above[i] + ties[i] for i in priced}, {i: sizes[i] for i in priced}):
        for i in priced:
            fit = tf.cast(tf.minimum(left // prices[i], sizes[i]), tf.int32)
            more = tf.minimum(tf.maximum(most[i] - counts[i], 0), fit)
            counts[i] += more
            left -= prices[i] * tf.cast(more, tf.float64)
    return [counts[i] for i in range(len(tensors))]
