"""Hold what a search for a budget found, and show it."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import keras

from lc_keras.showing import Drawn, Shown, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes


@dataclass(frozen=True)
class Point:
    """The runs of a budget.

    Attributes:
        budget: Float, the budget that the cost was made with.
        scores: Tuple of floats, one for each run.
        density: Float, the fraction of the kernels' weights that the last run kept.
        seconds: Float, how long the runs took; for one that was cut off, only the time after that.
        reached: Bool, whether the budget counts as reaching the score.
        start: Float, the budget whose weights the runs began with, or `None` for the reference's weights.
    """

    budget: float
    scores: tuple[float, ...]
    density: float
    seconds: float
    reached: bool
    start: float | None = None

    @property
    def score(self) -> float:
        """Return the mean of the scores."""
        return sum(self.scores) / len(self.scores)


@dataclass(frozen=True)
class Smallest(Drawn):
    """The smallest budget that reaches a score, and the whole curve; see `smallest`.

    `str()` returns a table; `plot()` draws the score against the budget, on a logarithmic axis.

    Attributes:
        model: `keras.Model`, the model under that budget.
        budget: Float, the budget; the largest of the search if no smaller one reaches the score.
        score: Float, the model's score.
        reference: Float, the score of the model that it was pruned from.
        limit: Float, the worst score that is accepted.
        points: Tuple of `Point`, in the order of the runs.
        note: String, what to know about the result; empty if there is nothing.
    """

    model: keras.Model
    budget: float
    score: float
    reference: float
    limit: float
    points: tuple[Point, ...]
    note: str

    def _table(self) -> Table:
        said = f"Smallest budget: {self.budget:.4g}, score {self.score:.4g} (reference {self.reference:.4g})"
        return table_of(self.points, self.limit, said, *filter(None, [self.note]))

    def to_json(self) -> str:
        """Return everything but the model as JSON: an object with the attributes by their names."""
        names = ("budget", "score", "reference", "limit", "note")
        content = {name: getattr(self, name) for name in names}
        content["points"] = [{**asdict(point), "score": point.score} for point in self.points]
        return json.dumps(content, indent=2)

    @property
    def _height(self) -> float:
        return 4

    def _draw(self, ax: "Axes") -> None:
        points = sorted(self.points, key=lambda point: point.budget)
        (line,) = ax.plot([p.budget for p in points], [p.score for p in points], marker="o", fillstyle="none")
        reached = [p for p in points if p.reached]
        ax.plot([p.budget for p in reached], [p.score for p in reached], "o", color=line.get_color())
        ax.axhline(self.reference, color="black", linestyle=":", label="reference")
        ax.axhline(self.limit, color="black", linestyle="--", label="asked for")
        ax.set_xscale("log")
        ax.set_xlabel(f"budget (smallest: {self.budget:.3g})")
        ax.set_ylabel("score")
        ax.legend()


@dataclass(frozen=True)
class SoFar(Shown):
    """Points of a search that did not end, and the worst score that is accepted."""

    points: tuple[Point, ...]
    limit: float

    def _table(self) -> Table:
        return table_of(self.points, self.limit)


def table_of(points: Sequence[Point], limit: float, *notes: str) -> Table:
    """Return points as a table, from the largest budget to the smallest."""
    rows = []
    for p in sorted(points, key=lambda point: -point.budget):
        density, reached = f"{100 * p.density:.2f} %", "yes" if p.reached else "no"
        runs, seconds = str(len(p.scores)), f"{p.seconds:.1f}"
        rows.append((f"{p.budget:.4g}", density, f"{p.score:.4g}", reached, runs, seconds))
    head = ("budget", "weights not zero", "score", "reached", "runs", "seconds")
    return Table(head, rows, notes=(f"Asked for: {limit:.4g}", *notes))
