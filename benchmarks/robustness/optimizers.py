"""Optimizers at usual rates: all that Keras exports, and three defined here."""

import keras
from keras import ops
from keras import optimizers as of_keras


class PlainSGD(keras.optimizers.Optimizer):
    """SGD that does not inherit from Keras's."""

    def update_step(self, gradient, variable, learning_rate):
        rate = ops.cast(learning_rate, variable.dtype)
        self.assign_sub(variable, ops.multiply(gradient, rate))


class SignMomentum(keras.optimizers.Optimizer):
    """Takes steps of one length in the direction of the momentum's sign."""

    def build(self, variables):
        if not self.built:
            super().build(variables)
            self._momenta = self.add_optimizer_variables(variables, "momentum")

    def update_step(self, gradient, variable, learning_rate):
        momentum = self._momenta[self._get_variable_index(variable)]
        # The gradient of an embedding is sparse, which `ops` can handle.
        self.assign(momentum, ops.add(0.9 * momentum, ops.multiply(gradient, 0.1)))
        self.assign_sub(variable, ops.cast(learning_rate, variable.dtype) * ops.sign(momentum))


class Lookahead(keras.optimizers.Optimizer):
    """Goes back half the way after every five steps of another optimizer (Zhang et al., 2019).

    Args:
        inner: `keras.optimizers.Optimizer`.
    """

    def __init__(self, inner, **options):
        super().__init__(learning_rate=0.0, **options)
        self.inner = inner

    def build(self, variables):
        if not self.built:
            self.inner.build(variables)
            super().build(variables)
            self._slow = self.add_optimizer_variables(variables, "slow")
            for slow, variable in zip(self._slow, variables, strict=True):
                slow.assign(variable)

    def apply(self, grads, trainable_variables=None):
        if not self.built:
            self.build(trainable_variables)
        self.inner.apply(grads, trainable_variables)
        self.iterations.assign_add(1)
        goes_back = self.iterations % 5 == 0
        for slow, fast in zip(self._slow, self._trainable_variables, strict=True):
            fast.assign(ops.where(goes_back, (slow + fast) / 2, fast))
            if fast.constraint is not None:
                fast.assign(fast.constraint(fast))
            slow.assign(ops.where(goes_back, fast, slow))

    @property
    def variables(self):
        return self._variables + self.inner.variables

    @property
    def learning_rate(self):
        return self.inner.learning_rate

    @learning_rate.setter
    def learning_rate(self, rate):
        self.inner.learning_rate = rate


def _nesterov(rate):
    return of_keras.SGD(rate, momentum=0.9, nesterov=True)


def _multi(rate):
    """Muon's division of labour by hand: SGD for kernels, Adam for the rest, at a hundredth of the rate."""
    slower = rate / 100 if isinstance(rate, float) else _Scaled(rate, 0.01)
    others = of_keras.Adam(slower)
    kernels = _nesterov(rate)
    return of_keras.MultiOptimizer(lambda v: kernels if v.name.endswith("kernel") else others)


class _Scaled(keras.optimizers.schedules.LearningRateSchedule):
    def __init__(self, schedule, factor):
        self.schedule, self.factor = schedule, factor

    def __call__(self, step):
        return self.factor * self.schedule(step)

    def get_config(self):
        return {"schedule": self.schedule, "factor": self.factor}


# The usual rate, and a function that makes the optimizer from a rate. `None`: the net's rate for SGD.
OPTIMIZERS = {
    "SGD": (None, _nesterov),
    "Adam": (1e-3, of_keras.Adam),
    "Lion": (1e-4, of_keras.Lion),
    "RMSprop": (1e-3, of_keras.RMSprop),
    "AdamW": (1e-3, of_keras.AdamW),
    "ScheduleFreeAdamW": (2.5e-3, of_keras.ScheduleFreeAdamW),
    "Adadelta": (1.0, of_keras.Adadelta),
    "Muon": (5e-3, of_keras.Muon),
    "Lookahead": (1e-3, lambda rate: Lookahead(of_keras.Adam(rate))),
    "PlainSGD": (None, PlainSGD),
    "SignMomentum": (1e-4, SignMomentum),
    "Nadam": (1e-3, of_keras.Nadam),
    "Adamax": (2e-3, of_keras.Adamax),
    "Adafactor": (1e-2, of_keras.Adafactor),
    "Adagrad": (1e-2, of_keras.Adagrad),
    "Lamb": (2e-3, of_keras.Lamb),
    "Ftrl": (2e-2, of_keras.Ftrl),
    "LossScaleOptimizer": (1e-3, lambda rate: of_keras.LossScaleOptimizer(of_keras.Adam(rate))),
    "MultiOptimizer": (None, _multi),
}


def make(name, net_rate, factor, schedule, batches):
    """Makes an optimizer.

    Args:
        name: String, of `OPTIMIZERS`.
        net_rate: Float, the rate of SGD with momentum for the net.
        factor: Float, by which the usual rate is multiplied.
        schedule: String, of `SCHEDULES`.
        batches: Int, of the whole run.

    Returns:
        `keras.optimizers.Optimizer`.
    """
    usual, build = OPTIMIZERS[name]
    return build(SCHEDULES[schedule](factor * (usual or net_rate), batches))


def _warm_up(rate, batches, last):
    """Returns a schedule: from 0 up in a fifth of the run, then along a cosine to a part of the rate."""
    warm = max(1, batches // 5)
    return of_keras.schedules.CosineDecay(
        0.0, max(1, batches - warm), alpha=last, warmup_target=rate, warmup_steps=warm
    )


# How the rate changes, given the rate at the start and the batches of the run.
SCHEDULES = {
    "falling": lambda rate, batches: of_keras.schedules.ExponentialDecay(rate, batches, 0.98**40),
    "constant": lambda rate, batches: rate,
    "cosine": of_keras.schedules.CosineDecay,
    "warm-up": lambda rate, batches: _warm_up(rate, batches, 1.0),
    "warm-up, cosine": lambda rate, batches: _warm_up(rate, batches, 0.0),
}
