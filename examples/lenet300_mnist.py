"""LeNet-300 (784-300-100-10, tanh) on MNIST: error against the weights kept.

Starts from the reference net in the folder LC_KERAS_ANCHORS. Trains its own if there is
none, and with --validation, since the net in the folder has seen all training images.
"""

import os
from pathlib import Path

import keras
import numpy as np

from examples import mnist


def build():
    layers = [
        keras.Input((784,), name="pixels"),
        keras.layers.Dense(300, "tanh"),
        keras.layers.Dense(100, "tanh"),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers, name="lenet300")


def anchor(path):
    """Returns the model with weights read from a file of arrays in PyTorch's layout."""
    model = build()
    with np.load(path) as arrays:
        for i, layer in enumerate(model.layers):
            name = f"output.compressible_{i}"
            layer.set_weights([arrays[f"{name}.weight"].T, arrays[f"{name}.bias"]])
    return model


def main():
    args = mnist.options(
        __doc__,
        "lenet300",
        sgd=0.1,
        optimizer="sgd",
        keep=[0.05, 0.02, 0.01],
        epochs=20,
        reference_epochs=30,
    )
    keras.utils.set_random_seed(args.seed)
    train, measured = ((images.reshape(-1, 784), labels) for images, labels in mnist.load(args, centred=True))
    path = Path(os.environ.get("LC_KERAS_ANCHORS", "")) / "lenet300_classic.npz"
    known = path.exists() and not args.validation
    reference = anchor(path) if known else mnist.trained(build, train, args)
    mnist.run(reference, train, measured, args)


if __name__ == "__main__":
    main()
