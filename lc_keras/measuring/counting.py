"""Count what pruning left of a model: variable by variable, in bits and in multiply-adds."""

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import fields

import keras
import numpy as np
import tensorflow as tf

from lc_keras.measuring.packing import pack, pays
from lc_keras.measuring.table import PruningReport, VariableReport
from lc_keras.model.kernels import default_kernels, frozen_kernels, is_table
from lc_keras.model.macs import Uses, count_uses
from lc_keras.model.signatures import Structure, is_built

# How variables are stored, by id: the encoding and the bytes.
Stored = dict[int, tuple[str, int]]

# Where `export_saved_model` puts the report in a SavedModel; a model server ignores it.
REPORT_FILE = os.path.join("assets.extra", "lc_keras_report.json")


def report(
    model: keras.Model | str | os.PathLike[str], input_signature: list[Structure] | None = None
) -> PruningReport:
    """Report what is left of a model, and what it takes to store and to compute.

    The model may be any with zeros in it, however they got there. The kernels are the weights that a `Task`
    takes by default. Embedding tables, which it takes with `embeddings=True`, count among them if they have
    zeros and are trainable. Sizes are those of the values, in their own types, without the graph around
    them. A weight is packed as `export_saved_model` packs it: as its nonzero values, with either the number
    of zeros before each in 4, 8 or 16 bits, or a bit for each place; and values that are few are coded in up
    to 8 bits each. It is left as it is if that is smaller.
    `shrink_report` shows what is gained, in time too, by taking out dead neurons.

    Args:
        model: Built `keras.Model`, or the path of a SavedModel that `export_saved_model` wrote, which
            records what was exported, without gzip sizes.
        input_signature: List of `tf.TensorSpec` or of structures of these, one for each positional argument
            of the model: the inputs to count multiply-adds for, if the model leaves their sizes open or has
            not recorded them. `None` (default): those that the model was built for.

    Returns:
        `PruningReport`.

    Raises:
        TypeError: If `model` is neither a `keras.Model` nor a path, or `input_signature` is of another type.
        ValueError: If the model is not built or has no weights, the path holds no such SavedModel or comes
            with an `input_signature`, or the model cannot be called with inputs of this `input_signature`.

    Example:

    ```python
    report = lc_keras.report(model)
    print(report)
    report.plot("density.png")
    ```
    """
    if isinstance(model, (str, os.PathLike)):
        if input_signature is not None:
            raise ValueError(
                "Expected no `input_signature` with the path of a SavedModel, whose multiply-adds were "
                f"counted as it was exported. Received: input_signature={input_signature!r}"
            )
        return _read(os.fspath(model))
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Expected `model` to be a keras.Model or the path of a SavedModel. "
            f"Received: {model!r} (of type {type(model).__name__})"
        )
    if not is_built(model) or not model.weights:
        why = "is not built; call it on data, or `model.build(input_shape)`, first"
        raise ValueError(
            f"Expected a built model with weights. Received: model '{model.name}', which "
            f"{'has no weights' if is_built(model) else why}."
        )
    return measure(model, model.weights, count_uses(model, input_signature))


def measure(
    model: keras.Model,
    variables: Sequence[keras.Variable],
    counted: Uses,
    stored: Stored | None = None,
) -> PruningReport:
    """Report on variables of a model.

    Args:
        model: Built `keras.Model`.
        variables: List of `keras.Variable` of the model.
        counted: `Uses` of the model.
        stored: Dictionary from the id of each variable that is not stored dense to a tuple of its encoding
            and the bytes it takes. `None` (default): the variables are packed to find out, and compressed
            by gzip as well.

    Returns:
        `PruningReport`.
    """
    frozen = {id(variable) for variable in frozen_kernels(model)}
    # A variable that nothing is multiplied by is added or looked up.
    packed, zips = (_as_packed(variables), True) if stored is None else (stored, False)
    rows = {
        id(v): _variable_report(v, counted.uses.get(id(v), 0), id(v) in frozen, packed.get(id(v)), zips)
        for v in variables
    }
    kernels = {id(variable) for variable in default_kernels(model)}
    tables = {id(v) for v in model.trainable_variables if is_table(v) and rows[id(v)].density < 1}
    prunable = [id(v) for v in model.trainable_variables if id(v) in kernels | tables]
    return PruningReport(
        rows=tuple(rows[key] for key in prunable),
        others=tuple(row for key, row in rows.items() if key not in prunable),
        attention_macs=counted.attention,
    )


def _as_packed(variables: Sequence[keras.Variable]) -> Stored:
    """Return how `export_saved_model` would store variables."""
    found, saved = {}, []
    for variable in variables:
        if keras.backend.is_float_dtype(variable.dtype):
            packed = pack(keras.ops.convert_to_numpy(variable))
            found[id(variable)] = packed.name, packed.nbytes
            saved.append(packed.saved)
    return found if pays(saved) else {}


def _variable_report(
    variable: keras.Variable, uses: int | None, frozen: bool, stored: tuple[str, int] | None, zips: bool
) -> VariableReport:
    value = keras.ops.convert_to_numpy(variable)
    floating = keras.backend.is_float_dtype(variable.dtype)
    wide = value.astype("float32", copy=False) if floating and value.dtype != "float64" else value
    # A view, where `tobytes` would copy.
    data = value.reshape(-1).view("uint8")
    kept = int(np.count_nonzero(value))
    encoding, nbytes = stored or ("dense", value.nbytes)
    return VariableReport(
        path=variable.path,
        shape=tuple(value.shape),
        weights=value.size,
        kept=kept,
        encoding=encoding,
        dense_bits=8 * value.nbytes,
        bits=8 * nbytes,
        gzip_bits=8 * min(value.nbytes, len(gzip.compress(data, 1))) if zips else None,
        macs=None if uses is None else uses * value.size,
        remaining_macs=None if uses is None else uses * kept,
        finite=not floating or bool(np.isfinite(wide).all()),
        frozen=frozen,
    )


def _read(path: str) -> PruningReport:
    file = os.path.join(path, REPORT_FILE)
    if not tf.io.gfile.exists(file):
        if not tf.io.gfile.exists(path):
            why = "does not exist"
        elif tf.io.gfile.isdir(path):
            why = f"holds no {REPORT_FILE}; if it holds versions, name one, as in '{os.path.join(path, '1')}'"
        elif path.endswith(".tflite"):
            why = "is a LiteRT file; report on the model that it was made from"
        else:
            why = "is a file; load its model, as by `keras.saving.load_model`, and report on that"
        raise ValueError(
            "Expected the path of a SavedModel that export_saved_model wrote. "
            f"Received: '{path}', which {why}."
        )
    with tf.io.gfile.GFile(file) as opened:
        text = opened.read()
    try:
        return _parsed(text, path)
    except (KeyError, TypeError, ValueError) as error:
        message = f"Expected a report that export_saved_model wrote. Received: '{file}': {error!r}"
        raise ValueError(message) from error


def _parsed(text: str, path: str) -> PruningReport:
    content = json.loads(text)
    names = [field.name for field in fields(VariableReport)]
    rows, others = (
        tuple(
            VariableReport(
                **{name: row[name] for name in names if name in row} | {"shape": tuple(row["shape"])}
            )
            for row in content[part]
        )
        for part in ("rows", "others")
    )
    return PruningReport(rows, others, content["totals"]["attention_macs"], 8 * size_of(path))


def size_of(path: str) -> int:
    """Return the bytes of all files in a directory."""
    return sum(
        tf.io.gfile.stat(os.path.join(folder, name)).length
        for folder, _, names in tf.io.gfile.walk(path)
        for name in names
    )
