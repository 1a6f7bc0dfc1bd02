"""Error at each budget, LC beside what else one could do with the same epochs.

    python benchmarks/error.py                                       # LeNet-300: an hour on two cores
    python benchmarks/error.py --net lenet5 --keep 0.01 0.005 --epochs 8
    python benchmarks/error.py --contenders LC gradual --epochs 5 10 20 40 60 120 --seeds 0
    python benchmarks/error.py --validation                          # to choose settings by
    python benchmarks/error.py --tiny                                # seconds

All contenders start from the same reference and see the same batches in the same order. What is done
already is read from the output and not run again.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from nets import NETS  # first: it makes the examples importable

import keras
import tensorflow as tf
import tradeoff

import lc_keras
from lc_keras import L0Constraint, LearningCompression, Task
from lc_keras.baselines import GradualPruning, MagnitudePruning, compress_directly

CONTENDERS = {
    "LC": lambda keep: LearningCompression(L0Constraint(keep)),
    "LC per layer": lambda keep: LearningCompression(Task(L0Constraint(keep), per_layer=True)),
    "LC without multipliers": lambda keep: LearningCompression(L0Constraint(keep), multipliers=False),
    "gradual": lambda keep: GradualPruning(L0Constraint(keep)),
    "magnitude": lambda keep: MagnitudePruning(L0Constraint(keep)),
    "magnitude, 5 rounds": lambda keep: MagnitudePruning(L0Constraint(keep), rounds=5),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="lenet300")
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS))
    parser.add_argument("--keep", type=float, nargs="+", default=[0.05, 0.02, 0.01])
    parser.add_argument("--epochs", type=int, nargs="+", default=[20])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--validation", action="store_true", help="hold out images and measure on them")
    parser.add_argument("--tiny", action="store_true", help="one epoch of digits")
    parser.add_argument("--output", type=Path, default=Path("outputs/error.json"))
    options = parser.parse_args()
    if options.tiny:
        options.net, options.keep, options.epochs, options.seeds = "digits", [0.1], [1], [0]
        options.contenders = ["LC", "gradual", "magnitude"]

    results = json.loads(options.output.read_text()) if options.output.exists() else {"rows": []}
    results |= {"tensorflow": tf.__version__, "keras": keras.__version__}
    rows, net = results["rows"], NETS[options.net]
    train, measured = net.parts(options.validation)
    measured_on = "validation" if options.validation else "test"
    asked = []
    for seed in options.seeds:
        reference = None if options.validation else net.anchor()
        reference = reference or net.reference(train, options.optimizer, seed, 1 if options.tiny else None)
        start = tradeoff.measure("reference", reference, measured).error
        for keep in options.keep:
            direct = tradeoff.copy_of(reference)
            compress_directly(direct, L0Constraint(keep))
            direct_error = tradeoff.measure("direct", direct, measured).error
            for epochs in options.epochs:
                for contender in options.contenders:
                    row = {"net": net.name, "optimizer": options.optimizer, "measured_on": measured_on}
                    row |= {"contender": contender, "keep": keep, "epochs": epochs, "seed": seed}
                    asked.append(row)
                    if any(row.items() <= done.items() for done in rows):
                        continue
                    model, prune = tradeoff.copy_of(reference), CONTENDERS[contender](keep)
                    keras.utils.set_random_seed(seed)
                    began = time.perf_counter()
                    label = f"{contender} {100 * keep:g} %"
                    net.fit(model, train, epochs, label, [prune], optimizer=options.optimizer, seed=seed)
                    seconds = time.perf_counter() - began
                    point = tradeoff.measure(contender, model, measured)
                    density = {r.path: r.density for r in lc_keras.report(model).rows}
                    rows.append(
                        {**row, "kept": point.kept, "error": point.error, "reference_error": start}
                        | {"direct_error": direct_error, "density_by_layer": density, "seconds": seconds}
                    )
                    options.output.parent.mkdir(parents=True, exist_ok=True)
                    options.output.write_text(json.dumps(results, indent=1) + "\n")
    print(table([done for done in rows if any(row.items() <= done.items() for row in asked)]))


def table(rows):
    """Mean error over the seeds: a line for each contender and number of epochs, a column for each budget."""
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    first = rows[0]
    seeds = sorted({row["seed"] for row in rows})
    reference = statistics.mean(row["reference_error"] for row in rows)
    lines = [
        f"{first['net']}, {first['optimizer']}: {first['measured_on']} error, %, mean (largest) of seeds "
        f"{', '.join(map(str, seeds))}; reference {reference:.2f}",
        f"{'':28}{'epochs':>6}" + "".join(f"{100 * keep:>13g} %" for keep in keeps),
    ]
    for epochs, contender in sorted({(row["epochs"], row["contender"]) for row in rows}):
        cells = []
        for keep in keeps:
            errors = [
                row["error"]
                for row in rows
                if (row["epochs"], row["contender"], row["keep"]) == (epochs, contender, keep)
            ]
            cell = f"{statistics.mean(errors):.2f} ({max(errors):.2f})" if errors else ""
            cells.append(f"{cell:>15}")
        lines.append(f"{contender:28}{epochs:>6}" + "".join(cells))
    direct = {row["keep"]: row["direct_error"] for row in rows}
    lines.append(f"{'direct compression':28}{0:>6}" + "".join(f"{direct[keep]:>15.2f}" for keep in keeps))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
