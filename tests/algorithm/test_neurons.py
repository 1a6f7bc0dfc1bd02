"""LC with budgets of neurons, to the end: every kind of unit is found in the graph, pruned and removed."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import lc_keras
from helpers import assert_same_outputs, inputs_of
from lc_keras import L0Constraint, Neurons, Task
from lc_keras.algorithm.tasks import bind_tasks
from lc_keras.baselines import compress_directly
from lc_keras.model.macs import macs


def sequences():
    stack = [
        layers.Conv1D(6, 3, padding="causal", name="conv"),
        layers.BatchNormalization(),
        layers.DepthwiseConv1D(3, activation="relu", name="depthwise"),
        layers.SeparableConv1D(6, 3, padding="same", name="separable"),
        layers.Conv1DTranspose(4, 2, strides=2, activation="relu", name="transposed"),
        layers.Bidirectional(layers.LSTM(4, return_sequences=True), name="lstm"),
        layers.GRU(6, name="gru"),
        layers.Dense(3, name="head"),
    ]
    return keras.Sequential([keras.Input((8, 3)), *stack])


def images():
    inputs = keras.Input((8, 8, 2))
    trunk = layers.Conv2D(6, 3, padding="same", use_bias=False, name="trunk")(inputs)
    inner = layers.Conv2D(8, 3, activation="sigmoid", name="inner")(trunk)
    inner = layers.Conv2DTranspose(6, 3, name="transposed")(inner)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Add()([trunk, inner])))
    x = layers.DepthwiseConv2D(3, 2, padding="same", name="depthwise")(x)
    x = layers.SeparableConv2D(4, 3, padding="same", activation="relu", name="separable")(x)
    x = layers.Concatenate()([x, layers.Conv2D(4, 1, 2, name="branch")(trunk)])
    x = layers.Conv2D(4, 1, name="before")(x)
    x = layers.Conv2D(8, 3, groups=2, activation="relu", name="grouped")(x)
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.Flatten()(x)))


def volumes():
    stack = [
        layers.Conv3DTranspose(4, 2, activation="relu", name="transposed"),
        layers.Conv3D(6, 2, name="conv"),
        layers.Flatten(),
        layers.Dense(3, name="head"),
    ]
    return keras.Sequential([keras.Input((3, 3, 3, 2)), *stack])


def tokens():
    """A transformer whose dense layers are in a model of their own and called twice."""
    x = keras.Input((None, 8))
    dense = keras.Model(x, layers.Dense(8, name="back")(layers.Dense(12, "gelu", name="up")(x)), name="dense")
    inputs = keras.Input((5,), dtype="int32")
    x = layers.Embedding(10, 8, name="embedding")(inputs)
    x = layers.Add()([x, dense(x)])
    x = layers.Add()([x, layers.MultiHeadAttention(4, 3, name="attention")(x, x)])
    x = layers.Add()([x, dense(x)])
    return keras.Model(inputs, layers.Dense(3, name="head")(layers.GlobalAveragePooling1D()(x)))


class Unknown(layers.Dense):
    """A layer about which only the kernel is known."""


def walls():
    stack = [
        layers.Dense(8, "sigmoid", name="first"),
        layers.Dense(6, "relu", name="before"),
        Unknown(6, name="unknown"),
        layers.Dense(8, "softplus", name="after"),
        layers.Dense(3, name="head"),
    ]
    return keras.Sequential([keras.Input((6,)), *stack])


NETS = {net.__name__: net for net in (sequences, images, volumes, tokens, walls)}
# The units that a budget of one half leaves in each layer. The output of dead units of `inner` would be
# padded.
HALVES = {
    "sequences": {"conv": 3, "depthwise": 3, "separable": 3, "transposed": 2, "lstm": 4, "gru": 3, "head": 3},
    "images": {"inner": 8, "branch": 2, "separable": 2, "grouped": 4, "before": 2, "head": 3},
    "volumes": {"transposed": 2, "conv": 3, "head": 3},
    "tokens": {"dense": 4, "up": 6, "back": 4, "embedding": 4, "attention": 4, "head": 3},
    "walls": {"first": 4, "before": 6, "unknown": 6, "after": 4, "head": 3},
}


def fit(model, cost, **options):
    (x,) = inputs_of(model, 16)
    y = np.random.default_rng(1).normal(size=(16, 3)).astype("float32")
    model.compile(keras.optimizers.Adam(1e-2), "mse", **options)
    compress = lc_keras.LearningCompression(cost, epochs_per_step=0.5)
    model.fit(x, y, batch_size=8, epochs=2, verbose=0, callbacks=[compress])


def tiny():
    inputs = keras.Input((6, 6, 2))
    trunk = layers.Conv2D(6, 3, padding="same")(inputs)
    x = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(trunk)))
    x = layers.Add()([trunk, layers.Conv2D(6, 3, padding="same")(x)])
    return keras.Model(inputs, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def of_kernels(model):
    """The multiply-adds that a budget counts."""
    counted = macs(model)
    return counted.dense - counted.attention


def widths(model):
    found = {}
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            found |= widths(layer)
        if not isinstance(layer, layers.InputLayer):
            found[layer.name] = layer.output.shape[-1]
    return found


def often(*names):
    """The nets, some of which are left to the other test."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in names)) for name in NETS]


