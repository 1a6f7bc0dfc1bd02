"""What LC is compared with: direct compression, and pruning by magnitude while `fit` trains."""

import contextlib
import math

import keras
import tensorflow as tf

from lc_keras.costs import L0Constraint
from lc_keras.groups import Weights
from lc_keras.guard import Guard
from lc_keras.lagrangian import Lagrangian
from lc_keras.tasks import as_tasks, bind_tasks


def compress_directly(model, tasks, mu=1.0):
    """Compresses a model as it is: one C step and no training.

    Args:
        model: Built `keras.Model`.
        tasks: A compression, a `Task`, or a list of these.
        mu: Float > 0, default 1: the weight of the distance, which matters to penalties.

    Raises:
        ValueError: If a task does not fit the model, or a weight is not finite. The model
            is then unchanged.

    Example:

    ```python
    lc_keras.baselines.compress_directly(model, lc_keras.L0Constraint(keep=0.5))
    ```
    """
    lagrangian = Lagrangian(bind_tasks(as_tasks(tasks), model), multipliers=False)
    bad = lagrangian.not_finite(lagrangian.direct_compression(mu))
    if bad:
        raise ValueError(f"Expected a model with finite weights. Received: NaN or infinite values in {bad}")
    lagrangian.show_compressed()


class DirectCompression(keras.callbacks.Callback):
    """Trains as without it, and compresses when the training ends.

    Args:
        tasks: A compression, a `Task`, or a list of these.

    Raises:
        TypeError: If `tasks` is of another type.
        ValueError: In `fit`, if a task does not fit the model.

    Example:

    ```python
    prune = lc_keras.baselines.DirectCompression(lc_keras.L0Constraint(keep=0.5))
    model.fit(train, epochs=1, callbacks=[prune])
    ```
    """

    def __init__(self, tasks):
        super().__init__()
        self.tasks = as_tasks(tasks)

    def on_train_begin(self, logs=None):
        bind_tasks(self.tasks, self.model)

    def on_train_end(self, logs=None):
        compress_directly(self.model, self.tasks)


class Masked(keras.constraints.Constraint):
    """Keeps weights at zero where a mask is false, after each update.

    Args:
        mask: bool `tf.Variable` of the weight's shape.
        constraint: `keras.constraints.Constraint` or `None`: the weight's own, which is
            applied first.
    """

    def __init__(self, mask, constraint=None):
        self.mask = mask
        self.constraint = constraint

    def __call__(self, weight):
        weight = tf.convert_to_tensor(weight if self.constraint is None else self.constraint(weight))
        return tf.where(self.mask, weight, tf.zeros([], weight.dtype))


