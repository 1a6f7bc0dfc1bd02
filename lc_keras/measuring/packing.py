"""Pack weights in few bytes: the nonzero values, coded if they are few, and their places."""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from lc_keras.internals.tensorflow import traced_once
from lc_keras.measuring.coding import Codes, code, frequent, from_bits, steps_of, to_bits

# Bounds in bytes on what a packed weight adds to a SavedModel (3,300 with TensorFlow 2.21, and 2,500 for its
# values if they are coded), and on what all packed weights share (some 7,000).
_UNPACKING, _DECODING, _SHARED = 4096, 3072, 8192
_BITS = np.arange(8, dtype="uint8")


@dataclass(frozen=True)
class Packed:
    """A weight as it is stored.

    Attributes:
        encoding: String. `"gaps4"`, `"gaps8"`, `"gaps16"`: the values, and for each the number of
            zeros before it, in that many bits; a gap that is too long for them is bridged by
            stored zeros. `"bitmask"`: the values, and a bit for each place. `"dense"`:
            each value in its place.
        shape: Tuple of ints.
        values: NumPy array, of that shape if `"dense"`, else one-dimensional.
        places: NumPy array of the gaps or the bits, or `None` if `"dense"`.
        codes: `Codes` in which the values are stored, or `None` if they are stored as they are.
        others: `Packed` weight with the entries that have other values, and zeros elsewhere, or `None`.
    """

    encoding: str
    shape: tuple[int, ...]
    values: np.ndarray
    places: np.ndarray | None = None
    codes: Codes | None = None
    others: "Packed | None" = None

    @property
    def nbytes(self) -> int:
        values = self.values if self.codes is None else self.codes
        others = 0 if self.others is None else self.others.nbytes
        return values.nbytes + others + (0 if self.places is None else self.places.nbytes)

    @property
    def name(self) -> str:
        """Return the encoding with the bits of a coded value and the name of `others`: `"dense/1+gaps8"`."""
        name = self.encoding if self.codes is None else f"{self.encoding}/{self.codes.bits}"
        return name if self.others is None else f"{name}+{self.others.name}"

    @property
    def saved(self) -> int:
        """Return the bytes saved in a file, after what unpacks the weight but before what all share."""
        dense = self.values.itemsize * math.prod(self.shape)
        return 0 if self.name == "dense" else dense - _size(self) - _UNPACKING

    @property
    def kept(self) -> int:
        return int(np.count_nonzero(self.values))


def pack(array: np.ndarray, dense: bool = True) -> Packed:
    """Pack a weight in the encoding that takes the fewest bytes.

    Gaps that are too long are bridged by zeros, as in section 3 of Han, Mao and Dally, "Deep Compression",
    ICLR 2016 ([arXiv:1510.00149](https://arxiv.org/abs/1510.00149)).

    Args:
        array: NumPy array of a floating-point type and any shape.
        dense: Bool, default `True`: whether the weight may stay as it is. It then does so unless packing
            saves more than it adds to a file, not counting what `pays` counts.

    Returns:
        `Packed`.

    Example:

    ```python
    kernel = np.zeros([1000, 100], "float32")
    kernel[3, ::2] = 1.0
    packed = pack(kernel)
    assert packed.encoding == "gaps8"
    positions = positions_of(packed.encoding, packed.places, len(packed.values))
    assert np.array_equal(spread(positions, packed.values, kernel.shape), kernel)
    ```
    """
    if dense and array.nbytes <= _UNPACKING:
        return Packed("dense", array.shape, array)
    flat = array.ravel()
    # Half the memory that the places would take by default.
    positions = np.flatnonzero(flat).astype("int32" if flat.size < 2**31 else "int64")
    steps = steps_of(array)
    plain = [Packed("dense", array.shape, array)]
    # Without zeros, the places would be stored for nothing.
    if len(positions) < flat.size or not dense:
        gaps = [_with_gaps(array, flat, positions, bits) for bits in (4, 8, 16)]
        plain = [*gaps, _with_bits(array, flat, positions), *plain]
    found = [_coded(packed, steps) for packed in plain[: None if dense else -1]]
    if dense and (corrected := _corrected(array)):
        found.append(corrected)
    smallest = min(found, key=_size)
    return smallest if smallest.saved > 0 or not dense else plain[-1]


