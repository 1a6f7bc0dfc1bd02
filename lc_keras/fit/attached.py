"""Callbacks that take part in the training: what LC has in common with the methods it is compared with."""

import contextlib
import itertools
import math
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from lc_keras.algorithm.direct import compress_again
from lc_keras.algorithm.shadows import fingerprint
from lc_keras.algorithm.tasks import SharedCost, Tasks, as_tasks
from lc_keras.arguments import warn
from lc_keras.fit.attachment import NOT_ALONE, Attachment, Run, comes_first, have_last_word
from lc_keras.fit.optimizers import LearningRateLimit, optimizers_of
from lc_keras.fit.statistics import Statistics
from lc_keras.fit.verdict import Verdict
from lc_keras.showing import new_axes
from lc_keras.shrinking.timing import ensure_known

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TITLES = {"gap": "gap ‖w − θ‖ / ‖w‖", "mu": "μ", "density": "density: the fraction kept"}


class Attached(keras.callbacks.Callback):
    """Base class of callbacks that change how `fit` trains, so that a budget holds when it ends.

    A subclass overrides `make_run`.

    Args:
        tasks: A compression, a `Task`, or a list of these.

    Attributes:
        tasks: List of `Task`.
        shared: List of `SharedCost`, what the last `fit` bound the tasks to.
        shown: List of arrays, fingerprints of weights under the budget that the last `fit` has shown.
        density: Float, the latest fraction of the weights kept; NaN before `fit`.
        history: List of dicts, the number and the logs of each epoch of the last `fit`.

    Raises:
        TypeError: If `tasks` is of another type.
    """

    def __init__(self, tasks: Tasks) -> None:
        super().__init__()
        self.tasks = as_tasks(tasks)
        self.shared: Sequence[SharedCost] = []
        self.shown: list[np.ndarray] = []
        self._attachment: Attachment = None  # type: ignore[assignment]  # there once Keras has set the model
        self._is_first = True
        self._logs: dict[str, float] = {}
        self.history: list[dict[str, float]] = []
        self._verdict: Verdict = None  # type: ignore[assignment]  # there once `fit` has begun

    @property
    def density(self) -> float:
        return self._logs.get("density", math.nan)

    def plot(self, path: str | os.PathLike[str] | None = None) -> "Figure":
        """Plot the last `fit`, epoch by epoch: gap, μ, density, and the `val_` metrics of the net that ships.

        Args:
            path: String or path-like, the image to write, or `None` (default).

        Returns:
            The matplotlib figure.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If no epoch has been completed yet.
        """
        if not self.history:
            raise ValueError("Expected a `fit` with this callback that completed an epoch. Received: none.")
        last = self.history[-1]
        measured = [name for name in last if name.startswith("val_")] or ["loss"]
        names = [name for name in ("gap", "mu", "density") if name in last] + measured
        rows = math.ceil(len(names) / 2)
        grid = new_axes(0.4 + 2.2 * rows, rows=rows, columns=2)
        for name, axes in itertools.zip_longest(names, grid.flat):
            if name is None:
                axes.set_axis_off()
                continue
            axes.plot(
                *zip(*((logs["epoch"], logs[name]) for logs in self.history if name in logs), strict=True)
            )
            axes.set(title=_TITLES.get(name, name), xlabel="epoch")
            if name == "mu":
                axes.set_yscale("log")
            elif name == "density":
                axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
        figure = grid.flat[0].figure
        if path is not None:
            figure.savefig(path)
        return figure

    def make_run(self) -> Run:
        """Make the run for a `fit` that begins."""
        raise NotImplementedError

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self._attachment = Attachment(self)

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params)
        self._is_first = comes_first(self)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        self._attachment.clear_way()
        self._logs, self.history = {}, []
        ensure_known(self.model, (task.compression.needs_time for task in self.tasks))
        run = self.make_run()
        self._attachment.attach(run)
        self.shared, self.shown, self._logs = run.shared, run.shown, run.logs
        self._verdict = Verdict(self.model, self.tasks, run.variables)

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        with self._running() as run:
            run.begin_epoch(epoch)

    def on_train_batch_begin(self, batch: int, logs: dict[str, float] | None = None) -> None:
        with self._running() as run:
            is_first = self._attachment.first_logs is None
            if is_first and LearningRateLimit(*optimizers_of(self.model), variables=run.variables).rests:
                warn(
                    "The learning rate is 0, as it is once a schedule has ended: no weight can make up for "
                    "those that are removed. Compile the model again, with its initial learning rate."
                )
            run.begin_batch(batch, self._attachment.renew())

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        if self._attachment is not None and self._attachment.run is not None:
            with self._running() as run:
                run.end_epoch()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        with self._running() as run:
            run.end_epoch()
            run.complete_epoch(epoch, (logs or {}).get("loss", 0.0))
            if logs is not None:
                logs.update(run.logs)
                self.history.append({"epoch": epoch + 1, **logs})
            self._verdict.note(logs, self._attachment.first_logs)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        with self._running() as run:
            once_more = run.end()
        variables, statistics, mu, gap = run.variables, run.statistics, run.mu, run.last_gap
        self._attachment.detach()
        del run
        if once_more and not self._compress_again(mu, statistics):
            statistics.estimate()

        def finish(changed: bool) -> None:
            if changed:
                self._compress_again(mu, statistics)
            self._verdict.is_stale = statistics.are_stale
            self._conclude(gap)

        have_last_word(self, variables, finish, self._is_first)

    def _conclude(self, gap: float) -> None:
        """Conclude the `fit` after all callbacks have ended; `gap` is 0 if it was mentioned already."""
        self._verdict.give(gap)

    def _compress_again(self, mu: float, statistics: Statistics) -> bool:
        """Compress weights that others have put into the model; return whether they broke a budget."""
        gap, self._logs["density"] = compress_again(self.model, self.shared, mu, self.shown)
        if gap:
            warn(
                "As training ended, weights other than the compressed ones were put into the model. Those "
                f"beyond the budget, {gap:.0%} of the norm of all, were removed, and the others were not "
                "trained after that: expect accuracy to suffer.",
            )
            self.shown.append(fingerprint([v for part in self.shared for v in part.variables]))
            statistics.estimate()
        return gap > 0

    @contextlib.contextmanager
    def _running(self) -> Iterator[Run]:
        """Return a context for work with the run, which leaves the model usable if the work fails."""
        if self._attachment.run is None:
            raise ValueError(NOT_ALONE)
        try:
            yield self._attachment.run
        except BaseException as error:
            self._attachment.fail(error)
            raise
