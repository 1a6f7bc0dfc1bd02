"""The nets that the training benchmarks prune, with their data and their references."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import keras

from examples import data, lenet5_mnist, lenet300_mnist, mnist


@dataclass(frozen=True)
class Net:
    """A net, its data, and how it is trained.

    Attributes:
        name: String.
        build: Returns the untrained model.
        parts: Called with a bool, whether to hold out validation images from the training
            images and measure on them; returns what to train on and what to measure on.
        rates: Dict, the learning rate at the start by optimizer.
        batch_size: Int.
        epochs: Int, for pruning.
        reference_epochs: Int.
        keep: Float, a density at which it is hard to prune.
        anchor: Returns a model trained elsewhere, or `None` if there is none.
    """

    name: str
    build: Callable
    parts: Callable
    rates: dict
    batch_size: int
    epochs: int
    reference_epochs: int
    keep: float
    anchor: Callable = lambda: None

    def fit(
        self,
        model,
        train,
        epochs,
        label,
        callbacks=(),
        *,
        optimizer,
        seed,
        rate=1.0,
        **settings,
    ):
        """Trains `model` as every contender is trained, with the learning rate times `rate`."""
        mnist.fit(
            model,
            train,
            epochs,
            label,
            callbacks,
            optimizer=optimizer,
            learning_rate=rate * self.rates[optimizer],
            seed=seed,
            batch_size=self.batch_size,
            **settings,
        )

    def reference(self, train, optimizer, seed, epochs=None):
        """Returns a model to start from, trained on `train` alone."""
        keras.utils.set_random_seed(seed)
        model = self.build()
        self.fit(model, train, epochs or self.reference_epochs, "reference", optimizer=optimizer, seed=seed)
        return model


def _digits_net():
    """A small convolutional net with batch normalisation."""
    layers = keras.layers
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            layers.Conv2D(32, 3, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Conv2D(64, 3, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.Flatten(),
            layers.Dense(128, "relu"),
            layers.Dense(10),
        ]
    )


def _digits_parts(validation):
    train, held_out, test = data.digits()
    measured = held_out if validation else test
    return tuple((images.reshape(-1, 8, 8, 1), labels) for images, labels in (train, measured))


def _mnist_parts(validation, flat=False):
    train, measured = mnist.parts(data.mnist, validation)
    if flat:
        mean = train[0].mean(axis=0)
        train, measured = (((x - mean).reshape(-1, 784), y) for x, y in (train, measured))
    return train, measured


def _lenet300_anchor():
    path = Path(os.environ.get("LC_KERAS_ANCHORS", "")) / "lenet300_classic.npz"
    return lenet300_mnist.anchor(path) if path.exists() else None


NETS = {
    net.name: net
    for net in (
        Net(
            "lenet300",
            lenet300_mnist.build,
            lambda validation: _mnist_parts(validation, flat=True),
            {"sgd": 0.1, "adam": 1e-3},
            batch_size=256,
            epochs=20,
            reference_epochs=30,
            keep=0.02,
            anchor=_lenet300_anchor,
        ),
        Net(
            "lenet5",
            lenet5_mnist.build,
            _mnist_parts,
            {"sgd": 0.05, "adam": 1e-3},
            batch_size=256,
            epochs=8,
            reference_epochs=8,
            keep=0.01,
        ),
        Net(
            "digits",
            _digits_net,
            _digits_parts,
            {"sgd": 0.05, "adam": 1e-3},
            batch_size=32,
            epochs=60,
            reference_epochs=30,
            keep=0.02,
        ),
    )
}
