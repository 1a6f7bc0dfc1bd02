"""The statistics of batch normalisation that ship with compressed weights."""

import itertools
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.shadows import Shadow
from lc_keras.arguments import warn
from lc_keras.fit.checkpoints import Resumable
from lc_keras.internals.tensorflow import dataset_of, is_read_once
from lc_keras.model.statistics import BATCHES, Estimator


class Statistics(Resumable):
    """Estimate the statistics of the compressed weights while the model shows them.

    During training they follow w slowly: a moving average with momentum 0.99 is of the last hundred batches.
    The statistics of θ differ, and with them the scale of each unit behind a removed weight.

    Args:
        model: Built `keras.Model`.
        batches: Int or `None`, the number of batches in an epoch, if that is known.

    Attributes:
        are_stale: Bool, whether the latest ones could not be estimated; if so, a warning was given.
    """

    held = ("_replaced",)

    def __init__(self, model: keras.Model, batches: int | None) -> None:
        self._estimator = Estimator(model, by_train_step=True)
        self._trained = Shadow(self._estimator.variables, "trained")
        self._replaced = [False] * len(self.trained)
        strategy = model.distribute_strategy
        self._of_several_workers = strategy.num_replicas_in_sync > self._estimator.replicas
        self._batches: int | None = min(batches or BATCHES, BATCHES)
        if self._of_several_workers:
            # All workers take the same number, and not all of them may have the last batch of an epoch.
            self._batches = min(max(1, batches - 1), BATCHES) if batches else None
        self._dataset: tf.data.Dataset | None = None
        self._is_known = self.are_stale = False

    @property
    def trained(self) -> list[tf.Variable]:
        """Return the statistics of the trained weights, while others are in their place."""
        return self._trained.copies

    def see(self, iterator: Iterator[object]) -> None:
        """Note which data `fit` trains on, from the iterator that Keras gives the train function."""
        if self._is_known or not self.trained:
            return
        self._is_known = True
        dataset = dataset_of(iterator)
        if dataset is not None and self._batches and not is_read_once(dataset):
            self._dataset = dataset
        else:
            self._warn("the data cannot be read a second time, as those of a Python generator")

    def show_compressed(self, is_interrupted: bool = False) -> None:
        """Replace the statistics of the trained weights by those of the weights that the model now has.

        If training `is_interrupted`, other workers may have gone on.
        """
        if self.trained:
            self._trained.save()
            if not (is_interrupted and self._of_several_workers):
                self.estimate()
            self._replaced = [
                not np.array_equal(tf.convert_to_tensor(variable), tf.convert_to_tensor(copy))
                for variable, copy in zip(self._trained.variables, self.trained, strict=True)
            ]

    def show_training(self) -> None:
        """Put the statistics of the trained weights back."""
        # What was not replaced may be no statistic, and another callback may have set it meanwhile.
        known = zip(self._replaced, self._trained.variables, self.trained, strict=True)
        for replaced, variable, copy in known:
            if replaced:
                variable.assign(copy)

    def estimate(self) -> None:
        """Estimate the statistics of the weights that the model now has, if the data of `fit` allow it."""
        if self._dataset is None:
            if self.trained:
                self._warn("`fit` has read no data")
            return
        try:
            self._estimator.estimate(iter(self._dataset), self._batches or BATCHES)
            self.are_stale = False
        except Exception as error:  # whatever a model's `call` or its data may raise
            self._warn(f"the model cannot be called on them ({type(error).__name__}: {error})")

    def _warn(self, why: str) -> None:
        if self.are_stale:
            return
        self.are_stale = True
        names = ", ".join(v.path for v in itertools.islice(self._estimator.variables, 2))
        warn(
            f"The statistics of the model ({names}, …) are those of the trained weights, not of the "
            f"compressed ones: {why}. After `fit`, call `lc_keras.estimate_statistics(model, data)`.",
        )
