"""How small nets can get while at most half a point worse: LC beside gradual and magnitude pruning.

    python -m benchmarks.training.smallest
    python -m benchmarks.training.smallest --nets tabular --epochs 60 --output outputs/longer.json

`lc_keras.smallest` searches for each contender's budget on held-out examples, in weights, and in the weights
that stay once neurons are taken out. Each run begins with the reference and sees the same batches. The errors
of the nets found are those on the test set. If the benchmark is cut off, it goes on when started again.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

import lc_keras
from benchmarks import record
from benchmarks.robustness import optimizers, running
from benchmarks.robustness.nets import NETS, parts
from lc_keras.baselines import GradualPruning, MagnitudePruning

CONTENDERS = {"LC": lc_keras.LearningCompression, "gradual": GradualPruning, "magnitude": MagnitudePruning}
UNITS = {
    "weights": lc_keras.L0Constraint,
    "neurons": lambda keep: lc_keras.L0Constraint(keep, lc_keras.Neurons(), measure="parameters"),
}
# The epochs of a run: few, so that all searches together take an hour or two on a core. Then its rate at
# the start, as a factor of the net's.
EPOCHS = {"tabular": 30, "unet": 10, "lenet5": 6, "resnet": 6}
RATES = {"tabular": 0.3, "unet": 0.3, "lenet5": 1.0, "resnet": 0.3}
# Nets whose images may be mirrored. Without that, more epochs harm the ResNet when everything is kept.
FLIPPED = ("resnet",)
_BATCHES = 100


def row_of(net, contender, units, args):
    """Searches for one budget, and returns it with its curve and the test error."""
    train, held_out = parts(net.name, True)
    _, test = parts(net.name, False)
    epochs = args.epochs or EPOCHS[net.name]
    count = min(args.examples, len(train[0]))
    reference, _ = running.reference(net, True, args.output.parent / "references")
    row = {
        "net": net.name,
        "contender": contender,
        "units": units,
        "seed": args.seed,
        "within": args.within,
        "epochs": epochs,
        "examples": count,
        "reference_error": running.error(reference, test),
        "reference_validation_error": running.error(reference, held_out),
    }

    def fit(model, callbacks):
        keras.utils.set_random_seed(args.seed)
        batches = running.batches([part[:count] for part in train], count // _BATCHES, args.seed)
        total = epochs * int(batches.cardinality())
        if net.name in FLIPPED:
            batches = batches.map(lambda x, y: (tf.image.random_flip_left_right(x), y))
        rate = args.rate or RATES[net.name]
        running.prepare(model, optimizers.make("SGD", net.rate, rate, "cosine", total))
        return model.fit(batches, epochs=epochs, shuffle=False, verbose=0, callbacks=callbacks)

    try:
        found = lc_keras.smallest(
            reference,
            fit,
            lambda model: running.error(model, held_out),
            args.within,
            compress=lambda keep: CONTENDERS[contender](UNITS[units](keep)),
            lowest=args.lowest,
            precision=args.precision,
            mode="min",
            warm_start=False,
            max_runs=args.runs,
            directory=args.output.parent / "smallest" / f"{net.name}-{contender}-{units}-{args.seed}",
            verbose=0,
        )
    except ValueError as error:  # a net worse than asked for with everything kept is a result, too
        print(f"\n{net.name}, {contender}, {units}: {error}", flush=True)
        return row | {"budget": 1.0, "error": None, "note": str(error), "curve": []}
    print(f"\n{net.name}, {contender}, {units}\n{found}", flush=True)
    return row | {
        "budget": found.budget,
        "error": running.error(found.model, test),
        "note": found.note,
        "curve": [[p.budget, p.score] for p in sorted(found.points, key=lambda p: p.budget)],
    }


def table(rows):
    """Returns what is kept and the test error, a line for each net and kind of unit."""
    lines = [f"{'':18}{'reference':>10}" + "".join(f"{name:>20}" for name in CONTENDERS)]
    for net, units in dict.fromkeys((row["net"], row["units"]) for row in rows):
        own = {row["contender"]: row for row in rows if (row["net"], row["units"]) == (net, units)}
        line = f"{net + ', ' + units:18}{next(iter(own.values()))['reference_error']:>10.2f}"
        for name in CONTENDERS:
            row = own.get(name)
            if row is None:
                line += f"{'':>20}"
            elif row["error"] is None:
                line += f"{'not reached':>20}"
            else:
                line += f"{100 * row['budget']:>10.2f} % ({row['error']:5.2f})".rjust(20)
        lines.append(line)
    return "\n".join(lines)


def plot(rows, stem):
    """Draws the error on held-out examples against what is kept, a panel for each net and kind of unit."""
    nets, kinds = ([n for n in names if any(n in row.values() for row in rows)] for names in (NETS, UNITS))
    figure = Figure(figsize=(1 + 3 * len(nets), 0.5 + 2.7 * len(kinds)), layout="constrained")
    for line, units in zip(figure.subplots(len(kinds), len(nets), squeeze=False), kinds, strict=True):
        for axes, net in zip(line, nets, strict=True):
            own = [row for row in rows if (row["net"], row["units"]) == (net, units)]
            for row in own:
                colour, kept = f"C{list(CONTENDERS).index(row['contender'])}", 100 * row["budget"]
                curve = [(100 * budget, error) for budget, error in row["curve"]]
                axes.plot(
                    *zip(*curve, strict=True), ".-", color=colour, label=f"{row['contender']}: {kept:.3g} %"
                )
                best = [point for point in curve if abs(point[0] - kept) < 1e-9]
                axes.plot(*zip(*best, strict=True), "o", color=colour, markersize=10, fillstyle="none")
            if not own:
                axes.set_axis_off()
                continue
            limit = own[0]["reference_validation_error"] + own[0]["within"]
            axes.axhline(limit, color="black", linestyle="--")
            axes.legend(fontsize="small")
            axes.set(xscale="log", title=f"{net}, {units}")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        line[0].set_ylabel("error of held-out examples, %")
    for axes in figure.axes[-len(nets) :]:
        axes.set_xlabel("kept, % of the weights")
    path = stem.with_suffix(".png")
    figure.savefig(path, dpi=100)
    return [path]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=EPOCHS, default=list(EPOCHS))
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--units", nargs="+", choices=UNITS, default=list(UNITS))
    parser.add_argument("--within", type=float, default=0.5, help="points of error a net may be worse by")
    parser.add_argument("--lowest", type=float, default=0.005)
    parser.add_argument("--precision", type=float, default=1.25)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--examples", type=int, default=6400, help="the most examples to train on")
    parser.add_argument("--rate", type=float, help="factor of the net's usual learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="one run of one epoch")
    parser.add_argument("--output", type=Path, default=Path("outputs/smallest.json"))
    args = parser.parse_args()
    if args.tiny:
        args.nets, args.contenders, args.units, args.within = ["tabular"], ["magnitude"], ["weights"], 50
        args.epochs = args.runs = 1
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rows = record.read(args.output)
    # What is asked of all nets comes before what is asked of few.
    for units in args.units:
        for name in args.nets:
            for contender in args.contenders:
                same = {"net": name, "contender": contender, "units": units, "seed": args.seed}
                rows = [row for row in rows if not same.items() <= row.items()]
                rows.append(row_of(NETS[name], contender, units, args))
                record.write(args.output, rows)
                plot(rows, args.output)
    print(table(rows))


if __name__ == "__main__":
    main()
