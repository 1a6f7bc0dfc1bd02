"""Low rank, and the rank that pays, compared with singular values and with all ranks one by one."""

import numpy as np
import pytest
import tensorflow as tf

from lc_keras.costs import LowRank, RankSelection
from lc_keras.costs.layout import Layout
from tensors import assert_compiles

MU = 2.0


def compressed(cost, value, mu=MU, **layout):
    layout = Layout(value.shape, **layout)
    cost.check([layout])
    return cost.maps([tf.constant(value)], tf.constant(mu), [layout])[0](tf.constant(value)).numpy()


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def tail(matrix, rank):
    return np.sum(np.linalg.svd(matrix.astype("float64"), compute_uv=False)[rank:] ** 2)


@pytest.mark.parametrize("shape", [(7, 4), (4, 7), (5, 5), (1, 3), (6, 1)])
def test_nothing_of_that_rank_is_nearer(shape):
    value = drawn(*shape)
    for rank in range(1, min(shape) + 1):
        theta = compressed(LowRank(rank), value)
        assert np.linalg.matrix_rank(theta, tol=1e-5) <= rank
        assert np.sum((value - theta.astype("float64")) ** 2) == pytest.approx(
            tail(value, rank), rel=1e-5, abs=1e-8
        )
        np.testing.assert_allclose(compressed(LowRank(rank), theta), theta, atol=1e-6)
    assert np.array_equal(theta, value)


def test_a_convolution_is_seen_as_two_only_if_these_have_fewer_weights():
    value = drawn(3, 3, 3, 32)
    for rank in range(9, 12):  # from 9 on, any kernel is two convolutions along an axis each
        theta = compressed(LowRank(rank), value)
        assert np.linalg.matrix_rank(theta.reshape(27, 32), tol=1e-4) == rank
    turned = compressed(LowRank(8), value).transpose(0, 2, 1, 3).reshape(9, 96)
    assert np.linalg.matrix_rank(turned, tol=1e-4) == 8


def test_a_convolution_is_seen_in_both_ways_and_the_nearer_is_taken():
    along_axes = np.einsum("hc,wo->hwco", drawn(3, 4), drawn(3, 5, seed=1))
    by_filters = np.einsum("hwc,o->hwco", drawn(3, 3, 4), drawn(5, seed=1))
    for value in (along_axes, by_filters):
        np.testing.assert_allclose(compressed(LowRank(1), value), value, atol=1e-5)
    value = drawn(3, 3, 4, 5)
    away = np.sum((value - compressed(LowRank(2), value)) ** 2)
    turned = value.transpose(0, 2, 1, 3)
    assert away == pytest.approx(
        min(tail(value.reshape(36, 5), 2), tail(turned.reshape(12, 15), 2)), rel=1e-5
    )


def test_rotations_and_output_axes():
    value = drawn(6, 4)
    turn = np.linalg.qr(drawn(6, 6, seed=1))[0]
    np.testing.assert_allclose(
        compressed(LowRank(2), turn @ value), turn @ compressed(LowRank(2), value), atol=1e-5
    )
    theta = compressed(LowRank(2), value.T.copy(), axes=(0,))
    np.testing.assert_allclose(theta, compressed(LowRank(2), value).T, atol=1e-6)


@pytest.mark.parametrize("measure, each", [("parameters", 1), ("macs", 9)])
def test_the_rank_that_pays_is_the_best_of_all(measure, each):
    value = drawn(20, 9)
    kept = set()
    for alpha in (1e-3, 0.05, 0.2, 0.5, 1.0, 5.0):
        theta = compressed(RankSelection(alpha / each, measure), value, macs=9)
        costs = [alpha * min(29 * r, 180) + MU / 2 * tail(value, r) for r in range(10)]
        rank = int(np.argmin(costs))
        assert np.linalg.matrix_rank(theta, tol=1e-4) == rank
        assert np.sum((value - theta) ** 2) == pytest.approx(tail(value, rank), rel=1e-5, abs=1e-8)
        kept.add(rank)
    assert len(kept) > 2


