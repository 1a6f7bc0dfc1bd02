"""Layers that are made of layers: units inside them, and what keeps them closed."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import lc_keras
from helpers import assert_same_outputs, kill, randomized
from lc_keras import L0Constraint, Neurons, Task
from lc_keras.baselines import compress_directly
from lc_keras.model import Graph
from lc_keras.model.macs import macs
from lc_keras.shrinking.rebuilding import shrink


@keras.saving.register_keras_serializable("test_opening")
class Block(layers.Layer):
    """Two dense layers around a residual sum."""

    def __init__(self, units=8, **options):
        super().__init__(**options)
        self.units, self.supports_masking = units, True

    def build(self, shape):
        options = {"dtype": self.dtype_policy}
        self.norm = layers.LayerNormalization(name="norm", **options)
        self.up = layers.Dense(self.units, "relu", name="up", **options)
        self.down = layers.Dense(shape[-1], name="down", **options)
        self.dropout = layers.Dropout(0.5, **options)
        self.norm.build(shape)
        self.up.build(shape)
        self.down.build((*shape[:-1], self.units))

    def call(self, x, training=None):
        y = self.dropout(self.up(self.norm(x)), training=training)
        return x + self.down(y)

    def get_config(self):
        return super().get_config() | {"units": self.units}


class Nested(layers.Layer):
    """Has no config, and a block and a model inside."""

    def __init__(self):
        super().__init__(name="nested")
        self.block = Block(name="block")
        self.stack = keras.Sequential([keras.Input((6,)), layers.Dense(5, name="inner"), layers.Dense(6)])

    def build(self, shape):
        self.block.build(shape)

    def call(self, x):
        return self.stack(self.block(x)) * 2.0

    def get_config(self):
        raise NotImplementedError


def around(*blocks, shape=(6,)):
    x = keras.Input(shape)
    y = layers.Dense(6, name="before")(x)
    for block in blocks:
        y = block(y)
    return randomized(keras.Model(x, layers.Dense(2, name="head")(y)))


def test_units_in_a_layer_made_of_layers_go(tmp_path):
    block, other = Block(name="block"), Block(name="other")
    model = around(block, other)
    kill(block.up, [0, 2, 3])
    config, nodes = model.get_config(), [len(layer._inbound_nodes) for layer in (block.up, block, block.norm)]
    small = shrink(model)
    assert small.get_layer("block_up").units == 5 and small.count_params() == model.count_params() - 3 * 13
    # Where nothing goes, the class stays, and nothing is left behind on the model.
    assert type(small.get_layer("other")) is Block and small.get_layer("other") is not other
    assert model.get_config() == config and block.output.shape == (None, 6)
    assert nodes == [len(layer._inbound_nodes) for layer in (block.up, block, block.norm)]
    assert_same_outputs(model, small)
    small.save(tmp_path / "small.keras")
    assert_same_outputs(model, keras.saving.load_model(tmp_path / "small.keras"))


def test_layers_in_layers_in_layers():
    nested = Nested()
    model = around(nested)
    kill(nested.block.up, [1])
    kill(nested.stack.get_layer("inner"), [0, 4])
    small = shrink(model)
    assert small.count_params() == model.count_params() - 13 - 2 * 13
    assert_same_outputs(model, small)


def test_a_layer_without_a_config_is_opened_where_nothing_goes():
    model = around(Nested())
    small = shrink(model)
    assert type(small.get_layer("nested_block")) is Block
    assert_same_outputs(model, small)


@pytest.mark.slow
def test_a_budget_is_spent_inside():
    block = Block(16)
    model = around(block)
    cost = L0Constraint(0.5, Neurons(), measure="macs")
    (shared,) = Task(cost).bind(model)
    assert {id(block.up.kernel), id(block.up.bias)} <= {id(v) for v in shared.variables}
    lc_keras.baselines.compress_directly(model, cost)
    small = shrink(model)
    assert macs(small).dense <= 0.5 * macs(model).dense
    assert_same_outputs(model, small)


def test_a_block_that_is_called_twice_is_opened_once():
    block = Block()
    model = around(block, block)
    kill(block.up, [0, 7])
    small = shrink(model)
    assert small.count_params() == model.count_params() - 2 * 13
    assert_same_outputs(model, small)


def test_a_block_that_is_called_in_two_ways_stays_closed():
    x, block = keras.Input((6,)), Block(name="block")
    y = layers.Flatten()(block(layers.RepeatVector(2)(x)))
    model = randomized(keras.Model(x, layers.Dense(2)(layers.Concatenate()([y, block(x)]))))
    kill(block.up, [0])
    small = shrink(model)
    assert type(small.get_layer("block")) is Block
    assert_same_outputs(model, small)


class Weighted(Block):
    def build(self, shape):
        super().build(shape)
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return super().call(x) * self.scale


class Lossy(Block):
    def call(self, x):
        y = super().call(x)
        self.add_loss(ops.mean(y))
        return y


class Counting(Block):
    def build(self, shape):
        super().build(shape)
        self.counter = layers.Dense(1)
        self.counter.build(shape)

    def call(self, x):
        self.counter.bias.assign_add([1.0])
        return super().call(x)


class Noisy(Block):
    def call(self, x, training=None):
        y = super().call(x)
        return y * 2 if training else y


class Reading(Block):
    """Multiplies by the kernel of a layer inside, without calling the layer for it."""

    def call(self, x):
        return x + ops.matmul(self.up(x), ops.transpose(self.up.kernel))


@pytest.mark.parametrize("kind", [Weighted, Lossy, Counting, Noisy, Reading])
def test_what_a_layer_does_by_itself_keeps_it_closed(kind):
    block = kind(name="block")
    model = around(block)
    kill(block.up, [0])
    small = shrink(model)
    assert type(small.get_layer("block")) is kind and [w.name for w in Graph(model).walls] == ["block"]
    assert not block.losses or not any(isinstance(t, keras.KerasTensor) for t in block.losses)
    assert_same_outputs(model, small)
    with pytest.warns(UserWarning, match="some neurons cannot be removed.*'block' is of a kind"):
        Task(L0Constraint(0.5, Neurons())).bind(around(Block(name="open"), block))


@pytest.mark.parametrize("norm_first", [True, False])
def test_masks_go_through_what_was_opened(norm_first, tmp_path):
    words = keras.Input((5,), dtype="int32")
    block = Block(name="block")
    first = [layers.LayerNormalization()] if norm_first else []
    y = layers.Embedding(10, 6, mask_zero=True)(words)
    for layer in (*first, block, Block(name="other"), layers.GlobalAveragePooling1D()):
        y = layer(y)
    model = randomized(keras.Model(words, layers.Dense(2)(y)))
    kill(block.up, [0, 1])
    small = shrink(model)
    assert small.get_layer("block_up").units == 6
    x = np.array([[1, 2, 0, 0, 0], [3, 4, 5, 6, 0], [7, 0, 0, 0, 0]])
    small.save(tmp_path / "small.keras")
    for one in (small, keras.saving.load_model(tmp_path / "small.keras")):
        np.testing.assert_allclose(one(x), model(x), rtol=1e-4, atol=1e-4)


def test_half_precision_inside():
    block = Block(name="block", dtype="mixed_bfloat16")
    model = around(block)
    kill(block.up, [0])
    small = shrink(model)
    assert small.get_layer("block_up").units == 7
    # The sum is in half precision, too.
    assert small.get_layer("head").input.dtype == model.get_layer("head").input.dtype == "bfloat16"
    assert_same_outputs(model, small, 0.05)


def test_a_budget_that_can_remove_nothing_says_so():
    x = keras.Input((6,))
    model = keras.Model(x, layers.Dense(2)(Weighted(name="block")(x)))
    before = [v.numpy() for v in model.weights]
    for per_layer in (False, True):
        task = Task(L0Constraint(0.5, Neurons()), per_layer=per_layer)
        with pytest.raises(ValueError, match="'block' is of a kind.*name layers in `weights`"):
            compress_directly(model, task)
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="none can be removed"):
        data = np.ones((2, 6)), np.ones((2, 2))
        model.fit(*data, epochs=2, callbacks=[lc_keras.LearningCompression(task)], verbose=0)
    assert all(map(np.array_equal, before, model.weights))
    with pytest.warns(UserWarning, match="spent on them all the same.*'block' is of a kind"):
        Task(L0Constraint(0.5, Neurons()), "block").bind(model)


def test_a_budget_of_outputs_alone_says_so(recwarn):
    x = keras.Input((6,))
    task = Task(L0Constraint(0.5, Neurons()))
    task.bind(keras.Model(x, layers.Dense(3)(layers.Dense(4)(x))))
    assert not recwarn.list
    model = keras.Model(x, layers.Dense(3, name="head")(layers.Dense(4, trainable=False)(x)))
    with pytest.raises(ValueError, match="none can be removed: they are inputs or outputs of the model"):
        task.bind(model)
    with pytest.warns(UserWarning, match="spent on them all the same.*they are inputs or outputs"):
        Task(L0Constraint(0.5, Neurons()), "head").bind(model)


def test_a_model_that_is_no_graph_says_so():
    wrapped = WithoutGraph(Nested())
    wrapped(np.ones((1, 6)))
    with pytest.warns(UserWarning, match="is not a graph of layers.*zeroed and stay"):
        Task(L0Constraint(0.5, Neurons())).bind(wrapped)


class WithoutGraph(keras.Model):
    """A model whose `call` is Python code."""

    def __init__(self, inside):
        super().__init__()
        self.inside = inside

    def call(self, x):
        return self.inside(x)
