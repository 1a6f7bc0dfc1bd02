"""The Learning-Compression algorithm in the epochs of one `fit`."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from lc_keras.algorithm.beside import Reach
from lc_keras.algorithm.carrying import CarryingLagrangian
from lc_keras.algorithm.lagrangian import CStep, Lagrangian
from lc_keras.algorithm.reaching import ReachingLagrangian
from lc_keras.algorithm.steps import Steps
from lc_keras.algorithm.tasks import SharedCost, bind_tasks
from lc_keras.algorithm.together import TogetherLagrangian
from lc_keras.arguments import warn
from lc_keras.fit.attachment import Logs, Run, TrainFunction
from lc_keras.fit.averages import Averages
from lc_keras.fit.checkpoints import Checkpoint, Checkpoints, Facts, Resumable
from lc_keras.fit.mu import Beside, Carrying, Pull, Scheduled, Sliding, ThroughLoss, Together, is_automatic
from lc_keras.fit.optimizers import LearningRateLimit, begin_anew, optimizers_of
from lc_keras.fit.plan import Plan
from lc_keras.fit.progress import Saved, check_same
from lc_keras.fit.statistics import Statistics

if TYPE_CHECKING:
    from lc_keras.fit.callback import LearningCompression

_SETTINGS = "multipliers", "limit_learning_rate", "reset_optimizer", "tolerance"


class CompressionRun(Run, Resumable):
    """Run the L steps and C steps of one `fit`, and choose which weights the model holds.

    The model holds w while it trains, and θ from the end of an epoch to the next batch. If
    a method raises, `abandon` leaves the model usable.

    Args:
        callback: The `LearningCompression` in `fit`, whose arguments the run follows.

    Attributes:
        first_epoch: Int, the epoch in which the first L step began, or `None` before it.
        step: Int, how many L steps have ended.
        mu: Float, μ of the running L step.
        finished: Bool, whether the last C step has run.
        stopped: Bool, whether training was told to stop.
        logs: Dict of floats: `gap`, ‖w − θ‖ / ‖w‖ at the latest C step; `density`, the fraction of the
            weights that θ keeps; and what else the logs say about the run.
    """

    held = "first_epoch", "step", "mu", "finished", "stopped", "logs"

    def __init__(self, callback: "LearningCompression") -> None:
        self._callback = callback
        self._model = model = callback.model
        self._params: dict[str, Any] = callback.params
        shared = bind_tasks(callback.tasks, model)
        self._costs = costs = [part.compression for part in shared]
        # A penalty's α is in units of the loss, so the pull is the paper's, through the loss.
        self._beside = is_automatic(callback.mu) and all(cost.has_budget for cost in costs)
        self._manners = _by_manner(shared, callback.multipliers) if self._beside else {}
        self._limits_rate = callback.limit_learning_rate and not self._beside
        with model.distribute_strategy.scope():
            self._steps = Steps(model, shared, callback.multipliers, self._lagrangian_of)
            self._lagrangian = self._steps.lagrangian
            self.shared, self.variables = self._lagrangian.shared, self._lagrangian.variables
            self._rate = LearningRateLimit(*optimizers_of(model), variables=self.variables)
            if callback.reset_optimizer:
                self._rate.check_reset()
            self.statistics = Statistics(model, self._params.get("steps"))
        self._averages = Averages(model.optimizer, self._lagrangian)
        self._saved = Saved(model, self._lagrangian, self._averages, self.statistics)
        self.first_epoch: int | None = None
        self.step = 0
        self.mu = math.nan
        self.finished = self.stopped = False
        self.logs, self.shown = {}, list[np.ndarray]()
        # Both are made when the first epoch begins; which one that is, is not known before.
        self._plan: Plan = None  # type: ignore[assignment]
        self._pull: Pull = None  # type: ignore[assignment]
        self._is_checked = False  # whether the train function was seen to pull
        self._is_underway = False  # whether a batch was trained as it should be
        self._epoch = self._batch = self._batches_since = 0
        self._metrics: Logs = {}

    def resume(self, checkpoint: Checkpoint) -> bool:
        """Go back to the last completed epoch, and return whether training was over.

        Raises:
            ValueError: If the checkpoint is of another model or another run. In that case no value is
                changed.
        """
        state = checkpoint.facts["state"]
        self._lay_out(state["run"]["first_epoch"])
        check_same(self._settings(), checkpoint.facts["settings"], checkpoint)
        self._saved.restore(checkpoint, checkpoint.facts["run"])
        for name, part in self._parts().items():
            part.load(state[name])
        self._steps.go_on()
        self.shown.append(self._lagrangian.shown)
        self._limit_rate()
        return self.finished or self.stopped

    def begin_epoch(self, epoch: int) -> None:
        if self.first_epoch is None:
            self._begin(epoch)
        self._epoch = epoch - (self.first_epoch or 0)
        self._batch = 0

    def begin_batch(self, batch: int, anew: bool) -> None:
        self._batch = batch
        if anew:
            self._lagrangian.forget_pulls()
            self._is_checked = False
        if self._lagrangian.compressed:
            # Now that SwapEMAWeights, if it is there, has put the weights back.
            self._show_training()
        if self._plan.batches:
            self._advance(batch)

    def execute(self, train_function: TrainFunction, iterator: Iterator[object]) -> Logs:
        """Run an execution of the L step, and whatever is due if it is the last of the epoch."""
        self.statistics.see(iterator)
        if self.finished:
            # Keras runs one more batch after it was told to stop.
            self.end_epoch()
        else:
            try:
                limit = self._rate.applied() if self._limits_rate else contextlib.nullcontext()
                with self._lagrangian.pulling(), limit:
                    self._metrics = train_function(iterator)
                left = (self._plan.batches or math.inf) - self._batch
                self._batches_since += min(self._model.steps_per_execution, left)
                # Not when a batch begins: if the length is unknown, Keras begins one that has no data.
                self.logs.update(mu=self.mu, l_step=self._running + 1)
            except (StopIteration, tf.errors.OutOfRangeError):
                self.end_epoch(out_of_data=True)
                raise
            if self._model.run_eagerly:
                self._is_underway = True
            else:
                self._check_pull()
            if self._batch + self._model.steps_per_execution >= (self._plan.batches or math.inf):
                self.end_epoch()
        if not isinstance(self._metrics, dict):
            return self._metrics
        if hidden := self._metrics.keys() & self.logs.keys():
            names = ", ".join(sorted(hidden))
            warn(f"In the logs, the model's metrics {names} are hidden by LC's.")
        return {**self._metrics, **self.logs}

    def end_epoch(self, out_of_data: bool = False) -> None:
        if self._lagrangian.compressed:
            return
        ended = self._batch + self._model.steps_per_execution
        if self._plan.batches is None:
            # If the data ran out, the last batch began without any.
            self._plan.batches = ended = self._batch if out_of_data else ended
        if not self._plan.batches:
            raise ValueError("Expected data to train on. Received: an epoch without batches.")
        if not self._beside:
            self.logs["pull"] = float(self._lagrangian.penalty())
        if self._epoch + 1 >= self._plan.epochs and not self._model.stop_training:
            # The last C step runs, however short the last epoch was.
            ended = self._plan.batches
        self._advance(min(ended, self._plan.batches))
        self._show_compressed()

    def complete_epoch(self, epoch: int, loss: float) -> None:
        """Check that the loss of an epoch is not NaN, and write a checkpoint."""
        if np.isnan(loss).any():
            self._steps.diverge("the loss is NaN", self._name_of_l_step)
        if self._callback.checkpoints:
            self._save(self._callback.checkpoints, epoch + 1)

    def end(self) -> bool:
        """Check that there was an epoch, warn of an early end, and return whether others have replaced θ."""
        if self.first_epoch is None:
            raise ValueError(
                "Expected at least one epoch to train and compress in. Received: `fit` without any, such as "
                "one whose `initial_epoch` is not below `epochs`. The model is as it was."
            )
        if self.finished:
            self.last_gap = self.logs.get("gap", 0.0)
            if not self.last_gap and not all(cost.has_budget for cost in self._costs):
                advice = "Give the penalty a larger α, or `fit` more epochs, with which μ is smaller."
                if any(cost.needs_time == "ranks" for cost in self._costs):
                    advice += (
                        " If two layers are slower than one at each rank, as `latency` shows, no α helps."
                    )
                warn(
                    f"The last C step removed nothing at μ = {self.mu:.3g}: the weights are as they were "
                    f"trained. {advice}"
                )
        else:
            self._warn_of_end("Training stopped")
        return self._lagrangian.is_replaced()

    def abandon(self, error: BaseException) -> None:
        """Compress the model as it is, or go back to where it was finite, after an exception.

        A run that fails before an L step has begun to pull, as with a `train_step` that leaves the pull out,
        has no compressed weights that are worth more than the user's.
        """
        if self.first_epoch is None or not (self._is_underway or self.step):
            return
        finite = self._steps.settle(self.mu)
        self._show_compressed(is_interrupted=True)
        self._warn_of_end(f"Training was interrupted ({type(error).__name__})")
        if not finite:
            begin_anew(optimizers_of(self._model))

    def release(self) -> None:
        """End the pull, wherever it was traced, and the limit on the learning rate."""
        self._lagrangian.release()
        self._rate.set(math.inf)

    @property
    def _running(self) -> int:
        """The index of the running L step, or of the last one if all are done."""
        return min(self.step, self._plan.steps - 1)

    @property
    def _name_of_l_step(self) -> str:
        return f"L step {self._running + 1} of {self._plan.steps}"

    def _parts(self) -> dict[str, Any]:
        """Return the parts that have a state besides the variables."""
        parts = {"run": self, "plan": self._plan, "pull": self._pull, "rate": self._rate}
        return {**parts, "lagrangian": self._lagrangian, "statistics": self.statistics}

    def _settings(self) -> Facts:
        """Return what a run and its restart have in common."""
        return {
            "epochs": self._params["epochs"],
            "batches in an epoch": self._params.get("steps"),
            "steps_per_execution": self._model.steps_per_execution,
            "L steps": self._plan.steps,
            "mu": self._pull.given,
            "epochs_per_step": self._plan.length,
            "first_step_epochs": self._plan.first_length,
            **{name: getattr(self._callback, name) for name in _SETTINGS},
        }

    def _save(self, checkpoints: Checkpoints, epoch: int) -> None:
        self.stopped = bool(self._model.stop_training)
        state = {name: part.state() for name, part in self._parts().items()}
        facts = {"run": self._saved.description(), "settings": self._settings(), "state": state}
        tensors = self._saved.tensors()
        # If there are several workers, all read their variables, and one writes.
        if self._model.distribute_strategy.extended.should_checkpoint:
            checkpoints.save(epoch, facts, tensors)

    def _lay_out(self, first_epoch: int) -> None:
        epochs, batches = self._params["epochs"] - first_epoch, self._params.get("steps")
        execution, given = self._model.steps_per_execution, self._callback
        lengths = given.steps, given.epochs_per_step, given.first_step_epochs
        self._plan = Plan.of(*lengths, epochs, batches, execution, self._beside)
        if self._beside:
            pulls = [self._pull_of(manner, parts) for manner, parts in self._manners.items()]
            self._pull = pulls[0] if len(pulls) == 1 else Together(self._plan, pulls)
        elif is_automatic(given.mu):
            self._pull = ThroughLoss(self._plan, self._rate)
        else:
            self._pull = Scheduled(self._plan, given.mu)

    def _begin(self, epoch: int) -> None:
        self._lay_out(epoch)
        plan, execution = self._plan, self._model.steps_per_execution
        for caveat in plan.caveats(self._callback.steps is not None, execution):
            warn(caveat)
        if self._callback.tolerance and not self._pull.closes_gap:
            warn(
                "`tolerance` may have no effect: by default, weights and θ meet only at the end of `fit` "
                "with this cost. Pass a schedule such as Geometric(first, last) as `mu`, or leave "
                "`tolerance` out."
            )
        self._pull.begin()
        self.step = plan.step_at(0, 0, 0, execution) if plan.batches else 0
        self.mu, reach = self._pull.next(self.step, math.nan)
        self._note_of_budget(self._steps.begin(self.mu, reach))
        self.logs["l_steps"] = plan.steps
        self.first_epoch = epoch
        self._limit_rate()

    def _advance(self, batch: int) -> None:
        """Run the C step that is due before a batch, if one is."""
        step = self._plan.step_at(self.step, self._epoch, batch, self._model.steps_per_execution)
        if step > self.step and not self.finished:
            self._c_step(step)

    def _c_step(self, next_step: int) -> None:
        self._check_pull()
        last = next_step == self._plan.steps
        if self._pull.looks(self.step):
            self._pull.look(self.step, self._lagrangian.moved(), self._batches_since)
        if last:
            next_mu, reach = self.mu, Reach(part=1.0) if self._beside else None
        else:
            next_mu, reach = self._pull.next(next_step, self.logs["gap"])
        found = self._steps.c_step(self.mu, next_mu, reach, self._name_of_l_step)
        self._batches_since = 0
        is_loose = self._lagrangian.is_loose
        if not is_loose:
            self._note(found)
        self.step, self.mu = next_step, next_mu
        # While θ is loose, the gap is from the last time the model was shown.
        settles = not is_loose and not self._manners.keys() - {Beside}
        self.finished = last or (settles and self.logs["gap"] < self._callback.tolerance)
        if self.finished:
            self._model.stop_training = True
        else:
            self._limit_rate()
            if self._callback.reset_optimizer:
                self._rate.reset_optimizers()

    def _check_pull(self) -> None:
        if not self._is_checked:
            self._is_underway = False
            self._lagrangian.check_pulls()
            self._is_checked = self._is_underway = True

    def _lagrangian_of(self, shared: Sequence[SharedCost], multipliers: bool) -> Lagrangian:
        if not self._beside:
            return Lagrangian(shared, multipliers)
        parts = [
            (CarryingLagrangian if manner is Carrying else ReachingLagrangian)(parts, multipliers)
            for manner, parts in self._manners.items()
        ]
        return parts[0] if len(parts) == 1 else TogetherLagrangian(parts)

    def _pull_of(self, manner: type[Pull], parts: Sequence[SharedCost]) -> Pull:
        if manner is Beside:
            costs, normalizes = [part.compression for part in parts], bool(self.statistics.trained)
            return Beside(self._plan, self._rate.is_by_gradient, costs, normalizes)
        return manner(self._plan)

    def _note_of_budget(self, found: CStep | None) -> None:
        """Note what a C step found or, if θ is loose, what is found once θ is brought under the budget."""
        if self._lagrangian.is_loose:
            # The weights that are shown keep the budget, however far the pull reaches.
            found = self._lagrangian.project()
            self._batches_since = 0
        if found and np.all(found.finite):
            self._note(found)

    def _note(self, found: CStep) -> None:
        self.logs.update(gap=float(found.gap), density=float(found.density))

    def _warn_of_end(self, what: str) -> None:
        warn(
            f"{what} in {self._name_of_l_step}. The model holds the compressed weights; the relative gap to "
            f"the trained ones was {self.logs['gap']:.3g}, expect accuracy to suffer if it is above a few "
            "percent.",
        )

    def _limit_rate(self) -> None:
        if self._limits_rate:
            self._rate.set(1 / self.mu)

    def _show_training(self) -> None:
        replaced = self._lagrangian.is_replaced(swapped=bool(self._averages.trained))
        if replaced:
            warn(
                "Between epochs, the compressed weights were replaced by others. Training goes on from "
                "these, and the multipliers start again from zero.",
            )
            found = self._lagrangian.begin_anew(self.mu)
            if bad := self._lagrangian.not_finite(found):
                self._steps.diverge(f"NaN or infinite values in {', '.join(bad)}", self._name_of_l_step)
            self._note_of_budget(found)
        self._lagrangian.show_training()
        self._averages.show_training()
        if not replaced:
            self.statistics.show_training()

    def _show_compressed(self, is_interrupted: bool = False) -> None:
        if not self._lagrangian.compressed:
            self._note_of_budget(None)
            self._lagrangian.show_compressed()
            self.shown += [self._lagrangian.shown, *self._averages.show_compressed(self.mu)]
            self.statistics.show_compressed(is_interrupted)


def _by_manner(shared: Sequence[SharedCost], multipliers: bool) -> dict[type[Pull], list[SharedCost]]:
    """Return which costs are trained in each way. The way that asks how far weights moved comes first."""
    found: dict[type[Pull], list[SharedCost]] = {Beside: [], Sliding: [], Carrying: []}
    for part in shared:
        cost = part.compression
        few = Carrying if cost.few_values and multipliers else Beside
        found[Sliding if cost.is_smooth else few].append(part)
    return {manner: parts for manner, parts in found.items() if parts}
