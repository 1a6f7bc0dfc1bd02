"""Compression of a model as it is, without training."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.lagrangian import CStep, Lagrangian
from lc_keras.algorithm.shadows import fingerprint, is_same
from lc_keras.algorithm.tasks import SharedCost, Tasks, as_tasks, bind_tasks
from lc_keras.arguments import strength, warn
from lc_keras.showing import listed

# How far a projection may move weights that are projected already, by the bytes of the weights.
_ROUNDING = {2: 1e-2, 4: 1e-6, 8: 1e-6}


def compress_directly(model: keras.Model, tasks: Tasks, mu: float = 1.0) -> None:
    """Compress a model as it is: one C step and no training.

    Warn if a layer loses all its weights.

    If the weights have a `constraint` of their own, it is applied to what an N:M cost keeps, and an ℓ0 cost
    without `values`.

    Args:
        model: Built `keras.Model`.
        tasks: A compression, a `Task`, or a list of these.
        mu: Float > 0, default 1: the weight of the distance, which matters for penalties.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If `mu` is not positive and finite, a task does not fit the model, or a weight is
            not finite. The model is then unchanged.

    Example:

    ```python
    lc_keras.baselines.compress_directly(model, lc_keras.L0Constraint(keep=0.5))
    ```
    """
    mu = strength("mu", mu)
    compress_shared(model, bind_tasks(as_tasks(tasks), model), mu)


def compress_shared(model: keras.Model, shared: Sequence[SharedCost], mu: float = 1.0) -> None:
    """Compress weights of a model as they are; raise a ValueError if one is not finite."""
    with model.distribute_strategy.scope():
        lagrangian = Lagrangian(shared, multipliers=False)
    result = lagrangian.direct_compression(mu)
    if bad := lagrangian.not_finite(result):
        raise ValueError(f"Expected a model with finite weights. Received: NaN or infinite values in {bad}")
    lagrangian.show_compressed()
    if lost := lost_weights(lagrangian.variables):
        warn(f"The compressed model may be bad: {lost}.")


def lost_weights(variables: Sequence[keras.Variable]) -> str:
    """Return which weights of two or more axes are all zero, and what to do about it, or ""."""
    lost = [v.path for v in variables if len(v.shape) > 1 and not np.any(v)]
    advice = (
        "keep more, leave out these layers by a `Task` of the others, or give each its own share "
        "(`per_layer`, `keep_at_least`)"
    )
    return f"{listed(lost)} lost all weights: {advice}" if lost else ""


def compress_again(
    model: keras.Model, shared: Sequence[SharedCost], mu: float, shown: Sequence[np.ndarray] = ()
) -> tuple[float, float]:
    """Compress the weights of a model where they break a budget. Penalties have no budget.

    Args:
        model: `keras.Model`.
        shared: List of `SharedCost`, as bound when training began: layers may have been frozen since.
        mu: Float > 0.
        shown: Sequence of arrays, fingerprints of weights that are known to keep all budgets, and so stay as
            they are: a second C step of a `Sum` would change them.

    Returns:
        Tuple of two floats: the most that was removed, as a fraction of the norm of the weights that share a
        budget, and the fraction of the weights of all tasks that are not zero.

    Raises:
        ValueError: If a weight is not finite. The weights that share its budget are then unchanged.
    """
    gap = 0.0
    if shown:
        found = fingerprint([variable for part in shared for variable in part.variables])
        if any(is_same(found, before) for before in shown):
            return gap, _density(shared)
    for part in shared:
        if part.compression.has_budget:
            with model.distribute_strategy.scope():
                lagrangian = Lagrangian([part], multipliers=False)
            result = lagrangian.direct_compression(mu)
            if bad := lagrangian.not_finite(result):
                raise ValueError(
                    "Expected callbacks to put finite weights into the model as training ends. Received: NaN "
                    f"or infinite values in {', '.join(bad)}."
                )
            if _breaks_budget(lagrangian, result):
                lagrangian.show_compressed()
                gap = max(gap, float(result.gap))
    return gap, _density(shared)


def _breaks_budget(lagrangian: Lagrangian, result: CStep) -> bool:
    """Return whether a direct compression took something away."""
    variables, (part,) = lagrangian.variables, lagrangian.shared
    if part.compression.keeps_values:
        # The weights' own constraint may have changed what was kept.
        pairs = zip(_copies(variables), _copies(lagrangian.thetas), strict=True)
        return any(np.count_nonzero(value) > np.count_nonzero(theta) for value, theta in pairs)
    return float(result.gap) > max(_ROUNDING[v.value.dtype.size] for v in variables)


def _density(shared: Sequence[SharedCost]) -> float:
    values = [value for part in shared for value in _copies(part.variables)]
    return sum(map(np.count_nonzero, values)) / sum(value.size for value in values)


def _copies(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    return [tf.convert_to_tensor(variable).numpy() for variable in variables]
