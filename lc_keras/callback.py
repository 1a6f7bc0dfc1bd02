"""The Learning-Compression algorithm inside `fit`."""

import contextlib
import math
import os
import warnings
from collections.abc import Iterator
from typing import NoReturn

import keras
import numpy as np
import tensorflow as tf

from lc_keras import schedules
from lc_keras.arguments import non_negative, positive, switch, whole
from lc_keras.averages import Averages
from lc_keras.checkpoints import Checkpoint, Checkpoints, Facts
from lc_keras.guard import NOT_ALONE, Guard, Logs, Snapshot, TrainFunction, is_made_by_keras
from lc_keras.lagrangian import CStep, Lagrangian
from lc_keras.late_changes import compress_again, if_changed_later
from lc_keras.optimizers import LearningRateLimit, begin_anew, optimizers_of
from lc_keras.pace import Mu, Pace, is_automatic
from lc_keras.plan import Plan
from lc_keras.restarts import FirstEpoch, Restarts
from lc_keras.run_state import RunState, check_same
from lc_keras.tasks import Tasks, as_tasks, bind_tasks

_SUGGESTED_EPOCHS = 20
_SETTINGS = ("multipliers", "limit_learning_rate", "reset_optimizer", "tolerance")


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

    Other callbacks may come before or after it: at the end of an epoch they meet the
    compressed model. Weights that they put into it between epochs are trained on; what they
    put there as `fit` ends is compressed, too, where that breaks a budget. Where the optimizer
    keeps averages of the weights (`use_ema`), it is compressed averages that
    `keras.callbacks.SwapEMAWeights` puts into it.

    A `constraint` of the weights' own holds for θ, too, where the cost is an ℓ0 or N:M one.

    Args:
        tasks: A compression (over all default kernels jointly), a `Task`, or a list
            of these.
        mu: `"auto"` (default), a schedule such as `Exponential(9e-5, 1.1)` or
            `Geometric(1e-3, 1e-1)`, a function of the L step's index, or a sequence.
            μ must be positive and grow.
        steps: Int ≥ 1 or `None` (default). The number of L steps. `None`: as many as
            the epochs that `fit` is given hold, or as `mu` has elements.
        epochs_per_step: Float > 0 or `None` (default): the length of an L step in epochs. A
            C step runs where an L step ends, at the next boundary between executions; in the first
            epoch none does if Keras does not know how many batches an epoch has. `None`:
            a quarter of an epoch; where that makes fewer than 80 L steps and `steps` is not
            given, as short as makes 80, but no shorter than 15 batches.
        first_step_epochs: Float > 0 or `None` (default, as the others): the length of
            the first L step in epochs.
        multipliers: Bool, default `True`. `False`: the plain quadratic penalty, which
            fails at low budgets. With `mu="auto"` those of neurons move as far in each C step
            as the L step had time to follow.
        limit_learning_rate: Bool, default `True`: holds the learning rate at
            $\min(\eta, 1/\mu)$ in each L step. `False` where a `train_step` sets the rate itself.
        reset_optimizer: Bool, default `False`: a fresh optimizer state at each L step,
            as with the paper's L steps of many epochs. Of Adam and its kind only the
            momentum begins afresh: its second moment is corrected for its start but once.
        tolerance: Float ≥ 0, default 0: training stops once the gap is below it.
        checkpoint_dir: Path or `None` (default): a directory in which to keep, at the end
            of each epoch, all that a `fit` that was cut off needs: the model, its optimizer,
            θ, λ, μ and the place in the schedule. The same script started again goes on
            after the last epoch that was completed. Removed when training ends.

    Attributes:
        epochs: Int, the number of epochs to pass to `fit`: what `steps` need, else 20.
        gap: Float, the latest gap.
        density: Float, the latest density.
        multipliers: Bool, as given.

    Raises:
        TypeError: If an argument is of another type than described.
        ValueError: If an argument is out of range; in `fit`, if a task does not fit the
            model, its `train_step` is a `tf.function` or leaves out the penalty, there is no
            epoch, another callback trains the model meanwhile, or an L step diverges. The
            model then holds the last compressed weights, all finite.

    Example:

    ```python
    compress = lc_keras.LearningCompression(lc_keras.L0Constraint(keep=0.05))
    model.fit(train, validation_data=valid, epochs=compress.epochs, callbacks=[compress])
    ```
    """

    def __init__(
        self,
        tasks: Tasks,
        mu: Mu = "auto",
        steps: int | None = None,
        epochs_per_step: float | None = None,
        first_step_epochs: float | None = None,
        multipliers: bool = True,
        limit_learning_rate: bool = True,
        reset_optimizer: bool = False,
        tolerance: float = 0.0,
        checkpoint_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.tasks = as_tasks(tasks)
        self.mu = mu
        if steps is None and (given := schedules.sequence(mu)) is not None:
            steps = len(given) or None
        self.steps = None if steps is None else whole("steps", steps)
        self.epochs_per_step = _positive_or_none("epochs_per_step", epochs_per_step)
        self.first_step_epochs = _positive_or_none("first_step_epochs", first_step_epochs)
        self.multipliers = switch("multipliers", multipliers)
        self.limit_learning_rate = switch("limit_learning_rate", limit_learning_rate)
        self.reset_optimizer = switch("reset_optimizer", reset_optimizer)
        self.tolerance = non_negative("tolerance", tolerance)
        self.checkpoint_dir = checkpoint_dir
        self._checkpoints = None if checkpoint_dir is None else Checkpoints(checkpoint_dir)
        if not is_automatic(mu):
            schedules.values(mu, self.steps or 2)
        self.gap = self.density = math.nan
        self._lagrangian: Lagrangian = None  # type: ignore[assignment]  # there while `fit` runs

    @property
    def epochs(self) -> int:
        if self.steps is None:
            return _SUGGESTED_EPOCHS
        return Plan.of(self.steps, self.epochs_per_step, self.first_step_epochs).epochs_needed

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        # Keras would begin every later `fit` where an earlier one was resumed.
        self._initial_epoch = FirstEpoch(model)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        model = self.model
        Guard.dismiss_other(model, self.params)
        shared = bind_tasks(self.tasks, model)
        with model.distribute_strategy.scope():
            lagrangian = Lagrangian(shared, self.multipliers)
            self._rate = LearningRateLimit(*optimizers_of(model), variables=lagrangian.variables)
            if self.reset_optimizer:
                self._rate.check_reset()
        self._first_epoch: int | None = None
        self._step, self._mu, self.gap, self.density = 0, math.nan, math.nan, math.nan
        self._finished = False
        self._initial_epoch.check()
        self._averages = Averages(model.optimizer, lagrangian)
        self._restarts: Restarts | None = None
        if self._checkpoints:
            state = RunState(model, lagrangian, self._averages)
            self._restarts = Restarts(self._checkpoints, state, model)
            if saved := self._restarts.latest():
                self._resume(self._restarts, saved, lagrangian)
        self._lagrangian = lagrangian
        self._others = Snapshot(model, lagrangian.variables)
        if self._first_epoch is not None:
            self._start()
        self._guard()

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._check_alone()
        with self._leaving_model_usable():
            self._initial_epoch.check()
            # Keras has read it; were it still there, an interruption would leave it to the next `fit`.
            self._initial_epoch.clear()
            if self._first_epoch is None:
                self._begin(epoch)
            self._epoch = epoch - (self._first_epoch or 0)
            self._batch = 0

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        self._check_alone()
        with self._leaving_model_usable():
            if is_made_by_keras(self.model.train_function):
                # Another callback had it made anew, as after a change of what is trainable.
                self._guard()
            self._batch = batch
            if self._lagrangian.compressed:
                # Now that SwapEMAWeights, if it is there, has put the weights back.
                self._show_training()
            if self._plan.batches:
                self._advance(batch)

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        if self._lagrangian is not None:
            self._end_epoch()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._check_alone()
        self._end_epoch()
        if logs is not None:
            with self._leaving_model_usable():
                if np.isnan(logs.get("loss", 0.0)).any():
                    self._diverge("the loss is NaN")
            logs.update(self._logs)
        if self._restarts:
            self._restarts.save(epoch + 1, self._settings(), self._place())

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        if self._restarts:
            self._restarts.delete()
        self._check_alone()
        if self._first_epoch is None:
            self._detach()
            raise ValueError(
                "Expected at least one epoch to train and compress in. Received: `fit` without any, such as "
                "one whose `initial_epoch` is not below `epochs`. The model is as it was."
            )
        if not self._finished:
            self._warn("Training stopped")
        replaced, variables = self._lagrangian.is_replaced(), self._lagrangian.variables
        self._detach()
        if replaced:
            self._compress_again()
        if_changed_later(self, variables, self._compress_again)

    @property
    def _running(self) -> int:
        """The index of the running L step, or of the last one if all are done."""
        return min(self._step, self._plan.steps - 1)

    def _guard(self) -> None:
        self._is_pulled = False
        self.model.train_function = Guard(
            self.model, self.params, self._execute, self._abandon, self._detach
        )

    def _check_alone(self) -> None:
        if self._lagrangian is None:
            raise ValueError(NOT_ALONE)

    def _begin(self, epoch: int) -> None:
        lagrangian = self._lagrangian
        plan = self._plan = self._lay_out(epoch)
        pace = self._pace = Pace(self.mu, plan, lagrangian, self._rate)
        for caveat in plan.caveats(self.steps is not None, self.model.steps_per_execution):
            warnings.warn(caveat, stacklevel=2)
        pace.look_ahead()
        self._check_others()
        self._step = plan.step_at(0, 0, 0, self.model.steps_per_execution) if plan.batches else 0
        self._mu = pace.mu(self._step, self.gap)
        self._check(lagrangian.direct_compression(self._mu))
        self._first_epoch = epoch
        self._start()

    def _lay_out(self, first_epoch: int) -> Plan:
        return Plan.of(
            self.steps,
            self.epochs_per_step,
            self.first_step_epochs,
            self.params["epochs"] - first_epoch,
            self.params.get("steps"),
            self.model.steps_per_execution,
        )

    def _start(self) -> None:
        self._limit_rate()
        self._logs = {"gap": self.gap, "density": self.density, "l_steps": self._plan.steps}

    def _resume(self, restarts: Restarts, saved: Checkpoint, lagrangian: Lagrangian) -> None:
        """Goes back to the last epoch that was completed."""
        place = saved.facts["place"]
        self._plan = self._lay_out(place["first_epoch"])
        self._pace = Pace(self.mu, self._plan, lagrangian, self._rate)
        check_same(self._settings(), saved.facts["settings"], saved)
        restarts.restore(saved)
        self._first_epoch = place["first_epoch"]
        self._step, self._mu, self._finished = place["step"], place["mu"], place["finished"]
        self.gap, self.density, self._plan.batches = place["gap"], place["density"], place["batches"]
        self._rate.ahead, self._pace.state = place["ahead"], place["automatic"]
        lagrangian.shown = np.array(place["shown"])
        # As `keras.callbacks.BackupAndRestore` does.
        over = self._finished or place["stopped"]
        self._initial_epoch.set(self.params["epochs"] if over else saved.epoch)

    def _settings(self) -> Facts:
        """What a run and its restart have in common."""
        return {
            "epochs": self.params["epochs"],
            "batches in an epoch": self.params.get("steps"),
            "steps_per_execution": self.model.steps_per_execution,
            "L steps": self._plan.steps,
            "mu": self._pace.given,
            "epochs_per_step": self._plan.length,
            "first_step_epochs": self._plan.first_length,
            **{name: getattr(self, name) for name in _SETTINGS},
        }

    def _place(self) -> Facts:
        """Where the run is."""
        return {
            "first_epoch": self._first_epoch,
            "step": self._step,
            "mu": self._mu,
            "gap": self.gap,
            "density": self.density,
            "batches": self._plan.batches,
            "finished": self._finished,
            "stopped": bool(self.model.stop_training),
            "ahead": self._rate.ahead,
            "automatic": self._pace.state,
            "shown": self._lagrangian.shown.tolist(),
        }

    def _execute(self, train_function: TrainFunction, iterator: Iterator[object]) -> Logs:
        """Runs an execution of the L step, and what is due if it is the last of the epoch."""
        if self._finished:
            # Keras runs a batch more after it was told to stop.
            self._end_epoch()
        else:
            try:
                limit = self._rate.applied() if self.limit_learning_rate else contextlib.nullcontext()
                with self._lagrangian.pulling(), limit:
                    self._metrics = train_function(iterator)
                # Not where a batch begins: where the length is unknown, Keras begins one that has no data.
                self._logs.update(mu=self._mu, l_step=self._running + 1)
            except (StopIteration, tf.errors.OutOfRangeError):
                self._end_epoch(out_of_data=True)
                raise
            if not (self._is_pulled or self.model.run_eagerly):
                self._check_pull()
            if self._batch + self.model.steps_per_execution >= (self._plan.batches or math.inf):
                self._end_epoch()
        if not isinstance(self._metrics, dict):
            return self._metrics
        if hidden := self._metrics.keys() & self._logs.keys():
            names = ", ".join(sorted(hidden))
            warnings.warn(f"In the logs, the model's metrics {names} are hidden by LC's.", stacklevel=2)
        return {**self._metrics, **self._logs}

    def _advance(self, batch: int) -> None:
        """Runs the C step that is due before a batch, if one is."""
        step = self._plan.step_at(self._step, self._epoch, batch, self.model.steps_per_execution)
        if step > self._step and not self._finished:
            self._c_step(step)

    def _c_step(self, next_step: int) -> None:
        if not self._is_pulled:
            self._check_pull()
        self._check_others()
        last = next_step == self._plan.steps
        next_mu = self._mu if last else self._pace.mu(next_step, self.gap)
        scales, portions = self._pace.scales(next_step), self._pace.portions(self._step, self._mu)
        self._check(self._lagrangian.c_step(self._mu, next_mu, scales, portions))
        self._others.save()
        self._step, self._mu = next_step, next_mu
        self._logs.update(gap=self.gap, density=self.density)
        self._finished = last or self.gap < self.tolerance
        if self._finished:
            self.model.stop_training = True
        else:
            self._limit_rate()
            if self.reset_optimizer:
                self._rate.reset_optimizers()

    def _check_pull(self) -> None:
        self._lagrangian.check_pulls()
        self._is_pulled = True

    def _check_others(self) -> None:
        bad = self._others.not_finite()
        if bad:
            self._diverge(f"NaN or infinite values in {', '.join(v.path for v in bad)}")

    def _check(self, result: CStep) -> None:
        if bad := self._lagrangian.not_finite(result):
            self._diverge(f"NaN or infinite values in {', '.join(bad)}")
        self.gap = float(result.gap)
        self.density = float(result.density)

    def _diverge(self, why: str) -> NoReturn:
        if self._first_epoch is None:
            raise ValueError(f"Expected a model with finite weights. Received: {why}.")
        raise ValueError(
            f"L step {self._running + 1} of {self._plan.steps} diverged: {why}. The model holds the "
            "compressed weights of the last C step. Try a lower learning rate, or gradient clipping."
        )

    def _limit_rate(self) -> None:
        if self.limit_learning_rate:
            self._rate.set(1 / max(float(mu.numpy()) for mu in self._lagrangian.mus))

    def _end_epoch(self, out_of_data: bool = False) -> None:
        """Leaves the compressed weights in the model until the next epoch begins."""
        if self._lagrangian.compressed:
            return
        with self._leaving_model_usable():
            ended = self._batch + self.model.steps_per_execution
            if self._plan.batches is None:
                # Where data ran out, a batch began that found none.
                self._plan.batches = ended = self._batch if out_of_data else ended
            if not self._plan.batches:
                raise ValueError("Expected data to train on. Received: an epoch without batches.")
            self._advance(min(ended, self._plan.batches))
            self._show_compressed()

    def _show_training(self) -> None:
        if self._lagrangian.is_replaced(swapped=bool(self._averages.trained)):
            warnings.warn(
                "Between epochs other weights were put in the place of the compressed ones. Training goes on "
                "from these, with multipliers that begin anew.",
                stacklevel=3,
            )
            self._check(self._lagrangian.begin_anew(self._mu))
        self._lagrangian.show_training()
        self._averages.show_training()

    def _show_compressed(self) -> None:
        if not self._lagrangian.compressed:
            self._lagrangian.show_compressed()
            self._averages.show_compressed(self._mu)

    @contextlib.contextmanager
    def _leaving_model_usable(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            self._abandon(error)
            raise

    def _abandon(self, error: BaseException) -> None:
        """Compresses the model as it is, or goes back to where it was finite."""
        lagrangian = self._lagrangian
        if lagrangian is None:
            return
        usable = True
        if self._first_epoch is not None:
            usable = not self._others.not_finite()
            if usable and not lagrangian.compressed:
                usable = bool(lagrangian.c_step(self._mu, self._mu).finite.numpy().all())
            if not usable:
                self._others.restore()
            self._show_compressed()
            self._warn(f"Training was interrupted ({type(error).__name__})")
        self._detach()
        if not usable:
            begin_anew(optimizers_of(self.model))

    def _compress_again(self) -> None:
        gap, self.density = compress_again(self.model, self.tasks, self._mu)
        if gap:
            warnings.warn(
                "As training ended, other weights than those of the latest C step were put into the model. "
                f"What they had beyond the budget, {gap:.0%} of their norm, was removed, and the others were "
                "not trained since: expect accuracy to suffer.",
                stacklevel=3,
            )

    def _detach(self) -> None:
        if self._lagrangian is None:
            return
        if isinstance(self.model.train_function, Guard):
            # The next `fit` traces anew, without the penalty.
            self.model.train_function = None
        if self._initial_epoch.is_set:
            self._initial_epoch.clear()
        self._lagrangian.release()
        self._rate.set(math.inf)
        # All that holds copies of weights.
        self._lagrangian = self._others = self._rate = None  # type: ignore[assignment]  # as in __init__
        self._averages = self._pace = self._restarts = None  # type: ignore[assignment]

    def _warn(self, what: str) -> None:
        warnings.warn(
            f"{what} in L step {self._running + 1} of {self._plan.steps}. The model holds the compressed "
            f"weights; the relative gap to the trained ones was {self.gap:.3g}, expect accuracy to "
            "suffer if it is above a few percent.",
            stacklevel=3,
        )


def _positive_or_none(name: str, value: float | None) -> float | None:
    return None if value is None else positive(name, value)
