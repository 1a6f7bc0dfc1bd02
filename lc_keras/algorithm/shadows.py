"""Copies of variables beside a model."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from lc_keras.internals import compiled


class Snapshot:
    """A copy of the weights of a model that are not compressed.

    Args:
        model: `keras.Model`.
        compressed: List of `keras.Variable`, the weights to leave out.
    """

    def __init__(self, model: keras.Model, compressed: Sequence[keras.Variable]) -> None:
        left_out = {id(variable) for variable in compressed}
        self._variables = [v for v in model.weights if id(v) not in left_out]
        self._floating = [v for v in self._variables if v.value.dtype.is_floating]
        self._copies = [tf.Variable(v.value, trainable=False) for v in self._variables]
        self.save = compiled(self._save)
        self._finite = compiled(self._finite)  # type: ignore[method-assign]  # compiled

    def not_finite(self) -> list[keras.Variable]:
        """The variables that now hold a NaN or an infinity."""
        if not self._floating:
            return []
        return [v for v, ok in zip(self._floating, self._finite().numpy(), strict=True) if not ok]

    def restore(self) -> None:
        for variable, copy in zip(self._variables, self._copies, strict=True):
            variable.assign(copy)

    def _save(self) -> None:
        for variable, copy in zip(self._variables, self._copies, strict=True):
            copy.assign(variable.value)

    def _finite(self) -> tf.Tensor:
        return tf.stack([tf.reduce_all(tf.math.is_finite(v.value)) for v in self._floating])
