"""Pack weights with many zeros in few bytes: the values that are not zero, and where they are."""

from dataclasses import dataclass

import numpy as np
import tensorflow as tf

# A bound on what unpacking a weight adds to a SavedModel, in bytes: with TensorFlow 2.21 about 8,000 for the
# first and 4,300 for each further one.
_UNPACKING = 12288
_BITS = np.arange(8, dtype="uint8")


@dataclass(frozen=True)
class Packed:
    """A weight as it is stored.

    Attributes:
        encoding: String. `"gaps8"`, `"gaps16"`: the values, and for each the number of
            zeros before it, in one byte or in two; a gap too long for it is bridged by
            stored zeros. `"bitmask"`: the values, and a bit for each place. `"dense"`:
            each value in its place.
        shape: Tuple of ints.
        values: NumPy array: one-dimensional, and of that shape if `"dense"`.
        places: NumPy array of the gaps or the bits, or `None` if `"dense"`.
    """

    encoding: str
    shape: tuple[int, ...]
    values: np.ndarray
    places: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + (0 if self.places is None else self.places.nbytes)

    @property
    def kept(self) -> int:
        return int(np.count_nonzero(self.values))


def pack(array: np.ndarray, dense: bool = True) -> Packed:
    """Pack a weight in the encoding that takes the fewest bytes.

    Gaps that are too long are bridged by zeros, as in section 3 of Han, Mao and Dally, "Deep Compression",
    ICLR 2016 ([arXiv:1510.00149](https://arxiv.org/abs/1510.00149)).

    Args:
        array: NumPy array of a floating-point type and any shape.
        dense: Bool, default `True`: whether the weight may stay as it is, which it
            does unless packing saves more than unpacking costs.

    Returns:
        `Packed`.

    Example:

    ```python
    kernel = np.zeros([1000, 100], "float32")
    kernel[3, ::2] = 1.0
    packed = pack(kernel)
    assert packed.encoding == "gaps8"
    assert np.array_equal(unpack(packed.encoding, packed.values, packed.places, kernel.shape), kernel)
    ```
    """
    flat = array.ravel()
    positions = np.flatnonzero(flat)
    smallest = min(
        _with_gaps(array, flat, positions, np.uint8),
        _with_gaps(array, flat, positions, np.uint16),
        _with_bits(array, flat, positions),
        key=lambda packed: packed.nbytes,
    )
    pays = smallest.nbytes + _UNPACKING < array.nbytes
    return smallest if pays or not dense else Packed("dense", array.shape, array)


def positions_of(encoding: str, places: tf.Tensor) -> tf.Tensor:
    """Return the places of the stored values in the flattened weight, ascending, as TensorFlow operations."""
    if encoding == "bitmask":
        bits = tf.bitwise.right_shift(places[:, tf.newaxis], _BITS) & 1
        return tf.where(tf.reshape(bits, [-1]) > 0)[:, 0]
    return tf.cumsum(tf.cast(places, tf.int64) + 1) - 1


def unpack(encoding: str, values: tf.Tensor, places: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Undo `pack`, as TensorFlow operations."""
    positions = positions_of(encoding, places)
    size = tf.constant([np.prod(shape, dtype="int64")], tf.int64)
    return tf.reshape(tf.scatter_nd(positions[:, tf.newaxis], values, size), shape)


def _with_gaps(
    array: np.ndarray, flat: np.ndarray, positions: np.ndarray, dtype: type[np.unsignedinteger]
) -> Packed:
    gaps = np.diff(positions, prepend=-1) - 1
    longest = np.iinfo(dtype).max
    bridges, rest = np.divmod(gaps, longest + 1)
    last = np.cumsum(bridges + 1) - 1
    places = np.full(len(positions) + bridges.sum(), longest, dtype)
    places[last] = rest
    values = np.zeros(len(places), flat.dtype)
    values[last] = flat[positions]
    return Packed(f"gaps{8 * places.itemsize}", array.shape, values, places)


def _with_bits(array: np.ndarray, flat: np.ndarray, positions: np.ndarray) -> Packed:
    bits = np.packbits(flat != 0, bitorder="little")
    return Packed("bitmask", array.shape, flat[positions], bits)
