import contextlib
import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras.algorithm import shadows
from lc_keras.algorithm.beside import Reach
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.reaching import ReachingLagrangian
from lc_keras.algorithm.shadows import fingerprint
from lc_keras.algorithm.tasks import Task, bind_tasks
from lc_keras.costs import L0Constraint, L1Penalty, L2Penalty
from lc_keras.costs.groups import Neurons, Weights

MUS = [0.1, 0.15, 0.4, 0.5, 2.0]


class Counting(L0Constraint):
    """Counts how often its C step is traced."""

    traces = 0

    def maps(self, *args, **options):
        self.traces += 1
        return super().maps(*args, **options)


def net(**options):
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(5, name="first", **options),
        keras.layers.Dense(4, name="second", **options),
        keras.layers.Dense(3, name="third", **options),
    ]
    return keras.Sequential(layers)


def attach(model, tasks, multipliers=True, beside=False):
    return (ReachingLagrangian if beside else Lagrangian)(bind_tasks(tasks, model), multipliers)


def perturb(variables):
    for v in variables:
        v.assign(v.numpy() + 0.3 * np.random.normal(size=v.shape).astype("float32"))


def copies(variables):
    return [v.numpy().copy() for v in variables]


def bits(arrays):
    return [np.asarray(a).tobytes() for a in arrays]


@pytest.mark.parametrize("groups, budget", [(Weights(), 4), (Neurons(), 2)], ids=str)
def test_a_budget_holds_where_weights_are_subnormal(groups, budget):
    layers = [keras.layers.Dense(5, use_bias=False), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((6,)), *layers])
    kernel = np.full((6, 5), 1e-40, "float32")
    kernel[:2, 0] = 1
    model.layers[0].kernel.assign(kernel)
    lagrangian = attach(model, [Task(L0Constraint(budget, groups), model.layers[0])], multipliers=False)
    lagrangian.direct_compression(1.0)
    lagrangian.show_compressed()
    kept = model.layers[0].kernel.numpy().view("int32") != 0
    assert (kept.sum() if isinstance(groups, Weights) else kept.any(axis=0).sum()) <= budget
    assert kept[:2, 0].all()


# The C steps, written again in numpy, in float64.


def top(kappa):
    def solve(vs, mu):
        kept = np.sort(np.abs(np.concatenate([v.ravel() for v in vs])))[-kappa]
        return [np.where(np.abs(v) >= kept, v, 0) for v in vs]

    return solve


def soft(alpha):
    return lambda vs, mu: [np.sign(v) * np.maximum(np.abs(v) - alpha / mu, 0) for v in vs]


def shrink(alpha):
    return lambda vs, mu: [v * mu / (mu + 2 * alpha) for v in vs]


PARTS = {
    "joint": ([Task(L0Constraint(0.2))], [(top(12), [0, 1, 2])]),
    "per layer": (
        [Task(L0Constraint(5), per_layer=True)],
        [(top(5), [0]), (top(5), [1]), (top(5), [2])],
    ),
    "μ in the cost": ([Task(L1Penalty(0.05))], [(soft(0.05), [0, 1, 2])]),
    "several tasks": (
        [
            Task(L1Penalty(0.02), weights="second/kernel"),
            Task(L0Constraint(7), weights=["third/kernel", "first/kernel"]),
        ],
        [(soft(0.02), [1]), (top(7), [0, 2])],
    ),
    "not sparse": ([Task(L2Penalty(0.1), weights="first")], [(shrink(0.1), [0, 3])]),
}


