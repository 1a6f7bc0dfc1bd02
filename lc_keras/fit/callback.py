"""The Learning-Compression algorithm as a callback for `fit`."""

import math
import os

from lc_keras.algorithm import schedules
from lc_keras.algorithm.tasks import Tasks
from lc_keras.arguments import non_negative, optional, positive, switch, whole
from lc_keras.fit.attached import Attached
from lc_keras.fit.checkpoints import Checkpoints
from lc_keras.fit.mu import Mu, is_automatic
from lc_keras.fit.plan import Plan
from lc_keras.fit.run import CompressionRun

_SUGGESTED_EPOCHS = 20


class LearningCompression(Attached):
    r"""Compress a model to its budget while `fit` trains it.

    This solves $\min_w L(w)$ subject to a budget $C(w) \le \kappa$, or with a penalty
    $\alpha C(w)$, by the Learning-Compression algorithm (Carreira-Perpiñán &
    Idelbayev, "Learning-Compression" Algorithms for Neural Net Pruning, CVPR 2018):

    - L step: the epochs of `fit` train on
      $L(w) + \frac{\mu}{2} \lVert w - \theta - \lambda/\mu \rVert^2$;
    - C step: $\theta \leftarrow \arg\min_\theta \lVert w - \lambda/\mu - \theta \rVert^2$ under the cost;
    - multipliers: $\lambda \leftarrow \lambda - \mu (w - \theta)$; then μ grows.

    When `fit` returns, the model holds θ, which keeps the budget exactly, and nothing of
    this callback remains on the model. While `fit` runs, the `val_*` metrics are those of the
    compressed model, which is also what other callbacks see at the end of an epoch.

    The `logs` contain `mu`, `density` (the fraction of weights kept), `gap`
    ($\lVert w - \theta \rVert / \lVert w \rVert$ when θ was last found under the budget itself), `l_step`
    (the number of the running L step), `l_steps` (the number of all L steps) and, if the pull goes through
    the loss, `pull` (its value).

    Other callbacks may come before or after this one: either way, they see the compressed model at the end of
    an epoch. (If an epoch without validation ends early, because training was stopped or the data ran out,
    only those after it do.) If they put other weights into it between epochs, training
    goes on from those; if they do so as `fit` ends, those weights are compressed, too, where
    they break a budget. If the optimizer keeps averages of the weights (`use_ema`), the
    averages that `keras.callbacks.SwapEMAWeights` puts into the model are compressed.

    If the weights have a `constraint` of their own, it also holds for θ with N:M costs, and with ℓ0 costs
    without `values`.

    Args:
        tasks: A compression (over all default kernels jointly), a `Task`, or a list
            of these.
        mu: `"auto"` (default): for budgets the pull goes beside the optimizer; if one of the costs is a
            penalty, it goes through the loss for all of them. In both cases it is as strong as the run needs.
            Or a schedule such as `Exponential(9e-5, 1.1)` or `Geometric(1e-3, 1e-1)`, a function of the L
            step's index, or a sequence: the pull then goes through the loss, as in the paper. μ must be
            positive and grow.
        steps: Int ≥ 1 or `None` (default). The number of L steps. `None`: as many as there is room
            for in the epochs given to `fit`, or as many as `mu` has elements. `fit` ends with the last one.
        epochs_per_step: Float > 0 or `None` (default). The length of an L step in epochs. When an L step
            ends, a C step runs at the next boundary between executions; in the first epoch none runs before
            its end if Keras does not know how many batches an epoch has. `None`: a quarter of an epoch. If
            `steps` is not given, L steps are shorter where that makes fewer than 160 of them, but never
            shorter than 15 batches, or than a 40th of a run of fewer than 600. (80 L steps of at least 15
            batches if the pull goes through the loss.) This takes data of known length.
        first_step_epochs: Float > 0 or `None` (default: the same as the others). The length of
            the first L step in epochs.
        multipliers: Bool, default `True`. `False`: the plain quadratic penalty, which
            fails at low budgets.
        limit_learning_rate: Bool, default `True`: hold the learning rate at
            $\min(\eta, 1/\mu)$ in each L step whose pull goes through the loss. Pass `False` if a
            `train_step` sets the rate itself.
        reset_optimizer: Bool, default `False`. `True`: start each L step with a fresh optimizer state,
            as with the paper's L steps of many epochs. With Adam and similar optimizers, only the
            momentum starts afresh, because the second moment is corrected for its start only once.
        tolerance: Float ≥ 0, default 0: training stops once the gap is below it. With `mu="auto"` it is for
            penalties, for bounds on a norm, and for sums of budgets: under other costs, w and θ meet only at
            the end, and `fit` warns.
        checkpoint_dir: Path or `None` (default). A directory in which to save, at the end of each epoch,
            everything needed to resume an interrupted `fit`: the model, its optimizer, θ, λ, μ and the
            place in the schedule. If the same script is started again, it goes on after the last
            completed epoch. The checkpoints are removed when training ends.

    Attributes:
        epochs: Int, the number of epochs to pass to `fit`: as many as `steps` L steps need, or else 20.
        gap: Float, the latest gap.
        density: Float, the latest density.
        multipliers: Bool, as given.
        history: List of dicts, the number and the logs of each epoch of the last `fit`, which
            `plot(path)` draws.

    Raises:
        TypeError: If an argument is not of the type described.
        ValueError: If an argument is out of range. In `fit`, if a task, the optimizer or a checkpoint does
            not fit, a weight is not finite, the `train_step` is a `tf.function` or leaves out the pull, there
            is no epoch or no batch, the list of callbacks has a second such callback, or one that resumes the
            run or trains the model meanwhile, or an L step diverges. After an error found in the first batch,
            the model is uncompressed; after a later one, it holds the last compressed weights, all finite.

    Example:

    ```python
    compress = lc_keras.LearningCompression(lc_keras.L0Constraint(keep=0.05))
    model.fit(train, validation_data=valid, epochs=compress.epochs, shuffle=False, callbacks=[compress])
    ```
    """

    def __init__(
        self,
        tasks: Tasks,
        *,
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
        super().__init__(tasks)
        if steps is None and (given := schedules.sequence(mu)) is not None:
            steps = len(given) or None
        self.mu = mu
        self.steps: int | None = optional(whole)("steps", steps)
        self.epochs_per_step: float | None = optional(positive)("epochs_per_step", epochs_per_step)
        self.first_step_epochs: float | None = optional(positive)("first_step_epochs", first_step_epochs)
        self.multipliers = switch("multipliers", multipliers)
        self.limit_learning_rate = switch("limit_learning_rate", limit_learning_rate)
        self.reset_optimizer = switch("reset_optimizer", reset_optimizer)
        self.tolerance = non_negative("tolerance", tolerance)
        self.checkpoints = None if checkpoint_dir is None else Checkpoints(checkpoint_dir)
        if not is_automatic(mu):
            schedules.values(mu, self.steps or 2)

    def __repr__(self) -> str:
        tasks = self.tasks[0] if len(self.tasks) == 1 else self.tasks
        return f"LearningCompression({tasks!r}, mu={self.mu!r}, steps={self.steps})"

    @property
    def epochs(self) -> int:
        if self.steps is None:
            return _SUGGESTED_EPOCHS
        return Plan.of(self.steps, self.epochs_per_step, self.first_step_epochs).epochs_needed

    @property
    def gap(self) -> float:
        return self._logs.get("gap", math.nan)

    def make_run(self) -> CompressionRun:
        run = CompressionRun(self)
        self._attachment.check_beginning()
        if self.checkpoints and (saved := self.checkpoints.latest()):
            if self.params.get("verbose"):
                of, where = self.params["epochs"], self.checkpoints.directory
                print(f"Going on after epoch {saved.epoch} of {of}, from '{where}'.")
            # As `keras.callbacks.BackupAndRestore` does.
            self._attachment.begin_at(self.params["epochs"] if run.resume(saved) else saved.epoch)
        return run

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        with self._running():
            self._attachment.check_beginning()
            # Keras has read it. If it stayed, an interruption would leave it for the next `fit`.
            self._attachment.begin_at(None)
        super().on_epoch_begin(epoch, logs)

    def _conclude(self, gap: float) -> None:
        super()._conclude(gap)
        if self.checkpoints and self.model.distribute_strategy.extended.should_checkpoint:
            self.checkpoints.delete()
