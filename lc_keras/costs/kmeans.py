r"""The best few values for many numbers: $\min_{c} \sum_i \min_j (v_i - c_j)^2$, without sorting them.

The numbers of all tensors are counted in bins, and the search works on the bins; the numbers themselves are
looked at again only where bins are too coarse. For up to 64 values, the best partition of groups of bins is
found by dynamic programming (Wang & Song, Ckmeans.1d.dp, The R Journal 2011); for more, quantiles of the cube
root of the density will do (Panter & Dite, Quantization distortion in pulse-count modulation, 1951). Lloyd's
algorithm then works on single bins.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.internals.tensorflow import traced_once

# How many bins a histogram and a table to look codes up in have, and how many there are at least per code.
_BINS, _TABLE, _BINS_EACH = 2**16, 2**14, 16
# The most codes for which the best partition is sought, and how many groups it is made of.
_FEW, _GROUPS = 64, 256
_INFINITY = np.float64(np.inf)
# The bins over which a density is taken.
_SMOOTH = 64
# Rounds of Lloyd's algorithm: it has mostly settled before.
_ROUNDS = 100
# The numbers themselves are averaged if the mean squared error is below this, in squared widths of a bin.
_FINE = 1e3


@dataclass(frozen=True)
class Bins:
    """Bins of equal width.

    Args:
        scale: Scalar, the number of bins per unit of length.
        shift: Scalar, the place of zero.
        count: Int, how many there are.
    """

    scale: tf.Tensor
    shift: tf.Tensor
    count: int

    @classmethod
    def between(cls, low: tf.Tensor, high: tf.Tensor, count: int = _BINS) -> "Bins":
        """Return bins that divide an interval, which may be a point."""
        # Halves do not overflow, and neither does a quotient with a divisor of at least this.
        largest = tf.maximum(tf.abs(low), tf.abs(high))
        half = tf.maximum(high / 2 - low / 2, tf.maximum(1e-7 * largest, 1e-30))
        scale = count / 2 / half
        return cls(scale, -low * scale, count)

    def place(self, values: tf.Tensor) -> tf.Tensor:
        """Return the bin of each value; the order of the values is kept."""
        places = tf.cast(tf.clip_by_value(values * self.scale + self.shift, 0, self.count - 1), tf.int32)
        # NaN has a bin, too.
        return tf.maximum(places, 0)

    @property
    def width(self) -> tf.Tensor:
        """Return the width of each bin, in double precision."""
        return 1 / tf.cast(self.scale, tf.float64)

    def centres(self) -> tf.Tensor:
        """Return the middle of each bin, in double precision."""
        return (tf.range(self.count, dtype=tf.float64) + 0.5 - tf.cast(self.shift, tf.float64)) * self.width


@tf.autograph.experimental.do_not_convert
def best_codes(weights: Sequence[tf.Tensor], size: int, sparse: bool = False) -> tf.Tensor:
    """Find the values nearest to many numbers, over all tensors together.

    Args:
        weights: Sequence of floating tensors of any shapes, fewer than $2^{31}$ elements together.
        size: Int ≥ 1, how many values there are.
        sparse: Bool, default `False`. `True`: zeros are left out.

    Returns:
        Vector of `size` codes, ascending, float32 (float64 for float64 tensors).

    Example:

    >>> best_codes([tf.constant([3.0, 1.0, -2.0, -1.0])], 2).numpy()
    array([-1.5,  2. ], dtype=float32)
    """
    return _best_codes(list(weights), size, tf.constant(sparse))


@traced_once
def _best_codes(weights: Sequence[tf.Tensor], size: int, sparse: tf.Tensor) -> tf.Tensor:
    dtype = thresholds.common_dtype(weights)
    low, high = range_of(weights, dtype, sparse)
    bins = Bins.between(low, high, max(_BINS, _SMOOTH * math.ceil(_BINS_EACH * size / _SMOOTH)))
    # Zeros that are left out are placed beyond the bins.
    counts = counted(weights, bins, lambda x: tf.where((x == 0) & sparse, bins.count, bins.place(x)))
    total = tf.maximum(tf.reduce_sum(counts), 1)
    # Relative to their mean, so that sums of squares lose no digits.
    centres = bins.centres()
    mean = tf.reduce_sum(counts * centres) / total
    codes, error = _lloyd(counts, centres - mean, _start(counts, centres - mean, size))
    codes = tf.clip_by_value(tf.cast(codes + mean, dtype), low, high)
    is_fine = error / total < _FINE * bins.width**2
    return tf.cond(is_fine, lambda: _means(weights, codes, sparse), lambda: codes, name="fine")


def nearest_code(codes: tf.Tensor) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return a function that finds the nearest of some codes for each element of a tensor.

    Args:
        codes: Vector of codes, ascending.

    Returns:
        Function of a tensor of the type of the codes; returns int32 indices of the same shape.
    """
    last = codes.shape[0] - 1
    if not last:
        return lambda value: tf.zeros_like(value, tf.int32)
    middles = codes[1:] / 2 + codes[:-1] / 2
    # Looked up in a table: bisecting for each element takes many times longer.
    bins = Bins.between(codes[0], codes[-1], max(_TABLE, _BINS_EACH * codes.shape[0]))
    places = bins.place(middles)
    before = tf.searchsorted(places, tf.range(bins.count))
    middles_and_end = tf.concat([middles, tf.fill([1], tf.constant(codes.dtype.max, codes.dtype))], 0)
    crowded = tf.reduce_any(places[1:] == places[:-1])
    return lambda value: _index(value, middles_and_end, before, bins.scale, bins.shift, crowded)


