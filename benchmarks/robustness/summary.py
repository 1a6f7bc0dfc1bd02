"""What the rows of the matrix amount to: each cell, counts of all of them, a table and a picture."""

import statistics
from dataclasses import dataclass

LC, DIRECT = "LC", "direct"
OTHERS = (DIRECT, "magnitude", "gradual")
CONTENDERS = (LC, *OTHERS)
# Points, and a part of the other's error: within either, LC counts as equal.
_POINTS, _PART = 0.3, 0.03
_GAP = 0.05


@dataclass(frozen=True)
class Result:
    """A cell, with the means over its seeds.

    Attributes:
        cell: String, its name without the seed.
        net: String.
        setting: String.
        is_fit: Bool, whether settings of LC are chosen on the net.
        errors: Dict of contenders' errors, in %.
        best: String, the best of the others.
        by_chance: Float, two standard errors of LC's difference from `best` over three or more seeds, else 0.
        gap: Float, the largest of LC's gaps.
        warned: Bool, whether LC said something with each seed whose gap is large.
    """

    cell: str
    net: str
    setting: str
    is_fit: bool
    errors: dict
    best: str
    by_chance: float
    gap: float
    warned: bool

    @property
    def behind(self):
        """LC's error less that of the best other, in points."""
        return self.errors[LC] - self.errors[self.best]

    @property
    def is_within(self):
        """Whether LC is not behind the best other by more than 0.3 points, 3 % of its error, or chance."""
        return self.behind <= max(_POINTS, _PART * self.errors[self.best], self.by_chance)

    @property
    def is_below(self):
        return self.behind < 0

    @property
    def is_worse_than_direct(self):
        return self.errors[LC] > self.errors[DIRECT]

    @property
    def is_silent(self):
        """Whether a large gap came without a warning."""
        return self.gap > _GAP and not self.warned


def results(rows, label, measured_on):
    """Returns the results of the cells that all contenders have run.

    Args:
        rows: List of dicts, as `running.measure` returns them.
        label: String, the state of LC.
        measured_on: String, `"test"` or `"validation"`.

    Returns:
        List of `Result`, in the order of the rows.
    """
    cells = {}
    for row in rows:
        if row["measured_on"] == measured_on and row["label"] in (None, label):
            cells.setdefault(row["cell"], {}).setdefault(row["seed"], {})[row["contender"]] = row
    whole = ([seed for seed in seeds.values() if seed.keys() >= set(CONTENDERS)] for seeds in cells.values())
    return [_result(seeds) for seeds in whole if seeds]


def latest(rows):
    """Returns the results of the state of LC that was measured last, on test examples."""
    label = next(row["label"] for row in reversed(rows) if row["contender"] == LC)
    return results(rows, label, "test")


def table(rows):
    """Returns the cells of the `latest` results, and their counts, as Markdown."""
    found = latest(rows)
    return f"{cells_table(found)}\n\n{counted(found)}"


def _result(seeds):
    """Returns the result of dicts of rows by contender, one for each seed."""
    errors = {name: statistics.mean(seed[name]["error"] for seed in seeds) for name in CONTENDERS}
    best = min(OTHERS, key=errors.get)
    differences = [seed[LC]["error"] - seed[best]["error"] for seed in seeds]
    several = len(differences) >= 3
    own = [seed[LC] for seed in seeds]
    gaps = [row["gap"] if row["gap"] is not None else 0.0 for row in own]
    return Result(
        cell=own[0]["cell"],
        net=own[0]["net"],
        setting=own[0]["setting"],
        is_fit=own[0]["is_fit"],
        errors=errors,
        best=best,
        by_chance=2 * statistics.stdev(differences) / len(differences) ** 0.5 if several else 0.0,
        gap=max(gaps),
        warned=all(row["warnings"] for row, gap in zip(own, gaps, strict=True) if gap > _GAP),
    )


