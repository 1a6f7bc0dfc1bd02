"""What the MNIST examples share: options, the reference, and a run for each cost and budget."""

import argparse
import time
from pathlib import Path

import keras
import numpy as np

import lc_keras
from examples import data, tradeoff
from examples.progress import OneLine
from lc_keras.model import default_kernels

HELD_OUT = 10_000

COSTS = {
    "l0-constraint": lambda keep, reference: lc_keras.L0Constraint(keep),
    "l1-constraint": lambda keep, reference: lc_keras.L1Constraint(keep * _l1_norm(reference)),
    "l0-penalty": lambda alpha, reference: lc_keras.L0Penalty(alpha),
    "l1-penalty": lambda alpha, reference: lc_keras.L1Penalty(alpha),
}


def options(description, name, sgd, **defaults):
    """Reads the command line.

    Args:
        description: String, what the example does.
        name: String, the name of its output folder.
        sgd: Float, the default learning rate with SGD.
        **defaults: Default values of the options.
    """
    parser = argparse.ArgumentParser(description=description)
    add = parser.add_argument
    add(
        "--keep",
        type=float,
        nargs="+",
        help="budgets of the constraints: the fraction of the "
        "weights (l0), or of the reference's l1 norm (l1), that may remain",
    )
    add("--alpha", type=float, nargs="+", default=[3e-6, 1e-5], help="weights of the penalties")
    add("--costs", nargs="+", choices=COSTS, default=["l0-constraint"])
    add("--epochs", type=int, help="epochs of each pruning run")
    add("--reference-epochs", type=int)
    add("--optimizer", choices=["sgd", "adam"])
    add("--learning-rate", type=float, help="at the start; falls by a factor of 0.98^40 over a run")
    add("--batch-size", type=int, default=256)
    add(
        "--jit-compile",
        action="store_true",
        help="trains with XLA: on CPUs, compiling takes "
        "longer than it saves in 20 epochs, and convolutions are slower",
    )
    add("--mu", help="first:last, such as 3e-4:2.8e-2, instead of the automatic schedule")
    add("--seed", type=int, default=0)
    add(
        "--validation",
        action="store_true",
        help="for choosing settings: holds out the last "
        f"{HELD_OUT:,} training images and measures on them, not on the test images",
    )
    add("--samples", type=int, help="trains only on the first SAMPLES images")
    add("--output", type=Path, default=Path("outputs") / name)
    parser.set_defaults(**defaults)
    args = parser.parse_args()
    if args.learning_rate is None:
        args.learning_rate = 1e-3 if args.optimizer == "adam" else sgd
    return args


def load(args, centred=False):
    """Returns the images and labels to train on and those to measure on.

    Args:
        args: The options.
        centred: Bool. `True`: subtracts the mean of the training images.
    """
    train, measured = parts(data.mnist, args.validation)
    if centred:
        mean = train[0].mean(axis=0)
        train, measured = ((images - mean, labels) for images, labels in (train, measured))
    return tuple(part[: args.samples] for part in train), measured


def parts(source, validation):
    """Returns the images and labels of a data set to train on and those to measure on.

    Args:
        source: Function without arguments that loads a data set, such as `data.mnist`.
        validation: Bool. `True`: holds out the last training images and measures on them.
    """
    train, measured = source()
    if validation:
        train, measured = zip(*((part[:-HELD_OUT], part[-HELD_OUT:]) for part in train), strict=True)
    return train, measured


