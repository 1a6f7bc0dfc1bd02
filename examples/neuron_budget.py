"""Prunes filters and neurons to a budget of multiply-adds and removes them: error and time of a smaller net.

    python -m examples.neuron_budget    # LeNet-5 on MNIST, 25 % and 10 % of the multiply-adds
    python -m examples.neuron_budget --net resnet --batch-size 64    # a small ResNet on CIFAR-10, 50 %
    python -m examples.neuron_budget --net resnet --samples 5000 --epochs 4    # the same in minutes

LC is compared with the usual method: filters are removed by magnitude to the same budget, at once or in
rounds, and the rest is retrained, for as many epochs.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import lc_keras
from examples import data, mnist, tradeoff
from lc_keras.baselines import MagnitudePruning, compress_directly
from lc_keras.model.macs import macs


def lenet5():
    stack = [
        keras.Input((28, 28, 1), name="image"),
        layers.Conv2D(20, 5, name="conv1"),
        layers.MaxPooling2D(2),
        layers.Conv2D(50, 5, name="conv2"),
        layers.MaxPooling2D(2),
        layers.Flatten(),
        layers.Dense(500, "relu", name="dense"),
        layers.Dense(10, name="logits"),
    ]
    return keras.Sequential(stack, name="lenet5")


def resnet():
    """Returns a ResNet of three stages of one residual block, 16, 32 and 64 filters wide."""
    inputs = keras.Input((32, 32, 3), name="image")
    x = _normed(inputs, 16, 3, 1, "stem")
    for stage, width in enumerate((16, 32, 64)):
        stride = 1 if stage == 0 else 2
        inner = layers.ReLU()(_normed(x, width, 3, stride, f"stage{stage}_a"))
        inner = _normed(inner, width, 3, 1, f"stage{stage}_b")
        x = x if stride == 1 else _normed(x, width, 1, stride, f"stage{stage}_shortcut")
        x = layers.ReLU()(layers.Add()([x, inner]))
    return keras.Model(
        inputs, layers.Dense(10, name="logits")(layers.GlobalAveragePooling2D()(x)), name="resnet"
    )


def _normed(x, width, size, stride, name):
    x = layers.Conv2D(width, size, strides=stride, padding="same", use_bias=False, name=name)(x)
    # So that the statistics keep up within the few batches of a short run.
    return layers.BatchNormalization(momentum=0.9, name=f"{name}_norm")(x)


# The budgets of each net, each with the fraction of each layer to keep in any case. For LeNet-5 at a quarter,
# 0.4 was the best of 0.2, 0.3 and 0.4 on validation images, for both LC and magnitude pruning.
NETS = {
    "lenet5": (lenet5, data.mnist, {0.25: 0.4, 0.1: 0.2}),
    "resnet": (resnet, data.cifar10, {0.5: 0.2}),
}
KEEP_AT_LEAST = 0.2


def milliseconds(models, batch, rounds=30):
    """Returns the median time of a batch for each model, with the models taking turns."""
    calls = [tf.function(lambda x, m=m: m(x, training=False), autograph=False) for m in models]
    times = [[] for _ in calls]
    for _ in range(rounds + 1):
        for call, measured in zip(calls, times, strict=True):
            start = time.perf_counter()
            call(batch).numpy()
            measured.append(1e3 * (time.perf_counter() - start))
    # The first round also traces.
    return [statistics.median(measured[1:]) for measured in times]


def point(method, model, measured, reference):
    images, labels = measured
    wrong = np.argmax(tradeoff.outputs(model, images), axis=-1) != labels
    before, after = milliseconds([reference, model], tf.constant(images[:32]))
    return {
        "method": method,
        "error": 100 * float(wrong.mean()),
        "macs": macs(model).dense,
        "macs_fraction": macs(model).dense / macs(reference).dense,
        "parameters": model.count_params(),
        "ms_per_batch_of_32": after,
        "ms_of_reference": before,
        "widths": {layer.name: layer.kernel.shape[-1] for layer in model.layers if hasattr(layer, "kernel")},
    }


def filters(model):
    """Returns a string per layer with a kernel: 1 for filters or units that stayed, 0 for those that went."""
    kernels = {layer.name: layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")}
    alive = {name: kernel.reshape(-1, kernel.shape[-1]).any(axis=0) for name, kernel in kernels.items()}
    return {name: "".join("01"[int(lives)] for lives in row) for name, row in alive.items()}


def plot(stayed, path):
    """Draws a row for each layer, with a cell for each of its filters, dark if the filter stayed."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.5 + 0.35 * len(stayed)), layout="constrained")
    panels = figure.subplots(len(stayed), squeeze=False)[:, 0]
    for axes, (name, row) in zip(panels, stayed.items(), strict=True):
        cells = [[int(lives) for lives in row]]
        axes.imshow(cells, aspect="auto", cmap="Greys", vmin=0, vmax=1, interpolation="nearest")
        axes.set(yticks=[], xticks=[])
        axes.set_ylabel(f"{name} {row.count('1')}/{len(row)}", rotation=0, ha="right", va="center")
    figure.savefig(path, dpi=150)


