"""Units that flow through operations of `keras.ops` in functional graphs."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import lc_keras
from helpers import assert_same_outputs, kill, randomized, widths
from lc_keras.shrinking.rebuilding import shrink


def between(operation, shape=(6, 6, 2), units=8, kind=layers.Conv2D, size=(3,)):
    """A layer "a" of eight units, of which three are dead, an operation, and a layer behind it."""
    x = keras.Input(shape)
    a = kind(units, *size, name="a")
    y = operation(a(x))
    outputs = [layers.Dense(2)(layers.Flatten()(part)) for part in keras.tree.flatten(y)]
    model = randomized(keras.Model(x, outputs))
    kill(a, [1, 2, 5])
    return model


THROUGH = {
    "relu": keras.activations.relu,
    "number": lambda x: 2.0 * x - 1,
    "power": lambda x: x**2 / 3,
    "clip": lambda x: ops.clip(x, -1, 1),
    "where": lambda x: ops.where(x > 0, x, 0.1 * x),
    "cast": lambda x: ops.cast(ops.cast(x, "float64"), "float32"),
    "swish": lambda x: x * ops.sigmoid(x),
    "mean": lambda x: ops.mean(x, axis=(1, 2)),
    "kept": lambda x: x * ops.max(x, axis=[1, 2], keepdims=True),
    "sum": lambda x: ops.sum(x, axis=1),
    "deviation": lambda x: ops.std(x, axis=(-3, -2)),
    "softmax": lambda x: ops.softmax(x, axis=1),
    "cumulated": lambda x: ops.cumsum(x, axis=1),
    "row": lambda x: x[:, 0],
    "pixels": lambda x: x[:, 1:, ::2, :],
    "new axis": lambda x: x[..., None, :],
    "transposed": lambda x: ops.transpose(x, (0, 2, 1, 3)),
    "first": lambda x: ops.moveaxis(x, -1, 1),
    "squeezed": lambda x: ops.squeeze(ops.expand_dims(x, 1), 1),
    "flipped": lambda x: ops.flip(x, axis=1),
    "repeated": lambda x: ops.repeat(x, 2, axis=-1),
    "tiled": lambda x: ops.tile(x, (1, 1, 1, 2)),
    "flat": lambda x: ops.reshape(x, (-1, 16 * 8)),
    "stacked": lambda x: ops.stack([x, ops.relu(x)], axis=1),
    "joined": lambda x: ops.concatenate([x, ops.relu(x)], axis=-1),
    "halves": lambda x: ops.split(x, 2, axis=-1),
    "parts": lambda x: ops.split(x, (2, 6), axis=3),
    "rows": lambda x: ops.split(x, 2, axis=1),
    "slice": lambda x: x[..., 1:6],
    "padded": lambda x: ops.pad(x, ((0, 0), (1, 1), (2, 0), (0, 0))),
    "pooled": lambda x: ops.max_pool(ops.average_pool(x, 2, 1), 2, 1),
    "resized": lambda x: ops.image.resize(x, (7, 3)),
    "both": lambda x: x[..., :4] * ops.sigmoid(x[:, :, :, 4:]),
}
# Of eight units.
KEPT = {"both": 4, "slice": 2, "softmax": 8}


@pytest.mark.parametrize("name", THROUGH)
def test_units_go_through(name, tmp_path):
    model = between(THROUGH[name])
    if name == "both":
        kill(model.get_layer("a"), [6])
    small = shrink(model)
    assert widths(small)["a"] == KEPT.get(name, 5)
    assert_same_outputs(model, small)
    if name in ("both", "parts", "flat"):
        small.save(tmp_path / "small.keras")
        assert_same_outputs(model, keras.saving.load_model(tmp_path / "small.keras"))


def test_a_slice_without_units_that_live_keeps_one():
    model = between(lambda x: x[..., 1:3])
    small = shrink(model)
    assert_same_outputs(model, small)


STAY = {
    "reversed": lambda x: x[..., ::-1],
    "every other": lambda x: x[..., ::2],
    "one": lambda x: x[..., 3],
    "mean": lambda x: ops.mean(x, axis=-1),
    "of all": lambda x: x / ops.max(x),
    "softmax": lambda x: ops.softmax(x, axis=-1),
    "array": lambda x: x * np.arange(8, dtype="float32"),
    "padded": lambda x: ops.pad(x, ((0, 0), (0, 0), (0, 0), (1, 1))),
    "padded images": lambda x: ops.image.resize(x, (7, 3), pad_to_aspect_ratio=True, fill_value=1.0),
    "rolled": lambda x: ops.roll(x, 1, axis=-1),
    "product": lambda x: ops.matmul(x, np.ones((8, 3), "float32")),
    "normalized": lambda x: ops.normalize(x, axis=-1),
}


@pytest.mark.parametrize("name", STAY)
def test_units_stay_where_an_operation_is_across_them(name):
    model = between(STAY[name])
    small = shrink(model)
    assert widths(small)["a"] == 8
    assert_same_outputs(model, small)


def shuffled(x, groups=2):
    height, width, units = x.shape[1:]
    x = ops.reshape(x, (-1, height, width, groups, units // groups))
    return ops.reshape(ops.transpose(x, (0, 1, 2, 4, 3)), (-1, height, width, units))


TOGETHER = {
    "shuffle": (shuffled, [1, 2, 5], 6),  # both 1 and 5 are dead, but not both 2 and 6
    "depth to space": (lambda x: ops.depth_to_space(x, 2), [0, 2, 4, 6], 4),
    "spread": (lambda x: ops.reshape(x, (-1, 4, 4, 2, 4)), [2, 6], 6),
    "layer": (layers.Reshape((4, 4, 2, 4)), [2, 6], 6),
}


@pytest.mark.parametrize("name", TOGETHER)
def test_units_that_come_to_lie_together_go_together(name):
    operation, units, left = TOGETHER[name]
    model = between(operation)
    a = model.get_layer("a")
    randomized(model)
    kill(a, units)
    small = shrink(model)
    assert widths(small)["a"] == left
    assert_same_outputs(model, small)
    randomized(model)
    kill(a, [0])
    assert widths(shrink(model))["a"] == 8


def test_units_of_an_open_length():
    x = keras.Input((None, 3))
    a = layers.Dense(8)
    y = ops.concatenate([a(x)[:, 1:], a(x)[:, :1]], axis=1)
    model = randomized(keras.Model(x, layers.Dense(2)(ops.mean(ops.transpose(y, (1, 0, 2)), axis=0))))
    kill(a, [0, 7])
    small = shrink(model)
    assert small.get_layer(a.name).units == 6
    data = np.random.default_rng(0).normal(size=(2, 5, 3)).astype("float32")
    np.testing.assert_allclose(small(data), model(data), rtol=1e-4, atol=1e-5)


def test_a_residual_sum_and_a_gate():
    x = keras.Input((6, 6, 2))
    trunk, inner = layers.Conv2D(8, 3, padding="same"), layers.Conv2D(8, 3, padding="same")
    squeeze = layers.Dense(8, "sigmoid")
    y = trunk(x)
    y = y + inner(keras.activations.gelu(y))
    gate = squeeze(ops.mean(y, axis=(1, 2)))
    model = randomized(keras.Model(x, layers.Conv2D(2, 1)(y * gate[:, None, None, :])))
    for layer in (trunk, inner):
        kill(layer, [1, 6])
    kill(trunk, [0])
    small = shrink(model)
    assert [small.get_layer(n.name).output.shape[-1] for n in (trunk, inner, squeeze)] == [6, 6, 6]
    assert_same_outputs(model, small)


@pytest.mark.parametrize("add", [lambda x, y: x + y, lambda x, y: layers.Add()([x, y])], ids=["+", "Add"])
def test_a_residual_block_whose_inside_is_dead_goes(add):
    x = keras.Input((6, 6, 2))
    trunk, up, down = (layers.Conv2D(8, 3, padding="same", name=n) for n in ("trunk", "up", "down"))
    norm = layers.BatchNormalization(name="norm")
    y = trunk(x)
    y = add(y, norm(down(layers.ReLU()(up(y)))))
    model = randomized(keras.Model(x, layers.Conv2D(2, 1)(y)))
    norm.moving_mean.assign(np.zeros(8))
    for layer in (up, down, norm):
        kill(layer, range(8))
    small = shrink(model)
    assert {layer.name for layer in small.layers}.isdisjoint({"up", "down", "norm"})
    assert small.get_layer("trunk").filters == 8
    assert_same_outputs(model, small)
    rows = {row.name: row.kept for row in lc_keras.shrink_report(model).rows}
    assert rows["trunk"] == 8 and rows["up"] == rows["down"] == 0
    norm.beta.assign(np.arange(8))
    assert_same_outputs(model, shrink(model))


def test_a_sum_that_is_shared_is_no_block():
    x, add = keras.Input((4,)), layers.Add()
    one, two, three = (layers.Dense(4) for _ in range(3))
    model = randomized(keras.Model(x, add([one(x), add([two(x), three(x)])])))
    kill(three, range(4))
    assert_same_outputs(model, shrink(model))


@pytest.mark.parametrize(
    "activation, goes",
    [(lambda x: x * ops.tanh(x), True), (lambda x: x - ops.mean(x, axis=-1, keepdims=True), False)],
    ids=["elementwise", "across"],
)
def test_an_activation_of_the_users_own_is_looked_into(activation, goes):
    x = keras.Input((4,))
    a = layers.Dense(8, activation)
    model = randomized(keras.Model(x, layers.Dense(2)(a(x))))
    kill(a, [0, 3])
    small = shrink(model)
    assert small.get_layer(a.name).units == (6 if goes else 8)
    assert_same_outputs(model, small)
