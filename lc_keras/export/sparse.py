"""Multiply by nonzero weights only, in dense layers and 1 × 1 convolutions."""

import math
from collections.abc import Callable, Iterable, Sequence

import keras
import numpy as np
import tensorflow as tf

from lc_keras.export.stored import StoredSparse
from lc_keras.internals.keras import layers_in
from lc_keras.internals.tensorflow import in_vectorized_map
from lc_keras.model.flow.kinds import is_altered
from lc_keras.model.macs import Uses

# The layers that multiply sparse, by the id of their kernel.
Sparse = dict[int, list[keras.Layer]]

# Up to this many rows, multiplying entry by entry is faster than in compressed rows.
# `benchmarks.serving.saved_model --calibrate` measures numbers of rows on both sides of it.
_FEW_ROWS = 16
# Eigen multiplies whole packets of columns; a remainder costs more than the padding.
_PACKET = 16
# Above this `gain`, a layer multiplies sparse: the gain is an estimate, and machines differ.
ENOUGH = 1.4


def sparse_layers(model: keras.Model) -> list[keras.Layer]:
    """Return the dense layers and 1 × 1 convolutions of a model whose kernel can be multiplied sparse."""
    layers = layers_in(model)
    vectorized = {id(part) for layer in layers if _is_vectorized(layer) for part in layers_in(layer)}
    return [layer for layer in layers if _is_product(layer) and id(layer) not in vectorized]


def choose(
    model: keras.Model, counted: Uses, compute: str, batches: Sequence[int]
) -> tuple[Sparse, dict[str, float]]:
    """Return the layers that multiply sparse and, by path, the `gain` of others that would be faster.

    Args:
        model: Built `keras.Model`.
        counted: `Uses` of the model.
        compute: String, as in `export_saved_model`.
        batches: Sequence of ints, the expected batch sizes.
    """
    found: Sparse = {}
    declined: dict[str, float] = {}
    if compute == "dense":
        return found, declined
    for layer in sparse_layers(model):
        kernel = as_matrix(layer)
        kept = int(np.count_nonzero(kernel))
        rows = [batch * (counted.uses.get(id(layer.kernel)) or 1) for batch in batches]
        gained = min(gain(kernel.shape, kept, n) for n in rows)
        if compute == "sparse" or gained > ENOUGH:
            found.setdefault(id(layer.kernel), []).append(layer)
        elif gained > 1:
            declined[layer.kernel.path] = gained
    if compute == "sparse" and not found:
        raise ValueError(
            'Expected a float32 dense layer or 1 × 1 convolution for compute="sparse". '
            f"Received: model '{model.name}', which has none."
        )
    return found, declined


def as_matrix(layer: keras.Layer) -> np.ndarray:
    """Return the kernel of one of `sparse_layers`, outputs × inputs."""
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    return kernel.reshape(kernel.shape[-2:]).T


def sparse_methods(
    layer: keras.Layer, weight: StoredSparse
) -> Iterable[tuple[keras.Layer, str, Callable[..., tf.Tensor]]]:
    """Return what to replace in one of `sparse_layers`, whose matrix is `weight`; see `replaced`."""

    def dense(inputs: tf.Tensor | tf.SparseTensor, training: bool | None = None) -> tf.Tensor:
        if isinstance(inputs, tf.SparseTensor):
            inputs = tf.sparse.to_dense(inputs)
        outputs = multiply(inputs, weight)
        if layer.bias is not None:
            outputs = keras.ops.add(outputs, layer.bias)
        return outputs if layer.activation is None else layer.activation(outputs)

    def convolve(inputs: tf.Tensor) -> tf.Tensor:
        steps = tuple(slice(None, None, stride) for stride in layer.strides)
        return dense(inputs[(slice(None), *steps)])

    return [(layer, "call", dense if isinstance(layer, keras.layers.Dense) else convolve)]


def multiply(inputs: tf.Tensor, weight: StoredSparse) -> tf.Tensor:
    """Multiply the last axis of inputs of any type by a sparse matrix, outputs × inputs, in float32.

    The number of rows decides the kernel at run time: a loop over the entries for few rows, compressed
    sparse rows for many.
    """
    shape = [*tf.unstack(tf.shape(inputs)[:-1]), weight.shape[0]]
    columns = tf.transpose(tf.reshape(inputs, [-1, weight.shape[1]]))
    rows = tf.shape(columns)[1]
    indices, entries = weight.read()
    columns = tf.cast(columns, entries.dtype)

    def by_entry() -> tf.Tensor:
        return tf.raw_ops.SparseTensorDenseMatMul(
            a_indices=indices, a_values=entries, a_shape=weight.shape, b=columns
        )

    def by_row() -> tf.Tensor:
        matrix = tf.raw_ops.SparseTensorToCSRSparseMatrix(
            indices=indices, values=entries, dense_shape=weight.shape
        )
        padded = tf.pad(columns, [[0, 0], [0, -rows % _PACKET]])
        return tf.raw_ops.SparseMatrixMatMul(a=matrix, b=padded)[:, :rows]

    # What `vectorized_map` makes of compressed rows cannot be loaded.
    outputs = tf.transpose(
        by_entry() if in_vectorized_map() else tf.cond(rows <= _FEW_ROWS, by_entry, by_row)
    )
    outputs = tf.reshape(outputs, shape)
    return tf.ensure_shape(outputs, [*inputs.shape[:-1], weight.shape[0]])


def gain(shape: tuple[int, int], kept: int, rows: int) -> float:
    """Return how many times as fast sparse multiplication is as dense, by a rule that was measured.

    The times in nanoseconds were fitted to eight shapes, five densities and seven numbers of rows on two
    cores (`benchmarks.serving.saved_model --calibrate`). Only their ratio counts.

    Args:
        shape: Tuple of ints, the outputs and the inputs of the matrix.
        kept: Int, how many of its weights are not zero.
        rows: Int, how many rows the matrix is multiplied by in a call: the batch size, times
            the pixels of a convolution.
    """
    weights, ends = math.prod(shape), sum(shape)
    dense = 3e4 + weights * (0.18 + 0.018 * rows)
    if rows <= _FEW_ROWS:
        sparse = 8e4 + 4.0 * kept + 6.2 * ends * rows
    else:
        sparse = 3.3e5 + kept * (5.4 + 0.062 * rows) + 1.1 * ends * rows
    return dense / sparse


def _is_vectorized(layer: keras.Layer) -> bool:
    """Return whether a layer calls the layer inside it for all steps at once, however many there are."""
    if not isinstance(layer, keras.layers.TimeDistributed):
        return False
    shape = (layer.get_build_config() or {}).get("input_shape")
    return shape is None or shape[1] is None


def _is_product(layer: keras.Layer) -> bool:
    if is_altered(layer) or not layer.built or layer.compute_dtype != "float32" or "call" in vars(layer):
        return False
    multiplies = type(layer).call is keras.layers.Dense.call or (
        type(layer).call in (keras.layers.Conv1D.call, keras.layers.Conv2D.call)
        and type(layer).convolution_op is keras.layers.Conv2D.convolution_op
        and set(layer.kernel_size) == {1}
        and layer.groups == 1
        and layer.data_format == "channels_last"
    )
    # A subclass may compute its kernel.
    return multiplies and any(layer.kernel is variable for variable in layer.variables)