@pytest.mark.parametrize("multipliers", [True, False], ids=["multipliers", "plain"])
@pytest.mark.parametrize("case", PARTS)
def test_c_steps_against_numpy(case, multipliers):
    model = net()
    tasks, parts = PARTS[case]
    # Variable 3 is a bias, which has one axis.
    variables = [
        *(model.get_layer(n).kernel for n in ("first", "second", "third")),
        model.get_layer("first").bias,
    ]
    perturb(variables)
    lagrangian = attach(model, tasks, multipliers)
    used = [i for _, part in parts for i in part]
    slot = {i: next(k for k, v in enumerate(lagrangian.variables) if v is variables[i]) for i in used}
    assert len(lagrangian.variables) == len(used)

    lambdas = {i: np.zeros(variables[i].shape) for i in used}
    result = lagrangian.direct_compression(MUS[0])
    for step, mu in enumerate([MUS[0], *MUS]):
        now = MUS[min(step, len(MUS) - 1)]
        if step:
            perturb(variables)
            result = lagrangian.c_step(mu, now)
        w = {i: variables[i].numpy().astype("float64") for i in used}
        theta = {}
        for solve, part in parts:
            theta.update(zip(part, solve([w[i] - lambdas[i] / mu for i in part], mu), strict=True))
        if multipliers and step:
            lambdas = {i: lambdas[i] - mu * (w[i] - theta[i]) for i in used}

        assert lagrangian.mu == np.float32(now)
        assert result.finite.numpy().all() and len(result.finite) == len(used)
        for i in used:
            near = dict(rtol=1e-5, atol=1e-5 + 1e-6 * np.abs(lambdas[i]).max())
            np.testing.assert_allclose(lagrangian.thetas[slot[i]].numpy(), theta[i], **near)
            np.testing.assert_allclose(lagrangian.multipliers[slot[i]].numpy(), lambdas[i], **near)
            np.testing.assert_allclose(
                lagrangian.targets[slot[i]].numpy(), theta[i] + lambdas[i] / now, **near
            )
        gap = np.sqrt(
            sum(np.sum((w[i] - theta[i]) ** 2) for i in used) / sum(np.sum(w[i] ** 2) for i in used)
        )
        np.testing.assert_allclose(result.gap, gap, rtol=1e-4)
        kept = sum(np.count_nonzero(theta[i]) for i in used)
        np.testing.assert_allclose(result.density, kept / sum(w[i].size for i in used), rtol=1e-6)


def test_c_step_does_not_touch_the_model():
    model = net()
    lagrangian = attach(model, [Task(L0Constraint(0.2))])
    before = bits(model.get_weights())
    lagrangian.direct_compression(0.1)
    lagrangian.c_step(0.1, 0.2)
    assert bits(model.get_weights()) == before


def test_a_model_of_zeros_has_no_gap():
    model = net(kernel_initializer="zeros")
    result = attach(model, [Task(L0Constraint(0.2))]).direct_compression(0.1)
    assert (result.gap, result.density) == (0, 0)


@pytest.mark.parametrize("multipliers", [True, False])
def test_new_mu_retraces_nothing(multipliers):
    model = net()
    cost = Counting(0.2)
    lagrangian = attach(model, [Task(cost)], multipliers)
    lagrangian.direct_compression(MUS[0])
    once = cost.traces
    assert once >= 1
    for mu, next_mu in itertools.pairwise(MUS):
        lagrangian.c_step(mu, next_mu)
        lagrangian.show_compressed()
        lagrangian.show_training()
    assert cost.traces == once


@pytest.mark.parametrize(
    "multipliers, beside, arrays", [(True, False, 2), (False, False, 1), (True, True, 2), (False, True, 2)]
)
def test_memory(multipliers, beside, arrays):
    """One extra number per weight without multipliers, two with them or beside the optimizer."""
    model = net()
    model.compile(keras.optimizers.SGD(0.1))
    model.optimizer.build(model.trainable_variables)
    created = []

    def creator(next_creator, **options):
        created.append(next_creator(**options))
        return created[-1]

    with tf.variable_creator_scope(creator):
        lagrangian = attach(model, [Task(L0Constraint(0.2))], multipliers, beside)
        reach = Reach(0.1, ratio=0.5, slack=0.5, frees=True) if beside else None
        lagrangian.direct_compression(0.1, reach)
        with lagrangian.pulling():
            model.optimizer.apply([tf.ones_like(v) for v in model.trainable_variables])
        lagrangian.c_step(0.1, 0.2, reach)
        if beside:
            lagrangian.moved()
            lagrangian.project()
        lagrangian.show_compressed()
        lagrangian.show_training()
    size = 6 * 5 + 5 * 4 + 4 * 3
    assert lagrangian.size == size
    # Plus one number: μ, or the part of the way.
    assert sum(v.shape.num_elements() for v in created) == arrays * size + 1


# Which weights the model shows.

