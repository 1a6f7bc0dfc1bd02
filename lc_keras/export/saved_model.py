"""Write a SavedModel as small as the pruned model is, for TensorFlow Serving."""

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from lc_keras.arguments import keras_model, switch, whole
from lc_keras.export.directories import appearing, check_free, version_directory
from lc_keras.export.exported import (
    ExportedWeight,
    LiteRTExport,
    SavedModelExport,
    count_dead_units,
    described,
    exported_as,
)
from lc_keras.export.resources import resources_of, save_tracked
from lc_keras.export.sparse import Sparse, choose, sparse_methods
from lc_keras.export.stored import LoadOnce, StoredSparse, StoredWeight
from lc_keras.export.warmup import Requests, as_requests, prediction_log, write_warmup
from lc_keras.internals.keras import layers_in, replaced
from lc_keras.internals.tensorflow import in_silence, untraced, untraced_calls, view_of
from lc_keras.measuring.coding import steps_of
from lc_keras.measuring.counting import REPORT_FILE, measure, size_of
from lc_keras.measuring.packing import Packed, pack, pays
from lc_keras.model.macs import Uses, count_uses
from lc_keras.model.signatures import Structure, input_signature_of, named, named_outputs, packed

# Functions of the inputs of a model, or of inputs of their own.
Signatures = dict[str, Callable[..., Structure] | tuple[Callable[..., Structure], list[Structure]]]
# What is stored in another form than in the model, by the id of the variable.
Stored = dict[int, tuple[Packed, StoredWeight | StoredSparse]]


