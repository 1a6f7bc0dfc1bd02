"""The automatic μ beside fixed ranges, on validation images: three nets, two optimizers.

    python -m benchmarks.training.automatic_mu          # some 40 minutes on two cores
    python -m benchmarks.training.automatic_mu --nets digits --seeds 0 1 2
    python -m benchmarks.training.automatic_mu --tiny   # seconds

Every run starts from the same reference, trained without the validation images. No setting changes from
net to net or from optimizer to optimizer except the learning rate, which is the reference's.
"""

import argparse
import statistics
from pathlib import Path

import keras

import lc_keras
from benchmarks import record
from benchmarks.nets import NETS
from examples import tradeoff

OPTIMIZERS = ["sgd", "adam"]
RANGES = [(1e-4, 1e-2), (3e-4, 2.8e-2), (1e-3, 1e-1), (3e-3, 3e-1), (1e-2, 1.0)]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tiny", action="store_true", help="one epoch of digits")
    parser.add_argument("--output", type=Path, default=Path("outputs/automatic_mu.json"))
    options = parser.parse_args()
    ranges, optimizers = [None, *RANGES], OPTIMIZERS
    if options.tiny:
        options.nets, ranges, optimizers = ["digits"], ranges[:2], ["sgd"]

    rows = []
    for name in options.nets:
        net = NETS[name]
        train, validation = net.parts(validation=True)
        for optimizer in optimizers:
            epochs = 1 if options.tiny else net.epochs
            for seed in options.seeds:
                reference = net.reference(train, optimizer, seed, 1 if options.tiny else None)
                start = tradeoff.measure("reference", reference, validation).error
                for limits in ranges:
                    mu = "auto" if limits is None else lc_keras.Geometric(*limits)
                    label = "auto" if limits is None else f"{limits[0]:g} … {limits[1]:g}"
                    model = tradeoff.copy_of(reference)
                    compress = lc_keras.LearningCompression(lc_keras.L0Constraint(net.keep), mu=mu)
                    keras.utils.set_random_seed(seed)
                    heading = f"{name} {optimizer} {label}"
                    net.fit(model, train, epochs, heading, [compress], optimizer=optimizer, seed=seed)
                    error = tradeoff.measure(label, model, validation).error
                    rows.append(
                        {"net": name, "optimizer": optimizer, "seed": seed}
                        | {"learning_rate": net.rates[optimizer]}
                        | {"keep": net.keep, "epochs": epochs, "reference_error": start}
                        | {"mu": label, "validation_error": error, "gap": compress.gap}
                    )
                    record.write(options.output, rows)
    print(table(rows))


def table(rows):
    """Returns the mean validation error with each range, a line for each net and optimizer."""
    labels = list(dict.fromkeys(row["mu"] for row in rows))
    cases = list(dict.fromkeys((r["net"], r["optimizer"], r["keep"], r["epochs"]) for r in rows))
    lines = [f"{'validation error, %':34}{'reference':>10}" + "".join(f"{label:>16}" for label in labels)]
    for case in cases:
        name, optimizer, keep, epochs = case
        own = [r for r in rows if (r["net"], r["optimizer"]) == (name, optimizer)]
        means = [statistics.mean(r["validation_error"] for r in own if r["mu"] == label) for label in labels]
        head = f"{name}, {optimizer}, {100 * keep:g} %, {epochs} epochs"
        start = statistics.mean(r["reference_error"] for r in own)
        lines.append(f"{head:34}{start:>10.2f}" + "".join(f"{value:>16.2f}" for value in means))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
