"""Shrunk models against the models they come from."""

import gc
import inspect
import weakref
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keras import layers

import nets
from helpers import assert_same_outputs, kill, randomized, sequential, widths, zero
from lc_keras.shrinking.rebuilding import shrink


def test_dense_units_go_and_others_stay_bit_for_bit():
    model = sequential((5,), layers.Dense(6, "relu", name="a"), layers.Dense(4, name="b"))
    kill(model.get_layer("a"), [1, 4])
    small = shrink(model)
    assert type(small) is keras.Sequential and small.name == model.name
    assert widths(small) == {"a": 4, "b": 4}
    np.testing.assert_array_equal(
        small.layers[0].kernel, np.delete(model.layers[0].kernel.numpy(), [1, 4], 1)
    )
    np.testing.assert_array_equal(
        small.layers[1].kernel, np.delete(model.layers[1].kernel.numpy(), [1, 4], 0)
    )
    np.testing.assert_array_equal(small.layers[1].bias, model.layers[1].bias)
    assert_same_outputs(model, small)


def test_constants_are_folded_through_activations_and_into_a_new_bias():
    model = sequential(
        (5,),
        layers.Dense(6, "sigmoid", name="a"),
        layers.BatchNormalization(name="norm"),
        layers.Dropout(0.5),
        layers.Dense(4, use_bias=False, name="b"),
    )
    zero(model.get_layer("a").kernel, [0, 2])
    small = shrink(model)
    assert widths(small)["a"] == 4 and not model.get_layer("b").use_bias and small.get_layer("b").use_bias
    assert_same_outputs(model, small)


def test_units_that_nothing_reads_go():
    model = sequential(
        (5,), layers.Dense(6, "tanh", name="a"), layers.Dense(6, name="b"), layers.Dense(2, name="c")
    )
    zero(model.get_layer("c").kernel, [3], axis=0)
    zero(model.get_layer("b").kernel, [0, 1], axis=0)
    # Unit 5 of `a` is read only by a unit that is not read itself.
    kernel = model.get_layer("b").kernel.numpy()
    kernel[5] = np.arange(6) == 3
    model.get_layer("b").kernel.assign(kernel)
    small = shrink(model)
    assert widths(small) == {"a": 3, "b": 5, "c": 2}
    assert_same_outputs(model, small)


@pytest.mark.parametrize("padding, bias, width", [("valid", True, 3), ("same", True, 5), ("same", False, 3)])
def test_constants_stay_before_padding(padding, bias, width):
    model = sequential(
        (8, 8, 2),
        layers.Conv2D(5, 3, use_bias=bias, name="a"),
        layers.Conv2D(4, 3, padding=padding, name="b"),
    )
    zero(model.get_layer("a").kernel, [0, 3])
    small = shrink(model)
    assert widths(small) == {"a": width, "b": 4}
    assert_same_outputs(model, small)


def test_residual_units_go_together_or_stay():
    inputs = keras.Input((6, 6, 3))
    trunk = layers.Conv2D(6, 3, padding="same", name="trunk")(inputs)
    inner = layers.Conv2D(5, 3, padding="same", activation="relu", name="inner")(trunk)
    branch = layers.BatchNormalization(name="norm")(layers.Conv2D(6, 3, padding="same", name="branch")(inner))
    added = layers.ReLU()(layers.Add(name="add")([trunk, branch]))
    model = randomized(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling2D()(added))))
    for name, units in {"trunk": [0, 1], "branch": [1, 2], "norm": [1, 2], "inner": [4]}.items():
        kill(model.get_layer(name), units)
    model.get_layer("norm").moving_mean.assign(np.zeros(6))
    small = shrink(model)
    assert [widths(small)[n] for n in ("trunk", "inner", "branch", "norm", "add")] == [5, 4, 5, 5, 5]
    assert_same_outputs(model, small)


