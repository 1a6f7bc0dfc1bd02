import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import lc_keras


def net():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.RandomFlip(),
            layers.Lambda(lambda x: x - 1, name="of_the_input"),
            layers.Conv2D(6, 3, name="first"),
            layers.Conv2D(4, 3, padding="same", name="padded"),
            layers.Lambda(lambda x: x * 2, name="unknown"),
            layers.Lambda(lambda x: x + 1, name="behind"),
            layers.Flatten(),
            layers.Dense(3, name="head"),
        ]
    )
    first, padded = model.get_layer("first"), model.get_layer("padded")
    first.kernel.assign(first.kernel.numpy() * np.float32([0, 0, 1, 1, 1, 1]))
    first.bias.assign(np.float32([0, 1, 0, 0, 0, 0]))
    padded.kernel.assign(padded.kernel.numpy() * np.float32([0, 1, 1, 1]))
    return model


def test_what_goes_and_what_stays():
    report = lc_keras.shrink_report(net())
    first, padded, head = report.rows
    assert (first.name, first.units, first.kept, first.dead) == ("first", 6, 5, 1)
    assert "'padded' pads" in first.why
    assert (padded.units, padded.kept, padded.dead) == (4, 4, 1) and "'unknown'" in padded.why
    assert (head.units, head.kept, head.dead, head.why) == (3, 3, 0, "")
    assert report.walls == ("unknown", "behind") and report.milliseconds is None
    assert report.macs == (36 * 9 * (2 * 6 + 6 * 4) + 144 * 3, 36 * 9 * (2 * 5 + 5 * 4) + 144 * 3)
    assert report.parameters[0] - report.parameters[1] == 9 * 2 + 1 + 9 * 4
    text = str(report)
    assert all(
        part in text
        for part in ("first", "1 dead stay: 'padded' pads", "macs", "across them: unknown, behind")
    )


def test_time_is_measured_where_asked_for():
    report = lc_keras.shrink_report(net(), batch_size=np.float32(2))
    assert len(report.milliseconds) == 2 and min(report.milliseconds) > 0
    assert "milliseconds, batch of 2 " in str(report)


def test_inputs_of_unknown_size():
    model = keras.Sequential([keras.Input((None, None, 2)), layers.Conv2D(3, 3), layers.GlobalMaxPooling2D()])
    assert lc_keras.shrink_report(model).macs is None
    given = lc_keras.shrink_report(model, input_signature=[tf.TensorSpec([None, 6, 5, 2])])
    assert given.macs == (12 * 54, 12 * 54)


@pytest.mark.parametrize("kind", [layers.UnitNormalization, layers.LayerNormalization])
def test_a_normalisation_of_an_axis_of_unknown_size(kind):
    options = {} if kind is layers.UnitNormalization else {"center": False, "scale": False}
    report = lc_keras.shrink_report(keras.Sequential([keras.Input((None,)), kind(**options)]))
    assert not report.rows and "units" in str(report)


def test_time_of_a_model_of_words():
    words = layers.TextVectorization(output_sequence_length=4, vocabulary=["a", "b"])
    model = keras.Sequential([keras.Input((), dtype="string"), words, layers.Embedding(10, 3)])
    assert min(lc_keras.shrink_report(model, batch_size=2).milliseconds) > 0


def test_multiply_adds_that_are_not_known():
    x = keras.Input((None, 8))
    model = keras.Model(x, keras.layers.Dense(3)(keras.layers.Attention()([x, x])[:, 0]))
    assert lc_keras.shrink_report(model).macs is None


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, np.inf, np.nan, True, "2", [2]])
def test_bad_batch_size(batch_size):
    error = ValueError if isinstance(batch_size, float) or type(batch_size) is int else TypeError
    with pytest.raises(error, match="batch_size"):
        lc_keras.shrink_report(net(), batch_size=batch_size)
