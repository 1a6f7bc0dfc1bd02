"""Budgets of unequal costs, compared with every possible subset."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import lc_keras
from lc_keras import Blocks, L0Constraint, Neurons, Weights
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.tasks import Task, bind_tasks
from lc_keras.costs import budgets
from lc_keras.costs.layout import Layout
from lc_keras.model.macs import macs

MAGNITUDES = st.floats(0, 4, width=32, allow_subnormal=False)


def subsets(count):
    return (np.array(bits) for bits in itertools.product([False, True], repeat=count))


def optimum(energy, cost, budget, must):
    """The best energy of any feasible subset that contains `must`."""
    feasible = (kept for kept in subsets(len(energy)) if (kept | ~must).all() and cost(kept) <= budget)
    return max((energy[kept].sum() for kept in feasible), default=-1.0)


def largest(density, parts):
    must = np.zeros(len(density), bool)
    for groups, at_least in parts:
        must[np.asarray(groups)[np.argsort(-density[groups], kind="stable")[:at_least]]] = True
    return must


def assert_full(kept, costs, budget):
    """Asserts that a budget is kept and that no unit that is left out would fit."""
    assert sum(cost(kept) for cost in costs) <= budget
    for unit in np.flatnonzero(~kept):
        assert sum(cost(kept | (np.arange(len(kept)) == unit)) for cost in costs) > budget


def linear(costs):
    costs = np.array(costs)
    return [budgets.Product(1, costs, np.zeros_like(costs), 0, 1)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(MAGNITUDES, min_size=8, max_size=8),
    st.lists(st.integers(1, 9), min_size=8, max_size=8),
    st.integers(0, 40),
    st.sampled_from([(), ((np.array([0, 1, 2]), 1), (np.array([5, 6]), 1))]),
)
def test_choose_is_within_its_bound(magnitudes, costs, budget, parts):
    m, costs = np.float32(magnitudes), np.array(costs)
    budget += 18 if parts else 0
    kept = budgets.choose(tf.constant(m), linear(costs), budget, parts).numpy()
    energy = m.astype("float64") ** 2
    must = largest(m / np.sqrt(costs), parts)
    assert costs[kept].sum() <= budget and kept[must].all()
    # The bound comes from the first unit that is left out.
    left_out = np.flatnonzero(~kept)
    missed = energy[max(left_out, key=lambda i: (energy[i] / costs[i], -i))] if len(left_out) else 0
    best = optimum(energy, lambda kept: costs[kept].sum(), budget, must)
    assert energy[kept].sum() >= best - missed - 1e-5
    assert_full(kept, linear(costs), budget)


def test_choose_reaches_the_optimum_where_costs_are_alike():
    m = np.float32([3, 1, 2, 2, 5])
    kept = budgets.choose(tf.constant(m), linear([7] * 5), 21, ()).numpy()
    assert kept.tolist() == [True, False, True, False, True]


def test_choose_keeps_what_costs_nothing():
    kept = budgets.choose(tf.constant([0.0, 1.0, 2.0]), linear([0, 5, 5]), 5, ()).numpy()
    assert kept.tolist() == [True, False, True]


def chain(*widths):
    """The costs of consecutive dense layers between one input and one output."""
    ids = np.repeat(np.arange(len(widths)), widths)
    layer = [(ids == i).astype(int) for i in range(len(widths))]
    nothing = np.zeros(len(ids), int)
    inner = [budgets.Product(1, b, a, 0, 0) for a, b in itertools.pairwise(layer)]
    return [
        budgets.Product(5, layer[0], nothing, 0, 1),
        *inner,
        budgets.Product(1, nothing, layer[-1], 3, 0),
    ], ids


CHAIN, IDS = chain(4, 3, 2)
ONE_OF_EACH = [(np.flatnonzero(i == IDS), 1) for i in range(3)]
in_chain = tf.function(lambda m, budget: budgets.choose(m, CHAIN, budget, ONE_OF_EACH), autograph=False)


@settings(max_examples=40, deadline=None)
@given(st.lists(MAGNITUDES, min_size=9, max_size=9), st.integers(10, 60))
def test_choose_with_costs_that_depend_on_each_other(magnitudes, budget):
    costs, ids = CHAIN, IDS
    kept = in_chain(tf.constant(magnitudes, tf.float32), tf.constant(budget, tf.float64)).numpy()
    assert_full(kept, costs, budget)
    assert np.bincount(ids[kept], minlength=3).min() >= 1
    # Never worse than one unit per layer, and all units where they fit.
    assert kept.all() == (sum(c(np.ones(9, bool)) for c in costs) <= budget)


def best_of_each(costs, kept, energies, limits):
    """The most energy of any row of `kept` that fits the budget, for each pair of energies and budget."""
    spent = sum(cost(kept) for cost in costs)
    return [(kept @ energy)[spent <= limit].max() for energy, limit in zip(energies, limits, strict=True)]


@pytest.mark.parametrize("widths", [(4, 3, 3), (5, 5), (3, 3, 2, 2)])
def test_choose_is_near_the_optimum_of_random_chains(widths):
    generator = np.random.default_rng(0)
    costs, ids = chain(*widths)
    solve = tf.function(lambda m, budget: budgets.choose(m, costs, budget), autograph=False)
    magnitudes = generator.exponential(size=(60, len(ids))).astype("float32")
    limits = generator.integers(10, 50, size=60)
    energies, reached = magnitudes.astype("float64") ** 2, []
    for m, energy, limit in zip(magnitudes, energies, limits, strict=True):
        kept = solve(tf.constant(m), tf.constant(limit, tf.float64)).numpy()
        assert_full(kept, costs, limit)
        reached.append(energy[kept].sum())
    ratios = np.divide(reached, best_of_each(costs, np.array([*subsets(len(ids))]), energies, limits))
    assert ratios.max() <= 1 + 1e-9 and ratios.min() > 0.95 and ratios.mean() > 0.999


SHAPES = [(2, 2), (3,), (3, 1)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(MAGNITUDES, min_size=10, max_size=10),
    st.lists(st.integers(0, 9), min_size=3, max_size=3),
    st.integers(0, 60),
    st.sampled_from([(0, 0, 0), (1, 0, 2)]),
)
def test_allocate_is_near_the_optimum(magnitudes, prices, budget, at_least):
    flat = np.float32(magnitudes)
    tensors = [tf.constant(t.reshape(s)) for t, s in zip(np.split(flat, [4, 7]), SHAPES, strict=True)]
    budget = max(budget, int(np.dot(prices, at_least)))
    counts = [int(n) for n in budgets.allocate(tensors, prices, budget, at_least)]
    costs = np.repeat(prices, [4, 3, 3]).astype("float64")
    energy = flat.astype("float64") ** 2
    kept = np.zeros(10, bool)
    for n, part in zip(counts, np.split(np.arange(10), [4, 7]), strict=True):
        kept[part[np.argsort(-flat[part], kind="stable")[:n]]] = True
    assert costs[kept].sum() <= budget
    assert all(costs[kept].sum() + c > budget for c in costs[~kept])
    assert all(n >= least for n, least in zip(counts, at_least, strict=True))
    parts = [(part, n) for part, n in zip(np.split(np.arange(10), [4, 7]), at_least, strict=True)]
    best = optimum(energy, lambda kept: costs[kept].sum(), budget, largest(flat, parts))
    assert energy[kept].sum() >= best - energy[~kept].max(initial=0) - 1e-5


def layouts(weights, macs):
    return [Layout(w.shape, macs=n) for w, n in zip(weights, macs, strict=True)]


def random(*shapes):
    return [np.random.default_rng(i).normal(size=s).astype("float32") for i, s in enumerate(shapes)]


@pytest.mark.parametrize("jit", [False, True])
def test_single_weights_in_macs(jit):
    """Half of a dense layer's weights, an eighth of a convolution's, or what the ratio says."""
    weights = random((40, 50), (3, 3, 8, 20))
    prices, budget = (1, 30), 9000
    cost = L0Constraint(budget, measure="macs")

    def step(tensors):
        return [
            f(t)
            for f, t in zip(
                cost.maps(tensors, tf.constant(1.0), layouts(weights, prices)), tensors, strict=True
            )
        ]

    thetas = [
        t.numpy()
        for t in tf.function(step, jit_compile=jit, autograph=False)([tf.constant(w) for w in weights])
    ]
    spent = sum(np.count_nonzero(t) * n for t, n in zip(thetas, prices, strict=True))
    assert budget - 30 < spent <= budget
    ratio = [np.abs(w) / n**0.5 for w, n in zip(weights, prices, strict=True)]
    kept = [t != 0 for t in thetas]
    lowest = min(r[k].min() for r, k in zip(ratio[1:], kept[1:], strict=True))
    assert max(r[~k].max() for r, k in zip(ratio, kept, strict=True)) <= lowest * (1 + 1e-6)
    for theta, w, k in zip(thetas, weights, kept, strict=True):
        np.testing.assert_array_equal(theta[k], w[k])


@pytest.mark.parametrize("groups", [Weights(), Blocks((4, 1)), Neurons()], ids=str)
@pytest.mark.parametrize("measure", ["groups", "parameters", "macs", "bytes"])
def test_no_measure_is_exceeded_and_each_layer_keeps_some(groups, measure):
    weights = random((6, 8), (3, 3, 4, 6), (10, 4))
    prices = (1, 16, 1)
    cost = L0Constraint(0.5, groups, measure, keep_at_least=2)
    weights[2] *= 1e-3
    maps = cost.maps([tf.constant(w) for w in weights], tf.constant(1.0), layouts(weights, prices))
    thetas = [f(tf.constant(w)).numpy() for f, w in zip(maps, weights, strict=True)]
    price = {"groups": (1, 1, 1), "parameters": (1, 1, 1), "macs": prices, "bytes": (4, 4, 4)}[measure]
    count = [np.count_nonzero(groups.magnitudes(tf.constant(t), Layout(t.shape))) for t in thetas]
    sizes = [1 if measure == "groups" else groups.size(Layout(w.shape)) for w in weights]
    assert min(count) >= 2
    spent = sum(n * p * s for n, p, s in zip(count, price, sizes, strict=True))
    assert (
        spent
        <= cost.budget(layouts(weights, prices))
        < spent + max(p * s for p, s in zip(price, sizes, strict=True))
    )


@pytest.mark.parametrize("dtype, size", [("float64", 8), ("float16", 2)])
def test_bytes_are_those_of_the_type(dtype, size):
    weights = np.arange(1, 101, dtype=dtype)
    (kept,) = L0Constraint(80, measure="bytes").c_step([weights], 1.0)
    assert np.count_nonzero(kept) == 80 // size

    class Own(keras.Model):
        def __init__(self):
            super().__init__(dtype=dtype)
            self.dense = keras.layers.Dense(5, dtype=dtype)

        def call(self, x):
            return self.dense(x)

    model = Own()
    model(np.ones((1, 20), dtype))
    (part,) = Task(L0Constraint(80, measure="bytes")).bind(model)
    assert part.compression.budget(part.layouts) == 80
    assert part.compression.total(part.layouts) == 100 * size


def test_a_minimum_beyond_the_budget():
    cost = L0Constraint(5, keep_at_least=2)
    with pytest.raises(ValueError, match="at least 6"):
        cost.check([Layout((4,))] * 3)
    L0Constraint(6, keep_at_least=2).check([Layout((4,))] * 3)
    assert (
        L0Constraint(3, keep_at_least=0.5).c_step(random((3,), (2,)), 1.0)[0].numpy().astype(bool).sum() == 2
    )


@pytest.mark.parametrize(
    "options, kind",
    [
        ({"measure": "flops"}, ValueError),
        ({"keep_at_least": -1}, ValueError),
        ({"keep_at_least": 1.5}, ValueError),
        ({"keep_at_least": "1"}, TypeError),
    ],
)
def test_bad_options(options, kind):
    with pytest.raises(kind, match=next(iter(options))):
        L0Constraint(0.5, **options)


def net():
    x = keras.Input((10, 10, 2))
    y = trunk = layers.Conv2D(8, 3, padding="same", name="trunk")(x)
    y = layers.BatchNormalization(name="norm")(layers.Conv2D(12, 3, padding="same", name="inner")(y))
    y = layers.Conv2D(8, 3, padding="same", name="back")(layers.ReLU()(y))
    y = layers.Conv2D(16, 3, strides=2, name="strided")(layers.Add()([y, trunk]))
    y = layers.Dense(20, "relu", name="wide")(layers.Flatten()(y))
    return keras.Model(x, layers.Dense(3, name="head")(y))


@pytest.mark.parametrize("measure", ["groups", pytest.param("parameters", marks=pytest.mark.slow), "macs"])
def test_a_budget_of_neurons_makes_a_smaller_net(measure):
    model = net()
    (part,) = bind_tasks([Task(L0Constraint(0.5, Neurons(), measure))], model)
    lagrangian = Lagrangian([part])
    lagrangian.direct_compression(1.0)
    lagrangian.show_compressed()
    small = lc_keras.shrink(model)
    x = np.random.default_rng(0).normal(size=(3, 10, 10, 2)).astype("float32")
    np.testing.assert_allclose(model(x), small(x), rtol=1e-4, atol=1e-5)
    alive = {n: small.get_layer(n).output.shape[-1] for n in ("trunk", "inner", "strided", "wide")}
    assert min(alive.values()) >= 1
    if measure == "groups":
        assert sum(alive.values()) == (8 + 12 + 16 + 20) // 2
    else:
        size = (lambda net: macs(net).dense) if measure == "macs" else keras.Model.count_params
        assert size(small) < 0.5 * size(model)


def dense_net(blocks=4, growth=6):
    """A net in which each layer reads, through a norm, the outputs of all layers before it."""
    x = inputs = keras.Input((8, 8, 3))
    for i in range(blocks):
        h = layers.ReLU()(layers.BatchNormalization()(x) if i else x)
        x = layers.Concatenate()([x, layers.Conv2D(growth, 3, padding="same", name=f"conv_{i}")(h)])
    pooled = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    return keras.Model(inputs, layers.Dense(2)(pooled))


def show_compressed(shared):
    lagrangian = Lagrangian([shared])
    lagrangian.direct_compression(1.0)
    lagrangian.show_compressed()


def kept_filters(model):
    weights = (layer.kernel.numpy() for layer in model.layers if layer.name.startswith("conv"))
    return [int(w.any(axis=(0, 1, 2)).sum()) for w in weights]


def test_norms_over_many_layers_are_no_layers_of_their_own():
    model = dense_net()
    (shared,) = bind_tasks([Task(L0Constraint(0.5, Neurons(), keep_at_least=0.4))], model)
    show_compressed(shared)
    kept = kept_filters(model)
    assert sum(kept) == 12 and min(kept) == 3


def test_layers_under_one_norm_share_a_budget_of_each_layer():
    model = dense_net()
    (shared,) = bind_tasks([Task(L0Constraint(0.5, Neurons()), per_layer=True)], model)
    show_compressed(shared)
    assert sum(kept_filters(model)) == 12


@pytest.mark.parametrize("keep", [0, 0.1])
def test_a_budget_of_less_than_one_unit_is_an_error(keep):
    """0.1 of 6 neurons is none, and half of that would let the layer die."""
    layout = Layout((8, 6), units=np.arange(6), count=6)
    with pytest.raises(ValueError, match="at least 1 groups, 0.167 of all.*Received: 0"):
        L0Constraint(keep, Neurons()).check([layout])
    L0Constraint(keep, Neurons(), keep_at_least=0).check([layout])
