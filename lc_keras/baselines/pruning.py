"""Pruning by magnitude while `fit` trains."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow as tf

from lc_keras.algorithm.shadows import Shadow, fingerprint
from lc_keras.algorithm.tasks import Tasks, bind_tasks
from lc_keras.arguments import positive, warn, whole
from lc_keras.baselines.masks import Masks
from lc_keras.costs import L0Constraint, thresholds
from lc_keras.fit.attached import Attached
from lc_keras.fit.attachment import Logs, Run, TrainFunction
from lc_keras.fit.optimizers import begin_anew, optimizers_of
from lc_keras.fit.statistics import Statistics
from lc_keras.fit.verdict import FEW_PERCENT
from lc_keras.internals.keras import first_epoch_of


class Pruning(Attached):
    """Base class of callbacks that remove the smallest weights during training, and train the others.

    A subclass overrides `kept`, which says how many are left at each point. A copy of the model's weights is
    kept, to go back to where they were finite.

    Args:
        tasks: An `L0Constraint`, a `Task` with one, or a list of these.

    Raises:
        TypeError: If the compression of a task is not an `L0Constraint`.
    """

    def __init__(self, tasks: Tasks) -> None:
        super().__init__(tasks)
        for task in self.tasks:
            cost = task.compression
            if not isinstance(cost, L0Constraint) or cost.values:
                raise TypeError(
                    f"Expected an L0Constraint, without `values`, in every task. Received: {task!r}"
                )

    def kept(self, total: int, kappa: int, progress: float) -> int:
        """Return what is left of the cost of the groups that share a budget, from `total` down to `kappa`.

        Args:
            total: Int, the cost of all of them: their number, if each counts as one.
            kappa: Int κ, the budget.
            progress: Float from 0 to 1, the fraction of `fit` that is done.
        """
        raise NotImplementedError

    def position(self, epochs: float) -> float:
        """Return the latest time to remove weights, in epochs since `fit` began."""
        return epochs

    def make_run(self) -> "PruningRun":
        return PruningRun(self)


class PruningRun(Run):
    """Remove weights in one `fit`, as a `Pruning` callback says."""

    def __init__(self, callback: Pruning) -> None:
        self._model, self._params = callback.model, callback.params
        self._kept, self._position = callback.kept, callback.position
        self.shared = bind_tasks(callback.tasks, self._model)
        self._masks = Masks(self.shared)
        self.variables = self._masks.variables
        self.logs, self.shown = {}, []
        self._finite = Shadow(self._model.weights, "finite")
        self._cut = 0.0  # the fraction of the weights' norm that the last removal took
        self.statistics = Statistics(self._model, self._params.get("steps"))
        self._first_epoch: int | None = None
        self._batches: int | None = self._params.get("steps")
        self._epoch = self._batch = 0
        self._left: list[int] = []
        self._ended: np.ndarray | None = None  # a fingerprint of the weights, once an epoch has ended
        self._is_underway = False  # whether a batch was trained with the masks

    def begin_epoch(self, epoch: int) -> None:
        if self._first_epoch is None:
            # A run that `BackupAndRestore` has taken to a later epoch goes on there.
            self._first_epoch = epoch if first_epoch_of(self._model) is None else 0
            self._check_length()
        self._epoch = epoch - self._first_epoch
        self._advance(self._epoch)

    def begin_batch(self, batch: int, anew: bool) -> None:
        self._batch, self._ended = batch, None
        self._advance(self._epoch + batch / (self._batches or math.inf))

    def execute(self, train_function: TrainFunction, iterator: Iterator[object]) -> Logs:
        self.statistics.see(iterator)
        try:
            with self._masks.constraining():
                logs = train_function(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            self._batches = self._batches or self._batch
            self.end_epoch()
            raise
        self._masks.check_applied()
        self._is_underway = True
        if self._batch + self._model.steps_per_execution >= (self._batches or math.inf):
            # Before the epoch is validated.
            self.end_epoch()
        return {**logs, **self.logs} if isinstance(logs, dict) else logs

    def end_epoch(self) -> None:
        if self._ended is None:
            self._check_finite()
            if self._epoch + 1 == self._epochs:
                # The weights that ship are validated.
                self._keep_budgets()
            self.statistics.estimate()
            self._finite.save()
            self._ended = fingerprint(self.variables)

    def end(self) -> bool:
        self._check_finite()
        # A budget holds however early training stops, and averaged weights are not masked.
        self._keep_budgets()
        if self._ended is None or not np.array_equal(self._ended, fingerprint(self.variables)):
            self.statistics.estimate()
        if self._first_epoch is None:
            # As when a run is restored that was cut off after its last epoch.
            warn("`fit` trained no epoch. The model was compressed as it is.")
        elif self._cut > FEW_PERCENT:
            warn(
                f"The weights that were removed as training ended had {self._cut:.0%} of the norm of all, "
                "and the others were not trained after that: expect accuracy to suffer. Either training "
                "stopped before the budget was reached, or the last removal falls on its end (`until`, "
                "`every`, `rounds`, data of unknown length), or averaged weights were put into the model.",
            )
        return False

    def abandon(self, error: BaseException) -> None:
        """Put back what was removed if not even the first batch was trained."""
        if self._left and not self._is_underway:
            self._finite.restore()

    def release(self) -> None:
        self._masks.release()

    @property
    def _epochs(self) -> int:
        return self._params["epochs"] - (self._first_epoch or 0)

    def _check_length(self) -> None:
        later = any(self._kept(b.total, b.kappa, 0.0) > b.kappa for b in self._masks.budgets)
        if self._params.get("steps") is None and self._epochs == 1 and later:
            warn(
                "Weights are removed as `fit` goes on, but the number of batches in an epoch is not known: "
                "the last weights are removed when the only epoch ends, and the others are not trained after "
                "that. Expected data of known length, `steps_per_epoch`, or more epochs.",
            )

    def _check_finite(self) -> None:
        """Go back to where the model was finite, if it no longer is."""
        bad = ", ".join(v.path for v in self._finite.not_finite())
        if not bad:
            return
        if not self._left:
            raise ValueError(
                f"Expected a model with finite weights. Received: NaN or infinite values in {bad}"
            )
        self._finite.restore()
        self._prune([budget.kappa for budget in self._masks.budgets])
        begin_anew(optimizers_of(self._model))
        raise ValueError(
            f"Training diverged: NaN or infinite values in {bad}. The model holds the latest weights that "
            "were finite, compressed. Try a lower learning rate, or gradient clipping."
        )

    def _advance(self, epochs: float) -> None:
        progress = self._position(epochs) / self._epochs
        left = [self._kept(budget.total, budget.kappa, progress) for budget in self._masks.budgets]
        if left != self._left:
            self._check_finite()
            self._finite.save()
            self._left = left
            self._prune(left)

    def _prune(self, left: Sequence[int]) -> None:
        self.logs["density"] = self._masks.prune_to(left)

    def _keep_budgets(self) -> None:
        """Remove what exceeds the budgets, and note how much that is."""
        norm = self._norm()
        self._prune([budget.kappa for budget in self._masks.budgets])
        if norm > 0:
            self._cut = max(self._cut, math.sqrt(max(0.0, 1 - (self._norm() / norm) ** 2)))

    def _norm(self) -> float:
        return float(thresholds.l2_norm([tf.convert_to_tensor(v) for v in self.variables]))


class MagnitudePruning(Pruning):
    r"""Remove the smallest weights, and retrain the others (Han et al., NeurIPS 2015).

    `fit` is divided into rounds of equal length. At the start of round $r = 1 \dots R$, all
    but the largest $\delta^{r/R}$ of the weights are removed for good, where δ is the density
    of the budget. With `groups=Neurons()`, filters and neurons are removed, together with their
    biases and the scales and shifts that follow.

    Args:
        tasks: An `L0Constraint` without `values`, a `Task` with one, or a list of these.
        rounds: Int ≥ 1, default 1: the number of rounds, $R$.

    Raises:
        TypeError: If the compression of a task is not such an `L0Constraint`, or `rounds` is not a number.
        ValueError: If `rounds` is out of range. In `fit`, if a task does not fit the model, weights
            are or become NaN or infinite, the training step applies no constraints or is a
            `tf.function`, or another callback prunes or trains the model, too.

    Example:

    ```python
    prune = lc_keras.baselines.MagnitudePruning(lc_keras.L0Constraint(keep=0.1))
    model.fit(train, epochs=20, shuffle=False, callbacks=[prune])
    ```
    """

    def __init__(self, tasks: Tasks, rounds: int = 1) -> None:
        super().__init__(tasks)
        self.rounds = whole("rounds", rounds)

    def kept(self, total: int, kappa: int, progress: float) -> int:
        begun = min(self.rounds, 1 + int(progress * self.rounds + 1e-9))
        density = kappa / total if total else 1.0
        return max(kappa, int(total * density ** (begun / self.rounds)))


class GradualPruning(Pruning):
    r"""Remove more and more of the smallest weights (Zhu & Gupta, 2017).

    After a fraction $t$ of the time that removal takes, $1 - (1 - t)^3$ of all that will be
    removed is gone. After that time, training goes on with the weights that are left.

    Args:
        tasks: An `L0Constraint` without `values`, a `Task` with one, or a list of these.
        until: Float in (0, 1], default 0.75: the fraction of `fit` that removal takes. With 1, nothing is
            trained after the last removal.
        every: Float > 0, default 0.25: the time from one removal to the next, in epochs.

    Raises:
        TypeError: If the compression of a task is not such an `L0Constraint`, or another argument is not a
            number.
        ValueError: If an argument is out of range. In `fit`, if a task does not fit the model,
            weights are or become NaN or infinite, the training step applies no constraints or is a
            `tf.function`, or another callback prunes or trains the model, too.

    Example:

    ```python
    prune = lc_keras.baselines.GradualPruning(lc_keras.L0Constraint(keep=0.1))
    model.fit(train, epochs=20, shuffle=False, callbacks=[prune])
    ```
    """

    def __init__(self, tasks: Tasks, until: float = 0.75, every: float = 0.25) -> None:
        super().__init__(tasks)
        self.until = positive("until", until)
        self.every = positive("every", every)
        if self.until > 1:
            raise ValueError(f"Expected `until` to be above 0 and at most 1. Received: until={until}")

    def position(self, epochs: float) -> float:
        return math.floor(epochs / self.every + 1e-9) * self.every

    def kept(self, total: int, kappa: int, progress: float) -> int:
        removed = 1 - (1 - min(1.0, progress / self.until)) ** 3
        return total - int(removed * (total - kappa))
