"""Find the smallest budget at which a model is still as good as asked for."""

import contextlib
import itertools
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import keras

from lc_keras.algorithm.tasks import bind_tasks
from lc_keras.arguments import above_one, keras_model, non_negative, positive, switch, whole
from lc_keras.costs import L0Constraint
from lc_keras.search.curve import Point, Smallest, SoFar
from lc_keras.search.runs import Compress, Fit, NoScore, Runs, ScoreOf
from lc_keras.search.scores import Score, restored, score_of
from lc_keras.shrinking.timing import ensure_known

# How often, at most, a budget whose score is within the noise is run.
_REPEATS = 3
# By how much a pruned net may be better than the reference, as a part of the reference's score.
_FAR_BETTER = 0.1
# Parts of the names of metrics: of those that are better when they are low, and of others.
_LOW = "loss error entropy mse mae mape msle divergence hinge poisson logcosh".split()
_HIGH = "acc auc precision recall iou dice f1 fbeta r2 similarity sensitivity specificity".split()


def smallest(
    model: keras.Model,
    fit: Fit,
    score: Score | str,
    within: float = 0.005,
    *,
    compress: Compress = L0Constraint,
    lowest: float = 0.001,
    highest: float = 1.0,
    precision: float = 1.1,
    mode: Literal["auto", "min", "max"] = "auto",
    noise: float = 0.0,
    warm_start: bool = True,
    max_runs: int = 20,
    max_seconds: float | None = None,
    directory: str | os.PathLike[str] | None = None,
    verbose: int = 1,
) -> Smallest:
    r"""Find the smallest budget at which a model's score is at most `within` worse than the reference's.

    Each run fits a copy of the model under a budget. The search bisects the logarithm of the budget: it tries
    $\sqrt{ab}$, between the largest a that failed and the smallest b that reached the score, until $b \le$
    `precision` · a. If the first two budgets fail, the next run keeps everything, to see whether `fit`
    reaches the score at all. Budgets that the cost itself refuses are skipped. Afterwards the model itself is
    as it was before, whatever `fit` and `score` do.

    Args:
        model: Built `keras.Model`, the trained reference. If it is compiled, so are its copies, each with a
            fresh optimizer at the learning rate that the reference's has now.
        fit: Function of a model and a list of callbacks that trains the model, passes the callbacks to
            `model.fit`, and returns what `model.fit` returns. It may compile the model first.
        score: Function of a model that returns a float, on validation data. Or the name of a metric, such as
            `"accuracy"` or `"val_accuracy"`: the score is then its last `val_` value in the history that
            `fit` returns, and the reference is the run that keeps everything.
        within: Float ≥ 0, default 0.005: how much worse than the reference the score may be.
        compress: Function from a budget to what to compress under it: a cost, a `Task`, a list of these, or a
            callback such as `baselines.GradualPruning`. Select weights by name, since copies of the model are
            trained. Defaults to `L0Constraint`: the budget is the fraction of all weights.
            `lambda keep: L0Constraint(keep, Neurons(), measure="macs")` finds the fewest multiply-adds.
        lowest: Float > 0, default 0.001: the smallest budget to try.
        highest: Float, default 1.0: the budget that keeps everything.
        precision: Float > 1, default 1.1: the search ends when the two budgets are within this factor.
        mode: `"max"` or `"min"`: which score is better. `"auto"` (default): for a function the larger one,
            for a metric by its name.
        noise: Float ≥ 0, default 0: the standard deviation of a score, $\sqrt{p(1-p)/n}$ for an accuracy p on
            n examples. A budget whose score is within the noise of what was asked for is run up to three
            times, and must beat it by more than the noise of the mean.
        warm_start: Bool, default `True`: each run begins with the weights of the smallest budget that has
            reached the score so far, not with the reference's, so that weights train for longer in total.
        max_runs: Int ≥ 1, default 20: the search ends after this many budgets, besides the run of the
            reference that the name of a metric takes.
        max_seconds: Float > 0 or `None` (default): no further budget begins after this time.
        directory: Path or `None` (default): where to keep what a search needs to resume after it was cut off:
            its points, the best weights and, unless `compress` makes a callback, checkpoints of the run. The
            same call goes on from there and keeps the points. A call with another model, range, cost or
            callback, another name for the score, or another `within`, `noise`, `warm_start` or `mode` is an
            error.
        verbose: Int, default 1: show a progress bar. 0: show nothing.

    Returns:
        `Smallest`: the model, its budget, and the curve.

    Raises:
        TypeError: If an argument is of the wrong type, or the score is not a number.
        ValueError: If an argument is out of range, `compress` does not fit the model, the `directory` holds
            another search, the model cannot be copied, `fit` does not train with the callbacks that it is
            given or leaves the model outside its budget, the metric is not in what it returns, a score is not
            finite, or the score is worse than asked for even with everything kept. What was found so far is
            in a note of the error, and in the `directory`.

    Example:

    ```python
    found = lc_keras.smallest(
        model,
        fit=lambda model, callbacks: model.fit(x, y, epochs=20, callbacks=callbacks),
        score=lambda model: model.evaluate(x_valid, y_valid, return_dict=True)["accuracy"],
        within=0.005,
    )
    print(found)
    found.model.save("small.keras")
    ```
    """
    keras_model(model)
    if not (callable(fit) and (callable(score) or isinstance(score, str))):
        what = "functions, or `score` to be the name of a metric"
        raise TypeError(f"Expected `fit` and `score` to be {what}. Received: fit={fit!r}, score={score!r}")
    lowest, highest = positive("lowest", lowest), positive("highest", highest)
    if lowest >= highest:
        raise ValueError(
            f"Expected `lowest` to be below `highest`. Received: lowest={lowest!r}, highest={highest!r}"
        )
    target = _Target(_sign(score, mode), non_negative("within", within), non_negative("noise", noise))
    question = asdict(target) | {"warm_start": switch("warm_start", warm_start)}
    question |= {"lowest": lowest, "highest": highest}
    question["score"] = score if isinstance(score, str) else "a function"
    precision, max_runs = above_one("precision", precision), whole("max_runs", max_runs)
    max_seconds = math.inf if max_seconds is None else positive("max_seconds", max_seconds)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory()) if directory is None else directory
        restore = stack.enter_context(restored(model))
        runs = Runs(model, fit, _scores(score), compress, folder, directory is not None, question)
        tasks = runs.tasks(highest)
        ensure_known(model, (task.compression.needs_time for task in tasks))
        bind_tasks(tasks, model)
        bisection = _Bisection(model, runs, target, lowest, highest, precision)
        try:
            bisection.measure_reference(None if isinstance(score, str) else score)
            restore()
            bisection.run(warm_start, max_runs, max_seconds, verbose)
        except BaseException as error:
            if runs.points:
                error.add_note(f"The search so far:\n{SoFar(tuple(runs.points), bisection.limit)}")
            raise
        return bisection.result()