def test_depthwise_goes_with_the_layer_before_it():
    model = sequential(
        (8, 8, 2),
        layers.Conv2D(6, 1, name="expand"),
        layers.BatchNormalization(name="norm"),
        layers.ReLU(max_value=6.0),
        layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, name="depthwise"),
        layers.BatchNormalization(name="after"),
        layers.Conv2D(3, 1, name="project"),
    )
    for name in ("expand", "norm"):
        kill(model.get_layer(name), [0, 2])
    model.get_layer("norm").moving_mean.assign(np.zeros(6))
    # The filters of a third unit are dead, so nothing reads the unit.
    zero(model.get_layer("depthwise").kernel, [5], axis=-2)
    small = shrink(model)
    assert widths(small)["expand"] == 3 and widths(small)["after"] == 6
    assert_same_outputs(model, small)


def test_a_group_of_a_convolution_goes_as_a_whole():
    model = sequential(
        (8, 8, 2),
        layers.Conv2D(6, 1, name="a"),
        layers.Conv2D(9, 3, groups=3, name="b"),
        layers.Dense(2, name="c"),
    )
    kill(model.get_layer("a"), [0, 1, 2])
    kill(model.get_layer("b"), [0, 1, 2, 3])
    small = shrink(model)
    assert widths(small) == {"a": 4, "b": 6, "c": 2} and small.get_layer("b").groups == 2
    assert_same_outputs(model, small)


def test_a_group_whose_outputs_must_stay_keeps_its_inputs():
    model = sequential(
        (8, 8, 2),
        layers.Conv2D(6, 1, name="a"),
        layers.Conv2D(9, 3, groups=3, name="b"),
        layers.Conv2D(2, 3, padding="same"),
    )
    # The output of the first group is its bias, before padding.
    kill(model.get_layer("a"), [0, 1])
    small = shrink(model)
    assert small.get_layer("a").filters == 6 and small.get_layer("b").groups == 3
    assert_same_outputs(model, small)


def test_groups_of_a_normalization_go_as_a_whole():
    model = sequential(
        (6, 6, 2),
        layers.Conv2D(8, 3, name="a"),
        layers.GroupNormalization(4, name="norm"),
        layers.Conv2D(2, 3),
    )
    kill(model.get_layer("a"), [0, 1, 2])
    small = shrink(model)
    assert widths(small)["a"] == 6 and small.get_layer("norm").groups == 3
    assert_same_outputs(model, small)


@pytest.mark.parametrize(
    "norm, width",
    [(layers.RMSNormalization, 3), (layers.UnitNormalization, 3), (layers.LayerNormalization, 5)],
)
def test_zeros_before_a_norm(norm, width):
    model = sequential((4,), layers.Dense(5, "relu", name="a"), norm(), layers.Dense(2))
    kill(model.get_layer("a"), [1, 2])
    small = shrink(model)
    assert widths(small)["a"] == width
    assert_same_outputs(model, small)


def test_units_through_flatten_concatenate_and_reshape():
    inputs = keras.Input((6, 6, 2))
    one = layers.Conv2D(4, 3, name="one")(inputs)
    two = layers.Reshape((4, 4, 5))(layers.Permute((2, 1, 3))(layers.Conv2D(5, 3, name="two")(inputs)))
    joined = layers.MaxPooling2D()(layers.Concatenate(name="joined")([one, two]))
    model = randomized(keras.Model(inputs, layers.Dense(3)(layers.Flatten(name="flat")(joined))))
    kill(model.get_layer("one"), [0])
    zero(model.get_layer("two").kernel, [1, 4])
    small = shrink(model)
    assert [widths(small)[n] for n in ("one", "two", "joined", "flat")] == [3, 3, 6, 24]
    assert_same_outputs(model, small)


@pytest.mark.parametrize("kind, gates", [(layers.LSTM, 4), (layers.GRU, 3), (layers.SimpleRNN, 1)])
def test_recurrent_units(kind, gates):
    model = sequential(
        (5, 3), kind(6, return_sequences=True, name="first"), kind(4, name="second"), layers.Dense(2)
    )
    for variable in model.get_layer("first").weights:
        zero(variable, [u + 6 * g for u in (1, 5) for g in range(gates)])
    # A unit with only its candidate dead outputs nothing either.
    last_gate = {4: 2, 3: 2, 1: 0}[gates]
    for variable in model.get_layer("second").weights:
        zero(variable, [3 + 4 * last_gate])
    small = shrink(model)
    assert widths(small)["first"] == 4 and widths(small)["second"] == 3
    assert_same_outputs(model, small)


