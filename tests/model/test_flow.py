"""Units that flow through single layers, and through calls that are not plain."""

import keras
import numpy as np
import pytest
from keras import layers

from helpers import assert_same_outputs, kill, randomized, sequential, widths, zero
from lc_keras import L0Constraint, Neurons, Task
from lc_keras.baselines import compress_directly
from lc_keras.model import Graph
from lc_keras.shrinking.rebuilding import shrink


def two(merge, first="linear", second="linear", units=6):
    """Two dense layers side by side, and another behind the layer that merges them."""
    x = keras.Input((5,))
    a, b = layers.Dense(units, first, name="a"), layers.Dense(units, second, name="b")
    return randomized(keras.Model(x, layers.Dense(2)(merge([a(x), b(x)]))))


# What is not zero and has to stay exactly as it is

MIXING = [
    ("softmax", lambda: sequential((5,), layers.Dense(6, "softmax", name="a"), layers.Dense(2, name="b"))),
    (
        "depthwise softmax",
        lambda: sequential(
            (6, 6, 2),
            layers.Conv2D(5, 3, name="a"),
            layers.DepthwiseConv2D(3, activation="softmax"),
            layers.Conv2D(2, 1, name="b"),
        ),
    ),
]


@pytest.mark.parametrize("build", [build for _, build in MIXING], ids=[name for name, _ in MIXING])
def test_what_is_not_read_stays_where_units_are_mixed(build):
    model = build()
    zero(model.get_layer("b").kernel, [0, 1], -2)
    small = shrink(model)
    assert widths(small) == widths(model)
    assert_same_outputs(model, small)


@pytest.mark.parametrize("layer", [layers.LSTM, layers.GRU, layers.SimpleRNN])
def test_constants_stay_before_recurrent_layers_without_a_bias(layer):
    model = sequential(
        (4, 5), layers.Dense(6, "sigmoid", name="a"), layer(3, use_bias=False), layers.Dense(2)
    )
    zero(model.get_layer("a").kernel, [0, 1])
    small = shrink(model)
    assert widths(small)["a"] == 6
    assert_same_outputs(model, small)


def test_a_normalisation_over_several_axes_keeps_its_units():
    model = sequential(
        (4, 5), layers.Dense(6, "relu", name="a"), layers.LayerNormalization(axis=[1, 2]), layers.Dense(2)
    )
    kill(model.get_layer("a"), [0, 1])
    assert_same_outputs(model, shrink(model))


@pytest.mark.parametrize("options", [{"use_gate": True}, {"output_shape": (2, 3)}], ids=str)
def test_attention_of_another_kind(options):
    x = keras.Input((4, 5))
    try:
        attention = layers.MultiHeadAttention(2, 3, **options)
    except (TypeError, ValueError):
        pytest.skip(f"this Keras has no {options}")
    model = randomized(keras.Model(x, attention(x, x)))
    zero(attention._value_dense.kernel, [0], 1)
    assert_same_outputs(model, shrink(model))


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {}], ids=str)
def test_a_constant_head_where_all_is_masked(options):
    words = keras.Input((6,), dtype="int32")
    seen = layers.Embedding(10, 8, mask_zero=True)(words)
    attention = layers.MultiHeadAttention(4, 3, **options)
    model = randomized(keras.Model(words, layers.Dense(2)(layers.Flatten()(attention(seen, seen)))))
    zero(attention._value_dense.kernel, [0], 1)
    small, x = shrink(model), np.array([[1, 2, 3, 0, 0, 0], [0, 0, 0, 0, 0, 0]])
    np.testing.assert_allclose(small(x), model(x), rtol=1e-4, atol=1e-4)


def test_a_mask_that_is_computed_is_read():
    x = keras.Input((4, 3))
    h = layers.Dense(6, "relu", name="h")(layers.Flatten()(x))
    mask = layers.Dense(5, "sigmoid")(h)
    model = randomized(keras.Model(x, layers.Softmax()(layers.Dense(5)(layers.Flatten()(x)), mask=mask)))
    assert widths(shrink(model))["h"] == 6


def test_a_kernel_with_lora_is_not_what_it_multiplies_by():
    model = sequential((6,), layers.Dense(8, name="a"), layers.Dense(8, name="b"), layers.Dense(4))
    model.get_layer("b").enable_lora(2)
    randomized(model)
    kill(model.get_layer("a"), [0, 5])
    small = shrink(model)
    assert widths(small)["a"] == 8
    assert_same_outputs(model, small)


# What goes

POINTWISE = [
    lambda: layers.Conv2D(4, 1, padding="same"),
    lambda: layers.SeparableConv2D(4, 1, padding="same"),
    lambda: layers.DepthwiseConv2D(1, padding="same"),
]


