"""The paper's experiment on CIFAR-10, whole or reduced: LC, gradual and magnitude pruning at equal epochs.

python -m benchmarks.training.resnet              # ResNet-8, 10,000 images: an hour a seed
python -m benchmarks.training.resnet --full --depth 32 --macs 0.5   # Fig. 4 of the paper, and what is served
python -m benchmarks.training.resnet --tiny       # one epoch of a few images
"""

import argparse
import statistics
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import lc_keras
from benchmarks import plots, record
from benchmarks.serving.saved_model import compare
from examples import resnet_cifar10

TINY = "--samples 128 --test-samples 100 --reference-epochs 1 --epochs 2 --keep 0.1"
# Carreira-Perpiñán & Idelbayev (CVPR 2018), Fig. 4: test error, %, by % kept; at 100 the reference's.
PAPER = {
    32: {
        "LC, paper": {100: 7.72, 15: 7.32, 10: 7.88, 5: 9.26, 3: 10.74},
        "magnitude, paper": {100: 7.72, 15: 8.85, 10: 9.41, 5: 12.07, 3: 14.35},
    },
    56: {
        "LC, paper": {100: 6.86, 15: 6.92, 10: 6.67, 5: 7.51, 3: 8.21},
        "magnitude, paper": {100: 6.86, 15: 7.39, 10: 8.66, 5: 9.48, 3: 11.50},
    },
    110: {
        "LC, paper": {100: 6.70, 15: 6.30, 10: 6.50, 5: 6.93, 3: 7.61},
        "magnitude, paper": {100: 6.70, 15: 7.22, 10: 7.20, 5: 8.23, 3: 9.32},
    },
}


def serve(args, keep, rounds=20):
    """Returns rows of file size and time for the reference, LC's net, and LC's nets with fewer filters.

    Args:
        args: The options of the runs.
        keep: Float, the budget of the LC net that is exported packed.
        rounds: Int, how many times all nets take turns.
    """
    train, _ = resnet_cifar10.load(args.samples, args.test_samples)
    nets = {"reference": resnet_cifar10.trained(train, args)}
    chosen = [("LC", keep), *((resnet_cifar10.OF_FILTERS, fraction) for fraction in args.macs)]
    for method, fraction in chosen:
        net = keras.saving.load_model(resnet_cifar10.saved(method, fraction, args))
        label = f"{method} {100 * fraction:g} %"
        nets[label] = lc_keras.shrink(net) if method == resnet_cifar10.OF_FILTERS else net
    with tempfile.TemporaryDirectory() as folder:
        exports = {n: lc_keras.export_saved_model(net, Path(folder) / n) for n, net in nets.items()}
        loaded = {n: tf.saved_model.load(export.path) for n, export in exports.items()}
    rows = []
    for batch in (1, 32):
        images = np.random.default_rng(0).normal(size=(batch, 32, 32, 3))
        times = compare({n: net.serve for n, net in loaded.items()}, tf.constant(images, tf.float32), rounds)
        for name, own in times.items():
            ratio = statistics.median(a / b for a, b in zip(times["reference"], own, strict=True))
            row = {"served": name, "batch": batch, "nbytes": exports[name].nbytes, "speedup": ratio}
            rows.append(row | {"ms": 1e3 * statistics.median(own)})
    return rows


def served_table(rows):
    """Returns the rows of `serve` as text."""
    return "\n".join(
        f"{row['served']:20} batch {row['batch']:3}  {row['nbytes'] / 1e3:8,.0f} kB  {row['ms']:7.2f} ms  "
        f"{row['speedup']:5.2f} x as fast"
        for row in rows
    )


def plot(rows, stem):
    """Draws the rows with budgets of weights, once more beside the paper's points if the paper has that net.

    Args:
        rows: List of dicts.
        stem: Path without a suffix.

    Returns:
        List of paths.
    """
    budgets = [row for row in rows if row["contender"] != resnet_cifar10.OF_FILTERS]
    paths = plots.errors(budgets, stem)
    if published := PAPER.get(rows[0]["depth"]):
        paths = [*paths, stem.with_name(f"{stem.name}_paper.png")]
        plots.lost(budgets, published, paths[-1])
    return paths


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help=TINY)
    parser.add_argument("--full", action="store_true", help="all images, and the example's own epochs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", type=Path, default=Path("outputs/resnet.json"))
    own, others = parser.parse_known_args()
    reduced = [] if own.full else ["--reduced"]
    args = resnet_cifar10.options([*reduced, *(TINY.split() if own.tiny else []), *others])
    # Finished runs, and those that were begun, stay beside the output.
    args.output = own.output.with_suffix("")
    with resnet_cifar10.prepared(args):
        for args.seed in own.seeds:
            rows = resnet_cifar10.run(args)
    record.write(own.output, rows)
    print(resnet_cifar10.table(rows))
    plot(rows, own.output.with_suffix(""))
    if own.full:
        served = serve(args, keep=min(args.keep, key=lambda keep: abs(keep - 0.05)))
        record.write(own.output.with_name(f"{own.output.stem}_served.json"), served)
        print(f"\n{served_table(served)}")


if __name__ == "__main__":
    main()
