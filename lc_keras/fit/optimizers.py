"""Optimizers, as an L step needs them: their rate, a limited learning rate, a fresh state."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from keras.optimizers import Optimizer

from lc_keras.costs import thresholds
from lc_keras.fit.checkpoints import Resumable
from lc_keras.internals.keras import (
    Rate,
    batches_seen_by,
    corrected_moments_of,
    learning_rate_of,
    moving_averages_of,
    paired_state,
    second_moments_of,
    set_learning_rate,
    updated_by,
)
from lc_keras.internals.tensorflow import kept_with_trace

_LOOKS = 20


class LearningRateLimit(Resumable):
    r"""Hold a learning rate at $\min(\eta, \text{limit})$ while training runs.

    This works with a fixed rate, a rate that other callbacks set, a schedule or a function: η is what the
    user's own rate says at that moment, and no other code sees the limit. If there are several optimizers,
    those that update other weights than `variables`, the compressed ones, are left alone.
    """

    held = ("_ahead",)

    def __init__(self, *optimizers: Optimizer, variables: Sequence[keras.Variable] = ()) -> None:
        self._optimizers = [inner_optimizer(optimizer) for optimizer in optimizers]
        self._variables = list(variables)
        self._limit = tf.Variable(float("inf"), trainable=False, name="learning_rate_limit")
        # How schedules continue, by batches seen.
        self._ahead: list[list[tuple[int, float]]] = [[] for _ in self._optimizers]

    @property
    def updating(self) -> list[Optimizer]:
        """Return the optimizers that update the compressed weights; all of them while that is not known."""
        return [optimizer for optimizer in self._optimizers if self._updates(optimizer)] or self._optimizers

    @property
    def guessed(self) -> bool:
        """Return whether it is not yet known which of several optimizers updates the compressed weights."""
        return len(self._optimizers) > 1 and not any(map(self._updates, self._optimizers))

    @property
    def is_by_gradient(self) -> bool:
        """Return whether the compressed weights are updated by SGD or Muon only.

        These do not normalise the step of each weight.
        """
        kinds = (keras.optimizers.SGD, keras.optimizers.Muon)
        return all(isinstance(optimizer, kinds) for optimizer in self.updating)

    @property
    def rests(self) -> bool:
        """Return whether the rate of the compressed weights is 0, now and in the next step of a schedule."""
        return bool(self.updating) and not any(map(self._rate_soon, self.updating))

    def check_reset(self) -> None:
        """Raise a ValueError if Keras cannot recreate an optimizer, as `reset_optimizers` does."""
        for optimizer in [] if self.guessed else self.updating:
            try:
                _made_anew(optimizer)
            except Exception as error:
                raise ValueError(
                    "Expected an optimizer that Keras can make anew from its `get_config`, for "
                    f"`reset_optimizer=True`. Received: {type(optimizer).__name__}: {error}"
                ) from error

    def reset_optimizers(self) -> None:
        """Reset the state of the optimizers that update the compressed weights."""
        for optimizer in self.updating:
            reset_state(optimizer)

    def set(self, limit: float) -> None:
        """Limit the learning rate from now on."""
        self._limit.assign(limit)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Return a context in which the optimizers have the limited rate."""
        given = [learning_rate_of(optimizer) for optimizer in self._optimizers]
        for optimizer in self._optimizers:
            set_learning_rate(optimizer, self._limited(optimizer))
        try:
            yield
        finally:
            for optimizer, rate in zip(self._optimizers, given, strict=True):
                set_learning_rate(optimizer, rate)

    def look_ahead(self, batches: float) -> None:
        """Note how schedules continue in the number of `batches` that the run has left."""
        for i, optimizer in enumerate(self._optimizers):
            schedule = learning_rate_of(optimizer)
            if isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
                now = _number(batches_seen_by(optimizer))
                steps = (now + int(batches * n / _LOOKS) for n in range(_LOOKS))
                self._ahead[i] = [(step, float(schedule(tf.constant(step, tf.int64)))) for step in steps]

    def effective(self) -> float:
        """Return the `effective_rate` at the highest learning rate from now on, as far as it is known."""
        rates = (effective_rate(o, self._variables, self._highest(o)) for o in self.updating)
        return max(rates, default=0.0)

    def _highest(self, optimizer: Optimizer) -> float:
        now = float(tf.convert_to_tensor(self._rate_of(optimizer)()))
        done = _number(batches_seen_by(optimizer))
        ahead = self._ahead[self._optimizers.index(optimizer)]
        return max([now, *(rate for step, rate in ahead if step >= done)])

    def _rate_soon(self, optimizer: Optimizer) -> float:
        now, given = float(tf.convert_to_tensor(self._rate_of(optimizer)())), learning_rate_of(optimizer)
        if now or not isinstance(given, keras.optimizers.schedules.LearningRateSchedule):
            # An optimizer that wraps another may have no rate of its own, and report the other's.
            return now or float(tf.convert_to_tensor(optimizer.learning_rate))
        # The first step of a warm-up is 0, too.
        return float(given(tf.constant(_number(batches_seen_by(optimizer)) + 1, tf.int64)))

    def _updates(self, optimizer: Optimizer) -> bool:
        own = set(map(id, updated_by(optimizer)))
        return any(id(variable) in own for variable in self._variables)

    def _limited(self, optimizer: Optimizer) -> Callable[[], tf.Tensor]:
        rate = self._rate_of(optimizer)

        def limited() -> tf.Tensor:
            # An optimizer asks for its rate when it is built; what it updates is known by then.
            if len(self._optimizers) > 1 and not self._updates(optimizer):
                return rate()
            kept_with_trace(self._limit)
            return tf.minimum(tf.cast(rate(), tf.float32), self._limit)

        return limited

    def _rate_of(self, optimizer: Optimizer) -> Callable[[], tf.Tensor]:
        given: Rate = learning_rate_of(optimizer)
        if isinstance(given, keras.optimizers.schedules.LearningRateSchedule):
            # As Keras does; `iterations` counts updates, each of which may take several batches.
            return lambda: given(batches_seen_by(optimizer).value)
        return (lambda: given.value) if isinstance(given, keras.Variable) else given