def pays(saved: Iterable[int]) -> bool:
    """Return whether weights, each with its `Packed.saved`, save more than what they share adds to a file."""
    return sum(saved) > _SHARED


def _size(packed: Packed) -> int:
    """Return the bytes that a weight takes, plus what unpacks it beyond what every packed weight needs."""
    unpacking = 0 if packed.others is None else _UNPACKING + _size(packed.others) - packed.others.nbytes
    return packed.nbytes + unpacking + _DECODING * (packed.codes is not None)


def _coded(packed: Packed, steps: np.ndarray | None) -> Packed:
    """Return the weight with its values coded, if that is smaller."""
    columns = None
    if steps is not None:
        places = np.arange(packed.values.size)
        if packed.places is not None:
            places = positions_of(packed.encoding, packed.places, len(packed.values)).numpy()
        columns = places % len(steps)
    codes = code(packed.values.ravel(), columns, steps)
    return min(packed, replace(packed, codes=codes), key=_size)


def _corrected(array: np.ndarray) -> Packed | None:
    """Return the weight with its most frequent values coded and the others apart, as after a `Sum`."""
    flat = array.ravel()
    codes, is_other = frequent(flat)
    if codes is None:
        return None
    others = pack(np.where(is_other, flat, flat.dtype.type(0)).reshape(array.shape), dense=False)
    return Packed("dense", array.shape, array, codes=codes, others=others)


def positions_of(encoding: str, places: tf.Tensor, count: int) -> tf.Tensor:
    """Return the places of the stored values of a packed weight, as TensorFlow operations.

    Args:
        encoding: String, as in `Packed`, not `"dense"`.
        places: Integer tensor, one-dimensional.
        count: Int, how many values are stored.

    Returns:
        int64 tensor, the places in the flattened weight, ascending.
    """
    return _finder(encoding)(places, tf.constant(count, tf.int64))


@functools.cache
def _finder(encoding: str) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    def find(places: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        if encoding == "bitmask":
            bits = tf.bitwise.right_shift(places[:, tf.newaxis], _BITS) & 1
            return tf.where(tf.reshape(bits, [-1]) > 0)[:, 0]
        gaps = from_bits(places, 4, count) if encoding == "gaps4" else places
        return tf.cumsum(tf.cast(gaps, tf.int64) + 1) - 1

    dtype = tf.uint16 if encoding == "gaps16" else tf.uint8
    return traced_once(find, [tf.TensorSpec([None], dtype), tf.TensorSpec([], tf.int64)])


def spread(positions: tf.Tensor, values: tf.Tensor, shape: tuple[int, ...]) -> tf.Tensor:
    """Return a tensor with values at positions in its flattened form, and zeros elsewhere."""
    size = tf.constant([np.prod(shape, dtype="int64")], tf.int64)
    return tf.reshape(_spreader(values.dtype)(positions, values, size), shape)


@functools.cache
def _spreader(dtype: tf.DType) -> Callable[..., tf.Tensor]:
    def spread(positions: tf.Tensor, values: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
        return tf.scatter_nd(positions[:, tf.newaxis], values, size)

    vector = tf.TensorSpec([None], tf.int64)
    return traced_once(spread, [vector, tf.TensorSpec([None], dtype), tf.TensorSpec([1], tf.int64)])


def _with_gaps(array: np.ndarray, flat: np.ndarray, positions: np.ndarray, bits: int) -> Packed:
    gaps = np.diff(positions, prepend=-1) - 1
    longest = 2**bits - 1
    bridges, rest = np.divmod(gaps, longest + 1)
    last = np.cumsum(bridges + 1, dtype=positions.dtype) - 1
    places = np.full(len(positions) + bridges.sum(), longest, f"uint{max(bits, 8)}")
    places[last] = rest
    values = np.zeros(len(places), flat.dtype)
    values[last] = flat[positions]
    stored = to_bits(places, bits) if bits < 8 else places
    return Packed(f"gaps{bits}", array.shape, values, stored)


def _with_bits(array: np.ndarray, flat: np.ndarray, positions: np.ndarray) -> Packed:
    bits = np.packbits(flat != 0, bitorder="little")
    return Packed("bitmask", array.shape, flat[positions], bits)
