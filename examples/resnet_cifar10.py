"""Prunes the LC paper's ResNets on CIFAR-10: LC, gradual pruning, and magnitude pruning with retraining.

    python -m examples.resnet_cifar10 --depth 32 --mixed-precision   # two GPU-hours
    python -m examples.resnet_cifar10 --depth 32 --schedule steps --reference-epochs 200 --epochs 200
    python -m examples.resnet_cifar10 --reduced                      # an hour on two cores

All methods train for the same number of epochs. The nets are those of He et al. with shortcuts that have no
weights. They are trained as in the paper: batches of 128, SGD with Nesterov 0.9, random flips and crops, and
1e-4 Σw² on every kernel and scale. The learning rate falls from 0.1 along half a cosine or, with
`--schedule steps`, as in the paper.

A run that was cut off continues when it is started again with the same options; at most one epoch is lost.
With `--queue`, a run first waits for the runs queued before it. `--reduced` is not the paper's experiment:
it trains a ResNet-8 of the same family on 10,000 images for a few epochs.
"""

import argparse
import contextlib
import fcntl
import json
import statistics
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import lc_keras
from examples import data, tradeoff
from examples.progress import OneLine
from lc_keras.model import default_kernels
from lc_keras.model.flow.kinds import describes
from lc_keras.model.flow.norms import BatchNormalization

# The weights of the convolution and dense kernels, as the paper counts them.
PRUNABLE = {32: 461_872, 56: 848_944, 110: 1_719_856}
REDUCED = {"depth": 8, "samples": 10_000, "reference_epochs": 20, "epochs": 24}


@keras.saving.register_keras_serializable("resnet_cifar10")
class FusedNormalization(layers.BatchNormalization):
    """Batch normalisation that trains with one TensorFlow operation instead of Keras's dozen."""

    def call(self, inputs, training=None):
        if not (training and self.trainable):
            return super().call(inputs, training=False)
        outputs, *statistics = tf.compat.v1.nn.fused_batch_norm(
            inputs, self.gamma, self.beta, epsilon=self.epsilon
        )
        for moving, of_batch in zip((self.moving_mean, self.moving_variance), statistics, strict=True):
            moving.assign(self.momentum * moving + (1 - self.momentum) * of_batch)
        return outputs


# Its units are those of its base class, so filters can be removed.
describes(FusedNormalization)(BatchNormalization)


