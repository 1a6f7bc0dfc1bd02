"""The model that a fit with LC leaves behind, and the steps of the algorithm in it."""

import subprocess
import sys

import keras
import numpy as np
import pytest

from helpers import (
    BATCHES,
    KEPT,
    RANGE,
    WEIGHTS,
    XENT,
    X,
    Y,
    fit,
    kernels,
    largest,
    lc,
    linear,
    loss,
    net,
    nonzeros,
    rng,
    same,
    spy,
)
from lc_keras import (
    L0Constraint,
    LearningCompression,
)

# A fit that runs to its end has nothing to warn about.
pytestmark = pytest.mark.filterwarnings(
    "error:Training (stopped|was interrupted)", "error:An L step of", "error:.* L steps need"
)


# What a fit leaves behind


def test_after_fit_the_model_is_plain():
    model = net(regularizer=keras.regularizers.L2(1e-3))
    regularizers = [v.regularizer for v in model.weights]
    layers, weights = list(model.layers), list(model.weights)
    config, compiled = model.get_config(), model.get_compile_config()
    fit(model, [lc()])
    assert nonzeros(model) == KEPT
    assert [v.regularizer for v in model.weights] == regularizers
    assert all(a is b for a, b in zip(model.layers, layers, strict=True))
    assert all(a is b for a, b in zip(model.weights, weights, strict=True))
    assert (model.get_config(), model.get_compile_config()) == (config, compiled)


def test_a_later_fit_has_no_penalty():
    model = net()
    fit(model, [lc()], validation_data=(X, Y))
    clean = net()
    clean.set_weights(model.get_weights())
    assert model.evaluate(X, Y, verbose=0) == clean.evaluate(X, Y, verbose=0)
    assert fit(model).history == fit(clean).history
    same(model, clean)
    assert nonzeros(model) == WEIGHTS


@pytest.mark.slow
def test_saved_model_loads_without_the_package(tmp_path):
    decay = keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)
    model = net(keras.optimizers.SGD(decay, momentum=0.9))
    fit(model, [lc()])
    model.save(tmp_path / "model.keras")
    np.save(tmp_path / "x.npy", X)
    program = """
import sys, keras, numpy
model = keras.models.load_model("model.keras")
assert "lc_keras" not in sys.modules
assert type(model.optimizer._learning_rate).__name__ == "ExponentialDecay"
numpy.save("y.npy", model.predict(numpy.load("x.npy"), verbose=0))
"""
    subprocess.run([sys.executable, "-I", "-c", program], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model.predict(X, verbose=0), rtol=1e-5)


def test_a_model_in_use_is_compressed_like_a_new_one():
    used = net()
    fit(used, epochs=1, validation_data=(X, Y))
    used.evaluate(X, Y, verbose=0)
    used.predict(X, verbose=0)
    new = net()
    new.set_weights(used.get_weights())
    assert fit(used, [lc()]).history == fit(new, [lc()]).history
    same(used, new)


@pytest.mark.parametrize("fitted", [False, True])
def test_the_weights_are_pulled_to_the_compressed_ones(fitted):
    model = net(keras.optimizers.SGD(1e-3))
    if fitted:
        fit(model, epochs=1)
    # Each batch halves the distance, which the loss alone would hardly change.
    compress = lc(mu=[500.0], epochs_per_step=1)
    before = kernels(model)
    logs = fit(model, [compress], epochs=1).history
    start = np.sqrt(sum(np.sum((a - b) ** 2) for a, b in zip(before, largest(before), strict=True)))
    start /= np.sqrt(sum(np.sum(a**2) for a in before))
    assert start > 0.5
    assert 0 < logs["gap"][0] < 0.01
    assert logs["gap"][0] == compress.gap


# The algorithm