def optimizers_of(model: keras.Model) -> list[Optimizer]:
    """Return the optimizers of a model: the compiled one, and any others that a subclass keeps.

    The optimizers of models inside it are not included: a net that was trained before and is part of a new
    one still has its own. Each optimizer is returned once, without its wrappers; a `MultiOptimizer` is built,
    so that the optimizers in it are known.
    """
    wrapped = wrapped_optimizers_of(model)
    for optimizer in wrapped:
        if hasattr(inner_optimizer(optimizer), "optimizers") and not optimizer.built:
            optimizer.build(model.trainable_variables)
    return _each_once(part for optimizer in wrapped for part in parts_of(optimizer))


def wrapped_optimizers_of(model: keras.Model) -> list[Optimizer]:
    """Return `optimizers_of` a model, with their wrappers."""
    attributes = [getattr(model, "optimizer", None), *vars(model).values()]
    kept = [item for part in attributes if isinstance(part, (list, tuple)) for item in part]
    kept += [item for part in attributes if isinstance(part, dict) for item in part.values()]
    return _each_once(part for part in attributes + kept if isinstance(part, Optimizer))


def _each_once(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    return list({id(optimizer): optimizer for optimizer in optimizers}.values())


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer that makes the update, inside wrappers such as `LossScaleOptimizer`."""
    while hasattr(optimizer, "inner_optimizer"):
        optimizer = optimizer.inner_optimizer
    return optimizer


def parts_of(optimizer: Optimizer) -> list[Optimizer]:
    """Return the optimizers that make the updates: the inner one, or those of a `MultiOptimizer`."""
    inner = inner_optimizer(optimizer)
    return list(getattr(inner, "optimizers", [inner]))


def effective_rate(optimizer: Optimizer, variables: Sequence[keras.Variable], learning_rate: float) -> float:
    r"""Return how far a constant unit gradient moves a weight in a batch, once the motion has settled.

    For SGD with momentum m, this is $\eta / (1 - m)$. For optimizers that divide by the root
    of a second moment v of the gradient, it is $\eta / \sqrt{\bar v}$ with the mean of v over
    `variables`, divided by 1 − m for RMSprop; Adafactor and LAMB multiply η by the size of the weights,
    here the root of the mean of their squares. While v is not known, and for optimizers of other kinds, it is
    $\eta / 10^{-3}$, where $10^{-3}$ is the size of gradient that such optimizers meet in
    classifiers. If the gradients of k batches make one update, it is a k-th of that.
    """
    optimizer = inner_optimizer(optimizer)
    learning_rate /= optimizer.gradient_accumulation_steps or 1
    if isinstance(optimizer, (keras.optimizers.SGD, keras.optimizers.RMSprop)):
        learning_rate /= 1 - optimizer.momentum
    if isinstance(optimizer, keras.optimizers.SGD):
        return learning_rate
    if isinstance(optimizer, (keras.optimizers.Adafactor, keras.optimizers.Lamb)) and variables:
        count = sum(int(variable.value.shape.num_elements()) for variable in variables)
        learning_rate *= float(thresholds.l2_norm(variables)) / count**0.5 or 1.0
    size = 1e-3
    moments = _second_moments(optimizer, variables)
    if moments:
        sizes = [int(moment.value.shape.num_elements()) for moment in moments]
        means = [float(tf.reduce_mean(tf.cast(moment.value, tf.float32))) for moment in moments]
        mean = np.average(means, weights=sizes)
        mean /= 1 - getattr(optimizer, "beta_2", 0.0) ** _number(optimizer.iterations)
        size = mean**0.5 if mean > 0 else size
    return learning_rate / size


def _second_moments(optimizer: Optimizer, variables: Sequence[keras.Variable]) -> list[keras.Variable]:
    """Return the second moments that the optimizer has for some variables.

    If there are several optimizers, variables that another one updates are left out.
    """
    if not optimizer.built or _number(optimizer.iterations) == 0:
        return []
    kept = second_moments_of(optimizer)
    by_variable = dict(zip(map(id, updated_by(optimizer)), kept, strict=True)) if kept else {}
    return [by_variable[id(variable)] for variable in variables if id(variable) in by_variable]


def reset_state(optimizer: Optimizer, wholly: bool = False) -> None:
    """Give an optimizer the moments of a new one; its step count, rate and averaged weights stay.

    Second moments that Adam and similar optimizers correct by the step count stay, too, if they are finite:
    if they began at zero when the correction is over, steps would be several times the learning rate.
    `wholly`: nothing stays.
    """
    optimizer = inner_optimizer(optimizer)
    if not optimizer.built:
        return
    fresh = _made_anew(optimizer)
    fresh.build(updated_by(optimizer))
    averages = (id(average) for _, average in averages_of(optimizer))
    stays = {id(batches_seen_by(optimizer)), id(learning_rate_of(optimizer)), *averages}
    second = corrected_moments_of(optimizer)
    if all(bool(tf.reduce_all(tf.math.is_finite(v.value))) for v in second):
        stays |= set(map(id, second))
    for variable, new in paired_state(optimizer, fresh):
        if wholly or id(variable) not in stays:
            variable.assign(new)


def begin_anew(optimizers: Iterable[Optimizer]) -> None:
    """Clear what a divergence left in optimizers: their state, and averages that are not finite."""
    for optimizer in optimizers:
        # What Keras cannot recreate stays as it is: there is another error to report.
        with contextlib.suppress(TypeError, ValueError):
            reset_state(optimizer)
        for weight, average in averages_of(optimizer):
            if not tf.reduce_all(tf.math.is_finite(average.value)):
                average.assign(weight)


def averages_of(optimizer: Optimizer) -> list[tuple[keras.Variable, keras.Variable]]:
    """Return the pairs of weights and averages that an optimizer has: none without `use_ema`."""
    optimizer = inner_optimizer(optimizer)
    averages = moving_averages_of(optimizer)
    return list(zip(updated_by(optimizer), averages, strict=True)) if averages else []


def _made_anew(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer with the same config except the rate, which Keras may not be able to serialize."""
    given: Rate = learning_rate_of(optimizer)
    if not isinstance(given, keras.Variable):
        # A schedule, too, so that the optimizer has as many variables.
        set_learning_rate(optimizer, keras.optimizers.schedules.ExponentialDecay(0.0, 1, 1.0))
    try:
        return type(optimizer).from_config(optimizer.get_config())
    finally:
        set_learning_rate(optimizer, given)


def _number(variable: keras.Variable) -> int:
    # A variable that is mirrored over devices is no number to Python yet.
    return int(tf.convert_to_tensor(variable))
