import copy
import math
import re

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import lc_keras
from lc_keras import L0Constraint, L1Penalty, Neurons, Task
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.tasks import as_tasks, bind_tasks
from lc_keras.model import default_kernels

HALF = L0Constraint(0.5)


def model_of(layer, shape):
    x = keras.Input(shape)
    attention = isinstance(layer, layers.MultiHeadAttention)
    return keras.Model(x, layer(x, x) if attention else layer(x))


class Scaled(layers.Layer):
    """A custom layer whose weights are not called kernels."""

    def build(self, shape):
        self.matrix = self.add_weight(shape=(shape[-1], 3), name="matrix")
        self.scale = self.add_weight(shape=(3,), name="scale", initializer="ones")

    def call(self, x):
        return self.scale * (x @ self.matrix)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.blocks = [layers.Dense(5, "tanh"), layers.Dense(4, "tanh")]
        self.heads = {"out": layers.Dense(2)}

    def build(self, shape):
        self.mixing = self.add_weight(shape=(4, 4), name="mixing_kernel")
        for layer, inputs in [(self.blocks[0], shape[-1]), (self.blocks[1], 5), (self.heads["out"], 4)]:
            layer.build((None, inputs))
        self.built = True

    def call(self, x):
        for block in self.blocks:
            x = block(x)
        return self.heads["out"](x @ self.mixing)


def subclassed():
    model = Subclassed()
    model.build((None, 6))
    return model


def shared():
    """One layer called on two inputs, and another called twice in a row."""
    a, b = keras.Input((6,)), keras.Input((6,))
    encode, again = layers.Dense(4, "tanh", name="encode"), layers.Dense(4, "tanh", name="again")
    merged = layers.Concatenate()([encode(a), again(again(encode(b)))])
    return keras.Model([a, b], layers.Dense(2, name="head")(merged))


def nested():
    inner = keras.Sequential([layers.Dense(5, "tanh", name="a"), layers.Dense(4, name="b")], name="inner")
    x = keras.Input((6,))
    middle = keras.Model(x, layers.Dense(3, name="c")(inner(x)), name="middle")
    return keras.Sequential([keras.Input((6,)), middle, layers.Dense(2, name="d")])


def dense_net():
    x = keras.Input((6,))
    y = layers.BatchNormalization(name="norm")(layers.Dense(5, name="first")(x))
    return keras.Model(x, layers.Dense(3, name="third")(layers.Dense(4, name="second")(y)))


def paths(variables):
    return [v.path for v in variables]


def same(variables, expected):
    return len(variables) == len(expected) and all(v is e for v, e in zip(variables, expected, strict=True))


# The default selection.

LSTM = ["lstm_cell/kernel", "lstm_cell/recurrent_kernel"]
MHA = ["query/kernel", "key/kernel", "value/kernel", "attention_output/kernel"]
DEFAULTS = [
    (layers.Dense(3), (4,), ["kernel"]),
    (layers.EinsumDense("abc,cd->abd", (5, 3), bias_axes="d"), (5, 4), ["kernel"]),
    (layers.Conv1D(3, 2), (8, 2), ["kernel"]),
    (layers.Conv2D(3, 2), (8, 8, 2), ["kernel"]),
    (layers.Conv3D(3, 2), (4, 4, 4, 2), ["kernel"]),
    (layers.Conv2DTranspose(3, 2), (8, 8, 2), ["kernel"]),
    (layers.DepthwiseConv2D(2), (8, 8, 2), ["kernel"]),
    (layers.SeparableConv2D(3, 2), (8, 8, 2), ["depthwise_kernel", "pointwise_kernel"]),
    (layers.MultiHeadAttention(2, 3), (5, 4), MHA),
    (layers.SimpleRNN(3), (5, 4), ["simple_rnn_cell/kernel", "simple_rnn_cell/recurrent_kernel"]),
    (layers.LSTM(3), (5, 4), LSTM),
    (layers.GRU(3), (5, 4), ["gru_cell/kernel", "gru_cell/recurrent_kernel"]),
    (
        layers.RNN(
            layers.StackedRNNCells(
                [layers.LSTMCell(n, name=s) for n, s in ((3, "a"), (2, "b"))], name="stacked"
            )
        ),
        (5, 4),
        [f"stacked/{cell}/{name}" for cell in "ab" for name in ("kernel", "recurrent_kernel")],
    ),
    (layers.TimeDistributed(layers.Dense(3, name="inner")), (5, 4), ["inner/kernel"]),
    (
        layers.Bidirectional(layers.LSTM(3, name="l")),
        (5, 4),
        [f"{way}_l/{name}" for way in ("forward", "backward") for name in LSTM],
    ),
]


