"""Tunes each contender with the same number of tries, on validation images.

    python benchmarks/tune.py                                   # LeNet-300, five contenders: an hour
    python benchmarks/tune.py --contenders LC gradual magnitude --keep 0.02 0.01
    python benchmarks/tune.py --tiny                            # seconds
    python benchmarks/error.py --tuned outputs/tune.json        # then, on test images

A try is a learning rate and one option of the contender, three times two of them; then, with the best of
these, weight decay, label smoothing, and both. The reference is trained without the validation images.
"""

import statistics
from pathlib import Path

from nets import NETS  # noqa: F401, first: it makes the examples importable

import error
from contenders import CONTENDERS, TUNABLE


def main():
    options = error.arguments(
        __doc__, TUNABLE, contenders=TUNABLE, keep=[0.02], seeds=[0], output=Path("outputs/tune.json")
    ).parse_args()
    options.validation = True
    if options.tiny:
        options.net, options.keep, options.epochs, options.seeds = "digits", [0.1], [1], [0]
        options.contenders = ["magnitude"]
    settings = {name: CONTENDERS[name].settings() for name in options.contenders}
    if options.tiny:
        settings["magnitude"] = settings["magnitude"][::3]
    rows = error.measure(options, settings)
    if not options.tiny:
        best = error.best_settings(rows, options.net, options.optimizer)
        more = {name: CONTENDERS[name].regularized(best[name], options.optimizer) for name in settings}
        rows += error.measure(options, more)
    print(table(rows))


def table(rows):
    """A line for each contender and try, mean validation error over budgets and seeds; a star at the best."""
    tried = {}
    for (*case, settings), errors in error.by_settings(rows).items():
        tried.setdefault(tuple(case), []).append((statistics.mean(errors), settings))
    lines = []
    for (net, optimizer, name), tries in tried.items():
        lines.append(f"{name}: {net}, {optimizer}")
        for mean, settings in tries:
            star = " *" if (mean, settings) == min(tries) else ""
            lines.append(f"    {error.shown(settings):75}{mean:8.2f}{star}")
    budgets = ", ".join(f"{100 * keep:g} %" for keep in sorted({row["keep"] for row in rows}))
    epochs = ", ".join(map(str, sorted({row["epochs"] for row in rows})))
    lines.append(f"mean validation error, %, at {budgets} kept in {epochs} epochs")
    lines.append("rate: the learning rate, as a factor of the reference's")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
