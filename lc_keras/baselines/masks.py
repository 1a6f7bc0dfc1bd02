"""Masks: weights that are removed, and stay at zero while a model trains."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import cast

import keras
import tensorflow as tf

from lc_keras.algorithm.tasks import SharedCost
from lc_keras.costs import L0Constraint, thresholds
from lc_keras.internals import emptied, kept_with_trace

# Weights below it count as zeros, and zeros that may train rank above those that were removed.
_LEAST = 1e-15


class Masked(keras.constraints.Constraint):
    """Keep weights at zero where a mask is false, after each update.

    Args:
        mask: bool `tf.Variable` of the weight's shape.
        constraint: `keras.constraints.Constraint` or `None`: the weight's own, which is
            applied first.

    Attributes:
        applied: Bool, whether an update, or the trace of one, has used it.
    """

    def __init__(self, mask: tf.Variable, constraint: keras.constraints.Constraint | None = None) -> None:
        self.mask = mask
        self.constraint = constraint
        self.applied = False

    def __call__(self, weight: tf.Tensor) -> tf.Tensor:
        self.applied = True
        kept_with_trace(self.mask)
        weight = tf.convert_to_tensor(weight if self.constraint is None else self.constraint(weight))
        return tf.where(self.mask, weight, tf.zeros([], weight.dtype))


class Budget:
    """Hold the masks of the weights that share a budget; at first they remove nothing.

    Args:
        part: `SharedCost` whose compression is an `L0Constraint`.

    Attributes:
        total: Int, what all groups cost: their number, where each counts one.
        kappa: Int κ, the budget.
    """

    def __init__(self, part: SharedCost) -> None:
        self._cost = cast(L0Constraint, part.compression)
        self._layouts = part.layouts
        self.masked = [
            (v, Masked(tf.Variable(tf.ones(v.shape, tf.bool), trainable=False))) for v in part.variables
        ]
        self.total = self._cost.total(self._layouts)
        self.kappa = self._cost.budget(self._layouts)

    def prune_to(self, kept: int) -> None:
        """Remove the groups of least magnitude, for good.

        Args:
            kept: Int, what may be left.
        """
        # What was removed stays so, even if it fits into what a later budget leaves over.
        ranks = [_ranks(variable, masked.mask) for variable, masked in self.masked]
        maps = self._cost.largest(ranks, kept, self._layouts)
        for (variable, masked), rank, largest in zip(self.masked, ranks, maps, strict=True):
            masked.mask.assign(largest(rank) != 0)
            variable.assign(tf.where(masked.mask, variable.value, tf.zeros([], variable.value.dtype)))


class Masks:
    """Hold the masks of all weights that are pruned.

    Args:
        shared: Sequence of `SharedCost` whose compressions are `L0Constraint`s.

    Attributes:
        budgets: List of `Budget`, one for each element of `shared`.
        variables: List of `keras.Variable`, the weights.
    """

    def __init__(self, shared: Sequence[SharedCost]) -> None:
        self.budgets = [Budget(part) for part in shared]
        self._masked = [pair for budget in self.budgets for pair in budget.masked]
        self.variables = [variable for variable, _ in self._masked]

    def prune_to(self, kept: Sequence[int]) -> float:
        """Remove the groups of least magnitude, for good.

        Args:
            kept: Sequence of ints, what may be left of the groups of each budget.

        Returns:
            Float, the fraction of the weights that is not zero.
        """
        for budget, left in zip(self.budgets, kept, strict=True):
            budget.prune_to(left)
        nonzeros = sum(int(tf.math.count_nonzero(v.value)) for v in self.variables)
        return nonzeros / sum(math.prod(v.shape) for v in self.variables)

    @contextlib.contextmanager
    def constraining(self) -> Iterator[None]:
        """Return a context in which the masks are constraints of the weights, beside their own."""
        for variable, masked in self._masked:
            masked.constraint, variable.constraint = variable.constraint, masked
        try:
            yield
        finally:
            for variable, masked in self._masked:
                variable.constraint = masked.constraint

    def check_applied(self) -> None:
        """Check that what was removed was not trained.

        Raises:
            ValueError: If the training step left out the constraints.
        """
        for variable, masked in self._masked:
            # Weights that are not trained need no mask.
            if not masked.applied and tf.reduce_any(~masked.mask & (variable.value != 0)):
                raise ValueError(
                    "The training step of the model leaves out the constraints of its weights, which keep "
                    f"at zero what is removed, for {variable.path}. Expected a `train_step` that updates "
                    "weights with the `apply` of a Keras optimizer; or a `Task` that leaves these out."
                )

    def release(self) -> None:
        """Free the memory of the masks."""
        for _, masked in self._masked:
            emptied(masked.mask, True)


def _ranks(variable: keras.Variable, mask: tf.Variable) -> tf.Tensor:
    """Return magnitudes that are zero only where a mask is false."""
    value = tf.convert_to_tensor(variable)
    magnitudes = tf.abs(tf.cast(value, thresholds.common_dtype([value])))
    return tf.where(mask, tf.maximum(magnitudes, _LEAST), tf.zeros([], magnitudes.dtype))
