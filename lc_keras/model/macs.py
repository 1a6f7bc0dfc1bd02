"""Multiply-adds of a model for one example, all of them and those by nonzero weights."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lc_keras.arguments import keras_model
from lc_keras.internals import layers_in, replaced, stored_kernel
from lc_keras.model.signatures import Structure, input_signature_of, is_built

_CELLS = (keras.layers.LSTMCell, keras.layers.GRUCell, keras.layers.SimpleRNNCell)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
_SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
_CONV_LSTM = (keras.layers.ConvLSTM1D, keras.layers.ConvLSTM2D, keras.layers.ConvLSTM3D)
_HEADS = (keras.layers.MultiHeadAttention, keras.layers.GroupQueryAttention)
_ATTENTION = (*_HEADS, keras.layers.Attention, keras.layers.AdditiveAttention)


@dataclass(frozen=True)
class KernelMacs:
    """The multiply-adds by one kernel, for one example.

    Attributes:
        path: String, the variable's path in the model.
        weights: Int, how many weights it has.
        kept: Int, how many of them are not zero.
        uses: Int, how often each weight is multiplied: once in a dense layer, once a
            pixel of the output in a convolution, once a step in a recurrent layer,
            all calls of a shared layer together. `None` if that is not known: a size
            of the input is not, or the layer is of another kind.
        dense: Int, `uses · weights`, or `None`.
        remaining: Int, `uses · kept`, or `None`.
    """

    path: str
    weights: int
    kept: int
    uses: int | None

    @property
    def dense(self) -> int | None:
        return None if self.uses is None else self.uses * self.weights

    @property
    def remaining(self) -> int | None:
        return None if self.uses is None else self.uses * self.kept


@dataclass(frozen=True)
class Macs:
    """The multiply-adds of a model for one example; see `macs`.

    Attributes:
        kernels: Tuple of `KernelMacs`, one for each variable that is named a kernel.
        attention: Int, the multiply-adds of activations by one another in attention
            layers, which pruning does not change, or `None` if not known.
        dense: Int, the sum of all that is known, with every weight.
        remaining: Int, the same by the weights that are not zero.
        unknown: Tuple of strings, what is left out of the sums: the paths of kernels, and
            `"attention"`.
    """

    kernels: tuple[KernelMacs, ...]
    attention: int | None

    @property
    def dense(self) -> int:
        return sum(kernel.dense or 0 for kernel in self.kernels) + (self.attention or 0)

    @property
    def remaining(self) -> int:
        return sum(kernel.remaining or 0 for kernel in self.kernels) + (self.attention or 0)

    @property
    def unknown(self) -> tuple[str, ...]:
        kernels = tuple(kernel.path for kernel in self.kernels if kernel.uses is None)
        return kernels if self.attention is not None else (*kernels, "attention")


def macs(model: keras.Model, input_signature: list[Structure] | None = None) -> Macs:
    """Counts the multiply-adds of a model for one example.

    The model is traced, without data, and each layer counted as often as it is called
    and at the shapes it meets. Counted are dense, einsum-dense, convolution (grouped,
    depthwise, separable and transposed ones too), recurrent and attention layers.
    Convolutions count as if their padding were pixels; additions of biases,
    normalisation and activations do not count.

    Args:
        model: Built `keras.Model`.
        input_signature: List of `tf.TensorSpec` or of structures of these, one for
            each positional argument of the model, of a batch of one where its size is open.
            `None` (default): as the model was built.

    Returns:
        `Macs`.

    Raises:
        TypeError: If it is no `keras.Model`.
        ValueError: If the model is not built.

    Example:

    ```python
    counted = macs(model)
    print(counted.remaining / counted.dense)
    ```
    """
    counter = count_uses(keras_model(model), input_signature)
    kernels = []
    for variable in _kernels(model):
        value = keras.ops.convert_to_numpy(variable)
        kept = int(np.count_nonzero(value))
        kernels.append(KernelMacs(variable.path, value.size, kept, counter.uses[id(variable)]))
    return Macs(tuple(kernels), counter.attention)


def count_uses(model: keras.Model, input_signature: list[Structure] | None = None) -> "Counter":
    """Counts how often each kernel is multiplied by, for one example.

    Args:
        model: Built `keras.Model`.
        input_signature: As that of `macs`.

    Returns:
        `Counter`.

    Raises:
        ValueError: If the model is not built.
    """
    counter = Counter(_kernels(model))
    try:
        signature = input_signature_of(model, own_batch=True) if input_signature is None else input_signature
        counter.trace(model, signature)
    except Exception:
        # A model that cannot be called this way can still be measured in bits.
        if not is_built(model):
            raise
        counter = Counter(_kernels(model))
        if any(isinstance(layer, _ATTENTION) for layer in layers_in(model)):
            counter.attention = None
    # A kernel that no layer was seen to use is not known to be idle.
    counter.uses = {key: times or None for key, times in counter.uses.items()}
    return counter


class Counter:
    """Counts, while a model is traced, how often each kernel is used.

    Attributes:
        uses: Dictionary from the id of a variable to `KernelMacs.uses`: paths need not differ.
        attention: As that of `Macs`.
    """

    def __init__(self, kernels: Iterable[keras.Variable]) -> None:
        self.uses: dict[int, int | None] = {id(variable): 0 for variable in kernels}
        self.attention: int | None = 0

    def trace(self, model: keras.Model, signature: list[Structure]) -> None:
        layers = [layer for layer in layers_in(model) if layer is not model]
        hooks = [(layer, "call", self._hook(layer)) for layer in layers]
        # Counting must not give the model weights that it did not have.
        hooks += [(layer, "build", _refuse(layer)) for layer in layers if not layer.built]

        def call(*inputs: tf.Tensor) -> Structure:
            with keras.StatelessScope(), replaced(hooks):
                return model(*inputs, training=False)

        batches = (spec.shape[0] for spec in keras.tree.flatten(signature) if spec.shape.rank)
        examples = next((size for size in batches if size), 1)
        signature = keras.tree.map_structure(lambda spec: _of_batch(spec, examples), signature)
        tf.function(call, input_signature=signature, autograph=False).get_concrete_function()
        # What is the same for all examples counts for each.
        self.uses = {key: uses and -(-uses // examples) for key, uses in self.uses.items()}
        self.attention = self.attention and -(-self.attention // examples)

    def _hook(self, layer: keras.Layer) -> Callable[..., Any]:
        original = layer.call

        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = original(*args, **kwargs)
            inputs = args[0] if args else next(iter(kwargs.values()))
            for variable, uses in _uses(layer, inputs, outputs):
                self._add(variable, uses)
            for part in _loops(layer, inputs):
                for variable in part.variables:
                    self._add(variable, None)
            if self.attention is not None:
                products = _products(layer, args, kwargs)
                self.attention = None if products is None else self.attention + products
            return outputs

        return call

    def _add(self, variable: keras.Variable, uses: int | None) -> None:
        so_far = self.uses.get(id(variable))
        # Unknown once is unknown in all.
        if so_far is not None:
            self.uses[id(variable)] = None if uses is None else so_far + uses


def _refuse(layer: keras.Layer) -> Callable[..., None]:
    def build(*_: object, **__: object) -> None:
        raise ValueError(f"Expected a built layer. Received: '{layer.name}', which is not built.")

    return build


def _loops(layer: keras.Layer, inputs: tf.Tensor) -> list[keras.Layer]:
    """The layers inside that are traced for one step of a number that is not known."""
    if isinstance(layer, keras.layers.TimeDistributed) and inputs.shape[1] is None:
        return [layer]
    if isinstance(layer, keras.layers.RNN) and not (isinstance(layer, _CONV_LSTM) or layer.unroll):
        return [cell for cell in _cells(layer) if type(cell) not in _CELLS]
    return []


def _cells(layer: keras.layers.RNN) -> list[keras.Layer]:
    return list(getattr(layer.cell, "cells", [layer.cell]))


def _uses(
    layer: keras.Layer, inputs: tf.Tensor, outputs: tf.Tensor
) -> list[tuple[keras.Variable, int | None]]:
    """For each kernel that a layer itself multiplies by, how often in this call."""
    if isinstance(layer, keras.layers.Dense):
        return [(stored_kernel(layer), _size(inputs.shape[:-1]))]
    if isinstance(layer, keras.layers.EinsumDense):
        left, _ = layer.equation.replace(" ", "").replace("...", "").split("->")
        labels, kernel = left.split(",")
        shape = stored_kernel(layer).shape
        contracted = math.prod(n for label, n in zip(kernel, shape, strict=True) if label in labels)
        return [(stored_kernel(layer), _divide(_size(inputs.shape), contracted))]
    if isinstance(layer, _CONVOLUTIONS):
        return [(stored_kernel(layer), _divide(_size(outputs.shape), layer.filters))]
    if isinstance(layer, _DEPTHWISE):
        return [(layer.kernel, _divide(_size(outputs.shape), math.prod(layer.kernel.shape[-2:])))]
    if isinstance(layer, _SEPARABLE):
        pixels = _divide(_size(outputs.shape), layer.filters)
        return [(layer.depthwise_kernel, pixels), (layer.pointwise_kernel, pixels)]
    if isinstance(layer, _TRANSPOSED):
        return [(layer.kernel, _divide(_size(inputs.shape), layer.kernel.shape[-1]))]
    if isinstance(layer, _CONV_LSTM):
        channels_last = layer.data_format == "channels_last"
        outputs = keras.tree.flatten(outputs)[0]
        end = len(outputs.shape) - (1 if channels_last else 0)
        spatial = outputs.shape[end - layer.cell.rank : end]
        uses = _size([*inputs.shape[:2], *spatial])
        return [(layer.cell.kernel, uses), (layer.cell.recurrent_kernel, uses)]
    if isinstance(layer, keras.layers.RNN):
        kernels = [k for c in _cells(layer) if type(c) in _CELLS for k in (c.kernel, c.recurrent_kernel)]
        return [(kernel, _size(inputs.shape[:2])) for kernel in kernels]
    return []


def _products(layer: keras.Layer, args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    """How many multiply-adds of activations by one another an attention layer does."""
    if isinstance(layer, _HEADS):
        names = dict(zip(("query", "value", "key"), args, strict=False)) | kwargs
        query, value = names["query"].shape, names["value"].shape
        heads = layer.num_heads if hasattr(layer, "num_heads") else layer.num_query_heads
        depth = layer.key_dim + layer.value_dim if hasattr(layer, "key_dim") else 2 * layer.head_dim
        along = getattr(layer, "attention_axes", None) or range(1, len(value) - 1)
        sizes = [*query[:-1], *(value[axis] for axis in along), heads, depth]
    elif isinstance(layer, _ATTENTION):
        query, value, *key = (tensor.shape for tensor in (args[0] if args else kwargs["inputs"]))
        sizes = [*query[:2], value[1], (key[0] if key else value)[-1] + value[-1]]
    else:
        return 0
    return _size(sizes)


def _kernels(model: keras.Model) -> list[keras.Variable]:
    found = {id(v): v for v in model.variables if v.name.endswith("kernel") and len(v.shape) >= 2}
    return list(found.values())


def _of_batch(spec: tf.TensorSpec, examples: int) -> tf.TensorSpec:
    return tf.TensorSpec([examples, *spec.shape[1:]], spec.dtype, spec.name)


def _size(shape: Iterable[int | None]) -> int | None:
    size = 1
    for n in shape:
        if n is None:
            return None
        size *= n
    return size


def _divide(size: int | None, divisor: int) -> int | None:
    return None if size is None else size // divisor
