"""Groups of weights that live or die together: from a tensor to the magnitudes of its groups, and back.

A pruning cost needs two things from a group of weights: one magnitude, and a way to bring a decision or a
factor for the group back to each of its weights.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.layout import Layout
from lc_keras.costs.serialization import Serializable
from lc_keras.internals.tensorflow import traced_once


class Groups(Serializable):
    """Base class: how the weights of a tensor are grouped.

    Attributes:
        needs_units: Bool, whether a group may lie in several tensors, as the units of a model's graph do.
    """

    needs_units: ClassVar[bool] = False

    def count(self, layout: Layout) -> int:
        """Return the number of groups in a tensor, or raise a ValueError if it cannot be grouped."""
        raise NotImplementedError

    def size(self, layout: Layout) -> int:
        """Return the number of weights in a group of a tensor, the same for all of them."""
        return layout.size // max(self.count(layout), 1)

    def magnitudes(self, weight: tf.Tensor, layout: Layout) -> tf.Tensor:
        """Return a tensor of `count(layout)` elements whose absolute values are the groups' magnitudes."""
        raise NotImplementedError

    def spread(self, per_group: tf.Tensor, layout: Layout) -> tf.Tensor:
        """Return a value for each weight, from a value of any dtype for each group, shaped as `magnitudes`.

        The result may have a shape that broadcasts to that of the weight.
        """
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Weights(Groups):
    """Every weight is its own group.

    Example:

    >>> Weights().count(Layout((784, 300)))
    235200
    """

    def count(self, layout: Layout) -> int:
        return layout.size

    def magnitudes(self, weight: tf.Tensor, layout: Layout) -> tf.Tensor:
        return tf.convert_to_tensor(weight)

    def spread(self, per_group: tf.Tensor, layout: Layout) -> tf.Tensor:
        return per_group


WEIGHTS = Weights()


@dataclasses.dataclass(frozen=True)
class Neurons(Groups):
    r"""All weights that make one output unit: a neuron, a filter, a recurrent unit, a head of attention.

    The magnitude of unit $j$ is $\lVert w_j \rVert_2$ over all axes except those of the output units. In the
    graph of a Functional or Sequential model, a `Task` finds the weights in several tensors that make one
    unit together: the incoming weights, the bias, the scale and shift of a normalisation that follows, the
    gates of a recurrent unit, a depthwise filter and the filter before it, filters that an addition ties. The
    magnitude is then the norm over all of these.

    Example:

    >>> Neurons().magnitudes(tf.constant([[3.0, 0.0], [4.0, 1.0]]), Layout((2, 2))).numpy()
    array([5., 1.], dtype=float32)
    """

    needs_units = True

    def count(self, layout: Layout) -> int:
        return math.prod(layout.shape[a] for a in layout.outputs)

    def magnitudes(self, weight: tf.Tensor, layout: Layout) -> tf.Tensor:
        return norm(tf.convert_to_tensor(weight), layout.inputs)

    def spread(self, per_group: tf.Tensor, layout: Layout) -> tf.Tensor:
        outputs = layout.outputs
        return tf.reshape(per_group, [n if a in outputs else 1 for a, n in enumerate(layout.shape)])


