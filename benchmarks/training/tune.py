"""Tunes each contender with the same number of tries, on validation images.

    python -m benchmarks.training.tune                              # all contenders: hours, most of PDP's
    python -m benchmarks.training.tune --contenders LC gradual magnitude --keep 0.02 0.01
    python -m benchmarks.training.tune --tiny                       # seconds
    python -m benchmarks.training.error --tuned outputs/tune.json   # then, on test images

A try is a learning rate and a setting of one option of the contender: three rates times two settings. Then
weight decay, label smoothing, and both are tried with the best of these at each budget. The reference is
trained without the validation images.
"""

import statistics
from pathlib import Path

from benchmarks.training import error
from benchmarks.training.contenders import CONTENDERS, TUNABLE


def main():
    options = error.arguments(
        __doc__,
        TUNABLE,
        contenders=TUNABLE,
        keep=[0.05, 0.02, 0.01],
        seeds=[0, 1],
        output=Path("outputs/tune.json"),
    ).parse_args()
    options.validation = True
    if options.tiny:
        options.net, options.keep, options.epochs, options.seeds = "digits", [0.1], [1], [0]
        options.contenders = ["magnitude"]
    first = {name: CONTENDERS[name].settings() for name in options.contenders}
    if options.tiny:
        first["magnitude"] = first["magnitude"][::3]
    rows = tried = error.measure(options, lambda keep: first)

    def regularized(keep):
        best = error.best_settings(tried, options.net, options.optimizer, keep)
        return {name: CONTENDERS[name].regularized(best[name], options.optimizer) for name in first}

    if not options.tiny:
        rows = tried + error.measure(options, regularized)
    print(table(rows))


def table(rows):
    """Returns a line for each contender and try: mean validation error at each budget, a star at the best."""
    keeps = sorted({row["keep"] for row in rows}, reverse=True)
    epochs = ", ".join(map(str, sorted({row["epochs"] for row in rows})))
    lines = [
        f"mean validation error, %, in {epochs} epochs",
        f"{'kept':79}" + "".join(f"{100 * keep:>8g} %" for keep in keeps),
    ]
    cases = {}
    for row in rows:
        cases.setdefault((row["contender"], row["net"], row["optimizer"]), []).append(row)
    for (contender, net, optimizer), own in cases.items():
        tried = [error.by_settings(row for row in own if row["keep"] == keep) for keep in keeps]
        means = [{settings: statistics.mean(errors) for settings, errors in of.items()} for of in tried]
        lines.append(f"{contender}: {net}, {optimizer}")
        for settings in dict.fromkeys(tuple(row["settings"].items()) for row in own):
            cells = "".join(_cell(of, settings) for of in means)
            lines.append(f"    {error.shown(settings):75}{cells}".rstrip())
    lines.append("rate: the learning rate, as a factor of the reference's")
    return "\n".join(lines)


def _cell(means, settings):
    if settings not in means:
        return " " * 10
    star = "*" if means[settings] == min(means.values()) else " "
    return f"{means[settings]:8.2f} {star}"


if __name__ == "__main__":
    main()
