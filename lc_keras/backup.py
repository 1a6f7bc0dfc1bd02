"""What a run of LC needs to go on after it was cut off, beside what Keras keeps."""

import os
from collections.abc import Iterable

import tensorflow as tf

from lc_keras.lagrangian import Lagrangian


class Backup:
    """θ, the target, w and the place in the schedule, on disk at the end of an epoch.

    Goes with `keras.callbacks.BackupAndRestore`, which keeps the model as it is at the
    end of an epoch, with θ in it, and the optimizer.

    Args:
        directory: String or path-like.
        lagrangian: `Lagrangian`.
    """

    def __init__(self, directory: str | os.PathLike[str], lagrangian: Lagrangian) -> None:
        self._lagrangian = lagrangian
        self._place: dict[str, tf.Variable] = {}
        self._epoch = tf.Variable(-1, dtype=tf.int64, trainable=False)
        self._checkpoint = tf.train.Checkpoint(
            targets=lagrangian.targets, thetas=lagrangian.thetas, mu=lagrangian.mu, epoch=self._epoch
        )
        self._manager = tf.train.CheckpointManager(self._checkpoint, str(directory), max_to_keep=1)

    def save(self, epoch: int, place: dict[str, float]) -> None:
        """Writes the state, while the model shows its compressed weights.

        Args:
            epoch: Int, the epoch that has ended.
            place: Dict of numbers, where the run is.
        """
        self._track(place)
        self._epoch.assign(epoch)
        for name, value in place.items():
            self._place[name].assign(value)
        self._manager.save()

    def restore(self, epoch: int, names: Iterable[str]) -> dict[str, float] | None:
        """Reads the state that `save` wrote last.

        Args:
            epoch: Int, the last epoch that the model has been through.
            names: Iterable of the names in `place`.

        Returns:
            Dict of floats, or `None` where nothing was saved.

        Raises:
            ValueError: If what was saved is of other weights, or of another epoch.
        """
        path = self._manager.latest_checkpoint
        if path is None:
            return None
        self._track(names)
        try:
            self._checkpoint.restore(path).assert_existing_objects_matched()
        except (AssertionError, ValueError) as error:
            raise ValueError(
                f"Expected the backup in '{self._manager.directory}' to be of the same weights and "
                f"tasks. Received: {error}"
            ) from error
        saved = int(self._epoch.numpy())
        if saved != epoch:
            raise ValueError(
                f"Expected the backup in '{self._manager.directory}' to be of the end of epoch "
                f"{epoch}, where training goes on. Received: one of epoch {saved}."
            )
        self._lagrangian.compressed = True
        return {name: float(variable.numpy()) for name, variable in self._place.items()}

    def delete(self) -> None:
        """Removes what was saved."""
        if tf.io.gfile.exists(self._manager.directory):
            tf.io.gfile.rmtree(self._manager.directory)

    def _track(self, names: Iterable[str]) -> None:
        if not self._place:
            self._place = {name: tf.Variable(0.0, dtype=tf.float64, trainable=False) for name in names}
            self._checkpoint.place = self._place