def fit(
    model,
    train,
    epochs,
    label,
    callbacks=(),
    *,
    optimizer,
    learning_rate,
    seed,
    weight_decay=None,
    label_smoothing=0.0,
    clip_norm=None,
    shift=0.0,
    dropout=0.0,
    batch_size=256,
    jit_compile=False,
    executions=16,
):
    """Trains with a learning rate that falls by a factor of 0.98^40 over the run.

    Each epoch has about `executions` executions.
    """
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    if label_smoothing:
        train = data.smoothed(train, label_smoothing)
        loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    train = data.batches(train, batch_size, seed=seed)
    if shift:
        train = data.shifted(train, shift, seed)
    if dropout:
        train = data.dropped(train, dropout, seed)
    batches = int(train.cardinality())
    falling = keras.optimizers.schedules.ExponentialDecay(
        learning_rate, decay_steps=batches, decay_rate=0.98 ** (40 / epochs), staircase=True
    )
    of_gradients = {"weight_decay": weight_decay, "global_clipnorm": clip_norm}
    model.compile(
        keras.optimizers.Adam(falling, **of_gradients)
        if optimizer == "adam"
        else keras.optimizers.SGD(falling, momentum=0.9, nesterov=True, **of_gradients),
        loss,
        # Short enough for L steps of 15 batches, of MNIST's 235.
        steps_per_execution=max(1, batches // executions),
        jit_compile=jit_compile,
    )
    model.fit(
        train,
        epochs=epochs,
        shuffle=False,  # the batches are shuffled already
        verbose=0,
        callbacks=[*callbacks, OneLine(label)],
    )


def fit_as_asked(model, train, epochs, args, label, callbacks=()):
    """Trains with the command line's options for the optimizer, the batches and the seed."""
    names = "optimizer", "learning_rate", "seed", "batch_size", "jit_compile"
    chosen = {name: getattr(args, name) for name in names}
    fit(model, train, epochs, label, callbacks, **chosen)


def trained(build, train, args):
    """Returns a reference, loaded if an earlier run left it in the output folder, otherwise trained."""
    how = args.optimizer, args.learning_rate, args.batch_size, args.reference_epochs, len(train[0]), args.seed
    path = args.output / f"reference-{'-'.join(map(str, how))}.weights.h5"
    model = build()
    if path.exists():
        model.load_weights(path)
        return model
    fit_as_asked(model, train, args.reference_epochs, args, "reference")
    path.parent.mkdir(parents=True, exist_ok=True)
    model.save_weights(path)
    return model


def run(reference, train, measured, args):
    """Prunes copies of `reference` at each cost and budget; prints and saves the trade-off."""
    measured_on = "validation" if args.validation else "test"
    points = [tradeoff.measure("reference", reference, measured)]
    print(f"Reference: {points[0].error:.2f} % {measured_on} error, {points[0].kept:,} weights")
    for cost_name in args.costs:
        for budget in args.keep if cost_name.endswith("constraint") else args.alpha:
            cost = COSTS[cost_name](budget, reference)
            if cost_name == "l0-constraint":
                direct = tradeoff.copy_of(reference)
                lc_keras.baselines.compress_directly(direct, cost)
                points.append(tradeoff.measure("direct compression", direct, measured))
            label = f"{cost_name} {budget:g}"
            points.append(prune(reference, cost, label, train, measured, args))
            print(f"{label}: {points[-1].error:.2f} % {measured_on} error\n")
    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    tradeoff.save(points, args.output, measured_on, **settings)
    print(f"In {args.output}/: tradeoff.png, tradeoff.txt, tradeoff.json")


def prune(reference, cost, label, train, measured, args):
    """Prunes a copy of `reference` by LC and returns its point on the trade-off."""
    model = tradeoff.copy_of(reference)
    compress = lc_keras.LearningCompression(cost, mu=_mu(args))
    keras.utils.set_random_seed(args.seed)
    began = time.perf_counter()
    fit_as_asked(model, train, args.epochs, args, label, [compress])
    print(f"{time.perf_counter() - began:.0f} s\n{lc_keras.report(model)}")
    return tradeoff.measure(f"LC {label.split()[0]}", model, measured)


def _mu(args):
    if args.mu is None:
        return "auto"
    first, last = map(float, args.mu.split(":"))
    return lc_keras.Geometric(first, last)


def _l1_norm(model):
    return sum(float(np.abs(k.numpy()).sum()) for k in default_kernels(model))
