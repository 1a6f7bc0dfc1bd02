"""Half and double precision, extreme μ, zeros, one weight, 4·10⁷ weights, and what else optimizers do."""

import itertools
import random
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from helpers import (
    BATCHES,
    KEPT,
    XENT,
    X,
    Y,
    fit,
    kernels,
    largest,
    lc,
    linear,
    net,
    nonzeros,
    rng,
    same,
)
from lc_keras import (
    Blocks,
    L0Constraint,
    L0Penalty,
    L1Constraint,
    L1Penalty,
    L2Constraint,
    L2Penalty,
    LearningCompression,
    Neurons,
    NMConstraint,
    Task,
)
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.tasks import bind_tasks
from nets import Builder, randomize

pytestmark = pytest.mark.filterwarnings("error:Training (stopped|was interrupted)")

WEIGHTS = [L0Constraint(0.3), L0Penalty(0.02), L1Constraint(2.0), L1Penalty(0.02)]
WEIGHTS += [L2Constraint(1.0), L2Penalty(0.1)]
GROUPED = [
    *(kind(0.6, Neurons()) for kind in (L0Constraint, L0Penalty, L1Penalty)),
    L0Constraint(0.6, Blocks((2, 2))),
    *(kind(0.1, Blocks((2, 2))) for kind in (L0Penalty, L1Penalty)),
    L1Constraint(2.0, Neurons()),
    NMConstraint(1, 2),
]
# One or two of each kind.
DIFFERENT = [L0Constraint(0.3), L1Constraint(2.0), L1Penalty(0.02), L0Constraint(0.6, Neurons())]
DIFFERENT += [L1Constraint(2.0, Neurons()), NMConstraint(1, 2)]
# One long L step: w comes close to θ.
LONG = {"mu": [50.0], "epochs_per_step": 6}


def bits(arrays):
    return [np.asarray(a).tobytes() for a in arrays]


# Precision


def test_float64_is_compressed_as_float64():
    model = net(dtype="float64")
    lagrangian = Lagrangian(bind_tasks([Task(L0Constraint(KEPT))], model))
    w = [v.numpy() for v in lagrangian.variables]
    assert {t.dtype for t in [*lagrangian.thetas, *lagrangian.targets]} == {tf.float64}
    lagrangian.direct_compression(0.5)
    theta = largest(w)
    assert bits(lagrangian.thetas) == bits(theta)
    for _ in range(3):
        pairs = zip(lagrangian.targets, lagrangian.thetas, strict=True)
        multipliers = [0.5 * (target.numpy() - theta.numpy()) for target, theta in pairs]
        w = [value + rng.normal(size=value.shape) for value in w]
        for variable, value in zip(lagrangian.variables, w, strict=True):
            variable.assign(value)
        lagrangian.c_step(0.5, 0.5)
        theta = largest([value - m / 0.5 for value, m in zip(w, multipliers, strict=True)])
        for held, expected in zip(lagrangian.thetas, theta, strict=True):
            np.testing.assert_allclose(held, expected, rtol=1e-15, atol=1e-15)
    thetas = bits(lagrangian.thetas)
    lagrangian.show_compressed()
    assert bits(lagrangian.variables) == thetas
    lagrangian.show_training()
    assert bits(lagrangian.variables) == bits(w)


@pytest.mark.parametrize("floatx", ["float32", "float64"])
def test_fit_of_a_float64_model(floatx):
    keras.config.set_floatx(floatx)
    try:
        model = net(dtype="float64", regularizer=keras.regularizers.L2(1e-3))
        compress = lc(**LONG)
        fit(model, [compress], epochs=6)
    finally:
        keras.config.set_floatx("float32")
    values = np.concatenate([v.numpy().ravel() for v in model.trainable_variables if "kernel" in v.name])
    assert np.count_nonzero(values) == KEPT and compress.gap < 0.1
    kept = values[values != 0]
    assert values.dtype == np.float64 and not np.any(kept == kept.astype("float32"))


