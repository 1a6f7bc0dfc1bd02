"""Error at each budget: LC beside other ways to use the same epochs.

    python -m benchmarks.training.error                                     # LeNet-300: an hour on two cores
    python -m benchmarks.training.error --net lenet5 --keep 0.01 0.005 --epochs 8
    python -m benchmarks.training.error --contenders LC gradual --epochs 5 10 20 40 60 120 \\
        --output outputs/epochs.json
    python -m benchmarks.training.error --contenders LC "LC ℓ0 penalty" "LC ℓ1 penalty" \\
        --output outputs/costs.json
    python -m benchmarks.training.error --tuned outputs/tune.json           # each as tune.py found it best
    python -m benchmarks.training.error --set rate=2 label_smoothing=0.05   # all with the same settings
    python -m benchmarks.training.error --tiny                              # seconds

All contenders start from the same reference and see the same batches in the same order. A penalty is not
told how much to keep: its strength is searched for in whole runs of the first seed, until the fraction kept
is within 5 % of the one asked for. The search looks at no error, and the table says what was kept. Runs that
are in the output already are not repeated. Plots are written beside the output.
"""

import argparse
import math
import statistics
from pathlib import Path

from benchmarks import plots, record
from benchmarks.nets import NETS
from benchmarks.training import strength
from benchmarks.training.contenders import CONTENDERS, Start, run
from examples import tradeoff
from lc_keras import L0Constraint
from lc_keras.baselines import compress_directly

DEFAULT = ["LC", "LC per layer", "LC without multipliers", "gradual", "magnitude", "magnitude, 5 rounds"]
# The most whole runs to find the strength that keeps what was asked for.
MOST_RUNS = 6
# Settings that change what the nets see, and what their rows are called.
CHANGED = {"shift": "moved images", "dropout": "dropout"}


