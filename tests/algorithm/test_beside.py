"""The pull beside the optimizer, and the C step of a budget that grows tighter."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras.algorithm.beside import PullBeside, Reach
from lc_keras.algorithm.reaching import ReachingLagrangian
from lc_keras.algorithm.tasks import Task, bind_tasks
from lc_keras.costs import Grid, L0Constraint, L1Constraint
from lc_keras.costs.layout import Layout
from lc_keras.internals import tensorflow as of_tensorflow

W = np.array([[1.0, -2.0, 3.0], [0.5, 0.0, -4.0]], "float32")
T = np.array([[0.0, np.nan, 1.0], [0.0, 7.0, np.nan]], "float32")


def net(**options):
    sizes = {"first": 5, "second": 4, "third": 3}
    dense = [keras.layers.Dense(n, name=name, **options) for name, n in sizes.items()]
    return keras.Sequential([keras.Input((6,)), *dense])


def attach(model, tasks, multipliers=True):
    return ReachingLagrangian(bind_tasks(tasks, model), multipliers)


def pulled(weights, targets, part):
    return np.where(np.isnan(targets), weights, weights - part * (weights - targets))


def perturb(variables):
    for v in variables:
        v.assign(v.numpy() + 0.3 * np.random.normal(size=v.shape).astype("float32"))


def values(variables):
    return [v.numpy().astype("float64") for v in variables]


def bits(arrays):
    return [np.asarray(a).tobytes() for a in arrays]


# The pull.


def made(part=0.25, target=T):
    return PullBeside(tf.Variable(target), tf.Variable(part))


@pytest.mark.parametrize("jit_compile", [None, False, True], ids=["eager", "graph", "xla"])
def test_it_moves_weights_a_part_of_the_way(jit_compile):
    pull = made()
    call = pull if jit_compile is None else tf.function(pull, jit_compile=jit_compile)
    for part in (0.25, 1.0, 0.0):
        pull.part.assign(part)
        found = call(tf.constant(W)).numpy()
        np.testing.assert_allclose(found, pulled(W, T, part), rtol=1e-6)
        # Free weights stay as they are, bit for bit.
        assert bits([found[np.isnan(T)]]) == bits([W[np.isnan(T)]])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_one_pass_has_the_same_bits(dtype, monkeypatch):
    rng, wide = np.random.default_rng(0), "float64" if dtype == "float64" else "float32"
    weight, target = tf.constant(rng.normal(size=(40, 30)), dtype), rng.normal(size=(40, 30)).astype(wide)
    target[rng.random(target.shape) < 0.5] = np.nan
    pull, found = made(0.1, target), []
    for many in (2**17, 1):
        monkeypatch.setattr(of_tensorflow, "_MANY", many)
        graph = tf.function(lambda: pull(weight)).get_concrete_function()
        found.append(graph().numpy())
        calls = [op for op in graph.graph.get_operations() if "Call" in op.type]
        assert len(calls) == (many == 1)
    assert bits(found[:1]) == bits(found[1:])


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_it_pulls_in_the_type_of_the_weight_but_at_least_single_precision(dtype):
    weight, part = tf.constant(1 + np.arange(6).reshape(2, 3) / 7, dtype), np.float32(0.003)
    found = made(part, T.astype("float64" if dtype == "float64" else "float32"))(weight)
    assert found.dtype.name == dtype
    wide = tf.cast(weight, tf.float64).numpy()
    expected = tf.cast(tf.constant(pulled(wide, T, part), tf.float64), dtype)
    np.testing.assert_allclose(
        tf.cast(found, tf.float64), tf.cast(expected, tf.float64), rtol=1e-15 if dtype == "float64" else 1e-7
    )


def test_the_constraint_of_the_weight_comes_first():
    weight = keras.Variable(W)
    weight.constraint = own = keras.constraints.NonNeg()
    pull = made()
    pull.attach(weight)
    assert weight.constraint is pull and not pull.pulls
    found = weight.constraint(weight)
    np.testing.assert_allclose(found, pulled(np.maximum(W, 0), T, 0.25), rtol=1e-6)
    assert pull.pulls
    pull.detach(weight)
    assert weight.constraint is own


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: keras.optimizers.SGD(0.1, momentum=0.9),
        lambda: keras.optimizers.Adam(0.02),
        lambda: keras.optimizers.AdamW(0.02, weight_decay=0.1),
    ],
    ids=["sgd", "adam", "adamw"],
)
def test_it_is_beside_the_update_of_any_optimizer(optimizer):
    weights = [keras.Variable(W), keras.Variable(W)]
    pull, optimizers = made(), [optimizer(), optimizer()]
    pull.attach(weights[1])
    for batch in range(3):
        gradient = tf.constant(np.cos(batch + W))
        for one, weight in zip(optimizers, weights, strict=True):
            one.apply([gradient], [weight])
        np.testing.assert_allclose(weights[1], pulled(weights[0].numpy(), T, 0.25), rtol=1e-5)
        weights[0].assign(weights[1])


def test_weights_have_their_own_constraints_back_after_an_error():
    model = net(kernel_constraint=keras.constraints.MaxNorm(9.0))
    own = [v.constraint for v in model.trainable_variables]
    lagrangian = attach(model, [Task(L0Constraint(0.2))])
    with pytest.raises(RuntimeError, match="in the training"), lagrangian.pulling():
        assert [v.constraint for v in lagrangian.variables] == [slot.pull for slot in lagrangian.slots]
        assert [slot.pull.constraint for slot in lagrangian.slots] == own[::2]
        raise RuntimeError("in the training")
    assert [v.constraint for v in model.trainable_variables] == own


def test_a_weight_that_no_update_pulls():
    model = net()
    lagrangian = attach(model, [Task(L0Constraint(0.2))])
    lagrangian.direct_compression(0.1, Reach(0.5))
    first, *others = lagrangian.variables
    optimizer = keras.optimizers.SGD(0.1)
    with pytest.raises(ValueError, match=f"constraints of its weights.* for {first.path} and 2 more"):
        lagrangian.check_pulls()
    with lagrangian.pulling():
        optimizer.apply([tf.zeros_like(first)], [first])
    lagrangian.check_pulls()  # nothing trains the others
    for other in others:
        other.assign_sub(0.1 * tf.ones_like(other))
    with pytest.raises(ValueError, match=f"constraints of its weights.* for {others[0].path} and 1 more"):
        lagrangian.check_pulls()
    with lagrangian.pulling():
        keras.optimizers.SGD(0.1).apply([tf.zeros_like(v) for v in others], others)
    lagrangian.check_pulls()


# The C step, written again in numpy, in float64.


def top(kappa, arrays):
    kept = np.sort(np.abs(np.concatenate([a.ravel() for a in arrays])))[-kappa]
    return [np.where(np.abs(a) >= kept, a, 0) for a in arrays]


# Each budget: κ, and the weights that share it.
BUDGETS = {
    "joint": ([Task(L0Constraint(12))], [(12, [0, 1, 2])]),
    "per layer": ([Task(L0Constraint(5), per_layer=True)], [(5, [0]), (5, [1]), (5, [2])]),
    "two tasks": (
        [Task(L0Constraint(9), "(first|third)/kernel"), Task(L0Constraint(4), "second/kernel")],
        [(9, [0, 1]), (4, [2])],
    ),
}
REACHES = [
    Reach(0.1, slack=1.0, frees=True),
    Reach(0.2, ratio=0.5, slack=0.6, frees=True),
    Reach(0.3, slack=0.3, frees=False),
    Reach(0.4, slack=0.1, frees=True),
    Reach(0.5, ratio=0.0),
    Reach(0.6, ratio=0.9),
    Reach(1.0, frees=True),
]


def loose(shares, arrays, slack):
    theta = list(arrays)
    for kappa, places in shares:
        size = sum(arrays[i].size for i in places)
        more = int(float(np.float32(slack)) * (size - kappa))
        for i, found in zip(places, top(kappa + more, [arrays[i] for i in places]), strict=True):
            theta[i] = found
    return theta


@pytest.mark.parametrize("multipliers", [True, False], ids=["multipliers", "plain"])
@pytest.mark.parametrize("case", BUDGETS)
def test_c_steps_against_numpy(case, multipliers):
    tasks, shares = BUDGETS[case]
    lagrangian = attach(net(), tasks, multipliers)
    variables = lagrangian.variables
    offsets = [np.zeros(v.shape) for v in variables]  # λ/μ
    result = lagrangian.direct_compression(1.0, REACHES[0])
    for step, reach in enumerate(REACHES):
        if step:
            perturb(variables)
            result = lagrangian.c_step(1.0, 2.0, reach)
        w = values(variables)
        shifted = [a - offset for a, offset in zip(w, offsets, strict=True)]
        theta = loose(shares, shifted, reach.slack or 0)
        ratio = reach.ratio if multipliers and step else 0
        offsets = [ratio * (t - v) for t, v in zip(theta, shifted, strict=True)]
        free = [reach.frees & (t != 0) for t in theta]
        offsets = [np.where(f, 0, offset) for f, offset in zip(free, offsets, strict=True)]
        near = dict(rtol=1e-5, atol=1e-6)
        for i, held in enumerate(lagrangian.thetas):
            np.testing.assert_allclose(held, theta[i], **near)
            np.testing.assert_allclose(
                lagrangian.targets[i], np.where(free[i], np.nan, theta[i] + offsets[i]), **near
            )
        assert lagrangian.is_loose == bool(reach.slack or reach.frees)
        away = sum(np.sum((a - t) ** 2) for a, t in zip(w, theta, strict=True))
        gap = -1 if lagrangian.is_loose else np.sqrt(away / sum(np.sum(a**2) for a in w))
        np.testing.assert_allclose(result.gap, gap, rtol=1e-4, atol=1e-7)
        kept = sum(np.count_nonzero(t) for t in theta)
        density = -1 if lagrangian.is_loose else kept / lagrangian.size
        np.testing.assert_allclose(result.density, density, rtol=1e-6)
        # A batch that does nothing else moves the weights that part of the way.
        with lagrangian.pulling():
            keras.optimizers.SGD(0.1).apply([tf.zeros_like(v) for v in variables], list(variables))
        moved = zip(variables, w, lagrangian.targets, strict=True)
        for v, before, target in moved:
            np.testing.assert_allclose(v, pulled(before, target.numpy(), reach.part), **near)


def begun(reach, cost=None):
    keras.utils.set_random_seed(0)
    lagrangian = attach(net(), [Task(cost or L0Constraint(12))])
    lagrangian.direct_compression(1.0, reach)
    perturb(lagrangian.variables)
    lagrangian.c_step(1.0, 2.0, reach)
    return lagrangian


def test_project_keeps_the_budget_and_leaves_targets_alone():
    lagrangian = begun(Reach(0.1, ratio=0.5, slack=0.5, frees=True))
    assert sum(map(np.count_nonzero, values(lagrangian.thetas))) == 12 + (62 - 12) // 2
    targets, w = bits(values(lagrangian.targets)), values(lagrangian.variables)
    result = lagrangian.project()
    # These come from the loosely kept weights, which are free and have no multipliers.
    expected = top(12, w)
    for found, theta in zip(lagrangian.thetas, expected, strict=True):
        np.testing.assert_array_equal(found, theta)
    assert bits(values(lagrangian.targets)) == targets
    away = sum(np.sum((a - t) ** 2) for a, t in zip(w, expected, strict=True))
    np.testing.assert_allclose(result.gap, np.sqrt(away / sum(np.sum(a**2) for a in w)), rtol=1e-5)
    assert result.density == np.float32(12 / 62)
    lagrangian.variables[1].assign(np.full(lagrangian.variables[1].shape, np.nan))
    thetas = bits(values(lagrangian.thetas))
    assert lagrangian.project().finite.numpy().tolist() == [True, False, True]
    assert bits(values(lagrangian.thetas)) == thetas and bits(values(lagrangian.targets)) == targets


def test_project_right_after_a_c_step_counts_no_weight_twice():
    lagrangian = begun(Reach(0.1, ratio=0.5, slack=0.5, frees=True))
    # λ holds all of each weight that this removes.
    lagrangian.c_step(1.0, 2.0, Reach(0.1, ratio=0.9, slack=0.1, frees=True))
    w = values(lagrangian.variables)
    for _ in range(2):
        lagrangian.project()
        for found, theta in zip(lagrangian.thetas, top(12, w), strict=True):
            np.testing.assert_array_equal(found, theta)
        assert lagrangian.moved() == 0


def test_where_all_are_pulled_to_a_looser_theta_there_are_no_multipliers():
    cost = L1Constraint(2.0)
    lagrangian = begun(Reach(0.1, ratio=0.5, slack=0.5), cost)
    targets = values(lagrangian.targets)
    w = [tf.constant(v) for v in lagrangian.variables]
    given = [Layout(v.shape) for v in w]

    def expected(slack):
        return [solve(v).numpy() for solve, v in zip(cost.loosened(w, slack, given), w, strict=True)]

    near = dict(rtol=1e-5, atol=1e-6)
    for found, theta in zip(targets, expected(tf.constant(0.5)), strict=True):
        np.testing.assert_allclose(found, theta, **near)
    # Looking at the budget itself leaves the targets, and what follows, as they are.
    for _ in range(2):
        assert lagrangian.project().gap > 0
        for found, theta in zip(lagrangian.thetas, expected(tf.constant(0.0)), strict=True):
            np.testing.assert_allclose(found, theta, **near)
    assert bits(values(lagrangian.targets)) == bits(targets)
    lagrangian.c_step(1.0, 2.0, Reach(0.2, ratio=0.5, slack=0.2))
    for found, theta in zip(lagrangian.targets, expected(tf.constant(0.2)), strict=True):
        np.testing.assert_allclose(found, theta, **near)
    # Multipliers begin with the first L step towards the budget itself.
    for ratio in (0.0, 0.5):
        lagrangian.c_step(1.0, 2.0, Reach(0.2, ratio=0.5))
        for found, v, theta in zip(lagrangian.targets, w, expected(tf.constant(0.0)), strict=True):
            np.testing.assert_allclose(found, theta + ratio * (theta - v.numpy()), **near)


def test_theta_that_is_shown_with_close_values_changes_no_multiplier():
    reach, cost = Reach(0.1, ratio=0.5, slack=0.0), L0Constraint(12, values=Grid(8))
    quiet, shown = begun(reach, cost), begun(reach, cost)
    kept = values(shown.thetas)
    for _ in range(2):
        assert shown.project().density == np.float32(12 / 62)
        assert bits(values(shown.thetas)) != bits(kept)
    # A restart while θ is shown.
    restarted = begun(Reach(0.3), cost)
    for name, variables in restarted.saved().items():
        for own, other in zip(variables, shown.saved()[name], strict=True):
            own.assign(other)
    for own, other in zip(restarted.variables, shown.variables, strict=True):
        own.assign(other)
    restarted.load(shown.state())
    for lagrangian in (quiet, shown, restarted):
        lagrangian.c_step(1.0, 2.0, reach)
    for lagrangian in (shown, restarted):
        assert bits(values(lagrangian.thetas)) == bits(values(quiet.thetas))
        assert bits(values(lagrangian.targets)) == bits(values(quiet.targets))
    # Weights that were put into the model instead have no multipliers.
    shown.project()
    w = [tf.constant(v) for v in shown.variables]
    shown.begin_anew(1.0)
    expected = top(12, [v.numpy() for v in w])
    for found, theta in zip(shown.targets, expected, strict=True):
        np.testing.assert_array_equal(found, theta)
    # Nor does the next C step have any from before.
    shown.c_step(1.0, 2.0, reach)
    for found, theta in zip(shown.thetas, expected, strict=True):
        np.testing.assert_array_equal(found, theta)


@pytest.mark.parametrize("slack", [0.0, 0.4])
def test_how_far_the_kept_weights_moved(slack, monkeypatch):
    traced, method = [], ReachingLagrangian._reaching
    monkeypatch.setattr(ReachingLagrangian, "_reaching", lambda *args: traced.append(1) or method(*args))
    lagrangian = begun(Reach(0.1, slack=slack, frees=True))
    assert lagrangian.moved() == 0
    perturb(lagrangian.variables)
    # What counts is the budget itself, however loose θ is.
    theta = top(12, values(lagrangian.thetas))
    pairs = list(zip(values(lagrangian.variables), theta, strict=True))
    away = sum(np.sum((w - t)[t != 0] ** 2) for w, t in pairs)
    np.testing.assert_allclose(
        lagrangian.moved(), np.sqrt(away / sum(np.sum(t**2) for _, t in pairs)), rtol=1e-5
    )
    # The graph of the C step does this, too.
    assert traced == [1]


def test_a_restart_goes_on_with_the_reach():
    reach = Reach(0.1, ratio=0.5, slack=0.5, frees=True)
    lagrangian, other = begun(reach), attach(net(), [Task(L0Constraint(12))])
    assert lagrangian.state()["reach"] == dataclasses.asdict(reach)
    assert not other.is_loose
    other.load(lagrangian.state())
    assert other.is_loose


@pytest.mark.parametrize("many", [1, 2**17], ids=["one pass", "operations"])
def test_nothing_is_pulled_once_it_is_released(many, monkeypatch):
    monkeypatch.setattr(of_tensorflow, "_MANY", many)
    lagrangian = begun(Reach(1.0))

    @tf.function
    def pull():
        for slot in lagrangian.slots:
            slot.variable.assign(slot.pull(slot.variable))

    pull()
    lagrangian.release()
    before = bits(values(lagrangian.variables))
    perturb(lagrangian.variables)
    assert bits(values(lagrangian.variables)) != before
    before = bits(values(lagrangian.variables))
    pull()
    assert bits(values(lagrangian.variables)) == before
    assert all(target.numpy().size == 1 for target in lagrangian.targets)