def export_saved_model(
    model: keras.Model,
    path: str | os.PathLike[str],
    *,
    storage: Literal["packed", "dense"] = "packed",
    compute: Literal["auto", "dense", "sparse"] = "auto",
    expected_batch: int | Sequence[int] = (1, 32),
    values: Literal["float16"] | None = None,
    input_signature: list[Structure] | None = None,
    signatures: Signatures | None = None,
    warmup: Requests | None = None,
    version: int | Literal["next"] | None = None,
    litert: bool = False,
    overwrite: bool = False,
    verbose: bool = False,
) -> SavedModelExport:
    """Write a model as a SavedModel for inference.

    The SavedModel needs neither Keras nor this package: `tf.saved_model.load` and TensorFlow Serving read
    it. It takes any batch size, or that of the model if the graph fixes one, as a reshape or a stateful
    layer does. Its signature `serving_default` names inputs and outputs by the keys of dictionaries, else
    by the names given to input and output layers, else `inputs` (`inputs_0` and so on, if there are several)
    and `output_0`. A ragged input `x` is passed in parts, `x_values` and `x_row_splits`; a sparse one as
    `x_indices`, `x_values` and `x_dense_shape`.
    Ragged and sparse outputs are returned in the same way. Files behind `tf.saved_model.Asset` are copied.
    When the SavedModel is loaded in Python, its function `serve` takes and returns the structures of the
    model.

    Each variable is written once. Weights with many zeros or few values are written packed, each in the
    encoding that is smallest for it; the SavedModel's own initialisation unpacks them when it is loaded. With
    dense compute, calls then run at the speed of the dense model. With sparse compute, dense layers and 1 × 1
    convolutions stay sparse in memory and multiply by their nonzero weights only.

    The directory takes its name only when it is complete, so a server that watches its parent never sees
    half a model.

    Args:
        model: Built `keras.Model`. A subclassed one must have been called on data.
        path: String or path-like, the directory to write, such as
            `"models/digits/1"`, or a model's base directory: see `version`.
        storage: `"packed"` (default) or `"dense"`.
        compute: `"dense"`: every layer is computed as in Keras, and outputs equal those of `predict` bit for
            bit in batches of the same size. `"sparse"`: dense layers and 1 × 1 convolutions in float32 are
            computed from their nonzero weights; outputs differ by rounding. `"auto"` (default): as
            `"sparse"`, but only the layers for which a measured rule promises 1.4 times the speed.
        expected_batch: Int or tuple of ints, default `(1, 32)`: the batch sizes at
            which `"auto"` must not make a layer slower.
        values: `None` (default): values are stored in their own type. `"float16"`: values of weights with
            two or more axes are stored in half precision, except on a grid, where they take less as they are.
        input_signature: List of `tf.TensorSpec` or of structures of these, one for each positional argument
            of the model. `None` (default): the inputs that the model was built for. A subclassed model does
            not record the types of its inputs: its `input_dtype` is then used, and arguments that have a
            default keep it.
        signatures: Dictionary of further signatures by name: functions of the inputs of the model, or tuples
            of a function and the list of its own `tf.TensorSpec`. The functions may use layers, tables and
            variables that the model does not have, if they refer to them by name. `"serving_default"` is
            the model's own signature. `None` (default): none.
        warmup: Requests that TensorFlow Serving sends itself before it lets the model answer: an array, a
            dictionary of arrays by input name, or a list of up to 1,000 of these. Needs
            `tensorflow-serving-api`. `None` (default): none.
        version: Int: `path` is the model's base directory, and this version is written there. `"next"`: one
            above the highest version there, or 1. `None` (default): `"next"` if `path` already holds
            versions; if not, `path` itself is written.
        litert: Bool, default `False`. `True`: also writes a LiteRT file, `model.tflite`, into the same
            directory, which `tensorflow_model_server --prefer_tflite_model` serves in place of the
            SavedModel. Needs `ai-edge-litert`.
        overwrite: Bool, default `False`. `True`: replaces the SavedModel at that path.
        verbose: Bool, default `False`. `True`: prints what was written.

    Returns:
        `SavedModelExport`.

    Raises:
        TypeError: If `model` is not a `keras.Model`, or an argument is of the wrong type.
        ImportError: If `warmup` is given and `tensorflow-serving-api` is not installed, or `litert` is
            `True` and `ai-edge-litert` is not installed.
        RuntimeError: If `litert` is `True` and LiteRT cannot express or run the model.
        ValueError: If an argument is out of range; the model is not built; a weight is NaN or does not fit in
            half precision; nothing can be computed sparse though `compute="sparse"`; `warmup` does not fit
            the inputs; a signature uses what it does not name; with `litert`, for the reasons of
            `export_litert`; or `path` is a file, has the name of a Keras or LiteRT file, holds a
            SavedModel while `overwrite` is `False`, or holds anything else.

    Example:

    ```python
    lc_keras.export_saved_model(model, "models/digits/1")

    # In any process that has TensorFlow:
    served = tf.saved_model.load("models/digits/1")
    probabilities = served.serve(images)
    ```
    """
    keras_model(model)
    _check_choice("storage", storage, ("packed", "dense"))
    _check_choice("compute", compute, ("auto", "dense", "sparse"))
    _check_choice("values", values, (None, "float16"))
    batches, signatures = _batches(expected_batch), _check_signatures(signatures)
    overwrite, verbose = switch("overwrite", overwrite), switch("verbose", verbose)
    path = version_directory(_without_slash(os.fspath(path)), version)
    check_free(path, overwrite)
    structure = input_signature_of(model) if input_signature is None else input_signature
    specs = named(structure, model)
    requests = None if warmup is None else as_requests(warmup, specs)
    if requests:
        prediction_log()
    arrays = _arrays(model)
    uses = count_uses(model, input_signature)
    sparse, declined = choose(model, uses, compute, batches)
    stored = _store(model, arrays, sparse, storage, values)
    module, functions = _module(model, stored, sparse, structure, signatures)
    read = {id(variable) for variable in module.used}
    if also_dense := {id(v) for v in model.variables if id(v.value) in read} & sparse.keys():
        # A kernel that something else reads as well would be in the file twice.
        sparse = {key: layers for key, layers in sparse.items() if key not in also_dense}
        stored = _store(model, arrays, sparse, storage, values)
        module, functions = _module(model, stored, sparse, structure, signatures)
    if built_by_the_call := model.variables[len(arrays) :]:
        # They are in layers that other layers create as they are built.
        raise ValueError(
            f"Expected a built model. Received: model '{model.name}', of which these weights were not there, "
            f"and are random: {', '.join(variable.path for variable in built_by_the_call)}"
        )
    weights = tuple(
        exported_as(variable, array, stored.get(id(variable)))
        for variable, array in zip(model.variables, arrays, strict=True)
    )
    with appearing(path, overwrite) as unfinished, in_silence():
        save_tracked(module, unfinished, functions)
        warmup_nbytes = write_warmup(unfinished, requests) if requests else 0
        _write_report(unfinished, model, weights, uses)
        lite = _beside(unfinished, model, structure) if switch("litert", litert) else None
        dead = lite.dead if lite else count_dead_units(model)
    inputs = tuple(map(described, specs))
    exported = SavedModelExport(
        path, size_of(path), weights, tuple(functions), inputs, lite, dead, storage, warmup_nbytes, declined
    )
    if verbose:
        print(exported)
    return exported


