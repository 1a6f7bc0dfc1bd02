"""The Learning-Compression algorithm in the epochs of one `fit`."""

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.lagrangian import CStep, Lagrangian
from lc_keras.algorithm.shadows import Snapshot
from lc_keras.algorithm.tasks import Task, bind_tasks
from lc_keras.fit.attachment import Logs, TrainFunction
from lc_keras.fit.averages import Averages
from lc_keras.fit.checkpoints import Checkpoint, Facts
from lc_keras.fit.mu import Mu, Pace
from lc_keras.fit.optimizers import LearningRateLimit, optimizers_of
from lc_keras.fit.plan import Plan
from lc_keras.fit.run_state import RunState, check_same


@dataclass(frozen=True)
class Options:
    """How to run: the arguments of `LearningCompression` that go by the same names."""

    mu: Mu
    steps: int | None
    epochs_per_step: float | None
    first_step_epochs: float | None
    multipliers: bool
    limit_learning_rate: bool
    reset_optimizer: bool
    tolerance: float

    def plan(self, epochs: float = math.inf, batches: int | None = None, execution: int = 1) -> Plan:
        return Plan.of(self.steps, self.epochs_per_step, self.first_step_epochs, epochs, batches, execution)


@dataclass
class Place:
    """Where a run is, and what its latest C step found.

    Attributes:
        first_epoch: Int, the epoch in which the first L step began, or `None` before it.
        step: Int, how many L steps have ended.
        mu: Float, μ of the running L step.
        gap: Float.
        density: Float.
        finished: Bool, whether the last C step has run.
    """

    first_epoch: int | None = None
    step: int = 0
    mu: float = math.nan
    gap: float = math.nan
    density: float = math.nan
    finished: bool = False