@pytest.mark.parametrize("name", often("volumes", "walls"))
def test_a_budget_of_multiply_adds_holds_in_the_smaller_net(name):
    model = NETS[name]()
    fit(model, L0Constraint(0.6, Neurons(), measure="macs"))
    small = lc_keras.shrink(model)
    assert 0.3 * of_kernels(model) < of_kernels(small) <= 0.6 * of_kernels(model)
    assert_same_outputs(model, small)


@pytest.mark.parametrize("name", often("images"))
def test_half_of_each_layer(name):
    model = NETS[name]()
    for v in model.trainable_variables:
        v.assign_add(0.1 * np.random.default_rng(0).normal(size=v.shape))
    compress_directly(model, Task(L0Constraint(0.5, Neurons()), per_layer=True))
    small = lc_keras.shrink(model)
    assert {n: w for n, w in widths(small).items() if n in HALVES[name]} == HALVES[name]
    if name == "tokens":
        assert small.get_layer("attention").num_heads == 2
    assert_same_outputs(model, small)


def test_layers_that_a_budget_for_each_layer_leaves_out_are_told(recwarn):
    def bound(*names):
        weights = [f"{name}/kernel" for name in names]
        parts = Task(L0Constraint(0.5, Neurons()), weights, per_layer=True).bind(walls())
        return [[v.path.split("/")[1] for v in part.variables if v.name == "kernel"] for part in parts]

    assert bound("after", "head") == [["after"]] and not recwarn.list
    with pytest.warns(UserWarning, match="chooses among the others: 'unknown' is of a kind"):
        assert bound("unknown", "after") == [["after"]]


# XLA with C steps of neurons is in test_fused.py, XLA with training steps in tests/fit/test_execution.py.
@pytest.mark.slow
@pytest.mark.parametrize("measure", ["groups", "macs"])
def test_compiled_by_xla(measure):
    model = tiny()
    fit(model, L0Constraint(0.5, Neurons(), measure), jit_compile=True)
    small = lc_keras.shrink(model)
    if measure == "macs":
        assert of_kernels(small) <= 0.5 * of_kernels(model)
    else:
        assert small.layers[1].filters + small.layers[2].filters == 7
    assert_same_outputs(model, small)


def test_a_smaller_net_is_pruned_again_and_exported(tmp_path):
    model = tiny()
    compress_directly(model, L0Constraint(0.6, Neurons(), measure="macs"))
    small = lc_keras.shrink(model)
    fit(small, L0Constraint(0.5, Neurons(), measure="macs"))
    smaller = lc_keras.shrink(small)
    assert of_kernels(smaller) <= 0.5 * of_kernels(small) <= 0.3 * of_kernels(model)
    (x,), y = inputs_of(small), smaller(inputs_of(small)[0])
    np.testing.assert_allclose(y, small(x), rtol=1e-5, atol=1e-6)
    lc_keras.export_saved_model(smaller, tmp_path / "1")
    served = tf.saved_model.load(tmp_path / "1")
    np.testing.assert_allclose(y, served.serve(x), rtol=1e-5, atol=1e-6)
    assert lc_keras.report(smaller).macs == macs(smaller).dense == lc_keras.shrink_report(small).macs[1]


def in_the_way(name):
    """A net of a convolution that dies, something behind it, and a convolution that pads."""
    behind = {
        "no scale": [layers.BatchNormalization(scale=False), layers.ReLU()],
        "frozen": [layers.BatchNormalization(trainable=False)],
        "sigmoid": [layers.Activation("sigmoid")],
        "scaled": [layers.BatchNormalization(), layers.ReLU()],
        "swish": [layers.Activation("swish")],
    }[name]
    stack = [layers.Conv2D(4, 3, name="conv"), *behind, layers.Conv2D(5, 3, padding="same"), layers.Flatten()]
    return keras.Sequential([keras.Input((6, 6, 2)), *stack, layers.Dense(2)])


@pytest.mark.parametrize("name", ["no scale", "frozen", "sigmoid", "scaled", "swish"])
def test_what_could_not_be_taken_out_is_not_pruned(name):
    (part,) = Task(L0Constraint(0.5, Neurons())).bind(in_the_way(name))
    pairs = zip(part.variables, part.layouts, strict=True)
    units = {v.path.split("/")[-2]: layout.units.tolist() for v, layout in pairs}
    assert units["conv"] == ([0, 1, 2, 3] if name in ("scaled", "swish") else [-1] * 4)


@pytest.mark.parametrize("head", [layers.Softmax(), layers.Activation("softmax"), keras.ops.softmax])
def test_that_outputs_stay_is_no_news(head, recwarn):
    x = keras.Input((4,))
    task = Task(L0Constraint(0.5, Neurons(), measure="macs"))
    for out in (layers.Dense(3, "softmax"), lambda x: head(layers.Dense(3)(x))):
        bind_tasks([task], keras.Model(x, out(layers.Dense(5)(x))))
    assert not recwarn.list
    bind_tasks([task], keras.Model(x, layers.Dense(3)(head(layers.Dense(5)(layers.Dense(5)(x))))))
    (warning,) = recwarn.list
    assert "some neurons cannot be removed" in str(warning.message) and warning.filename == __file__


def test_recurrent_units_that_never_rest_stay():
    stack = [layers.LSTM(4, "sigmoid", return_sequences=True, name="lstm"), layers.GRU(3), layers.Dense(2)]
    (part,) = Task(L0Constraint(0.5, Neurons())).bind(keras.Sequential([keras.Input((5, 3)), *stack]))
    assert part.layouts[0].units.tolist() == [-1] * 16 and part.layouts[0].count == 3
