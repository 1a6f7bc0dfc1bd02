"""Shrunk models in which masks pass, weights are shared, or layers hold others."""

import keras
import numpy as np
import pytest
from keras import layers

import lc_keras
from helpers import assert_same_outputs, kill, randomized, widths
from lc_keras.shrinking.rebuilding import shrink


def text():
    return [keras.Input((5,), dtype="int32"), layers.Embedding(10, 6, mask_zero=True)]


def dead(stack):
    """A model of dense layers "d", with three dead units of eight, behind some others."""
    d = layers.Dense(8, name="d")
    model = randomized(keras.Sequential([*stack, d, layers.Dense(2)]))
    kill(d, [0, 1, 2])
    return model


MASKED = {
    "lstm": lambda: [*text(), layers.LSTM(4)],
    "both": lambda: [*text(), layers.Bidirectional(layers.GRU(4))],
    "pooled": lambda: [*text(), layers.GlobalAveragePooling1D()],
    "masking": lambda: [keras.Input((5, 3)), layers.Masking(), layers.GRU(4)],
    "stacked": lambda: [*text(), layers.RNN([layers.LSTMCell(4), layers.GRUCell(3)])],
    "steps": lambda: [*text(), layers.TimeDistributed(layers.Dense(4)), layers.GlobalAveragePooling1D()],
    "nested": lambda: [*text(), keras.Sequential([layers.Dense(4), layers.LSTM(3)])],
}


SLOW = "both", "masking", "stacked", "nested"


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in MASKED])
def test_units_behind_a_mask_go(name, tmp_path):
    model = dead(MASKED[name]())
    x = keras.Input(model.inputs[0].shape[1:], dtype=model.inputs[0].dtype)
    for one, get in (
        (model, lambda small: small),
        (keras.Model(x, layers.Dense(1)(model(x))), lambda small: small.get_layer(model.name)),
    ):
        small = shrink(one)
        assert get(small).get_layer("d").units == 5
        assert_same_outputs(one, small)
        small.save(tmp_path / "small.keras")
        assert_same_outputs(one, keras.saving.load_model(tmp_path / "small.keras"))
    report = lc_keras.shrink_report(model)
    assert [(row.units, row.kept) for row in report.rows if row.name == "d"] == [(8, 5)]


@pytest.mark.parametrize("added", [False, True])
def test_masks_that_attention_takes_off_its_inputs(added):
    words, d = keras.Input((5,), dtype="int32"), layers.Dense(8, name="d")
    x = layers.Embedding(10, 6, mask_zero=True)(words)
    y = layers.MultiHeadAttention(2, 3)(x, x)
    x = d(layers.LayerNormalization()(layers.Add()([x, y]) if added else y))
    # Keras does not record the masks where there is another argument.
    x = layers.MultiHeadAttention(2, 3)(x, x, training=False)
    model = randomized(keras.Model(words, [x, layers.LSTM(3)(x, training=False)]))
    kill(d, [0, 1, 2])
    small, padded = shrink(model), np.int32([[1, 2, 3, 0, 0], [4, 0, 5, 6, 0]])
    assert small.get_layer("d").units == 5
    for one, other in zip(model(padded), small(padded), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_units_inside_a_model_under_a_mask_go():
    first, inner, last = layers.Embedding(10, 6, mask_zero=True), layers.Dense(8), layers.GlobalMaxPooling1D()
    nested = keras.Sequential([keras.Input((5, 6)), inner, last])
    words = keras.Input((5,), dtype="int32")
    model = randomized(keras.Model(words, layers.Dense(2)(nested(first(words)))))
    kill(inner, [0, 1])
    kill(first, [3])
    small = shrink(model)
    assert small.get_layer(nested.name).layers[0].units == 6 and small.get_layer(first.name).output_dim == 5
    assert_same_outputs(model, small)


@keras.saving.register_keras_serializable("test_ties")
class Transposed(layers.Layer):
    """Holds another layer, and multiplies by its kernel the other way round."""

    def __init__(self, dense, **kwargs):
        super().__init__(**kwargs)
        self.dense = dense

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.dense.kernel))

    def compute_output_shape(self, shape):
        return (*shape[:-1], self.dense.kernel.shape[0])

    def get_config(self):
        return super().get_config() | {"dense": keras.saving.serialize_keras_object(self.dense)}

    @classmethod
    def from_config(cls, config):
        return cls(**config | {"dense": keras.saving.deserialize_keras_object(config["dense"])})


class Private(Transposed):
    """Has no config."""

    def get_config(self):
        raise AttributeError("none")


class OfVariable(layers.Layer):
    def __init__(self, kernel):
        super().__init__()
        self.matrix = kernel

    def call(self, x):
        return keras.ops.matmul(x, keras.ops.transpose(self.matrix))


HOLDERS = {"layer": Transposed, "no config": Private, "variable": lambda dense: OfVariable(dense.kernel)}