class Run:
    """The L steps and C steps of one `fit`, and which weights the model holds.

    The model holds w while it trains, and θ from the end of an epoch to the next batch. Where
    a method raises, `abandon` leaves the model usable.

    Args:
        model: `keras.Model`, in `fit`.
        tasks: Sequence of `Task`.
        options: `Options`.
        params: The `params` that Keras gave the callbacks of this `fit`.

    Attributes:
        lagrangian: `Lagrangian` of the compressed weights.
        place: `Place`.
        logs: Dict of floats, what the epoch's logs say of the run.
        is_traced_anew: Bool, whether the train function is one whose pull is still to be checked.
    """

    def __init__(
        self, model: keras.Model, tasks: Sequence[Task], options: Options, params: dict[str, int]
    ) -> None:
        self._model = model
        self._options = options
        self._params = params
        shared = bind_tasks(tasks, model)
        with model.distribute_strategy.scope():
            self.lagrangian = Lagrangian(shared, options.multipliers)
            self._rate = LearningRateLimit(*optimizers_of(model), variables=self.lagrangian.variables)
            if options.reset_optimizer:
                self._rate.check_reset()
        self._averages = Averages(model.optimizer, self.lagrangian)
        self._others = Snapshot(model, self.lagrangian.variables)
        self.place = Place()
        self.is_traced_anew = True

    def state(self) -> RunState:
        """The variables that a restart needs."""
        return RunState(self._model, self.lagrangian, self._averages)

    def facts(self) -> Facts:
        """What a checkpoint of the `state` says for `resume`."""
        place = {
            **dataclasses.asdict(self.place),
            "batches": self._plan.batches,
            "stopped": bool(self._model.stop_training),
            "ahead": self._rate.ahead,
            "automatic": self._pace.state,
            "shown": self.lagrangian.shown.tolist(),
        }
        return {"run": self.state().description(), "settings": self._settings(), "place": place}

    def resume(self, saved: Checkpoint) -> bool:
        """Goes back to the last epoch that was completed.

        Args:
            saved: `Checkpoint` of the `facts` and the `state` of another run.

        Returns:
            Bool, whether training was over.

        Raises:
            ValueError: If it is of another model or another run. No value is changed then.
        """
        place = saved.facts["place"]
        self._lay_out(place["first_epoch"])
        check_same(self._settings(), saved.facts["settings"], saved)
        self.state().restore(saved, saved.facts["run"])
        self._others.save()
        self.place = Place(**{field.name: place[field.name] for field in dataclasses.fields(Place)})
        self._plan.batches = place["batches"]
        self._rate.ahead, self._pace.state = place["ahead"], place["automatic"]
        self.lagrangian.shown = np.array(place["shown"])
        self._start()
        return self.place.finished or place["stopped"]

    def begin_epoch(self, epoch: int) -> None:
        if self.place.first_epoch is None:
            self._begin(epoch)
        self._epoch = epoch - (self.place.first_epoch or 0)
        self._batch = 0

    def begin_batch(self, batch: int) -> None:
        self._batch = batch
        if self.lagrangian.compressed:
            # Now that SwapEMAWeights, if it is there, has put the weights back.
            self._show_training()
        if self._plan.batches:
            self._advance(batch)

    def execute(self, train_function: TrainFunction, iterator: Iterator[object]) -> Logs:
        """Runs an execution of the L step, and what is due if it is the last of the epoch."""
        if self.place.finished:
            # Keras runs a batch more after it was told to stop.
            self.end_epoch()
        else:
            try:
                limited = self._options.limit_learning_rate
                limit = self._rate.applied() if limited else contextlib.nullcontext()
                with self.lagrangian.pulling(), limit:
                    self._metrics = train_function(iterator)
                # Not where a batch begins: where the length is unknown, Keras begins one that has no data.
                self.logs.update(mu=self.place.mu, l_step=self._running + 1)
            except (StopIteration, tf.errors.OutOfRangeError):
                self.end_epoch(out_of_data=True)
                raise
            if self.is_traced_anew and not self._model.run_eagerly:
                self._check_pull()
            if self._batch + self._model.steps_per_execution >= (self._plan.batches or math.inf):
                self.end_epoch()
        if not isinstance(self._metrics, dict):
            return self._metrics
        if hidden := self._metrics.keys() & self.logs.keys():
            names = ", ".join(sorted(hidden))
            warnings.warn(f"In the logs, the model's metrics {names} are hidden by LC's.", stacklevel=2)
        return {**self._metrics, **self.logs}

    def end_epoch(self, out_of_data: bool = False) -> None:
        """Leaves the compressed weights in the model until the next epoch begins."""
        if self.lagrangian.compressed:
            return
        ended = self._batch + self._model.steps_per_execution
        if self._plan.batches is None:
            # Where data ran out, a batch began that found none.
            self._plan.batches = ended = self._batch if out_of_data else ended
        if not self._plan.batches:
            raise ValueError("Expected data to train on. Received: an epoch without batches.")
        self._advance(min(ended, self._plan.batches))
        self._show_compressed()

    def check_loss(self, loss: float) -> None:
        if np.isnan(loss).any():
            self._diverge("the loss is NaN")

    def abandon(self, error: BaseException) -> bool:
        """Compresses the model as it is, or goes back to where it was finite.

        Args:
            error: The exception that ended the run.

        Returns:
            Bool, whether the model was finite.
        """
        if self.place.first_epoch is None:
            return True
        finite = not self._others.not_finite()
        if finite and not self.lagrangian.compressed:
            finite = bool(self.lagrangian.c_step(self.place.mu, self.place.mu).finite.numpy().all())
        if not finite:
            self._others.restore()
        self._show_compressed()
        self.warn_of_end(f"Training was interrupted ({type(error).__name__})")
        return finite

    def release(self) -> None:
        """Ends the pull, wherever it was traced, and the limit of the learning rate."""
        self.lagrangian.release()
        self._rate.set(math.inf)

    def warn_of_end(self, what: str) -> None:
        warnings.warn(
            f"{what} in L step {self._running + 1} of {self._plan.steps}. The model holds the compressed "
            f"weights; the relative gap to the trained ones was {self.place.gap:.3g}, expect accuracy to "
            "suffer if it is above a few percent.",
            stacklevel=4,
        )

    @property
    def _running(self) -> int:
        """The index of the running L step, or of the last one if all are done."""
        return min(self.place.step, self._plan.steps - 1)

    def _settings(self) -> Facts:
        """What a run and its restart have in common."""
        same = ("multipliers", "limit_learning_rate", "reset_optimizer", "tolerance")
        return {
            "epochs": self._params["epochs"],
            "batches in an epoch": self._params.get("steps"),
            "steps_per_execution": self._model.steps_per_execution,
            "L steps": self._plan.steps,
            "mu": self._pace.given,
            "epochs_per_step": self._plan.length,
            "first_step_epochs": self._plan.first_length,
            **{name: getattr(self._options, name) for name in same},
        }

    def _lay_out(self, first_epoch: int) -> None:
        epochs, batches = self._params["epochs"] - first_epoch, self._params.get("steps")
        self._plan = self._options.plan(epochs, batches, self._model.steps_per_execution)
        self._pace = Pace(self._options.mu, self._plan, self.lagrangian, self._rate)

    def _begin(self, epoch: int) -> None:
        self._lay_out(epoch)
        place, plan, execution = self.place, self._plan, self._model.steps_per_execution
        for caveat in plan.caveats(self._options.steps is not None, execution):
            warnings.warn(caveat, stacklevel=4)
        self._pace.look_ahead()
        self._check_others()
        place.step = plan.step_at(0, 0, 0, execution) if plan.batches else 0
        place.mu = self._pace.mu(place.step, place.gap)
        self._note(self.lagrangian.direct_compression(place.mu))
        place.first_epoch = epoch
        self._start()

    def _start(self) -> None:
        self._limit_rate()
        self.logs = {"gap": self.place.gap, "density": self.place.density, "l_steps": self._plan.steps}

    def _advance(self, batch: int) -> None:
        """Runs the C step that is due before a batch, if one is."""
        step = self._plan.step_at(self.place.step, self._epoch, batch, self._model.steps_per_execution)
        if step > self.place.step and not self.place.finished:
            self._c_step(step)

    def _c_step(self, next_step: int) -> None:
        if self.is_traced_anew:
            self._check_pull()
        self._check_others()
        place, last = self.place, next_step == self._plan.steps
        next_mu = place.mu if last else self._pace.mu(next_step, place.gap)
        scales, portions = self._pace.scales(next_step), self._pace.portions(place.step, place.mu)
        self._note(self.lagrangian.c_step(place.mu, next_mu, scales, portions))
        self._others.save()
        place.step, place.mu = next_step, next_mu
        self.logs.update(gap=place.gap, density=place.density)
        place.finished = last or place.gap < self._options.tolerance
        if place.finished:
            self._model.stop_training = True
        else:
            self._limit_rate()
            if self._options.reset_optimizer:
                self._rate.reset_optimizers()

    def _check_pull(self) -> None:
        self.lagrangian.check_pulls()
        self.is_traced_anew = False

    def _check_others(self) -> None:
        if bad := self._others.not_finite():
            self._diverge(f"NaN or infinite values in {', '.join(v.path for v in bad)}")

    def _note(self, found: CStep) -> None:
        if bad := self.lagrangian.not_finite(found):
            self._diverge(f"NaN or infinite values in {', '.join(bad)}")
        self.place.gap, self.place.density = float(found.gap), float(found.density)

    def _diverge(self, why: str) -> NoReturn:
        if self.place.first_epoch is None:
            raise ValueError(f"Expected a model with finite weights. Received: {why}.")
        raise ValueError(
            f"L step {self._running + 1} of {self._plan.steps} diverged: {why}. The model holds the "
            "compressed weights of the last C step. Try a lower learning rate, or gradient clipping."
        )

    def _limit_rate(self) -> None:
        if self._options.limit_learning_rate:
            self._rate.set(1 / max(float(mu.numpy()) for mu in self.lagrangian.mus))

    def _show_training(self) -> None:
        if self.lagrangian.is_replaced(swapped=bool(self._averages.trained)):
            warnings.warn(
                "Between epochs other weights were put in the place of the compressed ones. Training goes on "
                "from these, with multipliers that begin anew.",
                stacklevel=4,
            )
            self._note(self.lagrangian.begin_anew(self.place.mu))
        self.lagrangian.show_training()
        self._averages.show_training()

    def _show_compressed(self) -> None:
        if not self.lagrangian.compressed:
            self.lagrangian.show_compressed()
            self._averages.show_compressed(self.place.mu)
