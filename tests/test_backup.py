"""A `fit` that is cut off and started again ends where one that was not ends."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import lc_keras


def fresh_model():
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [keras.Input((12,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(4)]
    )
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def batches():
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 12)).astype("float32")
    return tf.data.Dataset.from_tensor_slices((x, x[:, :4].argmax(axis=1))).batch(8)


class CutOff(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 3:
            raise RuntimeError("cut off")


def prune(folder, epochs=6, extra=(), **options):
    model = fresh_model()
    compress = lc_keras.LearningCompression(
        lc_keras.L0Constraint(0.2), backup_dir=folder / "lc", **options
    )
    keep = keras.callbacks.BackupAndRestore(folder / "keras")
    history = model.fit(batches(), epochs=epochs, verbose=0, callbacks=[compress, keep, *extra])
    return model, history.history


@pytest.mark.parametrize("options", [{}, {"multipliers": False}, {"mu": lc_keras.Geometric(0.01, 1.0)}])
def test_a_restarted_fit_ends_where_an_uninterrupted_one_does(tmp_path, options):
    whole, whole_history = prune(tmp_path / "whole", **options)
    with pytest.raises(RuntimeError, match="cut off"):
        prune(tmp_path / "parts", extra=[CutOff()], **options)
    resumed, history = prune(tmp_path / "parts", **options)
    assert len(history["mu"]) == 3
    np.testing.assert_allclose(history["mu"], whole_history["mu"][3:], rtol=1e-6)
    for expected, actual in zip(whole.get_weights(), resumed.get_weights(), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-6)
    assert not (tmp_path / "parts" / "lc").exists()


def test_a_backup_of_another_epoch_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="cut off"):
        prune(tmp_path, extra=[CutOff()])
    model = fresh_model()
    compress = lc_keras.LearningCompression(lc_keras.L0Constraint(0.2), backup_dir=tmp_path / "lc")
    with pytest.raises(ValueError, match="end of epoch 4.*Received: one of epoch 2"):
        model.fit(batches(), initial_epoch=5, epochs=6, verbose=0, callbacks=[compress])


def test_a_backup_of_other_weights_is_refused(tmp_path):
    with pytest.raises(RuntimeError, match="cut off"):
        prune(tmp_path, extra=[CutOff()])
    model = keras.Sequential([keras.Input((12,)), keras.layers.Dense(4)])
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    compress = lc_keras.LearningCompression(lc_keras.L0Constraint(0.2), backup_dir=tmp_path / "lc")
    with pytest.raises(ValueError, match="same weights and tasks"):
        model.fit(batches(), initial_epoch=3, epochs=6, verbose=0, callbacks=[compress])