@traced_once
def _index(
    value: tf.Tensor,
    middles_and_end: tf.Tensor,
    before: tf.Tensor,
    scale: tf.Tensor,
    shift: tf.Tensor,
    crowded: tf.Tensor,
) -> tf.Tensor:
    def looked_up() -> tf.Tensor:
        below = tf.gather(before, Bins(scale, shift, before.shape[0]).place(value))
        return below + tf.cast(value > tf.gather(middles_and_end, below), tf.int32)

    def bisected() -> tf.Tensor:
        index, last = tf.zeros_like(value, tf.int32), middles_and_end.shape[0] - 1
        for power in reversed(range(last.bit_length())):
            further = index + 2**power
            above = value > tf.gather(middles_and_end, tf.minimum(further, last) - 1)
            index = tf.where((further <= last) & above, further, index)
        return index

    return tf.cond(crowded, bisected, looked_up, name="crowded")


def range_of(
    tensors: Sequence[tf.Tensor], dtype: tf.DType, sparse: bool | tf.Tensor = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the least and the largest of all numbers, or of those that are not zero; 0 if there are none."""
    ends = tf.constant(dtype.max, dtype), tf.constant(dtype.min, dtype)

    def update(so_far: tuple[tf.Tensor, tf.Tensor], chunk: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chunk = tf.cast(chunk, dtype)
        low, high = (tf.where((chunk == 0) & sparse, end, chunk) for end in ends)
        return tf.minimum(so_far[0], tf.reduce_min(low)), tf.maximum(so_far[1], tf.reduce_max(high))

    low, high = thresholds.fold(tensors, ends, update)
    nothing = low > high
    return tf.where(nothing, tf.zeros_like(low), low), tf.where(nothing, tf.zeros_like(high), high)


def counted(tensors: Sequence[tf.Tensor], bins: Bins, places: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Return how many elements of some tensors fall into each bin.

    Args:
        tensors: Sequence of floating tensors.
        bins: `Bins`.
        places: Called with a flat tensor, returns the number of each element's bin; what is beyond the bins
            is not counted.

    Returns:
        float64 vector.
    """
    dtype = bins.scale.dtype
    counts = thresholds.counted(tensors, bins.count, lambda chunk: places(tf.cast(chunk, dtype)))
    return tf.cast(counts, tf.float64)


def _start(counts: tf.Tensor, centres: tf.Tensor, size: int) -> tf.Tensor:
    """Return the codes to begin with."""
    there = tf.cast(counts > 0, tf.float64)
    number = tf.reduce_sum(there)
    smooth = tf.pow(tf.reduce_sum(tf.reshape(counts, [-1, _SMOOTH]), 1), 1 / 3)
    # If few bins are occupied, each of them counts alike.
    density = tf.where(number <= max(_GROUPS, size), there, tf.repeat(smooth, _SMOOTH))
    level = tf.cumsum(density) / tf.maximum(tf.reduce_sum(density), 1)
    if size > _FEW:
        at = (tf.range(size, dtype=tf.float64) + 0.5) / size
        return tf.gather(centres, tf.minimum(tf.searchsorted(level, at), counts.shape[0] - 1))
    groups = tf.minimum(tf.maximum(number, 1), _GROUPS)
    group = tf.clip_by_value(tf.cast(tf.math.ceil(level * groups - 1e-6), tf.int32) - 1, 0, _GROUPS - 1)
    inside, total = (tf.math.unsorted_segment_sum(x, group, _GROUPS) for x in (counts, counts * centres))
    return _best_partition(inside, total, size)


def _best_partition(number: tf.Tensor, total: tf.Tensor, size: int) -> tf.Tensor:
    r"""Return the means of the parts of the best partition of a row of groups.

    The sum of squares within the parts $p$ is least where $\sum_p S_p^2 / N_p$ is largest.
    """
    groups = number.shape[0]
    numbers, totals = _running(number), _running(total)
    within, sums = numbers[None] - numbers[:, None], totals[None] - totals[:, None]
    backwards = tf.range(groups + 1)[:, None] > tf.range(groups + 1)
    gain = tf.where(backwards, -_INFINITY, tf.math.divide_no_nan(sums**2, within))

    best, parts = tf.constant([0.0] + [-_INFINITY] * groups, tf.float64), []
    for _ in range(size):
        found = best[:, None] + gain
        best = tf.reduce_max(found, 0)
        parts.append(tf.argmax(found, 0, tf.int32))
    ends = [tf.constant(groups)]
    for cuts in reversed(parts):
        ends.append(tf.gather(cuts, ends[-1]))
    numbers, totals = _between(tf.stack(ends[::-1]), numbers, totals)
    # An empty part has the code of a part before it, or of the first.
    means = tf.where(numbers > 0, totals / tf.maximum(numbers, 1), -_INFINITY)
    so_far = tf.reduce_max(tf.where(tf.range(size)[:, None] >= tf.range(size), means, -_INFINITY), 1)
    return tf.maximum(so_far, tf.reduce_min(tf.where(numbers > 0, means, _INFINITY)))


def _lloyd(counts: tf.Tensor, centres: tf.Tensor, codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return better codes, and the sum of squared errors with them."""
    numbers, totals = _running(counts), _running(counts * centres)

    def means(codes: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        middles = tf.searchsorted(centres, codes[1:] / 2 + codes[:-1] / 2)
        edges = tf.concat([[0], middles, [counts.shape[0]]], 0)
        number, total = _between(edges, numbers, totals)
        return tf.where(number > 0, total / tf.maximum(number, 1), codes), tf.reduce_sum(number * codes**2)

    def go_on(codes: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
        return tf.reduce_any(codes != before)

    codes, _ = tf.while_loop(
        go_on, lambda codes, _: (means(codes)[0], codes), (means(codes)[0], codes), maximum_iterations=_ROUNDS
    )
    # Each code is the mean of its part.
    return codes, tf.reduce_sum(counts * centres**2) - means(codes)[1]


def _means(weights: Sequence[tf.Tensor], codes: tf.Tensor, sparse: tf.Tensor) -> tf.Tensor:
    """Return the mean of the numbers nearest to each code, or the code itself if there are none."""
    size, nearest = codes.shape[0], nearest_code(codes)
    wide = tf.cast(codes, tf.float64)

    def update(sums: tuple[tf.Tensor, tf.Tensor], chunk: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        chunk = tf.cast(chunk, codes.dtype)
        index = nearest(chunk)
        # Differences from the code, since sums of these lose no digits.
        off, one = tf.cast(chunk, tf.float64) - tf.gather(wide, index), tf.ones_like(chunk, tf.float64)
        # A negative index is dropped.
        index = tf.where((chunk == 0) & sparse, -1, index)
        number, total = (tf.math.unsorted_segment_sum(x, index, size) for x in (one, off))
        return sums[0] + number, sums[1] + total

    zeros = tf.zeros([size], tf.float64)
    number, off = thresholds.fold(weights, (zeros, zeros), update)
    return tf.cast(wide + off / tf.maximum(number, 1), codes.dtype)


def _running(values: tf.Tensor) -> tf.Tensor:
    """Return the sums of the first 0, 1, … values."""
    return tf.concat([tf.zeros([1], values.dtype), tf.cumsum(values)], 0)


def _between(edges: tf.Tensor, *running: tf.Tensor) -> list[tf.Tensor]:
    """Return sums from each edge to the next."""
    ends = (tf.gather(sums, edges) for sums in running)
    return [end[1:] - end[:-1] for end in ends]