class _Bisection:
    """The search between two budgets.

    Args:
        model: The reference, `keras.Model`.
        runs: `Runs` of it.
        target: `_Target`.
        lowest: Float.
        highest: Float.
        precision: Float.
    """

    def __init__(
        self,
        model: keras.Model,
        runs: Runs,
        target: "_Target",
        lowest: float,
        highest: float,
        precision: float,
    ) -> None:
        self._model, self._runs, self._target = model, runs, target
        self._low, self._high, self._highest, self._precision = lowest, highest, highest, precision
        self._below, self._failures, self._warm = "none was tried", 0, False
        self._best: Point | None = None

    @property
    def limit(self) -> float:
        """Return the worst score that is accepted."""
        return self._target.limit(self._runs.reference)

    def measure_reference(self, score: Score | None) -> None:
        """Score the reference, or, where only a history has scores, what is fitted with everything kept."""
        if score is None:
            self._take(self._runs.point(self._highest, False, self._is_reference))
        elif math.isnan(self._runs.reference):
            self._runs.reference = score_of(self._model, score)

    def run(self, warm: bool, max_runs: int, max_seconds: float, verbose: int) -> None:
        """Run budgets until they are near each other, or a limit is reached."""
        self._warm = warm
        if self._runs.points and verbose:
            print(f"Going on with {len(self._runs.points)} points of '{self._runs.folder}'.")
        start, steps = time.monotonic(), math.log(self._high / self._low) / math.log(self._precision)
        expected = min(max_runs, math.ceil(math.log2(max(steps, 2))))
        names = ["budget", "score"]
        bar = keras.utils.Progbar(expected, verbose=verbose, unit_name="budget", stateful_metrics=names)
        tried = 0
        while (budget := self._next()) and tried < max_runs and time.monotonic() - start < max_seconds:
            if self._fits(budget):
                point = self._runs.point(budget, warm, self._reached)
                tried += 1
                shown = list(zip(names, (budget, point.score), strict=True))
                bar.update(min(tried, expected), shown, finalize=False)
                if verbose:
                    # What `fit` prints begins on a line of its own.
                    print()
                self._take(point)
            else:
                self._low, self._below = budget, "the cost takes none"
        if verbose:
            bar.update(expected, finalize=True)

    def result(self) -> Smallest:
        """Return what was found."""
        best, reference = self._best, self._runs.reference
        budget, score = (best.budget, best.score) if best else (self._highest, reference)
        note = " ".join(self._notes())
        points = tuple(self._runs.points)
        return Smallest(self._runs.best(), budget, score, reference, self.limit, points, note)

    def _next(self) -> float | None:
        """Return the budget to run next, or `None` if there is none."""
        is_narrow = self._high <= self._low * self._precision
        if self._best is None and (is_narrow or self._failures == 2):
            return self._highest
        budget = float(f"{math.sqrt(self._low * self._high):.4g}")
        return budget if not is_narrow and self._low < budget < self._high else None

    def _fits(self, budget: float) -> bool:
        """Return whether the cost accepts a budget: one of neurons may not, since each layer keeps some."""
        try:
            bind_tasks(self._runs.tasks(budget), self._model)
        except ValueError:
            return False
        return True

    def _is_reference(self, scores: Sequence[float]) -> bool:
        self._runs.reference = scores[0]
        return True

    def _reached(self, scores: Sequence[float]) -> bool | None:
        return self._target.reached(scores, self._runs.reference)

    def _take(self, point: Point) -> None:
        if point.reached:
            self._best, self._high = point, point.budget
        elif point.budget == self._highest:
            raise ValueError(
                f"Expected a score of {self.limit:.4g} from `fit` with everything kept, as the reference has "
                f"{self._runs.reference:.4g}. Received: {point.score:.4g}: train longer, or at another "
                "learning rate, or ask for less."
            )
        else:
            self._low, self._below = point.budget, ""
            self._failures += 1

    def _notes(self) -> Iterator[str]:
        if self._best is None:
            yield "No budget that was run reaches the score; the model is the reference."
        elif self._next() is not None:
            yield f"Ended early: the smallest budget lies between {self._low:.4g} and {self._high:.4g}."
        elif self._best.budget == self._highest:
            yield "Only the budget of everything reaches the score."
        elif self._below:
            yield f"Of budgets below {self._low:.4g} {self._below}."
        failed = next((p for p in self._runs.points if p.budget == self._low and not p.reached), None)
        if failed and self._warm and self._best and (failed.start or math.inf) > self._best.budget:
            begun = "the reference" if failed.start is None else f"{failed.start:.4g}"
            yield (
                f"{failed.budget:.4g} failed with the weights of {begun} to begin with; it was not tried "
                f"with those of {self._best.budget:.4g}."
            )
        if self._target.sign * self.limit < 0 < self._target.sign * self._runs.reference:
            yield f"A score of 0 is within {self._target.within:g}, too, which is in the unit of the score."
        reference = self._runs.reference
        gain = self._target.sign * (self._best.score - reference) if self._best else 0.0
        if gain > _FAR_BETTER * abs(reference):
            yield (
                f"The reference, {reference:.4g}, is far behind a net with fewer weights: train it longer, "
                "or estimate its statistics by `lc_keras.estimate_statistics`, and search again."
            )
        if pair := self._target.contradiction(self._runs.points):
            yield (
                f"The score falls from {pair[0].score:.4g} to {pair[1].score:.4g} as the budget grows from "
                f"{pair[0].budget:.4g} to {pair[1].budget:.4g}: which is the smallest is uncertain. Train "
                "longer, or say how large the `noise` is."
            )


