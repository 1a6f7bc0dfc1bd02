"""Which variables of a model are kernels, which of their axes number output units, and their bytes."""

import keras
import numpy as np

from lc_keras.internals import created_by, layers_in

_DEPTHWISE = (
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
)
_TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)


def default_kernels(model: keras.Model) -> list[keras.Variable]:
    """The weights that a `Task` takes by default.

    Args:
        model: Built `keras.Model`.

    Returns:
        List of `keras.Variable`: the trainable kernels of dense, convolution,
        attention, recurrent and custom layers, each once.
    """
    return [v for v in model.trainable_variables if is_kernel(v)]


def frozen_kernels(model: keras.Model) -> list[keras.Variable]:
    """The weights that a `Task` would take by default if they could be trained.

    Args:
        model: Built `keras.Model`.

    Returns:
        List of `keras.Variable`: the kernels of layers with `trainable=False`, of
        quantised ones, and those beside which LoRA trains others.
    """
    return [v for v in model.non_trainable_variables if is_kernel(v)]


def is_kernel(variable: keras.Variable) -> bool:
    # Keras' own layers call what they multiply their input by "kernel",
    # "recurrent_kernel", "depthwise_kernel" or "pointwise_kernel".
    return variable.name.endswith("kernel") and len(variable.shape) >= 2


def owners_of(model: keras.Model) -> dict[int, keras.Layer]:
    """Maps the id of each variable to the layer that created it."""
    return {id(variable): layer for layer in layers_in(model) for variable in created_by(layer)}


def output_axes(layer: keras.Layer | None, variable: keras.Variable) -> tuple[int, ...]:
    if not is_kernel(variable):
        # Of a bias that an einsum adds, all axes are of its units.
        whole = isinstance(layer, keras.layers.EinsumDense) and variable.name == "bias"
        return tuple(range(-len(variable.shape), 0)) if whole else (-1,)
    if isinstance(layer, _DEPTHWISE) or variable.name == "depthwise_kernel":
        return (-2, -1)
    if isinstance(layer, _TRANSPOSED):
        return (-2,)
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, output = layer.equation.replace("...", "").replace(" ", "").split("->")
        kernel = inputs.split(",")[1]
        return tuple(i - len(kernel) for i, label in enumerate(kernel) if label in output)
    return (-1,)


def bytes_of(variable: keras.Variable) -> int:
    """The size of a weight."""
    if "bfloat" in variable.dtype:
        return 2
    return np.dtype(keras.backend.standardize_dtype(variable.dtype)).itemsize
