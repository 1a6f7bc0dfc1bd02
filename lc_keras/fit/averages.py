"""The averaged weights that an optimizer keeps, compressed while the model is."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.fit.optimizers import averages_of, parts_of
from lc_keras.internals import compiled


class Averages:
    """What `use_ema` of an optimizer keeps of the compressed weights.

    Keras puts averages into the model when `fit` ends, and `keras.callbacks.SwapEMAWeights`
    whenever it pleases. What they put there while the model shows its compressed weights
    is compressed, too. This takes a third array of each weight's shape.

    Args:
        optimizer: `keras.optimizers.Optimizer`; without `use_ema` nothing happens.
        lagrangian: `Lagrangian`.

    Raises:
        ValueError: If a `MultiOptimizer` keeps averages of some of the compressed weights only: no
            compression of weights and averages together would hold once these are put into the model.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer, lagrangian: Lagrangian) -> None:
        self._optimizers = parts_of(optimizer)
        self._lagrangian = lagrangian
        self._averages: list[keras.Variable] = []
        self.trained: list[tf.Variable] = []
        self._exchange = compiled(self._exchange)  # type: ignore[method-assign]  # compiled
        average = {id(v) for v, _ in self._kept()}
        without = [v.path for v in lagrangian.variables if id(v) not in average]
        if len(self._optimizers) > 1 and 0 < len(without) < len(lagrangian.variables):
            raise ValueError(
                "Expected `use_ema` in all of the optimizers of compressed weights or in none. Received: a "
                f"MultiOptimizer without averages of {', '.join(without)}, but with those of other weights."
            )

    def prepare(self) -> None:
        """Finds the averages, once the optimizer is built."""
        average = {id(v): a for v, a in self._kept()}
        if self._averages or not average:
            return
        # Unless weights are trained by another optimizer, too, of which Keras swaps nothing.
        if all(id(v) in average for v in self._lagrangian.variables):
            self._averages = [average[id(v)] for v in self._lagrangian.variables]
            self.trained = [tf.Variable(average.value, trainable=False) for average in self._averages]

    def show_compressed(self, mu: float) -> None:
        r"""Puts $\Pi$ of the averages in their place.

        Args:
            mu: Float > 0.
        """
        self.prepare()
        if self._averages:
            self._exchange(tf.constant(mu, tf.float32))

    def show_training(self) -> None:
        """Puts the averages of the trained weights back."""
        for trained, average in zip(self.trained, self._averages, strict=True):
            average.assign(trained)

    def swapped(self) -> list[tuple[keras.Variable, keras.Variable]]:
        """The pairs of weights and averages that have changed places in the model, if they have.

        Of the compressed weights and the compressed averages, the latter are nearer to
        the averages.
        """
        if not self._averages:
            return []
        if self._distance(self._lagrangian.variables) >= self._distance(self._averages):
            return []
        return self._kept()

    def _kept(self) -> list[tuple[keras.Variable, keras.Variable]]:
        """The pairs of weights and averages that the optimizers have."""
        return [pair for optimizer in self._optimizers for pair in averages_of(optimizer)]

    def _exchange(self, mu: tf.Tensor) -> None:
        for trained, average in zip(self.trained, self._averages, strict=True):
            trained.assign(tf.convert_to_tensor(average))
        self._lagrangian.compress(self._averages, mu)

    def _distance(self, variables: Sequence[keras.Variable]) -> float:
        pairs = zip(variables, self.trained, strict=True)
        return sum(float(tf.nn.l2_loss(tf.cast(tf.convert_to_tensor(v) - t, tf.float32))) for v, t in pairs)
