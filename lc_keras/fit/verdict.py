"""The last word on a `fit`: what looks bad about its result, and what to do about it."""

import contextlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from lc_keras.algorithm.direct import lost_weights
from lc_keras.algorithm.tasks import Task
from lc_keras.arguments import warn
from lc_keras.showing import listed

# Anything above this is more than a few per cent.
FEW_PERCENT = 0.05
# A metric below this part of its first value has fallen far: for training data and for validation data, which
# are harder, compared with the first epoch; or compared with the first batch, which precedes any update.
_BELOW, _VALIDATION_BELOW, _BELOW_BATCH = 0.8, 0.6, 0.5
# Metrics for which larger is better, by a word in their names; `MeanIoU` is "mean_io_u".
_SCORES = {"acc", "accuracy", "auc", "precision", "recall", "f1", "fbeta", "io", "iou", "r2"}

_STALE = (
    "its statistics are not those of the compressed weights, so that metrics say little: call "
    "`lc_keras.estimate_statistics(model, data)`, and `evaluate` then"
)


class Verdict:
    """Watch the epochs of a `fit`, and warn when it ends if its result looks bad.

    Attributes:
        is_stale: Bool, whether statistics are those of other weights, which by itself is no reason to warn.
    """

    def __init__(
        self, model: keras.Model, tasks: Sequence[Task], variables: Sequence[keras.Variable]
    ) -> None:
        self._model, self._tasks, self._variables = model, tasks, variables
        self.is_stale = False
        self._trainable = set(map(id, model.trainable_variables))
        self._batch: dict[str, float] = {}
        self._first: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def note(self, logs: object, first_batch: object = None) -> None:
        """Note the logs of an epoch, and of the first batch of the `fit`."""
        self._batch = self._batch or _scores(first_batch)
        self._last = _scores(logs)
        self._first = self._first or self._last

    def give(self, gap: float) -> None:
        """Warn, in one line, about what looks bad; `gap` is the last gap, 0 if it was mentioned already."""
        if reasons := [*self._reasons(gap)]:
            if self.is_stale:
                reasons.insert(0, _STALE)
            warn("The compressed model may be bad: " + "; ".join(reasons) + ".")

    def _reasons(self, gap: float) -> Iterator[str]:
        if gap > FEW_PERCENT:
            yield (
                f"at the end its weights were {gap:.0%} of their norm away from the trained ones (`gap`): "
                "give `fit` more epochs, or a last μ that is higher"
            )
        if lost := lost_weights(self._variables):
            yield lost
        fallen = [*self._fallen(self._first, _BELOW, _VALIDATION_BELOW, "in the first epoch")]
        fallen = fallen or [*self._fallen(self._batch, _BELOW_BATCH, _BELOW_BATCH, "before the first update")]
        if fallen:
            advice = "keep more, give `fit` more epochs, or look at the learning rate"
            yield f"{', '.join(fallen)}: {advice}"
        if late := [v.path for v in self._unfrozen()]:
            yield (
                f"{listed(late)} became trainable after `fit` had begun and has no budget: make it "
                "trainable before, or call `fit` once more"
            )

    def _fallen(
        self, first: dict[str, float], part: float, validation_part: float, when: str
    ) -> Iterator[str]:
        for name, before in first.items():
            for last_name, least in ((name, part), (f"val_{name}", validation_part)):
                last = self._last.get(last_name, before)
                if not name.startswith("val_") and 0 <= last < least * before:
                    yield f"{last_name} ended at {last:.3g}, where {name} was {before:.3g} {when}"

    def _unfrozen(self) -> Iterator[keras.Variable]:
        compressed = set(map(id, self._variables))
        for task in self._tasks:
            # What a task names may have been frozen meanwhile.
            with contextlib.suppress(ValueError):
                for variable in task.select(self._model):
                    if id(variable) not in compressed and id(variable) not in self._trainable:
                        yield variable


def _scores(logs: object) -> dict[str, float]:
    """Return the metrics for which larger is better; for one with a value for each class, the mean."""
    metrics = logs if isinstance(logs, dict) else {}
    names = [name for name in metrics if _SCORES.intersection(name.lower().split("_"))]
    return {name: float(np.mean(metrics[name])) for name in names}