def build(depth):
    """Returns a ResNet of three stages, 16, 32 and 64 filters wide.

    Args:
        depth: Int, 6n + 2 for n residual blocks in each stage.
    """
    blocks, left = divmod(depth - 2, 6)
    if left or blocks < 1:
        raise ValueError(f"Expected `depth` to be 6n + 2, such as 8, 32 or 110. Received: depth={depth}")
    inputs = keras.Input((32, 32, 3), name="image")
    x = layers.ReLU()(_normed(inputs, 16))
    for stage, width in enumerate((16, 32, 64)):
        for block in range(blocks):
            narrows = stage > 0 and block == 0
            inner = layers.ReLU()(_normed(x, width, stride=2 if narrows else 1))
            x = layers.Add()([_shortcut(x, width // 4) if narrows else x, _normed(inner, width)])
            x = layers.ReLU()(x)
    x = layers.GlobalAveragePooling2D()(x)
    # In float32 under any policy, because the loss needs it.
    logits = layers.Dense(10, name="logits", dtype="float32", **_weights())(x)
    model = keras.Model(inputs, logits, name=f"resnet{depth}")
    prunable = sum(int(np.prod(kernel.shape)) for kernel in default_kernels(model))
    assert prunable == PRUNABLE.get(depth, prunable), f"ResNet-{depth} with {prunable:,} prunable weights"
    return model


def _weights():
    return {"kernel_initializer": "he_normal", "kernel_regularizer": keras.regularizers.L2(1e-4)}


def _normed(x, width, stride=1):
    padding = "same"
    if stride > 1:
        # The taps are centred on the pixels that the shortcut keeps.
        x, padding = layers.ZeroPadding2D(1)(x), "valid"
    x = layers.Conv2D(width, 3, strides=stride, padding=padding, use_bias=False, **_weights())(x)
    return FusedNormalization(momentum=0.9, gamma_regularizer=keras.regularizers.L2(1e-4))(x)


def _shortcut(x, more):
    """Takes every other pixel and adds channels of zeros on both sides: He et al.'s option A, no weights."""
    x = layers.MaxPooling2D(1, strides=2)(x)
    x = layers.Permute((3, 1, 2))(x)
    x = layers.ZeroPadding2D(((more, more), (0, 0)), data_format="channels_last")(x)
    return layers.Permute((2, 3, 1))(x)


def load(samples=None, test_samples=None):
    """Returns the first `samples` training images and the first `test_samples` test images, with labels.

    They are scaled so that each channel of the training images has mean 0 and deviation 1.
    """
    train, test = data.cifar10()
    # Image by image first: in single precision, a sum of that many numbers stops growing.
    means, variances = (getattr(train[0], name)(axis=(1, 2)) for name in ("mean", "var"))
    mean, deviation = means.mean(axis=0), np.sqrt(variances.mean(axis=0) + means.var(axis=0))
    return tuple(
        ((images[:count] - mean) / deviation, labels[:count])
        for (images, labels), count in ((train, samples), (test, test_samples))
    )


def augmented(part, size, seed):
    """Returns batches in a new order each epoch, each image flipped or not and shifted by up to 4 pixels."""
    # Seeds of operations would repeat the shifts of one epoch in all epochs.
    seeds = tf.data.Dataset.random(seed=seed, rerandomize_each_iteration=True).batch(2)
    batches = tf.data.Dataset.zip(data.batches(part, size, seed=seed), seeds)
    return batches.map(_augment, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def _augment(batch, seed):
    images, labels = batch
    count = tf.shape(images)[0]
    images = tf.pad(images, [[0, 0], [4, 4], [4, 4], [0, 0]])
    *offsets, flips = tf.unstack(
        tf.cast(tf.random.stateless_uniform([count, 3], seed) * [9.0, 9.0, 2.0], tf.int32), axis=1
    )
    for axis, offset in enumerate(offsets, start=1):
        images = tf.gather(images, offset[:, None] + tf.range(32), axis=axis, batch_dims=1)
    return tf.where(flips[:, None, None, None] == 1, tf.reverse(images, [2]), images), labels


def falling(schedule, rate, batches):
    """Returns the schedule of the learning rate over a run.

    Args:
        schedule: "cosine", or "steps": divided by 10 after 1/2 and after 3/4 of the run, as in the paper.
        rate: Float, the highest learning rate.
        batches: Int, the number in the whole run.
    """
    if schedule == "cosine":
        return keras.optimizers.schedules.CosineDecay(rate, batches)
    falls = [int(share * batches) - 1 for share in (0.5, 0.75)]
    return keras.optimizers.schedules.PiecewiseConstantDecay(falls, [rate, rate / 10, rate / 100])


def fit(model, train, epochs, label, args, callbacks=()):
    """Trains a model.

    Args:
        model: `keras.Model`.
        train: Tuple of images and labels.
        epochs: Int.
        label: String.
        args: The options.
        callbacks: Sequence of callbacks.
    """
    train = augmented(train, 128, args.seed)
    batches = int(train.cardinality())
    rate = falling(args.schedule, args.learning_rate, epochs * batches)
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=max(1, batches // 8),
        jit_compile=bool(tf.config.list_physical_devices("GPU")),
    )
    model.fit(
        train,
        epochs=epochs,
        shuffle=False,  # the batches are shuffled already
        verbose=0,
        callbacks=[*callbacks, OneLine(label)],
    )


def saved(method, keep, args):
    """Returns the path of a pruned net."""
    return args.output / f"{method} {100 * keep:g}-{_name(SETTINGS, args)}.keras"


def _backup(label, args):
    return keras.callbacks.BackupAndRestore(_begun(label, args))


def _begun(label, args):
    """Returns the folder for what a run leaves when it is cut off; other settings make another run."""
    return args.output / "backup" / f"{label}-{_name(SETTINGS, args)}"


def _name(settings, args):
    return "-".join(str(getattr(args, name)) for name in settings)


def trained(train, args):
    """Returns the reference, loaded if an earlier run saved it, otherwise trained and saved."""
    keras.utils.set_random_seed(args.seed)
    model = build(args.depth)
    path = args.reference or args.output / f"reference-{_name(OF_REFERENCE, args)}.weights.h5"
    if path.exists():
        model.load_weights(path)
        return model
    fit(model, train, args.reference_epochs, "reference", args, [_backup("reference", args)])
    model.save_weights(path)
    return model


def learning_compression(model, keep, train, label, args):
    """Prunes by LC; with `--long-steps`, as in the authors' code."""
    steps = {}
    if args.long_steps:
        steps = {"mu": lc_keras.Exponential(9e-5, 1.1), "epochs_per_step": 20, "reset_optimizer": True}
    compress = lc_keras.LearningCompression(
        lc_keras.L0Constraint(keep), checkpoint_dir=_begun(label, args), **steps
    )
    fit(model, train, args.epochs, label, args, [compress])


def gradual(model, keep, train, label, args):
    """Removes more and more of the smallest weights of all layers together."""
    prune = lc_keras.baselines.GradualPruning(lc_keras.L0Constraint(keep))
    fit(model, train, args.epochs, label, args, [_backup(label, args), prune])


def magnitude(model, keep, train, label, args):
    """Removes the smallest weights of all layers together in one go, and retrains the others."""
    prune = lc_keras.baselines.MagnitudePruning(lc_keras.L0Constraint(keep))
    fit(model, train, args.epochs, label, args, [_backup(label, args), prune])


def filters(model, keep, train, label, args):
    """Prunes filters by LC to a fraction of the multiply-adds."""
    cost = lc_keras.L0Constraint(keep, lc_keras.Neurons(), measure="macs")
    compress = lc_keras.LearningCompression(cost, checkpoint_dir=_begun(label, args))
    fit(model, train, args.epochs, label, args, [compress])


# The settings of a run: those of two runs that are compared differ in the seed at most.
SETTINGS = (
    "depth",
    "samples",
    "test_samples",
    "reference_epochs",
    "epochs",
    "learning_rate",
    "schedule",
    "long_steps",
    "seed",
)
OF_REFERENCE = ("depth", "samples", "reference_epochs", "learning_rate", "schedule", "seed")
METHODS = {"LC": learning_compression, "gradual": gradual, "magnitude, retrained": magnitude}
OF_FILTERS = "LC, filters"


def run(args):
    """Prunes copies of the reference by each method at each κ, except those already in the output.

    Args:
        args: The options.

    Returns:
        List of dicts of figures.
    """
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "rows.json"
    rows = json.loads(path.read_text()) if path.exists() else []
    train, test = load(args.samples, args.test_samples)
    reference = trained(train, args)
    start = tradeoff.measure("reference", reference, test)
    settings = {name: getattr(args, name) for name in SETTINGS}
    runs = [(keep, method, prune) for keep in args.keep for method, prune in METHODS.items()]
    runs += [(keep, OF_FILTERS, filters) for keep in args.macs]
    for number, (keep, method, prune) in enumerate(runs, start=1):
        row = {"contender": method, "keep": keep, **settings}
        if any(row.items() <= done.items() for done in rows):
            continue
        model = tradeoff.copy_of(reference)
        keras.utils.set_random_seed(args.seed)
        prune(model, keep, train, f"{method} {100 * keep:g} % ({number} of {len(runs)})", args)
        model.save(saved(method, keep, args))
        point = tradeoff.measure(method, model, test)
        densities = {v.path: v.density for v in lc_keras.report(model).rows}
        rows.append(
            row
            | {"measured_on": "test", "kept": point.kept, "weights": start.kept, "density": point.density}
            | {"error": point.error, "reference_error": start.error, "density_by_layer": densities}
        )
        path.write_text(json.dumps(rows, indent=1) + "\n")
    return rows


def table(rows):
    """Returns test errors at equal epochs, a line per method and a column per κ: means over the seeds."""
    cases = {}
    for row in rows:
        cases.setdefault(tuple(row[name] for name in SETTINGS if name != "seed"), []).append(row)
    return "\n\n".join(_table(own) for own in cases.values())


def _table(rows):
    budgets = [row for row in rows if row["contender"] != OF_FILTERS]
    keeps = sorted({row["keep"] for row in budgets}, reverse=True)
    references = {row["seed"]: row["reference_error"] for row in rows}
    seeds = "mean (largest) of seeds" if len(references) > 1 else "seed"
    lines = [
        "ResNet-{depth}, {weights:,} prunable weights, {samples:,} images, {seeds} {numbers}",
        "reference {reference} % after {reference_epochs} epochs",
        "test error, %, after {epochs} more, {schedule}",
    ]
    facts = {"seeds": seeds, "numbers": ", ".join(map(str, sorted(references)))}
    facts["reference"] = _mean_and_largest(references.values())
    lines = [line.format(**{**rows[0], **facts}) for line in lines]
    lines.append(f"{'':24}" + "".join(f"{100 * keep:>14g} %" for keep in keeps))
    for method in dict.fromkeys(row["contender"] for row in budgets):
        cells = [_cell(budgets, method, keep) for keep in keeps]
        lines.append(f"{method:24}" + "".join(f"{cell:>16}" for cell in cells))
    for part in sorted({row["keep"] for row in rows if row not in budgets}, reverse=True):
        lines.append(f"{OF_FILTERS}, {100 * part:g} % of the multiply-adds: {_cell(rows, OF_FILTERS, part)}")
    return "\n".join(lines)


def _cell(rows, method, keep):
    errors = [row["error"] for row in rows if (row["contender"], row["keep"]) == (method, keep)]
    return _mean_and_largest(errors) if errors else ""


def _mean_and_largest(errors):
    largest = f" ({max(errors):.2f})" if len(set(errors)) > 1 else ""
    return f"{statistics.mean(errors):.2f}{largest}"


def options(arguments=None):
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--depth", type=int, default=32, help="6n + 2; the paper uses 32, 56 and 110")
    add("--keep", type=float, nargs="+", default=[0.15, 0.1, 0.05, 0.03])
    add(
        "--macs",
        type=float,
        nargs="*",
        default=[],
        help="prunes filters by LC to these fractions of the multiply-adds",
    )
    add("--epochs", type=int, default=40, help="epochs of each pruning run")
    add("--reference-epochs", type=int, default=40)
    add(
        "--reference",
        type=Path,
        help="the reference's weights, a .weights.h5 file: read if it exists, else trained and written there",
    )
    add("--schedule", choices=("cosine", "steps"), default="cosine", help="schedule of the learning rate")
    add("--learning-rate", type=float, default=0.1)
    add("--samples", type=int, default=50_000, help="trains only on the first SAMPLES images")
    add("--test-samples", type=int, default=10_000, help="measures only on the first TEST_SAMPLES images")
    add(
        "--long-steps",
        action="store_true",
        help="L steps of 20 epochs with a fresh optimizer and "
        "μ = 9e-5 · 1.1^i, as in the authors' code for LeNet-300; needs hundreds of epochs",
    )
    add("--mixed-precision", action="store_true", help="float16 on a GPU, bfloat16 on a CPU")
    add("--queue", action="store_true", help="waits until the runs queued before this one end")
    add("--reduced", action="store_true", help=f"a small case for CPUs: {REDUCED}")
    add("--seed", type=int, default=0)
    add("--output", type=Path, help="default: outputs/resnetDEPTH")
    parser.set_defaults(**(REDUCED if parser.parse_args(arguments).reduced else {}))
    args = parser.parse_args(arguments)
    args.output = args.output or Path(f"outputs/resnet{args.depth}")
    return args


@contextlib.contextmanager
def prepared(args):
    """Sets the precision and waits for this run's turn, which ends with its process, however that ends."""
    if args.mixed_precision:
        half = "float16" if tf.config.list_physical_devices("GPU") else "bfloat16"
        keras.mixed_precision.set_global_policy(f"mixed_{half}")
    if not args.queue:
        yield
        return
    folder = args.output.parent
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "queue.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("Waiting for the run before.", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main():
    args = options()
    with prepared(args):
        rows = run(args)
    print(f"\n{table(rows)}\n\nIn {args.output}/: rows.json, the reference's weights")


if __name__ == "__main__":
    main()
