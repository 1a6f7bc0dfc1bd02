"""What lives or dies together: a tensor becomes the magnitudes of its groups, and back.

A pruning cost needs two things of a group of weights: one magnitude, and a way to bring a decision or a
factor for the group back to each of its weights.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Self, TypeGuard

import numpy as np
import tensorflow as tf

from lc_keras.costs import thresholds


class Layout(tuple[int, ...]):
    """The axes of a tensor's output units, and what is known of these units besides.

    It is the tuple of the axes, and may stand wherever that may.

    Args:
        axes: Iterable of ints. Defaults to `(-1,)`.
        units: Array of ints or `None` (default): the number of the unit at each place of these axes,
            flattened in their order; -1 where the weights belong to no unit that is pruned. Tensors of one
            cost that have the same number have the same unit. `None`: the units of this tensor are its own.
        count: Int, how many units the tensors have together, from 0 on.
        reads: Array of ints or `None` (default: none of them): the number of the unit that each place along
            the inputs reads, or -1. Where that unit goes, these weights go too.
        macs: Int or `None` (default: not known): the multiply-adds of one weight, for one example.
        bytes: Int, the size of a weight. Defaults to 4.
    """

    units: np.ndarray | None
    reads: np.ndarray | None
    count: int  # type: ignore[assignment]  # instead of what tuples count
    macs: int | None
    bytes: int

    def __new__(
        cls,
        axes: Iterable[int] = (-1,),
        units: Sequence[int] | np.ndarray | None = None,
        count: int = 0,
        reads: Sequence[int] | np.ndarray | None = None,
        macs: int | None = None,
        bytes: int = 4,
    ) -> Self:
        self = super().__new__(cls, axes)
        self.units = None if units is None else np.asarray(units, np.int32).ravel()
        self.reads = None if reads is None else np.asarray(reads, np.int32).ravel()
        self.count, self.macs, self.bytes = count, macs, bytes
        return self


class Groups:
    """Base class: how the weights of a tensor are grouped.

    `output_axes` names the axes of a kernel that index its output units: the last one of a Dense or
    convolution kernel, the default. It may be a `Layout`.
    """

    def count(self, shape: Sequence[int], output_axes: Sequence[int] = (-1,)) -> int:
        """The number of groups in a tensor.

        Args:
            shape: Static shape of the tensor.
            output_axes: Tuple of ints, the axes of the output units. Defaults to `(-1,)`.

        Returns:
            Python int.

        Raises:
            ValueError: If a tensor of this shape cannot be grouped.
        """
        raise NotImplementedError

    def size(self, shape: Sequence[int], output_axes: Sequence[int] = (-1,)) -> int:
        """The number of weights in a group of a tensor, the same for all of them.

        Args:
            shape: Static shape of the tensor.
            output_axes: Tuple of ints, the axes of the output units. Defaults to `(-1,)`.

        Returns:
            Python int.
        """
        return math.prod(_static(shape)) // max(self.count(shape, output_axes), 1)

    def measure(self, weight: tf.Tensor, output_axes: Sequence[int] = (-1,)) -> tf.Tensor:
        """A tensor, one entry per group, whose absolute values are the magnitudes of the groups.

        Args:
            weight: Floating tensor of static shape.
            output_axes: Tuple of ints, the axes of the output units. Defaults to `(-1,)`.

        Returns:
            Floating tensor with `count(weight.shape, output_axes)` elements.
        """
        raise NotImplementedError

    def spread(
        self, per_group: tf.Tensor, weight_shape: Sequence[int], output_axes: Sequence[int] = (-1,)
    ) -> tf.Tensor:
        """One value for each group, brought back to the weights of the group.

        Args:
            per_group: Tensor of any dtype, shaped as the result of `measure`.
            weight_shape: Static shape of the weight.
            output_axes: Tuple of ints, the axes of the output units. Defaults to `(-1,)`.

        Returns:
            Tensor of shape `weight_shape`.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, object]:
        """The arguments of the constructor."""
        return dataclasses.asdict(self)  # type: ignore[call-overload]  # its subclasses are dataclasses


@dataclasses.dataclass(frozen=True)
class Weights(Groups):
    """Every weight is its own group.

    Example:

    >>> Weights().count((784, 300))
    235200
    """

    def count(self, shape: Sequence[int], output_axes: Sequence[int] = (-1,)) -> int:
        return math.prod(_static(shape))

    def measure(self, weight: tf.Tensor, output_axes: Sequence[int] = (-1,)) -> tf.Tensor:
        return tf.convert_to_tensor(weight)

    def spread(
        self, per_group: tf.Tensor, weight_shape: Sequence[int], output_axes: Sequence[int] = (-1,)
    ) -> tf.Tensor:
        return per_group


