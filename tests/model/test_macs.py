import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras.model.macs import macs

L = keras.layers


def uses(*layers, shape):
    """The uses of each kernel of a chain of layers, in the order of the variables."""
    return [kernel.uses for kernel in macs(keras.Sequential([keras.Input(shape), *layers])).kernels]


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (L.Dense(3), (5,), [1]),
        (L.Dense(3), (7, 4, 5), [28]),
        (L.EinsumDense("abc,cde->abde", (7, 2, 3)), (7, 5), [7]),
        (L.EinsumDense("...c,cd->...d", (7, 4, 3)), (7, 4, 5), [28]),
        (L.EinsumDense("abc,acd->abd", (7, 2)), (7, 5), None),
        (L.Conv1D(4, 3), (10, 2), [8]),
        (L.Conv1D(4, 3, padding="causal"), (10, 2), [10]),
        (L.Conv2D(4, 3, strides=2, padding="same"), (9, 7, 2), [5 * 4]),
        (L.Conv2D(4, 3, dilation_rate=2, groups=2), (9, 7, 2), [5 * 3]),
        (L.Conv3D(4, 2), (4, 5, 6, 1), [3 * 4 * 5]),
        (L.DepthwiseConv1D(3, depth_multiplier=2), (9, 3), [7]),
        (L.DepthwiseConv2D(3, depth_multiplier=2), (9, 7, 3), [7 * 5]),
        (L.SeparableConv1D(4, 3), (9, 2), [7, 7]),
        (L.SeparableConv2D(4, 3, strides=2), (9, 7, 2), [4 * 3, 4 * 3]),
        (L.Conv1DTranspose(4, 3, strides=2), (9, 2), [9]),
        (L.Conv2DTranspose(4, 3, strides=2, padding="same"), (9, 7, 2), [63]),
        (L.Conv3DTranspose(4, 3), (3, 3, 3, 2), [27]),
        (L.LSTM(4), (6, 3), [6, 6]),
        (L.GRU(4, return_sequences=True), (6, 3), [6, 6]),
        (L.RNN([L.SimpleRNNCell(4), L.LSTMCell(5)]), (6, 3), [6] * 4),
        (L.Bidirectional(L.LSTM(4)), (6, 3), [6] * 4),
        (L.ConvLSTM2D(4, 3), (6, 9, 8, 3), [6 * 7 * 6] * 2),
        (L.ConvLSTM1D(4, 3, return_state=True), (6, 9, 3), [6 * 7] * 2),
        (L.TimeDistributed(L.Conv2D(4, 3)), (6, 9, 8, 3), [6 * 7 * 6]),
        (L.TimeDistributed(L.Dense(4)), (6, 9), [6]),
        (L.BatchNormalization(), (6,), []),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_uses_of_a_weight(layer, shape, expected):
    if expected is None:
        # One kernel for each row of the batch: it fits one batch size only.
        with pytest.raises(ValueError, match="fully-defined"):
            uses(layer, shape=shape)
        return
    assert uses(layer, shape=shape) == expected


@pytest.mark.parametrize(
    "layer, shape",
    [
        (L.Dense(6), (5, 4)),
        (L.EinsumDense("abc,cde->abde", (7, 2, 3)), (7, 5)),
        (L.Conv2D(6, 3, strides=2, groups=2), (9, 8, 4)),
        (L.DepthwiseConv2D(3, depth_multiplier=2), (9, 8, 4)),
        (L.Conv2DTranspose(6, 3, strides=2), (9, 8, 4)),
        (L.Conv1D(6, 3, data_format="channels_last", dilation_rate=2), (9, 4)),
    ],
    ids=["dense", "einsum", "conv", "depthwise", "transposed", "dilated"],
)
def test_a_sum_over_ones_counts_the_same(layer, shape):
    model = keras.Sequential([keras.Input(shape), layer])
    for variable in model.trainable_variables:
        variable.assign(tf.zeros(variable.shape) if variable.name == "bias" else tf.ones(variable.shape))
    assert macs(model).dense == float(keras.ops.sum(model(np.ones([1, *shape], "float32"))))


def test_attention():
    x, memory = keras.Input((5, 8)), keras.Input((7, 6))
    attend = L.MultiHeadAttention(num_heads=2, key_dim=3, value_dim=4)
    counted = macs(keras.Model([x, memory], attend(x, memory)))
    assert [k.uses for k in counted.kernels] == [5, 7, 7, 5]
    assert counted.attention == 5 * 7 * 2 * (3 + 4)
    grouped = L.GroupQueryAttention(head_dim=3, num_query_heads=4, num_key_value_heads=2)
    other = keras.Input((7, 8))
    counted = macs(keras.Model([x, other], grouped(x, other)))
    assert counted.attention == 5 * 7 * 4 * 6 and counted.unknown == ()
    assert macs(keras.Model([x, other], L.Attention()([x, other]))).attention == 5 * 7 * 16
    images = keras.Input((4, 5, 6))
    for axes, pairs in ((None, 20 * 20), ((2,), 20 * 5), ((-3,), 20 * 4)):
        attend = L.MultiHeadAttention(num_heads=2, key_dim=3, attention_axes=axes)
        assert macs(keras.Model(images, attend(images, images))).attention == pairs * 2 * (3 + 3)


