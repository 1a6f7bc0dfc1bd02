import itertools
import re
import subprocess
import sys
import warnings
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras import (
    Geometric,
    L0Constraint,
    L0Penalty,
    L1Constraint,
    L1Penalty,
    L2Constraint,
    L2Penalty,
    LearningCompression,
    Neurons,
    NMConstraint,
    Weights,
)
from lc_keras.lagrangian import Lagrangian
from lc_keras.schedules import Automatic

# A fit that runs to its end has nothing to warn of.
pytestmark = pytest.mark.filterwarnings(
    "error:Training (stopped|was interrupted)", "error:An L step of", "error:.* L steps need"
)

KEPT = 10
WEIGHTS = 6 * 8 + 8 * 3
BATCHES = 8
RANGE = Geometric(2.0, 50.0)  # 1/μ crosses the learning rate of 0.1

rng = np.random.default_rng(0)
X = rng.normal(size=(8 * BATCHES, 6)).astype("float32")
Y = np.argmax(X @ rng.normal(size=(6, 3)), axis=1)
XENT = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def net(optimizer=None, dtype=None, kind=keras.Sequential, regularizer=None, **options):
    """A model that has the same weights in each call; its L step is 2 batches by default."""
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(8, activation="tanh", kernel_regularizer=regularizer, dtype=dtype),
        keras.layers.Dense(3, dtype=dtype),
    ]
    model = kind(layers)
    model.compile(optimizer=optimizer or keras.optimizers.SGD(0.1, name="sgd"), loss=XENT, **options)
    return model


def lc(**options):
    return LearningCompression(L0Constraint(KEPT), **({"mu": RANGE} | options))


def fit(model, callbacks=None, **options):
    data = {"x": X, "y": Y, "batch_size": 8}
    data |= {name: options.pop(name) for name in data.keys() & options.keys()}
    if isinstance(data["x"], tf.data.Dataset):
        data = {"x": data["x"]}
    return model.fit(**data, callbacks=callbacks, **({"epochs": 2, "verbose": 0, "shuffle": False} | options))


def kernels(model):
    return [v.numpy().astype("float32") for v in model.trainable_variables if "kernel" in v.name]


def nonzeros(model):
    return sum(np.count_nonzero(kernel) for kernel in kernels(model))


def same(model, other, **tolerance):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        if tolerance:
            np.testing.assert_allclose(one, two, **tolerance)
        else:
            np.testing.assert_array_equal(one, two)


def largest(arrays, kept=KEPT):
    """The arrays with all but the largest magnitudes set to zero."""
    threshold = np.sort(np.concatenate([np.abs(a).ravel() for a in arrays]))[-kept]
    return [np.where(np.abs(a) >= threshold, a, 0) for a in arrays]


def spy(**functions):
    return keras.callbacks.LambdaCallback(**functions)


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


def linear(rate=0.05):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, use_bias=False)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


@pytest.mark.parametrize("multipliers, limit", [(True, True), (False, True), (True, False)])
def test_against_the_algorithm_in_numpy(multipliers, limit):
    model = linear()
    goal = X @ rng.normal(size=(6, 4)) + 1.0
    mus = np.array(RANGE.over(8)) * 0.7
    weight = kernels(model)[0].astype("float64")
    kept, multiplier, losses = largest([weight], 8)[0], 0.0, []
    for i, mu in enumerate(mus):
        rate = min(0.05, 1 / mu) if limit else 0.05
        for batch in (2 * i % BATCHES, (2 * i + 1) % BATCHES):
            x, error = X[8 * batch : 8 * batch + 8], weight - kept - multiplier / mu
            residual = x @ weight - goal[8 * batch : 8 * batch + 8]
            losses.append(np.mean(residual**2) + mu / 2 * np.sum(error**2))
            weight = weight - rate * (2 / residual.size * x.T @ residual + mu * error)
        kept = largest([weight - multiplier / mu], 8)[0]
        if multipliers:
            multiplier = multiplier - mu * (weight - kept)
    compress = LearningCompression(
        L0Constraint(8), mu=list(mus), multipliers=multipliers, limit_learning_rate=limit
    )
    logs = fit(model, [compress], y=goal).history
    np.testing.assert_allclose(kernels(model)[0], kept, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logs["loss"], np.mean(np.reshape(losses, (2, BATCHES)), axis=1), rtol=1e-4)
    gap = np.linalg.norm(weight - kept) / np.linalg.norm(weight)
    np.testing.assert_allclose(logs["gap"][-1], gap, rtol=1e-3)


