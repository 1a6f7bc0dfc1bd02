"""The time of nets that were shrunk to a budget of milliseconds, against what was asked for.

    python -m benchmarks.serving.milliseconds [--keep 0.5] [--output milliseconds.json]

Filters are removed by magnitude from nets with random weights, to a part of the milliseconds that
`lc_keras.latency` fitted, and to the same part of the multiply-adds. The whole net and both smaller ones then
take turns to be timed.
"""

import argparse
import itertools
from pathlib import Path

import keras
from keras import layers

import lc_keras
from benchmarks import record
from benchmarks.serving.shrink import resnet, vgg
from lc_keras.baselines import compress_directly
from lc_keras.shrinking.timing import quartiles


def mobilenet():
    """Depthwise and pointwise convolutions in turns, on 64 × 64 images."""

    def normed(layer, x):
        return layers.ReLU()(layers.BatchNormalization()(layer(x)))

    inputs = keras.Input((64, 64, 3))
    x = normed(layers.Conv2D(32, 3, 2, padding="same", use_bias=False), inputs)
    for width, stride in ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        x = normed(layers.DepthwiseConv2D(3, stride, padding="same", use_bias=False), x)
        x = normed(layers.Conv2D(width, 1, use_bias=False), x)
    return keras.Model(inputs, layers.Dense(100)(layers.GlobalAveragePooling2D()(x)))


def tiny():
    return keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(8, 3), layers.Flatten(), layers.Dense(4)])


NETS = {"vgg": vgg, "resnet": resnet, "mobilenet": mobilenet, "tiny": tiny}


def is_in_reach(model, keep):
    """Returns whether some widths take a part of the time."""
    task = lc_keras.Task(lc_keras.L0Constraint(keep, lc_keras.Neurons(), measure="milliseconds"))
    try:
        task.bind(model)
    except ValueError:
        return False
    return True


def measured(name, batch_size, keep, seconds):
    """Returns a row: what was asked for, and the time of the smaller nets, as parts of the whole one's."""
    keras.utils.set_random_seed(0)
    model = NETS[name]()
    weights = model.get_weights()
    fitted = lc_keras.latency(model, batch_size, seconds=seconds)
    # Where most of the time is the call of each layer, less than that cannot be asked for.
    keep = next(
        part for part in sorted({keep, 0.6, 0.7, 0.8, 0.9, 1.0}) if part >= keep and is_in_reach(model, part)
    )
    small = {}
    for measure in ("milliseconds", "macs"):
        compress_directly(model, lc_keras.L0Constraint(keep, lc_keras.Neurons(), measure=measure))
        small[measure] = lc_keras.shrink(model)
        model.set_weights(weights)
    whole, by_time, by_macs = quartiles([model, *small.values()], batch_size, seconds / 2)
    return {
        "net": name,
        "batch_size": batch_size,
        "asked": keep,
        "part_of_the_time": by_time / whole,
        "part_of_the_time_by_macs": by_macs / whole,
        "milliseconds": whole,
        "fitted_milliseconds": fitted.milliseconds,
        "error_of_the_fit": fitted.error,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["vgg", "resnet", "mobilenet"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=10, help="for which each fit times nets")
    parser.add_argument("--tiny", action="store_true", help="one net of a layer, for a moment")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.tiny:
        # Of a net of a layer most of the time is the call.
        args.nets, args.batch_sizes, args.seconds, args.keep = ["tiny"], [1], 0.01, 1.0
    print(f"{'net':12}{'batch':>6}{'asked':>8}{'got':>8}{'by macs':>9}{'fit ±':>8}{'ms':>9}")
    rows = []
    for name, batch_size in itertools.product(args.nets, args.batch_sizes):
        row = measured(name, batch_size, args.keep, args.seconds)
        parts = f"{row['asked']:>8.2f}{row['part_of_the_time']:>8.2f}{row['part_of_the_time_by_macs']:>9.2f}"
        error = f"{100 * row['error_of_the_fit']:>6.1f} %"
        print(f"{name:12}{batch_size:>6}{parts}{error}{row['milliseconds']:>9.2f}", flush=True)
        rows.append(row)
        record.write(args.output, rows)


if __name__ == "__main__":
    main()