@pytest.mark.parametrize(
    "merge, kind",
    [("concat", layers.LSTM), ("sum", layers.GRU), ("ave", layers.SimpleRNN), ("mul", layers.LSTM)],
)
def test_both_directions_of_a_recurrent_layer(merge, kind):
    inner = layers.Dense(4, "sigmoid", name="inner")
    both = layers.Bidirectional(kind(6, return_sequences=True), merge, name="both")
    model = sequential((5, 3), inner, both, layers.Bidirectional(kind(3), merge), layers.Dense(2))
    zero(inner.kernel, [0])
    for layer, units in ((both.forward_layer, (1, 5)), (both.backward_layer, (1, 2))):
        gates = layer.cell.kernel.shape[-1] // 6
        for variable in layer.weights:
            zero(variable, [u + 6 * g for u in units for g in range(gates)])
    small = shrink(model)
    # Nothing is left of unit 1, which is dead in both directions; the others live in one.
    assert widths(small)["inner"] == 3
    assert small.get_layer("both").forward_layer.units == small.get_layer("both").backward_layer.units == 5
    assert_same_outputs(model, small)


def test_directions_that_are_not_merged_are_a_wall():
    x, inner = keras.Input((5, 3)), layers.Dense(4)
    model = keras.Model(x, layers.Add()(layers.Bidirectional(layers.LSTM(4), None)(inner(x))))
    kill(inner, [0])
    assert shrink(model).get_layer(inner.name).units == 4


def test_recurrent_units_that_keep_each_other_alive_stay():
    model = sequential((5, 3), layers.SimpleRNN(3, name="a"), layers.Dense(2))
    zero(model.get_layer("a").cell.kernel, [0, 1])
    zero(model.get_layer("a").cell.bias, [0, 1])
    recurrent = np.float32([[1, 0.5, 0], [0, 0, 0], [0, 0, 1]])
    model.get_layer("a").cell.recurrent_kernel.assign(recurrent)
    assert widths(shrink(model))["a"] == 1
    # Unit 2, which is alive, feeds unit 0, which feeds unit 1.
    recurrent[2, 0] = 1
    model.get_layer("a").cell.recurrent_kernel.assign(recurrent)
    assert widths(shrink(model))["a"] == 3


def test_heads_of_attention():
    inputs = keras.Input((5, 4))
    attention = layers.MultiHeadAttention(4, 3, value_dim=2, name="attention")
    model = randomized(keras.Model(inputs, layers.Dense(2)(attention(inputs, inputs))))
    # Head 0 sees nothing and outputs its bias; head 2 is not read.
    zero(attention._value_dense.kernel, [0], axis=1)
    zero(attention._output_dense.kernel, [2], axis=0)
    small = shrink(model)
    assert small.get_layer("attention").num_heads == 2
    assert_same_outputs(model, small)


def test_a_constant_head_stays_where_no_bias_can_take_it():
    inputs = keras.Input((5, 4))
    attention = layers.MultiHeadAttention(2, 3, use_bias=False, name="attention")
    hidden = layers.Dense(4, name="a")(inputs)
    model = randomized(keras.Model(inputs, layers.Dense(2)(attention(hidden, hidden))))
    # Unit 0 is always its bias, and the values of head 0 are made of it alone.
    zero(model.get_layer("a").kernel, [0])
    values = attention._value_dense.kernel.numpy()
    values[1:, 0] = 0
    attention._value_dense.kernel.assign(values)
    small = shrink(model)
    assert small.get_layer("attention").num_heads == 2
    assert_same_outputs(model, small)


def test_embedding_units_under_a_mask():
    inputs = keras.Input((5,), dtype="int32")
    hidden = layers.LSTM(4, return_sequences=True)(layers.Embedding(10, 6, mask_zero=True, name="a")(inputs))
    hidden = layers.MultiHeadAttention(2, 3)(hidden, hidden, use_causal_mask=True)
    model = randomized(keras.Model(inputs, layers.Dense(2)(layers.GlobalAveragePooling1D()(hidden))))
    zero(model.get_layer("a").embeddings, [2, 3])
    small = shrink(model)
    assert widths(small)["a"] == 4
    assert_same_outputs(model, small)