def first_loss(model, x, y, expected, rtol=1e-5, mu=3.0):
    """Compares the loss of the first batch with `expected` and the penalty."""
    weights = kernels(model)
    distance = sum(np.sum((a - b) ** 2) for a, b in zip(weights, largest(weights), strict=True))
    compress = lc(mu=[mu], epochs_per_step=1)
    logs = model.fit(x, y, batch_size=len(Y), verbose=0, callbacks=[compress]).history
    np.testing.assert_allclose(logs["loss"][0], expected + mu / 2 * distance, rtol=rtol)
    assert nonzeros(model) == KEPT


def test_a_regularizer_of_the_user_counts_too():
    model = net(regularizer=keras.regularizers.L2(0.1))
    first_loss(model, X, Y, net().evaluate(X, Y, verbose=0) + 0.1 * np.sum(kernels(model)[0] ** 2))
    (loss,) = model.losses
    np.testing.assert_allclose(loss, 0.1 * np.sum(kernels(model)[0] ** 2), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16", "float16", "bfloat16", "float64"])
def test_types(dtype):
    model = net(dtype=dtype)
    types = [v.dtype for v in model.weights]
    first_loss(model, X, Y, model.evaluate(X, Y, verbose=0, batch_size=len(Y)), rtol=0.02)
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


# How Keras executes it


def test_graph_eager_and_jit_are_equal():
    runs = []
    for options in {"jit_compile": False}, {"run_eagerly": True}, {"jit_compile": True}:
        rate = keras.optimizers.schedules.ExponentialDecay(0.2, 4, 0.8)
        model = net(keras.optimizers.SGD(rate, momentum=0.5), **options)
        runs.append((model, fit(model, [lc()]).history))
    (graph, expected), *others = runs
    for other, logs in others:
        same(graph, other, rtol=1e-3, atol=1e-5)
        for name in ("loss", "gap", "mu"):
            np.testing.assert_allclose(logs[name], expected[name], rtol=1e-3)


@pytest.mark.parametrize("executed, length", [(2, 0.25), (8, 1.0), (3, 0.5)])
def test_steps_per_execution_that_end_with_l_steps(executed, length):
    # Of the executions of 3, 3 and 2 batches the second ends a batch after the L step.
    one, many = net(), net(steps_per_execution=executed)
    logs = fit(many, [lc(epochs_per_step=length)]).history
    assert logs["l_step"][-1] == logs["l_steps"][-1] == 2 / length
    assert logs["mu"][-1] == 50.0
    assert nonzeros(many) == KEPT
    if executed != 3:
        fit(one, [lc(epochs_per_step=length)])
        same(one, many, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("executed", [3, 5, 50])
def test_steps_per_execution_longer_than_an_l_step(executed):
    model, seen = net(steps_per_execution=executed), []
    compress = lc()
    look = spy(on_train_batch_end=lambda batch, logs: seen.append(logs["l_step"]))
    with pytest.warns(UserWarning, match=f"An L step of 2 batches .* steps_per_execution={executed}"):
        logs = fit(model, [compress, look]).history
    assert (logs["l_step"][-1], logs["l_steps"][-1]) == (8, 8)
    assert logs["mu"][-1] == 50.0
    assert nonzeros(model) == KEPT
    # Each execution is the last of the L steps that end in it.
    assert seen == {3: [1, 3, 4, 5, 7, 8], 5: [2, 4, 6, 8], 50: [4, 8]}[executed]


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        lambda: keras.optimizers.Adam(0.02),
        lambda: keras.optimizers.RMSprop(0.02, clipnorm=1.0),
        lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.02, 100)),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
        lambda: keras.optimizers.Adam(0.02, gradient_accumulation_steps=2),
        lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
    ],
    ids=["sgd", "adam", "rmsprop", "adamw", "loss scale", "accumulation", "ema"],
)
def test_optimizers(optimizer):
    model = net(optimizer())
    config = model.optimizer.get_config()
    # One long L step: w comes close to θ.
    compress = lc(mu=[50.0], epochs_per_step=6)
    fit(model, [compress], epochs=6)
    assert model.optimizer.get_config() == config
    assert nonzeros(model) == KEPT
    assert compress.gap < 0.3