def counts(found):
    """Returns a dict of ints: in how many `Result`s LC is as it should be, and as it should not be."""
    return {
        "cells": len(found),
        "within": sum(result.is_within for result in found),
        "below": sum(result.is_below for result in found),
        "worse than direct": sum(result.is_worse_than_direct for result in found),
        "gap in silence": sum(result.is_silent for result in found),
    }


def counted(found):
    """Returns the counts for nets on which LC's settings are chosen, those that show them, and each net.

    Args:
        found: List of `Result`.

    Returns:
        String, a Markdown table.
    """
    groups = {
        "all": found,
        "fit": [result for result in found if result.is_fit],
        "shown": [result for result in found if not result.is_fit],
    }
    for result in found:
        groups.setdefault(result.net, []).append(result)
    rows = [[name, *map(str, counts(group).values())] for name, group in groups.items()]
    return markdown(["nets", *counts([])], rows)


def cells_table(found):
    """Returns a line for each cell, those where LC is furthest behind first, as a Markdown table."""
    header = ["net", "setting", *CONTENDERS, "LC less best", "gap", "warned", ""]
    rows = []
    for result in sorted(found, key=lambda result: -result.behind):
        marks = {
            "behind": not result.is_within,
            "worse than direct": result.is_worse_than_direct,
            "silent": result.is_silent,
        }
        rows.append(
            [result.net, result.setting]
            + [f"{result.errors[name]:.2f}" for name in CONTENDERS]
            + [
                f"{result.behind:+.2f}",
                f"{result.gap:.3f}",
                "yes" if result.warned and result.gap > _GAP else "",
            ]
            + [", ".join(name for name, is_so in marks.items() if is_so)]
        )
    return markdown(header, rows)


def settings_table(found):
    """Returns LC's error and the best other's, settings by nets, as a Markdown table; **bold**: behind."""
    nets = list(dict.fromkeys(result.net for result in found))
    placed = {(result.setting, result.net): result for result in found}
    rows = []
    for setting in dict.fromkeys(result.setting for result in found):
        cells = [placed.get((setting, net)) for net in nets]
        rows.append([setting, *(_figures(cell) if cell else "" for cell in cells)])
    return markdown(["", *nets], rows)


def _figures(result):
    own = f"{result.errors[LC]:.2f}"
    return f"{own if result.is_within else f'**{own}**'} ({result.errors[result.best]:.2f})"


def markdown(header, rows):
    """Returns a Markdown table of strings, its columns aligned."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    padded = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return "\n".join([padded[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *padded[1:]])


def picture(found, path):
    """Draws the cells, settings by nets, coloured by LC's error less that of the best other.

    Args:
        found: List of `Result`.
        path: `pathlib.Path` of a png file.
    """
    import numpy as np
    from matplotlib.colors import SymLogNorm
    from matplotlib.figure import Figure

    nets = list(dict.fromkeys(result.net for result in found))
    settings = list(dict.fromkeys(result.setting for result in found))
    values = np.full((len(settings), len(nets)), np.nan)
    figure = Figure(figsize=(3.5 + 0.75 * len(nets), 1.5 + 0.2 * len(settings)), layout="constrained")
    axes = figure.subplots()
    for result in found:
        place = settings.index(result.setting), nets.index(result.net)
        values[place] = result.behind
        text = f"{result.behind:+.1f}" + "!" * result.is_silent
        axes.text(place[1], place[0], text, ha="center", va="center", fontsize=6)
    # Blue: LC is ahead. Linear up to what counts as equal.
    norm = SymLogNorm(_POINTS, vmin=-30, vmax=30)
    drawn = axes.imshow(values, cmap="RdBu_r", norm=norm, aspect="auto")
    axes.set_xticks(range(len(nets)), nets, rotation=45, ha="right", fontsize=8)
    axes.set_yticks(range(len(settings)), settings, fontsize=6)
    figure.colorbar(drawn, ticks=[-30, -3, -0.3, 0, 0.3, 3, 30], format="{x:g}")
    axes.set_title(
        "error of LC less that of the best other, points; !: a large gap without a warning", size=9
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
