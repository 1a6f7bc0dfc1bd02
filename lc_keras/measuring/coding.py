"""Code values in few bits each, if they are few or whole numbers of steps."""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from lc_keras.internals.tensorflow import traced_once

_MOST_BITS, _SOME = 8, 2**16


@dataclass(frozen=True)
class Codes:
    """Values as numbers of a few bits each: $v_i = t_{n_i}$, or $t_{n_i}$ steps of the column of the value.

    Attributes:
        bits: Int, how many bits a number has.
        numbers: uint8 array, the numbers, one after the other, from the lowest bit up.
        table: One-dimensional array, what each number stands for.
        steps: One-dimensional array of a step for each column, which is a place of the last axes, or `None`.
    """

    bits: int
    numbers: np.ndarray
    table: np.ndarray
    steps: np.ndarray | None = None

    @property
    def nbytes(self) -> int:
        steps = 0 if self.steps is None else self.steps.nbytes
        return self.numbers.nbytes + self.table.nbytes + steps


def code(values: np.ndarray, columns: np.ndarray | None, steps: np.ndarray | None) -> Codes | None:
    """Code values in as few bits as they need.

    Args:
        values: One-dimensional floating array.
        columns: int array of the same shape, the column of each value; `None` without steps.
        steps: As `steps_of` returns them.

    Returns:
        `Codes`, or `None` if more than 8 bits would be needed.
    """
    if not len(values):
        return None
    # Most weights have many values in any part of them, and the sign of a zero would be lost.
    some = values[: 16 * _SOME]
    few = (
        len(np.unique(some[some != 0][:_SOME])) <= 2**_MOST_BITS and not np.signbit(values[values == 0]).any()
    )
    found = []
    if few:
        table, numbers = np.unique(values, return_inverse=True)
        if len(table) <= 2**_MOST_BITS:
            bits = max(1, int(len(table) - 1).bit_length())
            found.append(Codes(bits, to_bits(numbers, bits), table))
    # With steps, numbers have two bits at least.
    if steps is not None and not (found and found[0].bits <= 2):
        with np.errstate(invalid="ignore"):
            whole = np.rint(np.nan_to_num(values / steps[columns])).astype(int)
        largest = int(np.abs(whole).max(initial=0))
        bits = largest.bit_length() + 1
        levels = np.arange(-largest, largest + 1, dtype=values.dtype)
        # Columns with steps of their own have many values together.
        found.append(Codes(bits, to_bits(whole + largest, bits), levels, steps))
    return min(found, key=lambda codes: codes.nbytes, default=None)


