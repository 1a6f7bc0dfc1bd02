"""Find the kernels of a model, the axes that number their output units, and their bytes."""

import keras
import numpy as np

from lc_keras.internals.keras import created_by, layers_in
from lc_keras.model.flow.kinds import kind_of


def default_kernels(model: keras.Model) -> list[keras.Variable]:
    """Return the weights that a `Task` takes by default: the trainable kernels, each once."""
    owners = owners_of(model)
    return [v for v in model.trainable_variables if is_kernel(v, owners.get(id(v)))]


def frozen_kernels(model: keras.Model) -> list[keras.Variable]:
    """Return the weights that a `Task` would take by default if they could be trained.

    They are the kernels of layers with `trainable=False`, those of quantised layers, and those beside which
    LoRA trains others.
    """
    owners = owners_of(model)
    return [v for v in model.non_trainable_variables if is_kernel(v, owners.get(id(v)))]


def owners_of(model: keras.Model) -> dict[int, keras.Layer]:
    """Return the layer that created each variable, by the variable's id."""
    return {id(variable): layer for layer in layers_in(model) for variable in created_by(layer)}


def is_kernel(variable: keras.Variable, owner: keras.Layer | None = None) -> bool:
    """Return whether a variable is a kernel; its name decides if the layer that owns it is not known."""
    return kind_of(owner).is_kernel(variable)


def is_table(variable: keras.Variable) -> bool:
    """Return whether a variable is an embedding table, by its name, which no kernel has."""
    return variable.name.endswith("embeddings") and len(variable.shape) == 2


def output_axes(owner: keras.Layer | None, variable: keras.Variable) -> tuple[int, ...]:
    """Return the axes of a variable that number output units, counted from the last one, which is -1."""
    return kind_of(owner).output_axes(owner, variable)


def bytes_of(variable: keras.Variable) -> int:
    """Return the bytes that one weight of a variable takes."""
    if "bfloat" in variable.dtype:
        return 2
    return np.dtype(keras.backend.standardize_dtype(variable.dtype)).itemsize
