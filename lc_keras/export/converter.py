"""Run the LiteRT converter in a process of its own, so that a crash takes nothing else with it."""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from lc_keras.export import converting


@dataclass(frozen=True)
class Converted:
    """A LiteRT file as it was converted and run.

    Attributes:
        content: Bytes, the file.
        sparse: Bool, whether weights in it are sparse.
        answers: Dictionary of arrays; a key is the number of the batch of inputs, a slash, and the name of
            the output.
    """

    content: bytes
    sparse: bool
    answers: dict[str, np.ndarray]


class Converter:
    """A process that converts one SavedModel, as a context in which its files exist.

    It starts, and imports TensorFlow, while the SavedModel is still being written.

    Attributes:
        saved_model: String, where to write the SavedModel.
    """

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self.saved_model = self._path("model")
        # It finds the same modules as this process, and leaves a GPU to this process.
        found = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CUDA_VISIBLE_DEVICES": "-1"}
        with open(self._path("log"), "w") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-W", "ignore", converting.__file__, self._folder.name],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | found,
            )

    def __enter__(self) -> "Converter":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def run(
        self,
        names: Sequence[str],
        quantize: str | None,
        batches: list[dict[str, np.ndarray]],
        answered: int,
    ) -> None:
        """Convert the SavedModel, and run the resulting files.

        Args:
            names: Sequence of `"dense"` and `"sparse"`, the files to make.
            quantize: `None`, `"float16"` or `"int8"`.
            batches: List of dictionaries of arrays by input name, to calibrate on.
            answered: Int, how many of these batches, counted from the first, the files are to answer.
        """
        with open(self._path("request.json"), "w") as file:
            counts = {"batches": len(batches), "answered": answered}
            json.dump({"names": list(names), "quantize": quantize, **counts}, file)
        arrays = {f"{i}/{name}": array for i, batch in enumerate(batches) for name, array in batch.items()}
        plain: dict[str, Any] = {
            k: tf.convert_to_tensor(a).numpy().astype("S") if a.dtype == object else a
            for k, a in arrays.items()
        }
        np.savez(self._path("inputs.npz"), **plain)
        self._process.communicate(b"")

    def result(self, name: str) -> Converted:
        """Return a file that was made.

        Args:
            name: String, one of the names that `run` was given.

        Returns:
            `Converted`.

        Raises:
            RuntimeError: If it was not made, or could not be run.
        """
        if not os.path.exists(self._path(f"{name}.npz")):
            what = "run" if os.path.exists(self._path(f"{name}.tflite")) else "express"
            raise RuntimeError(f"LiteRT cannot {what} the model: {self._reason(name)}")
        with np.load(self._path(f"{name}.npz")) as arrays:
            answers = dict(arrays)
        with open(self._path(f"{name}.tflite"), "rb") as file:
            return Converted(file.read(), bool(answers.pop("/sparse")), answers)

    def _reason(self, name: str) -> str:
        if os.path.exists(self._path(f"{name}.txt")):
            return self._read(f"{name}.txt")
        status = self._process.returncode
        how = f"exit status {status}"
        if status < 0:
            how = f"{signal.Signals(-status).name}{', as where memory runs out' if status == -9 else ''}"
        lines = self._read("log").strip().splitlines()
        # Lines that TensorFlow logs at every start do not count.
        last = [line for line in lines if not re.match(r"[IW]\d{4} |WARNING: All log messages", line)][-3:]
        said = f" Last it said: {' / '.join(last)}" if last else ""
        return f"its converter crashed ({how}).{said}"

    def _read(self, name: str) -> str:
        with open(self._path(name), errors="replace") as file:
            return file.read()

    def _path(self, name: str) -> str:
        return os.path.join(self._folder.name, name)
