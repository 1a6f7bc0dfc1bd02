r"""The choice of groups to keep where they do not cost the same.

Given magnitudes $m$, costs $c$ and a budget κ, the C step of an ℓ0 constraint asks for

$$\max_{z \in \{0, 1\}} \sum_g m_g^2 z_g \quad \text{such that} \quad \sum_g c_g z_g \le \kappa,$$

a knapsack problem. After a minimum for each layer, groups are kept in the order of $m_g^2 / c_g$ until the
next one no longer fits. The costs of neurons depend on each other: the kernel between two layers costs the
product of the numbers of neurons kept in both,

$$f(z) = \sum_k p_k \, \Bigl(\sum_u a_{ku} z_u\Bigr) \Bigl(\sum_u b_{ku} z_u\Bigr) \le \kappa.$$

Units are ranked by $m_u^2$ over their cost at the margin, $\partial f / \partial z_u$. The margin is taken
first where all units are kept, then where those just found are, as the optimum of the relaxed problem
requires. The best of a few rounds counts, and the rest of the budget goes to units further down that fit.
`docs/costs.md` says how near the result is to the optimum.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from lc_keras.costs import thresholds

# Small chains of layers, as in tests/costs/test_budgets.py, settle after two rounds.
ROUNDS = 4


class Product(NamedTuple):
    """The cost of a tensor: a price times the kept places that make units, times those that read units.

    Attributes:
        price: Number, what an element with one place of each kind costs.
        makes: Array, in how many places each unit is made.
        reads: Array, in how many places each unit is read.
        made: Int, how many of the places that make units are always kept.
        read: Int, how many of the places that read units are always kept.
    """

    price: float
    makes: np.ndarray
    reads: np.ndarray
    made: int
    read: int

    def __call__(self, kept: np.ndarray) -> np.ndarray:
        """Return the cost of keeping units, a bool vector; for stacked vectors, the cost of each."""
        return self.price * (self.made + kept @ self.makes) * (self.read + kept @ self.reads)


@tf.autograph.experimental.do_not_convert
def choose(
    magnitudes: tf.Tensor,
    costs: Sequence[Product],
    budget: float,
    parts: Sequence[tuple[np.ndarray, int]] = (),
    leaders: np.ndarray | None = None,
) -> tf.Tensor:
    r"""Choose the units to keep, as a bool vector; no unit that would still fit is left out.

    Units are sorted in a few rounds, which takes $O(U \log U)$ for U units.

    Args:
        magnitudes: Vector of magnitudes.
        costs: Sequence of `Product`, whose sum is the cost f.
        budget: Number κ, no less than the most that `parts` can cost.
        parts: Sequence of pairs: the numbers of a layer's units, and how many of them to keep at least.
        leaders: Array or `None` (default: each is its own): for each unit, the first one of its sequence,
            whose units are kept in their order, one after the other.
    """
    count = int(magnitudes.shape[0])
    makes, reads = (
        tf.constant(np.array([c[i] for c in costs]).reshape(-1, count), tf.float64) for i in (1, 2)
    )
    price, made, read = (tf.constant([float(c[i]) for c in costs], tf.float64) for i in (0, 3, 4))
    own = tf.linalg.matvec(makes * reads, price, transpose_a=True)
    energy = tf.square(tf.cast(magnitudes, tf.float64))
    budget = tf.cast(budget, tf.float64)
    numbers = np.arange(count)
    leaders = numbers if leaders is None else leaders
    part = np.full(count, len(parts))
    for number, (units, _) in enumerate(parts):
        part[units] = number
    # The places of the units that each part keeps at least, when units are sorted part by part, best first.
    ranks = np.arange(count) - np.searchsorted(np.sort(part), np.sort(part))
    least = np.flatnonzero(ranks < np.array([*(at_least for _, at_least in parts), 0])[np.sort(part)])

    def places(kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return made + tf.linalg.matvec(makes, kept), read + tf.linalg.matvec(reads, kept)

    def margin_of(rows: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        margin = tf.linalg.matvec(makes, price * columns, transpose_a=True)
        return margin + tf.linalg.matvec(reads, price * rows, transpose_a=True)

    def by_ratio(margin: tf.Tensor) -> tf.Tensor:
        scale = tf.where(margin > 0, tf.math.rsqrt(tf.maximum(margin, 1e-30)), 0)
        return thresholds.magnitude_bits(magnitudes * tf.cast(scale, magnitudes.dtype), magnitudes.dtype)

    def longest(key: tf.Tensor) -> tf.Tensor:
        """Return the units that come first by a key, as many as the budget allows, as numbers 0 and 1."""
        order = tf.math.top_k(key, count).indices
        rows, columns = (tf.cumsum(tf.gather(matrix, order, axis=1), axis=1) for matrix in (makes, reads))
        spent = tf.linalg.matvec((made[:, None] + rows) * (read[:, None] + columns), price, transpose_a=True)
        return tf.scatter_nd(order[:, None], tf.cast(spent <= budget, tf.float64), [count])

    kept = best = tf.ones([count], tf.float64)
    best_energy = tf.constant(-1.0, tf.float64)
    for _ in range(ROUNDS):
        margin = margin_of(*places(kept))
        key, first = by_ratio(margin), margin <= 0
        order = tf.math.top_k(key, count).indices
        order = tf.gather(order, tf.argsort(tf.gather(tf.constant(part), order), stable=True))
        top = tf.gather(order, least)
        first |= tf.scatter_nd(top[:, None], tf.ones_like(top), [count]) > 0
        kept = longest(tf.where(first, key.dtype.max, key))
        found = tf.reduce_sum(energy * kept)
        best = tf.where(found > best_energy, kept, best)
        best_energy = tf.maximum(found, best_energy)
    # Within a sequence, no unit is kept after one that is not.
    gone = tf.cumsum(1 - best)
    before = tf.gather(tf.concat([tf.zeros([1], tf.float64), gone], 0), leaders)
    best *= tf.cast(gone == before, tf.float64)

    def fill(kept: tf.Tensor, _: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        rows, columns = places(kept)
        more = margin_of(rows, columns) + own
        is_next = (numbers == leaders) | (tf.roll(kept, 1, 0) > 0)
        fits = is_next & (tf.tensordot(price, rows * columns, 1) + more <= budget)
        key = by_ratio(more)
        filled = longest(tf.where(kept > 0, key.dtype.max, tf.where(fits, key, -1)))
        # Units that come after all that fit may be among them out of turn.
        filled = tf.where(is_next, tf.maximum(kept, filled), kept)
        return filled, tf.reduce_any(filled > kept)

    return tf.while_loop(lambda _, more: more, fill, (best, tf.constant(True)))[0] > 0


@tf.autograph.experimental.do_not_convert
def allocate(
    tensors: Sequence[tf.Tensor],
    prices: Sequence[float],
    budget: float,
    at_least: Sequence[int],
) -> list[tf.Tensor]:
    """Count the largest elements to keep of each tensor, where all elements of a tensor cost the same.

    This is a radix search for the ratio at which the budget is spent, as in `thresholds.kth_largest`, in
    $O(N)$.

    Args:
        tensors: Sequence of floating tensors of static shapes.
        prices: Sequence of whole numbers ≥ 0, what an element of each tensor costs.
        budget: Number κ, at least what `at_least` costs.
        at_least: Sequence of ints, how many elements of each tensor to keep at least.
    """
    sizes = [int(t.shape.num_elements()) for t in tensors]
    priced = [i for i, price in enumerate(prices) if price > 0]
    counts = {i: tf.constant(size) for i, size in enumerate(sizes) if i not in priced}
    if not priced:
        return [tf.constant(size) for size in sizes]
    budget = tf.cast(budget, tf.float64)
    all_fit = sum(float(prices[i]) * sizes[i] for i in priced) <= budget
    dtype = thresholds.common_dtype(tensors)
    bits = thresholds.bits_type(dtype)
    ratios = {i: tf.constant(prices[i] ** -0.5, dtype) for i in priced}
    above, ties = dict.fromkeys(priced, tf.constant(0)), {}
    prefix, top = tf.constant(0, bits), bits.size * 8 - 16
    for low in range(top, -1, -16):
        counted, reached, spent = {}, {}, 0.0
        for i in priced:
            counted[i] = thresholds.histogram(
                [tensors[i]], dtype, None if low == top else prefix, low, ratios[i]
            )
            reached[i] = above[i] + tf.cumsum(counted[i], reverse=True)
            spent += float(prices[i]) * tf.cast(tf.maximum(reached[i], at_least[i]), tf.float64)
        # The highest digit from which on all elements cost too much; any digit, if all fit.
        digit = tf.maximum(tf.reduce_sum(tf.cast(spent > budget, tf.int32)) - 1, 0)
        here = tf.range(tf.size(spent)) == digit
        for i in priced:
            ties[i] = tf.reduce_sum(tf.where(here, counted[i], 0))
            above[i] = tf.reduce_sum(tf.where(here, reached[i], 0)) - ties[i]
        prefix = tf.bitwise.bitwise_or(
            prefix, tf.bitwise.left_shift(tf.cast(digit, bits), tf.constant(low, bits))
        )
    for i in priced:
        counts[i] = tf.maximum(above[i], at_least[i])
    left = budget - sum(prices[i] * tf.cast(counts[i], tf.float64) for i in priced)
    # First the elements at the ratio itself, in order; then whatever fits.
    for most in ({i: above[i] + ties[i] for i in priced}, {i: sizes[i] for i in priced}):
        for i in priced:
            fit = tf.cast(tf.minimum(left // prices[i], sizes[i]), tf.int32)
            more = tf.minimum(tf.maximum(most[i] - counts[i], 0), fit)
            counts[i] += more
            left -= prices[i] * tf.cast(more, tf.float64)
    return [tf.where(all_fit, size, counts[i]) for i, size in enumerate(sizes)]
