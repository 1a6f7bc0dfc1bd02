"""The smallest budget at most half a point worse: LC beside gradual and magnitude pruning.

    python -m benchmarks.training.smallest    # scikit-learn's digits
    python -m benchmarks.training.smallest --net lenet300 --seeds 0 1 2

`lc_keras.smallest` seeks each contender's budget on validation images, in weights, and in the weights that
stay once neurons are taken out, each run from the reference and of the same number of epochs. It goes on
where it was cut off.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
from matplotlib.figure import Figure

import lc_keras
from benchmarks import record
from benchmarks.nets import NETS
from examples import tradeoff
from lc_keras.baselines import GradualPruning, MagnitudePruning

CONTENDERS = {"LC": lc_keras.LearningCompression, "gradual": GradualPruning, "magnitude": MagnitudePruning}
UNITS = {
    "weights": lc_keras.L0Constraint,
    "neurons": lambda keep: lc_keras.L0Constraint(keep, lc_keras.Neurons(), measure="parameters"),
}


def row_of(contender, units, reference, net, args, seed):
    """Seeks one budget, and returns it with its curve and the error on the test images."""
    train, validation = net.parts(True)
    _, test = net.parts(False)

    def fit(model, callbacks):
        keras.utils.set_random_seed(seed)
        label = f"{contender}, {units}"
        net.fit(
            model, train, args.epochs or net.epochs, label, callbacks, optimizer=args.optimizer, seed=seed
        )

    def error(model):
        return tradeoff.measure(contender, model, validation).error

    found = lc_keras.smallest(
        reference,
        fit,
        error,
        args.within,
        compress=lambda keep: CONTENDERS[contender](UNITS[units](keep)),
        lowest=args.lowest,
        mode="min",
        warm_start=False,
        max_runs=args.runs,
        directory=args.output.parent / "smallest" / f"{net.name}-{contender}-{units}-{seed}",
        verbose=0,
    )
    print(f"\n{net.name}, seed {seed}, {contender}, {units}\n{found}", flush=True)
    return {
        "net": net.name,
        "contender": contender,
        "units": units,
        "seed": seed,
        "within": args.within,
        "epochs": args.epochs or net.epochs,
        "budget": found.budget,
        "reference_error": tradeoff.measure("reference", reference, test).error,
        "error": tradeoff.measure(contender, found.model, test).error,
        "note": found.note,
        "curve": [[p.budget, p.score] for p in sorted(found.points, key=lambda p: p.budget)],
    }


def plot(rows, path):
    """Draws validation error against the budget, a panel for each kind of unit, a ring at the smallest."""
    kinds = list(dict.fromkeys(row["units"] for row in rows))
    figure = Figure(figsize=(1 + 4.2 * len(kinds), 4), layout="constrained")
    for axes, units in zip(figure.subplots(1, len(kinds), squeeze=False)[0], kinds, strict=True):
        for row in rows:
            if row["units"] == units and row["curve"]:
                colour, first = f"C{list(CONTENDERS).index(row['contender'])}", row["seed"] == rows[0]["seed"]
                label = f"{row['contender']}: {100 * row['budget']:.3g} %" if first else None
                axes.plot(
                    *zip(*([100 * b, e] for b, e in row["curve"]), strict=True),
                    ".-",
                    color=colour,
                    label=label,
                )
                at = min(row["curve"], key=lambda point: abs(point[0] - row["budget"]))
                axes.plot(100 * at[0], at[1], "o", color=colour, markersize=10, fillstyle="none")
        axes.set(xscale="log", yscale="log", title=units, ylabel="validation error, %")
        axes.set_xlabel("kept, % of the weights")
        axes.legend()
    figure.savefig(path, dpi=100)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", choices=NETS, default="digits")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--units", nargs="+", choices=UNITS, default=list(UNITS))
    parser.add_argument("--within", type=float, default=0.5, help="points of error")
    parser.add_argument("--lowest", type=float, default=0.002)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tiny", action="store_true", help="two runs of an epoch")
    parser.add_argument("--output", type=Path, default=Path("outputs/smallest.json"))
    args = parser.parse_args()
    net, epochs = NETS[args.net], None
    if args.tiny:
        net, epochs = NETS["digits"], 1
        args.epochs, args.runs, args.contenders, args.units, args.within = (
            1,
            1,
            ["magnitude"],
            ["weights"],
            50,
        )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    rows = record.read(args.output)
    for seed in args.seeds:
        stem = args.output.parent / f"smallest-{net.name}-{args.optimizer}-{seed}.keras"
        reference = keras.saving.load_model(stem, compile=False) if stem.exists() else net.anchor()
        if reference is None:
            reference = net.reference(net.parts(True)[0], args.optimizer, seed, epochs)
            reference.save(stem)
        for contender in args.contenders:
            for units in args.units:
                new = row_of(contender, units, reference, net, args, seed)
                same = ("net", "contender", "units", "seed", "within", "epochs")
                rows = [row for row in rows if any(row[name] != new[name] for name in same)] + [new]
                record.write(args.output, rows)
        plot([row for row in rows if row["net"] == net.name], args.output.with_suffix(f".{net.name}.png"))


if __name__ == "__main__":
    main()
