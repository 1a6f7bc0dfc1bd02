"""Reloads saved models where lc_keras cannot be imported, and says whether their outputs are the same.

Reads paths of .keras files and of SavedModels from its standard input, one on each line. Beside each
is a file of inputs and outputs, as `Reloader` writes it.
"""

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np


class Reloader:
    """A process without lc_keras, in which models are reloaded; a context manager."""

    def __enter__(self):
        self._process = subprocess.Popen(
            [sys.executable, "-m", __spec__.name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        return self

    def __exit__(self, *_):
        self._process.communicate()

    def difference(self, model, x, folder):
        """Saves a model and reloads it in the other process.

        Args:
            model: `keras.Model`.
            x: Its inputs, an array or a dictionary from their names to arrays.
            folder: Path, a folder to write into.

        Returns:
            Float, the largest difference between its outputs there and here.

        Raises:
            RuntimeError: If it could not be reloaded.
            ValueError: If its outputs here are not finite.
        """
        file = folder / "model.keras"
        model.save(file)
        return self._answer(file, model, x)

    def difference_served(self, model, x, folder):
        """Exports a model and calls it in the other process; like `difference`."""
        import lc_keras

        lc_keras.export_saved_model(model, folder / "model", overwrite=True)
        return self._answer(folder / "model", model, x)

    def _answer(self, file, model, x):
        given = x if isinstance(x, dict) else {"": x}
        expected = {f"output {i}": y for i, y in enumerate(_outputs(model, given))}
        if not all(np.isfinite(y).all() for y in expected.values()):
            raise ValueError("the outputs are not finite")
        inputs = {f"input {name}": array for name, array in given.items()}
        np.savez(file.with_suffix(".npz"), **inputs, **expected)
        print(file, file=self._process.stdin, flush=True)
        answer = json.loads(self._process.stdout.readline() or '"the process died"')
        if isinstance(answer, str):
            raise RuntimeError(f"not reloaded: {answer}")
        return answer


def _outputs(model, inputs):
    import keras

    names = [tensor.name for tensor in model.inputs]
    structure = model._inputs_struct if hasattr(model, "_inputs_struct") else model.inputs
    flat = [inputs[name] for name in names] if len(inputs) > 1 else list(inputs.values())
    packed = keras.tree.pack_sequence_as(structure, flat) if len(flat) > 1 else flat[0]
    return [keras.ops.convert_to_numpy(y) for y in keras.tree.flatten(model(packed, training=False))]


def _difference(file):
    import keras
    import tensorflow as tf

    with np.load(file.with_suffix(".npz")) as arrays:
        inputs = {key.removeprefix("input "): arrays[key] for key in arrays if key.startswith("input ")}
        expected = [arrays[key] for key in arrays if key.startswith("output ")]
    if file.is_dir():
        served = tf.saved_model.load(str(file))
        packed = {name: tf.constant(x) for name, x in inputs.items()}
        found = keras.tree.flatten(served.serve(packed if len(packed) > 1 else next(iter(packed.values()))))
    else:
        found = _outputs(keras.saving.load_model(file), inputs)
    return max(float(np.abs(y - z).max()) for y, z in zip(found, expected, strict=True))


def main():
    sys.modules["lc_keras"] = None
    from benchmarks.robustness import kinds  # noqa: F401, the classes of its models

    with contextlib.suppress(ImportError):
        from benchmarks.robustness import hub  # noqa: F401

    for line in sys.stdin:
        try:
            answer = _difference(Path(line.strip()))
        except Exception as error:
            answer = f"{type(error).__name__}: {error}"
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
