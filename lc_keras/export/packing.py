"""Weights with many zeros in few bytes: the nonzero values and the gaps between them."""

import numpy as np
import tensorflow as tf

# What unpacking a weight adds to the graph, in bytes.
_UNPACKING = 8192


def pack(array: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Packs a weight, if that pays.

    A gap is the number of zeros before a value, in one byte or in two, whichever
    makes the whole smaller. A gap too long for it is bridged by stored zeros.

    Args:
        array: NumPy array of a floating-point type and any shape.

    Returns:
        Tuple of the values and the gaps, one-dimensional arrays of one length, or
        `None` if they would save less than unpacking them costs.

    Example:

    ```python
    kernel = np.zeros([1000, 100], "float32")
    kernel[3, ::2] = 1.0
    values, gaps = pack(kernel)
    assert np.array_equal(unpack(values, gaps, kernel.shape), kernel)
    ```
    """
    packed = min((_with_gaps_of(array, t) for t in (np.uint8, np.uint16)), key=_nbytes)
    return packed if _nbytes(packed) + _UNPACKING < array.nbytes else None


def unpack(values: tf.Tensor, gaps: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Undoes `pack`, as TensorFlow operations.

    Args:
        values: Tensor of shape `(n,)`.
        gaps: Integer tensor of shape `(n,)`.
        shape: Tuple of ints, the shape of the weight.

    Returns:
        Tensor of the given shape and the type of `values`.
    """
    positions = tf.cumsum(tf.cast(gaps, tf.int64) + 1) - 1
    size = tf.constant([np.prod(shape)], tf.int64)
    return tf.reshape(tf.scatter_nd(positions[:, tf.newaxis], values, size), shape)


def _with_gaps_of(array, dtype):
    flat = array.ravel()
    positions = np.flatnonzero(flat)
    gaps = np.diff(positions, prepend=-1) - 1
    longest = np.iinfo(dtype).max
    bridges, rest = np.divmod(gaps, longest + 1)
    last = np.cumsum(bridges + 1) - 1
    packed_gaps = np.full(len(positions) + bridges.sum(), longest, dtype)
    packed_gaps[last] = rest
    values = np.zeros(len(packed_gaps), flat.dtype)
    values[last] = flat[positions]
    return values, packed_gaps


def _nbytes(packed):
    return sum(part.nbytes for part in packed)
