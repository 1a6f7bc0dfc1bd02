"""Compression after training, without retraining."""

from typing import Any

import keras

from lc_keras.algorithm.direct import compress_shared
from lc_keras.algorithm.tasks import SharedCost, Tasks, as_tasks, bind_tasks
from lc_keras.fit.attachment import comes_first, have_last_word
from lc_keras.shrinking.timing import ensure_known


class DirectCompression(keras.callbacks.Callback):
    """Leave training as it is, and compress the model when training ends.

    Weights that another callback puts into the model as `fit` ends are compressed, too. Tasks take the
    weights that can be trained when `fit` begins.

    Args:
        tasks: A compression, a `Task`, or a list of these.

    Raises:
        TypeError: If `tasks` is of the wrong type.
        ValueError: If `tasks` is an empty list. In `fit`, if a task does not fit the model, or a weight is
            not finite at the end.

    Example:

    ```python
    prune = lc_keras.baselines.DirectCompression(lc_keras.L0Constraint(keep=0.5))
    model.fit(train, epochs=1, shuffle=False, callbacks=[prune])
    ```
    """

    def __init__(self, tasks: Tasks) -> None:
        super().__init__()
        self.tasks = as_tasks(tasks)
        self._shared: list[SharedCost] = []
        self._is_first = True

    def set_params(self, params: dict[str, Any]) -> None:
        super().set_params(params)
        self._is_first = comes_first(self)

    def on_train_begin(self, logs: dict[str, float] | None = None) -> None:
        ensure_known(self.model, (task.compression.needs_time for task in self.tasks))
        self._shared = bind_tasks(self.tasks, self.model)

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        self._compress()
        variables = [v for part in self._shared for v in part.variables]

        def finish(changed: bool) -> None:
            if changed:
                self._compress()

        have_last_word(self, variables, finish, self._is_first)

    def _compress(self) -> None:
        compress_shared(self.model, self._shared)