class RateSeen(keras.Sequential):
    """Keeps the learning rate of each update."""

    def train_step(self, data):
        self.seen.append(float(self.optimizer.learning_rate))
        return super().train_step(data)

    def compile(self, **options):
        self.seen = []
        super().compile(**options, run_eagerly=True)


MUS = np.repeat(RANGE.over(8), 2)


@pytest.mark.parametrize("limit", [True, False])
@pytest.mark.parametrize("decays", [True, False])
def test_learning_rate_is_limited(decays, limit):
    if decays:
        wanted = 0.2 * 0.8 ** (np.arange(16) / 4)
        optimizer = keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.2, 4, 0.8))
    else:
        wanted = np.full(16, 0.1)
        optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1))
    model = net(optimizer, kind=RateSeen)
    config = optimizer.get_config()
    fit(model, [lc(limit_learning_rate=limit)])
    assert np.any(wanted < 1 / MUS) and np.any(wanted > 1 / MUS)
    np.testing.assert_allclose(model.seen, np.minimum(wanted, 1 / MUS) if limit else wanted, rtol=1e-5)
    assert optimizer.get_config() == config


@pytest.mark.parametrize("first", [True, False])
def test_learning_rate_scheduler_beside_it(first):
    model = net(kind=RateSeen)
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: 0.3 / (epoch + 1))
    fit(model, [lc(), scheduler] if first else [scheduler, lc()])
    wanted = np.repeat([0.3, 0.15], BATCHES)
    np.testing.assert_allclose(model.seen, np.minimum(wanted, 1 / MUS), rtol=1e-5)
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.15, rtol=1e-5)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize(
    "reducer",
    [
        lambda: keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9),
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * (0.5 if epoch else 1)),
    ],
    ids=["plateau", "scheduler"],
)
def test_relative_changes_start_from_the_rate_of_the_user(reducer, first):
    model = net(kind=RateSeen)
    fit(model, [lc(), reducer()] if first else [reducer(), lc()])
    # Halved once: before the second epoch, or after it.
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.05, rtol=1e-5)


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_reset_optimizer(reset, name):
    optimizer = keras.optimizers.SGD(0.1, 0.9) if name == "sgd" else keras.optimizers.Adam(0.02)
    model, fresh = net(optimizer), []

    def look(batch, logs):
        momentums = getattr(optimizer, "momentums" if name == "sgd" else "_momentums", [])
        fresh.append(not any(np.any(v.numpy()) for v in momentums))

    fit(model, [lc(reset_optimizer=reset), spy(on_train_batch_begin=look)], epochs=2)
    assert fresh == ([True, False] * 8 if reset else [True] + 15 * [False])
    assert optimizer.iterations == 16


# What is seen while it runs


@pytest.mark.parametrize("first", [True, False])
def test_logs(tmp_path, first):
    csv, compress = keras.callbacks.CSVLogger(tmp_path / "log.csv"), lc(epochs_per_step=1)
    callbacks = [compress, csv] if first else [csv, compress]
    logs = fit(net(), callbacks, epochs=3, validation_data=(X, Y)).history
    np.testing.assert_allclose(logs["mu"], RANGE.over(3), rtol=1e-6)
    np.testing.assert_allclose(logs["density"], 3 * [KEPT / WEIGHTS], rtol=1e-6)
    assert logs["l_step"] == [1, 2, 3] and logs["l_steps"] == [3, 3, 3]
    assert all(0 < gap < 1 for gap in logs["gap"]) and len(set(logs["gap"])) == 3
    assert (compress.gap, compress.density) == (logs["gap"][-1], logs["density"][-1])
    header, *rows = (tmp_path / "log.csv").read_text().splitlines()
    table = np.array([[float(value) for value in row.split(",")] for row in rows])
    for name in ("mu", "density", "gap", "l_step", "l_steps"):
        np.testing.assert_allclose(table[:, header.split(",").index(name)], logs[name])


