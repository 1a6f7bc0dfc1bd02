"""What keeps a model usable where `fit` fails: nothing is left on it, weights are remembered."""

import types
from collections.abc import Callable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

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


def if_changed_later(
    callback: keras.callbacks.Callback, variables: Sequence[keras.Variable], act: Callable[[], None]
) -> None:
    """Acts once more after `on_train_end` of all callbacks of a `fit`, if weights are then others than now.

    `EarlyStopping` puts those of another epoch into the model, even if it comes later in the list.

    Args:
        callback: The callback, in its `on_train_end`.
        variables: Sequence of `keras.Variable`.
        act: Called without arguments.
    """
    history, params = getattr(callback.model, "history", None), callback.params
    if history is None:
        return
    left, own = _copies(variables), history.on_train_end

    def last(logs: dict[str, float] | None = None) -> None:
        vars(history).pop("on_train_end", None)
        own(logs)
        # One that the user put in front of the callback is called in the next `fit` first.
        if history.params is params and not all(map(np.array_equal, left, _copies(variables))):
            act()

    # Keras appends it to the callbacks of the user.
    history.on_train_end = last


def _copies(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    return [tf.convert_to_tensor(variable).numpy() for variable in variables]