def test_totals_and_zeros():
    model = keras.Sequential([keras.Input((6, 6, 1)), L.Conv2D(4, 3), L.Flatten(), L.Dense(10)])
    kernel = np.zeros((3, 3, 1, 4), "float32")
    kernel[0, 0, 0, :3] = 1
    model.layers[0].kernel.assign(kernel)
    counted = macs(model)
    assert [(k.dense, k.remaining) for k in counted.kernels] == [(16 * 36, 16 * 3), (640, 640)]
    assert (counted.dense, counted.remaining, counted.attention) == (16 * 36 + 640, 16 * 3 + 640, 0)


def test_shared_layers_count_each_call_and_nested_models_count():
    x = keras.Input((5,))
    shared = L.Dense(5)
    inner = keras.Sequential([keras.Input((5,)), L.Dense(2)])
    counted = macs(keras.Model(x, inner(shared(shared(x)))))
    assert sorted(k.uses for k in counted.kernels) == [1, 2]


def test_what_is_not_known():
    sequences = keras.Sequential([keras.Input((None, 5)), L.LSTM(4), L.Dense(2)])
    counted = macs(sequences)
    assert [k.uses for k in counted.kernels] == [None, None, 1]
    assert counted.unknown == tuple(k.path for k in counted.kernels[:2]) and counted.dense == 8
    given = macs(sequences, [tf.TensorSpec([None, 9, 5])])
    assert [k.uses for k in given.kernels] == [9, 9, 1] and not given.unknown

    steps = keras.Sequential([keras.Input((None, 5)), L.TimeDistributed(L.Dense(4))])
    assert [k.uses for k in macs(steps).kernels] == [None]
    # Nothing is known, which is not the same as zero.
    assert macs(steps).dense is macs(steps).remaining is None
    assert macs(steps, [tf.TensorSpec([None, 9, 5])]).dense == 9 * 20


def test_a_signature_that_does_not_fit():
    model = keras.Sequential([keras.Input((None, 5)), L.Dense(4)])
    for wrong, error in (
        (tf.TensorSpec([None, 9, 7]), ValueError),
        (tf.TensorSpec([None, 5]), ValueError),
        (5, TypeError),
    ):
        with pytest.raises(error, match="Expected (an )?`input_signature`"):
            macs(model, [wrong])


def test_a_model_that_cannot_be_traced_is_still_reported():
    class NeedsMore(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = L.Dense(2)

        def call(self, x, scale):
            return self.dense(x) * scale

    model = NeedsMore()
    model(np.ones((1, 4, 3), "float32"), scale=2.0)
    counted = macs(model)
    assert [k.uses for k in counted.kernels] == [None]
    assert counted.attention is counted.dense is None and len(counted.unknown) == 2


def test_the_model_stays_as_it_was():
    model = keras.Sequential([keras.Input((6, 3)), L.LSTM(4), L.Dropout(0.5), L.Dense(2)])
    before = [dict(vars(layer)) for layer in model.layers]
    macs(model)
    assert [vars(layer).keys() for layer in model.layers] == [names.keys() for names in before]


def test_counting_builds_no_layer():
    class Forgets(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense, self.forgotten = L.Dense(2), L.Dense(2)

        def build(self, shape):
            self.dense.build(shape)

        def call(self, x):
            return self.forgotten(self.dense(x))

    model = Forgets()
    model.build((None, 3))
    assert [k.uses for k in macs(model).kernels] == [None]
    assert not model.forgotten.built and len(model.variables) == 2


def test_not_built():
    with pytest.raises(ValueError, match="not built"):
        macs(keras.Sequential([L.Dense(3)]))


def test_calls_by_keyword_and_keys_of_their_own():
    x, memory, key = keras.Input((5, 8)), keras.Input((7, 6)), keras.Input((7, 8))
    counted = macs(keras.Model([x, memory], L.MultiHeadAttention(2, 3, 4)(query=x, value=memory)))
    assert [k.uses for k in counted.kernels] == [5, 7, 7, 5] and counted.attention == 5 * 7 * 2 * (3 + 4)
    counted = macs(keras.Model([x, memory, key], L.Attention()([x, memory, key])))
    assert counted.attention == 5 * 7 * (8 + 6)
    assert [k.uses for k in macs(keras.Model(x, L.Dense(3)(inputs=x))).kernels] == [5]


def test_a_batch_size_of_the_model_itself():
    x = keras.Input(batch_shape=(16, 5, 3))
    attended = L.MultiHeadAttention(1, 2)(x, x)
    y = L.Dense(2)(keras.ops.reshape(L.LSTM(4, stateful=True)(attended), (16, 2, 2)))
    counted = macs(keras.Model(x, y))
    assert [k.uses for k in counted.kernels] == [5, 5, 5, 5, 5, 5, 2] and counted.attention == 5 * 5 * 2 * 2
    assert not counted.unknown


@pytest.mark.parametrize("batch", [None, 1, 32])
def test_a_kernel_that_meets_the_same_for_all_examples(batch):
    class Query(L.Layer):
        def call(self, x):
            return keras.ops.ones((1, 4))

    x = keras.Input(batch_shape=(batch, 4))
    y = L.Dense(3)(x) + L.Dense(3)(Query()(x))
    assert [k.uses for k in macs(keras.Model(x, y)).kernels] == [1, 1]


@pytest.mark.parametrize("wrong", [None, "net.keras"])
def test_what_is_no_model(wrong):
    hint = "" if wrong is None else "; load it by `keras.saving.load_model`"
    with pytest.raises(TypeError, match=f"Expected `model` to be a keras.Model. Received: .*{hint}$"):
        macs(wrong)
