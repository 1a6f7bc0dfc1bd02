"""Budgets of multiply-adds: filters chosen by LC beside filters removed by magnitude, at equal epochs.

    python -m benchmarks.training.neurons          # LeNet-5 on MNIST
    python -m benchmarks.training.neurons --net resnet --samples 20000 --batch-size 64 --reference-epochs 15
    python -m benchmarks.training.neurons --tiny   # two epochs of a few images

All other options go to examples.neuron_budget, once for each seed. Earlier runs with another net, other
budgets or other seeds stay in the output.
"""

import argparse
import statistics
from pathlib import Path

from benchmarks import record
from examples import neuron_budget

# What runs must share to be comparable.
CASE = (
    "net",
    "measured_on",
    "samples",
    "optimizer",
    "learning_rate",
    "batch_size",
    "reference_epochs",
    "epochs",
    "tuning_epochs",
)
TINY = "--samples 300 --reference-epochs 1 --epochs 2 --tuning-epochs 1 --keep 0.25"


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--tiny", action="store_true", help=TINY)
    add("--output", type=Path, default=Path("outputs/neurons.json"))
    own, others = parser.parse_known_args()
    rows = record.read(own.output)
    for seed in [0] if own.tiny else own.seeds:
        given = *(TINY.split() if own.tiny else ()), *others, "--seed", str(seed)
        args = neuron_budget.options(given)
        args.output = own.output.with_suffix("") / args.net
        args.measured_on = "validation" if args.validation else "test"
        case = {name: getattr(args, name) for name in (*CASE, "seed")}
        points = [case | point for point in neuron_budget.run(args)]
        new = [case | {"method": point["method"]} for point in points]
        rows = [row for row in rows if not any(known.items() <= row.items() for known in new)] + points
        record.write(own.output, rows)
    print(table(rows))


def table(rows):
    """Mean error over the seeds and the median time, a line for each net and method."""
    cases = {}
    for row in rows:
        cases.setdefault(tuple(row[name] for name in CASE), []).append(row)
    return "\n\n".join(_table(own) for own in cases.values())


def plot(rows, stem):
    """Draws the filters that LC kept with the first seed, a picture for each net and budget."""
    paths = []
    for row in rows:
        if "filters" in row and row["seed"] == min(row["seed"] for row in rows):
            paths.append(stem.with_name(f"{stem.name}_{row['net']}_{row['method'].replace(' ', '-')}.png"))
            neuron_budget.plot(row["filters"], paths[-1])
    return paths


def _table(rows):
    first = rows[0]
    seeds = sorted({row["seed"] for row in rows})
    images = "all" if first["samples"] is None else f"{first['samples']:,}"
    lines = [
        (
            "{net}: {measured_on} error, %, mean (largest) of seeds {seeds}; {images} training images, "
            "batches of {batch_size}, reference {reference_epochs} epochs, then {epochs}, of which LC gives "
            "{tuning_epochs} to the net it left"
        ).format(**first, seeds=", ".join(map(str, seeds)), images=images),
        f"{'':28}{'error':>16}{'multiply-adds':>16}{'parameters':>14}{'time of a batch':>18}{'least':>8}",
    ]
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        errors = [row["error"] for row in own]
        macs = statistics.mean(row["macs_fraction"] for row in own)
        parameters = statistics.mean(row["parameters"] for row in own)
        time = statistics.median(row["ms_per_batch_of_32"] / row["ms_of_reference"] for row in own)
        error = f"{statistics.mean(errors):.2f} ({max(errors):.2f})"
        least = own[0].get("keep_at_least")
        line = f"{method:28}{error:>16}{100 * macs:>14.1f} %{parameters:>14,.0f}{time:>16.2f} x"
        lines.append(line if least is None else f"{line}{100 * least:>6g} %")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
