"""LC with every way in which Keras executes a training step."""

import keras
import numpy as np
import pytest

from helpers import (
    BATCHES,
    KEPT,
    RANGE,
    RateSeen,
    fit,
    lc,
    net,
    nonzeros,
    same,
    spy,
)
from lc_keras import L0Constraint, LearningCompression
from lc_keras.fit.mu import Beside

# A fit that runs to its end has nothing to warn about.
pytestmark = pytest.mark.filterwarnings(
    "error:Training (stopped|was interrupted)", "error:An L step of", "error:.* L steps need"
)


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
    # Of the executions of 3, 3 and 2 batches, the second ends one batch after the L step.
    one, many = net(), net(steps_per_execution=executed)
    logs = fit(many, [lc(epochs_per_step=length)]).history
    assert logs["l_step"][-1] == logs["l_steps"][-1] == 2 / length
    assert logs["mu"][-1] == 50.0
    assert nonzeros(many) == KEPT
    if executed != 3:
        fit(one, [lc(epochs_per_step=length)])
        same(one, many, rtol=1e-5, atol=1e-6)


def test_the_batches_of_an_l_step_are_counted(monkeypatch):
    seen = []
    monkeypatch.setattr(Beside, "look", lambda pull, step, moved, batches: seen.append(batches))
    # An L step is an epoch, in executions of 3, 3 and 2 batches.
    fit(net(steps_per_execution=3), [LearningCompression(L0Constraint(KEPT))], epochs=40)
    assert seen == 3 * [8]


@pytest.mark.parametrize("executed", [3, pytest.param(5, marks=pytest.mark.slow), 50])
def test_steps_per_execution_longer_than_an_l_step(executed):
    model, seen = net(steps_per_execution=executed), []
    compress = lc()
    look = spy(on_train_batch_end=lambda batch, logs: seen.append(logs["l_step"]))
    with pytest.warns(UserWarning, match=f"An L step of 2 batches .* steps_per_execution={executed}"):
        logs = fit(model, [compress, look]).history
    assert (logs["l_step"][-1], logs["l_steps"][-1]) == (8, 8)
    assert logs["mu"][-1] == 50.0
    assert nonzeros(model) == KEPT
    # Each execution counts as the last of the L steps that end in it.
    assert seen == {3: [1, 3, 4, 5, 7, 8], 5: [2, 4, 6, 8], 50: [4, 8]}[executed]


@pytest.mark.parametrize(
    "optimizer",
    [
        # Others are in test_any_optimizer.py.
        lambda: keras.optimizers.RMSprop(0.02, clipnorm=1.0),
        lambda: keras.optimizers.AdamW(keras.optimizers.schedules.CosineDecay(0.02, 100)),
        lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)),
        lambda: keras.optimizers.Adam(0.02, gradient_accumulation_steps=2),
        lambda: keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5),
    ],
    ids=["rmsprop", "adamw", "loss scale", "accumulation", "ema"],
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


MUS = np.repeat(RANGE.over(8), 2)


@pytest.mark.parametrize("decays, limit", [(True, True), (False, True), (True, False)])
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


@pytest.mark.parametrize(
    "reducer, first",
    [
        (lambda: keras.callbacks.ReduceLROnPlateau("loss", factor=0.5, patience=1, min_delta=1e9), True),
        (
            lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate * (0.5 if epoch else 1)),
            False,
        ),
    ],
    ids=["plateau", "scheduler"],
)
def test_relative_changes_start_from_the_rate_of_the_user(reducer, first):
    model = net(kind=RateSeen)
    fit(model, [lc(), reducer()] if first else [reducer(), lc()])
    # Halved once: before the second epoch, or after it.
    np.testing.assert_allclose(float(model.optimizer.learning_rate), 0.05, rtol=1e-5)


@pytest.mark.parametrize("name, reset", [("sgd", True), ("adam", True), ("sgd", False)])
def test_reset_optimizer(reset, name):
    optimizer = keras.optimizers.SGD(0.1, 0.9) if name == "sgd" else keras.optimizers.Adam(0.02)
    model, fresh = net(optimizer), []

    def look(batch, logs):
        momentums = getattr(optimizer, "momentums" if name == "sgd" else "_momentums", [])
        fresh.append(not any(np.any(v.numpy()) for v in momentums))

    fit(model, [lc(reset_optimizer=reset), spy(on_train_batch_begin=look)], epochs=2)
    assert fresh == ([True, False] * 8 if reset else [True] + 15 * [False])
    assert optimizer.iterations == 16
