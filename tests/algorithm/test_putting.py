"""C steps that put weights onto θ; the weights move freely along what their cost allows."""

import keras
import numpy as np

from lc_keras.algorithm.beside import Reach
from lc_keras.algorithm.reaching import ReachingLagrangian
from lc_keras.algorithm.tasks import Task, bind_tasks
from lc_keras.costs import LowRank


def truncated(kernel, rank):
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    return left[:, :rank] * values[:rank] @ right[:rank]


def test_the_c_step_puts_weights_onto_theta_and_leaves_them_free():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(4)])
    weights = [layer.kernel for layer in model.layers]
    lagrangian = ReachingLagrangian(bind_tasks([Task(LowRank(2))], model))
    before = [w.numpy() for w in weights]
    lagrangian.direct_compression(0.0, Reach(0.0, puts=True))
    for w, theta, given in zip(weights, lagrangian.thetas, before, strict=True):
        # Training begins where the model is.
        np.testing.assert_array_equal(w, given)
        np.testing.assert_allclose(theta, truncated(given, 2), atol=1e-5)
    optimizer = keras.optimizers.SGD(0.1)
    for part, next_part in ((0.0, 0.0), (0.0, 0.5), (0.5, 0.5)):
        with lagrangian.pulling():
            moved = [w.numpy() - 0.1 for w in weights]
            thetas = [theta.numpy() for theta in lagrangian.thetas]
            optimizer.apply([0 * w.value + 1 for w in weights], weights)
        for w, free, theta in zip(weights, moved, thetas, strict=True):
            np.testing.assert_allclose(w, free - part * (free - theta), atol=1e-6)
        now = [w.numpy() for w in weights]
        found = lagrangian.c_step(part, next_part, Reach(next_part, puts=True))
        nearest = [truncated(w, 2) for w in now]
        for w, theta, near in zip(weights, lagrangian.thetas, nearest, strict=True):
            np.testing.assert_allclose(theta, near, atol=1e-5)
            np.testing.assert_array_equal(w, theta)
        away = sum(np.sum((w - t) ** 2) for w, t in zip(now, nearest, strict=True))
        np.testing.assert_allclose(found.gap, (away / sum(np.sum(w**2) for w in now)) ** 0.5, rtol=1e-4)


def test_weights_that_are_not_finite_stay_and_theta_is_of_before():
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5)])
    (kernel,) = [layer.kernel for layer in model.layers]
    lagrangian = ReachingLagrangian(bind_tasks([Task(LowRank(2))], model))
    lagrangian.direct_compression(0.0, Reach(0.0, puts=True))
    theta = lagrangian.thetas[0].numpy()
    kernel.assign(np.full((6, 5), np.nan))
    assert not lagrangian.c_step(0.0, 0.0, Reach(0.0, puts=True)).finite.numpy().all()
    np.testing.assert_array_equal(lagrangian.thetas[0], theta)
    assert np.isnan(kernel.numpy()).all()