@pytest.mark.parametrize("layer", POINTWISE)
def test_nothing_is_padded_where_a_kernel_has_one_pixel(layer):
    model = sequential((6, 6, 2), layers.Conv2D(5, 3, name="a"), layer(), layers.Conv2D(2, 1))
    zero(model.get_layer("a").kernel, [0, 3])
    small = shrink(model)
    assert widths(small)["a"] == 3
    assert_same_outputs(model, small)


def test_a_constant_before_padding_goes_if_nothing_reads_it():
    padded = layers.Conv2D(4, 3, padding="same", name="b")
    model = sequential((6, 6, 2), layers.Conv2D(5, 3, name="a"), padded)
    zero(model.get_layer("a").kernel, [0])
    zero(model.get_layer("b").kernel, [0], 2)
    assert widths(shrink(model))["a"] == 4


EINSUMS = {
    "plain": (("abc,cd->abd", (None, 6), "d"), ("abd,de->abe", (None, 4), "e")),
    "open": (("...c,cd->...d", 6, "d"), ("...d,de->...e", 4, None)),
    "turned": (("abc,cd->adb", (6, None), None), ("adb,de->abe", (None, 4), "e")),
    "heads": (("abc,chd->abhd", (None, 6, 2), "hd"), ("abhd,hde->abe", (None, 4), "e")),
    "open heads": (("...c,cdh->...hd", (2, 6), "dh"), ("...hd,hde->...e", 4, "e")),
}


@pytest.mark.parametrize(
    # "open heads" covers both.
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name in ("open", "heads"))) for name in EINSUMS],
)
def test_units_of_einsums(name, tmp_path):
    a, b = (
        layers.EinsumDense(equation, shape, bias_axes=axes, activation="relu", name=n)
        for n, (equation, shape, axes) in zip("ab", EINSUMS[name], strict=True)
    )
    model = sequential((3, 5), a, b, layers.Dense(2))
    unit = list(a.kernel.shape).index(6) - len(a.kernel.shape)
    zero(a.kernel, [0, 2, 3], unit)
    if a.bias is not None:
        zero(a.bias, [0, 2], list(a.bias.shape).index(6))
    small = shrink(model)
    # Unit 3 is a constant, which is folded where it is one number and a bias takes it.
    left = 3 if name in ("plain", "turned") else 4
    assert small.get_layer("a").kernel.shape[unit] == left
    assert_same_outputs(model, small)
    small.save(tmp_path / "small.keras")
    assert_same_outputs(model, keras.saving.load_model(tmp_path / "small.keras"))
    task = Task(L0Constraint(0.6, Neurons(), measure="parameters"))
    compress_directly(model, task)
    kept, whole = shrink(model).count_params(), model.count_params()
    assert 0.3 * whole < kept <= 0.6 * whole + 0.4 * 10


def test_einsums_in_bfloat16():
    made = layers.EinsumDense("abc,cde->abde", (None, 6, 2), activation="relu", dtype="bfloat16")
    read = layers.EinsumDense("abde,def->abf", (None, 4), dtype="bfloat16")
    model = sequential((3, 5), made, read)
    zero(made.kernel, [0, 2], -2)
    assert shrink(model).layers[0].kernel.shape == (5, 4, 2)


@pytest.mark.parametrize(
    "equation, shape, axes",
    [
        ("abc,bcd->abd", (3, 6), "d"),
        ("abc,cd->abd", (3, 6), "bd"),
        ("abc,cd->adb", (6, 3), "d"),
        ("abc,cdef->abdef", (3, 6, 2, 2), None),
        ("ab...,bc->ac...", 6, None),
    ],
)
def test_einsums_of_other_kinds_are_walls(equation, shape, axes):
    layer = layers.EinsumDense(equation, shape, bias_axes=axes, name="other")
    model = sequential((3, 5), layers.Dense(5), layer, layers.Flatten(), layers.Dense(2))
    assert layer in Graph(model).walls


def test_a_product_with_zero_is_zero():
    model = two(layers.Multiply())
    kill(model.get_layer("a"), [0])
    small = shrink(model)
    assert widths(small)["a"] == widths(small)["b"] == 5
    assert_same_outputs(model, small)


def test_a_unit_that_is_spread_over_others_is_read():
    x = keras.Input((5,))
    one = layers.Dense(1, "sigmoid")(layers.Dense(4, "relu", name="h")(x))
    model = randomized(keras.Model(x, layers.Multiply()([layers.Dense(6)(x), one])))
    small = shrink(model)
    assert widths(small)["h"] == 4
    assert_same_outputs(model, small)


