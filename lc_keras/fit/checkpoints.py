"""The last two checkpoints of a run in a directory, each complete or absent."""

import json
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tensorflow as tf

from lc_keras.arguments import warn

# What JSON can hold.
Facts = dict[str, Any]

_FORMAT = 5
_KEPT = 2
_FACTS = "facts"
_FILE = re.compile(r"epoch-(\d{6,})\.(index|data-.*)")


class Resumable:
    """Base class of objects that a restart goes on with: `held` names the attributes that are their state."""

    held: ClassVar[tuple[str, ...]] = ()

    def state(self) -> Facts:
        """Return what `load` needs, in a form that JSON can hold."""
        return {name: getattr(self, name) for name in self.held}

    def load(self, state: Facts) -> None:
        """Go on from a `state`."""
        for name, value in state.items():
            setattr(self, name, value)


class Checkpoint(NamedTuple):
    """Hold a checkpoint, every byte of which was read and agrees with its checksums.

    Attributes:
        path: String, with which the names of its files begin.
        epoch: Int, the epoch to go on with.
        facts: Dict, what was given to `save`.
        read: Returns the value of a tensor by the name that was given to `save`.
    """

    path: str
    epoch: int
    facts: Facts
    read: Callable[[str], np.ndarray]


class Checkpoints:
    """Keep checkpoints in TensorFlow's own format in a directory, whose other files are left alone.

    The format has a checksum for every tensor and block, and a file gets its name when it is
    complete, the index last: without its index, a checkpoint does not count.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        if not isinstance(directory, (str, os.PathLike)):
            raise TypeError(f"Expected `checkpoint_dir` to be a path. Received: checkpoint_dir={directory!r}")
        self.directory = os.fspath(directory)
        if not self.directory or (
            tf.io.gfile.exists(self.directory) and not tf.io.gfile.isdir(self.directory)
        ):
            raise ValueError(
                f"Expected `checkpoint_dir` to be a directory. Received: checkpoint_dir='{self.directory}'"
            )
        if set("*?[") & set(self.directory):
            raise ValueError(
                "Expected `checkpoint_dir` without *, ? and [, which TensorFlow takes for a pattern when it "
                f"reads a checkpoint. Received: checkpoint_dir='{self.directory}'"
            )
        self._kept: list[int] = []

    def latest(self) -> Checkpoint | None:
        """Return the newest undamaged checkpoint, and warn of damaged ones; another format is an error."""
        for epoch in sorted(self._epochs(), reverse=True):
            path = self._prefix(epoch)
            try:
                tensors = tf.train.load_checkpoint(path)
                facts = json.loads(tensors.get_tensor(_FACTS))
                for name in tensors.get_variable_to_shape_map():
                    tensors.get_tensor(name)
            # The reader raises an IndexError if a file ends too early.
            except (tf.errors.OpError, IndexError, ValueError) as error:
                warn(
                    f"The checkpoint '{path}' is damaged ({error}). Training goes on from "
                    "the one before, or from the start.",
                )
                continue
            if facts["format"] != _FORMAT:
                raise ValueError(
                    f"Expected a checkpoint of format {_FORMAT}. Received: format {facts['format']}, in "
                    f"'{path}'. Go on with the version of lc_keras that wrote it, or delete it to begin anew."
                )
            self._kept = [epoch]
            return Checkpoint(path, epoch, facts, tensors.get_tensor)
        return None

    def save(self, epoch: int, facts: Facts, tensors: dict[str, tf.Tensor]) -> None:
        """Write a checkpoint, whose facts may contain NumPy numbers, then remove all but the last two."""
        tf.io.gfile.makedirs(self.directory)
        # Damaged or unfinished checkpoints must not be found again.
        self._remove_all_but(self._kept)
        written = json.dumps({"format": _FORMAT, **facts}, default=np.generic.item)
        tensors = {_FACTS: tf.constant(written), **tensors}
        tf.raw_ops.SaveV2(
            prefix=self._prefix(epoch),
            tensor_names=list(tensors),
            shape_and_slices=[""] * len(tensors),
            tensors=list(tensors.values()),
        )
        self._kept = [*self._kept, epoch][-_KEPT:]
        self._remove_all_but(self._kept)

    def delete(self) -> None:
        """Remove all checkpoints, and the directory if nothing else is in it."""
        if tf.io.gfile.isdir(self.directory):
            self._remove_all_but([])
            if not tf.io.gfile.listdir(self.directory):
                tf.io.gfile.rmtree(self.directory)

    def _prefix(self, epoch: int) -> str:
        return os.path.join(self.directory, f"epoch-{epoch:06}")

    def _files(self) -> list[re.Match[str]]:
        names = tf.io.gfile.listdir(self.directory) if tf.io.gfile.isdir(self.directory) else []
        return [match for match in map(_FILE.match, names) if match]

    def _epochs(self) -> list[int]:
        return [int(match[1]) for match in self._files() if match.string.endswith(".index")]

    def _remove_all_but(self, epochs: Sequence[int]) -> None:
        # Older ones first, and an index before its data: what is left at any moment is complete.
        gone = [match for match in self._files() if int(match[1]) not in epochs]
        for match in sorted(gone, key=lambda match: (int(match[1]), match[2] != "index")):
            tf.io.gfile.remove(os.path.join(self.directory, match.string))
