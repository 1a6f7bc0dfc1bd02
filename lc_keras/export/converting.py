"""Convert a SavedModel to LiteRT files and run them: `python converting.py FOLDER`.

It runs in a process of its own, so that a converter that crashes takes nothing else with it. It therefore
imports neither this library nor Keras. The folder holds the SavedModel `model`, `request.json` and
`inputs.npz`; for each name in the request, this program puts a file and its answers there, or a text that
says what went wrong.
"""

import json
import os
import sys
from typing import Any


def convert(folder: str) -> None:
    """Convert the SavedModel in a folder.

    Args:
        folder: String, where everything is read and written.
    """
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter

    with open(os.path.join(folder, "request.json")) as file:
        request = json.load(file)
    batches: list[dict[str, Any]] = [{} for _ in range(request["batches"])]
    with np.load(os.path.join(folder, "inputs.npz")) as inputs:
        for key, array in inputs.items():
            number, name = key.split("/")
            batches[int(number)][name] = array.astype(object) if array.dtype.kind == "S" else array
    for name in request["names"]:
        try:
            content = _converted(folder, request["quantize"], batches, sparse=name == "sparse")
            with open(os.path.join(folder, f"{name}.tflite"), "wb") as file:
                file.write(content)
            run = Interpreter(model_content=content).get_signature_runner("serving_default")
            answers = [run(**batch) for batch in batches[: request["answered"]]]
            details = Interpreter(model_content=content).get_tensor_details()
            named = {f"{number}/{k}": a for number, answer in enumerate(answers) for k, a in answer.items()}
            plain = {k: a.astype("S") if a.dtype == object else a for k, a in named.items()}
            # No output has this name.
            plain["/sparse"] = np.array(any(detail["sparsity_parameters"] for detail in details))
            np.savez(os.path.join(folder, f"{name}.npz"), **plain)
        # The converter's own error has no public name.
        except Exception as error:
            with open(os.path.join(folder, f"{name}.txt"), "w") as file:
                file.write(str(error))


def _converted(folder: str, quantize: str | None, batches: list[Any], sparse: bool) -> bytes:
    import tensorflow as tf

    saved = os.path.join(folder, "model")
    converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=["serving_default"])
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY] if sparse else []
    if quantize is not None:
        converter.optimizations.append(tf.lite.Optimize.DEFAULT)
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        converter.representative_dataset = lambda: iter(batches)
    return converter.convert()


if __name__ == "__main__":
    # TensorFlow imports Keras if it is there, which takes as long as everything else.
    sys.modules["keras"] = None  # type: ignore[assignment]
    import tensorflow  # noqa: F401

    # The folder is complete when the input ends.
    sys.stdin.read()
    convert(sys.argv[1])
