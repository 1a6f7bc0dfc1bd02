"""Where the L steps lie in the epochs of a run."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lc_keras.fit.checkpoints import Resumable

# The length of an L step in epochs; the least number of L steps, for which it may be shorter; and its fewest
# batches (benchmarks/training/step_length.py).
_LENGTH, _STEPS, _FEWEST_BATCHES = 0.25, 80, 15
# With the pull beside the optimizer, L steps may be shorter: their least number, and the part of a short run
# that is enough for one.
_STEPS_BESIDE, _PART_BESIDE = 160, 1 / 40
_FEW_EPOCHS, _FEW_BATCHES = 4, 100


@dataclass
class Plan(Resumable):
    """Lay out where the L steps end in the epochs of a run.

    Args:
        steps: Int ≥ 1, the number of L steps.
        length: Float > 0, the length of an L step in epochs.
        first_length: Float > 0, the length of the first L step in epochs.
        epochs: Float, the number of epochs in the run. An L step that still runs when they end, ends there.
        batches: Int, the number of batches in an epoch, or `None` while it is not known.
    """

    steps: int
    length: float
    first_length: float
    epochs: float
    batches: int | None

    held = ("batches",)

    @classmethod
    def of(
        cls,
        steps: int | None,
        length: float | None,
        first_length: float | None,
        epochs: float = math.inf,
        batches: int | None = None,
        execution: int = 1,
        beside: bool = False,
    ) -> "Plan":
        """Return a plan in which everything not given is filled in, as `LearningCompression` says.

        Args:
            steps: Int or `None`, as in `LearningCompression`.
            length: Float or `None`, `epochs_per_step`.
            first_length: Float or `None`, `first_step_epochs`.
            epochs: Float, default infinite, for use when the number of steps is given.
            batches: Int or `None` (default), the number of batches in an epoch.
            execution: Int, default 1: how many batches run at once.
            beside: Bool, default `False`: whether the pull is beside the optimizer.
        """
        if length is None:
            length = _LENGTH
            if steps is None and batches:
                fewest = min(_FEWEST_BATCHES, _PART_BESIDE * epochs * batches) if beside else _FEWEST_BATCHES
                most = epochs / (_STEPS_BESIDE if beside else _STEPS)
                length = max(max(fewest, execution) / batches, min(_LENGTH, most))
        first_length = first_length or length
        steps = steps or 1 + max(0, math.ceil((epochs - first_length) / length - 1e-9))
        return cls(steps, length, first_length, epochs, batches)

    @property
    def epochs_needed(self) -> int:
        """Return the number of whole epochs that all L steps take."""
        return math.ceil(self._end(self.steps - 1) - 1e-9)

    @property
    def end(self) -> float:
        """Return the position, in epochs, where the run ends: with its epochs, or with the last L step."""
        end = self._end(self.steps - 1)
        return end if end < self.epochs - 1e-9 else self.epochs

    @property
    def shortest(self) -> float:
        """Return the number of batches in the shortest L step; infinite while it is not known."""
        return min(self.length, self.first_length) * (self.batches or math.inf)

    def caveats(self, steps_given: bool, execution: int) -> Iterator[str]:
        """Yield warnings about what will not go as requested.

        Args:
            steps_given: Bool, whether the user asked for this number of L steps.
            execution: Int, how many batches run at once.
        """
        if steps_given and self.epochs < self.epochs_needed:
            yield (
                f"{self.steps} L steps need {self.epochs_needed} epochs. Received: {self.epochs} epochs, "
                "after which the model is compressed at an early stage of the schedule."
            )
        if steps_given and self.epochs > self.epochs_needed:
            yield (
                f"{self.steps} L steps of {self.length:g} epochs end after {self.epochs_needed} of "
                f"{self.epochs} epochs, and `fit` with them. For a longer run, expected more `steps`, or "
                "longer ones (`epochs_per_step`)."
            )
        if self.batches and self.epochs * self.batches < _FEW_BATCHES:
            yield (
                f"This `fit` has {self.epochs * self.batches:g} batches in all. Expected at least "
                f"{_FEW_BATCHES}, so that the weights that are kept can make up for those that go: give it "
                "more epochs or smaller batches, or expect accuracy to suffer."
            )
        skips = self.batches is None and self.first_length < 1 and self.steps > 1
        if skips and self.epochs < _FEW_EPOCHS:
            yield (
                "How many batches an epoch has is not known: no C step runs in the first of "
                f"{self.epochs} epochs, and what the schedule has for it is skipped. Expected data of "
                "known length, `steps_per_epoch`, or more epochs."
            )
        if execution > self.shortest:
            yield (
                f"An L step of {self.shortest:g} batches is shorter than steps_per_execution={execution}: "
                "L steps that end in one execution share a C step."
            )

    def step_at(self, step: int, epoch: int, batch: int, execution: int) -> int:
        """Return the L step of the execution that begins with a batch, if `step` has run so far.

        If several L steps end in the execution, this is the last of them; after the last L step, `steps`.
        """
        assert self.batches  # noqa: S101  # for the type checker
        position = epoch + batch / self.batches
        executed = min(execution, self.batches - batch % self.batches)
        ended = self._ended(step, position)
        return max(ended, self._ended(step, position + executed / self.batches) - 1)

    def _end(self, step: int) -> float:
        """Return the position, in epochs, where an L step ends."""
        return self.first_length + step * self.length

    def _ended(self, step: int, position: float) -> int:
        """Return how many L steps have ended by a position in epochs; `step` of them ended before."""
        slack = 0.5 / self.batches if self.batches else 1e-9
        ended = step
        while ended < self.steps and self._end(ended) <= position + slack:
            ended += 1
        is_over = self.epochs <= position + slack
        runs = ended == step or self._end(ended - 1) + slack < self.epochs
        return ended + (is_over and runs and ended < self.steps)
