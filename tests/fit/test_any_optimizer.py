"""The defaults under every optimizer that Keras exports, and some that it does not."""

import keras
import numpy as np
import pytest

from helpers import KEPT, X, Y, fit, net, nonzeros
from lc_keras import L0Constraint, LearningCompression
from lc_keras.baselines import compress_directly

# What takes other optimizers, or is none by itself.
AROUND = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"}
NAMES = [
    name
    for name, kind in vars(keras.optimizers).items()
    if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer) and name not in AROUND
]
# They compute weights from sums of their own, and lose what a trained model begins with, LC or not.
FORGETFUL = {"Ftrl", "ScheduleFreeAdamW"}
RATES = {"SGD": 0.1, "Adadelta": 1.0, "Adagrad": 0.1, "Ftrl": 0.1, "Lion": 1e-3}


class Plain(keras.optimizers.Optimizer):
    """SGD of nobody's."""

    def update_step(self, gradient, variable, learning_rate):
        self.assign_sub(variable, keras.ops.cast(learning_rate, variable.dtype) * gradient)


def made(name):
    if name == "Plain":
        return Plain(0.1)
    if name == "scaled":
        return keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01))
    return getattr(keras.optimizers, name)(RATES.get(name, 0.01))


def test_there_are_optimizers():
    assert {"SGD", "Adam", "Lion", "Muon"} <= set(NAMES)


@pytest.fixture(scope="module")
def trained():
    """The weights of a trained net, and the loss of what direct compression makes of it."""
    model = net()
    fit(model, epochs=10)
    weights = model.get_weights()
    compress_directly(model, L0Constraint(KEPT))
    return weights, model.evaluate(X, Y, verbose=0)


@pytest.mark.parametrize("rate", [1.0, pytest.param(1e-3, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [*NAMES, "Plain", "scaled"])
def test_no_optimizer_keeps_the_weights_from_theta(name, rate, trained):
    (weights, direct), model = trained, net()
    model.set_weights(weights)
    optimizer = made(name)
    optimizer.learning_rate = rate * float(optimizer.learning_rate)
    model.compile(optimizer, model.loss)
    compress = LearningCompression(L0Constraint(KEPT))
    logs = fit(model, [compress], epochs=13).history
    assert nonzeros(model) == KEPT and compress.gap < 0.05
    assert np.isfinite(logs["loss"]).all()
    if name not in FORGETFUL:
        assert model.evaluate(X, Y, verbose=0) < direct
