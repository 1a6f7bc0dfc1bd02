"""Which weights of a model are removed, and what keeps them at zero while it trains."""

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
    """Keeps weights at zero where a mask is false, after each update.

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


class Masks:
    """The masks of all weights that share some budgets; at first they remove nothing.

    Args:
        shared: Sequence of `SharedCost` whose compressions are `L0Constraint`s.

    Attributes:
        variables: List of `keras.Variable`, the weights.
        budgets: List of tuples of two ints, one for each element of `shared`: what all of its groups
            cost (their number, where each counts one), and κ.
    """

    def __init__(self, shared: Sequence[SharedCost]) -> None:
        self._shared = shared
        self.variables = [v for part in shared for v in part.variables]
        self._masked = [
            Masked(tf.Variable(tf.ones(v.shape, tf.bool), trainable=False)) for v in self.variables
        ]
        self.budgets = [
            (_cost(part).total(part.layouts), _cost(part).budget(part.layouts)) for part in shared
        ]

    def prune_to(self, kept: Sequence[int]) -> float:
        """Removes the groups of least magnitude, for good.

        Args:
            kept: Sequence of ints, what may be left of the groups of each budget.

        Returns:
            Float, the fraction of the weights that is not zero.
        """
        nonzeros = start = 0
        for part, kappa in zip(self._shared, kept, strict=True):
            masks = [masked.mask for masked in self._masked[start : start + len(part.variables)]]
            start += len(part.variables)
            # What was removed stays so, even if it fits into what a later budget leaves over.
            ranks = [_ranks(v, m) for v, m in zip(part.variables, masks, strict=True)]
            maps = _cost(part).largest(ranks, kappa, part.layouts)
            for variable, mask, rank, largest in zip(part.variables, masks, ranks, maps, strict=True):
                mask.assign(largest(rank) != 0)
                value = tf.where(mask, variable.value, tf.zeros([], variable.value.dtype))
                variable.assign(value)
                nonzeros += int(tf.math.count_nonzero(value))
        return nonzeros / sum(math.prod(v.shape) for v in self.variables)

    @contextlib.contextmanager
    def constraining(self) -> Iterator[None]:
        """Makes the masks constraints of the weights, beside those that these have."""
        pairs = list(zip(self.variables, self._masked, strict=True))
        for variable, masked in pairs:
            masked.constraint, variable.constraint = variable.constraint, masked
        try:
            yield
        finally:
            for variable, masked in pairs:
                variable.constraint = masked.constraint

    def check_applied(self) -> None:
        """Checks that what was removed was not trained.

        Raises:
            ValueError: If the training step left out the constraints.
        """
        for variable, masked in zip(self.variables, self._masked, strict=True):
            # Weights that are not trained need no mask.
            if not masked.applied and tf.reduce_any(~masked.mask & (variable.value != 0)):
                raise ValueError(
                    "The training step of the model leaves out the constraints of its weights, which keep "
                    f"at zero what is removed, for {variable.path}. Expected a `train_step` that updates "
                    "weights with the `apply` of a Keras optimizer; or a `Task` that leaves these out."
                )

    def release(self) -> None:
        """Frees the memory of the masks."""
        for masked in self._masked:
            emptied(masked.mask, True)


def _ranks(variable: keras.Variable, mask: tf.Variable) -> tf.Tensor:
    """Magnitudes that are zero only where a mask is false."""
    value = tf.convert_to_tensor(variable)
    magnitudes = tf.abs(tf.cast(value, thresholds.common_dtype([value])))
    return tf.where(mask, tf.maximum(magnitudes, _LEAST), tf.zeros([], magnitudes.dtype))


def _cost(part: SharedCost) -> L0Constraint:
    return cast(L0Constraint, part.compression)