def test_of_no_layer_all_units_go():
    model = sequential(
        (6, 6, 2),
        layers.Conv2D(4, 3, name="a"),
        layers.Conv2D(4, 3, name="b"),
        layers.Flatten(),
        layers.Dense(2),
    )
    for name in "ab":
        kill(model.get_layer(name), range(4))
    small = shrink(model)
    assert widths(small)["a"] == widths(small)["b"] == 1
    assert_same_outputs(model, small)


def test_shared_layers_lose_what_is_dead_in_all_calls():
    inputs = keras.Input((4,))
    shared = layers.Dense(5, "relu", name="shared")
    one, two = layers.Dense(4, "sigmoid", name="one"), layers.Dense(4, "sigmoid", name="two")
    joined = layers.Concatenate()([shared(one(inputs)), shared(two(inputs))])
    model = randomized(keras.Model(inputs, layers.Dense(2)(joined)))
    kill(shared, [0])
    for layer, units in ((one, [0, 1, 2]), (two, [0, 1])):
        zero(layer.kernel, units)
    two.bias.assign(one.bias.numpy() + np.float32([0, 1, 0, 0]))
    small = shrink(model)
    # Unit 0 is the same constant in both, unit 1 is not.
    assert widths(small)["one"] == widths(small)["two"] == 3
    assert small.get_layer("shared").units == 4
    assert_same_outputs(model, small)


@pytest.mark.parametrize(
    "shared",
    [
        layers.ReLU,
        lambda: layers.Dropout(0.5),
        lambda: layers.Reshape((-1, 2)),
        layers.UnitNormalization,
        lambda: keras.Sequential([keras.Input((None,)), layers.ReLU()]),
    ],
    ids=["relu", "dropout", "reshape", "normalization", "model"],
)
@pytest.mark.parametrize("width", [8, 6])
def test_what_has_no_weights_is_shared_by_unlike_layers(shared, width):
    shared, inputs = shared(), keras.Input((5,))
    first, last = layers.Dense(8, name="first"), layers.Dense(width, name="last")
    middle = layers.Flatten()(shared(first(inputs)))
    outputs = layers.Dense(2)(layers.Flatten()(shared(last(middle))))
    model = randomized(keras.Model(inputs, outputs))
    kill(first, [0, 1, 4])
    kill(last, [2, 3])
    small = shrink(model)
    if type(shared) in (layers.ReLU, layers.Dropout, keras.Sequential):
        assert widths(small)["first"] == 5 and widths(small)["last"] == width - 2
    assert_same_outputs(model, small)


def test_a_shared_merge_of_unlike_layers():
    inputs, add = keras.Input((5,)), layers.Add()
    first = [layers.Dense(8, name=name)(inputs) for name in "ab"]
    last = [layers.Dense(6, name=name)(add(first)) for name in "cd"]
    model = randomized(keras.Model(inputs, layers.Dense(2)(add(last))))
    for name in "ab":
        kill(model.get_layer(name), [1])
    small = shrink(model)
    assert [widths(small)[name] for name in "abcd"] == [7, 7, 6, 6]
    assert_same_outputs(model, small)


def test_a_model_inside_with_its_units_on_two_axes():
    swap = keras.Sequential([keras.Input((None, None)), layers.ReLU()])
    inputs = keras.Input((5, 3))
    x = swap(layers.Dense(8, name="one")(inputs))
    x = swap(layers.Permute((2, 1))(layers.Dense(4, name="two")(x)))
    model = randomized(keras.Model(inputs, layers.Dense(2)(layers.Flatten()(x))))
    kill(model.get_layer("one"), [1])
    kill(model.get_layer("two"), [1])
    assert_same_outputs(model, shrink(model))