@pytest.mark.parametrize("layer, shape, names", DEFAULTS, ids=lambda x: getattr(x, "name", ""))
def test_default_takes_the_kernels(layer, shape, names):
    model = model_of(layer, shape)
    found = Task(HALF).select(model)
    assert paths(found) == [f"{layer.name}/{name}" for name in names]
    assert same(default_kernels(model), found)
    # Only biases are left over.
    assert {v.name for v in model.trainable_variables} - {v.name for v in found} <= {"bias"}


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.BatchNormalization(), (4,)),
        (layers.LayerNormalization(), (4,)),
        (layers.GroupNormalization(2), (4,)),
        (layers.PReLU(), (5, 4)),
        (layers.Embedding(7, 4), (5,)),
        (Scaled(), (4,)),
    ],
)
def test_default_leaves_the_rest_alone(layer, shape):
    x = keras.Input(shape)
    model = keras.Model(x, layers.Dense(2, name="head")(layer(x)))
    assert len(model.trainable_variables) > 2
    assert paths(Task(HALF).select(model)) == ["head/kernel"]


def test_default_in_a_nested_model():
    assert [v.shape for v in Task(HALF).select(nested())] == [(6, 5), (5, 4), (4, 3), (3, 2)]


def test_default_in_a_subclassed_model():
    model = subclassed()
    assert [v.shape for v in Task(HALF).select(model)] == [(4, 4), (6, 5), (5, 4), (4, 2)]


def test_shared_layers_count_once():
    model = shared()
    (part,) = Task(HALF).bind(model)
    assert paths(part.variables) == ["encode/kernel", "again/kernel", "head/kernel"]
    assert len(part.layouts) == 3
    assert len(Task(HALF, per_layer=True).bind(model)) == 3


def test_a_model_used_twice_counts_once():
    inner = keras.Sequential([keras.Input((4,)), layers.Dense(4, name="a")])
    x = keras.Input((4,))
    model = keras.Model(x, inner(inner(x)))
    assert same(Task(HALF).select(model), [inner.layers[0].kernel])


def test_frozen_layers_are_left_alone():
    model = dense_net()
    model.get_layer("second").trainable = False
    assert paths(Task(HALF).select(model)) == ["first/kernel", "third/kernel"]
    with pytest.raises(ValueError, match="layer 'second' matches no trainable weights") as error:
        Task(HALF, model.get_layer("second")).select(model)
    assert "third/kernel (4, 3)" in str(error.value) and "second/kernel" not in str(error.value)


# Selectors.


@pytest.mark.parametrize(
    "choose, expected",
    [
        (lambda m: "second/kernel", ["second/kernel"]),
        (lambda m: "^(first|third)/", ["first/kernel", "first/bias", "third/kernel", "third/bias"]),
        (lambda m: "CON", None),
        (lambda m: re.compile("SECOND/K", re.IGNORECASE), ["second/kernel"]),
        (lambda m: m.get_layer("second"), ["second/kernel"]),
        (lambda m: m, ["first/kernel", "second/kernel", "third/kernel"]),
        (lambda m: m.get_layer("third").bias, ["third/bias"]),
        (lambda m: lambda v: v.shape[-1] == 3, ["third/kernel", "third/bias"]),
        (lambda m: ["third/kernel", m.get_layer("first")], ["first/kernel", "third/kernel"]),
        (lambda m: (m.get_layer("first").bias, "first/"), ["first/kernel", "first/bias"]),
        (lambda m: {"third/k", "second/k"}, ["second/kernel", "third/kernel"]),
        (
            lambda m: (layer for layer in m.layers if "kernel" in dir(layer)),
            ["first/kernel", "second/kernel", "third/kernel"],
        ),
        (lambda m: [None, "third/bias"], ["first/kernel", "second/kernel", "third/kernel", "third/bias"]),
        (lambda m: None, ["first/kernel", "second/kernel", "third/kernel"]),
    ],
)  # fmt: skip
def test_selectors(choose, expected):
    """Always in the model's order, each variable once."""
    model = dense_net()
    task = Task(HALF, choose(model))
    if expected is None:
        with pytest.raises(ValueError, match="matches no trainable weights"):
            task.select(model)
    else:
        assert paths(task.select(model)) == expected
        assert paths(task.select(model)) == expected
        (part,) = task.bind(model)
        assert paths(part.variables) == expected and part.compression is HALF and part.task is task


