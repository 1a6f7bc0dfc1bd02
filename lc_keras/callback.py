"""The Learning-Compression algorithm inside `fit`."""

import contextlib
import math
import warnings

import keras
import numpy as np

from lc_keras import schedules
from lc_keras.backup import Backup
from lc_keras.guard import Guard, Snapshot
from lc_keras.lagrangian import Lagrangian
from lc_keras.optimizers import LearningRateLimit, inner_optimizer, optimizers_of, reset_state
from lc_keras.tasks import as_tasks, bind_tasks

_SUGGESTED_EPOCHS = 20
# How long an epoch is taken to be until the first one has ended, if Keras does not know.
_UNKNOWN_BATCHES = 100


class LearningCompression(keras.callbacks.Callback):
    r"""Compresses a model to its budget while `fit` trains it.

    Solves $\min_w L(w)$ subject to a budget $C(w) \le \kappa$, or with a penalty
    $\alpha C(w)$, by the Learning-Compression algorithm (Carreira-Perpiñán &
    Idelbayev, "Learning-Compression" Algorithms for Neural Net Pruning, CVPR 2018):

    - L step: the epochs of `fit`, on $L(w) + \frac{\mu}{2} \lVert w - \theta - \lambda/\mu \rVert^2$;
    - C step: $\theta \leftarrow \arg\min_\theta \lVert w - \lambda/\mu - \theta \rVert^2$ under the cost;
    - multipliers: $\lambda \leftarrow \lambda - \mu (w - \theta)$; then μ grows.

    When `fit` returns, the model holds θ: it keeps the budget exactly, and nothing of
    this callback is left on it. While `fit` runs, the `val_*` metrics, and what other
    callbacks see at the end of an epoch, are those of the compressed model.

    `logs` carry `mu`, `density` (the fraction of weights kept), `gap`
    ($\lVert w - \theta \rVert / \lVert w \rVert$ at the latest C step), `l_step` (the
    number of the running L step) and `l_steps` (how many there are).

    Other callbacks may come before or after it. At the end of an epoch they meet the
    compressed model, if Keras knows the number of batches in an epoch; in the first epoch
    of a generator of unknown length, only those after this one do.

    Args:
        tasks: A compression (over all default kernels jointly), a `Task`, or a list
            of these.
        mu: `"auto"` (default), a schedule such as `Exponential(9e-5, 1.1)` or
            `Geometric(1e-3, 1e-1)`, a function of the L step's index, or a sequence.
            μ must be positive and grow.
        steps: Int ≥ 1 or `None` (default). The number of L steps. `None`: as many as
            the epochs that `fit` is given hold, or as `mu` has elements.
        epochs_per_step: Float > 0, default 0.25: the length of an L step in epochs. A
            C step runs where an L step ends, at the next boundary between executions.
        first_step_epochs: Float > 0 or `None` (default, as the others): the length of
            the first L step in epochs.
        multipliers: Bool, default `True`. `False`: the plain quadratic penalty, which
            fails at low budgets.
        limit_learning_rate: Bool, default `True`: holds the learning rate at
            $\min(\eta, 1/\mu)$ in each L step.
        reset_optimizer: Bool, default `False`: a fresh optimizer state at each L step,
            as with the paper's L steps of many epochs.
        tolerance: Float ≥ 0, default 0: training stops once the gap is below it.
        backup_dir: Path or `None` (default): a directory of its own in which to keep, at
            the end of each epoch, what a `fit` that was cut off needs to go on, beside
            `keras.callbacks.BackupAndRestore`. Removed when training ends.

    Attributes:
        epochs: Int, the number of epochs to pass to `fit`: what `steps` need, else 20.
        gap: Float, the latest gap.
        density: Float, the latest density.
        multipliers: Bool, as given.

    Raises:
        TypeError: If an argument is of another type than described.
        ValueError: If an argument is out of range; in `fit`, if a task does not fit the
            model, its `train_step` leaves out the penalty, or an L step diverges. The model
            then holds the last compressed weights, all finite.

    Example:

    ```python
    compress = lc_keras.LearningCompression(lc_keras.L0Constraint(keep=0.05))
    model.fit(train, validation_data=valid, epochs=compress.epochs, callbacks=[compress])
    ```
    """

    def __init__(
        self,
        tasks,
        mu="auto",
        steps=None,
        epochs_per_step=0.25,
        first_step_epochs=None,
        multipliers=True,
        limit_learning_rate=True,
        reset_optimizer=False,
        tolerance=0.0,
        backup_dir=None,
    ):
        super().__init__()
        self.tasks = as_tasks(tasks)
        self.mu = mu
        if steps is None and isinstance(mu, (list, tuple, np.ndarray)):
            steps = len(mu) or None
        if steps is not None and (isinstance(steps, bool) or steps != int(steps) or steps < 1):
            raise ValueError(f"Expected `steps` to be a whole number ≥ 1 or None. Received: steps={steps}")
        self.steps = None if steps is None else int(steps)
        self.epochs_per_step = schedules.positive("epochs_per_step", epochs_per_step)
        self.first_step_epochs = (
            self.epochs_per_step
            if first_step_epochs is None
            else schedules.positive("first_step_epochs", first_step_epochs)
        )
        self.multipliers = bool(multipliers)
        self.limit_learning_rate = bool(limit_learning_rate)
        self.reset_optimizer = bool(reset_optimizer)
        if not tolerance >= 0:
            raise ValueError(f"Expected `tolerance` to be a number ≥ 0. Received: tolerance={tolerance}")
        self.tolerance = float(tolerance)
        self.backup_dir = backup_dir
        self._is_automatic = isinstance(mu, str) and mu == "auto"
        if not self._is_automatic:
            schedules.values(mu, self.steps or 2)
        self.gap = self.density = math.nan
        self._lagrangian = None

    @property
    def epochs(self) -> int:
        if self.steps is None:
            return _SUGGESTED_EPOCHS
        return math.ceil(self._end(self.steps - 1) - 1e-9)

    def on_train_begin(self, logs=None):
        model = self.model
        Guard.dismiss_other(model, self.params)
        self._lagrangian = lagrangian = Lagrangian(bind_tasks(self.tasks, model), self.multipliers)
        self._others = Snapshot(model, lagrangian.variables)
        self._rate = LearningRateLimit(*optimizers_of(model), variables=lagrangian.variables)
        self._backup = None if self.backup_dir is None else Backup(self.backup_dir, lagrangian)
        self._batches = self.params.get("steps")
        self._first_epoch = self._schedule = None
        self._step, self._mu = 0, math.nan
        self._finished = self._is_pulled = False
        model.train_function = Guard(
            model, self.params, self._execute, self._abandon, self._detach
        )

    def on_epoch_begin(self, epoch, logs=None):
        with self._leaving_model_usable():
            if self._first_epoch is None:
                self._begin(epoch)
            self._epoch = epoch - self._first_epoch
            self._batch = 0
            self._lagrangian.show_training()

    def on_train_batch_begin(self, batch, logs=None):
        with self._leaving_model_usable():
            self._batch = batch
            if self._batches:
                self._advance(batch)
            self._logs.update(mu=self._mu, l_step=self._running + 1)

    def on_test_begin(self, logs=None):
        if self._lagrangian is not None:
            self._end_epoch()

    def on_epoch_end(self, epoch, logs=None):
        self._end_epoch()
        if logs is not None:
            with self._leaving_model_usable():
                if math.isnan(logs.get("loss", 0.0)):
                    self._diverge("the loss is NaN")
            logs.update(self._logs)
        if self._backup:
            self._backup.save(epoch, self._place())

    def on_train_end(self, logs=None):
        lagrangian = self._lagrangian
        if self._backup:
            self._backup.delete()
        if self._first_epoch is not None:
            # Averaged weights, which Keras has just put in, are not compressed.
            if getattr(inner_optimizer(self.model.optimizer), "use_ema", False):
                lagrangian.project(self._mu)
            if not self._finished:
                self._warn("Training stopped")
        self._detach()

    @property
    def _running(self) -> int:
        """The index of the running L step, or of the last one if all are done."""
        return min(self._step, self._steps - 1)

    def _end(self, step) -> float:
        """The position, in epochs, where an L step ends."""
        return self.first_step_epochs + step * self.epochs_per_step

    def _ended(self, position) -> int:
        """How many L steps end up to a position, in epochs."""
        slack = 0.5 / self._batches if self._batches else 1e-9
        step = self._step
        while step < self._steps and self._end(step) <= position + slack:
            step += 1
        # Whatever runs when `fit` ends, ends there.
        cut_off = step == self._step < self._steps and self._epochs <= position + slack
        return step + cut_off

    def _step_at(self, batch) -> int:
        """The L step of the execution that begins with a batch of this epoch.

        If several end in it, it is the last of them; after the last one, `steps`.
        """
        position = self._epoch + batch / self._batches
        executed = min(self.model.steps_per_execution, self._batches - batch % self._batches)
        return max(self._ended(position), self._ended(position + executed / self._batches) - 1)

    def _begin(self, epoch):
        saved = self._backup.restore(epoch - 1, self._place()) if self._backup and epoch > 0 else None
        first_epoch = int(saved["first_epoch"]) if saved else epoch
        epochs = self.params["epochs"] - first_epoch
        steps = self.steps
        if steps is None:
            steps = 1 + max(0, math.ceil((epochs - self.first_step_epochs) / self.epochs_per_step - 1e-9))
        elif epochs < self.epochs:
            warnings.warn(
                f"{steps} L steps need {self.epochs} epochs. Received: {epochs} epochs, after "
                "which the model is compressed at an early stage of the schedule.",
                stacklevel=2,
            )
        shortest = min(self.epochs_per_step, self.first_step_epochs) * (self._batches or math.inf)
        if self.model.steps_per_execution > shortest:
            warnings.warn(
                f"An L step of {shortest:g} batches is shorter than steps_per_execution="
                f"{self.model.steps_per_execution}: L steps that end in one execution share a C step.",
                stacklevel=2,
            )
        self._epochs = epochs
        self._steps = steps
        self._schedule = (
            schedules.Automatic(steps) if self._is_automatic else schedules.values(self.mu, steps)
        )
        self._epoch = epoch - first_epoch
        self._rate.look_ahead((epochs - self._epoch) * (self._batches or _UNKNOWN_BATCHES))
        if saved:
            self._step, self._mu = int(saved["step"]), saved["mu"]
            self.gap, self.density = saved["gap"], saved["density"]
            if self._is_automatic:
                self._schedule.state = saved["boost"], saved["first_rate"], saved["previous"]
        else:
            self._check_others()
            self._step = self._step_at(0) if self._batches else 0
            self._mu = self._mu_of(self._step)
            self._check(self._lagrangian.direct_compression(self._mu))
        self._first_epoch = first_epoch
        self._limit_rate()
        self._logs = {"gap": self.gap, "density": self.density, "l_steps": steps}

    def _place(self) -> dict:
        """Where the run is, for the backup."""
        automatic = self._schedule.state if self._is_automatic and self._schedule else (0.0, 0.0, 0.0)
        return {
            "first_epoch": self._first_epoch or 0,
            "step": self._step,
            "mu": self._mu,
            "gap": self.gap,
            "density": self.density,
            **dict(zip(("boost", "first_rate", "previous"), automatic, strict=True)),
        }

    def _mu_of(self, step) -> float:
        if not self._is_automatic:
            return self._schedule[step]
        batches = self._epochs * (self._batches or _UNKNOWN_BATCHES)
        return self._schedule(step, self._rate.effective(), batches, self.gap, self._rate.guessed)

    def _execute(self, train_function, iterator):
        """Runs an execution of the L step, and what is due if it is the last of the epoch."""
        # Keras runs a batch more after it was told to stop.
        if not self._finished:
            with self._lagrangian.pulling(), self._rate.applied():
                self._metrics = train_function(iterator)
            if not (self._is_pulled or self.model.run_eagerly):
                self._check_pull()
            if self._batch + self.model.steps_per_execution >= (self._batches or math.inf):
                self._end_epoch()
        return {**self._metrics, **self._logs} if isinstance(self._metrics, dict) else self._metrics

    def _advance(self, batch):
        """Runs the C step that is due before a batch, if one is."""
        step = self._step_at(batch)
        if step > self._step and not self._finished:
            self._c_step(step)

    def _c_step(self, next_step):
        if not self._is_pulled:
            self._check_pull()
        self._check_others()
        next_mu = self._mu_of(next_step) if next_step < self._steps else self._mu
        self._check(self._lagrangian.c_step(self._mu, next_mu))
        self._others.save()
        self._step, self._mu = next_step, next_mu
        self._logs.update(gap=self.gap, density=self.density)
        self._finished = self._step == self._steps or self.gap < self.tolerance
        if self._finished:
            self.model.stop_training = True
        else:
            self._limit_rate()
            if self.reset_optimizer:
                self._reset_optimizers()

    def _check_pull(self):
        lagrangian = self._lagrangian
        free = [
            v.path
            for v, penalty in zip(lagrangian.variables, lagrangian.penalties, strict=True)
            if not penalty.pulls
        ]
        if free:
            more = f" and {len(free) - 1} more" if len(free) > 1 else ""
            raise ValueError(
                "The training step of the model leaves out `model.losses`, where the penalty of the "
                f"L step is, for {free[0]}{more}. Expected a `train_step` that calls `compute_loss` of "
                "`keras.Model`, or adds the `losses` of the model, or of the part that holds these "
                "weights, to the loss whose gradient trains them; or a `Task` that leaves them out."
            )
        self._is_pulled = True

    def _check_others(self):
        bad = self._others.not_finite()
        if bad:
            self._diverge(f"NaN or infinite values in {', '.join(v.path for v in bad)}")

    def _check(self, result):
        if bad := self._lagrangian.not_finite(result):
            self._diverge(f"NaN or infinite values in {', '.join(bad)}")
        self.gap = float(result.gap)
        self.density = float(result.density)

    def _diverge(self, why):
        if self._first_epoch is None:
            raise ValueError(f"Expected a model with finite weights. Received: {why}.")
        raise ValueError(
            f"L step {self._running + 1} of {self._steps} diverged: {why}. The model holds the "
            "compressed weights of the last C step. Try a lower learning rate, or gradient clipping."
        )

    def _reset_optimizers(self):
        for optimizer in self._rate.updating:
            reset_state(optimizer)

    def _limit_rate(self):
        if self.limit_learning_rate:
            self._rate.set(1 / self._mu)

    def _end_epoch(self):
        """Leaves the compressed weights in the model until the next epoch begins."""
        if self._lagrangian.compressed:
            return
        with self._leaving_model_usable():
            ended = self._batch + self.model.steps_per_execution
            if self._batches is None:
                # The batch that began and found no data.
                self._batches = ended = self._batch
            self._advance(min(ended, self._batches))
            self._lagrangian.show_compressed()

    @contextlib.contextmanager
    def _leaving_model_usable(self):
        try:
            yield
        except BaseException as error:
            self._abandon(error)
            raise

    def _abandon(self, error):
        """Compresses the model as it is, or goes back to where it was finite."""
        lagrangian = self._lagrangian
        if lagrangian is None:
            return
        if self._first_epoch is not None:
            usable = not self._others.not_finite()
            if usable and not lagrangian.compressed:
                usable = bool(lagrangian.c_step(self._mu, self._mu).finite.numpy().all())
            if not usable:
                self._others.restore()
                self._reset_optimizers()
            lagrangian.show_compressed()
            self._warn(f"Training was interrupted ({type(error).__name__})")
        self._detach()

    def _detach(self):
        if self._lagrangian is None:
            return
        if isinstance(self.model.train_function, Guard):
            # The next `fit` traces anew, without the penalty.
            self.model.train_function = None
        self._lagrangian = self._others = self._rate = None

    def _warn(self, what):
        warnings.warn(
            f"{what} in L step {self._running + 1} of {self._steps}. The model holds the compressed "
            f"weights; the relative gap to the trained ones was {self.gap:.3g}, expect accuracy to "
            "suffer if it is above a few percent.",
            stacklevel=3,
        )
