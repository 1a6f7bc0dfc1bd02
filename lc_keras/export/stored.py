"""Hold weights as a SavedModel does: packed in the file, unpacked once it is loaded."""

from collections.abc import Iterable

import tensorflow as tf

from lc_keras.internals.tensorflow import unsaved
from lc_keras.measuring.packing import Packed, positions_of, unpack


class StoredWeight(tf.Module):
    """A weight that is stored packed, or in fewer bits, and read dense. `dtype` is what it is read in."""

    def __init__(self, packed: Packed, dtype: str | tf.DType) -> None:
        super().__init__()
        self._encoding, self._shape, self._dtype = packed.encoding, packed.shape, tf.as_dtype(dtype)
        self.values = tf.Variable(packed.values, trainable=False)
        self.places = None if packed.places is None else tf.Variable(packed.places, trainable=False)
        self.dense = unsaved(packed.shape, dtype)

    def read(self) -> tf.Tensor:
        """Return the weight, once `load` has run."""
        return self.dense.value()

    def load(self) -> None:
        """Unpack the weight."""
        values = tf.cast(self.values, self._dtype)
        if self.places is not None:
            values = unpack(self._encoding, values, self.places, self._shape)
        _fill(self.dense, values)


class StoredSparse(tf.Module):
    """A matrix that is stored packed and stays sparse when it is loaded. `dtype` is what it is read in."""

    def __init__(self, packed: Packed, dtype: str | tf.DType) -> None:
        super().__init__()
        self._encoding, self.shape, self._dtype = packed.encoding, packed.shape, tf.as_dtype(dtype)
        self.values = tf.Variable(packed.values, trainable=False)
        self.places = tf.Variable(packed.places, trainable=False)
        self.indices = unsaved((len(packed.values), 2), tf.int64)
        self.entries = unsaved((len(packed.values),), dtype)

    def read(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Return the places, of shape `(n, 2)`, and what is there, once `load` has run."""
        return self.indices.value(), self.entries.value()

    def load(self) -> None:
        """Unpack the places."""
        positions = positions_of(self._encoding, self.places)
        columns = tf.constant(self.shape[1], tf.int64)
        _fill(self.indices, tf.stack([positions // columns, positions % columns], axis=1))
        _fill(self.entries, tf.cast(self.values, self._dtype))


class LoadOnce(tf.saved_model.experimental.TrackableResource):
    """A resource that loads weights as a loader initialises it: once, after the variables."""

    def __init__(self, weights: Iterable[StoredWeight | StoredSparse]) -> None:
        super().__init__()
        self._weights = tuple(weights)

    def _create_resource(self) -> tf.Tensor:
        # The variables are what it holds; a resource must have a handle.
        return tf.constant(0)

    def _initialize(self) -> None:
        for weight in self._weights:
            weight.load()


def _fill(variable: tf.Variable, value: tf.Tensor) -> None:
    # What was emptied has another shape, which `assign` would not have.
    tf.raw_ops.AssignVariableOp(resource=variable.handle, value=value)
