"""Write a LiteRT file, sparse where that makes it smaller."""

import os
import uuid
from collections.abc import Callable, Iterable
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from lc_keras.arguments import keras_model, switch, whole
from lc_keras.export.converter import Converter
from lc_keras.export.directories import check_name, check_parents
from lc_keras.export.exported import LiteRTExport, count_dead_units
from lc_keras.export.saved_model import export_saved_model
from lc_keras.export.warmup import Request, as_request
from lc_keras.internals.keras import layers_in
from lc_keras.model.signatures import Structure, input_signature_of, named, of_batch

Batches = list[dict[str, np.ndarray]]
Data = Iterable[Request] | Callable[[], Iterable[Request]]

# How far the outputs of a sparse file may be from those of the dense one, relative to the largest.
_TOLERANCE = 1e-3
# How many examples the file is run on before it is written.
_EXAMPLES = 200


def export_litert(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    sparse: bool | Literal["auto"] = "auto",
    quantize: Literal["float16", "int8"] | None = None,
    representative_data: Data | None = None,
    batch_size: int | Literal["any"] | None = None,
    input_signature: list[Structure] | None = None,
    overwrite: bool = False,
    verbose: bool = False,
) -> LiteRTExport:
    """Write a model as a LiteRT (TensorFlow Lite) file.

    The file has the signature `serving_default`, with inputs and outputs named as in `export_saved_model`.
    It is run with the `ai-edge-litert` interpreter before it is written. A sparse file is not used if this
    runtime cannot load it, or if its outputs differ from those of the dense file. Zero weights stay zero
    when quantised. The converter and the interpreter run in a process of their own: if either crashes, this
    function raises an error.

    Args:
        model: Built `keras.Model` in float32.
        path: String or path-like, the file to write, such as `"digits.tflite"`.
        sparse: `"auto"` (default): weights are stored sparse if that makes the file
            smaller and the file runs. `True`: dense and convolution kernels are stored sparse if
            at least 30 % of them is zero. `False`: they are not.
        quantize: `None` (default), `"float16"` (weights) or `"int8"` (weights and
            activations, calibrated on `representative_data`; inputs and outputs stay
            as they are).
        representative_data: Iterable of batches of inputs, without targets: arrays, or dictionaries of
            arrays by input name. A single batch will do, and so will a function that returns such an
            iterable, as TensorFlow's converter takes it. Needed for `"int8"`. `None` (default): none.
        batch_size: Int, the batch size that the file is made for. `None` (default): the one that the model's
            graph fixes or `input_signature` has, or 1 if it is open. `"any"`: it stays open, for a runtime
            that resizes inputs, such as TensorFlow Serving.
        input_signature: List of `tf.TensorSpec` or of structures of these, one for each positional argument
            of the model. `None` (default): the inputs that the model was built for; see
            `export_saved_model`.
        overwrite: Bool, default `False`. `True`: replaces an existing file.
        verbose: Bool, default `False`. `True`: prints what was written.

    Returns:
        `LiteRTExport`.

    Raises:
        ImportError: If `ai-edge-litert` is not installed.
        RuntimeError: If LiteRT cannot express the model, the converter crashes, or the runtime cannot run
            the file, or cannot run it sparse with `sparse=True`.
        TypeError: If `model` is not a `keras.Model`, or an argument is of the wrong type.
        ValueError: If an argument is out of range; the model is not built or not in float32; a weight is NaN;
            inputs are ragged or sparse, or have several batch sizes; `path` has the name of a Keras file, is
            a directory, lies in a file, or exists while `overwrite` is `False`; `representative_data` is
            missing, empty, not finite, or of other shapes or types than the inputs; or the model can answer
            neither these data nor, without any, made-up inputs.

    Example:

    ```python
    lc_keras.export_litert(model, "digits.tflite")
    ```
    """
    path = os.fspath(path)
    overwrite, verbose = switch("overwrite", overwrite), switch("verbose", verbose)
    _check_arguments(model, path, sparse, quantize, representative_data, overwrite)
    sparse = sparse if isinstance(sparse, str) else bool(sparse)
    if isinstance(batch_size, str) and batch_size != "any":
        raise ValueError(
            'Expected `batch_size` to be a whole number ≥ 1, "any" or None. Received: '
            f"batch_size={batch_size!r}"
        )
    if not (batch_size is None or batch_size == "any"):
        batch_size = whole("batch_size", batch_size)
    _check_runtime()
    structure = _of_batch(model, input_signature, batch_size)
    specs = named(structure, model)
    batches = _batches(representative_data, specs)
    # Where any size will do, the smallest, or one of which a few convolutions leave something. Whole numbers
    # are ones, of which masks hide nothing, unless a table has no such entry.
    tries = [batches] if batches else [[_made_up(specs, n, whole)] for n in (1, 32) for whole in (1, 0)]
    count = max(1, _EXAMPLES // (specs[0].shape[0] or 1))
    names = ["dense"] if sparse is False else ["dense", "sparse"]
    with Converter() as converter:
        export_saved_model(
            model, converter.saved_model, storage="dense", compute="dense", input_signature=structure
        )
        served = tf.saved_model.load(converter.saved_model).signatures["serving_default"]
        inputs, expected = _answered(served, tries, count, made_up=not batches)
        converter.run(names, quantize, inputs, count)
        dense = chosen = converter.result("dense")
        refused = ""
        if sparse is not False:
            try:
                candidate = converter.result("sparse")
                # Where nothing is sparse, the same weights may still take a few bytes less.
                if sparse is True or len(candidate.content) < 0.99 * len(dense.content):
                    # NaN is not below it either.
                    if not (difference := _difference(candidate.answers, dense.answers)) <= _TOLERANCE:
                        raise RuntimeError(f"it answers otherwise than the dense file, by {difference:.2g}")
                    chosen = candidate
            except RuntimeError as error:
                if sparse is True:
                    raise RuntimeError(f"LiteRT cannot run the model with sparse weights: {error}") from error
                refused = str(error)
    dead = count_dead_units(model)
    _write(path, chosen.content, overwrite)
    exported = LiteRTExport(
        path=path,
        nbytes=len(chosen.content),
        dense_nbytes=len(dense.content),
        sparse=chosen.sparse,
        error=_difference(chosen.answers, expected),
        refused=refused,
        answered=_whose(batches[:count], quantize),
        slow=chosen.sparse and quantize == "int8",
        dead=dead,
    )
    if verbose:
        print(exported)
    return exported


def _check_arguments(
    model: keras.Model,
    path: str,
    sparse: bool | str,
    quantize: str | None,
    representative_data: Data | None,
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
    is_data = callable(representative_data) or isinstance(representative_data, Iterable)
    if representative_data is not None and not is_data:
        raise TypeError(
            "Expected `representative_data` to be an iterable of inputs, or a function that returns one. "
            f"Received: {representative_data!r} (of type {type(representative_data).__name__})"
        )
    if not os.path.basename(path):
        raise ValueError(f"Expected `path` to end in the name of a file. Received: '{path}'")
    if os.path.isdir(path):
        raise ValueError(f"Expected `path` to be a file. Received: the directory '{path}'.")
    check_name(path)
    check_parents(os.path.dirname(path))
    _check_free(path, overwrite)
    for layer in layers_in(model):
        if layer.compute_dtype in ("float64", "float16", "bfloat16"):
            raise ValueError(
                f"Expected a model in float32. Received: layer '{layer.name}' in {layer.compute_dtype}."
            )


def _check_runtime() -> None:
    try:
        import ai_edge_litert.interpreter  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "A LiteRT file is checked with ai-edge-litert, which is not installed: "
            'pip install "lc_keras[litert]".'
        ) from error


def _batches(representative_data: Data | None, specs: list[tf.TensorSpec]) -> Batches:
    """Return the representative data, cut into batches of the size of the file, or of one if that is open."""
    cut = []
    any_size = [of_batch(spec, None) for spec in specs]
    size = specs[0].shape[0] or 1

    def is_request(given: Any) -> bool:
        is_array = len(specs) == 1 and hasattr(given, "shape")
        return isinstance(given, dict) or (is_array and any_size[0].shape.rank in (None, len(given.shape)))

    data: Any = representative_data() if callable(representative_data) else representative_data
    for given in [data] if is_request(data) else data if data is not None else ():
        # A function for TensorFlow's converter yields lists.
        listed = isinstance(given, (list, tuple)) and len(given) == 1 and is_request(given[0])
        inputs = as_request(given[0] if listed else given, any_size, "representative_data")
        lengths = {name: len(array) for name, array in inputs.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"Expected as many examples of each input in `representative_data`. Received: {lengths}"
            )
        for name, array in inputs.items():
            if array.dtype.kind == "f" and not np.isfinite(array).all():
                raise ValueError(
                    "Expected `representative_data` to be finite. "
                    f"Received: NaN or infinity for input '{name}', of which no range can be calibrated."
                )
        cut += [
            {name: array[start : start + size] for name, array in inputs.items()}
            for start in range(0, min(lengths.values()) - size + 1, size)
        ]
    if representative_data is not None and not cut:
        raise ValueError(f"Expected `representative_data` of at least {size} examples. Received: fewer.")
    return cut


def _made_up(specs: list[tf.TensorSpec], open_size: int, whole: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {spec.name: [size or open_size for size in spec.shape] for spec in specs}
    return {
        spec.name: random.normal(size=shapes[spec.name]).astype(spec.dtype.as_numpy_dtype)
        if spec.dtype.is_floating
        else np.full(shapes[spec.name], b"" if spec.dtype == tf.string else whole, spec.dtype.as_numpy_dtype)
        for spec in specs
    }


def _answered(
    function: Callable[..., dict[str, tf.Tensor]], tries: list[Batches], count: int, made_up: bool
) -> tuple[Batches, dict[str, np.ndarray]]:
    """Return the first list of batches that a model can answer, and its answers to `count` of them."""
    for batches in tries:
        try:
            outputs = [
                function(**{name: tf.constant(x) for name, x in batch.items()}) for batch in batches[:count]
            ]
            return batches, {
                f"{i}/{k}": x.numpy() for i, found in enumerate(outputs) for k, x in found.items()
            }
        except tf.errors.OpError as error:
            failed = error
    shapes = ", ".join(f"{name} {x.shape}" for name, x in tries[-1][0].items())
    whose = "made up for want of `representative_data`" if made_up else "of `representative_data`"
    raise ValueError(
        f"Expected inputs that the model can answer. Received: those {whose}, {shapes}: {failed.message}"
    ) from failed


def _whose(batches: Batches, quantize: str | None) -> str:
    """Return which inputs were answered."""
    if not batches:
        return "made-up inputs"
    examples = sum(len(next(iter(batch.values()))) for batch in batches)
    others = ", on which it was calibrated: on others it may be further off" if quantize == "int8" else ""
    return f"{examples} of `representative_data`{others}"


def _of_batch(
    model: keras.Model, input_signature: list[Structure] | None, batch_size: int | Literal["any"] | None
) -> list[Structure]:
    """Return the inputs that the file is made for, all with one batch size."""
    structure = input_signature_of(model) if input_signature is None else input_signature
    if len(named(structure)) > len(keras.tree.flatten(structure)):
        raise ValueError(f"Expected dense inputs, the only ones that LiteRT takes. Received: {structure}")
    if batch_size == "any":
        return structure
    sizes = {spec.shape[0] for spec in named(structure) if spec.shape.rank} - {None}
    if len(sizes | {batch_size} - {None}) > 1:
        raise ValueError(
            f"Expected one batch size. Received: batch_size={batch_size}, and inputs of {sorted(sizes)}."
        )
    size = batch_size or next(iter(sizes), 1)
    return keras.tree.map_structure(lambda spec: of_batch(spec, size), structure)


def _difference(answers: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> float:
    """Return the largest difference, relative to the largest output; NaN equals NaN."""
    pairs = [(answers[name].astype(float), output.astype(float)) for name, output in expected.items()]
    largest = max(np.abs(output[np.isfinite(output)]).max(initial=0) for _, output in pairs)
    unlike = [~np.isclose(answer, output, rtol=0, atol=0, equal_nan=True) for answer, output in pairs]
    # NaN is larger than anything for NumPy, but not for Python.
    difference = np.max(
        [
            np.abs(answer[where] - output[where]).max(initial=0)
            for (answer, output), where in zip(pairs, unlike, strict=True)
        ]
    )
    return float(difference / largest) if largest else float(difference)


def _check_free(path: str, overwrite: bool) -> None:
    if os.path.lexists(path) and not overwrite:
        raise ValueError(
            f"Expected `path` to be new. Received: '{path}', which exists; pass overwrite=True to replace it."
        )


def _write(path: str, content: bytes, overwrite: bool) -> None:
    unfinished = f"{path}.unfinished-{uuid.uuid4().hex}"
    try:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(unfinished, "wb") as file:
            file.write(content)
        # It may have appeared since the arguments were checked.
        _check_free(path, overwrite)
        os.replace(unfinished, path)
    finally:
        if os.path.exists(unfinished):
            os.remove(unfinished)
