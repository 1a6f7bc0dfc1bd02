"""Weights that other callbacks put into a model as `fit` ends."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from lc_keras.costs.compression import Selection
from lc_keras.lagrangian import CStep, Lagrangian
from lc_keras.tasks import SharedCost, Task, bind_tasks

# How far a projection may move what is one already, by the bytes of the weights.
_ROUNDING = {2: 1e-2, 4: 1e-6, 8: 1e-6}


def if_changed_later(
    callback: keras.callbacks.Callback, variables: Sequence[keras.Variable], act: Callable[[], None]
) -> None:
    """Acts once more after `on_train_end` of all callbacks of a `fit`, if weights are then others than now.

    `EarlyStopping` puts those of another epoch into the model, even if it comes later in the list.

    Args:
        callback: The callback, in its `on_train_end`.
        variables: Sequence of `keras.Variable`.
        act: Called without arguments.
    """
    history, params = getattr(callback.model, "history", None), callback.params
    if history is None:
        return
    left, own = _copies(variables), history.on_train_end

    def last(logs: dict[str, float] | None = None) -> None:
        vars(history).pop("on_train_end", None)
        own(logs)
        # One that the user put in front of the callback is called in the next `fit` first.
        if history.params is params and not all(map(np.array_equal, left, _copies(variables))):
            act()

    # Keras appends it to the callbacks of the user.
    history.on_train_end = last


def compress_again(model: keras.Model, tasks: Sequence[Task], mu: float) -> tuple[float, float]:
    """Compresses what a model holds where that breaks a budget. Penalties have none.

    Args:
        model: `keras.Model`.
        tasks: Sequence of `Task`.
        mu: Float > 0.

    Returns:
        Tuple of two floats: how much was removed, at most, as a fraction of the norm of the weights that
        share a budget, and the fraction of the weights of all tasks that is not zero.

    Raises:
        ValueError: If a weight is not finite. What shares its budget is not changed then.
    """
    shared, gap = bind_tasks(tasks, model), 0.0
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
    """Whether a direct compression took something away."""
    variables, (part,) = lagrangian.variables, lagrangian.shared
    if isinstance(part.compression, Selection):
        # A constraint of the weights' own may have changed what was kept.
        pairs = zip(_copies(variables), _copies(lagrangian.thetas), strict=True)
        return any(np.count_nonzero(value) > np.count_nonzero(theta) for value, theta in pairs)
    return float(result.gap) > max(_ROUNDING[v.value.dtype.size] for v in variables)


def _density(shared: Sequence[SharedCost]) -> float:
    values = [value for part in shared for value in _copies(part.variables)]
    return sum(map(np.count_nonzero, values)) / sum(value.size for value in values)


def _copies(variables: Sequence[keras.Variable]) -> list[np.ndarray]:
    return [tf.convert_to_tensor(variable).numpy() for variable in variables]