@dataclass(frozen=True)
class _Target:
    """Compare scores with what was asked for.

    Attributes:
        sign: Int, 1 where the larger score is better, -1 where the smaller one is.
        within: Float, how much worse than the reference the score may be.
        noise: Float, the standard deviation of a score.
    """

    sign: int
    within: float
    noise: float

    def limit(self, reference: float) -> float:
        return reference - self.sign * self.within

    def reached(self, scores: Sequence[float], reference: float) -> bool | None:
        """Return whether the scores of a budget reach the limit; `None` if it is to be run once more."""
        limit, error = self.limit(reference), self.noise / math.sqrt(len(scores))
        gain = self.sign * (sum(scores) / len(scores) - limit)
        if abs(gain) < error and len(scores) < _REPEATS:
            return None
        # Rounding does not count as a loss.
        return gain >= error - 1e-9 * abs(limit)

    def contradiction(self, points: Sequence[Point]) -> tuple[Point, Point] | None:
        """Return two failed points, the one of the smaller budget with a clearly better score, if any."""
        failed = sorted((p for p in points if not p.reached), key=lambda point: point.budget)
        clear = max(self.within, 2 * self.noise)
        pairs = (
            pair for pair in itertools.pairwise(failed) if self.sign * (pair[0].score - pair[1].score) > clear
        )
        return next(pairs, None)


def _sign(score: Score | str, mode: str) -> int:
    """Return 1 where the larger score is better, -1 where the smaller one is."""
    if mode not in ("auto", "min", "max"):
        raise ValueError(f"Expected `mode` to be 'auto', 'min' or 'max'. Received: mode={mode!r}")
    if mode != "auto" or not isinstance(score, str):
        return -1 if mode == "min" else 1
    low, high = (any(part in score.lower() for part in parts) for parts in (_LOW, _HIGH))
    if low == high:
        raise ValueError(
            "Expected `mode` to be 'min' or 'max', as the name of the metric does not tell which is better. "
            f"Received: score={score!r}"
        )
    return -1 if low else 1


def _scores(score: Score | str) -> ScoreOf:
    """Return a function from a model, and what `fit` returned, to the score."""
    if not isinstance(score, str):
        return lambda model, _: score_of(model, score, finite=False)
    name = score if score.startswith("val_") else f"val_{score}"

    def of_history(_: keras.Model, history: Any) -> float:
        values = getattr(history, "history", history)
        if not isinstance(values, dict) or not values.get(name):
            found = sorted(values) if isinstance(values, dict) else history
            raise NoScore(
                f"Expected `fit` to return a history that has '{name}', that of `model.fit` with "
                f"`validation_data`. Received: {found!r}"
            )
        return float(values[name][-1])

    return of_history
