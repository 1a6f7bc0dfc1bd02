"""Everything that `fit` does not offer its callbacks: training itself, its failures, first epoch and end.

Keras tells callbacks nothing about exceptions, traces a train function once for all later calls, and never
clears the epoch with which a restored run begins. The code that deals with this is here and nowhere else.
"""

import types
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.shadows import fingerprint
from lc_keras.algorithm.tasks import SharedCost
from lc_keras.arguments import warn
from lc_keras.fit.statistics import Statistics
from lc_keras.internals.keras import build_for_training, first_epoch_of, is_of_keras, set_first_epoch

# What Keras makes for `fit`: a function of an iterator over batches, which returns the metrics.
Logs = dict[str, tf.Tensor]
TrainFunction = Callable[[Iterator[object]], Logs]

NOT_ALONE = (
    "Expected `fit` alone to train the model. Received: `train_on_batch` or another `fit` while it ran, "
    "which ended the compression; the model holds what that left."
)


class Run:
    """Base class of a run, in one `fit`, of LC or of a method that it is compared with.

    Attributes:
        shared: List of `SharedCost`, what the tasks were bound to when `fit` began.
        variables: List of `keras.Variable`, the weights that have a budget.
        shown: List of arrays, fingerprints of the weights under the budget that the model has shown.
        statistics: `Statistics` of the weights that the model shows.
        logs: Dict of floats, what the epoch's logs say about the run.
        mu: Float, the μ with which later weights are compressed. A budget does not depend on it.
        last_gap: Float, ‖w − θ‖ / ‖w‖ at the end, if nothing has been said about it.
    """

    shared: Sequence[SharedCost]
    variables: list[keras.Variable]
    shown: list[np.ndarray]
    statistics: Statistics
    logs: dict[str, float]
    mu: float = 1.0
    last_gap: float = 0.0

    def begin_epoch(self, epoch: int) -> None:
        """Prepare for the batches of an epoch."""

    def begin_batch(self, batch: int, anew: bool) -> None:
        """Prepare for an execution; `anew`: its train function is a new one."""

    def execute(self, train_function: TrainFunction, iterator: Iterator[object]) -> Logs:
        """Run the traced train function on the next batches, and return the logs."""
        raise NotImplementedError

    def end_epoch(self) -> None:
        """Leave weights in the model that others may see until the next epoch begins."""

    def complete_epoch(self, epoch: int, loss: float) -> None:
        """Note that an epoch is over, with its loss; raise a `ValueError` if the loss shows a divergence."""

    def end(self) -> bool:
        """Leave the compressed weights in the model; return whether they are to be compressed once more."""
        raise NotImplementedError

    def abandon(self, error: BaseException) -> None:
        """Leave the model usable, now that an exception has ended the training."""

    def release(self) -> None:
        """Free memory, and stop what traced functions still do."""