def test_initializers_of_a_fixed_size():
    table, ones = (keras.initializers.Constant(x) for x in (np.random.normal(size=(7, 6)), np.ones(4)))
    model = keras.Sequential(
        [
            keras.Input((5,), dtype="int32"),
            layers.Embedding(7, 6, embeddings_initializer=table),
            layers.Bidirectional(layers.SimpleRNN(4, bias_initializer=ones)),
            layers.Dense(8, bias_initializer=keras.initializers.Constant(0.5)),
            layers.Dense(3, kernel_initializer=keras.initializers.Constant([[1.0] * 3] * 8)),
        ]
    )
    for direction in (model.layers[1].forward_layer, model.layers[1].backward_layer):
        kernel = direction.cell.kernel
        kernel.assign(kernel.numpy() * (np.arange(6) < 3)[:, None])
    last = model.layers[-1].kernel
    last.assign(last.numpy() * (np.arange(8) < 5)[:, None])
    small = shrink(model)
    assert small.layers[0].output_dim == 3
    assert small.layers[2].units == 5 and small.layers[2].bias_initializer.value == 0.5
    assert small.layers[1].forward_layer.cell.units == 4
    x = np.random.randint(7, size=(2, 5))
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x / keras.ops.mean(x),
        lambda x: keras.ops.maximum(x, keras.ops.mean(x)),
        lambda x: keras.ops.vectorized_map(lambda t: 2 * t, x),
    ],
    ids=["divided", "compared", "mapped"],
)
def test_operations_with_scalars_or_functions(operation):
    inputs = keras.Input((5,))
    x = layers.Dense(8, "relu", name="gone")(inputs)
    x = operation(layers.Dense(8, name="stays")(x))
    model = randomized(keras.Model(inputs, layers.Dense(2)(x)))
    kill(model.get_layer("gone"), [1, 2])
    small = shrink(model)
    assert widths(small)["gone"] == 6 and widths(small)["stays"] == 8
    assert_same_outputs(model, small)


def test_the_small_model_does_not_hold_the_large_one():
    inputs = keras.Input((5,))
    hidden = keras.ops.tanh(layers.Dense(8, name="gone")(inputs)) * 2.0
    model = keras.Model(inputs, layers.Dense(2)(hidden))
    large = weakref.ref(model.get_layer("gone"))
    small = shrink(model)
    del model, hidden, inputs
    gc.collect()
    assert large() is None and small.get_layer("gone").units == 8


def test_nested_models_are_shrunk_inside():
    inner_input = keras.Input((4,))
    inner = keras.Model(
        inner_input,
        layers.Dense(6, name="deep")(layers.Dense(5, "relu", name="in")(inner_input)),
        name="inner",
    )
    stack = keras.Sequential([keras.Input((6,)), layers.Dense(4, name="stacked")], name="stack")
    inputs = keras.Input((3,))
    x = inner(layers.Dense(4, name="before")(inputs), training=False)
    model = randomized(keras.Model(inputs, layers.Dense(2)(stack(x))))
    for layer, units in (
        (model.get_layer("before"), [0]),
        (inner.get_layer("in"), [1, 2]),
        (inner.get_layer("deep"), [5]),
        (stack.layers[0], [3]),
    ):
        kill(layer, units)
    small = shrink(model)
    assert small.get_layer("inner").input_shape == (None, 3)
    assert widths(small.get_layer("inner")) == {"in": 3, "deep": 5}
    assert widths(small.get_layer("stack")) == {"stacked": 3}
    assert_same_outputs(model, small)


def test_nested_models_of_several_inputs():
    left, right = keras.Input((6,)), keras.Input((4,))
    parts = [layers.Dense(8, "relu", name="left")(left), layers.Dense(5, "relu", name="right")(right)]
    inner = keras.Model([left, right], layers.Concatenate()(parts), name="inner")
    inputs = [keras.Input((6,)), keras.Input((4,))]
    model = randomized(keras.Model(inputs, layers.Dense(2)(inner(inputs))))
    kill(inner.get_layer("left"), [0, 3])
    small = shrink(model)
    assert widths(small.get_layer("inner"))["left"] == 6
    assert_same_outputs(model, small)


