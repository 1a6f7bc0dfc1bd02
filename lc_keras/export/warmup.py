"""Write requests that TensorFlow Serving sends itself while it loads a model, so that no user waits."""

import os
from collections.abc import Iterable
from types import ModuleType

import numpy as np
import tensorflow as tf

from lc_keras.model.signatures import argument_name

# An array for a single input, or arrays by input name.
Request = np.ndarray | dict[str, np.ndarray]
Requests = Request | list[Request] | tuple[Request, ...]

# The model server refuses to load a model with more.
_MOST_RECORDS = 1000
_FILE = "assets.extra/tf_serving_warmup_requests"


def as_requests(warmup: Requests, specs: list[tf.TensorSpec]) -> list[dict[str, np.ndarray]]:
    """Check warm-up requests against the inputs of a model.

    Args:
        warmup: What `export_saved_model` takes: an array for one input, a dictionary of arrays by input
            name, or a list of these.
        specs: List of `tf.TensorSpec`, the named inputs.

    Returns:
        List of dictionaries of arrays by input name, in the types of the inputs.

    Raises:
        ValueError: If inputs are missing or unknown, a shape does not fit, or there
            are no requests or more than the model server takes.
    """
    requests = list(warmup) if isinstance(warmup, (list, tuple)) else [warmup]
    if not 1 <= len(requests) <= _MOST_RECORDS:
        raise ValueError(f"Expected `warmup` to be 1 to {_MOST_RECORDS} requests. Received: {len(requests)}")
    return [as_request(request, specs, "warmup") for request in requests]


def as_request(given: Request, specs: list[tf.TensorSpec], argument: str) -> dict[str, np.ndarray]:
    """Check arrays against the inputs of a model.

    Args:
        given: An array for one input, or a dictionary of arrays by input name, as the inputs are served or
            as the model names them.
        specs: List of `tf.TensorSpec`, the named inputs.
        argument: String, the argument in which the user passes the arrays.

    Returns:
        Dictionary of arrays by input name, in the types of the inputs.

    Raises:
        ValueError: If inputs are missing or unknown, or a shape or a type does not fit.
    """
    names = [spec.name for spec in specs]
    if not isinstance(given, dict):
        if len(specs) > 1:
            raise ValueError(
                f"Expected each request of `{argument}` to be a dictionary with the keys {', '.join(names)}. "
                f"Received: {_named(given)}"
            )
        given = {names[0]: given}
    given = {argument_name(str(name)): array for name, array in given.items()}
    if set(given) != set(names):
        raise ValueError(
            f"Expected a request of `{argument}` for the inputs {', '.join(names)}. "
            f"Received: {', '.join(map(str, given))}"
        )
    request = {}
    for spec in specs:
        try:
            array = None if isinstance(given[spec.name], tuple) else np.asarray(given[spec.name])
        except ValueError:
            array = None
        if array is None:
            raise ValueError(
                f"Expected `{argument}` for input '{spec.name}' to be an array. "
                f"Received: {_named(given[spec.name])}"
            )
        if not spec.shape.is_compatible_with(array.shape):
            raise ValueError(
                f"Expected `{argument}` for input '{spec.name}' of shape {tuple(spec.shape)}. "
                f"Received: shape {array.shape}"
            )
        if spec.dtype != tf.string and not np.can_cast(array.dtype, spec.dtype.as_numpy_dtype, "same_kind"):
            raise ValueError(
                f"Expected `{argument}` for input '{spec.name}' of type {spec.dtype.name}. "
                f"Received: type {array.dtype}"
            )
        request[spec.name] = array.astype(spec.dtype.as_numpy_dtype)
    return request


def _named(given: object) -> str:
    """Return the type of what was given instead of an array, and what to do with it."""
    if isinstance(given, tuple):
        return (
            f"a tuple of {len(given)}; if that is (inputs, targets), pass the inputs alone, as "
            "`dataset.map(lambda inputs, targets: inputs)` does"
        )
    return type(given).__name__


def write_warmup(folder: str, requests: Iterable[dict[str, np.ndarray]]) -> int:
    """Write warm-up requests into a SavedModel, as `PredictionLog` records.

    Args:
        folder: String, the SavedModel.
        requests: Iterable of dictionaries of arrays by input name.

    Returns:
        Int, the size of the file.

    Raises:
        ImportError: If `tensorflow-serving-api` is not installed.
    """
    path = os.path.join(folder, _FILE)
    log = prediction_log()
    tf.io.gfile.makedirs(os.path.dirname(path))
    with tf.io.TFRecordWriter(path) as writer:
        for inputs in requests:
            record = log.PredictionLog()
            request = record.predict_log.request
            request.model_spec.signature_name = "serving_default"
            for name, array in inputs.items():
                request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
            writer.write(record.SerializeToString())
    return os.path.getsize(path)


def prediction_log() -> ModuleType:
    """Return the module that holds the model server's `PredictionLog`.

    Raises:
        ImportError: If `tensorflow-serving-api` is not installed.
    """
    try:
        from tensorflow_serving.apis import prediction_log_pb2
    except ImportError as error:
        raise ImportError(
            "Warm-up requests need tensorflow-serving-api, which is not installed: "
            'pip install "lc_keras[serving]".'
        ) from error
    return prediction_log_pb2