@pytest.mark.parametrize("first", [True, False])
def test_tensorboard(tmp_path, first):
    pytest.importorskip("tensorboard")
    board, model = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1), net()
    logs = fit(model, [lc(), board] if first else [board, lc()], validation_data=(X, Y)).history
    written = {}
    for path in tmp_path.glob("*/events*"):
        for event in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            for value in tf.compat.v1.Event.FromString(event).summary.value:
                name = f"{path.parent.name}/{value.tag}"
                written.setdefault(name, []).append(tf.make_ndarray(value.tensor))
    for name in ("loss", "mu", "gap", "density"):
        np.testing.assert_allclose(written[f"train/epoch_{name}"], logs[name], rtol=1e-6)
    np.testing.assert_allclose(written["validation/epoch_loss"], logs["val_loss"], rtol=1e-6)
    kernel = model.layers[0].kernel
    # Buckets of a lower end, an upper end and a count.
    buckets = written[f"train/{kernel.path}/histogram"][-1]
    assert sum(count for low, high, count in buckets if low <= 0 <= high) >= np.sum(kernel.numpy() == 0)


def test_progress_bar_shows_the_l_step(capsys):
    fit(net(), [lc()], verbose=1)
    out = capsys.readouterr().out
    steps = [float(number) for number in re.findall(r"l_step: ([\d.]+)", out)]
    assert steps == sorted(steps) and steps[-1] == 8 and 4 in steps
    assert {float(number) for number in re.findall(r"l_steps: ([\d.]+)", out)} == {8}


def test_validation_is_of_the_compressed_model_and_disturbs_nothing():
    model, plain, seen = net(), net(), []
    look = spy(on_epoch_end=lambda epoch, logs: seen.append((model.get_weights(), logs["val_loss"])))
    logs = fit(model, [lc(), look], epochs=3, validation_data=(X, Y)).history
    fit(plain, [lc()], epochs=3)
    same(model, plain)
    assert model.evaluate(X, Y, verbose=0) == logs["val_loss"][-1]
    for weights, loss in seen:
        plain.set_weights(weights)
        assert nonzeros(plain) == KEPT
        np.testing.assert_allclose(loss, plain.evaluate(X, Y, verbose=0), rtol=1e-6)
    assert len(seen) == 3


def test_validation_split_and_freq():
    model, seen = net(), []
    look = spy(on_epoch_end=lambda epoch, logs: seen.append(nonzeros(model)))
    logs = fit(model, [lc(), look], epochs=4, validation_split=0.25, validation_freq=2).history
    assert seen == 4 * [KEPT]
    assert len(logs["val_loss"]) == 2
    assert logs["l_step"] == [4, 8, 12, 16]
    np.testing.assert_allclose(model.evaluate(X[48:], Y[48:], verbose=0), logs["val_loss"][-1], rtol=1e-6)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("monitor", ["loss", "val_loss"])
def test_checkpoints_are_compressed(tmp_path, first, monitor):
    path = tmp_path / "best.keras"
    save = keras.callbacks.ModelCheckpoint(path, monitor, save_best_only=True)
    model = net(keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(0.1, 4, 0.5)))
    data = {"validation_data": (X, Y)} if monitor == "val_loss" else {}
    logs = fit(model, [lc(), save] if first else [save, lc()], **data).history
    best = keras.models.load_model(path)
    assert nonzeros(best) == KEPT
    if data:
        np.testing.assert_allclose(best.evaluate(X, Y, verbose=0), min(logs["val_loss"]), rtol=1e-6)
    with zipfile.ZipFile(path) as archive:
        assert b"lc_keras" not in archive.read("config.json")


