"""Prunes a small net to 5 % and to 2 % of its weights and serves it without Keras.

Data: scikit-learn's digits, which come with the package. About a minute on two cores.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np

import lc_keras
from examples import data, tradeoff
from examples.progress import OneLine


def build():
    layers = [
        keras.Input((64,), name="pixels"),
        keras.layers.Dense(300, "relu"),
        keras.layers.Dense(100, "relu"),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers, name="digits")


def fit(model, train, validation, epochs, label, callbacks=()):
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=8,
        jit_compile=False,  # compiling would take longer than it saves
    )
    model.fit(
        data.batches(train, 32, seed=0),
        validation_data=data.batches(validation, 300),
        epochs=epochs,
        shuffle=False,  # the batches are shuffled already
        verbose=0,
        callbacks=[*callbacks, OneLine(label)],
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=float, nargs="+", default=[0.05, 0.02])
    parser.add_argument("--epochs", type=int, default=60, help="epochs of each pruning run")
    parser.add_argument("--reference-epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/digits"))
    args = parser.parse_args()
    keras.utils.set_random_seed(args.seed)
    costs = [lc_keras.L0Constraint(keep) for keep in args.keep]
    train, validation, test = data.digits()

    reference = build()
    fit(reference, train, validation, args.reference_epochs, "Reference")
    points = [tradeoff.measure("reference", reference, test)]
    for keep, cost in zip(args.keep, costs, strict=True):
        direct = tradeoff.copy_of(reference)
        lc_keras.baselines.compress_directly(direct, cost)
        points.append(tradeoff.measure("direct compression", direct, test))

        model = tradeoff.copy_of(reference)
        compress = lc_keras.LearningCompression(cost)
        label = f"LC, {100 * keep:g} % kept"
        fit(model, train, validation, args.epochs, label, [compress])
        points.append(tradeoff.measure("LC", model, test))
    tradeoff.save(points, args.output)
    print(f"The last model, layer by layer:\n\n{lc_keras.report(model)}\n")
    lc_keras.report(model).plot(args.output / "density.png")

    saved = args.output / "saved_model" / "1"
    lc_keras.export_saved_model(model, saved, overwrite=True, verbose=True)
    difference = np.abs(served(saved, test[0], args.output) - tradeoff.outputs(model, test[0]))
    print(f"Served by TensorFlow alone, in a process of its own: {len(test[0])} images, ", end="")
    print(f"outputs differ by at most {difference.max():.1g}.")
    if difference.max() > 1e-4:
        sys.exit("Expected the same outputs from the served model and from Keras.")
    print(
        f"\nIn {args.output}/: tradeoff.png, density.png, tradeoff.json, saved_model.\n"
        f"Next: {sys.orig_argv[0]} -m examples.digits --keep 0.1 0.01, or -m examples.lenet300_mnist."
    )


def served(saved, images, folder):
    """Returns the outputs of the SavedModel, computed in a process without Keras and lc_keras."""
    inputs, outputs = folder / "inputs.npy", folder / "outputs.npy"
    np.save(inputs, images)
    script = Path(__file__).with_name("serve.py")
    run = subprocess.run([sys.executable, script, saved, inputs, outputs], stderr=subprocess.PIPE, text=True)
    if run.returncode:
        sys.exit(run.stderr)
    return np.load(outputs)


if __name__ == "__main__":
    main()
