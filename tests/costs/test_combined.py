"""Costs that hold at the same time: few weights of few values, and sums."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from lc_keras import baselines
from lc_keras.costs import (
    Binary,
    Codebook,
    Compression,
    Grid,
    L0Constraint,
    L0Penalty,
    LowRank,
    Neurons,
    Sum,
    Ternary,
)
from lc_keras.costs.layout import Layout
from tensors import assert_compiles, compressed, draw, flat

MU = 1.0
VALUES = [Codebook(3), Codebook(values=[-2, -0.5, 1]), Binary(), Ternary(), Grid(3)]
SUMS = [
    Sum(Codebook(2), L0Constraint(0.1)),
    Sum(LowRank(2), L0Constraint(0.1)),
    Sum(Binary(), Binary(), Grid(2)),
]


def drawn(seed):
    numbers = draw(seed, 40)
    return [numbers[:28].reshape(7, 4), numbers[28:].reshape(2, 3, 2)]


def away(weights, theta):
    return np.sum((flat(weights) - flat(theta)) ** 2)


@pytest.mark.parametrize(
    "values",
    # What `Ternary` adds to the two values of `Binary` is what the budget removes.
    [pytest.param(v, marks=[pytest.mark.slow] * isinstance(v, Ternary)) for v in VALUES],
    ids=repr,
)
class TestSparseValues:
    def test_is_never_worse_than_one_after_the_other(self, values):
        cost, kappa = L0Constraint(0.3, values=values), 12
        for seed in (1, 3):
            weights = drawn(seed)
            theta = compressed(cost, weights)
            assert np.count_nonzero(flat(theta)) <= kappa
            # Quantised and then pruned.
            other = compressed(L0Constraint(kappa), compressed(values, weights))
            assert away(weights, theta) <= away(weights, other) * (1 + 1e-6)
            # Pruned and then quantised; what was removed stays removed.
            pruned = compressed(L0Constraint(kappa), weights)
            learned = values.learn([tf.constant(p) for p in pruned], [Layout(p.shape) for p in pruned], True)
            other = [
                np.where(p != 0, values.nearest(c, tf.float32)(tf.constant(p)), 0)
                for p, c in zip(pruned, learned, strict=True)
            ]
            assert away(weights, theta) <= away(weights, other) * (1 + 1e-6)

    def test_once_more_changes_nothing(self, values):
        cost = L0Constraint(0.3, values=values)
        for seed in (0, 2):
            once = compressed(cost, drawn(seed))
            np.testing.assert_allclose(flat(compressed(cost, once)), flat(once), rtol=1e-6)

    def test_extremes_stay_finite(self, values):
        cost = L0Constraint(5, values=values)
        for value in ([0, 1e38, -3e38, 1e-42, 1, 2, 3, 4], [0] * 8, [7.5] * 8):
            theta = compressed(cost, [np.float32(value).reshape(4, 2)])
            assert np.isfinite(theta).all() and np.count_nonzero(theta) <= 5

    def test_nothing_and_all(self, values):
        weights = drawn(0)
        assert not flat(compressed(L0Constraint(0, values=values), weights)).any()
        theta = flat(compressed(L0Constraint(1.0, values=values), weights))
        # Zero is one more value.
        assert np.sum((flat(weights) - theta) ** 2) <= away(weights, compressed(values, weights)) * (1 + 1e-6)


def test_given_values_are_kept_where_that_gains_most():
    """Against all subsets."""
    values, v = Codebook(values=[-2, 1, 4]), np.float32([0.4, -1.1, 3, -4, 0.9, 2.4, -0.6])
    theta = compressed(L0Constraint(3, values=values), [v])
    quantised = compressed(values, [v])[0].numpy()
    best = np.inf
    for kept in itertools.combinations(range(7), 3):
        other = np.zeros(7)
        other[list(kept)] = quantised[list(kept)]
        best = min(best, np.sum((v - other) ** 2))
    assert away([v], theta) == pytest.approx(best)


def test_a_budget_of_values_keeps_none_unless_it_is_loosened():
    cost = L0Constraint(0.1, values=Grid(8))
    assert cost.has_budget and not cost.keeps_values and cost.can_loosen
    close = (
        L0Constraint(0.1),
        cost,
        *(L0Constraint(0.1, values=v) for v in (Grid(7), Codebook(255), Codebook(256))),
    )
    assert [each.close_values for each in close] == [False, True, False, False, True]
    value = tf.constant(drawn(0)[0])
    loose = cost.loosened([value], tf.constant(0.5), [Layout(value.shape)])[0](value)
    assert np.count_nonzero(loose) == 15 and np.array_equal(loose[loose != 0], value[loose != 0])
    assert eval(repr(cost), {**globals(), "Weights": lambda: None}) == cost
    theta = cost.c_step([tf.cast(drawn(0)[0], tf.float16)], MU)[0]
    assert theta.dtype == tf.float16 and np.count_nonzero(theta) == 2


@pytest.mark.parametrize("cost", SUMS, ids=repr)
class TestSum:
    def solved(self, cost, weights):
        return cost.solve([tf.constant(w) for w in weights], MU, [Layout(w.shape) for w in weights])

    def test_the_distance_falls_from_round_to_round(self, cost, monkeypatch):
        for seed in (1, 3):
            weights = drawn(seed)
            found = []
            for rounds in (1, 2, 4):
                monkeypatch.setattr("lc_keras.costs.sums._ROUNDS", rounds)
                found.append(away(weights, compressed(cost, weights)))
            assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(found))
            assert found[-1] <= away(weights, compressed(cost.parts[0], weights)) * (1 + 1e-6)

    def test_each_part_is_under_its_cost(self, cost):
        weights = drawn(0)
        thetas, distance = self.solved(cost, weights)
        total = [sum(parts) for parts in zip(*thetas, strict=True)]
        np.testing.assert_allclose(flat(compressed(cost, weights)), flat(total), atol=1e-6)
        assert float(distance) ** 2 == pytest.approx(away(weights, total), rel=1e-5)
        for part, theta in zip(cost.parts, thetas, strict=True):
            np.testing.assert_allclose(flat(compressed(part, theta)), flat(theta), atol=1e-5)

    def test_extremes_stay_finite(self, cost):
        for value in ([0, 1e37, -3e37, 1e-42, 1, 2, 3, 4], [0] * 8, [7.5] * 8):
            assert np.isfinite(compressed(cost, [np.float32(value).reshape(4, 2)])).all()


def test_a_sum_of_what_is_there_is_found():
    rng = np.random.default_rng(0)
    value = np.sign(rng.normal(size=(20, 10))).astype("float32")
    value[3, 4], value[10, 2] = 9, -7
    theta = compressed(Sum(Codebook(2), L0Constraint(2)), [value])[0]
    np.testing.assert_allclose(theta, value, atol=1e-5)


def test_a_sum_declares_what_its_parts_do():
    assert Sum(Codebook(2), Grid()).has_budget and not Sum(Codebook(2), L0Penalty(1)).has_budget
    assert repr(Sum(Codebook(2), Grid())) == "Sum(Codebook(size=2), Grid())"
    assert Sum(Codebook(2), Grid()) == Sum(Codebook(2), Grid()) != Sum(Grid(), Codebook(2))
    theta = Sum(L0Penalty(0.5), L0Penalty(0.5)).c_step([np.float32([3, 0.1])], MU)[0]
    assert theta.numpy().tolist() == [3, 0]


# Compiling with XLA takes many seconds.
@pytest.mark.slow
@pytest.mark.parametrize(
    "cost", [L0Constraint(0.3, values=Binary()), Sum(Binary(), L0Constraint(2))], ids=repr
)
def test_compiles(cost):
    assert_compiles(cost, drawn(0), rtol=1e-4)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (lambda: L0Constraint(1, values=16), TypeError, "`values` such as"),
        (lambda: L0Constraint(1, values=L0Constraint(1)), TypeError, "`values` such as"),
        (lambda: L0Constraint(1, Neurons(), values=Grid()), ValueError, "`values` of single weights"),
        (lambda: L0Constraint(1, values=Grid()).check([Layout((3,))]), ValueError, "axis of inputs"),
        (lambda: baselines.MagnitudePruning(L0Constraint(1, values=Grid())), TypeError, "without `values`"),
        (lambda: Sum(Grid()), ValueError, "two compressions or more"),
        (lambda: Sum(Grid(), L0Constraint(1, Neurons())), ValueError, "two compressions or more"),
        (lambda: Sum(Grid(), 3), TypeError, "compressions to add"),
        (lambda: Sum(Grid(), LowRank(4)).check([Layout((3, 3))]), ValueError, "at most 3"),
    ],
)
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()


def test_they_are_compressions():
    assert all(isinstance(cost, Compression) for cost in (*VALUES, *SUMS))