@dataclasses.dataclass(frozen=True)
class Neurons(Groups):
    r"""All that makes one output unit: a neuron, a filter, a recurrent unit, a head of attention.

    The magnitude of unit $j$ is $\lVert w_j \rVert_2$ over all axes but `output_axes`. A `Task` finds in the
    graph of a Functional or Sequential model what makes one unit together, in several tensors: the incoming
    weights, the bias, the scale and shift of a normalisation that follows, the gates of a recurrent unit, a
    depthwise filter and the filter before it, filters that an addition ties. The magnitude is then the norm
    over all of these.

    Example:

    >>> Neurons().measure(tf.constant([[3.0, 0.0], [4.0, 1.0]])).numpy()
    array([5., 1.], dtype=float32)
    """

    def count(self, shape: Sequence[int], output_axes: Sequence[int] = (-1,)) -> int:
        shape = _static(shape)
        return math.prod(shape[a] for a in _positive(output_axes, shape))

    def measure(self, weight: tf.Tensor, output_axes: Sequence[int] = (-1,)) -> tf.Tensor:
        weight = tf.convert_to_tensor(weight)
        axes = _positive(output_axes, weight.shape)
        return norm(weight, [a for a in range(weight.shape.rank) if a not in axes])

    def spread(
        self, per_group: tf.Tensor, weight_shape: Sequence[int], output_axes: Sequence[int] = (-1,)
    ) -> tf.Tensor:
        shape = _static(weight_shape)
        axes = _positive(output_axes, shape)
        kept = [n if a in axes else 1 for a, n in enumerate(shape)]
        return tf.broadcast_to(tf.reshape(per_group, kept), shape)

    def are_shared(self, layouts: Sequence[Sequence[int]]) -> TypeGuard[Sequence[Layout]]:
        """Whether units are spread over several tensors."""
        return any(getattr(layout, "units", None) is not None for layout in layouts)

    def join(self, measured: Sequence[tf.Tensor], layouts: Sequence[Layout]) -> tf.Tensor:
        """The magnitudes of the shared units, from those of their parts in each tensor.

        Args:
            measured: Sequence of what `measure` gives for each tensor.
            layouts: Sequence of `Layout`.

        Returns:
            Tensor of `layout.count` magnitudes.
        """
        dtype = thresholds.common_dtype(measured)
        total = tf.zeros([layouts[0].count], tf.float64)
        for part, layout in zip(measured, layouts, strict=True):
            squares = tf.square(tf.cast(tf.reshape(part, [-1]), tf.float64))
            # What belongs to no unit falls into one more, which is dropped.
            total += tf.math.unsorted_segment_sum(squares, _or_one_more(layout), layout.count + 1)[:-1]
        return tf.cast(tf.minimum(tf.sqrt(total), dtype.max), dtype)

    def hand_out(self, per_unit: tf.Tensor, layout: Layout, otherwise: float | bool) -> tf.Tensor:
        """One value for each shared unit, as one for each place of a tensor.

        Args:
            per_unit: Tensor of `layout.count` values.
            layout: `Layout` of the tensor.
            otherwise: The value where there is no unit.

        Returns:
            Vector.
        """
        rest = tf.fill([1], tf.cast(otherwise, per_unit.dtype))
        return tf.gather(tf.concat([per_unit, rest], 0), _or_one_more(layout))