@dataclasses.dataclass(frozen=True)
class Blocks(Groups):
    r"""Rectangular blocks of the kernel seen as a matrix.

    The matrix has one column per output unit (the axes of the output units, flattened) and one row per input
    (all other axes, flattened), as in a matrix product. It is tiled from its first row and column; tiles that
    stick out at the end are padded with zeros. The magnitude of a block is $\lVert w_b \rVert_2$.

    Args:
        shape: Tuple of two ints ≥ 1, the rows (inputs) and columns (outputs) of a block.

    Raises:
        ValueError: If `shape` is anything else, or, for given weights, if one has fewer than two axes.

    Example:

    >>> Blocks((2, 2)).count(Layout((4, 5)))
    6
    """

    shape: tuple[int, int]

    def __post_init__(self) -> None:
        shape = self.shape
        if not isinstance(shape, Sequence) or len(shape) != 2 or not all(_is_positive_int(n) for n in shape):
            raise ValueError(f"Expected `shape` to be two whole numbers ≥ 1. Received: shape={shape!r}")
        object.__setattr__(self, "shape", (int(shape[0]), int(shape[1])))

    def count(self, layout: Layout) -> int:
        return math.prod(self._tiles(layout))

    def size(self, layout: Layout) -> int:
        return math.prod(self.shape)

    def magnitudes(self, weight: tf.Tensor, layout: Layout) -> tf.Tensor:
        order, rows, columns = self._matrix(layout)
        (r, c), (down, across) = self.shape, self._tiles(layout)
        matrix = tf.reshape(tf.transpose(weight, order), [rows, columns])
        matrix = tf.pad(matrix, [[0, down * r - rows], [0, across * c - columns]])
        return norm(tf.reshape(matrix, [down, r, across, c]), [1, 3])

    def spread(self, per_group: tf.Tensor, layout: Layout) -> tf.Tensor:
        order, rows, columns = self._matrix(layout)
        (r, c), (down, across) = self.shape, self._tiles(layout)
        tiles = tf.broadcast_to(tf.reshape(per_group, [down, 1, across, 1]), [down, r, across, c])
        matrix = tf.reshape(tiles, [down * r, across * c])[:rows, :columns]
        back = sorted(range(len(order)), key=order.__getitem__)
        return tf.transpose(tf.reshape(matrix, [layout.shape[a] for a in order]), back)

    def _matrix(self, layout: Layout) -> tuple[list[int], int, int]:
        """Return the order of axes that puts inputs first, and the number of rows and columns."""
        outputs, inputs, shape = layout.outputs, layout.inputs, layout.shape
        if len(shape) < 2:
            raise ValueError(f"Expected tensors of rank ≥ 2 for Blocks. Received: shape {shape}")
        return inputs + outputs, math.prod(shape[a] for a in inputs), math.prod(shape[a] for a in outputs)

    def _tiles(self, layout: Layout) -> tuple[int, int]:
        _, rows, columns = self._matrix(layout)
        return -(-rows // self.shape[0]), -(-columns // self.shape[1])


def join(parts: Sequence[tf.Tensor], layouts: Sequence[Layout]) -> tf.Tensor:
    """Return the magnitudes of shared units, from those of their parts in each tensor."""
    dtype = thresholds.common_dtype(parts)
    magnitudes = tf.concat([tf.reshape(tf.cast(part, tf.float64), [-1]) for part in parts], 0)
    # Places that belong to no unit go into an extra one, which is dropped.
    units, count = _or_one_more(layouts), layouts[0].count
    total = tf.math.unsorted_segment_sum(tf.square(magnitudes), units, count + 1)[:-1]
    return tf.cast(tf.minimum(tf.sqrt(total), dtype.max), dtype)


def hand_out(per_unit: tf.Tensor, layouts: Sequence[Layout], otherwise: float | bool) -> list[tf.Tensor]:
    """Return a value for each place of the output axes: that of its shared unit, or else `otherwise`."""
    rest = tf.fill([1], tf.cast(otherwise, per_unit.dtype))
    values = tf.gather(tf.concat([per_unit, rest], 0), _or_one_more(layouts))
    return tf.split(values, [len(np.asarray(layout.units)) for layout in layouts])


def norm(tensor: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    r"""Return the ℓ2 norm over some axes, even where squares overflow or vanish.

    Magnitudes from $10^{-9}$ to $10^{15}$ take the plain way. All others are decomposed into $m \cdot 2^e$ by
    their bits and scaled by the largest exponent of their group, since arithmetic may flush subnormals to
    zero. A norm beyond the largest float is returned as the largest float. Norms of half-precision tensors
    are float32.
    """
    tensor = thresholds.read(tensor)
    found = _norm(tuple(axes), tensor.shape.rank, tensor.dtype)(tensor)
    found.set_shape([n for a, n in enumerate(tensor.shape) if a not in axes])
    return found


@functools.cache
def _norm(axes: tuple[int, ...], rank: int, dtype: tf.DType) -> Callable[[tf.Tensor], tf.Tensor]:
    """Return `norm` as a function that is traced once for all shapes: models have hundreds."""
    shape = tf.TensorSpec([None] * rank, dtype)
    return traced_once(lambda tensor: _careful_norm(tensor, axes), [shape])


def _careful_norm(tensor: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    dtype = tensor.dtype
    largest = tf.reduce_max(tf.abs(tensor), axes)
    ordinary = (largest > 1e-9) & (largest < 1e15)

    def ordinary_or_zero() -> tf.Tensor:
        # By the bits, since a subnormal may pass for zero in arithmetic.
        some = tf.cast(tf.cast(thresholds.magnitude_bits(tensor, dtype), tf.bool), dtype)
        return tf.reduce_all(ordinary | (tf.reduce_max(some, axes) == 0))

    plain = tf.cond(tf.reduce_all(ordinary), lambda: tf.constant(True), ordinary_or_zero)
    return tf.cond(
        plain,
        lambda: tf.sqrt(tf.reduce_sum(tf.square(tensor), axes)),
        lambda: _scaled_norm(tensor, axes, dtype),
        name="normal",
    )


def _scaled_norm(tensor: tf.Tensor, axes: Sequence[int], dtype: tf.DType) -> tf.Tensor:
    mantissa_bits, bias = (23, 127) if dtype == tf.float32 else (52, 1023)
    bits = thresholds.magnitude_bits(tensor, dtype)
    integer = bits.dtype
    shift = tf.constant(mantissa_bits, integer)

    def power(e: tf.Tensor) -> tf.Tensor:
        return tf.bitcast(tf.bitwise.left_shift(e + bias, shift), dtype)

    exponent = tf.bitwise.right_shift(bits, shift)
    fraction = tf.bitwise.bitwise_and(bits, tf.constant(2**mantissa_bits - 1, integer))
    fraction = tf.bitcast(tf.bitwise.bitwise_or(fraction, tf.constant(bias << mantissa_bits, integer)), dtype)
    mantissa = tf.where(exponent == 0, fraction - 1, fraction)
    exponent = tf.maximum(exponent, 1)
    top = tf.reduce_max(exponent, axes, keepdims=True)
    scaled = mantissa * power(tf.maximum(exponent - top, 1 - bias))
    root = tf.sqrt(tf.reduce_sum(tf.square(scaled), axes))
    top = tf.reshape(top, tf.shape(root)) - bias

    half = top // 2
    normal = root * power(half) * power(top - half)
    # Below the smallest normal float, the bits of the result count multiples of the smallest subnormal.
    subnormal = tf.bitcast(tf.cast(tf.round(root * 2.0**mantissa_bits), integer), dtype)
    return tf.where(root < 1, subnormal, tf.minimum(normal, dtype.max))


def _or_one_more(layouts: Sequence[Layout]) -> np.ndarray:
    """Return the number of the unit at each place of all tensors; for places without one, the next number."""
    units = np.concatenate([layout.units for layout in layouts])
    return np.where(units < 0, layouts[0].count, units)


def _is_positive_int(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and int(value) >= 1
