"""Calls of layers that are legal and seldom: a smaller model computes the same, or the units stay."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from helpers import widths
from lc_keras import latency, shrink
from lc_keras.model.latency import known

DRAWN = np.random.default_rng(0)
STEPS = DRAWN.normal(size=(3, 5, 6)).astype("float32")


def differ(model, data):
    """Return how far outputs of the smaller model are from those of the model, relative to the largest."""
    small = shrink(model)
    pairs = zip(keras.tree.flatten(model(data)), keras.tree.flatten(small(data)), strict=True)
    return max(np.abs(one - other).max() / np.abs(one).max() for one, other in pairs)


def dead(layer, units):
    """Make some units of a dense layer constant."""
    layer.kernel.assign(layer.kernel.numpy() * ~np.isin(np.arange(layer.units), units))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, mask: layers.GlobalAveragePooling1D()(x, mask),
        lambda x, mask: layers.GlobalAveragePooling1D()(x, mask=mask),
        lambda x, mask: layers.LSTM(3)(x, None, mask),
    ],
    ids=["by position", "by name", "third"],
)
def test_a_mask_is_read(call):
    x = keras.Input((5, 6))
    mask = layers.Dense(5, name="a", bias_initializer="ones")(ops.mean(x, axis=-1)) > 0
    model = keras.Model(x, layers.Dense(2)(call(x, mask)))
    assert differ(model, STEPS) < 1e-6 and widths(shrink(model))["a"] == 5


@pytest.mark.parametrize("add", [lambda x, y: x + y, lambda x, y: layers.Add()([x, y])], ids=["+", "Add"])
def test_a_sum_of_one_has_the_mask_that_it_had(add):
    words = keras.Input((5,), dtype="int32")
    data = np.array([[1, 2, 0, 0, 0], [3, 0, 0, 4, 0]])
    x, block = (
        layers.Embedding(10, 6, mask_zero=True, embeddings_initializer="normal")(words),
        layers.Dense(6),
    )
    model = keras.Model(words, layers.Dense(2)(layers.LSTM(3)(add(x, block(x)))))
    dead(block, range(6))
    assert differ(model, data) < 1e-6


def test_a_sum_of_one_has_the_type_that_it_had():
    x = keras.Input((6,))
    half, gone = layers.Dense(8, dtype="float16"), layers.Dense(8)
    model = keras.Model(x, layers.Add(dtype="float32")([half(x), gone(x)]) * 1e5)
    dead(gone, range(8))
    assert np.isfinite(shrink(model)(np.ones((1, 6)))).all()


@pytest.mark.parametrize("add", [lambda x, y: x + y, lambda x, y: layers.Add()([x, y])], ids=["+", "Add"])
def test_a_sum_whose_parts_are_of_open_lengths_is_as_long_as_it_was(add):
    x, y, gone = keras.Input((None, 6)), keras.Input((None, 6)), layers.Dense(6)
    model = keras.Model([x, y], layers.Dense(2)(layers.LSTM(3)(add(x, gone(y)))))
    dead(gone, range(6))
    assert differ(model, [STEPS[:, :1], STEPS]) < 1e-6 and differ(model, [STEPS, STEPS[:, :1]]) < 1e-6
    one = keras.Model(y, layers.Dense(2)(layers.LSTM(3)(add(y[:, :1], gone(y)))))
    assert differ(one, STEPS) < 1e-6
    same = keras.Model(y, layers.Dense(2)(layers.LSTM(3)(add(y, gone(y)))))
    assert differ(same, STEPS) < 1e-6 and gone.name not in widths(shrink(same))


def test_outputs_have_the_names_that_they_had():
    x, gone = keras.Input((6,)), layers.Dense(6)
    a = layers.Dense(6, name="a")(x)
    total = layers.Add(name="total")([a, gone(a)])
    inside = keras.Input((6,))
    nested = keras.Model(inside, layers.Dense(2)(gone(inside)), name="nested")
    model = keras.Model(x, [a, total, total > 0, nested(total)])
    dead(gone, range(6))
    small = shrink(model)
    assert small.output_names == model.output_names
    assert [t.dtype for t in small.outputs] == [t.dtype for t in model.outputs]
    for one, other in zip(model(STEPS[0]), small(STEPS[0]), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("kind", [layers.Dropout, layers.AlphaDropout])
@pytest.mark.parametrize("noise, left", [((None, 1, 8), (None, 1, 6)), ((8,), (6,)), ((3, 5, 1), (3, 5, 1))])
def test_noise_of_a_shape_of_its_own(kind, noise, left):
    x, a = keras.Input((5, 6)), layers.Dense(8, use_bias=False)
    model = keras.Model(x, layers.Dense(2)(kind(0.5, noise, name="noise")(a(x))))
    dead(a, [0, 1])
    small = shrink(model)
    assert tuple(small.get_layer("noise").noise_shape) == left
    assert np.shape(small(STEPS, training=True)) == (3, 5, 2) and differ(model, STEPS) < 1e-6


def by_width(x):
    return ops.tanh(x / x.shape[-1])


def by_rank(x):
    return x if len(x.shape) == 2 else x - ops.mean(x, axis=-1, keepdims=True)


def by_unit(x):
    return ops.clip(x, [-0.1] * 8, [0.1 * (i + 1) for i in range(8)])


@pytest.mark.parametrize("activation", [by_width, by_rank, by_unit])
def test_an_activation_that_is_not_of_each_unit_alone_keeps_them(activation):
    x, a = keras.Input((5, 6)), layers.Dense(8, activation, name="a", bias_initializer="ones")
    model = keras.Model(x, layers.Dense(2)(a(x)))
    dead(a, range(4))
    assert differ(model, STEPS) < 1e-5 and widths(shrink(model))["a"] == 8


def test_a_maximum_that_begins_somewhere():
    x, a = keras.Input((5, 6)), layers.Dense(4)
    model = keras.Model(x, layers.Dense(2)(ops.max(a(x), axis=1, initial=5.0)))
    dead(a, [2, 3])
    assert differ(model, STEPS) < 1e-6


def test_shared_attention_whose_constant_head_differs():
    x = keras.Input((5, 6))
    one, two, attend = layers.Dense(4), layers.Dense(4), layers.MultiHeadAttention(2, 3)
    model = keras.Model(x, [attend(x, one(x)), attend(x, two(x))])
    for layer, bias in ((one, 1), (two, 3)):
        dead(layer, [0])
        layer.bias.assign(np.full(4, bias))
    kernel = attend.value_dense.kernel.numpy()
    kernel[1:, 0] = 0
    attend.value_dense.kernel.assign(kernel)
    assert differ(model, STEPS) < 1e-5


@pytest.mark.parametrize(
    "operation, units, gone",
    [
        (lambda x: ops.repeat(x, [1, 2, 1, 1, 1, 3, 1, 1], axis=-1), 8, [1, 2]),
        (lambda x: ops.depth_to_space(x, 2), 4, [0, 2]),
        (
            lambda x: ops.depth_to_space(layers.Permute((3, 1, 2))(x), 2, data_format="channels_first"),
            8,
            [0, 1, 4, 5],
        ),
        (
            lambda x: layers.RMSNormalization(axis=1)(ops.transpose(layers.Reshape((16, 16))(x), (0, 2, 1))),
            16,
            [0],
        ),
    ],
    ids=["repeat", "depth_to_space", "channels first", "scaled along another axis"],
)
def test_operations_that_move_units_unlike(operation, units, gone):
    x, a = keras.Input((4, 4, 3)), layers.Dense(units)
    model = keras.Model(x, layers.Dense(2)(layers.Flatten()(operation(a(x)))))
    dead(a, gone)
    assert differ(model, DRAWN.normal(size=(2, 4, 4, 3))) < 1e-5


def test_a_list_with_a_number_for_each_unit_keeps_those_that_nothing_reads():
    x, a, reads = keras.Input((6,)), layers.Dense(8, name="a"), layers.Dense(2)
    model = keras.Model(x, reads(ops.cast(a(x) > [0.1 * i for i in range(8)], "float32")))
    reads.kernel.assign(reads.kernel.numpy() * (np.arange(8)[:, None] > 2))
    assert differ(model, STEPS[0]) < 1e-6 and widths(shrink(model))["a"] == 8


@keras.saving.register_keras_serializable("test_unusual_calls")
class Block(layers.Layer):
    """A layer made of another one and of its own."""

    def __init__(self, inner, **options):
        super().__init__(**options)
        self.inner, self.own = inner, layers.Dense(6, name="own")

    def build(self, shape):
        self.inner.build(shape)
        self.own.build(shape)

    def call(self, x):
        return self.own(self.inner(x))


def test_a_layer_has_the_name_that_an_inner_one_would_get():
    x, a = keras.Input((6,)), layers.Dense(6, name="d", use_bias=False)
    model = keras.Model(x, layers.Dense(6, name="b_d")(Block(a, name="b")(x)))
    dead(a, [0, 1, 2])
    assert differ(model, STEPS[0]) < 1e-5


def test_a_nested_model_called_by_name():
    x, a = keras.Input((6,)), layers.Dense(6, name="a", use_bias=False)
    nested = keras.Sequential([keras.Input((6,)), layers.Dense(6)])
    model = keras.Model(x, nested(training=False, inputs=a(x)))
    dead(a, [0, 1, 2])
    assert differ(model, STEPS[0]) < 1e-5 and widths(shrink(model))["a"] == 3


def test_a_model_at_each_step_that_shares_a_layer():
    shared = layers.Dense(6, use_bias=False)
    each, x = keras.Input((6,)), keras.Input((5, 6))
    nested = keras.Model(each, layers.Dense(4)(shared(each)))
    model = keras.Model(x, [layers.TimeDistributed(nested)(x), layers.Dense(2)(shared(x))])
    dead(shared, [0, 1])
    assert differ(model, STEPS) < 1e-5


def test_models_inside_that_share_a_layer_and_have_layers_of_the_same_name(tmp_path):
    x, shared = keras.Input((6,)), layers.Dense(6, use_bias=False, name="shared")

    def nested(name):
        inside = keras.Input((6,))
        return keras.Model(inside, layers.Dense(6, name="hidden")(shared(inside)), name=name)

    behind = shared(nested("one")(nested("two")(x)))
    model = keras.Model(x, layers.Dense(2, name="hidden")(behind))
    dead(shared, [0, 1])
    assert differ(model, STEPS[0]) < 1e-6
    small = shrink(model)
    assert widths(small)["shared"] == 4 and small.get_layer("hidden").units == 2
    small.save(tmp_path / "small.keras")
    loaded = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(loaded(STEPS[0]), small(STEPS[0]))


def test_small_rows_of_a_kernel_that_seems_of_low_rank_count():
    model = keras.Sequential([keras.Input((16,)), layers.Dense(16, use_bias=False)])
    kernel = DRAWN.normal(size=(16, 2)) @ DRAWN.normal(size=(2, 16))
    model.layers[0].kernel.assign(kernel)
    assert len(shrink(model).layers) == 2
    # Of a feature that is seven orders of magnitude larger.
    kernel[0] = 1e-7 * DRAWN.normal(size=16)
    model.layers[0].kernel.assign(kernel)
    assert differ(model, DRAWN.normal(size=(3, 16)) * np.array([1e7] + [1] * 15)) < 1e-5


def test_low_rank_called_by_name():
    x, a = keras.Input((20,)), layers.Dense(20)
    model = keras.Model(x, a(inputs=x))
    a.kernel.assign(np.outer(np.arange(20), np.ones(20)))
    assert differ(model, DRAWN.normal(size=(2, 20))) < 1e-5


def fixed(shape, dtype=None):
    return np.arange(6 * 8).reshape(6, 8).astype(dtype or "float32") / 48


def test_an_initializer_with_an_array_of_its_own():
    x, a = keras.Input((6,)), layers.Dense(8, kernel_initializer=fixed)
    model = keras.Model(x, layers.Dense(2)(a(x)))
    dead(a, [0])
    assert differ(model, STEPS[0]) < 1e-5


def test_a_fit_of_time_is_of_one_size_of_images():
    def net(size):
        x = keras.Input((size, size, 3))
        pooled = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 3, name="c")(x))
        return keras.Model(x, layers.Dense(2, name="d")(pooled))

    small = net(8)
    assert known(small) is None
    latency(small, nets=4, seconds=0.01)
    assert known(net(8)) and not known(net(16))
