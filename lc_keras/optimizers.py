"""What an L step asks of the optimizer: its rate, a limited learning rate, a fresh state."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf

# What Keras takes as a learning rate.
Rate: TypeAlias = (
    "keras.Variable | keras.optimizers.schedules.LearningRateSchedule | Callable[[], tf.Tensor]"
)

_LOOKS = 20


class LearningRateLimit:
    r"""Holds an optimizer's learning rate at $\min(\eta, \text{limit})$ while the training runs.

    Works with a fixed rate, a rate that other callbacks set, a schedule or a function: η
    is what the user's own rate says at that moment, and nobody else meets the limit.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        self._optimizer = inner_optimizer(optimizer)
        self._limit = tf.Variable(float("inf"), trainable=False, name="learning_rate_limit")
        self._ahead: list[tuple[int, float]] = []

    def set(self, limit: float) -> None:
        """Limits the learning rate from now on.

        Args:
            limit: Float > 0.
        """
        self._limit.assign(limit)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """The context in which the optimizer has the limited rate."""
        optimizer = self._optimizer
        given = optimizer._learning_rate
        rate = self._rate_of(given)
        optimizer._learning_rate = lambda: tf.minimum(tf.cast(rate(), tf.float32), self._limit)
        try:
            yield
        finally:
            optimizer._learning_rate = given

    def look_ahead(self, batches: float) -> None:
        """Notes how a schedule goes on.

        Args:
            batches: Float, how many batches the run has left.
        """
        schedule = self._optimizer._learning_rate
        if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            now = int(self._optimizer.iterations)
            steps = (now + int(batches * i / _LOOKS) for i in range(_LOOKS))
            self._ahead = [(step, float(schedule(tf.constant(step, tf.int64)))) for step in steps]

    def highest(self) -> float:
        """The highest learning rate from now on, without the limit, as far as it is known."""
        now = float(self._rate_of(self._optimizer._learning_rate)())
        done = int(self._optimizer.iterations)
        return max([now, *(rate for step, rate in self._ahead if step >= done)])

    def _rate_of(self, given: Rate) -> Callable[[], tf.Tensor]:
        if isinstance(given, keras.optimizers.schedules.LearningRateSchedule):
            return lambda: given(self._optimizer.iterations.value)
        return (lambda: given.value) if isinstance(given, keras.Variable) else given


def inner_optimizer(optimizer: keras.optimizers.Optimizer) -> keras.optimizers.Optimizer:
    """The optimizer that makes the update, inside wrappers such as `LossScaleOptimizer`."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def effective_rate(
    optimizer: keras.optimizers.Optimizer, variables: Sequence[keras.Variable], learning_rate: float
) -> float:
    r"""How far a unit gradient that stays moves a weight in a batch, once it has settled.

    $\eta / (1 - m)$ for SGD with momentum m. Optimizers that divide by the root of a
    second moment v of the gradient: $\eta / \sqrt{\bar v}$ with the mean of v over
    `variables`, or, as for optimizers of another kind, $\eta / 10^{-3}$ while it is not
    known, $10^{-3}$ being the size of gradient that such optimizers meet in classifiers.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
        variables: List of `keras.Variable`, the compressed weights.
        learning_rate: Float, η.

    Returns:
        Float, 0 only if η is.
    """
    optimizer = inner_optimizer(optimizer)
    if isinstance(optimizer, keras.optimizers.SGD):
        return learning_rate / (1 - optimizer.momentum)
    size = 1e-3
    moments = getattr(optimizer, "_velocities", None) or getattr(optimizer, "_accumulators", None)
    if moments and optimizer.built and int(optimizer.iterations) > 0:
        selected = {id(variable) for variable in variables}
        chosen = [
            moment
            for moment, variable in zip(moments, optimizer._trainable_variables, strict=True)
            if id(variable) in selected
        ]
        total = sum(float(tf.reduce_sum(tf.cast(moment.value, tf.float32))) for moment in chosen)
        mean = total / sum(int(moment.value.shape.num_elements()) for moment in chosen)
        mean /= 1 - getattr(optimizer, "beta_2", 0.0) ** int(optimizer.iterations)
        size = mean**0.5 if mean > 0 else size
    return learning_rate / size


def reset_state(optimizer: keras.optimizers.Optimizer) -> None:
    """Gives an optimizer the moments of a new one; its step count, rate and averaged weights stay.

    Args:
        optimizer: `keras.optimizers.Optimizer`; one that is not built has no state
            yet and is left alone.
    """
    optimizer = inner_optimizer(optimizer)
    if not optimizer.built:
        return
    fresh = type(optimizer).from_config(optimizer.get_config())
    fresh.build(optimizer._trainable_variables)
    averages = getattr(optimizer, "_model_variables_moving_average", [])
    stays = {id(optimizer.iterations), id(optimizer._learning_rate), *map(id, averages)}
    # Not strict: inside a LossScaleOptimizer Keras does not count Nadam's last variable.
    for variable, new in zip(optimizer.variables, fresh.variables, strict=False):
        if id(variable) not in stays:
            variable.assign(new)