@pytest.mark.parametrize("name", HOLDERS)
def test_a_layer_that_another_holds_stays_one(name, tmp_path):
    x = keras.Input((8,))
    before, encoder = layers.Dense(7), layers.Dense(6)
    codes = encoder(before(x))
    again = layers.Dense(5)(HOLDERS[name](encoder)(codes))
    model = randomized(keras.Model(x, HOLDERS[name](encoder)(layers.Dense(6)(again))))
    kill(before, [0, 1])
    kill(encoder, [2])
    small = shrink(model)
    assert small.count_params() == model.count_params()
    assert small.get_layer(encoder.name).kernel is small.layers[3].weights[0]
    assert_same_outputs(model, small)
    if name == "layer":
        assert small.get_layer(encoder.name) is not encoder
        small.save(tmp_path / "small.keras")
        assert keras.saving.load_model(tmp_path / "small.keras").count_params() == small.count_params()


def test_one_net_for_frames_and_for_single_images(tmp_path):
    frame, video = keras.Input((6, 6, 3)), keras.Input((4, 6, 6, 3))
    conv = layers.Conv2D(16, 3)
    net = keras.Sequential([keras.Input((6, 6, 3)), conv, layers.GlobalAveragePooling2D(), layers.Dense(8)])
    steps = layers.Flatten()(layers.TimeDistributed(net)(video))
    model = keras.Model([frame, video], layers.Dense(2)(layers.Concatenate()([net(frame), steps])))
    randomized(model)
    kill(conv, range(4))
    small = shrink(model)
    assert small.get_layer(net.name).layers[0].filters == 12
    assert small.count_params() == model.count_params() - 4 * (27 + 1 + 8)
    assert_same_outputs(model, small)


@pytest.mark.parametrize("inner", [lambda: layers.Dense(6), lambda: layers.LSTM(6)], ids=["dense", "lstm"])
def test_a_layer_at_each_step(inner):
    x = keras.Input((3, 4, 5))
    layer = inner()
    dense = layers.Dense(7)
    model = keras.Model(x, layers.Dense(2)(layers.TimeDistributed(layer)(dense(x))))
    randomized(model)
    kill(dense, [1, 2])
    (kill if isinstance(layer, layers.Dense) else kill_recurrent)(layer, [0])
    small = shrink(model)
    assert small.layers[2].layer.units == 5 and widths(small)[dense.name] == 5
    assert_same_outputs(model, small)


def kill_recurrent(layer, units):
    for variable in layer.trainable_weights:
        kept = np.tile(~np.isin(np.arange(layer.units), units), variable.shape[-1] // layer.units)
        variable.assign(variable.numpy() * kept)


def test_a_layer_that_is_called_inside_and_outside_of_a_nested_model(tmp_path):
    embedding, hidden = layers.ReversibleEmbedding(12, 6), layers.Dense(8, "relu")
    words = keras.Input((5,), dtype="int32")
    backbone = keras.Model(words, layers.Dense(6)(hidden(embedding(words))))
    x = keras.Input((5,), dtype="int32")
    model = randomized(keras.Model(x, embedding(backbone(x), reverse=True)))
    kill(hidden, [0, 1])
    small = shrink(model)
    assert small.count_params() == model.count_params() - 2 * (6 + 1 + 6)
    assert_same_outputs(model, small)
    small.save(tmp_path / "small.keras")
    assert_same_outputs(model, keras.saving.load_model(tmp_path / "small.keras"))


def test_a_layer_that_two_nested_models_call():
    shared, x = layers.Dense(6, "relu"), keras.Input((4,))
    one = keras.Sequential([keras.Input((4,)), shared, layers.Dense(3)])
    two = keras.Sequential([keras.Input((4,)), shared, layers.Dense(3)])
    model = randomized(keras.Model(x, layers.Add()([one(x), two(x)])))
    kill(shared, [0, 5])
    small = shrink(model)
    assert small.count_params() == model.count_params() - 2 * (5 + 3 + 3)
    assert_same_outputs(model, small)


class Classifier(keras.Model):
    """A model of a class with a constructor of its own, like those of KerasHub."""

    def __init__(self, width=6, **options):
        x = keras.Input((4,))
        super().__init__(x, layers.Dense(2)(layers.Dense(width, "relu", name="hidden")(x)), **options)
        self.width = width

    def get_config(self):
        return {"width": self.width, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@pytest.mark.parametrize("nested", [False, True])
def test_a_class_is_kept_where_nothing_goes(nested):
    inner = randomized(Classifier())
    x = keras.Input((4,))
    model = randomized(keras.Model(x, layers.Dense(1)(inner(x)))) if nested else inner
    for kind in (Classifier, None):
        small = shrink(model)
        found = small.get_layer(inner.name) if nested else small
        assert found is not inner and (type(found) is Classifier) == (kind is Classifier)
        assert_same_outputs(model, small)
        # At other times, something goes.
        kill(inner.get_layer("hidden"), [0])
