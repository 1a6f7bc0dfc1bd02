"""The grid of whole numbers that kernels compute with in 8 or 4 bits."""

import dataclasses
from typing import Literal

import numpy as np
import tensorflow as tf

from lc_keras.arguments import one_of
from lc_keras.costs import thresholds
from lc_keras.costs.compression import Layouts, Map, Tensors
from lc_keras.costs.layout import Layout
from lc_keras.costs.values import Values

# The scales to try: how many, and the least, as a part of the largest magnitude, for many and for few bits.
_TRIED, _LEAST, _LEAST_OF_FEW_BITS = 12, 0.7, 0.25
_ROUNDS = 2


def _from_2_to_8(name: str, value: int) -> int:
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or not 2 <= value <= 8:
        raise ValueError(f"Expected `{name}` to be a whole number from 2 to 8. Received: {name}={value!r}")
    return int(value)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Grid(Values):
    r"""Each weight is a whole number of steps of its output unit: $\theta_i = s\,q_i$, $|q_i| < 2^{b-1}$.

    This is the grid of kernels in LiteRT (Jacob et al., Quantization and training of neural networks for
    efficient integer-arithmetic-only inference, CVPR 2018) and, for 8 bits, of `keras.Model.quantize`. It is
    symmetric, contains zero, and ends at the largest of the weights that share a step, so that both find the
    same step in θ and change none of its weights. The C step takes the nearest point of the grid. The step s
    is the best of several fractions of $\max_i |v_i| / (2^{b-1} - 1)$, improved by least squares, and has so
    few digits that $s\,q$ is exact in single precision.

    Args:
        bits: Int from 2 to 8, b. Defaults to 8.
        per: `"channel"` (default): each output unit has a step of its own. `"tensor"`: each tensor has one.

    Raises:
        ValueError: If `bits` or `per` is anything else, or, for given weights and `"channel"`, if one has no
            axis of inputs.

    Embedding tables are an exception: `keras.Model.quantize` has a step for each row of them, and changes
    what this leaves.

    Example:

    >>> Grid(3, per="tensor").c_step([tf.constant([3.0, -1.2, 0.4])], mu=1.0)[0].numpy()
    array([ 3., -1.,  0.], dtype=float32)
    """

    bits: int = dataclasses.field(default=8, metadata={"check": _from_2_to_8})
    per: Literal["channel", "tensor"] = dataclasses.field(
        default="channel", metadata={"check": one_of("channel", "tensor")}
    )

    @property
    def close_values(self) -> bool:  # type: ignore[override]  # of this one
        return self.bits == 8

    @property
    def _largest(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def check(self, layouts: Layouts) -> None:
        for layout in layouts:
            if self.per == "channel" and not layout.inputs:
                raise ValueError(
                    f"Expected tensors with an axis of inputs for a Grid per channel. "
                    f"Received: one of rank {len(layout.shape)}"
                )

    def learn(self, weights: Tensors, layouts: Layouts, sparse: bool = False) -> list[tf.Tensor]:
        steps: list[tf.Tensor] = []
        for weight, layout in zip(weights, layouts, strict=True):
            # One after the other, so that only one tensor's buffers are alive at a time.
            with tf.control_dependencies(steps[-1:]):
                steps.append(self._best_step(thresholds.read(weight), layout))
        return steps

    def nearest(self, learned: tf.Tensor, dtype: tf.DType) -> Map:
        steps = tf.cast(learned, dtype)

        def on_grid(value: tf.Tensor) -> tf.Tensor:
            numbers = self._numbers(value, steps)
            # A zero with a sign would be one more value to store.
            return tf.where(numbers == 0, tf.zeros([], dtype), numbers * steps)

        return on_grid

    def _numbers(self, value: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
        numbers = tf.round(tf.math.divide_no_nan(value, step))
        return tf.clip_by_value(numbers, -self._largest, self._largest)

    def _best_step(self, value: tf.Tensor, layout: Layout) -> tf.Tensor:
        axes = layout.inputs if self.per == "channel" else None
        most = tf.reduce_max(tf.abs(value), axes, keepdims=True) / self._largest
        # So that no square overflows: powers of two, by which division is exact.
        info = np.finfo(value.dtype.as_numpy_dtype)
        unit = tf.clip_by_value(_with_few_digits(most, info.nmant), info.tiny, 1 / info.tiny)
        value, most = value / unit, most / unit

        def sums(products: tf.Tensor) -> tf.Tensor:
            return tf.reduce_sum(products, axes, keepdims=True)

        def better(best: tuple[tf.Tensor, tf.Tensor], step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            step = _with_few_digits(tf.minimum(step, most), self.bits - 1)
            error = sums(tf.square(value - self._numbers(value, step) * step))
            return tf.where(error < best[1], step, best[0]), tf.minimum(error, best[1])

        def try_part(i: tf.Tensor, *best: tf.Tensor) -> tuple[tf.Tensor, ...]:
            part = tf.pow(least, tf.cast(i, value.dtype) / (_TRIED - 1))
            return (i + 1, *better(best, most * part))

        def fit(i: tf.Tensor, *best: tf.Tensor) -> tuple[tf.Tensor, ...]:
            numbers = self._numbers(value, best[0])
            return (i + 1, *better(best, tf.math.divide_no_nan(sums(value * numbers), sums(numbers**2))))

        least = tf.constant(_LEAST if self.bits > 4 else _LEAST_OF_FEW_BITS, value.dtype)
        best = tf.zeros_like(most), tf.fill(most.shape, tf.constant(np.inf, value.dtype))
        _, *best = tf.while_loop(lambda i, *_: i < _TRIED, try_part, (0, *best))
        return tf.while_loop(lambda i, *_: i < _ROUNDS, fit, (0, *best))[1] * unit


def _with_few_digits(step: tf.Tensor, cut: int) -> tf.Tensor:
    """Return steps rounded to fewer bits, so that multiples of them are exact."""
    bits = thresholds.bits_type(step.dtype)
    rounded = tf.bitcast(step, bits) + 2 ** (cut - 1)
    return tf.bitcast(tf.bitwise.bitwise_and(rounded, tf.constant(-(2**cut), bits)), step.dtype)
