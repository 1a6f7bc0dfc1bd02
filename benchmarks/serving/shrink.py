"""The time of shrunk nets against the multiply-adds they have left, side by side in one run.

    python -m benchmarks.serving.shrink [--rounds 20] [--batch-size 32] [--output shrink.json]
    python -m benchmarks.serving.shrink --applications   # how exact: nets of Keras at full size

Filters are removed by magnitude to a budget of multiply-adds, from VGG-like and ResNet-like nets with random
weights. In the nets of Keras, filters die at random, and the outputs before and after are compared.
"""

import argparse
import statistics
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import lc_keras
from benchmarks import record
from lc_keras.baselines import compress_directly
from lc_keras.model.macs import macs


def vgg():
    """VGG16 at half of its width, or less, on 64 × 64 images."""
    stack = [keras.Input((64, 64, 3))]
    for repeats, width in ((2, 32), (2, 64), (3, 128), (3, 256), (3, 256)):
        stack += [layers.Conv2D(width, 3, padding="same", activation="relu") for _ in range(repeats)]
        stack.append(layers.MaxPooling2D())
    return keras.Sequential([*stack, layers.Flatten(), layers.Dense(512, "relu"), layers.Dense(100)])


def resnet():
    """Basic residual blocks, two in each of four stages, on 64 × 64 images."""

    def normed(x, width, size, stride):
        return layers.BatchNormalization()(
            layers.Conv2D(width, size, stride, padding="same", use_bias=False)(x)
        )

    inputs = keras.Input((64, 64, 3))
    x = layers.ReLU()(normed(inputs, 32, 3, 1))
    for stage, width in enumerate((32, 64, 128, 256)):
        for block in range(2):
            stride = 2 if stage and not block else 1
            inner = normed(layers.ReLU()(normed(x, width, 3, stride)), width, 3, 1)
            x = x if stride == 1 else normed(x, width, 1, stride)
            x = layers.ReLU()(layers.Add()([x, inner]))
    return keras.Model(inputs, layers.Dense(100)(layers.GlobalAveragePooling2D()(x)))


def shrunk(build, keep):
    model = build()
    cost = lc_keras.L0Constraint(keep, lc_keras.Neurons(), measure="macs")
    compress_directly(model, cost)
    start = time.perf_counter()
    small = lc_keras.shrink(model)
    return model, small, time.perf_counter() - start


APPLICATIONS = ("VGG16", "ResNet50", "MobileNetV2", "DenseNet121", "EfficientNetB0")


def with_dead_filters(name, fraction=0.3):
    """Returns a net of Keras with random statistics, a fraction of whose filters give only a constant."""
    model = getattr(keras.applications, name)(weights=None, classifier_activation=None)
    generator = np.random.default_rng(0)
    for layer in model.layers:
        for v in layer.weights:
            if v.name in ("bias", "beta", "moving_mean"):
                v.assign(generator.normal(size=v.shape) * 0.1)
            elif v.name in ("gamma", "moving_variance"):
                v.assign(generator.uniform(0.5, 1.5, v.shape))
        if isinstance(layer, (layers.Conv2D, layers.Dense)) and layer.name != "predictions":
            alive = generator.random(layer.kernel.shape[-1]) >= fraction
            for v in layer.weights:
                v.assign(v.numpy() * alive)
            for node in layer._outbound_nodes:
                if isinstance(node.operation, layers.BatchNormalization):
                    # Half of the dead filters put out a constant.
                    for v in (node.operation.beta, node.operation.moving_mean):
                        v.assign(v.numpy() * (alive | (generator.random(alive.shape) < 0.5)))
    return model


def difference(name):
    model = with_dead_filters(name)
    start = time.perf_counter()
    small = lc_keras.shrink(model)
    seconds = time.perf_counter() - start
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
    before, after = (net(x, training=False).numpy() for net in (model, small))
    return {
        "net": name,
        "parameters": model.count_params(),
        "parameters_fraction": small.count_params() / model.count_params(),
        "relative_difference": float(abs(before - after).max() / abs(before).max()),
        "shrink_seconds": seconds,
    }


def compiled(model):
    return tf.function(lambda x: model(x, training=False))


def measure(build, fractions, batch_size, rounds):
    """Returns medians over rounds in which all sizes of one net take turns."""
    nets, rows = {}, {}
    for keep in fractions:
        dense, small, seconds = shrunk(build, keep)
        nets.setdefault(1.0, compiled(dense))
        nets[keep] = compiled(small)
        rows[keep] = {
            "budget": keep,
            "macs": macs(small).dense,
            "macs_fraction": macs(small).dense / macs(dense).dense,
            "parameters_fraction": small.count_params() / dense.count_params(),
            "shrink_seconds": seconds,
        }
    x = tf.constant(np.random.default_rng(0).normal(size=(batch_size, 64, 64, 3)), tf.float32)
    for run in nets.values():
        run(x)
    times = {keep: [] for keep in nets}
    for _ in range(rounds):
        for keep, run in nets.items():
            start = time.perf_counter()
            run(x).numpy()
            times[keep].append(time.perf_counter() - start)
    for keep, row in rows.items():
        row["dense_ms"] = 1e3 * statistics.median(times[1.0])
        row["ms"] = 1e3 * statistics.median(times[keep])
        row["speedup"] = statistics.median(a / b for a, b in zip(times[1.0], times[keep], strict=True))
    return list(rows.values())


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--keep", type=float, nargs="+", default=[0.75, 0.5, 0.25, 0.1], help="parts of the multiply-adds"
    )
    parser.add_argument("--output", type=Path, help="a json file for the figures")
    parser.add_argument(
        "--applications", nargs="*", choices=APPLICATIONS, help="compares outputs of these nets, or of all"
    )
    parser.add_argument("--tiny", action="store_true", help="one round of a ResNet and two images")
    arguments = parser.parse_args()
    nets = [("ResNet-like", resnet), ("VGG-like", vgg)]
    if arguments.tiny:
        nets, arguments.keep, arguments.rounds, arguments.batch_size = nets[:1], [0.5], 1, 2
    rows = []
    if arguments.applications is not None:
        nets = []
        for name in arguments.applications or APPLICATIONS:
            rows.append(difference(name))
            print(_line(rows[-1]), flush=True)
    for name, build in nets:
        keras.utils.set_random_seed(0)
        for row in measure(build, arguments.keep, arguments.batch_size, arguments.rounds):
            rows.append({"net": name, **row})
            print(_line(rows[-1]), flush=True)
    record.write(arguments.output, rows)


def table(rows):
    return "\n".join(map(_line, rows))


def _line(row):
    if "relative_difference" in row:
        left = 100 * row["parameters_fraction"]
        return (
            f"{row['net']:15} {row['parameters']:11,} parameters, {left:5.1f} % left  "
            f"largest difference {row['relative_difference']:.1e} of the largest output"
        )
    return (
        f"{row['net']:12} budget {100 * row['budget']:3.0f} %  "
        f"MACs left {100 * row['macs_fraction']:5.1f} %  "
        f"dense {row['dense_ms']:7.1f} ms  shrunk {row['ms']:7.1f} ms  {row['speedup']:5.2f} x"
    )


if __name__ == "__main__":
    main()
