"""Run a user's `fit` on copies of a model, and keep the results on disk."""

import hashlib
import inspect
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from lc_keras.algorithm.direct import compress_again
from lc_keras.algorithm.tasks import Task, Tasks, as_tasks
from lc_keras.fit import LearningCompression
from lc_keras.fit.attached import Attached
from lc_keras.internals.keras import compiled_with, layers_in, name_weights, replaced
from lc_keras.search.curve import Point
from lc_keras.search.scores import restored

Fit = Callable[[keras.Model, list[keras.callbacks.Callback]], Any]
# From a budget to what to compress under it, or to a callback that compresses.
Compress = Callable[[float], Tasks | Attached]
# The score of a model, and of what `fit` returned.
ScoreOf = Callable[[keras.Model, Any], float]
# Whether the scores of a budget reach what was asked for; `None` if they do not decide it.
Reached = Callable[[Sequence[float]], bool | None]


class Runs:
    """The runs of a search, and their record in a directory.

    Args:
        model: The reference, `keras.Model`.
        fit: The user's function.
        score: Function of a model and of what `fit` returned.
        compress: Function from a budget to what is compressed.
        directory: Path.
        resumable: Bool, whether runs keep checkpoints in the directory.
        question: Dict that JSON can hold: what must be the same for a record to be continued.

    Attributes:
        folder: Path, the directory.
        points: List of `Point`, of this search and of earlier ones in the directory.
        reference: Float, the score of the reference; NaN while it is not known.

    Raises:
        ValueError: If the directory holds the record of another search. It is then left unchanged.
    """

    def __init__(
        self,
        model: keras.Model,
        fit: Fit,
        score: ScoreOf,
        compress: Compress,
        directory: str | os.PathLike[str],
        resumable: bool,
        question: dict[str, Any],
    ) -> None:
        self._model, self._fit, self._score, self._compress = model, fit, score, compress
        self.folder, self._resumable = Path(directory), resumable
        self._question = question | {"model": _fingerprint(model)}
        self._record = self.folder / "search.json"
        self._best = ""
        self.points: list[Point] = []
        self.reference = math.nan
        if self._record.exists():
            self._read()
        self.folder.mkdir(parents=True, exist_ok=True)

    def tasks(self, budget: float) -> list[Task]:
        """Return what is compressed under a budget.

        Raises:
            TypeError: If `compress` is no such function.
        """
        try:
            made = self._compress(budget)
            return made.tasks if isinstance(made, Attached) else as_tasks(made)
        except TypeError as error:
            raise TypeError(
                "Expected `compress` to be a function from a budget to a cost, a Task, a list of these, or a "
                "callback such as GradualPruning: `lambda keep: L0Constraint(keep)` is one. Received: "
                f"compress={self._compress!r} ({error})"
            ) from error

    def point(self, budget: float, warm: bool, reached: Reached) -> Point:
        """Return the point of a budget: the recorded one, or one of new runs until their scores decide.

        Args:
            budget: Float.
            warm: Bool, whether to begin with the weights of the best run, if there is one.
            reached: Function of the scores so far.

        Raises:
            ValueError: If `fit` does not train the model with the callbacks that it is given, or leaves it
                outside the budget, or a score is not finite.
        """
        for point in self.points:
            if point.budget == budget:
                return point
        began, scores, verdict = time.monotonic(), list[float](), None
        start = min((point.budget for point in self.points if point.reached), default=None) if warm else None
        while verdict is None:
            model = self.best() if warm else copy_of(self._model)
            if (found := self._run(model, budget, len(scores))) is None:
                continue
            score, density = found
            scores.append(score)
            verdict = reached(scores)
        point = Point(budget, tuple(scores), density, time.monotonic() - began, verdict, start)
        self._add(point, model)
        return point

    def best(self) -> keras.Model:
        """Return a model with the weights of the best run, or the reference's if there is none."""
        return copy_of(self._model, self.folder / self._best if self._best else None)

    def save(self) -> None:
        """Write the record, completely or not at all."""
        content = {
            "question": self._question,
            "reference": self.reference,
            "best": self._best,
            "points": [asdict(point) | {"cost": self._cost(point.budget)} for point in self.points],
        }
        written = self._record.with_suffix(".tmp")
        written.write_text(json.dumps(content, indent=1))
        os.replace(written, self._record)

    def _run(self, model: keras.Model, budget: float, attempt: int) -> tuple[float, float] | None:
        """Fit a model under a budget, and return its score and its density.

        Return `None` if an earlier run had trained to its end, and what it noted of the score is lost.
        """
        checkpoints = self.folder / f"run-{len(self.points)}-{attempt}" if self._resumable else None
        goes_on = checkpoints is not None and checkpoints.exists() and any(checkpoints.iterdir())
        callback = self._compress(budget)
        if not isinstance(callback, Attached):
            callback = LearningCompression(callback, checkpoint_dir=checkpoints)
        watch = _Watch()
        history = self._fit(model, [callback, watch])
        watch.check(model, callback, goes_on)
        gap, density = compress_again(model, callback.shared, 1.0, callback.shown)
        if gap > 0:
            raise ValueError(
                "Expected `fit` to return with the model under its budget. Received: one outside of it, by "
                f"{100 * gap:.2g} % of the norm of its weights: was it trained on without the callbacks?"
            )
        try:
            with restored(model):
                score = self._score(model, history)
        except NoScore:
            if watch.batches or not goes_on:
                raise
            return None
        if not math.isfinite(score):
            raise ValueError(f"Expected a finite score. Received: {score}, with the budget {budget:.4g}")
        return score, float(density)

    def _add(self, point: Point, model: keras.Model) -> None:
        self.points.append(point)
        before = self._best
        if point.reached:
            self._best = f"best-{len(self.points)}.weights.h5"
            model.save_weights(self.folder / self._best)
        self.save()
        if before != self._best and before:
            (self.folder / before).unlink(missing_ok=True)

    def _read(self) -> None:
        try:
            content = json.loads(self._record.read_text())
            found, points = content["question"], content["points"]
            costs = {point["budget"]: point.pop("cost", None) for point in points}
            self.points = [Point(**{**point, "scores": tuple(point["scores"])}) for point in points]
            self.reference, self._best = content["reference"], content["best"]
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"Expected '{self._record}' to be the record of a search. Received: a file without "
                f"all that it has ({type(error).__name__}: {error}). Give another `directory`, or delete it."
            ) from error
        asked = dict(self._question)
        for budget, cost in costs.items():
            name = f"cost with a budget of {budget:.4g}"
            found[name], asked[name] = cost, self._cost(budget)
        for name, value in asked.items():
            if found.get(name) != value:
                raise ValueError(
                    f"Expected a `directory` of the same search. Received: '{self.folder}', whose {name} is "
                    f"{found.get(name)!r} and not {value!r}. Give another one, or delete it."
                )

    def _cost(self, budget: float) -> str:
        """Return what a budget makes as text that is the same in each process."""
        made = self._compress(budget)
        text = repr(as_tasks(made)) if not isinstance(made, Attached) else _shown(made)
        return re.sub(r" at 0x[0-9a-f]+", "", text)


