"""Fine-grained patterns: n of every m weights."""

import dataclasses

import numpy as np
import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import Compression, Layouts, Map, Tensors
from lc_keras.costs.layout import Layout


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NMConstraint(Compression):
    r"""At most n of every m consecutive weights along the inputs of an output unit are nonzero.

    This is the pattern of sparse matrix units in hardware, 2 of every 4 (Mishra et al., Accelerating sparse
    deep neural networks, 2021; Zhou et al., Learning N:M fine-grained structured sparse neural networks from
    scratch, ICLR 2021). The m weights lie along the last axis that is not one of the output units: for a
    convolution along its channels, or, if it is depthwise, along its window. At the end of the axis fewer
    than m may be left, of which n stay, too: kernels whose inputs are not a multiple of m keep more, and
    those of 2 inputs or fewer keep all under 2:4; `fit` names these. The C step keeps the n weights of
    largest magnitude of every m, bit for bit; of equal ones, the first.

    Args:
        n: Int ≥ 0, how many are kept.
        m: Int ≥ n and ≥ 1, out of how many.

    Raises:
        ValueError: If `n` or `m` is not such an int, or, for given weights, if one has no axis of inputs.

    Example:

    >>> NMConstraint(1, 2).c_step([tf.constant([[3.0], [-1.0], [0.5], [2.0]])], mu=1.0)[0].numpy().ravel()
    array([3., 0., 0., 2.], dtype=float32)
    """

    n: int
    m: int

    has_budget = keeps_values = can_loosen = True

    def __post_init__(self) -> None:
        n, m = self.n, self.m
        whole = all(isinstance(x, (int, np.integer)) and not isinstance(x, bool) for x in (n, m))
        if not (whole and 0 <= n <= m and m >= 1):
            raise ValueError(f"Expected whole numbers 0 ≤ n ≤ m and m ≥ 1. Received: n={n!r}, m={m!r}")
        object.__setattr__(self, "n", int(n))
        object.__setattr__(self, "m", int(m))

    def check(self, layouts: Layouts) -> None:
        for layout in layouts:
            if not layout.inputs:
                raise ValueError(
                    f"Expected tensors with an axis of inputs. Received: one of rank {len(layout.shape)}"
                )

    def spares(self, layout: Layout) -> bool:
        # For the shorter row at the end.
        rest = layout.shape[layout.inputs[-1]] % self.m
        return min(self.n, rest) * self.m > self.n * rest

    def maps(self, weights: Tensors, mu: float | tf.Tensor, layouts: Layouts) -> list[Map]:
        return [self._along(layout.inputs[-1], tf.constant(self.n)) for layout in layouts]

    def loosened(self, weights: Tensors, slack: tf.Tensor, layouts: Layouts) -> list[Map]:
        n = self.n + tf.cast(tf.floor(slack * (self.m - self.n)), tf.int32)
        return [self._along(layout.inputs[-1], n) for layout in layouts]

    def _along(self, axis: int, n: tf.Tensor) -> Map:
        """Return the map that keeps n of every m weights along an axis."""

        def theta(value: tf.Tensor) -> tf.Tensor:
            rank = value.shape.rank
            order = [a for a in range(rank) if a != axis] + [axis]
            bits = tf.transpose(thresholds.magnitude_bits(value, thresholds.common_dtype([value])), order)
            size = bits.shape[-1]
            padded = tf.pad(bits, [[0, 0]] * (rank - 1) + [[0, -size % self.m]], constant_values=-1)
            rows = tf.reshape(padded, [-1, self.m])
            ahead = tf.zeros_like(rows, tf.int32)
            for place in range(self.m):
                other = rows[:, place, None]
                first = (other == rows) & (place < tf.range(self.m))
                ahead += tf.cast((other > rows) | first, tf.int32)
            kept = tf.reshape(ahead < n, padded.shape)[..., :size]
            kept = tf.transpose(kept, sorted(range(rank), key=order.__getitem__))
            return tf.where(kept, value, tf.zeros([], value.dtype))

        return theta
