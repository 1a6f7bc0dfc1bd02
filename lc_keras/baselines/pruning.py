"""What LC is compared with: direct compression, and pruning by magnitude while `fit` trains."""

import math
import warnings
from collections.abc import Iterator

import keras
import tensorflow as tf

from lc_keras.algorithm.direct import compress_again
from lc_keras.algorithm.shadows import Snapshot
from lc_keras.algorithm.tasks import Tasks, as_tasks, bind_tasks
from lc_keras.arguments import positive, whole
from lc_keras.baselines.masks import Masks
from lc_keras.costs import L0Constraint, thresholds
from lc_keras.fit.attachment import NOT_ALONE, Guard, Logs, TrainFunction, if_changed_later
from lc_keras.fit.optimizers import begin_anew, optimizers_of

_FEW_PERCENT = 0.05


class _Pruning(keras.callbacks.Callback):
    """Removes the weights of least magnitude as training goes on, and trains the others.

    A subclass says how many are left when. A copy of the model's weights is kept, to go back to where
    they were finite.
    """

    def __init__(self, tasks: Tasks) -> None:
        super().__init__()
        self.tasks = as_tasks(tasks)
        for task in self.tasks:
            if not isinstance(task.compression, L0Constraint):
                raise TypeError(f"Expected an L0Constraint in every task. Received: {task!r}")
        self.density = math.nan
        self._masks: Masks = None  # type: ignore[assignment]  # there while `fit` runs

    def kept(self, total: int, kappa: int, progress: float) -> int:
        """What is left of the groups that share a budget.

        Args:
            total: Int, what all of them cost: their number, where each counts one.
            kappa: Int κ, the budget.
            progress: Float from 0 to 1, the part of `fit` that is done.

        Returns:
            Int from `kappa` to `total`, not increasing with progress.
        """
        raise NotImplementedError

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        model = self.model
        Guard.dismiss_other(model, self.params)
        self._masks = Masks(bind_tasks(self.tasks, model))
        self._first_epoch: int | None = None
        self._kept: list[int] | None = None
        self._finite = Snapshot(model, [])
        model.train_function = Guard(
            model, self.params, self._execute, lambda error: self._detach(), self._detach
        )

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._check_alone()
        if self._first_epoch is None:
            self._first_epoch = epoch
            self._check_length()
        self._epoch = epoch - self._first_epoch
        self._advance(self._epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._check_alone()
        self._advance(self._epoch + batch / (self.params.get("steps") or math.inf))

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._check_alone()
        self._check_finite()
        self._finite.save()

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self._check_alone()
        self._check_finite()
        # A budget holds however early the training stops, and averaged weights are not masked.
        norm = self._norm()
        self._prune_to_budget()
        if self._first_epoch is None:
            # As where a run is restored that had been cut off after its last epoch.
            warnings.warn("`fit` trained no epoch. The model was compressed as it is.", stacklevel=2)
        elif norm > 0:
            self._warn_of(math.sqrt(max(0.0, 1 - (self._norm() / norm) ** 2)))
        if_changed_later(self, self._masks.variables, self._compress_again)
        self._detach()

    def _check_alone(self) -> None:
        if self._masks is None:
            raise ValueError(NOT_ALONE)

    def _compress_again(self) -> None:
        gap, self.density = compress_again(self.model, self.tasks, mu=1.0)
        self._warn_of(gap)

    def _warn_of(self, gap: float) -> None:
        if gap > _FEW_PERCENT:
            warnings.warn(
                f"What was removed as training ended had {gap:.0%} of the norm of the weights, and the "
                "others were not trained since: expect accuracy to suffer. Training stopped before the "
                "budget was reached, the last removal falls on its end (`until`, `every`, `rounds`, data of "
                "unknown length), or the weights of an earlier epoch, or averaged ones, were put into the "
                "model.",
                stacklevel=3,
            )

    def _norm(self) -> float:
        return float(thresholds.l2_norm([tf.convert_to_tensor(v) for v in self._masks.variables]))

    def _check_length(self) -> None:
        one_epoch = self.params["epochs"] - (self._first_epoch or 0) == 1
        later = any(self.kept(total, kappa, 0.0) > kappa for total, kappa in self._masks.budgets)
        if self.params.get("steps") is None and one_epoch and later:
            warnings.warn(
                "Weights are removed as `fit` goes on, but how many batches an epoch has is not known: the "
                "last ones are removed when the only epoch ends, and the others not trained since. Expected "
                "data of known length, `steps_per_epoch`, or more epochs.",
                stacklevel=3,
            )

    def _check_finite(self) -> None:
        """Goes back to where the model was finite, if it is not."""
        bad = ", ".join(v.path for v in self._finite.not_finite())
        if not bad:
            return
        model, begun = self.model, self._kept is not None
        if begun:
            self._finite.restore()
            self._prune_to_budget()
        self._detach()
        if not begun:
            raise ValueError(
                f"Expected a model with finite weights. Received: NaN or infinite values in {bad}"
            )
        begin_anew(optimizers_of(model))
        raise ValueError(
            f"Training diverged: NaN or infinite values in {bad}. The model holds the latest weights that "
            "were finite, compressed. Try a lower learning rate, or gradient clipping."
        )

    def _advance(self, position: float) -> None:
        progress = position / (self.params["epochs"] - (self._first_epoch or 0))
        kept = [self.kept(*budget, progress) for budget in self._masks.budgets]
        if kept != self._kept:
            self._check_finite()
            self._kept = kept
            self.density = self._masks.prune_to(kept)
            self._finite.save()

    def _prune_to_budget(self) -> None:
        self.density = self._masks.prune_to([kappa for _, kappa in self._masks.budgets])

    def _execute(self, train_function: TrainFunction, iterator: Iterator[object]) -> Logs:
        with self._masks.constraining():
            logs = train_function(iterator)
        self._masks.check_applied()
        return {**logs, "density": self.density} if isinstance(logs, dict) else logs

    def _detach(self) -> None:
        if self._masks is None:
            return
        if isinstance(self.model.train_function, Guard):
            self.model.train_function = None
        self._masks.release()
        self._masks = self._finite = None  # type: ignore[assignment]  # as in __init__


class MagnitudePruning(_Pruning):
    r"""Removes the smallest weights and retrains the others (Han et al., NeurIPS 2015).

    `fit` is divided into rounds of equal length. At the start of round $r = 1 \dots R$ all
    but the largest $\delta^{r/R}$ of the weights are removed for good, δ being the density
    of the budget. With `groups=Neurons()` filters and neurons are removed, with their biases and
    the scales and shifts that follow.

    Args:
        tasks: An `L0Constraint`, a `Task` with one, or a list of these.
        rounds: Int ≥ 1, default 1.

    Raises:
        TypeError: If the compression of a task is not an `L0Constraint`, or `rounds` no number.
        ValueError: If `rounds` is out of range; in `fit`, if a task does not fit the model, weights
            become NaN or infinite, or the training step applies no constraints or is a
            `tf.function`.

    Example:

    ```python
    prune = lc_keras.baselines.MagnitudePruning(lc_keras.L0Constraint(keep=0.1))
    model.fit(train, epochs=20, callbacks=[prune])
    ```
    """

    def __init__(self, tasks: Tasks, rounds: int = 1) -> None:
        super().__init__(tasks)
        self.rounds = whole("rounds", rounds)

    def kept(self, total: int, kappa: int, progress: float) -> int:
        begun = min(self.rounds, 1 + int(progress * self.rounds + 1e-9))
        return max(kappa, int(total * (kappa / total) ** (begun / self.rounds)))


class GradualPruning(_Pruning):
    r"""Removes more and more of the smallest weights (Zhu & Gupta, 2017).

    Of all that will be removed, $1 - (1 - t)^3$ is after the fraction $t$ of the time that
    the removing takes; then the others are trained on.

    Args:
        tasks: An `L0Constraint`, a `Task` with one, or a list of these.
        until: Float in (0, 1], default 0.75: the part of `fit` that the removing takes.
        every: Float > 0, default 0.25: how often weights are removed, in epochs.

    Raises:
        TypeError: If the compression of a task is not an `L0Constraint`, or a number is none.
        ValueError: If an argument is out of range; in `fit`, if a task does not fit the model,
            weights become NaN or infinite, or the training step applies no constraints or is a
            `tf.function`.

    Example:

    ```python
    prune = lc_keras.baselines.GradualPruning(lc_keras.L0Constraint(keep=0.1))
    model.fit(train, epochs=20, callbacks=[prune])
    ```
    """

    def __init__(self, tasks: Tasks, until: float = 0.75, every: float = 0.25) -> None:
        super().__init__(tasks)
        self.until = positive("until", until)
        self.every = positive("every", every)
        if self.until > 1:
            raise ValueError(f"Expected `until` to be above 0 and at most 1. Received: until={until}")

    def _advance(self, position: float) -> None:
        super()._advance(math.floor(position / self.every + 1e-9) * self.every)

    def kept(self, total: int, kappa: int, progress: float) -> int:
        removed = 1 - (1 - min(1.0, progress / self.until)) ** 3
        return total - int(removed * (total - kappa))