@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_quantised_layers_stay_as_they_are(mode):
    model = sequential((6,), layers.Dense(8, "relu", name="first"), layers.Dense(4, name="last"))
    kill(model.get_layer("first"), [0, 5])
    model.get_layer("last").quantize(mode)
    small = shrink(model)
    assert widths(small)["first"] == 8 and small.get_layer("last").quantization_mode == mode
    assert_same_outputs(model, small)


def adapted(layer, data):
    layer.adapt(data)
    return layer


NUMBERS = np.random.default_rng(0).normal(5, 3, (100, 6)).astype("float32")
WORDS = np.array([["red"], ["green"], ["blue"], ["red"]])


@pytest.mark.parametrize(
    "preprocess, data",
    [
        (lambda: adapted(layers.Normalization(), NUMBERS), NUMBERS),
        (lambda: keras.Sequential([adapted(layers.Normalization(), NUMBERS)]), NUMBERS),
        (lambda: adapted(layers.Discretization(num_bins=4, output_mode="one_hot"), NUMBERS), NUMBERS[:, :1]),
        (lambda: adapted(layers.StringLookup(output_mode="one_hot"), WORDS), WORDS),
        (lambda: adapted(layers.TextVectorization(output_mode="tf_idf"), WORDS), WORDS),
    ],
    ids=["normalization", "nested", "discretization", "lookup", "text"],
)
def test_what_layers_have_adapted_to_stays(preprocess, data):
    first = preprocess()
    inputs = keras.Input(data.shape[1:], dtype="string" if data.dtype.kind == "U" else "float32")
    hidden = layers.Dense(8, "relu", name="hidden")
    model = keras.Model(inputs, layers.Dense(2)(hidden(first(inputs))))
    kill(hidden, [0, 1])
    small = shrink(model)
    assert widths(small)["hidden"] == 6
    x = tf.constant(data)
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5, atol=1e-6)


def of_a_scalar(dense):
    inputs = keras.Input(())
    return keras.Model(inputs, layers.Dense(2)(dense(layers.Reshape((1,))(inputs))))


def with_given_states(dense):
    inputs = keras.Input((5, 3))
    states = layers.Dense(4)(layers.Flatten()(inputs))
    return keras.Model(inputs, layers.Dense(2)(layers.GRU(4)(dense(inputs), states)))


def renormalized(dense):
    inputs = keras.Input((5,))
    return keras.Model(inputs, layers.Dense(2)(layers.BatchNormalization(renorm=True)(dense(inputs))))


RENORM = "renorm" in inspect.signature(layers.BatchNormalization).parameters


@pytest.mark.parametrize(
    "build, width",
    [
        (of_a_scalar, 4),
        (with_given_states, 6),
        pytest.param(renormalized, 6, marks=pytest.mark.skipif(not RENORM, reason="not in this Keras")),
    ],
)
def test_calls_of_other_kinds(build, width):
    model = randomized(build(layers.Dense(6, name="a")))
    kill(model.get_layer("a"), [0, 1])
    small = shrink(model)
    assert widths(small)["a"] == width
    assert_same_outputs(model, small)


@keras.saving.register_keras_serializable(package="test_shrink")
class Reversed(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=(shape[-1],), name="scale")

    def call(self, x):
        return self.scale * x[..., ::-1]


@pytest.mark.parametrize(
    "wall", [Reversed, lambda: layers.Lambda(lambda x: x[..., ::-1]), lambda: layers.Softmax()]
)
def test_nothing_goes_across_a_layer_of_another_kind(wall):
    model = sequential(
        (4,),
        layers.Dense(5, name="a"),
        layers.Dense(6, name="b"),
        wall(),
        layers.Dense(3, name="c"),
        layers.Dense(2),
    )
    for name in "abc":
        kill(model.get_layer(name), [0, 1])
    small = shrink(model)
    assert [widths(small)[n] for n in "abc"] == [3, 6, 1]
    assert_same_outputs(model, small)


