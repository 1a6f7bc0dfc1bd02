"""Small models, their data, and comparisons that many tests share."""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from lc_keras import Geometric, L0Constraint, LearningCompression

KEPT = 10
WEIGHTS = 6 * 8 + 8 * 3
BATCHES = 8
RANGE = Geometric(2.0, 50.0)  # 1/μ crosses the learning rate of 0.1
rng = np.random.default_rng(0)
X = rng.normal(size=(8 * BATCHES, 6)).astype("float32")
Y = np.argmax(X @ rng.normal(size=(6, 3)), axis=1)
XENT = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
# As batches, so that Keras traces no slices.
DATA = tf.data.Dataset.from_tensor_slices((X, Y)).batch(8)
LIKE_ARRAYS = {"epochs", "initial_epoch", "verbose", "validation_data", "validation_freq"}


def net(optimizer=None, dtype=None, kind=keras.Sequential, regularizer=None, **options):
    """A model that has the same weights at each call; its L step is 2 batches by default."""
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((6,)),
        keras.layers.Dense(8, activation="tanh", kernel_regularizer=regularizer, dtype=dtype),
        keras.layers.Dense(3, dtype=dtype),
    ]
    model = kind(layers)
    model.compile(optimizer=optimizer or keras.optimizers.SGD(0.1, name="sgd"), loss=XENT, **options)
    return model


def lc(**options):
    """LC with L steps of two batches, unless options say otherwise."""
    return LearningCompression(L0Constraint(KEPT), **({"mu": RANGE, "epochs_per_step": 0.25} | options))


def fit(model, callbacks=None, **options):
    data = {"x": X, "y": Y, "batch_size": 8}
    data |= {name: options.pop(name) for name in data.keys() & options.keys()}
    if data["x"] is X and data["y"] is Y and data["batch_size"] == 8 and options.keys() <= LIKE_ARRAYS:
        data["x"] = DATA
    if isinstance(data["x"], tf.data.Dataset):
        data = {"x": data["x"]}
    return model.fit(**data, callbacks=callbacks, **({"epochs": 2, "verbose": 0, "shuffle": False} | options))


def kernels(model):
    return [v.numpy().astype("float32") for v in model.trainable_variables if "kernel" in v.name]


def loss(model):
    """The loss on the data, without a graph."""
    return float(model.compute_loss(X, Y, model(X)))


def nonzeros(model):
    return sum(np.count_nonzero(kernel) for kernel in kernels(model))


def same(model, other, **tolerance):
    for one, two in zip(model.get_weights(), other.get_weights(), strict=True):
        if tolerance:
            np.testing.assert_allclose(one, two, **tolerance)
        else:
            np.testing.assert_array_equal(one, two)


def largest(arrays, kept=KEPT):
    """The arrays with all but the largest magnitudes set to zero."""
    threshold = np.sort(np.concatenate([np.abs(a).ravel() for a in arrays]))[-kept]
    return [np.where(np.abs(a) >= threshold, a, 0) for a in arrays]


def spy(**functions):
    return keras.callbacks.LambdaCallback(**functions)


def linear(rate=0.05):
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(4, use_bias=False)])
    model.compile(keras.optimizers.SGD(rate), "mse")
    return model


def inputs_of(model, count=4):
    generator = np.random.default_rng(0)
    return [
        generator.integers(0, 10, (count, *t.shape[1:]))
        if t.dtype.startswith("int")
        else generator.normal(size=(count, *t.shape[1:])).astype("float32")
        for t in model.inputs
    ]


def outputs_of(model, inputs):
    outputs = model(inputs if len(inputs) > 1 else inputs[0])
    return [keras.ops.convert_to_numpy(t) for t in keras.tree.flatten(outputs)]


def assert_same_outputs(model, small, tolerance=1e-5):
    inputs = inputs_of(model)
    for one, other in zip(outputs_of(model, inputs), outputs_of(small, inputs), strict=True):
        assert one.shape == other.shape
        assert np.abs(one - other).max() <= tolerance * max(np.abs(one).max(), 1e-6)


def randomized(model):
    """Random weights, none of them zero."""
    generator = np.random.default_rng(0)
    for v in model.weights:
        v.assign(
            generator.uniform(0.5, 1.5, v.shape)
            * (1 if "variance" in v.name else generator.choice([-1, 1], v.shape))
        )
    return model


def zero(variable, units, axis=-1):
    value = np.moveaxis(variable.numpy(), axis, 0)
    value[list(units)] = 0
    variable.assign(np.moveaxis(value, 0, axis))


def kill(layer, units):
    """Zeroes units of a layer, with all the weights that make them."""
    for variable in layer.trainable_weights:
        zero(variable, units, -2 if "Depthwise" in type(layer).__name__ and variable.name == "kernel" else -1)


def widths(model):
    return {
        layer.name: layer.output.shape[-1]
        for layer in model.layers
        if not isinstance(layer, layers.InputLayer)
    }


def sequential(shape, *stack):
    return randomized(keras.Sequential([keras.Input(shape), *stack]))


class RateSeen(keras.Sequential):
    """Keeps the learning rate of each update."""

    def train_step(self, data):
        self.seen.append(float(self.optimizer.learning_rate))
        return super().train_step(data)

    def compile(self, **options):
        self.seen = []
        super().compile(**options, run_eagerly=True)
