"""The nets of the matrix: small enough that a cell takes seconds to a minute on one core."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
from keras import layers

from benchmarks.robustness import data
from lc_keras import L0Constraint, Neurons


@dataclass(frozen=True)
class Net:
    """A net, its data, and the centre around which its cells lie.

    Attributes:
        name: String.
        build: Returns the untrained model, whose outputs are logits.
        load: Called with a bool, whether to hold out validation images and measure on them; returns
            inputs and labels to train on, and to measure on.
        examples: Int, how many of the training examples are used to prune. References are trained
            on all of them.
        largest: Int, the most examples in a batch. An epoch whose few batches would have to be larger has
            fewer examples instead.
        rate: Float, the usual learning rate of SGD with momentum.
        optimizers: Tuple of two names: the optimizer of the centre, and another one to vary things with.
        batches: Int, the batches in an epoch at the centre.
        epochs: Int, the epochs of pruning at the centre.
        keep: Tuple of floats: the fraction kept at the centre, and others.
        reference_epochs: Int.
        is_fit: Bool. `True`: settings of LC are chosen on the net. `False`: they are only shown on it.
        budget: Called with the fraction to keep; returns an `L0Constraint`.
        anchor: Returns a model trained elsewhere, or `None` if there is none.
    """

    name: str
    build: Callable
    load: Callable
    examples: int
    largest: int
    rate: float
    optimizers: tuple[str, str] = ("Adam", "SGD")
    batches: int = 100
    epochs: int = 6
    keep: tuple[float, ...] = (0.05, 0.2, 0.02)
    reference_epochs: int = 10
    is_fit: bool = False
    budget: Callable = L0Constraint
    anchor: Callable = lambda: None

    def batch(self, batches):
        """Returns how many examples are in a batch, and in an epoch of that many batches."""
        size = min(self.largest, self.examples // batches)
        return size, min(self.examples, size * batches)


def lenet300():
    """784-300-100-10 with tanh."""
    return keras.Sequential(
        [
            keras.Input((784,)),
            layers.Dense(300, "tanh"),
            layers.Dense(100, "tanh"),
            layers.Dense(10),
        ]
    )


def _lenet300_anchor():
    path = Path(os.environ.get("LC_KERAS_ANCHORS", "")) / "lenet300_classic.npz"
    if not path.exists():
        return None
    arrays, model = np.load(path), lenet300()
    names = [f"output.compressible_{i}.{name}" for i in range(3) for name in ("weight", "bias")]
    model.set_weights([arrays[name].T for name in names])
    return model


def lenet5():
    """The LeNet-5 of Caffe: 20-50-500-10."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(20, 5),
            layers.MaxPooling2D(),
            layers.Conv2D(50, 5),
            layers.MaxPooling2D(),
            layers.Flatten(),
            layers.Dense(500, "relu"),
            layers.Dense(10),
        ]
    )


def _normalised(h, width, size=3, stride=1, active=True):
    h = layers.Conv2D(width, size, strides=stride, padding="same", use_bias=False)(h)
    h = layers.BatchNormalization(momentum=0.9)(h)
    return layers.ReLU()(h) if active else h


def resnet():
    """Three residual blocks of 16, 32 and 64 filters with batch normalisation: 77,360 weights."""
    inputs = keras.Input((16, 16, 3))
    h = _normalised(inputs, 16)
    for width, stride in (16, 1), (32, 2), (64, 2):
        inner = _normalised(_normalised(h, width, stride=stride), width, active=False)
        if stride > 1:
            h = _normalised(h, width, 1, stride, active=False)
        h = layers.ReLU()(layers.Add()([h, inner]))
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(h)))


def unet():
    """A U-Net of 8 and 32 filters, with Keras's default momentum in its batch normalisation."""

    def block(h, width):
        for _ in range(2):
            h = layers.Conv2D(width, 3, padding="same", use_bias=False)(h)
            h = layers.ReLU()(layers.BatchNormalization()(h))
        return h

    inputs = keras.Input((32, 32, 1))
    fine = block(inputs, 8)
    coarse = block(layers.MaxPooling2D(4)(fine), 32)
    return keras.Model(
        inputs,
        layers.Conv2D(3, 1)(block(layers.Concatenate()([layers.Conv2DTranspose(8, 4, 4)(coarse), fine]), 8)),
    )


def lstm():
    """Reads an image row by row."""
    return keras.Sequential([keras.Input((14, 14)), layers.LSTM(64), layers.Dense(10)])