def test_a_slope_that_differs_from_place_to_place():
    model = sequential((4, 4, 3), layers.Conv2D(5, 1, name="a"), layers.PReLU(), layers.Conv2D(2, 1))
    zero(model.get_layer("a").kernel, [0, 1])
    model.get_layer("a").bias.assign(-np.ones(5))
    assert_same_outputs(model, shrink(model))


@pytest.mark.parametrize(
    "behind",
    [
        lambda: layers.GlobalMaxPooling1D("channels_first", keepdims=True),
        lambda: layers.Flatten("channels_first"),
    ],
)
def test_channels_that_come_first(behind):
    stack = [layers.Dense(5, name="a"), layers.Permute((2, 1)), behind(), layers.Flatten(), layers.Dense(2)]
    model = sequential((4, 3), *stack)
    kill(model.get_layer("a"), [0])
    small = shrink(model)
    assert widths(small)["a"] == 4
    assert_same_outputs(model, small)


def test_unlike_constants_side_by_side():
    x = keras.Input((3, 4))
    a, b = layers.Dense(5, name="a"), layers.Dense(5)
    model = randomized(keras.Model(x, layers.Dense(2)(layers.Concatenate(axis=1)([a(x), b(x)]))))
    for layer in (a, b):
        zero(layer.kernel, [0])
    a.bias.assign(b.bias + 1)
    small = shrink(model)
    assert widths(small)["a"] == 5
    assert_same_outputs(model, small)


def test_a_column_of_an_embedding_that_is_the_same_for_all_words():
    words = keras.Input((4,), dtype="int32")
    seen = layers.Embedding(10, 5, name="a")
    model = randomized(keras.Model(words, layers.Dense(2)(layers.Flatten()(seen(words)))))
    table = seen.embeddings.numpy()
    table[:, 1] = 0.7
    seen.embeddings.assign(table)
    small = shrink(model)
    assert widths(small)["a"] == 4
    assert_same_outputs(model, small)


# Calls that are not plain


def test_a_constant_of_a_shared_layer_whose_first_call_nothing_reads():
    x = keras.Input((5,))
    a, b = layers.Dense(4, "sigmoid", name="a"), layers.Dense(4, "sigmoid", name="b")
    shared, last = layers.Dense(3), layers.Dense(2)
    model = randomized(keras.Model(x, last(layers.Concatenate()([shared(a(x)), shared(b(x))]))))
    zero(b.kernel, [0])
    zero(last.kernel, [0, 1, 2], 0)
    assert_same_outputs(model, shrink(model))


@pytest.mark.parametrize(
    "merge", [layers.Add, layers.Multiply, layers.Concatenate, layers.Subtract], ids=lambda m: m.__name__
)
def test_an_array_among_the_inputs_of_a_merge(merge):
    x = keras.Input((5,))
    a = layers.Dense(6)
    model = randomized(keras.Model(x, layers.Dense(2)(merge()([a(x), np.ones((4, 6), "float32")]))))
    kill(a, [0, 1])
    assert_same_outputs(model, shrink(model))
    with pytest.raises(ValueError, match="of which none can be removed"):
        compress_directly(model, L0Constraint(0.6, Neurons()))


def test_a_model_of_a_list_of_inputs_that_is_called_with_a_dictionary():
    left, right = keras.Input((5,), name="left"), keras.Input((4,), name="a_right")
    inner = keras.Model([left, right], layers.Dense(3)(layers.Concatenate()([left, right])))
    x = keras.Input((5,))
    a, b = layers.Dense(5, "sigmoid", name="a"), layers.Dense(4, "sigmoid", name="b")
    model = randomized(keras.Model(x, inner({"left": a(x), "a_right": b(x)})))
    zero(a.kernel, [0, 1])
    zero(b.kernel, [3])
    small = shrink(model)
    assert (widths(small)["a"], widths(small)["b"]) == (3, 3)
    assert_same_outputs(model, small)


def test_a_model_that_is_called_in_two_ways():
    image = keras.Input((5,))
    dense = layers.Dense(6, "relu")
    inner = keras.Model(image, layers.Dense(4)(dense(image)))
    x = keras.Input((5,))
    model = randomized(keras.Model(x, layers.Add()([inner(x), inner(x, training=True)])))
    kill(dense, [0])
    assert_same_outputs(model, shrink(model))


def test_a_model_that_is_called_on_another_shape():
    flat = keras.Input((6,))
    inner = keras.Model(flat, layers.Dense(4)(flat))
    x, y = keras.Input((5,)), keras.Input((None,))
    reshaped = layers.Reshape((6, 1))(layers.Dense(6, name="a")(x))
    model = randomized(keras.Model([x, y], layers.Add()([inner(reshaped), inner(y)])))
    small = shrink(model)
    assert widths(small)["a"] == 6
    inputs = [np.ones((2, 5), "float32"), np.ones((2, 6), "float32")]
    np.testing.assert_allclose(small(inputs), model(inputs), rtol=1e-5)


