"""Callbacks that take part in the training: what LC has in common with the methods it is compared with."""

import contextlib
import math
import warnings
from collections.abc import Iterator

import keras

from lc_keras.algorithm.direct import compress_again
from lc_keras.algorithm.tasks import Tasks, as_tasks
from lc_keras.fit.attachment import NOT_ALONE, Attachment, Run, have_last_word
from lc_keras.fit.verdict import Verdict


class Attached(keras.callbacks.Callback):
    """Base class of callbacks that change how `fit` trains, so that a budget holds when it ends.

    A subclass overrides `make_run`.

    Args:
        tasks: A compression, a `Task`, or a list of these.

    Attributes:
        tasks: List of `Task`.
        density: Float, the fraction of the weights that were kept last; NaN before `fit`.

    Raises:
        TypeError: If `tasks` is of another type.
    """

    def __init__(self, tasks: Tasks) -> None:
        super().__init__()
        self.tasks = as_tasks(tasks)
        self._attachment: Attachment = None  # type: ignore[assignment]  # there once Keras has set the model
        self._logs: dict[str, float] = {}
        self._verdict: Verdict = None  # type: ignore[assignment]  # there while `fit` runs

    @property
    def density(self) -> float:
        return self._logs.get("density", math.nan)

    def make_run(self) -> Run:
        """Make the run of a `fit` that begins."""
        raise NotImplementedError

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._attachment = Attachment(self)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._attachment.clear_way()
        self._logs = {}
        run = self.make_run()
        self._attachment.attach(run)
        self._logs = run.logs
        self._verdict = Verdict(self.model, self.tasks, run.variables)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        with self._running() as run:
            run.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        with self._running() as run:
            run.begin_batch(batch, self._attachment.renew())

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        with self._running() as run:
            run.end_epoch()
            run.complete_epoch(epoch, (logs or {}).get("loss", 0.0))
            if logs is not None:
                logs.update(run.logs)
            self._verdict.note(logs)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        with self._running() as run:
            once_more = run.end()
        variables, mu, gap = run.variables, run.mu, run.last_gap
        self._attachment.detach()
        del run
        if once_more:
            self._compress_again(mu)
        have_last_word(self, variables, lambda changed: self._finish(mu, gap, changed))

    def _finish(self, mu: float, gap: float, changed: bool) -> None:
        """End, now that all callbacks have; `changed`: others have put other weights into the model since."""
        if changed:
            self._compress_again(mu)
        self._verdict.give(gap)
        self._verdict = None  # type: ignore[assignment]  # as in __init__

    def _compress_again(self, mu: float) -> None:
        gap, self._logs["density"] = compress_again(self.model, self.tasks, mu)
        if gap:
            warnings.warn(
                "As training ended, other weights than the compressed ones were put into the model. What "
                f"they had beyond the budget, {gap:.0%} of their norm, was removed, and the others were not "
                "trained since: expect accuracy to suffer.",
                stacklevel=3,
            )

    @contextlib.contextmanager
    def _running(self) -> Iterator[Run]:
        """Return a context of what is done to the run, which leaves the model usable if that fails."""
        if self._attachment.run is None:
            raise ValueError(NOT_ALONE)
        try:
            yield self._attachment.run
        except BaseException as error:
            self._attachment.fail(error)
            raise
