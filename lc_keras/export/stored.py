"""Hold weights as a SavedModel does: packed in the file, unpacked once it is loaded."""

from collections.abc import Iterable

import tensorflow as tf

from lc_keras.internals.tensorflow import unsaved
from lc_keras.measuring.coding import decode
from lc_keras.measuring.packing import Packed, positions_of, spread


class StoredValues(tf.Module):
    """The values of a packed weight, as they are or coded."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self._codes, self._count = packed.codes, packed.values.size
        held = [packed.values] if packed.codes is None else [packed.codes.numbers, packed.codes.table]
        if packed.codes is not None and packed.codes.steps is not None:
            held.append(packed.codes.steps)
        self.held = [tf.Variable(array, trainable=False) for array in held]

    def read(self, positions: tf.Tensor | None) -> tf.Tensor:
        """Return the values, which are at `positions` in the flattened weight; `None`: at all of them."""
        values, *rest = (variable.value() for variable in self.held)
        if self._codes is None:
            return values
        values = decode(self._codes.bits, values, rest[0], self._count)
        if self._codes.steps is not None:
            places = tf.range(self._count) if positions is None else positions
            values *= tf.gather(rest[1], places % tf.constant(len(self._codes.steps), places.dtype))
        return values


class StoredArray(tf.Module):
    """An array that is stored packed."""

    def __init__(self, packed: Packed) -> None:
        super().__init__()
        self._encoding, self._shape, self._count = packed.encoding, packed.shape, packed.values.size
        self.values = StoredValues(packed)
        self.places = None if packed.places is None else tf.Variable(packed.places, trainable=False)
        self.others = None if packed.others is None else StoredArray(packed.others)

    def unpacked(self) -> tf.Tensor:
        """Return the array, in the type in which it is stored."""
        if self.places is None:
            dense = tf.reshape(self.values.read(None), self._shape)
        else:
            positions = positions_of(self._encoding, self.places, self._count)
            dense = spread(positions, self.values.read(positions), self._shape)
        if self.others is None:
            return dense
        others = self.others.unpacked()
        return tf.where(others != 0, others, dense)


class StoredWeight(tf.Module):
    """A weight that is stored packed, or in fewer bits, and read dense, in the type `dtype`."""

    def __init__(self, packed: Packed, dtype: str | tf.DType) -> None:
        super().__init__()
        self.array = StoredArray(packed)
        self.dense = unsaved(packed.shape, dtype)

    def read(self) -> tf.Tensor:
        """Return the weight, once `load` has run."""
        return self.dense.value()

    def load(self) -> None:
        """Unpack the weight."""
        _fill(self.dense, tf.cast(self.array.unpacked(), self.dense.dtype))


class StoredSparse(tf.Module):
    """A matrix that is stored packed and stays sparse when loaded; it is read in the type `dtype`."""

    def __init__(self, packed: Packed, dtype: str | tf.DType) -> None:
        super().__init__()
        self._encoding, self.shape, self._count = packed.encoding, packed.shape, len(packed.values)
        self.values = StoredValues(packed)
        self.places = tf.Variable(packed.places, trainable=False)
        self.indices = unsaved((len(packed.values), 2), tf.int64)
        self.entries = unsaved((len(packed.values),), dtype)

    def read(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the places, of shape `(n, 2)`, and the values there, once `load` has run."""
        return self.indices.value(), self.entries.value()

    def load(self) -> None:
        """Unpack the values and their places."""
        positions = positions_of(self._encoding, self.places, self._count)
        columns = tf.constant(self.shape[1], tf.int64)
        _fill(self.indices, tf.stack([positions // columns, positions % columns], axis=1))
        _fill(self.entries, tf.cast(self.values.read(positions), self.entries.dtype))


class LoadOnce(tf.saved_model.experimental.TrackableResource):
    """A resource that loads weights when a loader initialises it: once, after the variables."""

    def __init__(self, weights: Iterable[StoredWeight | StoredSparse]) -> None:
        super().__init__()
        self._weights = tuple(weights)

    def _create_resource(self) -> tf.Tensor:
        # It holds only the variables, but a resource must have a handle.
        return tf.constant(0)

    def _initialize(self) -> None:
        for weight in self._weights:
            weight.load()


def _fill(variable: tf.Variable, value: tf.Tensor) -> None:
    # An emptied variable has another shape, which `assign` would not accept.
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