class Attachment:
    """Put a run into the `fit` of one model, as its train function, and take it away whatever happens.

    What the run adds to the model is there only while the train function runs: whatever other callbacks do
    or raise, they see the user's model.

    Args:
        callback: `keras.callbacks.Callback` that takes part in the training, with its model set.

    Attributes:
        run: `Run` that is attached, or `None`.
        first_logs: The logs of the first batch of the `fit`, for the model before any update, or `None`.
    """

    def __init__(self, callback: keras.callbacks.Callback) -> None:
        self._callback = callback
        self._model = callback.model
        # These tell this `fit` from others.
        self._history: object = None
        self._params: object = None
        self._first_epoch: np.int64 | None = None
        self._train_function: Any = None
        self.run: Run | None = None
        self.first_logs: Logs | None = None
        # Otherwise Keras would begin every later `fit` where an earlier one was resumed.
        set_first_epoch(self._model, None)

    def clear_way(self) -> None:
        """Take away what an earlier `fit` left because it could not do so itself.

        Raises:
            ValueError: If another callback is attached in this same `fit`, or nothing is known about the
                `fit`.
        """
        params = self._callback.params
        if params is None:
            raise ValueError(
                "Expected a list of callbacks, which Keras tells how many epochs there are. Received: a "
                "CallbackList that was made without `epochs`."
            )
        other = self._model.train_function
        if isinstance(other, Attachment):
            other.detach()
            if other._params is params:
                raise ValueError(
                    "Expected one LearningCompression, or one baseline, in a fit: several tasks go "
                    "in one list. Received: two."
                )

    def attach(self, run: Run) -> None:
        """Put a run between `fit` and its train function, if Keras traces the model's `train_step`."""
        self.run = run
        self._history, self._params = getattr(self._model, "history", None), self._callback.params
        try:
            self._trace()
        except BaseException:
            self.detach()
            raise

    def renew(self) -> bool:
        """Attach again if another callback made Keras rebuild the train function; return whether it did."""
        if self.run is None or not is_of_keras(self._model.train_function):
            return False
        self._trace()
        return True

    def fail(self, error: BaseException) -> None:
        """End the run because of an exception, and leave the model usable."""
        if self.run is not None:
            try:
                self.run.abandon(error)
            finally:
                self.detach()

    def detach(self) -> None:
        """Remove everything that was added to the model, and free it."""
        if self.run is None:
            return
        if isinstance(self._model.train_function, Attachment):
            # The next `fit` traces anew, without the run.
            self._model.train_function = None
        self._train_function = None
        if self._first_epoch is not None:
            self.begin_at(None)
        # It holds copies of weights.
        run, self.run = self.run, None
        run.release()

    def begin_at(self, epoch: int | None) -> None:
        """Set the epoch with which this `fit` begins; `None`: its `initial_epoch`."""
        self._first_epoch = None if epoch is None else np.int64(epoch)
        set_first_epoch(self._model, self._first_epoch)

    def check_beginning(self) -> None:
        """Check that no other callback, such as `BackupAndRestore`, has taken the model to another epoch."""
        # `is`, since a callback that sets the same epoch has set weights, too.
        found = first_epoch_of(self._model)
        if found is not self._first_epoch:
            raise ValueError(
                "Expected a run to be resumed by `checkpoint_dir` alone, which keeps the model, the "
                "optimizer, θ, λ and μ together. Received: a model that another callback, such as "
                f"BackupAndRestore, has taken to epoch {found}. Pass `checkpoint_dir` "
                "instead: what that callback kept by itself is not enough to go on from."
            )

    def __call__(self, iterator: Iterator[object]) -> Logs:
        """Run the train function of this `fit`, and of no other."""
        # `train_on_batch` feeds a generator; another `fit` has another history.
        elsewhere = isinstance(iterator, types.GeneratorType)
        if self.run is None or elsewhere or getattr(self._model, "history", None) is not self._history:
            self.detach()
            self._model.make_train_function(force=True)
            return self._model.train_function(iterator)
        try:
            if self.first_logs is None:
                build_for_training(self._model, iterator)
            logs = self.run.execute(self._train_function, iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            raise
        except BaseException as error:
            self.fail(error)
            raise
        if self.first_logs is None:
            self.first_logs = logs
        return logs

    def _trace(self) -> None:
        if hasattr(self._model.train_step, "python_function"):
            raise ValueError(
                "Expected a `train_step` that Keras traces for each `fit`. Received: one that is a "
                "tf.function itself, and would go on as it was traced before. Remove the decorator."
            )
        # A function that was traced before `fit` would leave the penalty out.
        self._model.make_train_function(force=True)
        self._train_function, self._model.train_function = self._model.train_function, self


def comes_first(callback: keras.callbacks.Callback) -> bool:
    """Return whether a callback precedes the history of its `fit`; to be called in its `set_params`.

    Keras appends a history, unless the user has put one into the list, and tells the callbacks in this order.
    """
    history = getattr(callback.model, "history", None)
    return history is None or history.params is not callback.params


def have_last_word(
    callback: keras.callbacks.Callback,
    variables: Sequence[keras.Variable],
    act: Callable[[bool], None],
    is_first: bool,
) -> None:
    """Act once more after the `on_train_end` of all callbacks of a `fit`.

    `EarlyStopping` puts weights of another epoch into the model, even if it comes later in the list. If no
    history comes after the callback, this acts at once.

    Args:
        callback: The callback that acts, in its `on_train_end`.
        variables: Sequence of `keras.Variable`.
        act: Called with a bool, whether the variables have changed by then.
        is_first: Bool, what `comes_first` returned.
    """
    if not is_first:
        warn(
            f"A History precedes {type(callback).__name__}: what callbacks behind it put into the model as "
            "training ends stays as it is, even beyond the budget. Put the History last, or leave it out: "
            "Keras adds one."
        )
    history, params = getattr(callback.model, "history", None), callback.params
    # A `CallbackList` may have none; the model then still has that of an earlier `fit`.
    if history is None or history.params is not params or not is_first:
        act(False)
        return
    left, own = fingerprint(variables), history.on_train_end

    def last(logs: dict[str, float] | None = None) -> None:
        vars(history).pop("on_train_end", None)
        own(logs)
        act(not np.array_equal(left, fingerprint(variables)))

    history.on_train_end = last