def test_inputs_and_outputs_keep_names_structure_and_size():
    inputs = {"left": keras.Input((3,), name="left"), "right": keras.Input((4,), name="right")}
    hidden = layers.Add()(
        [layers.Dense(5, name="a")(inputs["left"]), layers.Dense(5, name="b")(inputs["right"])]
    )
    model = randomized(
        keras.Model(inputs, {"one": layers.Dense(3, name="c")(hidden), "two": layers.Dense(2)(hidden)})
    )
    for name, units in {"a": [0], "b": [0], "c": [0, 1]}.items():
        kill(model.get_layer(name), units)
    small = shrink(model)
    x = {"left": np.ones((2, 3), "float32"), "right": np.ones((2, 4), "float32")}
    for name, output in small(x).items():
        np.testing.assert_allclose(output, model(x)[name], rtol=1e-5)
    assert widths(small)["a"] == 4 and widths(small)["c"] == 3


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_random_graphs(data):
    model = nets.model(data)
    before = model.get_weights()
    small = shrink(model)
    assert_same_outputs(model, small)
    assert all(np.array_equal(*pair) for pair in zip(before, model.get_weights(), strict=True))


def kill_filters(model, fraction, seed=0):
    """Kill random filters of each layer, half of them with the scale and shift that follow."""
    generator = np.random.default_rng(seed)
    for layer in model._flatten_layers():
        for v in layer.weights:
            if v.name in ("bias", "beta", "moving_mean"):
                v.assign(generator.normal(size=v.shape) * 0.1)
            elif v.name in ("gamma", "moving_variance"):
                v.assign(generator.uniform(0.5, 1.5, v.shape))
    for layer in model.layers:
        if isinstance(layer, (layers.Conv2D, layers.Dense)) and layer.name != "predictions":
            dead = np.flatnonzero(generator.random(layer.kernel.shape[-1]) < fraction)
            zero(layer.kernel, dead)
            dead = generator.permutation(dead)[: len(dead) // 2]
            if layer.use_bias:
                zero(layer.bias, dead)
            for node in layer._outbound_nodes:
                if isinstance(node.operation, layers.BatchNormalization):
                    kill(node.operation, dead)


APPLICATIONS = ["MobileNetV2"]
APPLICATIONS += [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("VGG16", "ResNet50", "DenseNet121", "EfficientNetB0")
]


@pytest.mark.parametrize("name", APPLICATIONS)
def test_applications(name):
    options = {"classifier_activation": None} | ({"alpha": 0.35} if name == "MobileNetV2" else {})
    model = getattr(keras.applications, name)(weights=None, input_shape=(32, 32, 3), classes=10, **options)
    kill_filters(model, 0.4)
    small = shrink(model)
    assert small.count_params() < 0.95 * model.count_params()
    assert_same_outputs(model, small)


def test_it_trains_on_and_loads_without_this_package(tmp_path):
    model = sequential(
        (6, 6, 2),
        layers.Conv2D(6, 3, activation="relu"),
        layers.BatchNormalization(),
        layers.Flatten(),
        layers.Dense(3),
    )
    model.layers[0].trainable = False
    kill(model.layers[0], [0, 1])
    small = shrink(model)
    assert not small.layers[0].trainable and small.layers[1].trainable
    small.layers[0].trainable = True
    before = small.get_weights()
    small.compile("sgd", "mse")
    small.fit(np.ones((8, 6, 6, 2)), np.ones((8, 3)), verbose=0)
    assert all((a != b).any() for a, b in zip(before, small.get_weights(), strict=True))
    small.save(tmp_path / "small.keras")
    # It names nothing from this package.
    with zipfile.ZipFile(tmp_path / "small.keras") as archive:
        assert b"lc_keras" not in archive.read("config.json")
    x = np.random.default_rng(0).normal(size=(3, 6, 6, 2)).astype("float32")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_allclose(loaded(x), small(x), rtol=1e-5, atol=1e-6)


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(2)

    def call(self, x):
        return self.dense(x)


@pytest.mark.parametrize("model", [Subclassed, lambda: keras.Sequential([layers.Dense(2)]), lambda: "model"])
def test_what_is_not_a_graph(model):
    with pytest.raises(TypeError, match="graphs of layers"):
        shrink(model())
