"""What keeps a model usable where `fit` fails: exceptions are seen, weights are remembered."""

import tensorflow as tf


class Guard:
    """The train function of one `fit`, traced anew.

    Keras tells callbacks nothing of exceptions, so they are caught here.

    Args:
        model: `keras.Model`, in `fit`.
        on_error: Called with an exception that the training raised.
        on_left_over: Called without arguments if the `fit` ended where nothing could
            be caught, and another one begins.
    """

    def __init__(self, model, on_error, on_left_over):
        self._on_error = on_error
        self._model = model
        self.dismiss = on_left_over
        self._history = getattr(model, "history", None)
        # A function that was traced before `fit` would leave the penalty out.
        model.make_train_function(force=True)
        self._train_function = model.train_function

    def __call__(self, iterator):
        if getattr(self._model, "history", None) is not self._history:
            # Another `fit`, after one that ended where nothing could be caught.
            self.dismiss()
            self._model.make_train_function(force=True)
            return self._model.train_function(iterator)
        try:
            return self._train_function(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            raise
        except BaseException as error:
            self._on_error(error)
            raise


class Snapshot:
    """A copy of the weights of a model that are not compressed.

    Args:
        model: `keras.Model`.
        compressed: List of `keras.Variable`, the weights to leave out.
    """

    def __init__(self, model, compressed):
        compressed = {id(variable) for variable in compressed}
        self._variables = [v for v in model.weights if id(v) not in compressed]
        self._copies = [tf.Variable(v.value, trainable=False) for v in self._variables]
        self.save = tf.function(self._save, autograph=False)
        self.finite = tf.function(self._finite, autograph=False)

    def _save(self):
        for variable, copy in zip(self._variables, self._copies, strict=True):
            copy.assign(variable.value)

    def _finite(self):
        checks = [
            tf.reduce_all(tf.math.is_finite(v.value)) for v in self._variables if v.value.dtype.is_floating
        ]
        return tf.reduce_all(tf.stack(checks)) if checks else tf.constant(True)

    def restore(self):
        for variable, copy in zip(self._variables, self._copies, strict=True):
            variable.assign(copy)