# Training that stops early


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("monitor", ["loss", "val_loss"])
def test_early_stopping(first, monitor):
    stop = keras.callbacks.EarlyStopping(monitor, min_delta=1e9, patience=1, restore_best_weights=True)
    model, compress = net(), lc()
    data = {"validation_data": (X, Y)} if monitor == "val_loss" else {}
    with pytest.warns(UserWarning, match="Training stopped in L step 9 of 20.* gap") as caught:
        logs = fit(model, [compress, stop] if first else [stop, compress], epochs=5, **data).history
    assert f"{compress.gap:.3g}" in str(caught[-1].message)
    assert len(logs["loss"]) == 2
    assert nonzeros(model) == KEPT
    if data:
        np.testing.assert_allclose(model.evaluate(X, Y, verbose=0), logs["val_loss"][0], rtol=1e-6)


@pytest.mark.parametrize("first", [True, False])
def test_stopped_in_an_epoch(first):
    model, compress = net(), lc()

    def stop(batch, logs):
        model.stop_training = batch == 4

    callbacks = [compress, spy(on_train_batch_end=stop)]
    with pytest.warns(UserWarning, match="Training stopped in L step 3 of 8"):
        logs = fit(model, callbacks if first else callbacks[::-1], validation_data=(X, Y)).history
    assert nonzeros(model) == KEPT
    assert logs["val_loss"] == [model.evaluate(X, Y, verbose=0)]


def test_tolerance():
    model = net()
    compress = lc(tolerance=0.9)
    ended = []
    logs = fit(model, [compress, spy(on_train_batch_end=lambda batch, logs: ended.append(batch))]).history
    assert 0 < compress.gap < 0.9
    # The first C step comes with the third batch, which Keras has begun already.
    assert len(logs["loss"]) == 1 and len(ended) <= 3
    assert nonzeros(model) == KEPT


def test_of_the_batch_after_the_last_l_step_nothing_is_kept():
    model, biases = net(), []
    look = spy(on_train_batch_end=lambda batch, logs: biases.append(model.layers[0].bias.numpy()))
    fit(model, [lc(steps=3, epochs_per_step=0.5), look], epochs=9)
    assert len(biases) == 13
    assert np.any(biases[10] != biases[11])
    np.testing.assert_array_equal(model.layers[0].bias.numpy(), biases[11])


# How many L steps there are


@pytest.mark.parametrize(
    "options, epochs",
    [
        ({}, 20),
        ({"steps": 40, "epochs_per_step": 20}, 800),
        ({"steps": 10}, 3),
        ({"steps": 4}, 1),
        ({"steps": 10, "epochs_per_step": 0.3}, 3),
        ({"steps": 5, "epochs_per_step": 0.3, "first_step_epochs": 1}, 3),
        ({"mu": [1.0, 2.0, 3.0], "epochs_per_step": 2}, 6),
        ({"mu": range(1, 4), "epochs_per_step": 2}, 6),
    ],
    ids=str,
)
def test_epochs(options, epochs):
    assert LearningCompression(L0Constraint(KEPT), **options).epochs == epochs


@pytest.mark.parametrize(
    "options, fitted, ends",
    [
        ({}, {"epochs": 1}, [2, 4, 6, 8]),
        ({}, {"epochs": 3, "initial_epoch": 1}, [2, 4, 6, 8, 10, 12, 14, 16]),
        ({"epochs_per_step": 0.3}, {}, [2, 5, 7, 10, 12, 14, 16]),
        ({"first_step_epochs": 1}, {}, [8, 10, 12, 14, 16]),
        ({"epochs_per_step": 2}, {"epochs": 5}, [16, 32, 40]),
        ({"epochs_per_step": 9.5}, {}, [16]),
        ({"steps": 3, "epochs_per_step": 0.5}, {"epochs": 9}, [4, 8, 12]),
        ({"mu": [2.0, 50.0], "epochs_per_step": 1}, {}, [8, 16]),
        # Quarters of an epoch would be 4 L steps.
        ({}, {"epochs": 1, "batch_size": 1}, [15, 30, 45, 60, 64]),
        ({"steps": 2}, {"epochs": 1, "batch_size": 1}, [16, 32]),
    ],
    ids=str,
)
def test_schedule(options, fitted, ends):
    seen = []
    look = spy(on_train_batch_end=lambda batch, logs: seen.append(logs["l_step"]))
    model, compress = net(), lc(**options)
    logs = fit(model, [compress, look], **fitted).history
    # Of the batch that Keras runs after the end nothing is kept.
    seen = seen[: ends[-1]]
    assert [seen.count(step + 1) for step in range(len(ends))] == list(np.diff([0, *ends]))
    assert logs["l_steps"][-1] == logs["l_step"][-1] == len(ends)
    np.testing.assert_allclose(logs["mu"][-1], 50.0 if len(ends) > 1 else 2.0)
    assert nonzeros(model) == KEPT


