"""Weights that other callbacks and constraints put into the model."""

import warnings

import keras
import numpy as np
import pytest

from helpers import (
    BATCHES,
    DATA,
    KEPT,
    RANGE,
    WEIGHTS,
    fit,
    kernels,
    largest,
    lc,
    net,
    nonzeros,
    spy,
)
from lc_keras import (
    Geometric,
    L0Constraint,
    L0Penalty,
    L1Constraint,
    L2Constraint,
    LearningCompression,
    LowRank,
    NMConstraint,
    Sum,
)
from lc_keras.algorithm.direct import compress_again

# A fit that runs to its end has nothing to warn about.
pytestmark = pytest.mark.filterwarnings(
    "error:Training (stopped|was interrupted)", "error:An L step of", "error:.* L steps need"
)


def changed_at_the_end(model, compress, first, change):
    """Trains; returns kernels as another callback changed them as training ended, and warnings about it."""
    given = []

    def put(logs):
        model.set_weights([change(weight) for weight in model.get_weights()])
        given.extend(kernels(model))

    other = spy(on_train_end=put)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, [compress, other] if first else [other, compress])
    messages = [str(warning.message) for warning in caught]
    return given, [message for message in messages if message.startswith("As training ended")]


@pytest.mark.parametrize("first", [True, False])
def test_weights_that_are_put_into_the_model_as_training_ends(first):
    model, compress = net(), lc()
    given, (warning,) = changed_at_the_end(model, compress, first, lambda weight: weight + 0.01)
    gap = np.linalg.norm([np.linalg.norm(a - b) for a, b in zip(given, kernels(model), strict=True)])
    gap /= np.linalg.norm([np.linalg.norm(kernel) for kernel in given])
    assert "As training ended, weights other than" in warning and f"{gap:.0%} of the norm" in warning
    for kernel, expected in zip(kernels(model), largest(given), strict=True):
        np.testing.assert_array_equal(kernel, expected)
    assert compress.density == KEPT / WEIGHTS
    assert model.layers[0].bias.numpy().any()


@pytest.mark.parametrize("cost", [L1Constraint(3.0), L2Constraint(1.5), L0Penalty(0.1)])
def test_only_a_budget_is_kept_as_training_ends(cost):
    model = net()
    compress = LearningCompression(cost, mu=RANGE)
    given, found = changed_at_the_end(model, compress, True, lambda weight: 2 * weight + 0.001)
    if isinstance(cost, L0Penalty):
        assert not found
        for kernel, expected in zip(kernels(model), given, strict=True):
            np.testing.assert_array_equal(kernel, expected)
    else:
        assert len(found) == 1
        order = 1 if isinstance(cost, L1Constraint) else 2
        norm = np.linalg.norm(np.concatenate([kernel.ravel() for kernel in kernels(model)]), order)
        assert norm == pytest.approx(cost.radius, rel=1e-5)


@pytest.mark.parametrize(
    "cost, dtype",
    [(L0Constraint(KEPT), "float32"), (NMConstraint(2, 4), "bfloat16"), (L1Constraint(3.0), "bfloat16")],
    ids=str,
)
def test_weights_that_keep_the_budget_stay_as_they_are_put(cost, dtype):
    model = net(dtype=dtype)
    model.layers[0].kernel.constraint = keras.constraints.MinMaxNorm(0.5, 1.0, rate=0.5)
    compress = LearningCompression(cost, mu=RANGE)
    given, found = changed_at_the_end(model, compress, True, lambda weight: weight * 0.5)
    assert not found
    for kernel, expected in zip(kernels(model), given, strict=True):
        np.testing.assert_array_equal(kernel, expected)


