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
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from nets import NETS, Net  # first: it makes the examples importable

import keras
import peer
import record
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

# In environments of their own, made where they are asked for.
PEERS = {"TensorFlow's toolkit": "tfmot"}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--net", choices=NETS, default="lenet300")
    parser.add_argument("--optimizer", choices=["sgd", "adam"], default="sgd")
    parser.add_argument("--contenders", nargs="+", choices=[*CONTENDERS, *PEERS], default=list(CONTENDERS))
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

    rows, net = record.read(options.output), NETS[options.net]
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
                    began = time.perf_counter()
                    prune = _by_peer if contender in PEERS else _by_callback
                    result = prune(Case(net, reference, train, measured, **row))
                    rows.append(
                        {**row, **result, "reference_error": start, "direct_error": direct_error}
                        | {"seconds": time.perf_counter() - began}
                    )
                    record.write(options.output, rows)
    print(table([done for done in rows if any(row.items() <= done.items() for row in asked)]))


@dataclass(frozen=True)
class Case:
    """One run: what is pruned, on what data, and how."""

    model: Net
    reference: keras.Model
    train: tuple
    measured: tuple
    net: str
    optimizer: str
    measured_on: str
    contender: str
    keep: float
    epochs: int
    seed: int


def _by_callback(case):
    model, prune = tradeoff.copy_of(case.reference), CONTENDERS[case.contender](case.keep)
    keras.utils.set_random_seed(case.seed)
    label = f"{case.contender} {100 * case.keep:g} %"
    case.model.fit(
        model, case.train, case.epochs, label, [prune], optimizer=case.optimizer, seed=case.seed
    )
    point = tradeoff.measure(case.contender, model, case.measured)
    density = {row.path: row.density for row in lc_keras.report(model).rows}
    return {"kept": point.kept, "error": point.error, "density_by_layer": density}


def _by_peer(case):
    options = {name: getattr(case, name) for name in ("net", "optimizer", "keep", "epochs", "seed")}
    validation = case.measured_on == "validation"
    return peer.run(PEERS[case.contender], case.reference, validation=validation, **options)


def tables(rows):
    """The table of each net, optimizer and measured part."""
    cases = dict.fromkeys((row["net"], row["optimizer"], row["measured_on"]) for row in rows)
    return "\n\n".join(
        table([row for row in rows if (row["net"], row["optimizer"], row["measured_on"]) == case])
        for case in cases
    )


def table(rows):
    """Mean error over the seeds: a line for each contender and number of epochs, a column for each budget."""
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    first = rows[0]
    seeds = sorted({row["seed"] for row in rows})
    reference = statistics.mean(row["reference_error"] for row in rows)
    lines = [
        (
            f"{first['net']}, {first['optimizer']}: {first['measured_on']} error, %, mean (largest) of seeds "
            f"{', '.join(map(str, seeds))}; reference {reference:.2f}"
        ),
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