def test_fewer_epochs_than_the_schedule():
    model = net()
    with (
        pytest.warns(UserWarning, match="8 L steps need 2 epochs. Received: 1 epochs"),
        pytest.warns(UserWarning, match="Training stopped in L step 5 of 8"),
    ):
        fit(model, [lc(steps=8)], epochs=1)
    assert nonzeros(model) == KEPT


@pytest.mark.parametrize("groups, scaled", [(Neurons(), True), (Weights(), False)], ids=str)
def test_distances_of_neurons_have_scales(groups, scaled):
    """By the gradients in the first quarter of the run: 2 of 8 L steps of 2 batches."""
    seen, compress = [], LearningCompression(L0Constraint(0.5, groups))
    look = spy(on_train_batch_end=lambda batch, logs: seen.append(compress._run.lagrangian.scales.numpy()))
    fit(net(keras.optimizers.Adam(0.02)), [compress, look])
    assert (np.array(seen[:2]) == 1).all() and len(seen) == 16
    changes = [(one != two).any() for one, two in itertools.pairwise(seen)]
    assert changes == [scaled and batch in (2, 4) for batch in range(1, 16)]


@pytest.mark.parametrize("groups, times", [(Neurons(), 10), (Weights(), 1)], ids=str)
def test_neurons_come_nearer(groups, times, monkeypatch):
    counted, automatic = [], Automatic.__call__

    def look(self, step, rate, batches, gap, guessed):
        counted.append(gap / compress.gap)
        return automatic(self, step, rate, batches, gap, guessed)

    monkeypatch.setattr(Automatic, "__call__", look)
    compress = LearningCompression(L0Constraint(0.5, groups))
    fit(net(), [compress])
    np.testing.assert_allclose(counted[1:], times)
    assert len(counted) == 8


@pytest.mark.parametrize("groups", [Neurons(), Weights()], ids=str)
def test_multipliers_of_neurons_take_what_the_l_step_had_time_for(groups, monkeypatch):
    """λ grows by 1 − exp(−η μ T / (1 − m)) of μ(θ − w), with m = 0.9 and T = 2 batches."""
    taken, c_step = [], Lagrangian.c_step

    def look(self, mu, *args):
        before, kernel = self.multipliers[0].numpy(), self.variables[0].numpy()
        found = c_step(self, mu, *args)
        pulled = mu * scale[0] * (self.thetas[0].numpy() - kernel)
        scale[0] = self.scales.numpy()[0]
        here = np.abs(pulled) > 1e-3 * np.abs(pulled).max()
        taken.append(np.median((self.multipliers[0].numpy() - before)[here] / pulled[here]))
        mus.append(mu)
        return found

    mus, scale = [], [1.0]
    monkeypatch.setattr(Lagrangian, "c_step", look)
    compress = LearningCompression(L0Constraint(0.5, groups))
    fit(net(keras.optimizers.SGD(0.01, momentum=0.9)), [compress])
    expected = -np.expm1(-0.1 * np.array(mus) * 2) if isinstance(groups, Neurons) else np.ones(8)
    np.testing.assert_allclose(taken, expected, rtol=1e-3)
    assert len(taken) == 8 and (isinstance(groups, Weights) or expected[0] < 0.5)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        lambda: keras.optimizers.Adam(0.02),
        lambda: keras.optimizers.SGD(
            keras.optimizers.schedules.CosineDecay(0.0, 32, warmup_target=0.1, warmup_steps=8)
        ),
    ],
    ids=["sgd", "adam", "warm-up from 0"],
)
def test_automatic_schedule(optimizer):
    model, compress = net(optimizer()), lc(mu="auto", epochs_per_step=0.5)
    mus = fit(model, [compress], epochs=5).history["mu"]
    assert np.isfinite(mus).all() and mus[0] > 0 and np.all(np.diff(mus) > 0)
    assert mus[-1] > 10 * mus[0]
    assert nonzeros(model) == KEPT


