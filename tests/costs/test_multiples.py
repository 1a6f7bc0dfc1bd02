"""Units that are kept in multiples: exact, feasible, and within the documented bound."""

import itertools

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import Input, Model, layers

import helpers
import lc_keras
from lc_keras import Blocks, L0Constraint, Neurons
from lc_keras.algorithm.tasks import Task, bind_tasks
from lc_keras.baselines import compress_directly
from lc_keras.costs.budgets import Product
from lc_keras.costs.layout import Layout
from lc_keras.costs.multiples import choose_pieces, classes_of, in_pieces, least_pieces
from lc_keras.costs.prices import UnitPrices
from lc_keras.model.macs import macs


def neurons(keep, multiple_of, **options):
    return L0Constraint(keep, Neurons(), multiple_of=multiple_of, **options)


def theta(cost, *weights):
    """The C step, without a graph to trace."""
    weights = list(map(tf.constant, weights))
    maps = cost.maps(weights, tf.constant(1.0), [Layout(w.shape) for w in weights])
    return [solve(w).numpy() for solve, w in zip(maps, weights, strict=True)]


def is_fit(kept, multiple, sizes):
    return all(n % multiple == 0 or n == size for n, size in zip(kept, sizes, strict=True))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(0.125, 4, width=32), min_size=9, max_size=9),
    st.integers(0, 44),
    st.sampled_from([2, 3, 4]),
)
def test_of_units_of_layers_by_themselves_it_is_within_its_bound(magnitudes, budget, multiple):
    """Layers of 5 and of 4 units, which cost 4 and 6 weights each."""
    parts, sizes, prices = np.split(np.float32(magnitudes), [5]), (5, 4), (4, 6)
    weights = [np.eye(price, 1, dtype="float32") * part for price, part in zip(prices, parts, strict=True)]
    found = theta(neurons(budget, multiple, measure="parameters"), *weights)
    kept = [np.count_nonzero(part) for part in found]
    assert np.dot(kept, prices) <= budget and is_fit(kept, multiple, sizes)
    tops = [np.cumsum([0, *np.sort(np.square(part, dtype="float64"))[::-1]]) for part in parts]
    fits = [[n for n in range(size + 1) if is_fit([n], multiple, [size])] for size in sizes]
    feasible = (pair for pair in itertools.product(*fits) if np.dot(pair, prices) <= budget)
    best = max(tops[0][a] + tops[1][b] for a, b in feasible)
    # The bound comes from the next piece of a layer.
    missed = [
        np.diff(top[fit])[fit.index(n)] for top, fit, n in zip(tops, fits, kept, strict=True) if n < fit[-1]
    ]
    energy = sum(np.square(part, dtype="float64").sum() for part in found)
    assert energy >= best - max(missed, default=0) - 1e-5


def test_in_chains_of_layers_it_is_near_the_optimum_and_no_piece_more_would_fit():
    """Dense layers of 3, 7 and 5 units between 4 inputs and 2 outputs, in multiples of 2."""
    sizes, multiple, ends = (3, 7, 5), 2, np.cumsum((3, 7, 5))
    units = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    shapes, reads = [(4, 3), (3, 7), (7, 5)], [None, *units]
    kernels = [
        Layout(shape, units=own, reads=read, count=15)
        for shape, own, read in zip(shapes, units, reads, strict=False)
    ]
    head = Layout((5, 2), units=np.array([-1, -1]), reads=units[2], count=15)
    prices = UnitPrices.of([*kernels, head], "parameters", 1).in_multiples(multiple, [*kernels, head])
    choices = [[n for n in range(1, size + 1) if is_fit([n], multiple, [size])] for size in sizes]
    solve = tf.function(prices.choose, autograph=False)
    generator, ratios = np.random.default_rng(0), []

    def spent(widths):
        return np.dot((4, *widths), (*widths, 2))

    for _ in range(60):
        m, limit = generator.exponential(size=15).astype("float32"), generator.integers(40, 90)
        kept = solve(tf.constant(m), tf.constant(limit, tf.float64)).numpy()
        widths = [int(kept[own].sum()) for own in units]
        assert is_fit(widths, multiple, sizes) and spent(widths) <= limit
        for i, allowed in enumerate(choices):
            wider = [n for n in allowed if n > widths[i]][:1]
            assert all(spent([*widths[:i], n, *widths[i + 1 :]]) > limit for n in wider)
        tops = [np.cumsum([0, *np.sort(np.square(m[own], dtype="float64"))[::-1]]) for own in units]
        feasible = (some for some in itertools.product(*choices) if spent(some) <= limit)
        best = max(sum(top[n] for top, n in zip(tops, some, strict=True)) for some in feasible)
        ratios.append(np.square(m[kept], dtype="float64").sum() / best)
    assert max(ratios) <= 1 + 1e-6 and min(ratios) > 0.95 and np.mean(ratios) > 0.99


def test_it_is_the_optimum_where_all_cost_the_same():
    weights = [np.float32([[9, 8, 1, 1, 7, 1]]), np.float32([[6, 6, 6, 6]])]
    assert [kept.tolist() for kept in theta(neurons(4, 2), *weights)] == [
        [[9, 8, 0, 0, 0, 0]],
        [[6, 6, 0, 0]],
    ]


def test_it_never_cuts_a_piece_where_units_are_equal():
    """The remainder at the end of a layer is smaller than a piece, and as good for its size."""
    weights = np.full((3, 10), 0.1, "float32"), np.full((7, 13), 0.1 * (3 / 7) ** 0.5, "float32")
    for keep in range(24):
        kept = [part.any(axis=0).sum() for part in theta(neurons(keep, 4), *weights)]
        assert sum(kept) <= keep and is_fit(kept, 4, (10, 13))


