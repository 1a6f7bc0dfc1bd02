"""What keeps a model usable where `fit` fails: nothing is left on it, weights are remembered."""

import types
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from lc_keras.tracing import compiled

# What Keras makes for `fit`: a function of an iterator over batches, which returns the metrics.
Logs = dict[str, tf.Tensor]
TrainFunction = Callable[[Iterator[object]], Logs]


NOT_ALONE = (
    "Expected `fit` alone to train the model. Received: `train_on_batch` or another `fit` while it ran, "
    "which ended the compression; the model holds what that left."
)


class Guard:
    """The train function of one `fit`, traced anew, with what belongs to it and to nothing else.

    What an L step adds to the model is there while the train function runs, and at no
    other time: whatever other callbacks do or raise, they meet the user's model. Keras
    tells callbacks nothing of exceptions, so those of the training are caught here.

    Args:
        model: `keras.Model`, in `fit`.
        params: The `params` that Keras gave the callbacks of this `fit`.
        execute: Called with the traced train function and its iterator; runs it, and
            returns the logs.
        on_error: Called with an exception that the training raised.
        on_left_over: Called without arguments when the model is used after a `fit` that
            ended where nothing could be caught.

    Raises:
        ValueError: If the model's `train_step` is a `tf.function`.
    """

    def __init__(
        self,
        model: keras.Model,
        params: dict[str, int],
        execute: Callable[[TrainFunction, Iterator[object]], Logs],
        on_error: Callable[[BaseException], None],
        on_left_over: Callable[[], None],
    ) -> None:
        self._model = model
        self.params = params
        self._execute = execute
        self._on_error = on_error
        self.dismiss = on_left_over
        self._history = getattr(model, "history", None)
        if hasattr(model.train_step, "python_function"):
            raise ValueError(
                "Expected a `train_step` that Keras traces for each `fit`. Received: one that is a "
                "tf.function itself, and would go on as it was traced before. Take the decorator away."
            )
        # A function that was traced before `fit` would leave the penalty out.
        model.make_train_function(force=True)
        self._train_function = model.train_function

    @classmethod
    def dismiss_other(cls, model: keras.Model, params: dict[str, int] | None) -> None:
        """Clears away what an earlier `fit` left, where it could not do so itself.

        Args:
            model: `keras.Model`, in `fit`.
            params: The `params` that Keras gave the callbacks of this `fit`.

        Raises:
            ValueError: If another callback guards this same `fit`, or nothing is known of it.
        """
        if params is None:
            raise ValueError(
                "Expected a list of callbacks, which Keras tells how many epochs there are. Received: a "
                "CallbackList that was made without `epochs`."
            )
        other = model.train_function
        if isinstance(other, cls):
            other.dismiss()
            if other.params is params:
                raise ValueError(
                    "Expected one LearningCompression, or one baseline, in a fit: several tasks go "
                    "in one list. Received: two."
                )

    def __call__(self, iterator: Iterator[object]) -> Logs:
        # `train_on_batch` feeds a generator; another `fit` has another history.
        elsewhere = isinstance(iterator, types.GeneratorType)
        if elsewhere or getattr(self._model, "history", None) is not self._history:
            self.dismiss()
            self._model.make_train_function(force=True)
            return self._model.train_function(iterator)
        try:
            return self._execute(self._train_function, iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            raise
        except BaseException as error:
            self._on_error(error)
            raise


def is_made_by_keras(train_function: TrainFunction) -> bool:
    """Whether it is a train function as Keras makes it, and none that somebody put around a `Guard`."""
    return str(getattr(train_function, "__module__", "")).partition(".")[0] == "keras"


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