class _Pruning(keras.callbacks.Callback):
    """Removes the weights of least magnitude as training goes on, and trains the others.

    A subclass says how many are left when.
    """

    def __init__(self, tasks):
        super().__init__()
        self.tasks = as_tasks(tasks)
        for task in self.tasks:
            if not isinstance(task.compression, L0Constraint):
                raise TypeError(f"Expected an L0Constraint in every task. Received: {task!r}")
        self.density = math.nan

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

    def on_train_begin(self, logs=None):
        model = self.model
        Guard.dismiss_other(model, self.params)
        self._shared = bind_tasks(self.tasks, model)
        self._variables = [v for part in self._shared for v in part.variables]
        self._masks = [tf.Variable(tf.ones(v.shape, tf.bool), trainable=False) for v in self._variables]
        self._budgets = [
            (part.compression.total(shapes, axes), part.compression.kept(shapes, axes))
            for part in self._shared
            for shapes, axes in [([v.shape for v in part.variables], part.output_axes)]
        ]
        self._first_epoch = self._kept = None
        model.train_function = Guard(
            model, self.params, self._execute, lambda error: self._detach(), self._detach
        )

    def on_epoch_begin(self, epoch, logs=None):
        if self._first_epoch is None:
            self._first_epoch = epoch
        self._epoch = epoch - self._first_epoch
        self._advance(self._epoch)

    def on_train_batch_begin(self, batch, logs=None):
        self._advance(self._epoch + batch / (self.params.get("steps") or math.inf))

    def on_train_end(self, logs=None):
        if self._first_epoch is not None:
            # A budget holds however early the training stops, and averaged weights are not masked.
            self._kept = None
            self._prune_at(1.0)
        self._detach()

    def _advance(self, position):
        self._prune_at(position / (self.params["epochs"] - self._first_epoch))

    def _prune_at(self, progress):
        kept = [self.kept(*budget, progress) for budget in self._budgets]
        if kept != self._kept:
            self._kept = kept
            self.density = self._prune_to(kept)

    def _prune_to(self, kept):
        nonzeros = start = 0
        for i, part in enumerate(self._shared):
            masks = self._masks[start : start + len(part.variables)]
            start += len(part.variables)
            values = [
                tf.where(m, v.value, tf.zeros([], v.value.dtype))
                for v, m in zip(part.variables, masks, strict=True)
            ]
            maps = part.compression.largest(values, kept[i], part.output_axes)
            for variable, mask, value, largest in zip(part.variables, masks, values, maps, strict=True):
                # Single weights are their own magnitudes; of a group that is kept, a zero may train.
                single = isinstance(part.compression.groups, Weights)
                mask.assign(largest(value if single else tf.ones_like(value)) != 0)
                value = largest(value)
                variable.assign(value)
                nonzeros += int(tf.math.count_nonzero(value))
        return nonzeros / sum(math.prod(v.shape) for v in self._variables)

    def _execute(self, train_function, iterator):
        with self._masked():
            logs = train_function(iterator)
        return {**logs, "density": self.density} if isinstance(logs, dict) else logs

    @contextlib.contextmanager
    def _masked(self):
        own = [variable.constraint for variable in self._variables]
        for variable, mask, constraint in zip(self._variables, self._masks, own, strict=True):
            variable.constraint = Masked(mask, constraint)
        try:
            yield
        finally:
            for variable, constraint in zip(self._variables, own, strict=True):
                variable.constraint = constraint

    def _detach(self):
        if isinstance(self.model.train_function, Guard):
            self.model.train_function = None
        self._shared = self._variables = self._masks = None


class MagnitudePruning(_Pruning):
    r"""Removes the smallest weights and retrains the others (Han et al., NeurIPS 2015).

    `fit` is divided into rounds of equal length. At the start of round $r = 1 \dots R$ all
    but the largest $\delta^{r/R}$ of the weights are removed for good, δ being the density
    of the budget.

    Args:
        tasks: An `L0Constraint`, a `Task` with one, or a list of these.
        rounds: Int ≥ 1, default 1.

    Raises:
        TypeError: If the compression of a task is not an `L0Constraint`.
        ValueError: If `rounds` is out of range; in `fit`, if a task does not fit the model.

    Example:

    ```python
    prune = lc_keras.baselines.MagnitudePruning(lc_keras.L0Constraint(keep=0.1))
    model.fit(train, epochs=20, callbacks=[prune])
    ```
    """

    def __init__(self, tasks, rounds=1):
        super().__init__(tasks)
        if isinstance(rounds, bool) or rounds != int(rounds) or rounds < 1:
            raise ValueError(f"Expected `rounds` to be a whole number ≥ 1. Received: rounds={rounds}")
        self.rounds = int(rounds)

    def kept(self, total, kappa, progress):
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
        TypeError: If the compression of a task is not an `L0Constraint`.
        ValueError: If an argument is out of range; in `fit`, if a task does not fit the
            model.

    Example:

    ```python
    prune = lc_keras.baselines.GradualPruning(lc_keras.L0Constraint(keep=0.1))
    model.fit(train, epochs=20, callbacks=[prune])
    ```
    """

    def __init__(self, tasks, until=0.75, every=0.25):
        super().__init__(tasks)
        if not 0 < until <= 1:
            raise ValueError(f"Expected `until` to be above 0 and at most 1. Received: until={until}")
        if not 0 < every < math.inf:
            raise ValueError(f"Expected `every` to be a positive number of epochs. Received: every={every}")
        self.until = float(until)
        self.every = float(every)

    def _advance(self, position):
        super()._advance(math.floor(position / self.every + 1e-9) * self.every)

    def kept(self, total, kappa, progress):
        removed = 1 - (1 - min(1.0, progress / self.until)) ** 3
        return total - int(removed * (total - kappa))