def frequent(values: np.ndarray) -> tuple[Codes | None, np.ndarray]:
    """Code the most frequent values in few bits each.

    Args:
        values: One-dimensional floating array.

    Returns:
        Tuple of `Codes`, in which the other values have an arbitrary number, and a bool array that marks
        those others. The codes are `None` if frequent values are not the majority.
    """
    none = None, np.zeros(len(values), bool)
    most = 2**_MOST_BITS
    if not len(values):
        return none
    # Zeros do not count: they take less room if the places of the others are stored.
    some = values[:: -(-len(values) // _SOME)]
    some = some[some != 0]
    again = np.unique(some, return_counts=True)[1]
    if np.sort(again[again > 1])[-most:].sum() <= len(some) / 2:
        return none
    found, numbers, counts = np.unique(values, return_inverse=True, return_counts=True)
    # The sign of a zero would be lost, and a zero cannot be one of the other values.
    if np.signbit(values[values == 0]).any() or not np.isfinite(found).all():
        return none
    # TensorFlow takes a subnormal value for a zero, which here means one of the frequent values.
    tiny = np.finfo(values.dtype if values.itemsize == 8 else np.float32).tiny
    if np.any(np.abs(found[found != 0].astype(float)) < tiny):
        return none
    order = np.lexsort((-counts, found != 0))
    others = len(values) - np.cumsum(counts[order])
    places = np.arange(1, _MOST_BITS + 1)
    sizes = places * len(values) / 8 + others[np.minimum(2**places, len(found)) - 1] * (values.itemsize + 1)
    bits = int(places[np.argmin(sizes)])
    rank = np.argsort(order)[numbers]
    is_other = rank >= 2**bits
    return Codes(bits, to_bits(np.where(is_other, 0, rank), bits), found[order[: 2**bits]]), is_other


def steps_of(array: np.ndarray) -> np.ndarray | None:
    """Return a step for each place of the last axes, if all values there are whole multiples of it.

    Args:
        array: Floating array of two axes or more, such as `Grid` leaves. The units may lie along the last
            axis or, as in a kernel of attention, along several.

    Returns:
        One-dimensional array, or `None` if the largest value of a column is not the end of a grid of 2 to 8
        bits.
    """
    if array.ndim < 2 or not array.size:
        return None
    widths = dict.fromkeys(math.prod(array.shape[axis:]) for axis in range(array.ndim - 1, 0, -1))
    found = (_steps_of_columns(array.reshape(-1, width)) for width in widths)
    return next((steps for steps in found if steps is not None), None)


def _steps_of_columns(rows: np.ndarray) -> np.ndarray | None:
    # Neither term makes an array as large.
    largest = np.maximum(rows.max(0), -rows.min(0))
    if not np.isfinite(largest).all():
        return None

    def are_whole(rows: np.ndarray, steps: np.ndarray) -> bool:
        whole = np.rint(np.divide(rows, steps, out=np.zeros_like(rows), where=steps > 0))
        return np.array_equal(whole * steps, rows)

    for bits in range(2, _MOST_BITS + 1):
        steps = largest / largest.dtype.type(2 ** (bits - 1) - 1)
        # For most weights, the first rows decide.
        if are_whole(rows[: 1 + _SOME // rows.shape[1]], steps) and are_whole(rows, steps):
            return steps
    return None


def decode(bits: int, numbers: tf.Tensor, table: tf.Tensor, count: int) -> tf.Tensor:
    """Return what the numbers of `Codes` stand for, as TensorFlow operations; the caller applies steps.

    Args:
        bits: Int, as in `Codes`.
        numbers: uint8 tensor, as in `Codes`.
        table: Tensor, as in `Codes`.
        count: Int, how many values there are.

    Returns:
        One-dimensional tensor of the type of `table`.
    """
    return _decoder(bits, table.dtype)(numbers, table, tf.constant(count, tf.int64))


@functools.cache
def _decoder(bits: int, dtype: tf.DType) -> Callable[..., tf.Tensor]:
    def decode(numbers: tf.Tensor, table: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        return tf.gather(table, from_bits(numbers, bits, count))

    codes = tf.TensorSpec([None], tf.uint8), tf.TensorSpec([None], dtype)
    return traced_once(decode, [*codes, tf.TensorSpec([], tf.int64)])


def to_bits(numbers: np.ndarray, bits: int) -> np.ndarray:
    """Return whole numbers below 2**bits, packed one after the other into bytes."""
    flags = np.asarray(numbers).ravel().astype("uint8")[:, None] >> np.arange(bits, dtype="uint8") & 1
    return np.packbits(flags.astype(bool), bitorder="little")


def from_bits(packed: tf.Tensor, bits: int, count: int | tf.Tensor) -> tf.Tensor:
    """Undo `to_bits` of at most 8 bits, as TensorFlow operations.

    Returns:
        int32 vector of `count` numbers.
    """
    if bits < 8:
        flags = tf.bitwise.right_shift(packed[:, tf.newaxis], np.arange(8, dtype="uint8")) & 1
        rows = tf.reshape(tf.reshape(flags, [-1])[: count * bits], [-1, bits])
        # As bytes: wider integers would take many times the memory.
        packed = tf.reduce_sum(tf.bitwise.left_shift(rows, np.arange(bits, dtype="uint8")), 1)
    return tf.cast(packed, tf.int32)