@dataclasses.dataclass(frozen=True)
class Blocks(Groups):
    r"""Rectangular blocks of the kernel seen as a matrix.

    The matrix has one column per output unit (`output_axes`, flattened) and one row per input (all other
    axes, flattened), as in a matrix product. It is tiled from its first row and column; tiles that
    stick out at the end are filled up with zeros. The magnitude of a block is $\lVert w_b \rVert_2$.

    Args:
        shape: Tuple of two ints ≥ 1, rows (inputs) and columns (outputs) of a block.

    Example:

    >>> Blocks((2, 2)).count((4, 5))
    6
    """

    shape: tuple[int, int]

    def __post_init__(self) -> None:
        shape = self.shape
        if not isinstance(shape, Sequence) or len(shape) != 2 or not all(_is_positive_int(n) for n in shape):
            raise ValueError(f"Expected `shape` to be two whole numbers ≥ 1. Received: shape={shape!r}")
        object.__setattr__(self, "shape", (int(shape[0]), int(shape[1])))

    def count(self, shape: Sequence[int], output_axes: Sequence[int] = (-1,)) -> int:
        return math.prod(self._tiles(shape, output_axes))

    def size(self, shape: Sequence[int], output_axes: Sequence[int] = (-1,)) -> int:
        return math.prod(self.shape)

    def measure(self, weight: tf.Tensor, output_axes: Sequence[int] = (-1,)) -> tf.Tensor:
        weight = tf.convert_to_tensor(weight)
        order, rows, columns = self._matrix(weight.shape, output_axes)
        (r, c), (down, across) = self.shape, self._tiles(weight.shape, output_axes)
        matrix = tf.reshape(_transpose(weight, order), [rows, columns])
        if (down * r, across * c) != (rows, columns):
            matrix = tf.pad(matrix, [[0, down * r - rows], [0, across * c - columns]])
        return norm(tf.reshape(matrix, [down, r, across, c]), [1, 3])

    def spread(
        self, per_group: tf.Tensor, weight_shape: Sequence[int], output_axes: Sequence[int] = (-1,)
    ) -> tf.Tensor:
        shape = _static(weight_shape)
        order, rows, columns = self._matrix(shape, output_axes)
        (r, c), (down, across) = self.shape, self._tiles(shape, output_axes)
        tiles = tf.broadcast_to(tf.reshape(per_group, [down, 1, across, 1]), [down, r, across, c])
        matrix = tf.reshape(tiles, [down * r, across * c])[:rows, :columns]
        back = sorted(range(len(order)), key=order.__getitem__)
        return _transpose(tf.reshape(matrix, [shape[a] for a in order]), back)

    def _matrix(self, shape: Sequence[int], output_axes: Sequence[int]) -> tuple[list[int], int, int]:
        """The order of axes that puts inputs first, and the number of rows and columns."""
        shape = _static(shape)
        columns = _positive(output_axes, shape)
        if len(shape) < 2:
            raise ValueError(f"Expected tensors of rank ≥ 2 for Blocks. Received: shape {tuple(shape)}")
        rows = [a for a in range(len(shape)) if a not in columns]
        return rows + columns, math.prod(shape[a] for a in rows), math.prod(shape[a] for a in columns)

    def _tiles(self, shape: Sequence[int], output_axes: Sequence[int]) -> tuple[int, int]:
        _, rows, columns = self._matrix(shape, output_axes)
        return -(-rows // self.shape[0]), -(-columns // self.shape[1])


def norm(tensor: tf.Tensor, axes: Sequence[int]) -> tf.Tensor:
    r"""The ℓ2 norm over some axes, also where squares overflow or vanish.

    Magnitudes from $10^{-9}$ to $10^{15}$ take the plain way. Others are decomposed into $m \cdot 2^e$ by
    their bits and scaled by the largest exponent of their group, since arithmetic may flush subnormals to
    zero. A norm beyond the largest float is returned as the largest float.

    Args:
        tensor: Floating tensor of static shape; half precision is cast to float32.
        axes: List of ints, the axes to sum over.

    Returns:
        Tensor without `axes`, float32 (float64 for a float64 tensor).
    """
    dtype = thresholds.common_dtype([tensor])
    tensor = tf.cast(tensor, dtype)
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
    # Below the smallest normal float the bits of the result count multiples of the smallest subnormal.
    subnormal = tf.bitcast(tf.cast(tf.round(root * 2.0**mantissa_bits), integer), dtype)
    return tf.where(root < 1, subnormal, tf.minimum(normal, dtype.max))


def _or_one_more(layout: Layout) -> tf.Tensor:
    """The numbers of the units; of what belongs to none, the next number after them."""
    units = np.asarray(layout.units)
    return tf.constant(np.where(units < 0, layout.count, units))


def _transpose(tensor: tf.Tensor, order: Sequence[int]) -> tf.Tensor:
    return tensor if list(order) == sorted(order) else tf.transpose(tensor, order)


def _is_positive_int(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool) and int(value) >= 1


def _static(shape: Iterable[int | None]) -> list[int]:
    shape = list(shape)
    if None in shape:
        raise ValueError(f"Expected a static shape. Received: {tuple(shape)}")
    return [int(n) for n in shape if n is not None]


def _positive(axes: Sequence[int], shape: Sequence[int]) -> list[int]:
    rank = len(shape)
    positive = sorted({int(a) % rank for a in axes if -rank <= a < rank})
    if len(positive) != len(tuple(axes)) or not positive:
        raise ValueError(
            f"Expected `output_axes` to be distinct axes of a tensor of rank {rank}. Received: {tuple(axes)}"
        )
    return positive
