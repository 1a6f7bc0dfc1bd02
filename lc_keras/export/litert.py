"""Write a LiteRT file, sparse where that makes it smaller."""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import keras
import numpy as np
import tensorflow as tf

from lc_keras.arguments import keras_model, switch, whole
from lc_keras.export.directories import check_parents
from lc_keras.export.saved_model import export_saved_model
from lc_keras.export.warmup import Request, as_request
from lc_keras.internals import layers_in
from lc_keras.model.signatures import input_signature_of, named, of_batch

Batches = list[dict[str, np.ndarray]]

# How far a sparse file may answer from the dense one, relative to the largest output.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class LiteRTExport:
    """The size and the error of a LiteRT file; see `export_litert`.

    Attributes:
        path: String, the file.
        nbytes: Int, its size.
        dense_nbytes: Int, the size it has without sparse weights.
        sparse: Bool, whether weights are stored sparse.
        error: Float, how far it answers from the Keras model, relative to the largest
            output, on the first of `representative_data` or on made-up inputs.
        refused: String, why the sparse encoding was not used though it would have been
            smaller, or empty.
    """

    path: str
    nbytes: int
    dense_nbytes: int
    sparse: bool
    error: float
    refused: str

    def __str__(self) -> str:
        encoding = "sparse" if self.sparse else "dense"
        text = (
            f"Wrote '{self.path}': {self.nbytes / 1000:,.0f} kB, {encoding} "
            f"({self.dense_nbytes / 1000:,.0f} kB if dense), outputs within {self.error:.1g} of Keras."
        )
        return f"{text}\nNot sparse: {self.refused}" if self.refused else text


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    sparse: bool | Literal["auto"] = "auto",
    quantize: Literal["float16", "int8"] | None = None,
    representative_data: Iterable[Request] | None = None,
    batch_size: int = 1,
    overwrite: bool = False,
    verbose: bool = False,
) -> LiteRTExport:
    """Write a model as a LiteRT (TensorFlow Lite) file.

    The file has the signature `serving_default`, with inputs and outputs named as by
    `export_saved_model`. It is run with the `ai-edge-litert` interpreter before it is
    written: a sparse file that this runtime cannot load, or that answers otherwise than
    the dense one, is not used. Weights that are zero stay zero when quantised.

    Args:
        model: Built `keras.Model` in float32.
        path: String or path-like, the file to write, such as `"digits.tflite"`.
        sparse: `"auto"` (default): weights are stored sparse if that makes the file
            smaller and it runs. `True`: they are stored sparse, if any are zero. `False`:
            they are not.
        quantize: `None` (default), `"float16"` (weights) or `"int8"` (weights and
            activations, calibrated on `representative_data`; inputs and outputs stay
            as they are).
        representative_data: Iterable of inputs: arrays, or dictionaries of arrays by
            the names of the inputs. Needed for `"int8"`. `None` (default): none.
        batch_size: Int, default 1, the batch that the file is made for.
        overwrite: Bool, default `False`. `True`: replaces the file.
        verbose: Bool, default `False`. `True`: prints what was written.

    Returns:
        `LiteRTExport`.

    Raises:
        ImportError: If `ai-edge-litert` is not installed.
        RuntimeError: If LiteRT cannot express the model, the runtime cannot run the
            file, or not as `sparse=True` asks.
        TypeError: If `model` is not a `keras.Model`, or an argument of another type.
        ValueError: If an argument is out of its range, the model is not built or not in
            float32, `path` is a directory, lies in a file, or exists and `overwrite` is
            `False`, or `representative_data` is missing, or the model cannot answer it.

    Example:

    ```python
    lc_keras.export_litert(model, "digits.tflite")
    ```
    """
    path = os.fspath(path)
    overwrite, verbose = switch("overwrite", overwrite), switch("verbose", verbose)
    _check_arguments(model, path, sparse, quantize, representative_data, overwrite)
    sparse = sparse if isinstance(sparse, str) else bool(sparse)
    batch_size = whole("batch_size", batch_size)
    interpreter_class = _interpreter()
    signature = keras.tree.map_structure(lambda spec: of_batch(spec, batch_size), input_signature_of(model))
    specs = named(signature)
    batches = _batches(representative_data, specs, batch_size)
    # Where any size will do, the smallest, or one that a few convolutions leave something of.
    samples = batches[:1] or [_made_up(specs, size) for size in (1, 32)]

    with tempfile.TemporaryDirectory() as folder:
        saved = os.path.join(folder, "model")
        export_saved_model(model, saved, storage="dense", compute="dense", input_signature=signature)
        expected = tf.saved_model.load(saved).signatures["serving_default"]
        sample, expected = _answered(expected, samples, made_up=not batches)
        dense = _convert(saved, quantize, batches, sparse=False)
        candidate = dense if sparse is False else _convert(saved, quantize, batches, sparse=True)
    answers = _run(interpreter_class, dense, sample)
    chosen, refused = dense, ""
    # Where nothing is sparse, the same weights may still take a few bytes less.
    if sparse is True or (sparse == "auto" and len(candidate) < 0.99 * len(dense)):
        try:
            difference = _difference(_run(interpreter_class, candidate, sample), answers)
            # Not a number is not below it either.
            if not difference <= _TOLERANCE:
                raise RuntimeError(f"it answers otherwise than the dense file, by {difference:.2g}")
            chosen, answers = candidate, _run(interpreter_class, candidate, sample)
        except (RuntimeError, ValueError) as error:
            if sparse is True:
                raise RuntimeError(f"LiteRT cannot run the model with sparse weights: {error}") from error
            refused = str(error)
    _write(path, chosen)
    exported = LiteRTExport(
        path=path,
        nbytes=len(chosen),
        dense_nbytes=len(dense),
        sparse=_is_sparse(interpreter_class, chosen),
        error=_difference(answers, expected),
        refused=refused,
    )
    if verbose:
        print(exported)
    return exported