@pytest.mark.parametrize("policy", ["mixed_float16", pytest.param("mixed_bfloat16", marks=pytest.mark.slow)])
def test_mixed_precision_follows_single_precision(policy):
    single, mixed = net(), net(dtype=policy)
    if policy == "mixed_float16":
        mixed.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), XENT)
    expected = fit(single, [lc(**LONG)], epochs=6).history
    received = fit(mixed, [lc(**LONG)], epochs=6).history
    assert nonzeros(mixed) == KEPT
    np.testing.assert_allclose(received["loss"], expected["loss"], rtol=0.02)
    assert received["gap"][-1] == pytest.approx(expected["gap"][-1], abs=0.01)
    same(single, mixed, atol=0.02)


def test_steps_that_loss_scaling_leaves_out():
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.02), initial_scale=2.0**24)
    model = net(optimizer, dtype="mixed_float16")
    logs = fit(model, [LearningCompression(L0Constraint(KEPT))], epochs=4).history
    scale, updates = float(optimizer.dynamic_scale), int(optimizer.inner_optimizer.iterations)
    assert scale < 2.0**24 and 0 < updates < 4 * BATCHES
    assert nonzeros(model) == KEPT and np.isfinite(logs["loss"]).all() and np.isfinite(logs["mu"]).all()


def test_jit_compiled_double_precision():
    plain, compiled = net(dtype="float64"), net(dtype="float64", jit_compile=True)
    fit(plain, [lc()])
    fit(compiled, [lc()])
    same(plain, compiled, rtol=1e-5, atol=1e-7)


# What optimizers do besides the step