def test_nested_model_as_a_layer():
    model = nested()
    inner = model.get_layer("middle").get_layer("inner")
    assert [v.shape for v in Task(HALF, inner).select(model)] == [(6, 5), (5, 4)]
    assert len(Task(HALF, model.get_layer("middle")).select(model)) == 3


def test_wrappers_and_attention_as_layers():
    for layer, shape, names in DEFAULTS:
        if isinstance(layer, (layers.Wrapper, layers.MultiHeadAttention, layers.RNN)):
            assert len(Task(HALF, layer).select(model_of(layer, shape))) == len(names)


@pytest.mark.parametrize(
    "choose", [lambda x: x, lambda x: x.matrix, lambda x: "matrix", lambda x: [x.matrix]]
)
def test_custom_layer(choose):
    """A layer without kernels contributes its weights of two or more axes."""
    layer = Scaled(name="scaled")
    model = model_of(layer, (4,))
    assert same(Task(HALF, choose(layer)).select(model), [layer.matrix])
    assert same(Task(HALF, "scaled/").select(model), [layer.matrix, layer.scale])


def test_embedding_when_asked_for():
    embedding = layers.Embedding(7, 4)
    assert same(Task(HALF, embedding).select(model_of(embedding, (5,))), [embedding.embeddings])


def test_tables_of_a_model_without_kernels():
    x, y = keras.Input((3,)), keras.Input((3,))
    tables = [layers.Embedding(7, 4), layers.Embedding(8, 4)]
    model = keras.Model([x, y], layers.Dot(axes=-1)([tables[0](x), tables[1](y)]))
    assert same(Task(HALF, embeddings=True).select(model), [table.embeddings for table in tables])
    with pytest.raises(ValueError, match="matches no trainable weights"):
        Task(HALF, "kernel", embeddings=True).select(model)


# Layer by layer, and several tasks.


def test_per_layer_makes_a_cost_a_layer():
    model = dense_net()
    task = Task(HALF, per_layer=True)
    parts = task.bind(model)
    assert [paths(p.variables) for p in parts] == [["first/kernel"], ["second/kernel"], ["third/kernel"]]
    assert all(p.task is task and p.compression is HALF for p in parts)


@pytest.mark.parametrize(
    "layer, shape, sizes",
    [
        (layers.LSTM(3), (5, 4), [2]),
        (layers.Bidirectional(layers.GRU(3)), (5, 4), [2, 2]),
        (layers.SeparableConv2D(3, 2), (8, 8, 2), [2]),
        (layers.MultiHeadAttention(2, 3), (5, 4), [1, 1, 1, 1]),
        (layers.TimeDistributed(layers.Dense(3)), (5, 4), [1]),
    ],
)
def test_per_layer_goes_by_the_layer_that_owns_the_weights(layer, shape, sizes):
    parts = Task(HALF, per_layer=True).bind(model_of(layer, shape))
    assert [len(p.variables) for p in parts] == sizes
    assert [len(p.layouts) for p in parts] == sizes


def test_per_layer_with_weights_of_the_model_itself():
    parts = Task(HALF, per_layer=True).bind(subclassed())
    assert [[v.shape for v in p.variables] for p in parts] == [[(4, 4)], [(6, 5)], [(5, 4)], [(4, 2)]]


def test_several_tasks():
    model = dense_net()
    tasks = [Task(L1Penalty(0.1), "third/kernel"), Task(HALF, "(first|second)/kernel", per_layer=True)]
    parts = bind_tasks(tasks, model)
    assert [paths(p.variables) for p in parts] == [["third/kernel"], ["first/kernel"], ["second/kernel"]]
    assert [p.compression for p in parts] == [L1Penalty(0.1), HALF, HALF]


def test_as_tasks():
    task = Task(L1Penalty(0.1), "third")
    assert as_tasks(task) == [task]
    assert as_tasks((task,)) == [task]
    first, second = as_tasks([HALF, task])
    assert second is task and first.compression is HALF and first.weights is None and not first.per_layer


