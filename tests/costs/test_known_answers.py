"""The whole algorithm, through `fit`, on problems whose answer is known or computed separately."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from sklearn.linear_model import Lasso

import lc_keras
from lc_keras import (
    Geometric,
    L0Constraint,
    L0Penalty,
    L1Constraint,
    L1Penalty,
    L2Constraint,
    L2Penalty,
    Neurons,
    Task,
)

# Linear regression: the loss is a quadratic function of the weights.


def regression(seed, n=60, d=8, units=1, correlation=0.0, orthonormal=False, noise=0.5):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) + correlation * rng.normal(size=(n, 1))
    if orthonormal:
        x = np.linalg.qr(x)[0] * np.sqrt(n)
    x = x.astype("float32").astype("float64")
    w = rng.normal(size=(d, units)) * (rng.random((d, units)) < 0.6)
    y = x @ w + noise * rng.normal(size=(n, units))
    return x, y.astype("float32").astype("float64")


def mse(x, y, w):
    return np.mean((x @ w - y) ** 2)


def gradient(x, y, w):
    return 2 * x.T @ (x @ w - y) / y.size


def least_squares(x, y, support=slice(None)):
    w = np.zeros((x.shape[1], y.shape[1]))
    w[support] = np.linalg.lstsq(x[:, support], y, rcond=None)[0]
    return w


def best_subset(x, y, kappa):
    subsets = map(list, itertools.combinations(range(x.shape[1]), kappa))
    return min((least_squares(x, y, s) for s in subsets), key=lambda w: mse(x, y, w))


def learn_and_compress(x, y, compression, mu, start=None, l_steps=60, batches=20, **options):
    """Runs full-batch gradient descent, `batches` per L step; returns the weights that `fit` leaves."""
    model = keras.Sequential([keras.Input((x.shape[1],)), keras.layers.Dense(y.shape[1], use_bias=False)])
    model.layers[0].kernel.assign(np.zeros((x.shape[1], y.shape[1])) if start is None else start)
    # Stable for every μ, with the rate held at 1/μ.
    rate = 0.5 / np.linalg.eigvalsh(2 * x.T @ x / y.size)[-1]
    model.compile(keras.optimizers.SGD(rate), "mse", steps_per_execution=batches)
    data = tf.data.Dataset.from_tensors((x.astype("float32"), y.astype("float32"))).repeat(l_steps * batches)
    compress = lc_keras.LearningCompression(compression, mu=mu, epochs_per_step=1 / l_steps, **options)
    model.fit(data, shuffle=False, verbose=0, callbacks=[compress])
    return model.layers[0].kernel.numpy().astype("float64")


def test_l0_constraint_reaches_the_best_subset_of_an_orthonormal_design():
    x, y = regression(seed=1, orthonormal=True)
    w = learn_and_compress(x, y, L0Constraint(3), Geometric(0.05, 20.0))
    np.testing.assert_allclose(w, best_subset(x, y, 3), atol=1e-4)


@pytest.mark.parametrize("seed, kappa", [(16, 2), (13, 3), pytest.param(0, 4, marks=pytest.mark.slow)])
def test_l0_constraint_reaches_the_best_subset_where_magnitude_pruning_does_not(seed, kappa):
    """Designs with correlated columns, started at the weights that magnitude pruning cuts."""
    x, y = regression(seed, correlation=1.0)
    dense = least_squares(x, y)
    magnitude = least_squares(x, y, np.argsort(-np.abs(dense[:, 0]))[:kappa])
    best = best_subset(x, y, kappa)
    assert mse(x, y, magnitude) > 1.01 * mse(x, y, best)

    w = learn_and_compress(x, y, L0Constraint(kappa), Geometric(0.1, 10.0), start=dense, l_steps=100)
    np.testing.assert_array_equal(w != 0, best != 0)
    np.testing.assert_allclose(gradient(x, y, w)[w != 0], 0, atol=1e-3)
    np.testing.assert_allclose(w, best, atol=1e-3)


def test_l0_penalty_on_an_orthonormal_design():
    """Each weight is worth its α or not: w² against α, since keeping it lowers the loss by w²."""
    x, y = regression(seed=1, orthonormal=True)
    dense = least_squares(x, y)
    alpha = np.mean(np.sort(dense[:, 0] ** 2)[3:5])
    w = learn_and_compress(x, y, L0Penalty(alpha), Geometric(0.05, 20.0))
    np.testing.assert_allclose(w, np.where(dense**2 > alpha, dense, 0), atol=1e-4)


def lasso(x, y, alpha):
    """The minimum of mse + α‖w‖₁: scikit-learn halves the squares."""
    solver = Lasso(alpha / 2, fit_intercept=False, tol=1e-12, max_iter=100_000)
    return solver.fit(x, y[:, 0]).coef_[:, None]


def test_l1_penalty_and_constraint_reach_the_lasso():
    x, y = regression(seed=3, correlation=1.0)
    solution = lasso(x, y, 0.5)
    radius = np.abs(solution).sum()
    assert 0 < np.count_nonzero(solution) < len(solution)
    for compression in (L1Penalty(0.5), L1Constraint(radius)):
        w = learn_and_compress(x, y, compression, Geometric(0.2, 5.0))
        np.testing.assert_allclose(w, solution, atol=1e-3)
        np.testing.assert_array_equal(w == 0, solution == 0)
        assert np.abs(w).sum() <= radius * (1 + 1e-3)


def test_the_plain_quadratic_penalty_falls_short():
    """Without multipliers w = θ holds only as μ → ∞, so θ is off by ∇L/μ."""
    x, y = regression(seed=3, correlation=1.0)
    w = learn_and_compress(x, y, L1Penalty(0.5), Geometric(0.2, 5.0), multipliers=False)
    assert np.abs(w - lasso(x, y, 0.5)).max() > 0.02


def group_lasso(x, y, alpha):
    """The minimum of mse + α Σ ‖w_j‖₂ over the columns, by proximal gradient descent."""
    rate = 1 / np.linalg.eigvalsh(2 * x.T @ x / y.size)[-1]
    w = np.zeros((x.shape[1], y.shape[1]))
    for _ in range(20_000):
        w = w - rate * gradient(x, y, w)
        norms = np.linalg.norm(w, axis=0)
        w = w * np.maximum(0, 1 - rate * alpha / np.maximum(norms, 1e-30))
    return w


def test_l1_costs_of_neurons_reach_the_group_lasso():
    x, y = regression(seed=4, d=6, units=4, correlation=0.5)
    y[:, 1] *= 0.1
    y[:, 3] *= 0.3
    solution = group_lasso(x, y, 0.25)
    norms = np.linalg.norm(solution, axis=0)
    assert 0 < np.count_nonzero(norms) < 4
    for compression in (L1Penalty(0.25, groups=Neurons()), L1Constraint(norms.sum(), groups=Neurons())):
        # The only units are outputs of the model, which must be named.
        w = learn_and_compress(x, y, Task(compression, "kernel"), Geometric(0.05, 5.0))
        np.testing.assert_allclose(w, solution, atol=1e-3)
        np.testing.assert_array_equal(w == 0, solution == 0)


def test_l2_penalty_and_constraint_reach_ridge_regression():
    x, y = regression(seed=5, correlation=0.5)
    alpha = 0.3
    ridge = np.linalg.solve(x.T @ x / len(x) + alpha * np.eye(x.shape[1]), x.T @ y / len(x))
    for compression in (L2Penalty(alpha), L2Constraint(np.linalg.norm(ridge))):
        w = learn_and_compress(x, y, compression, Geometric(0.2, 20.0))
        np.testing.assert_allclose(w, ridge, atol=1e-3)


@pytest.mark.parametrize("compression", [L0Constraint(1.0), L2Constraint(1e3)])
def test_without_a_bound_the_loss_is_minimised(compression):
    x, y = regression(seed=6)
    w = learn_and_compress(x, y, compression, Geometric(0.05, 1.0), l_steps=40)
    np.testing.assert_allclose(w, least_squares(x, y), atol=1e-3)


# A small net, batch by batch.

BATCHES, EPOCHS, RATE, MOMENTUM, KEPT = 8, 3, 0.1, 0.9, 9
SHAPES = [(5, 4), (4,), (4, 2), (2,)]
KERNELS = [0, 2]


def outputs(weights, x):
    return tf.tanh(x @ weights[0] + weights[1]) @ weights[2] + weights[3]


def transcript(weights, x, y, x_test, y_test, mus, own):
    """Runs the algorithm as on paper, in float64; returns the final weights and what each epoch logs."""
    weights = [w.astype("float64") for w in weights]
    velocity = [np.zeros_like(w) for w in weights]
    lambdas = {i: np.zeros_like(weights[i]) for i in KERNELS}

    def compress(vs):
        magnitudes = np.sort(np.abs(np.concatenate([vs[i].ravel() for i in KERNELS])))
        assert magnitudes[-KEPT] > 1.001 * magnitudes[-KEPT - 1]
        return {i: np.where(np.abs(vs[i]) >= magnitudes[-KEPT], vs[i], 0) for i in KERNELS}

    def loss(weights, x, y):
        own_loss = own * sum(tf.reduce_sum(weights[i] ** 2) for i in KERNELS)
        return tf.reduce_mean((outputs(weights, x) - y) ** 2) + own_loss

    theta = compress(weights)
    logs, step = [], 0
    for _ in range(EPOCHS):
        losses = []
        for batch, (x_batch, y_batch) in enumerate(
            zip(np.split(x, BATCHES), np.split(y, BATCHES), strict=True)
        ):
            mu = mus[step]
            with tf.GradientTape() as tape:
                watched = [tf.constant(w) for w in weights]
                tape.watch(watched)
                value = loss(watched, x_batch, y_batch)
            gradients = [g.numpy() for g in tape.gradient(value, watched)]
            pulls = {i: weights[i] - theta[i] - lambdas[i] / mu for i in KERNELS}
            losses.append(value.numpy())
            rate = min(RATE, 1 / mu)
            for i, g in enumerate(gradients):
                g = g + mu * pulls[i] if i in KERNELS else g
                velocity[i] = MOMENTUM * velocity[i] - rate * g
                weights[i] = weights[i] + MOMENTUM * velocity[i] - rate * g
            if batch % 2:
                theta = compress({i: weights[i] - lambdas[i] / mu for i in KERNELS})
                lambdas = {i: lambdas[i] - mu * (weights[i] - theta[i]) for i in KERNELS}
                step += 1

        def norm(arrays):
            return np.sqrt(sum(np.sum(a**2) for a in arrays))

        compressed = [theta.get(i, w) for i, w in enumerate(weights)]
        logs.append(
            {
                "loss": np.mean(losses),
                "val_loss": loss(compressed, x_test, y_test).numpy(),
                "mu": mus[step - 1],
                "l_step": step,
                "gap": norm(weights[i] - theta[i] for i in KERNELS) / norm(weights[i] for i in KERNELS),
                "density": KEPT / 28,
            }
        )
    return compressed, logs


@pytest.mark.parametrize(
    "validation, own, steps_per_execution",
    [(True, 0.0, 1), (True, 0.01, 1), (False, 0.01, 2)],
    ids=["validated", "regularized", "not validated"],
)
def test_fit_equals_the_transcript(validation, own, steps_per_execution):
    rng = np.random.default_rng(0)
    x, x_test = rng.normal(size=(2, 4 * BATCHES, 5)).astype("float32")
    y, y_test = rng.normal(size=(2, 4 * BATCHES, 2)).astype("float32") + np.stack([x[:, :2], x_test[:, :2]])
    start = [0.5 * rng.normal(size=shape).astype("float32") for shape in SHAPES]
    # The last values are above 1 / RATE.
    mus = Geometric(1.0, 20.0).over(4 * EPOCHS)
    expected, expected_logs = transcript(
        start, *(a.astype("float64") for a in (x, y, x_test, y_test)), mus, own
    )

    options = {"kernel_regularizer": keras.regularizers.L2(own)} if own else {}
    dense = keras.layers.Dense
    model = keras.Sequential([keras.Input((5,)), dense(4, "tanh", **options), dense(2, **options)])
    model.set_weights(start)
    optimizer = keras.optimizers.SGD(RATE, momentum=MOMENTUM, nesterov=True)
    model.compile(optimizer, "mse", steps_per_execution=steps_per_execution)
    compress = lc_keras.LearningCompression(L0Constraint(KEPT), mu=mus, epochs_per_step=0.25)
    history = model.fit(
        x,
        y,
        batch_size=4,
        shuffle=False,
        epochs=EPOCHS,
        verbose=0,
        validation_data=(x_test, y_test) if validation else None,
        callbacks=[compress],
    ).history

    for weight, value in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(weight, value, atol=1e-5)
        np.testing.assert_array_equal(weight == 0, value == 0)
    for epoch, logs in enumerate(expected_logs):
        for name, value in logs.items():
            if validation or name != "val_loss":
                np.testing.assert_allclose(history[name][epoch], value, rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(optimizer.learning_rate, RATE)
