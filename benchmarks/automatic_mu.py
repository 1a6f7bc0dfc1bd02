"""The automatic μ beside fixed ranges, on validation images: three nets, two optimizers.

    python benchmarks/automatic_mu.py                        # some 40 minutes on two cores
    python benchmarks/automatic_mu.py --nets digits --seeds 0 1 2
    python benchmarks/automatic_mu.py --tiny                 # seconds

Every run starts from the same reference, trained without the validation images. No setting is changed
from net to net or from optimizer to optimizer but the learning rate, which is that of the reference.
"""

import argparse
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

import data
import keras
import lenet5_mnist
import lenet300_mnist
import mnist
import tradeoff

import lc_keras

RATES = {"adam": 1e-3, "sgd": None}
RANGES = [(1e-4, 1e-2), (3e-4, 2.8e-2), (1e-3, 1e-1), (3e-3, 3e-1), (1e-2, 1.0)]


def digits_net():
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


def digits_parts():
    train, validation, _ = data.digits()
    return tuple((images.reshape(-1, 8, 8, 1), labels) for images, labels in (train, validation))


def mnist_parts(flat):
    (images, labels), _ = data.mnist()
    images = images.reshape(-1, 784) if flat else images
    parts = slice(None, -mnist.HELD_OUT), slice(-mnist.HELD_OUT, None)
    mean = images[parts[0]].mean(axis=0) if flat else 0
    return tuple((images[part] - mean, labels[part]) for part in parts)


@dataclass(frozen=True)
class Net:
    build: object
    parts: object
    sgd: float
    keep: float
    epochs: int
    reference_epochs: int
    batch_size: int


NETS = {
    "lenet300": Net(lenet300_mnist.build, lambda: mnist_parts(True), 0.1, 0.02, 20, 30, 256),
    "lenet5": Net(lenet5_mnist.build, lambda: mnist_parts(False), 0.05, 0.01, 8, 8, 256),
    "digits": Net(digits_net, digits_parts, 0.05, 0.02, 60, 30, 32),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tiny", action="store_true", help="one epoch of digits")
    parser.add_argument("--output", type=Path, default=Path("outputs/automatic_mu.json"))
    options = parser.parse_args()
    ranges, optimizers = [None, *RANGES], list(RATES)
    if options.tiny:
        options.nets, ranges, optimizers = ["digits"], ranges[:2], ["sgd"]

    rows = []
    for name in options.nets:
        net = NETS[name]
        train, validation = net.parts()
        for optimizer in optimizers:
            rate = RATES[optimizer] or net.sgd
            epochs = 1 if options.tiny else net.epochs
            chosen = {"optimizer": optimizer, "learning_rate": rate, "batch_size": net.batch_size}
            for seed in options.seeds:
                keras.utils.set_random_seed(seed)
                reference = net.build()
                reference_epochs = 1 if options.tiny else net.reference_epochs
                mnist.fit(reference, train, reference_epochs, "reference", seed=seed, **chosen)
                start = tradeoff.measure("reference", reference, validation).error
                for limits in ranges:
                    mu = "auto" if limits is None else lc_keras.Geometric(*limits)
                    label = "auto" if limits is None else f"{limits[0]:g} … {limits[1]:g}"
                    model = tradeoff.copy_of(reference)
                    compress = lc_keras.LearningCompression(lc_keras.L0Constraint(net.keep), mu=mu)
                    keras.utils.set_random_seed(seed)
                    mnist.fit(model, train, epochs, f"{name} {optimizer} {label}", [compress], seed=seed, **chosen)
                    error = tradeoff.measure(label, model, validation).error
                    rows.append(
                        {"net": name, "optimizer": optimizer, "learning_rate": rate, "seed": seed}
                        | {"keep": net.keep, "epochs": epochs, "reference_error": start}
                        | {"mu": label, "validation_error": error, "gap": compress.gap}
                    )
                    options.output.parent.mkdir(parents=True, exist_ok=True)
                    options.output.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows))


def table(rows):
    """Mean validation error of each range, a line for each net and optimizer."""
    labels = list(dict.fromkeys(row["mu"] for row in rows))
    cases = list(dict.fromkeys((r["net"], r["optimizer"], r["keep"], r["epochs"]) for r in rows))
    lines = [f"{'validation error, %':34}{'reference':>10}" + "".join(f"{label:>16}" for label in labels)]
    for case in cases:
        name, optimizer, keep, epochs = case
        own = [r for r in rows if (r["net"], r["optimizer"]) == (name, optimizer)]
        means = [mean(r["validation_error"] for r in own if r["mu"] == label) for label in labels]
        head = f"{name}, {optimizer}, {100 * keep:g} %, {epochs} epochs"
        start = mean(r["reference_error"] for r in own)
        lines.append(f"{head:34}{start:>10.2f}" + "".join(f"{value:>16.2f}" for value in means))
    return "\n".join(lines)


def mean(values):
    values = list(values)
    return sum(values) / len(values)


if __name__ == "__main__":
    main()