def test_binding_changes_nothing_in_the_model():
    model = dense_net()
    before = model.get_config(), paths(model.weights), [v.regularizer for v in model.weights]
    bind_tasks([Task(HALF)], model)
    assert before == (model.get_config(), paths(model.weights), [v.regularizer for v in model.weights])


# Output units.

UNITS = [
    (layers.Dense(5), (4,), [(-1,)]),
    (layers.Conv2D(6, 2, groups=2), (8, 8, 4), [(-1,)]),
    (layers.DepthwiseConv1D(2, depth_multiplier=3), (8, 2), [(-2, -1)]),
    (layers.DepthwiseConv2D(2, depth_multiplier=3), (8, 8, 2), [(-2, -1)]),
    (layers.SeparableConv2D(5, 2, depth_multiplier=3), (8, 8, 2), [(-2, -1), (-1,)]),
    (layers.Conv1DTranspose(5, 2), (8, 3), [(-2,)]),
    (layers.Conv2DTranspose(5, 2), (8, 8, 3), [(-2,)]),
    (layers.Conv3DTranspose(5, 2), (4, 4, 4, 3), [(-2,)]),
    (layers.EinsumDense("abc,cde->abde", (6, 2, 3)), (6, 4), [(-2, -1)]),
    (layers.EinsumDense("...ab,bac->...c", 5), (6, 4, 3), [(-1,)]),
    (layers.EinsumDense("abc,dc->abd", (6, 5)), (6, 4), [(-2,)]),
    (layers.MultiHeadAttention(2, 3), (6, 4), [(-2, -1)] * 3 + [(-1,)]),
    (layers.TimeDistributed(layers.Conv2DTranspose(5, 2)), (2, 4, 4, 3), [(-2,)]),
    (layers.LSTM(3), (5, 4), [(-1,)] * 2),
]  # fmt: skip


@pytest.mark.parametrize("layer, shape, axes", UNITS, ids=lambda x: getattr(x, "name", ""))
def test_output_axes(layer, shape, axes):
    (part,) = Task(HALF).bind(model_of(layer, shape))
    assert [layout.axes for layout in part.layouts] == axes
    assert [layout.shape for layout in part.layouts] == [v.shape for v in part.variables]


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layer, shape)
        for layer, shape, axes in UNITS
        if len(axes) == 1 and getattr(layer, "groups", 1) == 1 and axes != [(-2, -1)]
    ],
    ids=lambda x: getattr(x, "name", ""),
)
def test_pruned_neurons_leave_whole_output_channels(layer, shape):
    """Seen from outside: some channels of the output are zero, the others as they were."""
    model = model_of(layer, shape)
    x = np.random.normal(size=(2, *shape)).astype("float32")
    before = model(x).numpy()
    lagrangian = Lagrangian(bind_tasks([Task(L0Constraint(2, groups=Neurons()), layer)], model))
    lagrangian.direct_compression(1.0)
    lagrangian.show_compressed()
    after = model(x).numpy()

    channels = before.ndim - (2 if "de" in getattr(layer, "equation", "") else 1)

    def flat(y):
        return y.reshape(int(np.prod(y.shape[:channels])), -1)

    before, after = flat(before), flat(after)
    alive = after.any(axis=0)
    assert alive.sum() == 2 and len(alive) > 2
    np.testing.assert_allclose(after[:, alive], before[:, alive], rtol=1e-5, atol=1e-6)


def units_of(part):
    """The units that each variable makes, by variable path."""
    return {v.path: layout.units.tolist() for v, layout in zip(part.variables, part.layouts, strict=True)}


