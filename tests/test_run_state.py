"""A `fit` that is cut off and started again ends where one that was not ends, bit for bit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import lc_keras

pytestmark = pytest.mark.filterwarnings("ignore:Training (was interrupted|stopped)")

SAMPLES, BATCH = 64, 8


def net(optimizer=None, units=16):
    """A model that draws random numbers and has weights that are not trained."""
    keras.utils.set_random_seed(1)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12,)),
            layers.Dense(units, "relu"),
            layers.BatchNormalization(),
            layers.Dropout(0.2),
            layers.Dense(4),
        ]
    )
    model.compile(
        optimizer or keras.optimizers.Adam(0.01),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


class Data(keras.callbacks.Callback):
    """Batches in an order that depends on the epoch alone."""

    def __init__(self):
        super().__init__()
        x = np.random.default_rng(0).normal(size=(SAMPLES, 12)).astype("float32")
        y = x[:, :4].argmax(axis=1)
        self.epoch = tf.Variable(0)

        def shuffled(_):
            order = tf.random.experimental.stateless_shuffle(tf.range(SAMPLES), seed=[0, self.epoch])
            return tf.data.Dataset.from_tensor_slices((tf.gather(x, order), tf.gather(y, order)))

        self.batches = tf.data.Dataset.range(1).flat_map(shuffled).batch(BATCH)

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch.assign(epoch)


class CutOff(keras.callbacks.Callback):
    def __init__(self, epoch, hook="on_epoch_begin"):
        super().__init__()
        self.epoch = epoch
        setattr(self, hook, self.stop)

    def stop(self, epoch, logs=None):
        if epoch == self.epoch:
            raise RuntimeError("cut off")


def prune(folder, epochs=6, extra=(), model=None, known=True, tasks=None, **options):
    model, data = model or net(), Data()
    compress = lc_keras.LearningCompression(
        tasks or lc_keras.L0Constraint(0.2), checkpoint_dir=folder, **options
    )
    batches = data.batches
    if known:
        batches = batches.apply(tf.data.experimental.assert_cardinality(SAMPLES // BATCH))
    history = model.fit(batches, epochs=epochs, verbose=0, callbacks=[data, *extra, compress])
    return model, history.history


def cut_off(folder, epoch=3, hook="on_epoch_begin", **options):
    with pytest.raises(RuntimeError, match="cut off"):
        prune(folder, extra=[CutOff(epoch, hook)], **options)


def same(model, other):
    for one, two in zip(model.variables, other.variables, strict=True):
        np.testing.assert_array_equal(one.numpy(), two.numpy(), err_msg=one.path)


OPTIMIZERS = {
    "momentum": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "decay": lambda: keras.optimizers.Adam(
        keras.optimizers.schedules.CosineDecay(0.0, 60, warmup_target=0.01, warmup_steps=20)
    ),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Nadam(0.01)),
    "accumulation": lambda: keras.optimizers.SGD(0.05, gradient_accumulation_steps=3),
    "averages": lambda: keras.optimizers.SGD(0.05, use_ema=True, ema_momentum=0.9),
}


@pytest.mark.filterwarnings("ignore:Your input ran out of data")
@pytest.mark.parametrize(
    "optimizer, options",
    [
        ("momentum", {"multipliers": False}),
        ("decay", {"epochs_per_step": 0.3}),
        ("loss scale", {"mu": lc_keras.Geometric(0.01, 1.0)}),
        ("accumulation", {"known": False}),
        ("averages", {"reset_optimizer": True, "epochs_per_step": 1}),
    ],
    ids=str,
)
def test_a_restarted_fit_ends_where_an_uninterrupted_one_does(tmp_path, optimizer, options):
    def run(**more):
        return prune(tmp_path / "run", model=net(OPTIMIZERS[optimizer]()), **options, **more)

    whole, expected = run()
    with pytest.raises(RuntimeError, match="cut off"):
        run(extra=[CutOff(3)])
    with pytest.raises(RuntimeError, match="cut off"):
        run(extra=[CutOff(4, "on_epoch_end")])
    resumed, history = run()
    assert {name: values[4:] for name, values in expected.items()} == history
    same(whole, resumed)
    assert not (tmp_path / "run").exists()
    assert resumed._initial_epoch is None