@pytest.mark.parametrize("two", [0.5, 1.0, 50.0])
def test_the_rank_that_pays_in_time_is_the_best_of_all(two):
    value, whole, each = drawn(20, 9) * 0.7 ** np.arange(9, dtype="float32"), 9.0, 1.25
    kept = set()
    for alpha in (1e-3, 0.3, 1.0, 4.0, 10.0, 1e3):
        cost = RankSelection(alpha, "milliseconds")
        theta = compressed(cost, value, by_rank=((whole, two, each),))
        # From rank 7 on two layers have more weights than one.
        times = [0.0, *(two + each * r if r < 7 else whole for r in range(1, 10))]
        objective = [alpha * time + MU / 2 * tail(value, r) for r, time in enumerate(times)]
        assert np.linalg.matrix_rank(theta, tol=1e-4) == np.argmin(objective)
        kept.add(int(np.argmin(objective)))
    # Where two layers are slower than one, no rank in between pays.
    assert kept == {0, 9} if two == 50 else len(kept) > 2
    assert np.array_equal(compressed(RankSelection(1.0, "milliseconds"), value, by_rank=()), value)


@pytest.mark.parametrize("fast", [0, 1])
def test_a_convolution_becomes_the_two_layers_that_are_faster(fast):
    value = drawn(3, 3, 4, 5)
    matrices = [value.reshape(36, 5), value.transpose(0, 2, 1, 3).reshape(12, 15)]
    times = [(60.0, 50.0, 9.0)] * 2
    times[fast] = (60.0, 1.0, 4.0)
    theta = compressed(RankSelection(1.0, "milliseconds"), value, by_rank=tuple(times))
    # All ranks whose factors are smaller, in both ways.
    found = [
        (two + each * r + MU / 2 * tail(matrix, r), way, tail(matrix, r))
        for way, (matrix, (_, two, each)) in enumerate(zip(matrices, times, strict=True))
        for r in range(1, 5 if way == 0 else 7)
    ]
    least, way, away = min(found)
    assert way == fast and least < 60
    assert np.sum((value - theta) ** 2) == pytest.approx(away, rel=1e-5)


def test_a_larger_mu_keeps_a_larger_rank_and_no_price_keeps_all_bit_for_bit():
    value = drawn(20, 9)
    ranks = [np.linalg.matrix_rank(compressed(RankSelection(1.0), value, mu=mu), 1e-4) for mu in (1, 3, 30)]
    assert ranks == sorted(ranks) and ranks[0] < ranks[-1]
    assert np.array_equal(compressed(RankSelection(0.0), value), value)


@pytest.mark.parametrize("cost", [LowRank(2), RankSelection(0.05)], ids=repr)
class TestBoth:
    def test_extremes_stay_finite(self, cost):
        for value in (np.zeros((4, 3)), np.full((4, 3), 3e38), np.full((4, 3), 1e-42), np.eye(4, 3) * 1e20):
            assert np.isfinite(compressed(cost, value.astype("float32"))).all()

    def test_other_types(self, cost):
        value = tf.cast(drawn(8, 5), "float16")
        theta = cost.c_step([value], MU)[0]
        assert theta.dtype == "float16"
        np.testing.assert_allclose(theta, compressed(cost, value.numpy().astype("float32")), atol=1e-2)

    def test_compiles(self, cost):
        assert_compiles(cost, [drawn(8, 5)], MU, atol=1e-5)

    def test_values(self, cost):
        assert eval(repr(cost)) == cost == type(cost)(**cost.get_config())


def test_what_they_declare():
    assert LowRank(1).has_budget and not RankSelection(1).has_budget
    assert RankSelection(1, "macs").needs_macs and not RankSelection(1).needs_macs
    assert RankSelection(1, "milliseconds").needs_time == "ranks" and not RankSelection(1).needs_time


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (lambda: LowRank(0), ValueError, "`rank` to be a whole number"),
        (lambda: LowRank("2"), TypeError, "`rank` to be a whole number"),
        (lambda: LowRank(4).c_step([drawn(9, 3)], MU), ValueError, "at most 3.* 9 × 3.*Received: 4"),
        (lambda: LowRank(1).c_step([drawn(9)], MU), ValueError, "axis of inputs"),
        (lambda: LowRank(1).c_step([np.full((3, 2), np.nan, np.float32)], MU), ValueError, "to be finite"),
        (lambda: RankSelection(-1.0), ValueError, "`alpha` to be a number ≥ 0"),
        (lambda: RankSelection(1.0, "ms"), ValueError, '`measure` to be "parameters" or "macs"'),
        (lambda: RankSelection(1.0, "macs").c_step([drawn(9, 3)], MU), ValueError, "multiply-adds are known"),
        (lambda: RankSelection(1.0, "milliseconds").c_step([drawn(9, 3)], MU), ValueError, "has fitted"),
    ],
)
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