STRANGE = [0.0, -0.0, 1e-45, -1e-40, 1e-38, 3.4e38, 1 / 3, np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("multipliers", [True, False])
def test_showing_theta_and_back_changes_no_bit(multipliers):
    model = net()
    lagrangian = attach(model, [Task(L0Constraint(0.2))], multipliers)
    lagrangian.direct_compression(0.1)
    perturb(lagrangian.variables)
    lagrangian.c_step(0.1, 0.2)
    perturb(lagrangian.variables)
    first = lagrangian.variables[0]
    first.assign(np.resize(np.array(STRANGE, "float32"), first.shape))
    weights, thetas = bits(copies(lagrangian.variables)), bits(copies(lagrangian.thetas))
    targets, others = bits(copies(lagrangian.targets)), bits(copies(model.layers[0].weights[1:]))

    for _ in range(2):
        lagrangian.show_compressed()
        lagrangian.show_compressed()
        assert bits(copies(lagrangian.variables)) == thetas
        lagrangian.show_training()
        lagrangian.show_training()
        assert bits(copies(lagrangian.variables)) == weights
        assert bits(copies(lagrangian.thetas)) == thetas
        assert bits(copies(lagrangian.targets)) == targets
    assert bits(copies(model.layers[0].weights[1:])) == others


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights(dtype):
    model = net(dtype=dtype)
    kernels = [layer.kernel for layer in model.layers]
    before = bits(copies(kernels))
    lagrangian = attach(model, [Task(L0Constraint(7))])
    assert {t.dtype for t in [*lagrangian.thetas, *lagrangian.targets]} == {tf.float32}
    lagrangian.direct_compression(0.1)
    lagrangian.show_compressed()
    assert {v.dtype for v in kernels} == {dtype}
    assert sum(np.count_nonzero(v.numpy()) for v in kernels) == 7
    lagrangian.show_training()
    assert bits(copies(kernels)) == before


def test_compress_puts_the_compressed_in_the_place_of_any_variables():
    model = net()
    lagrangian = attach(model, [Task(L0Constraint(0.2))])
    lagrangian.direct_compression(0.1)
    perturb(lagrangian.variables)
    lagrangian.c_step(0.1, 0.2)
    before = bits(copies([*lagrangian.variables, *lagrangian.targets, *lagrangian.thetas]))
    averages = [tf.Variable(2 * v) for v in copies(lagrangian.variables)]
    expected = top(12)(copies(averages), 0.2)
    tf.function(lambda: lagrangian.compress(averages, tf.constant(0.2)), autograph=False)()
    assert bits(copies([*lagrangian.variables, *lagrangian.targets, *lagrangian.thetas])) == before
    for variable, theta in zip(averages, expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), theta)


# Trouble.


@pytest.mark.parametrize("multipliers, bad", [(True, np.nan), (True, -np.inf), (False, np.inf)])
def test_weights_that_are_not_finite_change_nothing(multipliers, bad):
    model = net()
    tasks = [Task(L1Penalty(0.02), "first/kernel"), Task(L0Constraint(0.2), "(second|third)/kernel")]
    lagrangian = attach(model, tasks, multipliers)
    lagrangian.direct_compression(0.1)
    perturb(lagrangian.variables)
    lagrangian.c_step(0.1, 0.2)
    perturb(lagrangian.variables)
    spoilt = lagrangian.variables[1]
    value = spoilt.numpy().copy()
    value[2, 1] = bad
    spoilt.assign(value)

    def state():
        held = [*lagrangian.variables, *lagrangian.thetas, *lagrangian.targets]
        return bits(copies(held)), bits(lagrangian.multipliers)

    before = state()
    result = lagrangian.c_step(0.2, 0.3)
    assert result.finite.numpy().tolist() == [True, False, True]
    assert result.gap == result.density == -1
    assert state() == before

    value[2, 1] = 0.5
    spoilt.assign(value)
    assert lagrangian.c_step(0.2, 0.3).finite.numpy().all()


# The pull.


def slopes(model, variables):
    """The gradients of the losses of a model's regularizers."""
    with tf.GradientTape() as tape:
        loss = tf.add_n([tf.cast(loss, tf.float32) for loss in model.losses])
    found = tape.gradient(loss, [v.value for v in variables], unconnected_gradients="zero")
    return [slope.numpy() for slope in found]


def test_the_pull_adds_to_the_gradient_of_the_losses_and_to_nothing_after_it():
    model = net(kernel_regularizer=keras.regularizers.L2(0.1))
    model.get_layer("third").kernel.regularizer = None
    own = [v.regularizer for v in model.trainable_variables]
    lagrangian = attach(model, [Task(L0Constraint(0.2), weights="second/kernel|third/kernel")])
    lagrangian.direct_compression(0.5)
    weights = [model.get_layer("first").kernel, *lagrangian.variables]
    without = slopes(model, weights)
    held = zip(lagrangian.variables, lagrangian.targets, strict=True)
    pulls = [0, *(0.5 * (v.numpy() - t.numpy()) for v, t in held)]
    assert all(np.abs(pull).max() > 0.01 for pull in pulls[1:])
    for error in (None, RuntimeError("in the training")):
        with contextlib.suppress(RuntimeError), lagrangian.pulling():
            for slope, before, pull in zip(slopes(model, weights), without, pulls, strict=True):
                np.testing.assert_allclose(slope, before + pull, rtol=1e-5, atol=1e-7)
            if error:
                raise error
        assert all(v.regularizer is r for v, r in zip(model.trainable_variables, own, strict=True))
        assert bits(slopes(model, weights)) == bits(without)


