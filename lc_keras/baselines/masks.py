"""Masks, which keep removed weights at zero while a model trains."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import cast

import keras
import tensorflow as tf

from lc_keras.algorithm.tasks import SharedCost
from lc_keras.costs import L0Constraint, thresholds
from lc_keras.internals.tensorflow import emptied, kept_with_trace

# Weights below this count as zeros, and zeros that may train rank above those that were removed.
_LEAST = 1e-15


class Masked(keras.constraints.Constraint):
    """Keep a weight at zero where a mask is false, after each update. At first the mask removes nothing.

    Args:
        variable: `keras.Variable`, the weight. If it has a constraint of its own, that is applied first.

    Attributes:
        applied: Bool, whether an update, or the trace of one, has used it.
    """

    def __init__(self, variable: keras.Variable) -> None:
        self.variable = variable
        self.mask = tf.Variable(tf.ones(variable.shape, tf.bool), trainable=False)
        self.constraint: keras.constraints.Constraint | None = None
        self.applied = False

    def __call__(self, weight: tf.Tensor) -> tf.Tensor:
        self.applied = True
        kept_with_trace(self.mask)
        return self._of(tf.convert_to_tensor(weight if self.constraint is None else self.constraint(weight)))

    def ranks(self) -> tf.Tensor:
        """Return magnitudes that are zero only where the mask is false."""
        magnitudes = tf.abs(thresholds.read(self.variable))
        return tf.where(self.mask, tf.maximum(magnitudes, _LEAST), tf.zeros([], magnitudes.dtype))

    def keep(self, kept: tf.Tensor) -> None:
        """Remove what is not kept."""
        self.mask.assign(kept)
        self.variable.assign(self._of(self.variable.value))

    def _of(self, value: tf.Tensor) -> tf.Tensor:
        return tf.where(self.mask, value, tf.zeros([], value.dtype))


class Budget:
    """Hold the masks of the weights that share a budget.

    Attributes:
        total: Int, the cost of all groups: their number, if each counts as one.
        kappa: Int κ, the budget.
    """

    def __init__(self, part: SharedCost) -> None:
        self._cost, self._layouts = cast(L0Constraint, part.compression), part.layouts
        self.masked = [Masked(variable) for variable in part.variables]
        self.total = self._cost.total(self._layouts)
        self.kappa = self._cost.budget(self._layouts)

    def prune_to(self, kept: int) -> None:
        """Permanently remove the groups of least magnitude, and leave `kept`."""
        # What was removed stays removed, even if it would fit into what a later budget leaves over.
        ranks = [masked.ranks() for masked in self.masked]
        maps = self._cost.largest(ranks, kept, self._layouts)
        for masked, rank, largest in zip(self.masked, ranks, maps, strict=True):
            masked.keep(largest(rank) != 0)


class Masks:
    """Hold the masks of all weights that are pruned.

    Attributes:
        budgets: List of `Budget`, one for each `SharedCost`.
        variables: List of `keras.Variable`, the weights.
    """

    def __init__(self, shared: Sequence[SharedCost]) -> None:
        self.budgets = [Budget(part) for part in shared]
        self._masked = [masked for budget in self.budgets for masked in budget.masked]
        self.variables = [masked.variable for masked in self._masked]

    def prune_to(self, kept: Sequence[int]) -> float:
        """Leave groups of cost `kept` for each budget; return the fraction of nonzero weights."""
        for budget, left in zip(self.budgets, kept, strict=True):
            budget.prune_to(left)
        nonzeros = sum(int(tf.math.count_nonzero(v.value)) for v in self.variables)
        return nonzeros / sum(math.prod(v.shape) for v in self.variables)

    @contextlib.contextmanager
    def constraining(self) -> Iterator[None]:
        """Return a context in which the masks are constraints of the weights, in addition to their own."""
        for masked in self._masked:
            masked.constraint, masked.variable.constraint = masked.variable.constraint, masked
        try:
            yield
        finally:
            for masked in self._masked:
                masked.variable.constraint = masked.constraint

    def check_applied(self) -> None:
        """Raise a ValueError if the training step left out the constraints, and trained what was removed."""
        for masked in self._masked:
            # Weights that are not trained need no mask.
            if not masked.applied and tf.reduce_any(~masked.mask & (masked.variable.value != 0)):
                raise ValueError(
                    "The training step of the model leaves out the constraints of its weights, which keep "
                    f"at zero what is removed, for {masked.variable.path}. Expected a `train_step` that "
                    "updates weights with the `apply` of a Keras optimizer, or a `Task` without these."
                )

    def release(self) -> None:
        """Free the memory of the masks."""
        for masked in self._masked:
            emptied(masked.mask, True)