@pytest.mark.parametrize(
    "multiple, count, magnitude, price",
    [(7, 20, 2.80586648, 27), (6, 15, 1.85000145, 32), (5, 14, 2.78219223, 21)],
)
def test_a_whole_piece_goes_before_what_is_left_over(multiple, count, magnitude, price):
    """Rounding alone would put the last piece first."""
    units = np.arange(count)
    classes = classes_of([Layout((1, count), units=units, count=count)], multiple)
    cost = in_pieces(Product(price, np.ones(count, int), np.zeros(count, int), 0, 1), classes)
    magnitudes = tf.fill([count], np.float32(magnitude))
    kept = choose_pieces(magnitudes, [cost], multiple * price, least_pieces([], classes), classes)
    assert np.count_nonzero(kept) == multiple


def test_a_unit_with_a_place_in_each_gate_is_one_channel_and_a_head_many():
    gates = Layout((3, 8), units=np.tile(np.arange(2), 4), count=4, channels=0.25)
    head = Layout((3, 2, 6), (1,), units=np.array([2, 3]), count=4, channels=6)
    first, second = sorted(classes_of([gates, head], 2), key=lambda found: found.units[0])
    assert first.widths.tolist() == [2] and second.widths.tolist() == [1, 1]


def test_channels_that_always_stay_are_made_up_for():
    (found,) = classes_of([Layout((1, 8), units=np.array([-1, -1, -1, 0, 1, 2, 3, 4]), count=5)], 4)
    assert found.widths.tolist() == [1, 4] and found.stays


def net():
    """Ties by an addition, groups, a depthwise filter, a normalisation over two layers, gates and heads."""
    inputs = Input((6, 6, 3))
    x = layers.Conv2D(24, 3, padding="same", use_bias=False)(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(x))
    y = layers.Conv2D(24, 3, padding="same", groups=12, name="grouped")(x)
    x = layers.Add()([layers.Conv2D(24, 1, name="shortcut")(x), y])
    x = layers.DepthwiseConv2D(3, depth_multiplier=2)(x)
    x = layers.Concatenate()([x, layers.Conv2D(10, 1, name="beside")(x)])
    x = layers.BatchNormalization(name="over_both")(x)
    x = layers.Reshape((16, 58))(x)
    x = layers.LSTM(20, return_sequences=True)(layers.Dense(17)(x))
    x = layers.MultiHeadAttention(6, 4, value_dim=2)(x, x)
    return helpers.randomized(Model(inputs, layers.Dense(3)(layers.Flatten()(x))))


@pytest.mark.parametrize("measure", [pytest.param("parameters", marks=pytest.mark.slow), "macs"])
def test_the_layers_of_a_smaller_net_are_multiples(measure):
    model = net()
    cost = neurons(0.4, 8, measure=measure, keep_at_least=1)
    (part,) = bind_tasks([Task(cost)], model)
    compress_directly(model, cost)
    small = lc_keras.shrink(model)
    was = helpers.widths(model)
    # A layer of 10 units that lies beside another keeps 8 or all.
    beside = ("concatenate", "over_both", "reshape", "flatten")
    for name, width in helpers.widths(small).items():
        assert width % 8 == 0 or width == was[name] or name.startswith(beside), name
    attention = next(layer for layer in small.layers if "attention" in layer.name)
    assert attention.num_heads in (4, 6)  # 4 × 4 and 4 × 2 channels
    helpers.assert_same_outputs(model, small)
    spent = sum(np.prod(v.shape) for v in small.trainable_variables)
    if measure == "macs":
        spent = sum(kernel.dense for kernel in macs(small).kernels)
    assert spent <= cost.budget(part.layouts) <= 1.6 * spent


@pytest.mark.parametrize("measure", ["groups", "bytes"])
def test_a_budget_is_never_exceeded(measure):
    model = helpers.sequential((5,), layers.Dense(12), layers.Dense(9), layers.Dense(2))
    for keep in (0.4, 0.6, 0.9):
        cost = neurons(keep, 4, measure=measure, keep_at_least=1)
        (part,) = bind_tasks([Task(cost)], model)
        values = [tf.constant(v.numpy()) for v in part.variables]
        maps = cost.maps(values, tf.constant(1.0), part.layouts)
        kept = [solve(value).numpy() for solve, value in zip(maps, values, strict=True)]
        first, second = (kept[i].any(axis=0).sum() for i in (0, 2))
        assert is_fit((first, second), 4, (12, 9))
        spent = (
            4 * (6 * first + (first + 1) * second + (second + 1) * 2)
            if measure == "bytes"
            else first + second
        )
        assert 0.6 * cost.budget(part.layouts) <= spent <= cost.budget(part.layouts)


def test_it_works_in_a_compiled_graph():
    step = tf.function(lambda w: neurons(3, 2).c_step([w], 1.0), jit_compile=True)
    assert step(tf.constant([[3.0, 1.0, 2.0, 4.0]]))[0].numpy().tolist() == [[3, 0, 0, 4]]


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: L0Constraint(0.5, multiple_of=8), ValueError, "Neurons"),
        (lambda: L0Constraint(0.5, Blocks((2, 2)), multiple_of=8), ValueError, "Neurons"),
        (lambda: neurons(0.5, 0), ValueError, "multiple_of=0"),
        (lambda: neurons(0.5, 2.5), ValueError, "multiple_of=2.5"),
        (lambda: neurons(0.5, "8"), TypeError, "multiple_of"),
    ],
)
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_a_budget_that_holds_no_piece_of_each_layer_is_an_error():
    with pytest.raises(ValueError, match="at least 8"):
        compress_directly(helpers.net(), neurons(4, 8))