def test_an_open_axis_that_is_divided():
    stack = [layers.Dense(6), layers.Reshape((-1, 2, 6)), layers.Dense(2)]
    model = sequential((None, 3), *stack)
    small, x = shrink(model), np.ones((1, 4, 3), "float32")
    np.testing.assert_allclose(small(x), model(x), rtol=1e-5)
    with pytest.raises(ValueError, match="of which none can be removed"):
        compress_directly(model, L0Constraint(0.6, Neurons()))


def test_a_layer_that_hands_on_a_list():
    x = keras.Input((5,))
    a, b = layers.Identity()([layers.Dense(6)(x), layers.Dense(6)(x)])
    model = randomized(keras.Model(x, layers.Add()([a, b])))
    assert_same_outputs(model, shrink(model))


# What is inside layers, and what is the user's own


@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_quantised_attention(mode):
    x = keras.Input((4, 5))
    model = randomized(keras.Model(x, layers.MultiHeadAttention(2, 3)(x, x)))
    model.quantize(mode)
    assert_same_outputs(model, shrink(model))


def test_attention_quantised_in_blocks():
    x = keras.Input((4, 8))
    model = randomized(keras.Model(x, layers.MultiHeadAttention(2, 4)(x, x)))
    model.quantize(config=keras.quantizers.Int4QuantizationConfig(block_size=4))
    assert_same_outputs(model, shrink(model))


def test_attention_with_lora():
    x = keras.Input((4, 5))
    attention = layers.MultiHeadAttention(2, 3)
    model = keras.Model(x, attention(x, x))
    attention._query_dense.enable_lora(2, lora_alpha=8)
    assert_same_outputs(randomized(model), shrink(model))


def test_a_quantised_layer_with_lora():
    model = sequential((6,), layers.Dense(8), layers.Dense(4))
    model.quantize("int8")
    first = model.layers[0]
    first.enable_lora(2, lora_alpha=8)
    first.lora_kernel_b.assign(np.ones((2, 8)))
    small = shrink(model)
    assert_same_outputs(model, small)
    np.testing.assert_array_equal(small.layers[0].lora_kernel_a, first.lora_kernel_a)


def own(x):
    return x * keras.ops.tanh(x)


class Twice:
    """Has no hash, and no config."""

    def __call__(self, x):
        return 2 * x

    def __eq__(self, other):
        return isinstance(other, Twice)


@pytest.mark.parametrize(
    "activation, width", [(own, 4), (lambda x: 2 * x, 4), (Twice(), 4)], ids=["function", "lambda", "object"]
)
def test_an_activation_of_the_users_own(activation, width):
    model = sequential((5,), layers.Dense(6, name="a"), layers.Dense(4, activation), layers.Dense(2))
    kill(model.get_layer("a"), [1, 2])
    small = shrink(model)
    assert widths(small)["a"] == (6 if isinstance(activation, Twice) else width)
    assert_same_outputs(model, small)


class Block(layers.Layer):
    """Has no config, and a weight of its own."""

    def __init__(self, units):
        super().__init__()
        self.inner = layers.Dense(units)

    def build(self, shape):
        self.inner.build(shape)
        self.scale = self.add_weight(shape=(), name="scale")

    def call(self, x):
        return self.scale * self.inner(x)


def test_a_layer_that_cannot_be_made_anew_is_in_both_models():
    block = Block(4)
    model = sequential((5,), layers.Dense(6, name="a"), block, layers.Dense(3, name="b"), layers.Dense(2))
    kill(model.get_layer("b"), [1])
    with pytest.warns(UserWarning, match="'block.*' cannot be rebuilt"):
        small = shrink(model)
    assert small.layers[1] is block and widths(small)["b"] == 2
    assert_same_outputs(model, small)
    three_times = layers.Lambda(lambda x, by: x * by, arguments={"by": 3.0}, output_shape=(2,))
    model = sequential((5,), layers.Dense(2), three_times)
    small = shrink(model)
    assert small.layers[1]._output_shape == (2,)
    assert_same_outputs(model, small)


class Own(keras.Model):
    pass


def test_inputs_and_classes_are_kept():
    x = keras.Input((5,), sparse=True)
    model = Own(x, layers.Dense(2)(x))
    small = shrink(model)
    assert type(small) is Own and small.inputs[0].sparse
    stack = type("Stack", (keras.Sequential,), {})
    assert type(shrink(stack([keras.Input((5,)), layers.Dense(2)]))) is stack
