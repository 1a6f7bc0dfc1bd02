"""What an L step asks of the optimizers: its rate, a limited learning rate, a fresh state."""

import contextlib

import keras
import tensorflow as tf

_LOOKS = 20


class LearningRateLimit:
    r"""Holds a learning rate at $\min(\eta, \text{limit})$ while the training runs.

    Works with a fixed rate, a rate that other callbacks set, a schedule or a function: η
    is what the user's own rate says at that moment, and nobody else meets the limit.
    Of several optimizers, those that update other weights are left alone.

    Args:
        *optimizers: `keras.optimizers.Optimizer`s.
        variables: Sequence of `keras.Variable`, the compressed weights.
    """

    def __init__(self, *optimizers, variables=()):
        self._optimizers = [inner_optimizer(optimizer) for optimizer in optimizers]
        self._variables = list(variables)
        self._limit = tf.Variable(float("inf"), trainable=False, name="learning_rate_limit")
        self._ahead = {}

    @property
    def updating(self) -> list:
        """The optimizers that update the compressed weights; all, while that is not known."""
        return [optimizer for optimizer in self._optimizers if self._updates(optimizer)] or self._optimizers

    @property
    def guessed(self) -> bool:
        """Whether it is not known yet which of several optimizers updates the compressed weights."""
        return len(self._optimizers) > 1 and not any(map(self._updates, self._optimizers))

    def set(self, limit: float):
        """Limits the learning rate from now on.

        Args:
            limit: Float > 0.
        """
        self._limit.assign(limit)

    @contextlib.contextmanager
    def applied(self):
        """The context in which the optimizers have the limited rate."""
        given = [optimizer._learning_rate for optimizer in self._optimizers]
        for optimizer in self._optimizers:
            optimizer._learning_rate = self._limited(optimizer)
        try:
            yield
        finally:
            for optimizer, rate in zip(self._optimizers, given, strict=True):
                optimizer._learning_rate = rate

    def look_ahead(self, batches: float):
        """Notes how schedules go on.

        Args:
            batches: Float, how many batches the run has left.
        """
        for optimizer in self._optimizers:
            schedule = optimizer._learning_rate
            if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
                now = int(optimizer.iterations)
                steps = (now + int(batches * i / _LOOKS) for i in range(_LOOKS))
                self._ahead[id(optimizer)] = [
                    (step, float(schedule(tf.constant(step, tf.int64)))) for step in steps
                ]

    def highest(self) -> float:
        """The highest learning rate from now on, without the limit, as far as it is known."""
        return max(map(self._highest, self.updating), default=0.0)

    def effective(self) -> float:
        """`effective_rate` at the highest learning rate from now on."""
        rates = (effective_rate(o, self._variables, self._highest(o)) for o in self.updating)
        return max(rates, default=0.0)

    def _highest(self, optimizer):
        now = float(self._rate_of(optimizer)())
        done = int(optimizer.iterations)
        return max([now, *(rate for step, rate in self._ahead.get(id(optimizer), []) if step >= done)])

    def _updates(self, optimizer):
        own = {id(variable) for variable in optimizer._trainable_variables} if optimizer.built else ()
        return any(id(variable) in own for variable in self._variables)

    def _limited(self, optimizer):
        rate = self._rate_of(optimizer)

        def limited():
            # An optimizer asks for its rate when it is built: it is known by then what it updates.
            if len(self._optimizers) > 1 and not self._updates(optimizer):
                return rate()
            return tf.minimum(tf.cast(rate(), tf.float32), self._limit)

        return limited

    def _rate_of(self, optimizer):
        given = optimizer._learning_rate
        if isinstance(given, keras.optimizers.schedules.LearningRateSchedule):
            return lambda: given(optimizer.iterations.value)
        return (lambda: given.value) if isinstance(given, keras.Variable) else given


def optimizers_of(model) -> list:
    """The optimizers of a model: the compiled one, and those that a subclass keeps beside it.

    Those of models inside it are not among them: a net that was trained before and is
    part of a new one still has its own.

    Args:
        model: Compiled `keras.Model`.

    Returns:
        List of `keras.optimizers.Optimizer`, each once, without what wraps it.
    """
    attributes = [model.optimizer, *vars(model).values()]
    kept = [item for part in attributes if isinstance(part, (list, tuple)) for item in part]
    kept += [item for part in attributes if isinstance(part, dict) for item in part.values()]
    found = [part for part in attributes + kept if isinstance(part, keras.optimizers.Optimizer)]
    return list({id(optimizer): optimizer for optimizer in map(inner_optimizer, found)}.values())


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
