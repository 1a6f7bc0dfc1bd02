"""The C step for weights of few values, written again in numpy."""

import keras
import numpy as np
import pytest

from lc_keras.algorithm.beside import Reach
from lc_keras.algorithm.carrying import CarryingLagrangian
from lc_keras.algorithm.tasks import Task, bind_tasks
from lc_keras.costs import Binary, Codebook, L0Constraint, Sum


def net(dtype=None):
    keras.utils.set_random_seed(0)
    sizes = {"first": 5, "second": 4, "third": 3}
    return keras.Sequential(
        [keras.Input((6,)), *(keras.layers.Dense(n, name=name, dtype=dtype) for name, n in sizes.items())]
    )


def begun(tasks, part=0.9, dtype=None):
    lagrangian = CarryingLagrangian(bind_tasks(tasks, net(dtype)))
    return lagrangian, lagrangian.direct_compression(0.5, Reach(part))


def flat(variables):
    return np.concatenate([v.numpy().astype("float64").ravel() for v in variables])


def perturb(variables, scale=0.2):
    rng = np.random.default_rng(0)
    for v in variables:
        v.assign(v.numpy() + scale * rng.normal(size=v.shape).astype("float32"))


def signs(weights, a):
    return np.where(weights > 0, a, -a)


def test_c_steps_against_numpy():
    lagrangian, found = begun([Task(Binary())])
    v = w = flat(lagrangian.variables)
    a = np.abs(w).mean()
    left = 1 - np.sum((w - signs(w, a)) ** 2) / np.sum(w**2)
    theta = signs(w, a / left**2)
    near = dict(rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(flat(lagrangian.thetas), theta, **near)
    np.testing.assert_allclose(found.gap, np.linalg.norm(w - theta) / np.linalg.norm(w), rtol=1e-5)
    for ratio in (3.0, 2.0, 0.0, 1.5):
        perturb(lagrangian.variables)
        w = flat(lagrangian.variables)
        counts = min(1, 1.5 * np.linalg.norm(v - theta) / np.linalg.norm(v))
        v = v + counts * ratio * (w - theta) if ratio else w
        theta = signs(v, np.abs(w).mean())
        lagrangian.c_step(0.5, 0.5, Reach(0.8, ratio, least=0.1))
        np.testing.assert_allclose(flat(lagrangian.thetas), theta, **near)
        np.testing.assert_allclose(flat(lagrangian.targets), v, **near)
        with lagrangian.pulling():
            optimizer = keras.optimizers.SGD(0.1)
            optimizer.apply([0 * x.value for x in lagrangian.variables], lagrangian.variables)
        np.testing.assert_allclose(flat(lagrangian.variables), w - 0.8 * (w - theta), **near)
    # As when training ends midway.
    w = flat(lagrangian.variables)
    lagrangian.latest(0.5)
    np.testing.assert_allclose(flat(lagrangian.thetas), signs(w, np.abs(w).mean()), **near)


def test_each_part_begins_as_large_as_its_own_gap_says_and_values_that_are_given_stay():
    given = Codebook(values=[-0.5, 0.0, 0.5])
    lagrangian, _ = begun(
        [Task(Binary(), "first/kernel"), Task(Binary(), "second/kernel"), Task(given, "third/kernel")]
    )
    for variable, theta in zip(lagrangian.variables[:2], lagrangian.thetas[:2], strict=True):
        w = flat([variable])
        a = np.abs(w).mean()
        left = a**2 / np.mean(w**2)
        np.testing.assert_allclose(flat([theta]), signs(w, a / left**2), rtol=1e-5)
    assert set(flat(lagrangian.thetas[2:])) <= {-0.5, 0.0, 0.5}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_rest_on_their_values_are_not_carried(dtype):
    lagrangian, _ = begun([Task(Binary())], dtype=dtype)
    v = flat(lagrangian.targets)
    for variable, theta in zip(lagrangian.variables, lagrangian.thetas, strict=True):
        variable.assign(theta)
    for _ in range(3):
        lagrangian.c_step(0.5, 0.5, Reach(0.9, 100.0))
        for variable, theta in zip(lagrangian.variables, lagrangian.thetas, strict=True):
            variable.assign(theta)
    np.testing.assert_allclose(flat(lagrangian.targets), v, atol=1e-5)


def test_a_sum_is_found_for_where_its_weights_would_be():
    lagrangian, _ = begun([Task(Sum(Binary(), L0Constraint(6)))])
    w = flat(lagrangian.variables)
    grown = flat(lagrangian.targets) / w
    np.testing.assert_allclose(grown, grown[0], rtol=1e-4)
    assert grown[0] > 1.01
    v, theta = flat(lagrangian.targets), flat(lagrangian.thetas)
    counts = min(1, 1.5 * np.linalg.norm(v - theta) / np.linalg.norm(v))
    v = v + counts * 2 * (w - theta)
    lagrangian.c_step(0.5, 0.5, Reach(0.8, 2.0, least=0.1))
    np.testing.assert_allclose(flat(lagrangian.targets), v, rtol=1e-4, atol=1e-5)
    values, counts = np.unique(flat(lagrangian.thetas).round(5), return_counts=True)
    # All but six have one of two values.
    assert np.sort(counts)[-2:].sum() >= lagrangian.size - 6 and len(values) > 2