class NoScore(ValueError):
    """Say that what `fit` returned has no score."""


class _Watch(keras.callbacks.Callback):
    """Observe which model a `fit` trains, and on how many batches."""

    def __init__(self) -> None:
        super().__init__()
        self._trained: keras.Model | None = None
        self.batches = 0

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._trained = self.model

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self.batches += 1

    def check(self, model: keras.Model, callback: Attached, goes_on: bool) -> None:
        if self._trained is None:
            raise ValueError(
                "Expected `fit` to pass its callbacks to `model.fit`. Received: a function that does not: "
                "def fit(model, callbacks): return model.fit(..., callbacks=callbacks)"
            )
        if self._trained is not model:
            raise ValueError(
                f"Expected `fit` to train the model that it is given. Received: '{self._trained.name}', "
                "another one"
            )
        if callback.model is not model:
            raise ValueError(
                "Expected `fit` to pass all of its callbacks to `model.fit`. Received: a function that "
                f"leaves out {callback!r}"
            )
        if not self.batches and not goes_on:
            raise ValueError(
                "Expected `fit` to train the model. Received: a function that trained on no batch"
            )


def copy_of(model: keras.Model, weights: Path | None = None) -> keras.Model:
    """Return a separate model of the same class, compiled in the same way with a fresh optimizer.

    Args:
        model: Built `keras.Model`.
        weights: Path of a file of weights. `None` (default): the copy has those of the model.

    Raises:
        ValueError: If Keras cannot make the model again.
    """
    try:
        with model.distribute_strategy.scope():
            # Keras would compile what it clones, too, from what it can write into a config.
            with replaced([(model, "compiled", False)]):
                copy = keras.models.clone_model(model)
            if type(copy) is not type(model):
                copy = type(model).from_config(model.get_config())
            if type(copy) is not type(model):
                raise TypeError(f"a {type(copy).__name__} instead of a {type(model).__name__}")
            if not copy.built:
                copy.build_from_config(model.get_build_config())
            copy.set_weights(model.get_weights())
            # A config says of a layer whether it is frozen, but not of those inside it.
            for own, its in zip(layers_in(model), layers_in(copy), strict=True):
                its.trainable = own.trainable
            name_weights(copy, [weight.path for weight in model.weights])
            if weights:
                # Before there is an optimizer, whose state is in the file, too.
                copy.load_weights(weights)
            if model.compiled:
                copy.compile(**compiled_with(model))
    except Exception as error:
        raise ValueError(
            "Expected a model that Keras can make again, as `keras.models.clone_model` does. "
            f"Received: '{model.name}' ({error})"
        ) from error
    return copy


def _shown(callback: Attached) -> str:
    """Return a callback with its options."""
    options = {name: getattr(callback, name, None) for name in inspect.signature(type(callback)).parameters}
    return f"{type(callback).__name__}({', '.join(f'{name}={value!r}' for name, value in options.items())})"


def _fingerprint(model: keras.Model) -> str:
    found = hashlib.sha256()
    for weight in model.get_weights():
        found.update(weight.tobytes())
    return found.hexdigest()