@pytest.mark.parametrize("multipliers, limit", [(True, True), (False, True), (True, False)])
def test_against_the_algorithm_in_numpy(multipliers, limit):
    model = linear()
    goal = X @ rng.normal(size=(6, 4)) + 1.0
    mus = np.array(RANGE.over(8)) * 0.7
    weight = kernels(model)[0].astype("float64")
    kept, multiplier, losses, pulls = largest([weight], 8)[0], 0.0, [], []
    for i, mu in enumerate(mus):
        rate = min(0.05, 1 / mu) if limit else 0.05
        for batch in (2 * i % BATCHES, (2 * i + 1) % BATCHES):
            x, error = X[8 * batch : 8 * batch + 8], weight - kept - multiplier / mu
            residual = x @ weight - goal[8 * batch : 8 * batch + 8]
            losses.append(np.mean(residual**2))
            weight = weight - rate * (2 / residual.size * x.T @ residual + mu * error)
        pulls.append(mu / 2 * np.sum((weight - kept - multiplier / mu) ** 2))
        kept = largest([weight - multiplier / mu], 8)[0]
        if multipliers:
            multiplier = multiplier - mu * (weight - kept)
    compress = LearningCompression(
        L0Constraint(8),
        mu=list(mus),
        epochs_per_step=0.25,
        multipliers=multipliers,
        limit_learning_rate=limit,
    )
    logs = fit(model, [compress], y=goal).history
    np.testing.assert_allclose(kernels(model)[0], kept, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logs["loss"], np.mean(np.reshape(losses, (2, BATCHES)), axis=1), rtol=1e-4)
    np.testing.assert_allclose(logs["pull"], pulls[3::4], rtol=1e-3)
    gap = np.linalg.norm(weight - kept) / np.linalg.norm(weight)
    np.testing.assert_allclose(logs["gap"][-1], gap, rtol=1e-3)


def first_loss(model, x, y, expected, rtol=1e-5):
    """Compares the loss of the first batch with `expected`, without the penalty."""
    compress = lc(mu=[3.0], epochs_per_step=1)
    logs = model.fit(x, y, batch_size=len(Y), verbose=0, callbacks=[compress]).history
    np.testing.assert_allclose(logs["loss"][0], expected, rtol=rtol)
    assert logs["pull"][0] > 0.1
    assert nonzeros(model) == KEPT


def test_a_regularizer_that_is_put_meanwhile_stays():
    model = net(regularizer=keras.regularizers.L2(1e-3))
    other = keras.regularizers.L2(0.5)
    put = spy(on_epoch_begin=lambda epoch, logs: setattr(model.layers[0].kernel, "regularizer", other))
    fit(model, [lc(), put])
    assert model.layers[0].kernel.regularizer is other


def test_a_regularizer_of_the_user_counts_too():
    model = net(regularizer=keras.regularizers.L2(0.1))
    first_loss(model, X, Y, loss(net()) + 0.1 * np.sum(kernels(model)[0] ** 2))
    (penalty,) = model.losses
    np.testing.assert_allclose(penalty, 0.1 * np.sum(kernels(model)[0] ** 2), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["mixed_float16", "bfloat16", "float64"])
def test_types(dtype):
    model = net(dtype=dtype)
    types = [v.dtype for v in model.weights]
    first_loss(model, X, Y, loss(model), rtol=0.02)
    assert [v.dtype for v in model.weights] == types
    assert all(np.isfinite(w.astype("float32")).all() for w in model.get_weights())


def test_masks():
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential([layers.Embedding(9, 4, mask_zero=True), layers.LSTM(3), layers.Dense(3)])
    words = rng.integers(1, 9, (len(Y), 5)) * (np.arange(5) < rng.integers(1, 6, (len(Y), 1)))
    model.build(words.shape)
    model.compile("adam", XENT)
    embedding = model.layers[0].embeddings
    first_loss(model, words, Y, model.evaluate(words, Y, verbose=0, batch_size=len(Y)))
    assert np.count_nonzero(embedding.numpy()) == 36


def test_outputs_with_loss_weights():
    keras.utils.set_random_seed(1)
    inputs = keras.Input((6,))
    hidden = keras.layers.Dense(8, activation="tanh")(inputs)
    outputs = {"a": keras.layers.Dense(3)(hidden), "b": keras.layers.Dense(2)(hidden)}
    model = keras.Model(inputs, outputs)
    model.compile("sgd", {"a": XENT, "b": "mse"}, loss_weights={"a": 0.3, "b": 7.0})
    goals = {"a": Y, "b": X[:, :2]}
    a, b = model(X).values()
    expected = 0.3 * float(XENT(Y, a)) + 7.0 * float(keras.losses.MeanSquaredError()(X[:, :2], b))
    first_loss(model, X, goals, expected)
