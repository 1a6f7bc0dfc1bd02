"""Compress a model layer by layer, and see what that does to a score."""

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.tasks import Selector, SharedCost, Task, bind_tasks
from lc_keras.arguments import is_number, keras_model, positive
from lc_keras.costs import L0Constraint, Weights
from lc_keras.costs.groups import Groups
from lc_keras.costs.thresholds import read
from lc_keras.search.scores import Score, restored, score_of
from lc_keras.showing import Drawn, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerSensitivity:
    """The scores of a model with one layer compressed.

    Attributes:
        name: String, the path of the layer, or the paths of several layers that make their neurons together.
        groups: Int, how many weights, neurons or blocks there are to keep.
        scores: Tuple of floats, one for each fraction kept.
    """

    name: str
    groups: int
    scores: tuple[float, ...]


@dataclass(frozen=True)
class Sensitivity(Drawn):
    """The score of a model against the fraction kept of each layer; see `sensitivity`.

    `str()` returns a table; `plot()` draws a map of layers and fractions kept, coloured by the score.

    Attributes:
        keep: Tuple of floats, the fractions kept.
        reference: Float, the score of the model as it is.
        rows: Tuple of `LayerSensitivity`.
    """

    keep: tuple[float, ...]
    reference: float
    rows: tuple[LayerSensitivity, ...]

    def _table(self) -> Table:
        head = ("layer, kept", "groups", *(f"{100 * keep:.3g} %" for keep in self.keep))
        rows = [(row.name, f"{row.groups:,}", *(f"{score:.4g}" for score in row.scores)) for row in self.rows]
        return Table(head, rows, notes=[f"As it is: {self.reference:.4g}"])

    def to_json(self) -> str:
        """Return a JSON object with `keep`, `reference` and `rows`; scores that are not finite are `null`."""
        return json.dumps(numbers_or_none(asdict(self)), indent=2)

    @property
    def _height(self) -> float:
        return 1.5 + 0.35 * len(self.rows)

    def _draw(self, ax: "Axes") -> None:
        scores = np.array([row.scores for row in self.rows])
        image = ax.imshow(scores, aspect="auto")
        shades = np.asarray(image.cmap(np.asarray(image.norm(scores))))
        for (y, x), score in np.ndenumerate(scores):
            colour = "white" if shades[y, x, :3].mean() < 0.5 else "black"
            ax.text(x, y, f"{score:.3g}", ha="center", va="center", fontsize="small", color=colour)
        ax.set_xticks(range(len(self.keep)), [f"{100 * keep:.3g} %" for keep in self.keep])
        ax.set_yticks(range(len(self.rows)), [row.name for row in self.rows])
        ax.set_xlabel(f"kept of the layer (score as it is: {self.reference:.4g})")
        cast("Figure", ax.figure).colorbar(image, ax=ax, label="score")


def sensitivity(
    model: keras.Model,
    score: Score,
    keep: float | Iterable[float] = (0.5, 0.2, 0.1, 0.05, 0.02, 0.01),
    groups: Groups | None = None,
    weights: Selector = None,
    verbose: int = 1,
) -> Sensitivity:
    """Return the score of a model against the fraction kept of each layer, with the others left whole.

    Each layer is compressed by itself and as it is, without training: its largest groups are kept. A layer
    whose score falls early needs more than an even share of a budget, or is better left out of it. Afterwards
    the model and its optimizer are as they were before, even if `score` fails, trains, or changes weights, as
    `estimate_statistics` does. `score` must not compile the model.

    Args:
        model: Built `keras.Model`.
        score: Function of the model that returns a float.
        keep: Float in (0, 1] or a sequence of these, the fractions of a layer's groups to keep, rounded down,
            but at least one group. Defaults to six from 0.5 to 0.01.
        groups: `Weights()` (default), `Neurons()` or `Blocks(shape)`. Layers that make neurons together are
            compressed together.
        weights: Which weights, as in `Task`. `None` (default): all kernels.
        verbose: Int, default 1: show a progress bar. 0: show nothing.

    Returns:
        `Sensitivity`.

    Raises:
        TypeError: If an argument is of the wrong type, or `score` does not return a number.
        ValueError: If `keep` is empty or out of range, no weights match, `groups` does not fit them, or the
            model as it is has a score that is not finite.

    Example:

    ```python
    found = lc_keras.sensitivity(model, lambda m: m.evaluate(x, y, verbose=0, return_dict=True)["accuracy"])
    print(found)
    found.plot("sensitivity.png")
    ```
    """
    keras_model(model)
    if not callable(score):
        raise TypeError(f"Expected `score` to be a function of a model. Received: score={score!r}")
    given: tuple[Any, ...] = (keep,) if is_number(keep) or not isinstance(keep, Iterable) else tuple(keep)
    if not all(map(is_number, given)):
        raise TypeError(f"Expected `keep` to be a number or a sequence of these. Received: keep={keep!r}")
    fractions = tuple(positive("keep", fraction) for fraction in given)
    if not fractions or not all(0 < fraction <= 1 for fraction in fractions):
        raise ValueError(f"Expected `keep` to be numbers above 0 and up to 1. Received: keep={keep!r}")
    parts = bind_tasks([Task(L0Constraint(1.0, groups or Weights()), weights, per_layer=True)], model)
    bar = keras.utils.Progbar(len(parts) * len(fractions), verbose=verbose, unit_name="score")

    rows: list[LayerSensitivity] = []
    with restored(model) as restore:
        reference = score_of(model, score)
        for part in parts:
            restore()
            scores = []
            for fraction in fractions:
                _compress(part, fraction)
                scores.append(score_of(model, score, finite=False))
                restore()
                bar.update(len(rows) * len(fractions) + len(scores), finalize=False)
            rows.append(LayerSensitivity(_name(part), _cost(part).total(part.layouts), tuple(scores)))
    if verbose:
        bar.update(bar.target, finalize=True)
    return Sensitivity(fractions, reference, tuple(rows))


def numbers_or_none(content: object) -> object:
    """Return what JSON can hold, with `None` in place of numbers that are not finite."""
    if isinstance(content, dict):
        return {name: numbers_or_none(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [numbers_or_none(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content


def _cost(part: SharedCost) -> L0Constraint:
    return cast(L0Constraint, part.compression)


def _compress(part: SharedCost, fraction: float) -> None:
    groups = _cost(part).groups
    kept = max(1, L0Constraint(fraction, groups, keep_at_least=0).budget(part.layouts))
    cost = L0Constraint(kept, groups, keep_at_least=0)
    values = [read(variable) for variable in part.variables]
    maps = cost.maps(values, tf.constant(1.0), part.layouts)
    for variable, value, compressed in zip(part.variables, values, maps, strict=True):
        variable.assign(tf.cast(compressed(value), variable.value.dtype))


def _name(part: SharedCost) -> str:
    layers = dict.fromkeys(v.path.rpartition("/")[0] for v in part.variables if len(v.shape) > 1)
    return ", ".join(layers or [v.path for v in part.variables])
