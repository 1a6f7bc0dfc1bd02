"""Error against the length of LC's L steps, at equal epochs.

python -m benchmarks.training.step_length                # LeNet-300: half an hour on two cores
python -m benchmarks.training.step_length --validation   # to choose a length by
python -m benchmarks.training.step_length --tiny         # seconds
"""

import statistics
from pathlib import Path

from benchmarks import plots
from benchmarks.training import error

# On MNIST, from 15 to 700 batches of 256.
LENGTHS = [0.0625, 0.125, 0.25, 0.5, 1.0, 3.0]


def main():
    parser = error.arguments(
        __doc__,
        ["LC"],
        contenders=["LC"],
        keep=[0.05, 0.02, 0.01],
        seeds=[0, 1, 2],
        output=Path("outputs/step_length.json"),
    )
    parser.add_argument("--lengths", type=float, nargs="+", default=LENGTHS, help="in epochs")
    options = parser.parse_args()
    if options.tiny:
        options.net, options.keep, options.epochs, options.seeds = "digits", [0.1], [1], [0]
        options.lengths = [0.25, 1.0]
    settings = {"LC": [{"epochs_per_step": length} for length in options.lengths]}
    asked = error.measure(options, lambda keep: settings)
    print(table(asked))
    plot(asked, options.output.with_suffix(".png"))


def table(rows):
    """Mean error over the seeds: a line for each length, a column for each budget."""
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    first, seeds = rows[0], sorted({row["seed"] for row in rows})
    reference = statistics.mean(row["reference_error"] for row in rows)
    lines = [
        (
            f"{first['net']}, {first['optimizer']}: {first['measured_on']} error, %, mean (largest) of seeds "
            f"{', '.join(map(str, seeds))}; reference {reference:.2f}"
        ),
        f"{'length of an L step':24}{'epochs':>6}" + "".join(f"{100 * keep:>13g} %" for keep in keeps),
    ]
    for epochs, length in sorted({(row["epochs"], _length(row)) for row in rows}):
        cells = []
        for keep in keeps:
            case = epochs, length, keep
            errors = [row["error"] for row in rows if (row["epochs"], _length(row), row["keep"]) == case]
            cell = f"{statistics.mean(errors):.2f} ({max(errors):.2f})" if errors else ""
            cells.append(f"{cell:>15}")
        lines.append(f"{f'{length:g} epochs':24}{epochs:>6}" + "".join(cells))
    return "\n".join(lines)


def plot(rows, path):
    """Draws the table, a panel for each budget and number of epochs."""
    plots.step_length([{**row, "epochs_per_step": _length(row)} for row in rows], path)


def _length(row):
    return row["settings"]["epochs_per_step"]


if __name__ == "__main__":
    main()