def transformer():
    """Two causal blocks of width 32 that predict the next character."""
    inputs = keras.Input((data.LENGTH,), dtype="int32")
    h = layers.Embedding(data.CHARACTERS, 32)(inputs)
    positions = keras.ops.cumsum(keras.ops.ones_like(inputs), axis=1) - 1
    h = layers.Add()([h, layers.Embedding(data.LENGTH, 32)(positions)])
    for _ in range(2):
        inner = layers.LayerNormalization()(h)
        h = layers.Add()([h, layers.MultiHeadAttention(4, 8)(inner, inner, use_causal_mask=True)])
        inner = layers.Dense(64, "gelu")(layers.LayerNormalization()(h))
        h = layers.Add()([h, layers.Dense(32)(inner)])
    return keras.Model(inputs, layers.Dense(data.CHARACTERS)(layers.LayerNormalization()(h)))


def tabular():
    """A multi-layer perceptron on columns of a table."""
    return keras.Sequential(
        [
            keras.Input((data.COLUMNS,)),
            layers.Dense(128, "relu"),
            layers.Dense(64, "relu"),
            layers.Dense(data.CLASSES),
        ]
    )


def mobile():
    """A MobileNet-like net with squeeze-and-excite."""

    def block(h, width, stride):
        expanded = 4 * h.shape[-1]
        inner = layers.Conv2D(expanded, 1, use_bias=False)(h)
        inner = layers.ReLU()(layers.BatchNormalization()(inner))
        inner = layers.DepthwiseConv2D(3, strides=stride, padding="same", use_bias=False)(inner)
        inner = layers.ReLU()(layers.BatchNormalization()(inner))
        gate = layers.GlobalAveragePooling2D(keepdims=True)(inner)
        gate = layers.Dense(expanded, "sigmoid")(layers.Dense(expanded // 4, "relu")(gate))
        inner = layers.Conv2D(width, 1, use_bias=False)(layers.Multiply()([inner, gate]))
        inner = layers.BatchNormalization()(inner)
        return layers.Add()([h, inner]) if inner.shape == h.shape else inner

    inputs = keras.Input((16, 16, 3))
    h = layers.Conv2D(16, 3, strides=2, padding="same", use_bias=False, name="stem")(inputs)
    h = layers.ReLU()(layers.BatchNormalization()(h))
    for width, stride in (16, 1), (24, 2), (24, 1), (32, 2), (32, 1):
        h = block(h, width, stride)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(h)))


def _macs(keep):
    return L0Constraint(keep, Neurons(), measure="macs")


NETS = {
    net.name: net
    for net in (
        Net(
            "lenet300",
            lenet300,
            data.flat_mnist,
            examples=50_000,
            largest=50_000,
            rate=0.1,
            optimizers=("SGD", "Adam"),
            batches=200,
            keep=(0.02, 0.05, 0.2),
            reference_epochs=20,
            is_fit=True,
            anchor=_lenet300_anchor,
        ),
        Net("tabular", tabular, data.table, examples=6_400, largest=6_400, rate=0.05),
        Net(
            "lstm",
            lstm,
            data.rows_of_mnist,
            examples=6_400,
            largest=3_200,
            rate=0.1,
            keep=(0.2, 0.05, 0.02),
            reference_epochs=3,
        ),
        Net(
            "resnet",
            resnet,
            data.small_cifar10,
            examples=5_000,
            largest=2_500,
            rate=0.1,
            epochs=5,
            optimizers=("SGD", "Adam"),
            reference_epochs=15,
            is_fit=True,
        ),
        Net("text", transformer, data.text, examples=3_200, largest=1_600, rate=0.1, keep=(0.2, 0.05, 0.02)),
        Net(
            "lenet5",
            lenet5,
            data.mnist,
            examples=3_200,
            largest=3_200,
            rate=0.02,
            optimizers=("SGD", "Adam"),
            keep=(0.02, 0.05, 0.2),
            epochs=4,
            reference_epochs=2,
        ),
        Net(
            "unet",
            unet,
            data.shapes,
            examples=800,
            largest=400,
            rate=0.05,
            batches=25,
            reference_epochs=30,
        ),
        Net(
            "mobile",
            mobile,
            data.small_cifar10,
            examples=6_400,
            largest=1_600,
            rate=0.05,
            keep=(0.5, 0.7, 0.3),
            budget=_macs,
            reference_epochs=15,
        ),
    )
}


@functools.cache
def parts(name, validation):
    """Returns the inputs and labels of a net of `NETS`, to train on and to measure on; loads them once."""
    return NETS[name].load(validation)