def _without_slash(path: str) -> str:
    return path.rstrip("/") or path[:1]


def _arrays(model: keras.Model) -> list[np.ndarray]:
    arrays = [view_of(variable) for variable in model.variables]
    for variable, array in zip(model.variables, arrays, strict=True):
        if keras.backend.is_float_dtype(variable.dtype) and np.isnan(array).any():
            raise ValueError(f"Expected weights that are numbers. Received: NaN in '{variable.path}'.")
    return arrays


def _store(
    model: keras.Model, arrays: list[np.ndarray], sparse: Sparse, storage: str, values: str | None
) -> Stored:
    """Return what is stored in another form than in the model, by the id of the variable."""
    kept: dict[int, np.ndarray] = {}
    packs = storage == "packed"
    for variable, array in zip(model.variables, arrays, strict=True):
        if keras.backend.is_float_dtype(variable.dtype):
            narrow = values == "float16" and array.ndim > 1 and array.itemsize > 2
            # Off its grid a weight would take more bits than on it.
            narrow = narrow and not (packs and steps_of(array) is not None)
            kept[id(variable)] = _in_half_precision(variable, array) if narrow else array
    packed = {key: pack(array) for key, array in kept.items() if packs and key not in sparse}
    if not pays(weight.saved for weight in packed.values()):
        packed = {}
    stored: Stored = {}
    for variable, array in zip(model.variables, arrays, strict=True):
        key, dtype = id(variable), variable.dtype
        if key in sparse:
            matrix = pack(kept[key].reshape(kept[key].shape[-2:]).T, dense=False)
            stored[key] = matrix, StoredSparse(matrix, dtype)
        elif key in kept:
            weight = packed.get(key) or Packed("dense", array.shape, kept[key])
            if weight.name != "dense" or kept[key] is not array:
                stored[key] = weight, StoredWeight(weight, dtype)
    return stored


