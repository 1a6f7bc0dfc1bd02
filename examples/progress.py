"""One line of progress for a whole `fit`."""

import math
import sys
import time

import keras

_WIDTH = 24


class OneLine(keras.callbacks.Callback):
    """Shows all epochs of a `fit` as one bar, with how the pruning goes.

    Where the output is not a terminal, it writes a line at each quarter instead.

    Args:
        label: String, what is running.
    """

    def __init__(self, label):
        super().__init__()
        self.label = label

    def on_train_begin(self, logs=None):
        self.began = time.perf_counter()
        self.epoch = self.trained = 0
        self.show("starting")

    def on_epoch_end(self, epoch, logs=None):
        # After a restart the first epoch is a later one.
        self.epoch, self.trained = epoch + 1, self.trained + 1
        seconds = time.perf_counter() - self.began
        left = (self.params["epochs"] - self.epoch) * seconds / self.trained
        shown = [f"{seconds:.0f} s, {left:.0f} s left" if left else f"{seconds:.0f} s"]
        if "l_step" in logs:
            shown.append(f"L step {logs['l_step']:.0f}/{logs['l_steps']:.0f}")
            shown.append(f"μ {logs['mu']:.1e}  gap {logs['gap']:.3f}")
        else:
            shown.append(f"loss {logs['loss']:.4f}")
        if "val_accuracy" in logs:
            shown.append(f"validation error {100 - 100 * logs['val_accuracy']:.2f} %")
        self.show("  ".join(shown))

    def on_train_end(self, logs=None):
        if sys.stdout.isatty():
            print()

    def show(self, text):
        epochs = self.params["epochs"]
        done = self.epoch * _WIDTH // max(1, epochs)
        bar = "━" * done + "─" * (_WIDTH - done)
        line = f"{self.label:20} {bar} epoch {self.epoch}/{epochs}  {text}"
        if sys.stdout.isatty():
            # Back to the start of the line; what is left of a longer one is erased.
            print(f"\r{line}\x1b[K", end="", flush=True)
        elif self.epoch == epochs or self.epoch % math.ceil(epochs / 4) == 0:
            print(line, flush=True)