def test_accumulated_gradients_are_those_of_a_larger_batch():
    mu = [2.0, 4.0, 8.0, 16.0]
    data = tf.data.Dataset.from_tensor_slices((X, Y))
    whole, parts = net(), net(keras.optimizers.SGD(0.1, gradient_accumulation_steps=2))
    expected, received = (
        fit(model, [lc(mu=mu, epochs_per_step=0.5)], x=data.batch(size)).history
        for model, size in ((whole, 16), (parts, 8))
    )
    np.testing.assert_allclose(received["mu"], expected["mu"], rtol=1e-5)
    np.testing.assert_allclose(received["gap"], expected["gap"], rtol=1e-3)
    same(whole, parts, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("clip", ["global_clipnorm", "clipvalue"])
def test_clipping_bounds_the_pull_too(clip):
    model, moved, before = net(keras.optimizers.SGD(0.02, **{clip: 0.5})), [], []
    compress = LearningCompression(L0Constraint(KEPT), mu=[1e4], epochs_per_step=6, limit_learning_rate=False)

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            before[:] = kernels(self.model)

        def on_train_batch_end(self, batch, logs=None):
            if batch < BATCHES - 1:  # after the last, the model holds θ
                changes = [a - b for a, b in zip(kernels(self.model), before, strict=True)]
                moved.append([np.abs(c).max() if clip == "clipvalue" else np.linalg.norm(c) for c in changes])

    fit(model, [compress, Watch()], epochs=6)
    assert np.max(moved) <= 0.02 * 0.5 * 1.001
    # At first, the pull alone would move the weights that far.
    assert np.linalg.norm(moved[0]) > 0.02 * 0.5 * 0.9
    assert nonzeros(model) == KEPT and all(np.isfinite(w).all() for w in model.get_weights())


def test_weight_decay_against_numpy():
    model = linear()
    model.compile(keras.optimizers.SGD(0.05, weight_decay=0.3), "mse")
    goal = X @ rng.normal(size=(6, 4)) + 1.0
    mus = [2.0, 8.0, 25.0, 50.0]
    weight = kernels(model)[0].astype("float64")
    kept, multiplier = largest([weight], 8)[0], 0.0
    for i, mu in enumerate(mus):
        rate = min(0.05, 1 / mu)
        for batch in range(2 * i, 2 * i + 2):
            x, y = X[8 * batch : 8 * batch + 8], goal[8 * batch : 8 * batch + 8]
            gradient = 2 / y.size * x.T @ (x @ weight - y) + mu * (weight - kept - multiplier / mu)
            weight = weight * (1 - rate * 0.3) - rate * gradient
        kept = largest([weight - multiplier / mu], 8)[0]
        multiplier = multiplier - mu * (weight - kept)
    fit(model, [LearningCompression(L0Constraint(8), mu=mus)], y=goal, epochs=1)
    np.testing.assert_allclose(kernels(model)[0], kept, rtol=1e-3, atol=1e-5)


def test_adamw_with_everything():
    decay = keras.optimizers.AdamW(0.02, weight_decay=0.05, clipnorm=1.0, gradient_accumulation_steps=2)
    model = net(keras.optimizers.LossScaleOptimizer(decay), dtype="mixed_float16")
    compress = lc(mu=[50.0], epochs_per_step=12)
    fit(model, [compress], epochs=12)
    assert nonzeros(model) == KEPT and compress.gap < 0.2
    assert all(np.isfinite(w).all() for w in model.get_weights())


# Extremes


@pytest.mark.parametrize("mu", [[1e-12, 1e-9], [1e6, 1e9], [1e-6, 1e6]], ids=str)
@pytest.mark.parametrize(
    "cost",
    [L0Constraint(KEPT), *(pytest.param(c(1e-3), marks=pytest.mark.slow) for c in (L1Penalty, L2Penalty))],
    ids=repr,
)
def test_extreme_mu(cost, mu):
    model = net()
    compress = LearningCompression(cost, mu=mu, epochs_per_step=1)
    logs = fit(model, [compress]).history
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert np.isfinite([logs["loss"], logs["gap"], logs["density"]]).all()
    assert logs["mu"] == mu
    if mu[0] >= 1e6 or (mu[-1] >= 1e6 and isinstance(cost, L0Constraint)):
        assert compress.gap < 1e-3
    if isinstance(cost, L0Constraint):
        assert nonzeros(model) == KEPT
    elif mu[-1] < 1:
        # α is worth more than any distance.
        assert all(np.max(np.abs(k)) < 1e-5 for k in kernels(model))


@pytest.mark.parametrize(
    "cost",
    [*WEIGHTS, L0Constraint(0.6, Neurons()), L1Penalty(0.1, Blocks((2, 2))), NMConstraint(1, 2)],
    ids=repr,
)
def test_weights_that_are_all_zero(cost):
    layers = [keras.layers.Dense(n, kernel_initializer="zeros") for n in (6, 4)]
    lagrangian = Lagrangian(bind_tasks([Task(cost)], keras.Sequential([keras.Input((6,)), *layers])))
    lagrangian.direct_compression(0.5)
    result = lagrangian.c_step(0.5, 1.0)
    assert result.finite.numpy().all() and (result.gap, result.density) == (0, 0)
    assert not any(np.any(held) for held in [*lagrangian.thetas, *lagrangian.targets])


def test_fit_from_zeros():
    model = net()
    for variable in model.weights:
        variable.assign(tf.zeros_like(variable))
    fit(model, [LearningCompression(L0Constraint(KEPT))], epochs=4)
    assert nonzeros(model) <= KEPT and all(np.isfinite(w).all() for w in model.get_weights())


@pytest.mark.parametrize(
    "cost, kept",
    [
        (L0Constraint(1), 1),
        (L0Constraint(0.9), 0),
        (L1Constraint(0.1), 1),
        (L2Constraint(0.1), 1),
        (L0Constraint(1, Blocks((2, 2))), 1),
        (NMConstraint(1, 4), 1),
    ],
    ids=repr,
)
def test_a_task_of_one_weight(cost, kept):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, name="one")])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    task = Task(cost, weights="one/kernel")
    x = np.linspace(-1, 1, 32)[:, np.newaxis]
    compress = LearningCompression(task, mu=[0.5, 2.0, 8.0, 32.0])
    model.fit(x, 2 * x, batch_size=4, epochs=1, verbose=0, callbacks=[compress])
    value = float(model.get_weights()[0][0, 0])
    assert np.count_nonzero(value) == kept
    if isinstance(cost, (L1Constraint, L2Constraint)):
        assert abs(value) == pytest.approx(0.1)


