"""Copies of variables that live beside a model."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.internals.tensorflow import compiled

# How much two sums of the same values may differ.
_SAME = 1e-12
# Traced once for each shape, whichever variables have it.
_outline, _finite = compiled(thresholds.outline), compiled(thresholds.finite)


class Shadow:
    """Hold copies of some variables, each where its variable lives.

    Copies made in the scope of a `tf.distribute` strategy are mirrored as the variables are. With `widen`,
    copies of half-precision variables are float32.
    """

    def __init__(self, variables: Sequence[keras.Variable], name: str, widen: bool = False) -> None:
        self.variables = list(variables)
        self.copies = [_copy_of(v, f"{v.name}_{name}", widen) for v in self.variables]
        self._floating = [v for v in self.variables if v.value.dtype.is_floating]
        self.save = compiled(self._save)
        self.swap = compiled(self._swap)
        self._finite = compiled(self._finite_of_each)

    @classmethod
    def joined(cls, shadows: Sequence["Shadow"]) -> "Shadow":
        """Return a shadow that joins the variables and the copies of several others."""
        made = cls([], "")
        made.variables = [variable for shadow in shadows for variable in shadow.variables]
        made.copies = [copy for shadow in shadows for copy in shadow.copies]
        made._floating = [variable for shadow in shadows for variable in shadow._floating]
        return made

    def restore(self) -> None:
        """Give the variables the values of the copies."""
        for variable, copy in zip(self.variables, self.copies, strict=True):
            variable.assign(tf.cast(copy, variable.value.dtype))

    def not_finite(self) -> list[keras.Variable]:
        """Return the variables that now hold a NaN or an infinity."""
        if not self._floating:
            return []
        return [v for v, ok in zip(self._floating, self._finite().numpy(), strict=True) if not ok]

    def _save(self) -> None:
        for variable, copy in zip(self.variables, self.copies, strict=True):
            copy.assign(tf.cast(tf.convert_to_tensor(variable), copy.dtype))

    def _swap(self) -> None:
        for variable, copy in zip(self.variables, self.copies, strict=True):
            value, held = tf.cast(tf.convert_to_tensor(variable), copy.dtype), copy.value()
            variable.assign(tf.cast(held, variable.value.dtype))
            copy.assign(value)

    def _finite_of_each(self) -> tf.Tensor:
        return _finite([tf.convert_to_tensor(v) for v in self._floating])


def fingerprint(variables: Sequence[keras.Variable]) -> np.ndarray:
    """Return a row of `thresholds.outline` for each variable."""

    def outline(value: tf.Tensor) -> tf.Tensor:
        with tf.device(value.device):
            return _outline(value)

    return tf.stack([outline(tf.convert_to_tensor(v)) for v in variables]).numpy()


def is_same(found: np.ndarray, before: np.ndarray, lost: float | np.ndarray = _SAME) -> bool:
    """Return whether a fingerprint is that of the same weights, up to a fraction that they have lost."""
    return bool(np.all(np.abs(found - before) <= np.reshape(lost, [-1, 1]) * before[:, [0, 2, 2]]))


def _copy_of(variable: keras.Variable, name: str, widen: bool) -> tf.Variable:
    with tf.device(variable.value.device):
        value = thresholds.read(variable) if widen else tf.convert_to_tensor(variable)
        return tf.Variable(value, trainable=False, name=name)