def arguments(description, choices, **defaults):
    """Returns a parser with the options that all callers of `measure` share."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--net", choices=NETS, default="lenet300")
    add("--optimizer", choices=["sgd", "adam"], default="sgd")
    add("--contenders", nargs="+", choices=choices)
    add("--keep", type=float, nargs="+")
    add("--epochs", type=int, nargs="+", default=[20])
    add("--seeds", type=int, nargs="+")
    add("--validation", action="store_true", help="hold out images and measure on them")
    add("--tiny", action="store_true", help="one epoch of digits")
    add("--output", type=Path)
    parser.set_defaults(**defaults)
    return parser


def main():
    parser = arguments(
        __doc__,
        list(CONTENDERS),
        contenders=DEFAULT,
        keep=[0.05, 0.02, 0.01],
        seeds=[0, 1, 2],
        output=Path("outputs/error.json"),
    )
    parser.add_argument("--tuned", type=Path, help="output of tune.py to take settings from")
    parser.add_argument("--set", type=_setting, nargs="+", default=[], help="settings for all contenders")
    options = parser.parse_args()
    if options.tiny:
        options.net, options.keep, options.epochs, options.seeds = "digits", [0.1], [1], [0]
        options.contenders = ["LC", "gradual", "magnitude", "LC ℓ1 constraint"]
    tuned = record.read(options.tuned) if options.tuned else []

    def settings(keep):
        best = best_settings(tuned, options.net, options.optimizer, keep)
        return {
            name: [{**best.get(CONTENDERS[name].tuned_as or name, {}), **dict(options.set)}]
            for name in options.contenders
        }

    asked = measure(options, settings)
    print(table(asked))
    plots.errors(best_placed(asked), options.output.with_suffix(""))


def _setting(text):
    name, _, value = text.partition("=")
    return name, float(value)


def by_settings(rows):
    """Returns a dict from settings, as a tuple of pairs, to the errors with them."""
    errors = {}
    for row in rows:
        errors.setdefault(tuple(row["settings"].items()), []).append(row["error"])
    return errors


def best_settings(rows, net, optimizer, keep):
    """Returns a dict from each contender that `tune.py` tuned to its settings of least mean error. Of the
    budgets it was tuned for, the one nearest to `keep` counts. Settings tried with fewer seeds than others
    are left out: a lucky seed would win.
    """
    rows = _of(rows, {"net": net, "optimizer": optimizer})
    best = {}
    for contender in dict.fromkeys(row["contender"] for row in rows):
        own = _of(rows, {"contender": contender})
        nearest = min((row["keep"] for row in own), key=lambda tuned: abs(math.log(tuned / keep)))
        errors = by_settings(_of(own, {"keep": nearest}))
        seeds = max(map(len, errors.values()))
        tried = [settings for settings in errors if len(errors[settings]) == seeds]
        best[contender] = dict(min(tried, key=lambda settings: statistics.mean(errors[settings])))
    return best


def measure(options, settings):
    """Runs what is not done yet and writes it to the output.

    Args:
        options: The options of `arguments`.
        settings: Function of a budget that returns a dict from each contender to a list of settings.

    Returns:
        The rows that were asked for, including those done earlier.
    """
    rows, net = record.read(options.output), NETS[options.net]
    validation = options.validation
    train, measured = net.parts(validation)
    asked = []
    for seed in options.seeds:
        reference = None if validation else net.anchor()
        reference = reference or net.reference(train, options.optimizer, seed, 1 if options.tiny else None)
        start = Start(net, options.optimizer, validation, reference, train, measured, seed)
        known = {"reference_error": tradeoff.measure("reference", reference, measured).error}
        for keep in options.keep:
            direct = tradeoff.copy_of(reference)
            compress_directly(direct, L0Constraint(keep))
            known["direct_error"] = tradeoff.measure("direct", direct, measured).error
            chosen_from = settings(keep)
            cases = [(n, e, s) for e in options.epochs for n in options.contenders for s in chosen_from[n]]
            for name, epochs, chosen in cases:
                row = {"net": net.name, "optimizer": options.optimizer}
                row |= {"measured_on": "validation" if validation else "test", "contender": name}
                row |= {"settings": chosen, "epochs": epochs}
                here = row | {"keep": keep, "seed": seed}
                most = MOST_RUNS if seed == options.seeds[0] and not options.tiny else 1
                while value := _next(CONTENDERS[name], _of(rows, row), _of(rows, here), keep, most):
                    figures = run(start, name, keep, epochs, chosen, value.get("strength"))
                    rows.append({**here, **value, **figures, **known})
                    record.write(options.output, rows)
                asked += _of(rows, here)
    return asked


def _of(rows, case):
    return [row for row in rows if case.items() <= row.items()]


def _next(contender, similar, done, keep, most):
    """Returns the strength of the next run, as a part of its row; `None` if all is done.

    Args:
        contender: `Contender`.
        similar: Rows of the same case, with any budget and seed.
        done: Rows with this budget and seed.
        keep: Float, the budget.
        most: Int, the most runs there may be.
    """
    if contender.strength is None:
        return None if done else {"strength": None}
    if len(done) == most or any(strength.near(row["density"], keep) for row in done):
        return None
    points = [(row["strength"], row["density"]) for row in similar]
    value = strength.propose(points, keep, contender.strength, contender.slope)
    return None if value is None else {"strength": value}


def best_placed(rows):
    """Returns the run of each case that kept the fraction nearest to the one asked for.

    The name of a contender with settings of its own says that it is tuned, and what changes its images.
    """
    placed = {}
    for row in rows:
        case = tuple(str(row[name]) for name in ("net", "optimizer", "measured_on", "contender", "settings"))
        case += row["keep"], row["epochs"], row["seed"]
        other = placed.get(case, row)
        placed[case] = min(other, row, key=lambda r: abs(r["density"] / r["keep"] - 1))
    return [{**row, "contender": _called(row)} for row in placed.values()]


def _called(row):
    tuned = ["tuned"] if row["settings"] else []
    changed = [name for option, name in CHANGED.items() if option in row["settings"]]
    return ", ".join([row["contender"], *tuned, *changed])


def tables(rows):
    """Returns a table for each net, optimizer and measured part."""
    names = "net", "optimizer", "measured_on"
    cases = dict.fromkeys(tuple(row[name] for name in names) for row in rows)
    return "\n\n".join(
        table([row for row in rows if tuple(row[name] for name in names) == case]) for case in cases
    )


def table(rows):
    """Mean error over the seeds: a line for each contender and number of epochs, a column for each budget."""
    rows = best_placed(rows)
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    first = rows[0]
    references = {row["seed"]: row["reference_error"] for row in rows}
    seeds, reference = sorted(references), statistics.mean(references.values())
    lines = [
        (
            f"{first['net']}, {first['optimizer']}: {first['measured_on']} error, %, mean (largest) of seeds "
            f"{', '.join(map(str, seeds))}; reference {reference:.2f}"
        ),
        f"{'':34}{'epochs':>6}" + "".join(f"{100 * keep:>20g} %" for keep in keeps),
    ]
    for epochs, contender in sorted({(row["epochs"], row["contender"]) for row in rows}):
        cells = []
        for keep in keeps:
            of = {"epochs": epochs, "contender": contender, "keep": keep}
            cells.append(f"{_cell(_of(rows, of), keep, len(seeds)):>22}")
        lines.append(f"{contender:34}{epochs:>6}" + "".join(cells))
    direct = {(row["keep"], row["seed"]): row["direct_error"] for row in rows}
    means = [statistics.mean(error for (at, _), error in direct.items() if at == keep) for keep in keeps]
    lines.append(f"{'direct compression':34}{0:>6}" + "".join(f"{mean:>22.2f}" for mean in means))
    if any("@" in line for line in lines):
        lines.append("@: % kept, where it is not what the column says")
    if any("°" in line for line in lines):
        lines.append("°: of fewer of the seeds")
    tuned = {}
    for row in rows:
        if row["settings"]:
            case = row["contender"], tuple(row["settings"].items())
            tuned.setdefault(case, set()).add(row["keep"])
    for (name, settings), at in sorted(tuned.items()):
        where = "" if at == set(keeps) else f" at {percents(at)}"
        lines.append(f"{name}{where}: {shown(settings)}")
    return "\n".join(lines)


def sizes(rows):
    """Mean error over the seeds and size of the weights: one line for runs that differ only in their seed."""
    lines = [f"{'':40}{'epochs':>6}{'budget':>8}{'kept':>10}{'kB':>8}{'error, %':>10}  seeds"]
    cases = dict.fromkeys((r["net"], r["keep"], r["contender"], r["epochs"]) for r in rows)
    for net, keep, name, epochs in cases:
        own = _of(rows, {"net": net, "contender": name, "keep": keep, "epochs": epochs})
        kept, size, wrong = (statistics.mean(r[n] for r in own) for n in ("kept", "kilobytes", "error"))
        seeds = ", ".join(str(row["seed"]) for row in own)
        budget = f"{epochs:>6}{100 * keep:>6g} %"
        lines.append(f"{net:10}{name:30}{budget}{kept:>10,.0f}{size:>8.1f}{wrong:>10.2f}  {seeds}")
    return "\n".join(lines)


def percents(keeps):
    """Returns budgets as text."""
    return ", ".join(f"{100 * keep:g} %" for keep in sorted(keeps, reverse=True))


def shown(settings):
    """Returns pairs of an option and its value as text."""
    return ", ".join(f"{option} {value:g}" for option, value in settings)


def _cell(rows, keep, seeds):
    if not rows:
        return ""
    errors, kept = [row["error"] for row in rows], statistics.mean(row["density"] for row in rows)
    where = "" if abs(kept / keep - 1) < 0.01 else f" @{100 * kept:.3g}"
    fewer = "" if len(rows) == seeds else "°"
    return f"{statistics.mean(errors):.2f} ({max(errors):.2f}){fewer}{where}"


if __name__ == "__main__":
    main()
