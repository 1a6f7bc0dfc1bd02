"""Count the multiply-adds of a model for one example, all of them and those with nonzero weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lc_keras.arguments import keras_model
from lc_keras.internals.keras import layers_in, replaced
from lc_keras.internals.tensorflow import copies_of, untraced, untraced_calls
from lc_keras.model.kernels import is_kernel, owners_of
from lc_keras.model.products import Made, Products
from lc_keras.model.signatures import Structure, input_signature_of, is_built, named, of_batch


@dataclass(frozen=True)
class KernelMacs:
    """The multiply-adds with one kernel, for one example.

    Attributes:
        path: String, the variable's path in the model.
        weights: Int, how many weights it has.
        kept: Int, how many of them are not zero.
        uses: Int, how often each weight is multiplied: once in a dense layer, once per
            pixel of the output in a convolution, once per step in a recurrent layer,
            summed over all calls of a shared layer. `None` if this is not known, because
            a size of the input is not known or the layer is of another kind.
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
        kernels: Tuple of `KernelMacs`, one for each variable that is named a kernel or is multiplied by.
        attention: Int, the multiply-adds of activations with one another, as in attention, or with constants,
            which pruning does not change; `None` if not known.
        dense: Int, the sum of all that is known, with every weight; `None` if nothing is known.
        remaining: Int, the same sum with the nonzero weights only, attention included, or `None`.
        unknown: Tuple of strings, what is left out of the sums: the paths of kernels, and
            `"attention"`.
    """

    kernels: tuple[KernelMacs, ...]
    attention: int | None

    @property
    def dense(self) -> int | None:
        return self._sum("dense")

    @property
    def remaining(self) -> int | None:
        return self._sum("remaining")

    @property
    def unknown(self) -> tuple[str, ...]:
        kernels = tuple(kernel.path for kernel in self.kernels if kernel.uses is None)
        return kernels if self.attention is not None else (*kernels, "attention")

    def _sum(self, name: str) -> int | None:
        dense, wanted = (sum(getattr(k, key) or 0 for k in self.kernels) for key in ("dense", name))
        known = dense + (self.attention or 0) > 0 or not self.unknown
        return wanted + (self.attention or 0) if known else None


def macs(model: keras.Model, input_signature: list[Structure] | None = None) -> Macs:
    """Return the multiply-adds of a model for one example.

    The model is traced without data. Each matrix product, einsum and convolution in the trace
    is counted, whatever layer it belongs to, as often as it runs and at the shapes it meets.
    Convolutions count as if their padding were pixels; bias additions, normalisation and
    activations do not count. Where the size of the first axis of a layer's outputs is lost,
    that axis is taken to be the one of the examples.

    Args:
        model: Built `keras.Model`.
        input_signature: List of `tf.TensorSpec` or of structures of these, one for each positional argument
            of the model; an open batch size is taken to be one. `None` (default): the inputs that the model
            was built for.

    Returns:
        `Macs`.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        ValueError: If the model is not built, or cannot be called with inputs of this `input_signature`.

    Example:

    ```python
    counted = macs(model)
    print(counted.dense, counted.unknown)
    ```
    """
    counted = count_uses(keras_model(model), input_signature)
    kernels = []
    for variable in model.variables:
        if id(variable) in counted.uses:
            value = keras.ops.convert_to_numpy(variable)
            kept = int(np.count_nonzero(value))
            kernels.append(KernelMacs(variable.path, value.size, kept, counted.uses[id(variable)]))
    return Macs(tuple(kernels), counted.attention)


def count_uses(model: keras.Model, input_signature: list[Structure] | None = None) -> "Uses":
    """Count the multiplications by each weight, for one example.

    Args:
        model: Built `keras.Model`.
        input_signature: As in `macs`.

    Returns:
        `Uses`.

    Raises:
        TypeError, ValueError: As in `macs`.
    """
    uses: dict[int, int | None] = dict.fromkeys(map(id, _kernels(model)))
    if input_signature is not None:
        named(input_signature)
    try:
        signature = input_signature_of(model, own_batch=True) if input_signature is None else input_signature
        counted, examples = _trace(model, signature)
    except Exception as error:
        if input_signature is not None:
            raise ValueError(
                f"Expected an `input_signature` that model '{model.name}' can be called with. "
                f"Received: {input_signature}: {error}"
            ) from error
        # A model that cannot be called this way can still be measured in bits.
        if not is_built(model):
            raise
        return Uses(uses, None)
    # A kernel that was not seen in any product is not known to be idle. A product that is the same for all
    # examples counts for each of them.
    for variable in model.variables:
        if id(variable) in counted.by_weight:
            count = counted.by_weight[id(variable)]
            uses[id(variable)] = count and -(-count // (examples * math.prod(variable.shape)))
    return Uses(uses, counted.others and -(-counted.others // examples))


@dataclass(frozen=True)
class Uses:
    """The number of multiplications by each weight, for one example.

    Attributes:
        uses: Dictionary from the id of a variable to `KernelMacs.uses`, for each kernel and every other
            variable that is multiplied by.
        attention: As in `Macs`.
    """

    uses: dict[int, int | None]
    attention: int | None


def _trace(model: keras.Model, signature: list[Structure]) -> tuple[Products, int]:
    """Return the multiply-adds of a batch, and its size."""
    batches = (spec.shape[0] for spec in keras.tree.flatten(signature) if spec.shape.rank)
    examples = next((size for size in batches if size), 1)
    signature = keras.tree.map_structure(lambda spec: _dense(of_batch(spec, examples)), signature)
    layers, lost = layers_in(model, include_self=False), set[int]()
    changed: list[tuple[keras.Layer, str, object]] = [
        (layer, "call", _with_batch(layer, examples, lost)) for layer in layers
    ]
    changed += untraced_calls([model])
    # Counting must not add weights to the model.
    changed += [(layer, "build", _refuse(layer)) for layer in layers if not layer.built]
    # On a GPU each of these layers would be a single operation, which does not show its products.
    changed += [(layer, "use_cudnn", False) for layer in layers if hasattr(layer, "use_cudnn")]

    def call(*inputs: tf.Tensor) -> Structure:
        with keras.StatelessScope(), replaced(changed):
            return model(*inputs, training=False)

    traced = tf.function(call, input_signature=signature, autograph=False).get_concrete_function()
    keys, sizes = {}, {}
    for variable in model.variables:
        # The state of random numbers multiplies nothing.
        if variable.dtype != "uint32":
            sizes[id(variable)] = math.prod(variable.shape)
            for part in copies_of(variable):
                keys[id(part.handle)] = id(variable)
    captured = traced.captured_inputs
    made: list[Made] = [None] * (len(traced.graph.inputs) - len(captured))
    made += [frozenset(filter(None, [keys.get(id(tensor))])) for tensor in captured]
    products = Products(sizes, examples)
    products.count(traced.graph, made)
    products.by_weight |= dict.fromkeys(lost)
    return products, examples


def _dense(spec: tf.TypeSpec) -> tf.TypeSpec:
    """Return the specification of a sparse input as that of a dense one: its products count as if dense."""
    return tf.TensorSpec(spec.shape, spec.dtype) if isinstance(spec, tf.SparseTensorSpec) else spec


def _with_batch(layer: keras.Layer, examples: int, lost: set[int]) -> Callable[..., Any]:
    """Return the `call` of a layer, with outputs of this batch size and of the sizes that its graph has.

    Where a layer loses the static batch size, its outputs still have one row for each example. Variables of
    a layer that is not traced as often as it runs are added to `lost`.
    """
    original = untraced(layer.call)
    try:
        recorded = [tensor.shape for tensor in keras.tree.flatten(layer.output)]
    except (AttributeError, ValueError):
        recorded = []

    def call(*args: Any, **kwargs: Any) -> Any:
        outputs = original(*args, **kwargs)
        inputs, flat = (
            [x for x in keras.tree.flatten(part) if isinstance(x, tf.Tensor)]
            for part in ((args, kwargs), outputs)
        )
        if isinstance(layer, keras.layers.TimeDistributed) and inputs[0].shape[1] is None:
            # Keras 3.15 traces as many steps as there are examples.
            lost.update(id(variable) for variable in layer.variables if len(variable.shape) > 1)
        if any(x.shape.rank and x.shape[0] == examples for x in inputs):
            shapes = recorded if len(recorded) == len(flat) else [x.shape for x in flat]
            for tensor, shape in zip(flat, map(tf.TensorShape, shapes), strict=True):
                if shape.rank and shape[0] is None:
                    shape = tf.TensorShape([examples, *shape[1:]])
                if shape.is_compatible_with(tensor.shape):
                    tensor.set_shape(shape)
        return outputs

    return call


def _refuse(layer: keras.Layer) -> Callable[..., None]:
    def build(*_: object, **__: object) -> None:
        raise ValueError(f"Expected a built layer. Received: '{layer.name}', which is not built.")

    return build


def _kernels(model: keras.Model) -> list[keras.Variable]:
    owners = owners_of(model)
    # A variable that is named a kernel but is none, such as a fixed transform, is multiplied, too.
    found = (v for v in model.variables if is_kernel(v) or is_kernel(v, owners.get(id(v))))
    return list({id(v): v for v in found}.values())