def test_automatic_schedule_is_of_the_rate_of_the_user():
    # That the rate is limited in training must not make μ grow.
    mus = [
        fit(net(), [lc(mu="auto", limit_learning_rate=limit)], epochs=2).history["mu"][0]
        for limit in (True, False)
    ]
    assert mus[0] == mus[1]


def dataset():
    return tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)


def unknown():
    return tf.data.Dataset.from_generator(lambda: iter(dataset()), output_signature=dataset().element_spec)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    "options",
    [
        {"x": dataset()},
        {"x": dataset().repeat(), "steps_per_epoch": BATCHES},
        {"x": unknown().repeat(), "steps_per_epoch": BATCHES},
        {"x": unknown()},
    ],
    ids=["dataset", "repeated", "repeated unknown", "unknown"],
)
def test_data(options):
    model, arrays = net(), net()
    logs = fit(model, [lc()], epochs=3, **options).history
    assert nonzeros(model) == KEPT
    assert logs["l_step"][-1] == logs["l_steps"][-1] == 12
    assert logs["mu"][-1] == 50.0
    assert np.isfinite(logs["loss"]).all()
    if "steps_per_epoch" in options:
        fit(arrays, [lc()], epochs=3)
        same(model, arrays)


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    "epochs, options, warns",
    [
        (3, {}, True),
        (4, {}, False),
        (3, {"epochs_per_step": 1}, False),
        (1, {"known": True}, False),
    ],
)
def test_few_epochs_of_unknown_length(epochs, options, warns, recwarn):
    x = dataset() if options.pop("known", False) else unknown()
    fit(net(), [lc(**options)], epochs=epochs, x=x)
    assert any("an epoch has is not known" in str(w.message) for w in recwarn) == warns


def test_a_single_callback_that_is_not_in_a_list():
    # Keras then runs the hooks at the end of batches in other threads.
    model, listed = net(), net()
    logs = fit(model, lc()).history
    assert fit(listed, [lc()]).history == logs
    same(model, listed)


def test_a_callback_serves_again():
    model, compress = net(), lc()
    fit(model, [compress])
    before, logs = kernels(model), fit(model, [compress], epochs=3).history
    assert logs["l_step"] == [4, 8, 12]
    assert nonzeros(model) == KEPT
    assert any(np.any(a != b) for a, b in zip(before, kernels(model), strict=True))
    other = net()
    fit(other, [compress])
    fresh = net()
    fit(fresh, [lc()])
    same(other, fresh)


def test_what_train_functions_read_is_freed():
    # TensorFlow keeps their graphs, and what these read with them.
    compress, seen = lc(), []
    fit(net(), [compress, spy(on_epoch_end=lambda epoch, logs: seen.append(compress._run.lagrangian))])
    assert compress._run is None
    assert [target.numpy().size for target in seen[0].targets] == [1, 1]


def test_the_gap_of_an_earlier_fit_does_not_count():
    compress = lc(mu="auto")

    def mu():
        model = net(keras.optimizers.Adam(0.01), steps_per_execution=BATCHES)
        with pytest.warns(UserWarning, match="An L step of 2 batches"):
            return fit(model, [compress], epochs=1).history["mu"]

    assert mu() == mu()


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
def test_epochs_of_unknown_length_end_and_log_as_those_of_known_length():
    known, open_ended, steps = net(), net(), []
    expected = fit(known, [lc(epochs_per_step=1)], epochs=4).history
    logs = fit(open_ended, [lc(epochs_per_step=1)], epochs=4, x=unknown()).history
    for name in ("mu", "l_step", "gap", "density"):
        assert logs[name] == expected[name]
    same(known, open_ended)
    look = spy(on_train_batch_end=lambda batch, logs: steps.append(logs["l_step"]))
    fit(net(), [lc(), look], epochs=4, x=unknown())
    assert steps == 8 * [1] + [step for step in range(5, 17) for _ in range(2)]


