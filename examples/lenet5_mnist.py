"""Caffe's LeNet-5 on MNIST, 430,500 prunable weights: error against the weights kept.

Trains a reference first and keeps it in the output folder for the next run.
"""

import keras

from examples import mnist


def build():
    layers = [
        keras.Input((28, 28, 1), name="image"),
        keras.layers.Conv2D(20, 5),
        keras.layers.MaxPooling2D(2),
        keras.layers.Conv2D(50, 5),
        keras.layers.MaxPooling2D(2),
        keras.layers.Flatten(),
        keras.layers.Dense(500, "relu"),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers, name="lenet5")


def main():
    args = mnist.options(
        __doc__,
        "lenet5",
        sgd=0.05,
        optimizer="adam",
        keep=[0.01],
        epochs=8,
        reference_epochs=8,
    )
    keras.utils.set_random_seed(args.seed)
    train, measured = mnist.load(args)
    mnist.run(mnist.trained(build, train, args), train, measured, args)


if __name__ == "__main__":
    main()
