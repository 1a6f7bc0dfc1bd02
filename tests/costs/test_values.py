"""Costs that let each weight have one of a few values, compared with optima found in another way."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras.costs import Binary, Codebook, Grid, L0Constraint, Ternary, kmeans
from lc_keras.costs.layout import Layout
from tensors import assert_compiles, compressed, draw, flat

MU = 1.0
COSTS = [Codebook(3), Codebook(values=[-1, 0, 0.25, 2]), Binary(), Ternary(), Grid(8), Grid(3, "tensor")]
EQUIVARIANT = [Codebook(3), Binary(), Ternary(), Grid(3, "tensor")]
SHAPES = [(5, 4), (2, 3, 2)]


def drawn(seed):
    numbers = draw(seed, 32)
    return [numbers[:20].reshape(SHAPES[0]), numbers[20:].reshape(SHAPES[1])]


def error(v, theta):
    return np.sum((flat(v) - flat(theta)) ** 2)


def best_error(v, k):
    """The least sum of squares of k parts of sorted numbers, by dynamic programming over all of them."""
    v = np.sort(flat(v))
    sums, squares = (np.concatenate([[0], np.cumsum(x)]) for x in (v, v**2))

    def within(a, b):
        return squares[b] - squares[a] - (sums[b] - sums[a]) ** 2 / (b - a) if b > a else 0.0

    best = np.array([0.0] + [np.inf] * len(v))
    for _ in range(k):
        best = np.array([min(best[a] + within(a, b) for a in range(b + 1)) for b in range(len(v) + 1)])
    return max(best[-1], 0.0)


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_a_codebook_is_the_best_one(k):
    cost = Codebook(k)
    for seed in range(8):
        theta = compressed(cost, drawn(seed))
        assert len(np.unique(flat(theta))) <= k
        assert error(drawn(seed), theta) <= 1.001 * best_error(drawn(seed), k) + 1e-10


@pytest.mark.parametrize("k", [16, 256])
def test_a_codebook_of_many_numbers_has_the_error_that_is_known(k):
    """For a Gaussian, 0.009497 of its variance with 16 values (Max, 1960), √3 π/2 k⁻² with many."""
    v = tf.random.stateless_normal([200_000], [0, 1])
    known = 0.009497 if k == 16 else np.sqrt(3) * np.pi / 2 / k**2
    assert float(tf.reduce_mean((compressed(Codebook(k), [v])[0] - v) ** 2)) == pytest.approx(known, rel=0.04)


@pytest.mark.parametrize("k", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_fewer_distinct_numbers_than_codes_stay_as_they_are(k):
    v = np.float32([0.1, -0.7, 0.1, 1e-3, 3.3, -0.7, 1e-3])
    for given in (v, v[:1], np.full(9, 0.1, np.float32)):
        assert np.array_equal(compressed(Codebook(k), [given])[0], given)


def test_a_codebook_may_have_any_number_of_values():
    v = draw(0, 6000)
    few, many = (compressed(Codebook(size), [v]) for size in (4096, 4099))
    assert len(np.unique(many[0])) <= 4099 and error([v], many) <= 1.1 * error([v], few)


def test_given_values_are_taken_as_they_are():
    cost = Codebook(values=[2, 0.25, -1, 0, 0.25])
    assert cost.values == (-1.0, 0.0, 0.25, 2.0)
    v = np.float32([-9, -0.51, -0.49, 0.12, 0.13, 1.2, 1.1, 1e38])
    assert compressed(cost, [v])[0].numpy().tolist() == [-1, -1, 0, 0, 0.25, 2, 0.25, 2]
    powers = Codebook(values=[sign * 2.0**-i for i in range(40) for sign in (1, -1)])
    theta = powers.c_step([np.float32([0.3, -1e-9, 2e-12])], MU)[0].numpy()
    assert theta.tolist() == [0.25, -(2.0**-30), 2.0**-39]


def test_codes_that_share_a_place_of_the_table_are_told_apart():
    codes = tf.constant([-1.0, 1e-6, 2e-6, 3e-6, 1.0])
    v = tf.constant([1.4e-6, 1.6e-6, 2.4e-6, 2.6e-6, 0.4, 0.6])
    assert kmeans.nearest_code(codes)(v).numpy().tolist() == [1, 2, 2, 3, 3, 4]


def test_one_search_and_one_table_serve_a_whole_c_step():
    cost = L0Constraint(5, values=Codebook(3))
    step = tf.function(lambda v: cost.c_step([v, v + 1], MU), autograph=False)
    made = step.get_concrete_function(tf.TensorSpec([4, 5])).graph.as_graph_def()
    names = [function.signature.name for function in made.library.function]
    # The table serves the weights and the chunks in which they are averaged.
    assert [sum(part in name for name in names) for part in ("best_codes", "_index")] == [1, 2]


def test_binary_is_the_mean_of_the_magnitudes():
    for seed in range(4):
        v, theta = drawn(seed), flat(compressed(Binary(), drawn(seed)))
        np.testing.assert_allclose(np.abs(theta), np.abs(flat(v)).mean(), rtol=1e-6)
        assert np.all(theta * flat(v) >= 0)


def test_ternary_is_the_best_of_all_thresholds():
    for seed in range(12):
        v, theta = flat(drawn(seed)), flat(compressed(Ternary(), drawn(seed)))
        m = np.sort(np.abs(v))[::-1]
        best = np.sum(v**2) - np.max(np.cumsum(m) ** 2 / np.arange(1, len(m) + 1))
        assert np.sum((v - theta) ** 2) <= best + 1e-5 * np.sum(v**2)
        assert len(np.unique(np.abs(theta))) <= 2


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_grid_is_near_the_best_step_of_each_unit(bits):
    most, cost = 2 ** (bits - 1) - 1, Grid(bits)
    for seed in (0, 1, 3):  # whole numbers lie on grids of their own
        v = draw(seed, 300).reshape(100, 3)
        steps = np.abs(v).max(0) / most * np.linspace(0.15, 1, 400)[:, None]
        q = np.clip(np.round(v / steps[:, None]), -most, most)
        best = ((v - q * steps[:, None]) ** 2).sum(1).min(0).sum()
        assert error([v], compressed(cost, [v])) <= 1.1 * best + 1e-10


@pytest.mark.parametrize("bits", [4, 8])
def test_a_grid_is_that_of_keras_and_exact(bits):
    most = 2 ** (bits - 1) - 1
    theta = compressed(Grid(bits), [draw(0, 600).reshape(100, 6)])[0].numpy()
    q, scale = keras.quantizers.abs_max_quantize(theta, axis=0, value_range=(-most, most))
    step = np.abs(theta).max(0) / np.float32(most)
    assert np.array_equal(np.float32(q) * step, theta) and np.all(np.abs(q).max(0) == most)
    np.testing.assert_allclose(np.float32(q) / scale, theta, rtol=1e-5)


def test_a_grid_has_one_zero():
    theta = compressed(Grid(2, "tensor"), [np.float32([[1, -0.1, 0.1, -1]])])[0].numpy()
    assert np.array_equal(np.signbit(theta), theta < 0)


@pytest.mark.parametrize("power", [-90, 70, 125])
def test_a_grid_is_the_same_for_numbers_of_any_size(power):
    v = draw(0, 20).reshape(5, 4)
    scaled = compressed(Grid(2), [np.ldexp(v, power)])[0]
    assert np.array_equal(scaled, np.ldexp(compressed(Grid(2), [v])[0], power))


def test_a_unit_of_zeros_stays_so_and_has_no_part_in_others():
    v = np.float32([[0, 3, 100], [0, -1, 50]])
    theta = compressed(Grid(2), [v])[0].numpy()
    assert not theta[:, 0].any() and theta[0, 1] <= 3 and theta[0, 2] > 50
    maps = Grid(2).maps([tf.constant(v.T.copy())], MU, [Layout((3, 2), (0,))])
    assert np.array_equal(maps[0](tf.constant(v.T.copy())), theta.T)


@pytest.mark.parametrize("cost", COSTS, ids=repr)
class TestAll:
    def test_once_more_changes_no_bit(self, cost):
        for seed in range(4):
            once = compressed(cost, drawn(seed))
            assert all(map(np.array_equal, once, compressed(cost, once)))

    def test_values_of_all_kinds_stay_finite(self, cost):
        extreme = np.float32([0, 1e-42, -1e-42, 1e38, -1e38, 3e38, 1, -1e-20, 0, 3e-42, 2, 3])
        for v in (extreme, np.zeros(12, np.float32), np.full(12, -1e-42, np.float32), extreme[[3] * 12]):
            assert np.isfinite(flat(compressed(cost, [v.reshape(4, 3)]))).all()

    def test_one_weight(self, cost):
        theta = compressed(cost, [np.full((1, 1), 0.25, np.float32)])[0].numpy()
        np.testing.assert_allclose(theta, 0.25, rtol=2e-5)

    @pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
    def test_other_types(self, cost, dtype):
        v = [tf.cast(x, dtype) for x in drawn(0)]
        theta = compressed(cost, v)
        assert [t.dtype for t in theta] == [x.dtype for x in v]
        wanted = compressed(cost, [tf.cast(x, tf.float32) for x in v])
        tolerance = {"float16": 1e-3, "bfloat16": 1e-2, "float64": 1e-5}[dtype]
        np.testing.assert_allclose(flat(theta), flat(wanted), rtol=tolerance, atol=tolerance)

    def test_declares_a_budget(self, cost):
        assert cost.has_budget and not (cost.keeps_values or cost.can_loosen)
        assert eval(repr(cost)) == cost == type(cost)(**cost.get_config())


@pytest.mark.parametrize("cost", EQUIVARIANT, ids=repr)
def test_order_and_signs_do_not_matter(cost):
    v, rng = draw(0, 40), np.random.default_rng(0)
    order, sign = rng.permutation(40), -1.0
    theta = compressed(cost, [v])[0].numpy()
    np.testing.assert_allclose(compressed(cost, [sign * v[order]])[0], sign * theta[order], rtol=1e-5)
    np.testing.assert_allclose(compressed(cost, [4 * v])[0], 4 * theta, rtol=1e-5)


# Compiling with XLA takes seconds.
@pytest.mark.parametrize("cost", [pytest.param(Codebook(2), marks=pytest.mark.slow), Grid(4)], ids=repr)
def test_compiles(cost):
    assert_compiles(cost, drawn(1), rtol=1e-5)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (lambda: Codebook(), ValueError, "`size` or `values`"),
        (lambda: Codebook(2, [1.0]), ValueError, "`size` or `values`"),
        (lambda: Codebook(0), ValueError, "`size` to be a whole number ≥ 1"),
        (lambda: Codebook(2.5), ValueError, "`size` to be a whole number ≥ 1"),
        (lambda: Codebook("2"), TypeError, "`size` to be a whole number ≥ 1"),
        (lambda: Codebook(2**16 + 1), ValueError, "at most 65536"),
        (lambda: Codebook(values=[]), ValueError, "`values` to be one or more numbers"),
        (lambda: Codebook(values=[1, np.nan]), ValueError, "`values` to be one or more numbers, finite"),
        (lambda: Codebook(values=[1e300]), ValueError, "`values` to be one or more numbers, finite"),
        (lambda: Codebook(values=[10**400]), ValueError, "`values` to be one or more numbers, finite"),
        (lambda: Codebook(values="12"), TypeError, "`values` to be a list of numbers"),
        (lambda: Codebook(values=[1, None]), TypeError, "`values` to be a list of numbers"),
        (lambda: Grid(1), ValueError, "`bits` to be a whole number from 2 to 8"),
        (lambda: Grid(True), ValueError, "`bits` to be a whole number from 2 to 8"),
        (lambda: Grid(8, "row"), ValueError, "`per` to be"),
        (lambda: Grid(8).c_step([np.ones(3, np.float32)], MU), ValueError, "axis of inputs"),
        (lambda: Codebook(2).c_step([np.float32([1, np.inf])], MU), ValueError, "finite"),
    ],
)  # fmt: skip
def test_bad_input(wrong, error, message):
    with pytest.raises(error, match=message):
        wrong()
