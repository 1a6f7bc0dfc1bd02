"""Graphs of C steps, shared by models."""

import dataclasses
import gc
import weakref

import keras
import numpy as np
import pytest
import tensorflow as tf

from helpers import kernels
from lc_keras import Alternation, Codebook, L0Constraint, Task
from lc_keras.algorithm.graphs import Arrays, Part, in_graph
from lc_keras.costs.layout import Layout


def model_of(units=4, dtype="float32", constraint=None):
    layers = keras.layers.Dense(units, dtype=dtype, kernel_constraint=constraint), keras.layers.Dense(3)
    return keras.Sequential([keras.Input((6,)), *layers])


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Counted(L0Constraint):
    """Records when it is traced."""

    traced = []  # noqa: RUF012

    def maps(self, weights, mu, layouts):
        self.traced.append(self)
        return super().maps(weights, mu, layouts)


def traces(model, cost):
    Counted.traced.clear()
    alternation = Alternation(model, cost, mu=1.0)
    alternation.c_step(2.0)
    return len(Counted.traced)


def test_models_that_are_alike_share_it_and_each_has_its_own_weights():
    cost, models = Counted(7), [model_of(5) for _ in range(3)]
    assert [traces(model, Counted(7)) for model in models] == [1, 0, 0]
    for model in models:
        weights = np.concatenate([k.ravel() for k in kernels(model)])
        alternation = Alternation(model, cost, mu=1.0)
        alternation.finish()
        kept = np.concatenate([k.ravel() for k in kernels(model)])
        assert set(np.argsort(-abs(weights))[:7]) == set(np.flatnonzero(kept))


@pytest.mark.parametrize(
    "other, cost",
    [
        (model_of, Counted(1.0)),
        (model_of, Counted(2)),
        (model_of, Task(Counted(1), weights="dense")),
        (lambda: model_of(dtype="float16"), Counted(1)),
        (lambda: model_of(3), Counted(1)),
        (lambda: model_of(constraint=keras.constraints.NonNeg()), Counted(1)),
    ],
    ids=["float", "budget", "biases", "type", "shape", "constraint"],
)
def test_what_differs_is_not_shared(other, cost):
    traces(model_of(), Counted(1))
    assert traces(model_of(), Counted(1)) == 0
    assert traces(other(), cost) == 1


def test_what_a_cost_has_beside_its_fields_is_not_taken_for_equal():
    class Custom(L0Constraint):  # not itself a dataclass
        def __init__(self, keep, half):
            super().__init__(keep)
            object.__setattr__(self, "half", half)

        def maps(self, weights, mu, layouts):
            return super().maps([w / 2 if self.half and i else w for i, w in enumerate(weights)], mu, layouts)

    changing = Custom(150, False)

    def shares(half):
        object.__setattr__(changing, "half", half)
        model = model_of(50)
        for layer, value in zip(model.layers, (1.0, 1.5), strict=True):
            layer.kernel.assign(tf.fill(layer.kernel.shape, value))
        Alternation(model, changing, mu=1.0).finish()
        return [np.count_nonzero(kernel) for kernel in kernels(model)]

    assert shares(False) == [0, 150] != shares(True)


def test_replicas_have_graphs_of_their_own():
    with tf.distribute.MirroredStrategy(["CPU:1", "CPU:2"]).scope():
        models = model_of(7), model_of(7)
        for model in models:
            alternation = Alternation(model, L0Constraint(10), mu=1.0)
            alternation.finish()
    assert [sum(np.count_nonzero(k) for k in kernels(model)) for model in models] == [10, 10]


def test_it_keeps_no_weights():
    model = model_of()
    alternation = Alternation(model, L0Constraint(5, values=Codebook(2)), mu=1.0)
    alternation.c_step(2.0)
    held = [weakref.ref(v) for v in (*model.variables, *alternation._steps.lagrangian.thetas)]
    del model, alternation
    gc.collect()
    assert all(variable() is None for variable in held)


def test_units_count():
    seen, variable = [], tf.Variable([1.0, 2.0])
    note, arrays = seen.append, Arrays([variable], [variable], None, tf.Variable(0.0))

    def units_of(parts, _):
        return parts[0].layouts[0].units.tolist()

    for units in ([0, 1], [1, 0], [0, 1]):
        layout = Layout((2,), units=np.array(units), count=2)
        in_graph(note, units_of, [Part(L0Constraint(1), [layout], [None])], arrays)()
    assert seen == [[0, 1], [1, 0]]
