"""The defaults under every optimizer that Keras exports, and some that it does not."""

import itertools

import keras
import numpy as np
import pytest

from helpers import KEPT, fit, kernels, loss, net, nonzeros
from lc_keras import L0Constraint, L1Constraint, LearningCompression
from lc_keras.baselines import compress_directly

# These take other optimizers, or are not optimizers by themselves.
AROUND = {"Optimizer", "LossScaleOptimizer", "MultiOptimizer", "OptimizerMap"}
NAMES = [
    name
    for name, kind in vars(keras.optimizers).items()
    if isinstance(kind, type) and issubclass(kind, keras.optimizers.Optimizer) and name not in AROUND
]
KINDS = [*NAMES, "Plain", "scaled"]
# These compute weights from sums of their own and lose what a trained model begins with, with or without LC.
FORGETFUL = {"Ftrl", "ScheduleFreeAdamW"}
RATES = {"SGD": 0.1, "Adadelta": 1.0, "Adagrad": 0.1, "Ftrl": 0.1, "Lion": 1e-3}


class Plain(keras.optimizers.Optimizer):
    """SGD that nobody knows."""

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


RADIUS = 5.0
COSTS = {"count": L0Constraint(KEPT), "norm": L1Constraint(RADIUS)}


@pytest.fixture(scope="module")
def trained():
    """The weights of a trained net, and its loss after direct compression with each cost."""
    model, losses = net(), {}
    fit(model, epochs=10)
    weights = model.get_weights()
    for name, cost in COSTS.items():
        model.set_weights(weights)
        compress_directly(model, cost)
        losses[name] = loss(model)
    return weights, losses


# One of each family, at usual rates and at a thousandth of them.
FAMILIES = ("SGD", "Adam", "Adafactor", "Ftrl", "Lion", "Muon", "scaled")
QUICK = [("count", name, 1.0) for name in FAMILIES]
QUICK += [("norm", "Adam", 1e-3), ("norm", "Plain", 1.0)]
CASES = list(itertools.product(COSTS, KINDS, (1.0, 1e-3)))


@pytest.mark.parametrize(
    "cost, name, rate",
    [pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in CASES],
)
def test_no_optimizer_keeps_the_weights_from_theta(cost, name, rate, trained):
    (weights, direct), model = trained, net()
    model.set_weights(weights)
    optimizer = made(name)
    optimizer.learning_rate = rate * float(optimizer.learning_rate)
    model.compile(optimizer, model.loss)
    compress = LearningCompression(COSTS[cost])
    logs = fit(model, [compress], epochs=13).history
    if cost == "count":
        assert nonzeros(model) == KEPT
    else:
        assert sum(np.abs(kernel).sum() for kernel in kernels(model)) <= RADIUS * (1 + 1e-6)
    assert compress.gap < (0.1 if name in FORGETFUL else 0.05)
    assert np.isfinite(logs["loss"]).all()
    if name not in FORGETFUL:
        # Weights that the loss cannot move end where direct compression would have put them, or nearly so.
        assert loss(model) < direct[cost] * (1 if rate == 1 else 1.02)