def test_the_strongest_pull_limits_the_learning_rate():
    mus, compress = [], LearningCompression(L0Constraint(0.5, Neurons()))
    look = spy(
        on_train_batch_begin=lambda batch, logs: mus.append(
            [mu.numpy() for mu in compress._run.lagrangian.mus]
        )
    )
    model = net(keras.optimizers.SGD(0.1, momentum=0.5), kind=RateSeen)
    fit(model, [compress, look])
    highest, lowest = np.max(mus, axis=1), np.min(mus, axis=1)
    assert np.any((highest > 10) & (highest > 1.5 * lowest))
    np.testing.assert_allclose(model.seen, np.minimum(0.1, 1 / highest), rtol=1e-5)


def test_an_evaluation_with_it_is_as_without():
    model, compress = net(), lc()
    assert model.evaluate(X, Y, verbose=0, callbacks=[compress]) == model.evaluate(X, Y, verbose=0)
    fit(model, [compress])
    assert model.evaluate(X, Y, verbose=0, callbacks=[compress]) == model.evaluate(X, Y, verbose=0)


def test_a_gap_of_zero_stops_no_training():
    logs = fit(net(), [LearningCompression(L0Constraint(1.0), mu=RANGE)]).history
    assert logs["gap"] == [0, 0] and logs["l_step"] == [4, 8]


# What other callbacks put into the model.


def changed_at_the_end(model, compress, first, change):
    """Trains; returns kernels as another callback changed them when training ended, and the warnings."""
    given = []

    def put(logs):
        model.set_weights([change(weight) for weight in model.get_weights()])
        given.extend(kernels(model))

    other = spy(on_train_end=put)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(model, [compress, other] if first else [other, compress])
    return given, [str(warning.message) for warning in caught]


@pytest.mark.parametrize("first", [True, False])
def test_weights_that_are_put_into_the_model_as_training_ends(first):
    model, compress = net(), lc()
    given, (warning,) = changed_at_the_end(model, compress, first, lambda weight: weight + 0.01)
    gap = np.linalg.norm([np.linalg.norm(a - b) for a, b in zip(given, kernels(model), strict=True)])
    gap /= np.linalg.norm([np.linalg.norm(kernel) for kernel in given])
    assert "As training ended, other weights" in warning and f"{gap:.0%} of their norm" in warning
    for kernel, expected in zip(kernels(model), largest(given), strict=True):
        np.testing.assert_array_equal(kernel, expected)
    assert compress.density == KEPT / WEIGHTS
    assert model.layers[0].bias.numpy().any()


@pytest.mark.parametrize(
    "cost", [L1Constraint(3.0), L2Constraint(1.5), L0Penalty(0.1), L1Penalty(0.1), L2Penalty(0.1)]
)
def test_only_a_budget_is_kept_as_training_ends(cost):
    model = net()
    compress = LearningCompression(cost, mu=RANGE)
    given, found = changed_at_the_end(model, compress, True, lambda weight: 2 * weight + 0.001)
    if isinstance(cost, (L0Penalty, L1Penalty, L2Penalty)):
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


def test_a_single_weight_beyond_the_budget_is_found_as_training_ends():
    def put(logs):
        kernel = kernels(model)[0]
        kernel.flat[np.flatnonzero(kernel == 0)[0]] = 1e-6
        model.layers[0].kernel.assign(kernel)

    model = net()
    fit(model, [spy(on_train_end=put), lc()])
    assert nonzeros(model) == KEPT


@pytest.mark.parametrize("hook, multipliers", [("on_epoch_begin", True), ("on_epoch_end", False)])
def test_weights_that_are_put_into_the_model_between_epochs(hook, multipliers):
    def put(epoch, logs):
        if epoch == (2 if hook == "on_epoch_begin" else 1):
            model.set_weights(start)

    def look(batch, logs):
        lagrangian = compress._run.lagrangian
        seen.append((kernels(model), [theta.numpy() for theta in lagrangian.thetas], lagrangian.multipliers))

    model, seen, compress = net(), [], lc(multipliers=multipliers)
    start = net(keras.optimizers.SGD(0.1)).get_weights()
    look = spy(on_train_batch_begin=look)
    with pytest.warns(UserWarning, match="Between epochs other weights were put"):
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
