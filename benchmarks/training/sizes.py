"""Error against bytes: pruning, few values, low rank and their combinations, by LC, in one picture.

    python -m benchmarks.training.sizes                                     # LeNet-300: half an hour
    python -m benchmarks.training.sizes --methods "low rank" --epochs 6
    python -m benchmarks.training.sizes --tiny                              # seconds

Each run starts from the same reference and sees the same batches in the same order. The net that it leaves is
shrunk, so that each kernel of low rank becomes two, and packed as by `export_saved_model`. The kB are then
those of all weights, without the graph around them. Runs that are in the output already are not repeated.
"""

import argparse
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from benchmarks import record
from benchmarks.nets import NETS
from examples import tradeoff
from lc_keras import Codebook, L0Constraint, LearningCompression, LowRank, Sum, Task, shrink
from lc_keras.model import default_kernels

# Each with its budgets: fractions kept or corrected, sizes of codebooks, ranks.
METHODS = {
    "pruned": (L0Constraint, (0.05, 0.02, 0.01)),
    "few values": (Codebook, (16, 4, 2)),
    "low rank": (LowRank, (20, 10, 5)),
    "pruned, 16 values": (lambda keep: L0Constraint(keep, values=Codebook(16)), (0.05, 0.02, 0.01)),
    "two values, corrected": (lambda keep: Sum(Codebook(2), L0Constraint(keep)), (0.05, 0.01)),
}


def row_of(net, reference, train, measured, method, budget, epochs, seed):
    """Compresses a copy of the reference, and returns its error and its size."""
    model, cost = tradeoff.copy_of(reference), METHODS[method][0](budget)
    if method == "low rank":
        # The output layer does not have such ranks.
        cost = Task(cost, weights=default_kernels(model)[:-1])
    compress = LearningCompression(cost)
    net.fit(model, train, epochs, f"{method} {budget:g}", [compress], optimizer="sgd", seed=seed)
    point = tradeoff.measure(method, shrink(model), measured)
    return {"net": net.name, "method": method, "budget": budget, "epochs": epochs, "seed": seed} | {
        "error": point.error,
        "kilobytes": point.kilobytes,
    }


def table(rows):
    """Returns a line for each method and budget."""
    lines = [f"{'':26}{'budget':>8}{'kB':>10}{'error, %':>10}"]
    for row in rows:
        budget = f"{row['budget']:g}" if row["budget"] else ""
        lines.append(f"{row['method']:26}{budget:>8}{row['kilobytes']:>10.1f}{row['error']:>10.2f}")
    return "\n".join(lines)


def plot(rows, stem):
    """Draws error against kilobytes, a curve for each method."""
    axes = Figure(figsize=(6.5, 4.2), layout="constrained").subplots()
    for method in dict.fromkeys(row["method"] for row in rows):
        curve = sorted((row["kilobytes"], row["error"]) for row in rows if row["method"] == method)
        if method == "reference":
            axes.axhline(curve[0][1], color="black", linestyle=":", label=f"reference, {curve[0][0]:,.0f} kB")
        else:
            axes.plot(*zip(*curve, strict=True), marker="o", label=method)
    axes.set(xscale="log", yscale="log", xlabel="weights as exported, kB", ylabel="test error, %")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_formatter("")
    axes.grid(which="both", alpha=0.3)
    axes.legend()
    path = stem.with_suffix(".png")
    axes.figure.savefig(path, dpi=100)
    return [path]


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--net", choices=NETS, default="lenet300")
    add("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    add("--epochs", type=int, default=20)
    add("--seed", type=int, default=0)
    add("--tiny", action="store_true", help="one epoch of digits, one budget of each method")
    add("--output", type=Path, default=Path("outputs/sizes.json"))
    options = parser.parse_args()
    if options.tiny:
        options.net, options.epochs = "digits", 1
    net, rows = NETS[options.net], record.read(options.output)
    train, measured = net.parts(False)
    reference = net.anchor() or net.reference(train, "sgd", options.seed, 1 if options.tiny else None)
    if not rows:
        point = tradeoff.measure("reference", reference, measured)
        kept = {"error": point.error, "kilobytes": point.kilobytes}
        rows.append({"net": net.name, "method": "reference", "budget": None} | kept)
    for method in options.methods:
        for budget in METHODS[method][1][-1 if options.tiny else None :]:
            case = {"net": net.name, "method": method, "budget": budget, "epochs": options.epochs}
            if not any((case | {"seed": options.seed}).items() <= row.items() for row in rows):
                rows.append(
                    row_of(net, reference, train, measured, method, budget, options.epochs, options.seed)
                )
                record.write(options.output, rows)
    print(table(rows))
    plot(rows, options.output)


if __name__ == "__main__":
    main()
