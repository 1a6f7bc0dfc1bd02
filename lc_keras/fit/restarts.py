"""How a `fit` that was cut off goes on from its last checkpoint."""

import keras
import numpy as np

from lc_keras.fit.checkpoints import Checkpoint, Checkpoints
from lc_keras.fit.run import Run


class Restarts:
    """The checkpoints of one run.

    Args:
        checkpoints: `Checkpoints`.
        run: `Run`.
        model: `keras.Model`, in `fit`.
    """

    def __init__(self, checkpoints: Checkpoints, run: Run, model: keras.Model) -> None:
        self._checkpoints = checkpoints
        self._run = run
        # Of several workers all read their variables, and one writes.
        self._writes = model.distribute_strategy.extended.should_checkpoint

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or `None`."""
        return self._checkpoints.latest()

    def save(self, epoch: int) -> None:
        """Writes a checkpoint.

        Args:
            epoch: Int, the epoch to go on with.
        """
        facts, tensors = self._run.facts(), self._run.state().tensors()
        if self._writes:
            self._checkpoints.save(epoch, facts, tensors)

    def delete(self) -> None:
        """Removes the checkpoints, now that training has ended."""
        if self._writes:
            self._checkpoints.delete()


class FirstEpoch:
    """The epoch with which Keras begins the next `fit`, which Keras itself never clears.

    Args:
        model: `keras.Model`.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._set: np.int64 | None = None
        self.clear()

    @property
    def is_set(self) -> bool:
        return self._set is not None

    def set(self, epoch: int) -> None:
        self._model._initial_epoch = self._set = np.int64(epoch)

    def clear(self) -> None:
        self._model._initial_epoch = self._set = None

    def check(self) -> None:
        """Checks that nobody else has taken the model elsewhere.

        Raises:
            ValueError: If somebody has.
        """
        # `is`, since who sets the same epoch has set weights, too.
        if self._model._initial_epoch is not self._set:
            raise ValueError(
                "Expected a run to be resumed by `checkpoint_dir` alone, which keeps the model, the "
                "optimizer, θ, λ and μ together. Received: a model that another callback, such as "
                f"BackupAndRestore, has taken to epoch {self._model._initial_epoch}. Pass `checkpoint_dir` "
                "in its stead; what it kept by itself is not enough to go on from."
            )