def _in_half_precision(variable: keras.Variable, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = array.astype("float16")
    if not np.array_equal(np.isinf(half), np.isinf(array)):
        raise ValueError(
            "Expected weights up to 65504 in magnitude to store in float16. "
            f"Received: {np.abs(array).max():.4g} in '{variable.path}'."
        )
    return half


def _module(
    model: keras.Model, stored: Stored, sparse: Sparse, structure: list[Structure], further: Signatures
) -> tuple[tf.Module, dict[str, Callable[..., Any]]]:
    """Return a `tf.Module` that tracks what its signatures use, and the signatures."""
    dense = {k: w for k, (_, w) in stored.items() if isinstance(w, StoredWeight)}
    methods = [
        method
        for key, layers in sparse.items()
        for layer in layers
        for method in sparse_methods(layer, stored[key][1])
    ]
    # The call must not add weights to the model, which would be random.
    unbuilt = [part for part in layers_in(model) if not part.built]
    methods += [(part, "add_weight", _refuse(model, part)) for part in unbuilt]
    variables = {id(variable): variable for variable in model.variables}

    def with_stored_weights(function: Callable[..., Structure]) -> Callable[..., Structure]:
        """Return a function that reads the stored weights in place of the model's."""

        def serve(*inputs: tf.Tensor) -> Structure:
            mapping = [(variables[key], weight.read()) for key, weight in dense.items()]
            with contextlib.ExitStack() as stack:
                scope = stack.enter_context(_Scope(mapping))
                # Without traces for each of these functions: a trace holds what was read for one of them.
                stack.enter_context(replaced([*methods, *untraced_calls(layers_in(model))]))
                outputs = function(*inputs)
            # Only the weights are replaced: states, such as a random seed, still advance.
            for key, variable in scope.updated.items():
                value = scope.get_current_value(variable)
                # What a loop has updated stays inside it.
                if key not in dense and value.graph is tf.compat.v1.get_default_graph():
                    variable.assign(value)
            return outputs

        return serve

    typed = functools.partial(tf.function, input_signature=_with_single_name(structure), autograph=False)
    traced = typed(with_stored_weights(lambda *inputs: model(*inputs, training=False)))
    # TensorFlow would trace a function twice if the module held it.
    called = traced.get_concrete_function()
    serve = typed(lambda *inputs: called(*inputs))
    names = named_outputs(model)
    functions = {"serving_default": _signature(serve, structure, named(structure, model), names)}
    for name, given in further.items():
        function, own = given if isinstance(given, tuple) else (given, structure)
        traced = tf.function(with_stored_weights(untraced(function)), input_signature=own, autograph=False)
        inputs = named(own, model if own is structure else None)
        functions[name] = _signature(traced, own, inputs, named_outputs(model))
    functions.setdefault("serve", functions["serving_default"])

    module = tf.Module()
    module.serve = serve
    module.stored = [weight for _, weight in stored.values()]
    if stored:
        module.load_once = LoadOnce(module.stored)
    traces = [function.get_concrete_function() for function in (serve, *functions.values())]
    module.used = list({id(v): v for trace in traces for v in trace.variables}.values())
    module.resources = resources_of(model, [f[0] if isinstance(f, tuple) else f for f in further.values()])
    return module, functions


def _refuse(model: keras.Model, layer: keras.Layer) -> Callable[..., None]:
    def add_weight(*_: object, **__: object) -> None:
        raise ValueError(
            f"Expected a built model. Received: model '{model.name}', of which '{layer.name}' was not built, "
            "so that its weights would be random."
        )

    return add_weight


class _Scope(keras.StatelessScope):
    """A scope that records what is updated in it, since Keras has no list of some states."""

    def __init__(self, mapping: list[tuple[keras.Variable, tf.Tensor]]) -> None:
        super().__init__(mapping)
        self.updated: dict[int, keras.Variable] = {}

    def add_update(self, update: tuple[keras.Variable, tf.Tensor]) -> None:
        super().add_update(update)
        self.updated[id(update[0])] = update[0]


def _signature(
    function: Callable[..., Structure],
    structure: list[Structure],
    inputs: list[tf.TensorSpec],
    names: Callable[[Structure], dict[str, tf.Tensor]],
) -> Callable[..., dict[str, tf.Tensor]]:
    """Return a function from flat, named inputs to a dictionary of named outputs."""

    @tf.function(input_signature=inputs, autograph=False)
    def signature(*flat: tf.Tensor) -> dict[str, tf.Tensor]:
        return names(function(*packed(structure, flat)))

    return signature


def _with_single_name(structure: list[Structure]) -> list[Structure]:
    """Return the structure, with a name for its input if there is only one."""
    if len(structure) == 1 and isinstance(structure[0], tf.TensorSpec):
        return named(structure)
    return structure


def _write_report(folder: str, model: keras.Model, weights: Sequence[ExportedWeight], uses: Uses) -> None:
    stored = {id(v): (w.encoding, w.nbytes) for v, w in zip(model.variables, weights, strict=True)}
    file = os.path.join(folder, REPORT_FILE)
    tf.io.gfile.makedirs(os.path.dirname(file))
    with tf.io.gfile.GFile(file, "w") as opened:
        opened.write(measure(model, model.variables, uses, stored).to_json())


def _beside(folder: str, model: keras.Model, structure: list[Structure]) -> LiteRTExport:
    """Write the LiteRT file that a model server finds beside a SavedModel."""
    from lc_keras.export.litert import export_litert  # which exports a SavedModel itself

    file = os.path.join(folder, "model.tflite")
    written = export_litert(model, file, batch_size="any", input_signature=structure)
    return dataclasses.replace(written, path="model.tflite")


def _check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    if not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
        raise ValueError(
            f"Expected `{name}` to be one of {', '.join(map(repr, choices))}. Received: {value!r}"
        )


def _batches(expected: int | Sequence[int]) -> list[int]:
    given = expected.tolist() if isinstance(expected, np.ndarray) else expected
    batches = list(given) if isinstance(given, Iterable) and not isinstance(given, str) else [given]
    if not batches:
        raise ValueError("Expected `expected_batch` to hold a batch size. Received: none")
    return [whole("expected_batch", batch) for batch in batches]


def _is_pair(given: object) -> bool:
    """Return whether what is given is a function with the specification of its inputs."""
    if not (isinstance(given, tuple) and len(given) == 2):
        return False
    function, inputs = given
    return callable(function) and isinstance(inputs, (list, tuple))


def _check_signatures(signatures: Signatures | None) -> Signatures:
    signatures = {} if signatures is None else signatures
    functions = signatures.values() if isinstance(signatures, Mapping) else [None]
    if not all(callable(given) or _is_pair(given) for given in functions):
        raise TypeError(
            "Expected `signatures` to be a dictionary of functions, or of tuples of a function and a list of "
            f"tf.TensorSpec. Received: {signatures!r}"
        )
    if "serving_default" in signatures:
        raise ValueError(
            "Expected `signatures` by other names than the model's own. Received: 'serving_default'"
        )
    return signatures