def test_the_pull_follows_the_c_step():
    model = net()
    lagrangian = attach(model, [Task(L0Constraint(0.2))])
    lagrangian.direct_compression(0.1)
    perturb(lagrangian.variables)
    with lagrangian.pulling():
        lagrangian.c_step(0.1, 0.4)
        found = slopes(model, lagrangian.variables)
    away = [v.numpy() - t.numpy() for v, t in zip(lagrangian.variables, lagrangian.targets, strict=True)]
    for slope, distance in zip(found, away, strict=True):
        np.testing.assert_allclose(slope, 0.4 * distance, rtol=1e-5, atol=1e-7)
    expected = [0.2 * np.sum(distance**2) for distance in away]
    np.testing.assert_allclose([slot.pull.pull(slot.variable) for slot in lagrangian.slots], expected, 1e-5)
    np.testing.assert_allclose(lagrangian.penalty(), sum(expected), rtol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
def test_weights_that_others_put_in_the_place_of_theta(dtype):
    model = net(dtype=dtype)
    lagrangian = attach(model, [Task(L0Constraint(20))])
    lagrangian.direct_compression(0.1)
    assert not lagrangian.is_replaced()
    lagrangian.show_compressed()
    for variable in lagrangian.variables:
        value = variable.numpy().astype("float64")
        largest = value == value.max()
        for other in (-value, 1.1 * value):
            variable.assign(other)
            assert lagrangian.is_replaced() and lagrangian.is_replaced(swapped=True)
        for other in (1.05 * value, value + 1e-3, value[::-1], np.where(largest, 0, value)):
            variable.assign(other)
            assert lagrangian.is_replaced()
            assert lagrangian.is_replaced(swapped=True) or dtype == "bfloat16"
        variable.assign(value)
        assert not lagrangian.is_replaced()
        # As `SwapEMAWeights` does.
        variable.assign(variable + 0.3)
        variable.assign(variable - 0.3)
        variable.assign(tf.where(value == 0, tf.zeros_like(variable), variable))
        assert not lagrangian.is_replaced(swapped=True)
        variable.assign(value)
    lagrangian.show_training()
    assert not lagrangian.is_replaced()


@pytest.mark.parametrize("multipliers", [True, False])
@pytest.mark.parametrize("value", [1.0, np.nan])
def test_begin_anew(multipliers, value):
    model = net()
    lagrangian = attach(model, [Task(L0Constraint(6))], multipliers)
    lagrangian.direct_compression(0.1)
    for mu in (0.1, 0.2):
        perturb(lagrangian.variables)
        lagrangian.c_step(mu, 2 * mu)
    trained = copies(lagrangian.variables)
    lagrangian.show_compressed()
    given = [value * np.linspace(1, 2, w.size, dtype="float32").reshape(w.shape) for w in trained]
    for variable, other in zip(lagrangian.variables, given, strict=True):
        variable.assign(other)
    result = lagrangian.begin_anew(0.4)
    assert np.all(result.finite) == np.isfinite(value) and not lagrangian.compressed
    expected = given if np.isfinite(value) else trained
    for found, w in zip(copies(lagrangian.variables), expected, strict=True):
        np.testing.assert_array_equal(found, w)
    thetas = L0Constraint(6).c_step([tf.constant(w) for w in expected], mu=1.0)
    for found, theta in zip(copies(lagrangian.thetas), thetas, strict=True):
        np.testing.assert_array_equal(found, theta)
    assert not any(np.any(part) for part in lagrangian.multipliers)


def test_weights_of_one_shape_are_outlined_by_one_graph():
    variables = [keras.Variable(np.full((7, 11), value, "float32")) for value in (1.0, -2.0)]
    before = shadows._outline.experimental_get_tracing_count()
    assert fingerprint(variables)[:, [0, 2]].tolist() == [[77, 77], [77, 154]]
    assert shadows._outline.experimental_get_tracing_count() == before + 1
