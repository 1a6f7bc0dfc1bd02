"""The time of nets shrunk to a budget of milliseconds, against the time asked for.

    python -m benchmarks.serving.milliseconds [--keep 0.5] [--output milliseconds.json]

Filters are removed by magnitude from nets with random weights, down to a part of the milliseconds that
`lc_keras.latency` fitted, and to the same part of the multiply-adds. The whole net and both smaller ones are
then timed in turn. With `--clock processor`, other processes disturb the timing less; for that, set
`OMP_NUM_THREADS`, `TF_NUM_INTRAOP_THREADS` and `TF_NUM_INTEROP_THREADS` to 1.
"""

import argparse
import itertools
import time
from pathlib import Path

import keras
from keras import layers

import lc_keras
from benchmarks import record
from benchmarks.serving.shrink import resnet, vgg
from lc_keras.baselines import compress_directly
from lc_keras.shrinking.timing import quartiles


def mobilenet():
    """Depthwise and pointwise convolutions in turn, on 64 × 64 images."""

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
    """Returns whether some widths take the fraction `keep` of the time."""
    task = lc_keras.Task(lc_keras.L0Constraint(keep, lc_keras.Neurons(), measure="milliseconds"))
    try:
        task.bind(model)
    except ValueError:
        return False
    return True


CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}


def measured(name, batch_size, keep, seconds, clock):
    """Returns a row: the time asked for, and that of the smaller nets, as parts of the whole net's time."""
    keras.utils.set_random_seed(0)
    model = NETS[name]()
    weights = model.get_weights()
    fitted = lc_keras.latency(model, batch_size, seconds=seconds, clock=CLOCKS[clock])
    # Where most of the time goes into calling each layer, less than that cannot be asked for.
    keep = next(
        part for part in sorted({keep, 0.6, 0.7, 0.8, 0.9, 1.0}) if part >= keep and is_in_reach(model, part)
    )
    small = {}
    for measure in ("milliseconds", "macs"):
        compress_directly(model, lc_keras.L0Constraint(keep, lc_keras.Neurons(), measure=measure))
        small[measure] = lc_keras.shrink(model)
        model.set_weights(weights)
    whole, by_time, by_macs = quartiles([model, *small.values()], batch_size, seconds / 2, CLOCKS[clock])
    return {
        "net": name,
        "batch_size": batch_size,
        "clock": clock,
        "asked": keep,
        "part_of_the_time": by_time / whole,
        "part_of_the_time_by_macs": by_macs / whole,
        "milliseconds": whole,
        "fitted_milliseconds": fitted.milliseconds,
        "error_of_the_fit": fitted.error,
    }


def table(rows):
    """Returns a line for each net and batch size."""
    lines = [f"{'net':12}{'batch':>6}{'asked':>8}{'got':>8}{'by macs':>9}{'fit ±':>8}"]
    for row in rows:
        parts = (row[name] for name in ("asked", "part_of_the_time", "part_of_the_time_by_macs"))
        asked, got, by_macs = (f"{part:.2f}" for part in parts)
        error = f"{100 * row['error_of_the_fit']:.1f} %"
        lines.append(f"{row['net']:12}{row['batch_size']:>6}{asked:>8}{got:>8}{by_macs:>9}{error:>8}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, default=["vgg", "resnet", "mobilenet"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 32])
    parser.add_argument("--keep", type=float, default=0.5)
    parser.add_argument("--seconds", type=float, default=10, help="for how long each fit times nets")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--tiny", action="store_true", help="one net of two layers, for a moment")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.tiny:
        # For a net of two layers, most of the time is the call.
        args.nets, args.batch_sizes, args.seconds, args.keep = ["tiny"], [1], 0.01, 1.0
    rows = []
    print(table(rows))
    for name, batch_size in itertools.product(args.nets, args.batch_sizes):
        row = measured(name, batch_size, args.keep, args.seconds, args.clock)
        rows.append(row)
        print(table(rows).splitlines()[-1], flush=True)
        record.write(args.output, rows)


if __name__ == "__main__":
    main()
