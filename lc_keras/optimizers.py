"""What an L step asks of the optimizer: its rate, a limited learning rate, a fresh state."""

import keras
import tensorflow as tf


_LOOKS = 20


class LearningRateLimit:
    r"""Keeps an optimizer's learning rate at $\min(\eta, \text{limit})$.

    Works with a fixed rate, a rate that other callbacks set, a schedule or a
    function. What the user set is remembered and given back by `remove`.

    Args:
        optimizer: `keras.optimizers.Optimizer`.
    """

    def __init__(self, optimizer):
        self._optimizer = inner_optimizer(optimizer)
        self._limit = tf.Variable(float("inf"), trainable=False, name="learning_rate_limit")
        self._original = self._optimizer._learning_rate
        self._is_variable = isinstance(self._original, keras.Variable)
        self._wanted = self._set = None
        self._ahead = []
        if isinstance(self._original, keras.optimizers.schedules.LearningRateSchedule):
            self._optimizer._learning_rate = LimitedSchedule(self._original, self._limit)
        elif not self._is_variable:
            self._optimizer._learning_rate = lambda: tf.minimum(
                tf.cast(self._original(), tf.float32), self._limit
            )

    def apply(self, limit: float):
        """Limits the learning rate from now on.

        Args:
            limit: Float > 0.
        """
        self._limit.assign(limit)
        if self._is_variable:
            now = float(self._original.numpy())
            if now != self._set:
                self._wanted = now
            self._assign(min(self._wanted, limit))

    def look_ahead(self, batches: float):
        """Notes how a schedule goes on.

        Args:
            batches: Float, how many batches the run has left.
        """
        if isinstance(self._original, keras.optimizers.schedules.LearningRateSchedule):
            now = int(self._optimizer.iterations)
            steps = (now + int(batches * i / _LOOKS) for i in range(_LOOKS))
            self._ahead = [(step, float(self._original(tf.constant(step, tf.int64)))) for step in steps]

    def highest(self) -> float:
        """The highest learning rate from now on, without the limit, as far as it is known."""
        if self._is_variable:
            now = float(self._original.numpy())
            return self._wanted if now == self._set else now
        iterations = self._optimizer.iterations
        if not self._ahead:
            return float(self._original())
        ahead = [rate for step, rate in self._ahead if step >= int(iterations)]
        return max([float(self._original(iterations.value)), *ahead])

    def remove(self):
        """Gives the optimizer its own learning rate back."""
        if not self._is_variable:
            self._optimizer._learning_rate = self._original
        elif self._set is not None and float(self._original.numpy()) == self._set:
            self._assign(self._wanted)

    def _assign(self, rate):
        self._original.assign(rate)
        self._set = float(self._original.numpy())


@keras.saving.register_keras_serializable(package="lc_keras")
class LimitedSchedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning-rate schedule with an upper limit.

    Args:
        schedule: `keras.optimizers.schedules.LearningRateSchedule`.
        limit: Float or `tf.Variable`.
    """

    def __init__(self, schedule, limit):
        self.schedule = schedule
        self.limit = limit

    def __call__(self, step):
        return tf.minimum(tf.cast(self.schedule(step), tf.float32), self.limit)

    def get_config(self):
        return {
            "schedule": keras.optimizers.schedules.serialize(self.schedule),
            "limit": float(self.limit),
        }

    @classmethod
    def from_config(cls, config):
        schedule = keras.optimizers.schedules.deserialize(config["schedule"])
        return cls(schedule, config["limit"])


def inner_optimizer(optimizer):
    """The optimizer that makes the update, inside wrappers such as `LossScaleOptimizer`."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def effective_rate(optimizer, variables, learning_rate: float) -> float:
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


def reset_state(optimizer):
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
