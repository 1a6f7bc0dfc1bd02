"""Count the multiply-adds of a model for one example, all of them and those by nonzero weights."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lc_keras.arguments import keras_model
from lc_keras.internals import layers_in, replaced
from lc_keras.model.flow.kinds import Flow, kind_of
from lc_keras.model.kernels import is_kernel, owners_of
from lc_keras.model.signatures import Structure, input_signature_of, is_built, of_batch


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
        kernels: Tuple of `KernelMacs`, one for each variable that is, or is named, a kernel.
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
    """Return the multiply-adds of a model for one example.

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
    """Count how often each kernel is multiplied by, for one example.

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
        if any(kind_of(layer).products is not Flow.products for layer in layers_in(model)):
            counter.attention = None
    # A kernel that no layer was seen to use is not known to be idle.
    counter.uses = {key: times or None for key, times in counter.uses.items()}
    return counter


class Counter:
    """A count of how often each kernel is used, taken while a model is traced.

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
        signature = keras.tree.map_structure(lambda spec: of_batch(spec, examples), signature)
        tf.function(call, input_signature=signature, autograph=False).get_concrete_function()
        # What is the same for all examples counts for each.
        self.uses = {key: uses and -(-uses // examples) for key, uses in self.uses.items()}
        self.attention = self.attention and -(-self.attention // examples)

    def _hook(self, layer: keras.Layer) -> Callable[..., Any]:
        original, kind = layer.call, kind_of(layer)

        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = original(*args, **kwargs)
            inputs = args[0] if args else next(iter(kwargs.values()))
            for variable, uses in kind.uses(layer, inputs, outputs):
                self._add(variable, uses)
            if self.attention is not None:
                products = kind.products(layer, args, kwargs)
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


def _kernels(model: keras.Model) -> list[keras.Variable]:
    owners = owners_of(model)
    # What is named a kernel and is none, such as a fixed transform, is multiplied, too.
    found = (v for v in model.variables if is_kernel(v) or is_kernel(v, owners.get(id(v))))
    return list({id(v): v for v in found}.values())
