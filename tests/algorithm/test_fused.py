"""C steps that XLA compiles: one pass in place, and the same bits."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras import (
    Blocks,
    L0Constraint,
    L1Constraint,
    L1Penalty,
    L2Penalty,
    Neurons,
    NMConstraint,
    Task,
)
from lc_keras.algorithm import graphs
from lc_keras.algorithm.beside import Reach
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.reaching import ReachingLagrangian
from lc_keras.algorithm.tasks import bind_tasks
from lc_keras.costs import thresholds
from lc_keras.internals import tensorflow as of_tensorflow

REACHES = [Reach(0.1, 0.0, 0.5, True), Reach(0.2, 0.7, 0.3, True), Reach(0.3, 0.9)]


def arrays_of(cost, dtype, scope, many, chunk, monkeypatch, kind):
    """θ and t after each of a few C steps."""
    monkeypatch.setattr(of_tensorflow, "_MANY", many)
    monkeypatch.setattr(thresholds, "CHUNK", chunk)
    graphs.shared.cache_clear()  # they were made with another number
    rng = np.random.default_rng(0)
    with scope:
        layers = [keras.layers.Dense(n, use_bias=False, dtype=dtype) for n in (7, 6)]
        model = keras.Sequential([keras.Input((9,)), *layers])
        lagrangian = kind(bind_tasks([Task(cost)], model))
        found = []
        for step in range(3):
            for v in lagrangian.variables:
                v.assign(np.round(rng.normal(size=v.shape), 1))  # some are equal
            reach = {"reach": REACHES[step]} if kind is ReachingLagrangian else {}
            if step:
                lagrangian.c_step(1.0, 1.3, **reach)
            else:
                lagrangian.direct_compression(1.0, **reach)
            for held in [*lagrangian.thetas, *lagrangian.targets]:
                found += [copy.numpy() for copy in of_tensorflow.copies_of(held)]
        if kind is ReachingLagrangian:
            lagrangian.moved()
            found += [float(lagrangian.project().gap), *(theta.numpy() for theta in lagrangian.thetas)]
    return found


@pytest.mark.parametrize(
    "cost, dtype, devices, chunk",
    [
        (L0Constraint(20), "float16", [], 8),
        (L0Constraint(20), "float32", ["CPU:1", "CPU:2"], 8),
        (L0Constraint(0.4, Neurons()), "float32", [], 2**20),
        pytest.param(L0Constraint(0.3, Blocks((2, 3))), "float32", [], 8, marks=pytest.mark.slow),
        (NMConstraint(2, 4), "float32", [], 8),
        (L1Constraint(8.0), "float32", [], 8),
        pytest.param(L1Penalty(0.5, Blocks((2, 2))), "float32", [], 8, marks=pytest.mark.slow),
        (L2Penalty(0.3), "float64", [], 2**20),
    ],
    ids=repr,
)
def test_the_bits_are_those_of_single_operations(cost, dtype, devices, chunk, monkeypatch):
    def found(many):
        scope = tf.distribute.MirroredStrategy(devices) if devices else tf.distribute.get_strategy()
        kind = ReachingLagrangian if cost.can_loosen else Lagrangian
        return arrays_of(cost, dtype, scope.scope(), many, chunk, monkeypatch, kind)

    one, other = found(1), found(2**30)
    assert len(one) == len(other) and any(np.any(a) for a in one)
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("cost", [L0Constraint(0.4, Neurons()), L1Constraint(8.0)], ids=repr)
def test_what_tensors_have_in_common_is_traced_once(cost):
    def graph(layers):
        sizes = [keras.layers.Dense(n) for n in range(7, 7 + layers)]
        lagrangian = ReachingLagrangian(
            bind_tasks([Task(cost)], keras.Sequential([keras.Input((9,)), *sizes]))
        )
        compress = tf.function(lambda: lagrangian.compress(lagrangian.thetas, tf.constant(1.0)))
        made = compress.get_concrete_function().graph.as_graph_def()
        functions = made.library.function
        return len(functions), len(made.node) + sum(len(f.node_def) for f in functions)

    (functions, nodes), (same, more) = graph(2), graph(4)
    assert same == functions
    assert (more - nodes) / 4 < 30  # for each kernel and bias
