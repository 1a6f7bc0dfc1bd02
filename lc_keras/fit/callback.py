"""The Learning-Compression algorithm as a callback of `fit`."""

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
        mu: `"auto"` (default): for budgets the pull goes beside the optimizer, for penalties through the
            loss, as strong as the run needs it. Or a schedule such as `Exponential(9e-5, 1.1)` or
            `Geometric(1e-3, 1e-1)`, a function of the L step's index, or a sequence: the pull then goes
            through the loss, as in the paper. μ must be positive and grow.
        steps: Int ≥ 1 or `None` (default). The number of L steps. `None`: as many as
            the epochs that `fit` is given hold, or as `mu` has elements.
        epochs_per_step: Float > 0 or `None` (default): the length of an L step in epochs. A
            C step runs where an L step ends, at the next boundary between executions; in the first
            epoch none does if Keras does not know how many batches an epoch has. `None`:
            a quarter of an epoch; where that makes fewer than 160 L steps and `steps` is not given, as short
            as makes so many, but no shorter than 15 batches or a 40th of a short run. (80 L steps, of 15
            batches at least, where the pull goes through the loss.)
        first_step_epochs: Float > 0 or `None` (default, as the others): the length of
            the first L step in epochs.
        multipliers: Bool, default `True`. `False`: the plain quadratic penalty, which
            fails at low budgets.
        limit_learning_rate: Bool, default `True`: holds the learning rate at
            $\min(\eta, 1/\mu)$ in each L step whose pull goes through the loss. `False` where a
            `train_step` sets the rate itself.
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
            epoch, another callback trains the model meanwhile, or an L step diverges. What is found in
            the first batch leaves the model uncompressed; later it holds the last compressed weights, all
            finite.

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
            # Keras has read it; were it still there, an interruption would leave it to the next `fit`.
            self._attachment.begin_at(None)
        super().on_epoch_begin(epoch, logs)

    def _finish(self, mu: float, gap: float, changed: bool) -> None:
        super()._finish(mu, gap, changed)
        if self.checkpoints and self.model.distribute_strategy.extended.should_checkpoint:
            self.checkpoints.delete()