MEMORY = """
import sys
from pathlib import Path

import keras
import numpy as np

from lc_keras import L0Constraint, Task
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.tasks import bind_tasks


def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def lagrangian(inputs, hidden):
    units = 5 * (hidden, inputs)
    layers = [keras.layers.Dense(n, use_bias=False, kernel_initializer="zeros") for n in units]
    model = keras.Sequential([keras.Input((inputs,)), *layers])
    row = np.random.default_rng(0).normal(size=inputs * hidden // 100).astype("float32")
    for layer in layers:
        layer.kernel.assign(np.resize(row, layer.kernel.shape))
    return Lagrangian(bind_tasks([Task(L0Constraint(0.05))], model))


lagrangian(100, 50).direct_compression(1.0)
empty = resident("VmRSS")
held = lagrangian(8_000, 500)
held.direct_compression(1.0)
held.c_step(1.0, 1.5)
before = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")
result = held.c_step(1.0, 2.0)
print(float(result.density), (before - empty) / held.size, (resident("VmHWM") - before) / held.size)
"""


@pytest.mark.slow
def test_forty_million_weights():
    """The peak of a C step on ten equal tensors, besides w, θ and λ, in bytes per weight."""
    if sys.platform != "linux":
        pytest.skip("memory is measured on Linux")
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    if available < 2_000_000:
        pytest.skip("less than 2 GB of free memory")
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    density, held, rise = map(float, done.stdout.split())
    assert density == pytest.approx(0.05, abs=1e-6)
    # First w, θ, the target, and buffers that are kept; then the buffers of chunks.
    assert 12 < held < 19
    # A copy of all weights would take four more.
    assert rise < 0.4


# The alternation goes downhill


def objective(lagrangian, mu, weights, multipliers):
    r"""$C(\theta) + \mu/2 \lVert w - \lambda/\mu - \theta \rVert^2$, up to a constant."""
    total, start = 0.0, 0
    for part in lagrangian.shared:
        stop = start + len(part.variables)
        thetas, cost = lagrangian.thetas[start:stop], part.compression
        for theta, w, m in zip(thetas, weights[start:stop], multipliers[start:stop], strict=True):
            total += mu / 2 * np.sum((w - m / mu - np.float64(theta.numpy())) ** 2)
        if isinstance(cost, L2Penalty):
            total += cost.alpha * sum(np.sum(np.float64(t.numpy()) ** 2) for t in thetas)
        elif isinstance(cost, (L0Penalty, L1Penalty)):
            magnitudes = cost._magnitudes([tf.cast(t, tf.float64) for t in thetas], part.layouts)
            count = np.count_nonzero if isinstance(cost, L0Penalty) else lambda m: np.sum(np.abs(m))
            total += cost.alpha * sum(count(m.numpy()) for m in magnitudes)
        start = stop
    return total


# The costs of groups again, and those whose exact solution is plain.
DECREASING = [
    pytest.param(seed, cost, marks=[pytest.mark.slow] * (cost not in DIFFERENT))
    for seed, cost in enumerate([*WEIGHTS, *GROUPED])
]


@pytest.mark.parametrize("seed, cost", DECREASING, ids=str)
def test_no_c_step_increases_the_augmented_lagrangian(seed, cost):
    """Each cost has a net of its own."""
    choose, generator = random.Random(seed), np.random.default_rng(seed)
    model = Builder(lambda options: choose.choice(options)).build()
    randomize(model, seed)
    lagrangian = Lagrangian(bind_tasks([Task(cost)], model))
    mus = [0.5, 0.5, 1.0, 4.0, 4.0]
    lagrangian.direct_compression(mus[0])
    changed = False
    for mu, next_mu in itertools.pairwise(mus):
        for variable, target in zip(lagrangian.variables, lagrangian.targets, strict=True):
            # As in an L step: some way towards the target, some way elsewhere.
            value = variable.numpy()
            noise = 0.2 * np.std(value) * generator.normal(size=value.shape)
            variable.assign(value + 0.5 * (target.numpy() - value) + noise)
        weights = [np.float64(v.numpy()) for v in lagrangian.variables]
        multipliers = [np.float64(m.numpy()) for m in lagrangian.multipliers]
        before, thetas = objective(lagrangian, mu, weights, multipliers), bits(lagrangian.thetas)
        lagrangian.c_step(mu, next_mu)
        after = objective(lagrangian, mu, weights, multipliers)
        assert after <= before * (1 + 1e-5) + 1e-9
        changed |= bits(lagrangian.thetas) != thetas
    assert changed
