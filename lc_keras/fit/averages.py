"""The averaged weights that an optimizer keeps, compressed while the model is."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import Optimizer

from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.shadows import Shadow, fingerprint
from lc_keras.fit.optimizers import averages_of, parts_of
from lc_keras.internals.tensorflow import compiled


class Averages:
    """Compress the averages that an optimizer with `use_ema` keeps of the compressed weights.

    Keras puts averages into the model when `fit` ends, and `keras.callbacks.SwapEMAWeights`
    may do so at any time. The averages that they put there while the model shows its compressed
    weights are compressed, too. This takes a third array of each weight's shape.

    Raises:
        ValueError: If a `MultiOptimizer` keeps averages of only some of the compressed weights: no
            compression of weights and averages together would hold once the averages are in the model.
    """

    def __init__(self, optimizer: Optimizer, lagrangian: Lagrangian) -> None:
        self._optimizers = parts_of(optimizer)
        self._lagrangian = lagrangian
        # The averages of the trained weights, while those of the compressed ones are in their place.
        self._trained = Shadow([], "trained")
        self._compress = compiled(self._compress)  # type: ignore[method-assign]  # compiled
        average = {id(v) for v, _ in self._kept()}
        without = [v.path for v in lagrangian.variables if id(v) not in average]
        if len(self._optimizers) > 1 and 0 < len(without) < len(lagrangian.variables):
            raise ValueError(
                "Expected `use_ema` in all of the optimizers of compressed weights or in none. Received: a "
                f"MultiOptimizer without averages of {', '.join(without)}, but with those of other weights."
            )

    @property
    def trained(self) -> list[tf.Variable]:
        """Return the averages of the trained weights, once the optimizer is built."""
        return self._trained.copies

    def prepare(self) -> None:
        """Find the averages, once the optimizer is built."""
        average = {id(v): a for v, a in self._kept()}
        if self.trained or not average:
            return
        # Unless another optimizer trains some of the weights: Keras swaps nothing of that one.
        if all(id(v) in average for v in self._lagrangian.variables):
            self._trained = Shadow([average[id(v)] for v in self._lagrangian.variables], "trained")

    def show_compressed(self, mu: float) -> list[np.ndarray]:
        r"""Replace the averages by their $\Pi$, and return the fingerprint of that, if there are any."""
        self.prepare()
        if self.trained:
            self._trained.save()
            self._compress(tf.constant(mu, tf.float32))
        return [fingerprint(self._trained.variables)] if self.trained else []

    def show_training(self) -> None:
        """Put the averages of the trained weights back."""
        self._trained.restore()

    def swapped(self) -> list[tuple[keras.Variable, keras.Variable]]:
        """Return the pairs of weights and averages that have changed places in the model, if they have."""
        averages = self._trained.variables
        # The compressed averages are nearer to the averages than the compressed weights are.
        if not averages or self._distance(self._lagrangian.variables) >= self._distance(averages):
            return []
        return self._kept()

    def _kept(self) -> list[tuple[keras.Variable, keras.Variable]]:
        """Return the pairs of weights and averages that the optimizers have."""
        return [pair for optimizer in self._optimizers for pair in averages_of(optimizer)]

    def _compress(self, mu: tf.Tensor) -> None:
        self._lagrangian.compress(self._trained.variables, mu)

    def _distance(self, variables: Sequence[keras.Variable]) -> float:
        pairs = zip(variables, self.trained, strict=True)
        return sum(float(tf.nn.l2_loss(tf.cast(tf.convert_to_tensor(v) - t, tf.float32))) for v, t in pairs)
