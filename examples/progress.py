"""One line of progress for a whole `fit`."""

import sys

import keras
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

# Width of the line when it is not shown on a terminal.
_WIDTH = 140


class OneLine(keras.callbacks.Callback):
    """Shows all epochs of a `fit` as one bar, with the state of the pruning; a pipe gets only the last state.

    Args:
        label: String, the name of the run.
    """

    def __init__(self, label):
        super().__init__()
        self.label = label

    def on_train_begin(self, logs=None):
        self.progress = Progress(
            TextColumn("{task.description:20}"),
            BarColumn(24),
            TextColumn("epoch {task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}"),
            console=Console(width=None if sys.stdout.isatty() else _WIDTH, soft_wrap=True),
            auto_refresh=False,
        )
        self.progress.start()
        self.task = self.progress.add_task(self.label, total=self.params["epochs"], said="")

    def on_epoch_end(self, epoch, logs=None):
        if "l_step" in logs:
            step = f"L step {logs['l_step']:.0f}/{logs['l_steps']:.0f}"
            said = f"{step}  μ {logs['mu']:.1e}  gap {logs['gap']:.3f}"
        else:
            said = f"loss {logs['loss']:.4f}"
        if "val_accuracy" in logs:
            said += f"  validation error {100 - 100 * logs['val_accuracy']:.2f} %"
        self.progress.update(self.task, completed=epoch + 1, said=said, refresh=True)

    def on_train_end(self, logs=None):
        self.progress.stop()