def test_neurons_come_with_all_that_makes_them():
    x = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 1, use_bias=False, name="expand")(x)
    y = layers.BatchNormalization(name="norm")(y)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise")(y)
    y = layers.Conv2D(3, 1, name="project")(y)
    y = layers.Add()([y, layers.Conv2D(3, 1, name="shortcut")(x)])
    y = layers.Conv2D(4, 3, groups=2, name="grouped")(layers.Conv2D(4, 1, name="before")(y))
    model = keras.Model(x, layers.Dense(2, name="head")(layers.Flatten()(y)))
    (part,) = Task(L0Constraint(0.5, Neurons())).bind(model)
    assert units_of(part) == {
        "expand/kernel": [0, 1, 2, 3],
        "norm/gamma": [0, 1, 2, 3],
        "norm/beta": [0, 1, 2, 3],
        "depthwise/kernel": [0, 1, 2, 3],
        "depthwise/bias": [0, 0, 1, 1, 2, 2, 3, 3],
        "project/kernel": [4, 5, 6],
        "project/bias": [4, 5, 6],
        "shortcut/kernel": [4, 5, 6],
        "shortcut/bias": [4, 5, 6],
        "before/kernel": [7, 7, 8, 8],
        "before/bias": [7, 7, 8, 8],
        "grouped/kernel": [7, 7, 8, 8],
        "grouped/bias": [7, 7, 8, 8],
        "head/kernel": [-1, -1],
    }
    # Weights that are tied to the selection join it.
    (part,) = Task(L0Constraint(0.5, Neurons()), "shortcut/kernel").bind(model)
    assert list(units_of(part)) == ["project/kernel", "project/bias", "shortcut/kernel", "shortcut/bias"]


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Conv2DTranspose(4, 2), (5, 5, 3)),
        (layers.DepthwiseConv2D(2), (5, 5, 3)),
        (layers.EinsumDense("abc,dc->abd", (None, 4), bias_axes="d"), (5, 3)),
        (layers.EinsumDense("abc,cde->abde", (None, 2, 4), bias_axes="de"), (5, 3)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_biases_are_of_units_where_there_is_no_graph(layer, shape):
    class Own(keras.Model):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def call(self, x):
            return self.layer(x)

    model = Own()
    model(np.ones((1, *shape), "float32"))
    (part,) = Task(L0Constraint(0.5, Neurons()), weights=".").bind(model)
    units = [math.prod(layout.shape[a] for a in layout.axes) for layout in part.layouts]
    assert len(units) == 2 and units[0] == units[1]


def test_neurons_of_recurrent_and_attention_layers():
    x = keras.Input((6, 4))
    y = layers.LSTM(2, return_sequences=True, name="lstm")(x)
    y = layers.MultiHeadAttention(3, 5, name="mha")(y, y)
    model = keras.Model(x, layers.Dense(2, name="head")(y))
    (part,) = Task(L0Constraint(0.5, Neurons())).bind(model)
    units = units_of(part)
    for path in ("lstm/lstm_cell/kernel", "lstm/lstm_cell/recurrent_kernel", "lstm/lstm_cell/bias"):
        assert units[path] == [0, 1] * 4
    for name in ("query", "key", "value"):
        assert units[f"mha/{name}/kernel"] == units[f"mha/{name}/bias"] == [2, 3, 4]
    assert units["mha/attention_output/kernel"] == [5, 6]


def test_multiply_adds_of_weights():
    x = keras.Input((8, 8, 3))
    shared = layers.Conv2D(3, 3, padding="same", name="shared")
    y = layers.Conv2DTranspose(4, 2, strides=2, name="up")(shared(shared(x)))
    y = layers.SeparableConv2D(5, 3, name="separable")(y)
    model = keras.Model(x, layers.Dense(2, name="head")(layers.Flatten()(y)))
    (part,) = Task(L0Constraint(0.5, measure="macs")).bind(model)
    assert {v.path: layout.macs for v, layout in zip(part.variables, part.layouts, strict=True)} == {
        "shared/kernel": 2 * 64,
        "up/kernel": 64,
        "separable/depthwise_kernel": 14 * 14,
        "separable/pointwise_kernel": 14 * 14,
        "head/kernel": 1,
    }


def test_multiply_adds_that_are_not_known():
    model = keras.Sequential([keras.Input((None, None, 3)), layers.Conv2D(3, 3), layers.Conv2D(3, 3)])
    message = error_of(ValueError, lambda: Task(L0Constraint(0.5, measure="macs")).bind(model))
    assert "multiply-adds are known" in message
    image = [tf.TensorSpec([None, 8, 7, 3])]
    (part,) = Task(L0Constraint(0.5, measure="macs"), input_signature=image).bind(model)
    assert [layout.macs for layout in part.layouts] == [6 * 5, 4 * 3]
    half = L0Constraint(0.5, Neurons(), measure="macs")
    (part,) = Task(half, input_signature=image).bind(model)
    assert [layout.macs for layout in part.layouts if layout.macs] == [6 * 5, 4 * 3]


def test_multiply_adds_of_a_model_without_a_graph():
    model = subclassed()
    (part,) = Task(L0Constraint(0.5, measure="macs")).bind(model)
    assert {layout.macs for layout in part.layouts} == {1}

    class Unrecorded(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = layers.Dense(3)

        def build(self, shape=(None, 4)):
            self.dense.build(shape)
            self.built = True

        def call(self, x):
            return self.dense(x)

    model = Unrecorded()
    model.build()
    with pytest.raises(ValueError, match="multiply-adds are known.*`input_signature`"):
        Task(L0Constraint(0.5, measure="macs")).bind(model)
    (part,) = Task(L0Constraint(0.5, measure="macs"), input_signature=[tf.TensorSpec([None, 5, 4])]).bind(
        model
    )
    assert [layout.macs for layout in part.layouts] == [5]
    with pytest.raises(TypeError, match="Expected `input_signature`"):
        Task(L0Constraint(0.5), input_signature=[(None, 4)])


def named_model(outputs=4):
    head = layers.Dense(outputs, name="logits")
    return keras.Sequential([keras.Input((6,)), layers.Dense(5, name="hidden"), head], name="net")


def test_weights_of_a_copy_of_the_model():
    original, model = named_model(), named_model()
    hidden = model.get_layer("hidden")
    for selector in (original.get_layer("hidden"), original.get_layer("hidden").kernel):
        assert Task(L0Constraint(0.5), selector).select(model) == [hidden.kernel]
        # As with tuners, which copy everything they are given.
        assert copy.deepcopy(Task(L0Constraint(0.5), selector)).select(original) == [
            original.get_layer("hidden").kernel
        ]
    nested = keras.Sequential([keras.Input((6,)), model, layers.Dense(2)])
    assert Task(L0Constraint(0.5), original).select(nested) == [layer.kernel for layer in model.layers]


def test_weights_of_a_copy_that_has_the_same_name_twice():
    def made():
        x = keras.Input((5,))
        inner = keras.Sequential([keras.Input((5,)), layers.Dense(5, name="hidden")], name="inner")
        return keras.Model(x, layers.Dense(5, name="hidden")(inner(x)))

    original, model = made(), made()
    assert paths(model.trainable_variables[::2]) == ["inner/hidden/kernel", "hidden/kernel"]
    for layer, its_copy in zip((original.layers[1].layers[0], original.layers[2]), (0, 2), strict=True):
        assert Task(L0Constraint(0.5), layer).select(model) == [model.trainable_variables[its_copy]]


def test_weights_of_another_model():
    for other in (
        named_model(3).get_layer("logits"),
        keras.Sequential([keras.Input((6,)), layers.Dense(5)]).layers[0],
    ):
        for selector in (other, other.kernel):
            message = error_of(
                ValueError, lambda s=selector: Task(L0Constraint(0.5), s).select(named_model())
            )
            assert "as it is of another model" in message and "net/hidden/kernel (6, 5)" in message
    model = named_model()
    model.get_layer("hidden").trainable = False
    message = error_of(ValueError, lambda: Task(L0Constraint(0.5), model.get_layer("hidden")).select(model))
    assert "another model" not in message


# Errors: each names the task and lists what was found.


def error_of(kind, function):
    with pytest.raises(kind) as error:
        function()
    return str(error.value)


def test_a_variable_in_two_tasks():
    first, second = Task(L1Penalty(0.25), "second/kernel"), Task(HALF)
    message = error_of(ValueError, lambda: bind_tasks([first, second], dense_net()))
    assert "'second/kernel'" in message and repr(first) in message and repr(second) in message
    assert all(found in message for found in ("first/kernel (6, 5)", "third/kernel (4, 3)"))


@pytest.mark.parametrize(
    "selector, named",
    [
        ("conv.*/kernel", "'conv.*/kernel'"),
        (re.compile("conv"), "'conv'"),
        (layers.Dense(3, name="elsewhere"), "layer 'elsewhere'"),
        (layers.Flatten(name="flat"), "layer 'flat'"),
        (keras.Variable(np.zeros((2, 2), "float32"), name="other"), "variable 'other'"),
        (lambda v: False, "<lambda>"),
        (["first/kernel", "nowhere"], "'nowhere'"),
    ],
)
def test_a_selector_that_matches_nothing(selector, named):
    """An error also as one of several, so that no part of a budget is lost."""
    task = Task(HALF, selector)
    message = error_of(ValueError, lambda: bind_tasks([task], dense_net()))
    assert f"{named} matches no trainable weights" in message and repr(task) in message
    assert all(f"{path} (" in message for path in paths(dense_net().trainable_variables))


def test_no_kernels_by_default():
    message = error_of(ValueError, lambda: Task(HALF).bind(model_of(Scaled(), (4,))))
    assert "default selection" in message and "matrix (4, 3)" in message


@pytest.mark.parametrize("make", [lambda: keras.Sequential([layers.Dense(3)]), Subclassed])
def test_a_model_that_is_not_built(make):
    task, model = Task(HALF), make()
    message = error_of(ValueError, lambda: task.bind(model))
    assert repr(task) in message and f"'{model.name}' is not built" in message and "0 weights" in message


def test_a_model_without_trainable_weights():
    model = dense_net()
    model.trainable = False
    message = error_of(ValueError, lambda: Task(HALF).bind(model))
    assert repr(Task(HALF)) in message and "has no trainable weights" in message
    assert "0 weights; set `trainable = True`" in message


@pytest.mark.parametrize(
    "task, limit, listed",
    [
        (
            Task(L0Constraint(63)),
            "62",
            ["first/kernel (6, 5)", "second/kernel (5, 4)", "third/kernel (4, 3)"],
        ),
        (Task(L0Constraint(21), "second/kernel"), "20", ["second/kernel (5, 4)"]),
        (Task(L0Constraint(13), per_layer=True), "12", ["third/kernel (4, 3)"]),
        (Task(L0Constraint(13, groups=Neurons())), "9", ["first/kernel (6, 5)", "norm/gamma (5,)"]),
    ],
)
def test_a_budget_beyond_the_weights(task, limit, listed):
    message = error_of(ValueError, lambda: bind_tasks([task], dense_net()))
    assert repr(task) in message and f"at most {limit}," in message
    assert f"Received: {task.compression.keep}. Its weights are:" in message
    assert all(weight in message for weight in listed)


def test_a_budget_of_all_the_weights_is_none_too_many():
    assert bind_tasks([Task(L0Constraint(62))], dense_net())


@pytest.mark.parametrize("weights", ["(kernel", ["first", "*kernel"]])
def test_a_regular_expression_that_does_not_compile(weights):
    message = error_of(ValueError, lambda: Task(HALF, weights))
    assert "regular expression" in message and ("(kernel" in message or "*kernel" in message)


@pytest.mark.parametrize("weights", [3, 0.5, b"kernel", re.compile(b"kernel"), ["kernel", 3]])
def test_a_selector_of_another_type(weights):
    assert "`weights`" in error_of(TypeError, lambda: Task(HALF, weights))


@pytest.mark.parametrize("weights", [[], (), set()])
def test_an_empty_list_of_selectors(weights):
    error_of(ValueError, lambda: Task(HALF, weights).bind(dense_net()))


@pytest.mark.parametrize("compression", [None, 0.05, "l0", L0Constraint])
def test_something_else_than_a_compression(compression):
    assert "`compression`" in error_of(TypeError, lambda: Task(compression))
    if compression is not None:
        error_of(TypeError, lambda: as_tasks([HALF, compression]))


def test_no_tasks():
    assert "at least one task" in error_of(ValueError, lambda: as_tasks([]))


# A real `fit` for each.


def attention():
    x = keras.Input((6, 4))
    y = layers.LayerNormalization()(x + layers.MultiHeadAttention(2, 3)(x, x))
    return keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(y)))


