"""Find what a `train_step` calls its model on, which may be other than the data that `fit` gives it."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from lc_keras.internals.keras import is_of_keras, replaced
from lc_keras.internals.tensorflow import compiled, copies_of, written_in


class TrainStep:
    """Take from batches what the `train_step` of a model calls it on in training.

    The step is traced up to its first such call, and nothing that comes after happens.

    Args:
        model: Built `keras.Model`.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._up_to_call: Any = compiled(self._given)
        self._hands_on = False  # whether the latest trace leaves the inputs as they are

    def inputs(self, batch: Any, own: Sequence[keras.Variable]) -> Any:
        """Return what the model is called on for a batch.

        These are the batch's inputs if Keras wrote the step, if it hands them on, if it calls only parts of
        the model, or if it cannot be traced by itself.

        Args:
            batch: What `fit` gives to `train_step`.
            own: Sequence of `keras.Variable`, which may change.

        Raises:
            ValueError: If the step would change other variables first.
        """
        inputs = inputs_of(batch)
        if is_of_keras(self._model.train_step):
            return inputs
        try:
            graph = self._up_to_call.get_concrete_function(batch).graph
        except Exception:  # whatever a step may raise outside of `fit`
            return inputs
        if self._hands_on:
            return inputs
        may_change = {id(copy.handle) for variable in own for copy in copies_of(variable)}
        if any(id(handle) not in may_change for handle in written_in(graph)):
            raise ValueError("its `train_step` changes variables of its own before it calls the model")
        return self._up_to_call(batch)

    def _given(self, batch: Any) -> Any:
        with replaced([(self._model, "call", _stopping(self._model.call))]):
            try:
                self._model.train_step(batch)
            except _Called as called:
                found, inputs = map(tf.nest.flatten, (called.inputs, inputs_of(batch)))
                same = (_source(one) is other for one, other in zip(found, inputs, strict=False))
                self._hands_on = len(found) == len(inputs) and all(same)
                return called.inputs
        raise ValueError("its `train_step` never calls the model")


class _Called(BaseException):
    """Tell what a model is called on, past handlers of errors."""

    def __init__(self, inputs: Any) -> None:
        self.inputs = inputs


def _stopping(own: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **options: Any) -> Any:
        if options.get("training") is False:
            # Such as for labels, in the step of a teacher.
            return own(*args, **options)
        raise _Called([*args, *options.values()][0])

    return call


def inputs_of(batch: Any) -> Any:
    """Return the inputs of a batch as `fit` takes it, without targets and weights."""
    return keras.utils.unpack_x_y_sample_weight(batch)[0]


def _source(tensor: tf.Tensor) -> tf.Tensor:
    """Return what a tensor was before Keras cast it to the type that a model computes in."""
    return tensor.op.inputs[0] if tensor.op.type == "Cast" else tensor