def _check_arguments(
    model: keras.Model,
    path: str,
    sparse: bool | str,
    quantize: str | None,
    representative_data: Iterable[Request] | None,
    overwrite: bool,
) -> None:
    keras_model(model)
    if not (isinstance(sparse, (bool, np.bool_)) or (isinstance(sparse, str) and sparse == "auto")):
        error = ValueError if isinstance(sparse, str) else TypeError
        raise error(f'Expected `sparse` to be "auto", True or False. Received: sparse={sparse!r}')
    if quantize not in (None, "float16", "int8"):
        raise ValueError(f'Expected `quantize` to be None, "float16" or "int8". Received: {quantize!r}')
    if quantize == "int8" and representative_data is None:
        raise ValueError('Expected `representative_data` for quantize="int8". Received: None')
    if representative_data is not None and not isinstance(representative_data, Iterable):
        raise TypeError(
            "Expected `representative_data` to be an iterable of inputs. "
            f"Received: {representative_data!r} (of type {type(representative_data).__name__})"
        )
    if not os.path.basename(path):
        raise ValueError(f"Expected `path` to end in the name of a file. Received: '{path}'")
    if os.path.isdir(path):
        raise ValueError(f"Expected `path` to be a file. Received: the directory '{path}'.")
    check_parents(os.path.dirname(path))
    if os.path.exists(path) and not overwrite:
        raise ValueError(
            f"Expected `path` to be new. Received: '{path}', which exists; pass overwrite=True to replace it."
        )
    for layer in layers_in(model):
        if layer.compute_dtype in ("float64", "float16", "bfloat16"):
            raise ValueError(
                f"Expected a model in float32. Received: layer '{layer.name}' in {layer.compute_dtype}."
            )


def _interpreter() -> type:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise ImportError(
            "A LiteRT file is checked with ai-edge-litert, which is not installed: "
            'pip install "lc_keras[litert]".'
        ) from error
    return Interpreter


def _batches(
    representative_data: Iterable[Request] | None, specs: list[tf.TensorSpec], batch_size: int
) -> Batches:
    """Return the representative data, cut into dictionaries of batches of the size of the file."""
    cut = []
    any_size = [of_batch(spec, None) for spec in specs]
    for given in representative_data if representative_data is not None else ():
        inputs = as_request(given, any_size, "representative_data")
        size = min(len(array) for array in inputs.values())
        cut += [
            {name: array[start : start + batch_size] for name, array in inputs.items()}
            for start in range(0, size - batch_size + 1, batch_size)
        ]
    if representative_data is not None and not cut:
        raise ValueError(
            f"Expected `representative_data` of at least {batch_size} examples. Received: fewer."
        )
    return cut


def _made_up(specs: list[tf.TensorSpec], open_size: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {spec.name: [size or open_size for size in spec.shape] for spec in specs}
    return {
        spec.name: random.normal(size=shapes[spec.name]).astype(spec.dtype.as_numpy_dtype)
        if spec.dtype.is_floating
        else np.full(shapes[spec.name], b"" if spec.dtype == tf.string else 0, spec.dtype.as_numpy_dtype)
        for spec in specs
    }


def _answered(
    function: Callable[..., dict[str, tf.Tensor]], samples: Batches, made_up: bool
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return the first of some samples that a model can answer, and its answer."""
    for sample in samples:
        try:
            outputs = function(**{name: tf.constant(x) for name, x in sample.items()})
            return sample, {name: output.numpy() for name, output in outputs.items()}
        except tf.errors.OpError as error:
            failed = error
    shapes = ", ".join(f"{name} {x.shape}" for name, x in samples[-1].items())
    whose = "made up for want of `representative_data`" if made_up else "of `representative_data`"
    raise ValueError(
        f"Expected inputs that the model can answer. Received: those {whose}, {shapes}: {failed.message}"
    ) from failed


def _convert(saved: str, quantize: str | None, batches: Batches, sparse: bool) -> bytes:
    converter = tf.lite.TFLiteConverter.from_saved_model(saved, signature_keys=["serving_default"])
    optimizations = []
    if sparse:
        optimizations.append(tf.lite.Optimize.EXPERIMENTAL_SPARSITY)
    if quantize is not None:
        optimizations.append(tf.lite.Optimize.DEFAULT)
    converter.optimizations = optimizations
    if quantize == "float16":
        converter.target_spec.supported_types = [tf.float16]
    if quantize == "int8":
        converter.representative_dataset = lambda: iter(batches)
    try:
        return converter.convert()
    # The converter's own error has no public name.
    except Exception as error:
        raise RuntimeError(f"LiteRT cannot express the model: {error}") from error


def _run(interpreter_class: type, content: bytes, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    runner = interpreter_class(model_content=content).get_signature_runner("serving_default")
    return runner(**inputs)


def _is_sparse(interpreter_class: type, content: bytes) -> bool:
    details = interpreter_class(model_content=content).get_tensor_details()
    return any(detail["sparsity_parameters"] for detail in details)


def _difference(answers: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Return the largest difference, relative to the largest output."""
    largest = max(np.abs(output).max(initial=0) for output in expected.values())
    difference = max(
        np.abs(answers[name].astype(float) - output).max(initial=0) for name, output in expected.items()
    )
    return float(difference / largest) if largest else float(difference)


def _write(path: str, content: bytes) -> None:
    unfinished = f"{path}.unfinished-{uuid.uuid4().hex}"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(unfinished, "wb") as file:
            file.write(content)
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)