def recurrent(layer):
    return lambda: keras.Sequential([keras.Input((5, 4)), layer(3), layers.Dense(2)])


def time_distributed():
    inner = layers.TimeDistributed(layers.Dense(3, "tanh"))
    return keras.Sequential([keras.Input((5, 4)), inner, layers.Flatten(), layers.Dense(2)])


def custom():
    return keras.Sequential([keras.Input((6,)), Scaled(), layers.Dense(2)])


FITS = {
    "subclassed": (subclassed, [Task(L0Constraint(0.3))], [(Task(HALF), 22)]),
    "shared": (shared, [Task(L0Constraint(17))], [(Task(HALF), 17)]),
    "nested": (nested, [Task(L0Constraint(0.1), per_layer=True)], [(Task(HALF), 3 + 2 + 1)]),
    "custom": (
        custom,
        [Task(L0Constraint(7), "matrix"), Task(L0Constraint(2))],
        [(Task(HALF, "matrix"), 7), (Task(HALF), 2)],
    ),
    "attention": (attention, [Task(L0Constraint(0.25))], [(Task(HALF), 26)]),
    "lstm": (
        recurrent(layers.LSTM),
        [Task(L0Constraint(0.2), "recurrent"), Task(L0Constraint(5), "cell/kernel")],
        [(Task(HALF, "recurrent"), 7), (Task(HALF, "cell/kernel"), 5), (Task(HALF, "dense.*/kernel"), 6)],
    ),
    "gru": (recurrent(layers.GRU), [Task(L0Constraint(0.2))], [(Task(HALF), 13)]),
    "time distributed": (
        time_distributed,
        [Task(L0Constraint(1, groups=Neurons()), per_layer=True)],
        [(Task(HALF), 4 + 30)],
    ),
}


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] * (kind in ("gru", "nested", "time distributed")))
        for kind in FITS
    ],
)
def test_fit_keeps_the_budget_exactly(kind):
    make, tasks, counts = FITS[kind]
    model = make()
    shapes = [i.shape[1:] for i in model.inputs] if getattr(model, "inputs", None) else [(6,)]
    inputs = [np.random.normal(size=(16, *shape)).astype("float32") for shape in shapes]
    y = np.random.normal(size=(16, 2)).astype("float32")
    before = [v.numpy().copy() for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.05), "mse")
    compress = lc_keras.LearningCompression(tasks, mu=lc_keras.Geometric(0.1, 1.0), epochs_per_step=0.5)
    x = inputs if len(inputs) > 1 else inputs[0]
    model.fit(x, y, batch_size=4, epochs=2, verbose=0, callbacks=[compress])
    for task, kept in counts:
        assert sum(np.count_nonzero(v.numpy()) for v in task.select(model)) == kept
    # All took part in the training.
    assert all((v.numpy() != b).any() for v, b in zip(model.trainable_variables, before, strict=True))