def options(arguments=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--net", choices=NETS, default="lenet5")
    add("--keep", type=float, nargs="+", help="fractions of the multiply-adds")
    add("--epochs", type=int, default=8, help="epochs of each pruning run, LC or magnitude")
    add(
        "--rounds",
        type=int,
        nargs="+",
        default=[1],
        help="the number of rounds in which filters are removed by magnitude",
    )
    add(
        "--tuning-epochs",
        type=int,
        default=6,
        help="how many of --epochs, at the end, train the net that LC left",
    )
    add(
        "--keep-at-least",
        type=float,
        help="fraction of each layer that LC and magnitude pruning keep in any case; "
        f"{KEEP_AT_LEAST} for budgets other than the net's own",
    )
    add("--reference-epochs", type=int, default=8)
    add("--optimizer", choices=["sgd", "adam"], default="adam")
    add("--learning-rate", type=float, default=1e-3)
    add("--batch-size", type=int, default=256)
    add(
        "--validation",
        action="store_true",
        help=f"for choosing settings: measures on the last {mnist.HELD_OUT:,} training images, held out",
    )
    add("--samples", type=int, help="trains only on the first SAMPLES images")
    add("--seed", type=int, default=0)
    add("--jit-compile", action="store_true")
    add("--output", type=Path, default=Path("outputs/neuron_budget"))
    args = parser.parse_args(arguments)
    if not 0 <= args.tuning_epochs < args.epochs:
        given = f"{args.tuning_epochs} of {args.epochs}"
        parser.error(f"expected fewer --tuning-epochs than --epochs, received {given}")
    return args


def run(args):
    """Returns the point of the reference, and those of each method at each budget."""
    build, load, least = NETS[args.net]
    args.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    train, measured = mnist.parts(load, args.validation)
    train = tuple(part[: args.samples] for part in train)
    reference = mnist.trained(build, train, args)
    points = [point("reference", reference, measured, reference)]
    for budget in args.keep or least:
        floor = least.get(budget, KEEP_AT_LEAST) if args.keep_at_least is None else args.keep_at_least
        cost = lc_keras.L0Constraint(budget, lc_keras.Neurons(), measure="macs", keep_at_least=floor)
        for method, small, more in pruned(reference, cost, train, args):
            about = {"keep_at_least": floor} | more
            points.append(point(f"{method} {budget:g}", small, measured, reference) | about)
            if "filters" in more:
                plot(more["filters"], args.output / f"filters-{budget:g}.png")
    return points


def pruned(reference, cost, train, args):
    """Yields, for each method, its name, the net that it leaves, and what else is to be recorded."""
    model = tradeoff.copy_of(reference)
    compress_directly(model, cost)
    yield "direct compression", lc_keras.shrink(model), {}

    for rounds in args.rounds:
        model = tradeoff.copy_of(reference)
        keras.utils.set_random_seed(args.seed)
        method = "magnitude" if rounds == 1 else f"magnitude in {rounds} rounds"
        prune = MagnitudePruning(cost, rounds)
        mnist.fit_as_asked(model, train, args.epochs, args, f"{method} {cost.keep:g}", [prune])
        yield method, lc_keras.shrink(model), {}

    model = tradeoff.copy_of(reference)
    keras.utils.set_random_seed(args.seed)
    label, compress = f"LC {cost.keep:g}", lc_keras.LearningCompression(cost)
    mnist.fit_as_asked(model, train, args.epochs - args.tuning_epochs, args, label, [compress])
    small = lc_keras.shrink(model)
    if args.tuning_epochs:
        mnist.fit_as_asked(small, train, args.tuning_epochs, args, f"{label}, tuning")
    yield "LC", small, {"filters": filters(model)}


def main():
    args = options()
    args.output /= args.net
    points = run(args)
    for p in points:
        print(
            f"{p['method']:28} error {p['error']:5.2f} %  MACs {100 * p['macs_fraction']:5.1f} %  "
            f"parameters {p['parameters']:9,}  "
            f"{p['ms_of_reference']:6.2f} -> {p['ms_per_batch_of_32']:6.2f} ms/batch  {p['widths']}"
        )
    (args.output / "points.json").write_text(json.dumps(points, indent=1) + "\n")


if __name__ == "__main__":
    main()