def test_weights_of_an_earlier_epoch_stay_as_they_were_validated():
    """A second C step of a `Sum` would change them."""
    model, shown = net(run_eagerly=True), []
    note = spy(on_epoch_end=lambda epoch, logs: shown.append(kernels(model)))
    compress = LearningCompression(Sum(LowRank(1), L0Constraint(5)))

    def put(logs):
        for layer, kernel in zip(model.layers, shown[0], strict=True):
            layer.kernel.assign(kernel)

    def is_as_validated():
        return all(np.array_equal(*pair) for pair in zip(kernels(model), shown[0], strict=True))

    fit(model, [compress, note, spy(on_train_end=put)], x=DATA.take(2), epochs=2)
    assert is_as_validated()
    gap, _ = compress_again(model, compress.shared, 1.0, compress.shown)
    assert gap == 0 and is_as_validated()
    assert compress_again(model, compress.shared, 1.0)[0] > 0


def test_a_single_weight_beyond_the_budget_is_found_as_training_ends():
    def put(logs):
        kernel = kernels(model)[0]
        kernel.flat[np.flatnonzero(kernel == 0)[0]] = 1e-6
        model.layers[0].kernel.assign(kernel)

    model = net()
    fit(model, [spy(on_train_end=put), lc()])
    assert nonzeros(model) == KEPT


@pytest.mark.parametrize("hook, multipliers", [("on_epoch_begin", True), ("on_epoch_end", False)])
def test_weights_that_are_put_into_the_model_between_epochs(hook, multipliers, lagrangians):
    def put(epoch, logs):
        if epoch == (2 if hook == "on_epoch_begin" else 1):
            model.set_weights(start)

    def look(batch, logs):
        lagrangian = lagrangians[-1]
        seen.append((kernels(model), [theta.numpy() for theta in lagrangian.thetas], lagrangian.multipliers))

    model, seen, compress = net(), [], lc(multipliers=multipliers)
    start = net(keras.optimizers.SGD(0.1)).get_weights()
    look = spy(on_train_batch_begin=look)
    with pytest.warns(UserWarning, match="Between epochs, the compressed weights were replaced"):
        fit(model, [compress, spy(**{hook: put}), look], epochs=4)
    now, thetas, multipliers = seen[2 * BATCHES]
    for kernel, given in zip(now, start[::2], strict=True):
        np.testing.assert_array_equal(kernel, given)
    for theta, expected in zip(thetas, largest(start[::2]), strict=True):
        np.testing.assert_array_equal(theta, expected)
    assert not any(np.any(values) for values in multipliers)
    assert nonzeros(model) == KEPT


@pytest.mark.parametrize(
    "cost, constraint",
    [
        (L0Constraint(KEPT), "MaxNorm"),
        (L0Constraint(KEPT), "UnitNorm"),
        (NMConstraint(2, 4), "NonNeg"),
        (L0Penalty(0.01), "MaxNorm"),
    ],
    ids=str,
)
def test_a_constraint_of_the_weights_holds_for_theta(cost, constraint):
    model = net()
    held = {
        "MaxNorm": keras.constraints.MaxNorm(0.3),
        "UnitNorm": keras.constraints.UnitNorm(),
        "NonNeg": keras.constraints.NonNeg(),
    }[constraint]
    model.layers[0].kernel.constraint = held
    fit(model, [LearningCompression(cost, mu=Geometric(0.5, 2.0))], epochs=4)
    kernel = kernels(model)[0]
    assert 0 < np.count_nonzero(kernel) < kernel.size
    np.testing.assert_allclose(keras.ops.convert_to_numpy(held(kernel)), kernel, atol=1e-6)


class AtLeast(keras.constraints.Constraint):
    def __call__(self, w):
        return keras.ops.maximum(w, 0.1)


def test_a_constraint_that_takes_weights_off_zero():
    model = net(keras.optimizers.SGD(0.1, use_ema=True))
    model.layers[0].kernel.constraint = AtLeast()
    fit(model, [lc()])
    kernel = kernels(model)[0]
    assert nonzeros(model) == KEPT and np.all(kernel[kernel != 0] >= 0.1)


def test_a_budget_goes_before_a_constraint_of_the_weights():
    model = net()
    model.layers[0].kernel.constraint = keras.constraints.UnitNorm()
    fit(model, [LearningCompression(L1Constraint(3.0), mu=RANGE)], epochs=4)
    assert sum(np.abs(kernel).sum() for kernel in kernels(model)) <= 3.0 * (1 + 1e-6)