def test_multiply_adds_of_a_layer_of_another_kind():
    layer, x = Scaled(), keras.Input((4,))
    model = keras.Model(x, layers.Dense(2)(layer(x)))
    (part,) = Task(L0Constraint(0.5, Neurons(), measure="macs"), layer).bind(model)
    assert [layout.macs for layout in part.layouts] == [1]


def test_the_waves_of_a_spectrogram_are_not_selected():
    waves = keras.layers.STFTSpectrogram(frame_length=32, frame_step=16, fft_length=32)
    model = keras.Sequential(
        [keras.Input((256, 1)), waves, keras.layers.Flatten(), keras.layers.Dense(4, name="logits")]
    )
    assert [v.path for v in Task(L0Constraint(0.1)).select(model)] == [model.layers[-1].kernel.path]
    # They are counted, since their use is known.
    Task(L0Constraint(0.1, measure="macs")).bind(model)
    assert len(Task(L0Constraint(0.1), weights=waves).select(model)) == 2


@pytest.mark.parametrize(
    "cost",
    [lc_keras.NMConstraint(2, 4), lc_keras.Sum(lc_keras.NMConstraint(2, 4), L0Constraint(1))],
    ids=repr,
)
def test_kernels_that_a_pattern_does_not_fit_are_named(cost, recwarn):
    model = keras.Sequential([keras.Input((6, 6, 3)), layers.Conv2D(8, 3), layers.Conv2D(2, 3)])
    bind_tasks([Task(cost)], model)
    (warning,) = recwarn.list
    assert f": {model.layers[0].kernel.path} will keep more" in str(warning.message)


@pytest.mark.parametrize(
    "cost",
    [lc_keras.Codebook(2), L0Constraint(0.5, values=lc_keras.Codebook(2)), lc_keras.LowRank(2), HALF],
    ids=repr,
)
def test_constraints_that_do_not_hold_for_what_ships_are_named(cost, recwarn):
    model = dense_net()
    model.get_layer("second").kernel.constraint = keras.constraints.NonNeg()
    bind_tasks([Task(cost)], model)
    named = [str(w.message) for w in recwarn if "constraints of second/kernel" in str(w.message)]
    assert len(named) == (cost is not HALF)
