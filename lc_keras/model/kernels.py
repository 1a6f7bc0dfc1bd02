"""Find the kernels of a model, their axes that number output units, and their bytes."""

import keras
import numpy as np

from lc_keras.internals import created_by, layers_in
from lc_keras.model.flow.kinds import kind_of


def default_kernels(model: keras.Model) -> list[keras.Variable]:
    """Return the weights that a `Task` takes by default.

    Args:
        model: Built `keras.Model`.

    Returns:
        List of `keras.Variable`: the trainable kernels of dense, convolution,
        attention, recurrent and custom layers, each once.
    """
    owners = owners_of(model)
    return [v for v in model.trainable_variables if is_kernel(v, owners.get(id(v)))]


def frozen_kernels(model: keras.Model) -> list[keras.Variable]:
    """Return the weights that a `Task` would take by default if they could be trained.

    Args:
        model: Built `keras.Model`.

    Returns:
        List of `keras.Variable`: the kernels of layers with `trainable=False`, of
        quantised ones, and those beside which LoRA trains others.
    """
    owners = owners_of(model)
    return [v for v in model.non_trainable_variables if is_kernel(v, owners.get(id(v)))]


def owners_of(model: keras.Model) -> dict[int, keras.Layer]:
    """Return the layer that created each variable, by the variable's id."""
    return {id(variable): layer for layer in layers_in(model) for variable in created_by(layer)}


def is_kernel(variable: keras.Variable, owner: keras.Layer | None = None) -> bool:
    """Return whether a variable is a kernel.

    Args:
        variable: `keras.Variable`.
        owner: The layer that created it. `None` (default): not known, and its name decides.

    Returns:
        Bool.
    """
    return kind_of(owner).is_kernel(variable)


def output_axes(owner: keras.Layer | None, variable: keras.Variable) -> tuple[int, ...]:
    """Return the axes of a variable that number output units.

    Args:
        owner: The layer that created it, or `None` if that is not known.
        variable: `keras.Variable`.

    Returns:
        Tuple of ints, counted from the last axis, which is -1.
    """
    return kind_of(owner).output_axes(owner, variable)


def bytes_of(variable: keras.Variable) -> int:
    """Return the bytes that one weight of a variable takes."""
    if "bfloat" in variable.dtype:
        return 2
    return np.dtype(keras.backend.standardize_dtype(variable.dtype)).itemsize
