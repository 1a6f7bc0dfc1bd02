"""Describe the inputs and outputs of a model, by name and type."""

import inspect
import keyword
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf

from lc_keras.internals.keras import as_functional, call_again, calls_in, functional_class, layers_in

# What a model takes or returns, or the specification of that.
Structure: TypeAlias = "tf.Tensor | tf.TensorSpec | Sequence[Structure] | Mapping[str, Structure]"

# Tensors that consist of dense ones.
_PARTS = (tf.RaggedTensorSpec, tf.SparseTensorSpec)
_AUTOMATIC_INPUT = re.compile(r"(input_layer|keras_tensor)(_\d+)?")


def is_built(model: keras.Model) -> bool:
    """Return whether a model has all its weights.

    A model that is never called itself, such as a pair of nets that play against each other,
    has them when its parts do.
    """
    parts = layers_in(model, include_self=False)
    return model.built or (bool(model.variables) and all(layer.built for layer in parts))


def input_signature_of(model: keras.Model, own_batch: bool = False) -> list[Structure]:
    """Return the inputs that a model was built for, with any batch size unless the model fixes one.

    Args:
        model: Built `keras.Model`. It fixes the batch size if its outputs have one whatever the inputs have,
            if an operation has a first axis of the batch size that the inputs were given, or if one of its
            layers is `stateful`, with states for that many examples.
        own_batch: Bool, default `False`. `True`: with the batch size that the inputs were given,
            if they were given one.

    Returns:
        List of `tf.TensorSpec`, of the specifications of ragged and sparse inputs, or of structures of
        these, one for each positional argument of the model. A subclassed model does not record the types of
        its inputs: they are taken to be its `input_dtype`. Arguments with a default keep it, unless the
        model's `build` takes their shapes.

    Raises:
        ValueError: If the model is empty, is not built, or did not record the shapes of
            all arguments that it needs.
    """
    inputs = getattr(model, "inputs", None)
    if isinstance(model, keras.Sequential) and not model.layers:
        raise ValueError(f"Expected a model with layers. Received: model '{model.name}', which is empty.")
    if not model.built or (inputs is None and not model.variables):
        raise ValueError(
            f"Expected a built model. Received: model '{model.name}', which is not built; "
            "call it on data first."
        )
    if inputs is not None:
        structure = inputs[0] if isinstance(model, keras.Sequential) else model.input
        batch = _fixed_batch(model, own_batch)
        return [keras.tree.map_structure(lambda x: _spec_of(x, batch), structure)]
    recorded = model.get_build_config() or {}
    shapes = recorded.get("shapes_dict", recorded).values()
    if not shapes:
        raise ValueError(
            f"Model '{model.name}' does not record the shapes of its inputs. Call it on data "
            "first, or pass `input_signature`."
        )
    needed = _needed_arguments(model)
    if len(shapes) < len(needed):
        raise ValueError(
            f"Model '{model.name}' is called with {', '.join(needed)}, and records the shapes of "
            f"{len(shapes)} of these. Pass `input_signature`, with a tf.TensorSpec for each."
        )
    return [
        keras.tree.map_shape_structure(lambda shape: _spec(shape, model.input_dtype), structure)
        for structure in shapes
    ]


def named(structure: list[Structure], model: keras.Model | None = None) -> list[tf.TensorSpec]:
    """Flatten an input signature, and give each input the name that it is served under.

    The name is the key in a dictionary; else the name that the specification has; else
    `"inputs"` if there is one input, and `"inputs_0"`, `"inputs_1"`, ... if there are several.
    A character other than an ASCII letter or digit becomes `_`, and a name that does not begin
    with a letter, or is a Python keyword or `self`, is put after `"arg_"`.

    A ragged or sparse tensor is flattened to its parts, each of which is dense. Without `model`, whose inputs
    these are, it has a name only in a dictionary.

    Raises:
        TypeError: If `structure` is not a list, or holds anything other than specifications.
        ValueError: If there are no inputs, or two have the same name.
    """
    if not isinstance(structure, (list, tuple)):
        raise TypeError(
            "Expected `input_signature` to be a list, with a tf.TensorSpec or a structure of these for each "
            f"positional argument of the model. Received: {structure!r}"
        )
    specs = keras.tree.flatten(structure)
    if not specs:
        raise ValueError(
            "Expected `input_signature` to hold a tf.TensorSpec for each input of the model. Received: none"
        )
    for spec in specs:
        if not isinstance(spec, (tf.TensorSpec, *_PARTS)):
            raise TypeError(
                "Expected `input_signature` to consist of tf.TensorSpec, or of ragged or sparse ones. "
                f"Received: {spec!r} (of type {type(spec).__name__})"
            )
    keys = _keys(structure, skip=1)
    tensors = keras.tree.flatten(getattr(model, "inputs", None) or [])
    own = [_given(tensor.name) for tensor in tensors] if len(tensors) == len(specs) else [None] * len(specs)
    given, parts = [], []
    for i, (key, spec) in enumerate(zip(keys, specs, strict=True)):
        default = "inputs" if len(specs) == 1 else f"inputs_{i}"
        name = key or getattr(spec, "name", None) or own[i] or default
        for part, suffix in _parts_of(spec):
            given.append(_joined(name, suffix))
            parts.append(part)
    names = list(map(argument_name, given))
    if len(set(names)) < len(names):
        raise ValueError(
            f"Expected inputs of different names. Received: {', '.join(given)}, served as {', '.join(names)}."
        )
    return [tf.TensorSpec(part.shape, part.dtype, name) for part, name in zip(parts, names, strict=True)]


def packed(structure: list[Structure], flat: Sequence[tf.Tensor]) -> list[Structure]:
    """Return the arguments of a model, made from the tensors that `named` has specifications of."""
    parts = iter(flat)
    leaves = [
        tf.nest.pack_sequence_as(spec, [next(parts) for _ in _parts_of(spec)], expand_composites=True)
        for spec in keras.tree.flatten(structure)
    ]
    return keras.tree.pack_sequence_as(structure, leaves)


def named_outputs(model: keras.Model) -> Callable[[Structure], dict[str, tf.Tensor]]:
    """Return a function from what a model returns to a dictionary of tensors by name.

    The name is the key in a dictionary; else, where the outputs have the number and the shapes
    of the model's, the name that the user gave the layer which the output comes from, unless
    that layer is also used elsewhere in the model; else `"output_0"`, `"output_1"`, ....
    """
    layers = [_given_name(model, name) for name in getattr(model, "output_names", None) or []]
    if isinstance(model, keras.Sequential) and model.layers:
        layers = [_given_name(model, model.layers[-1].name)]
    shapes = [tf.TensorShape(tensor.shape)[1:] for tensor in getattr(model, "outputs", None) or []]

    def names(outputs: Structure) -> dict[str, tf.Tensor]:
        flat = keras.tree.flatten(outputs)
        own = len(layers) == len(flat) and all(
            # The shapes of a model without a graph are not known.
            shape.is_compatible_with(tensor.shape[1:])
            for shape, tensor in zip(shapes, flat, strict=False)
        )
        given = layers if own else [None] * len(flat)
        keys = _keys(outputs)
        defaults = [f"output_{i}" for i in range(len(flat))]
        found = [
            re.sub(r"\W", "_", k or g or default) for k, g, default in zip(keys, given, defaults, strict=True)
        ]
        unique = len(set(found)) == len(found)
        return {
            _joined(name, suffix): part
            for name, tensor in zip(found if unique else defaults, flat, strict=True)
            for part, suffix in _parts_of(tensor)
        }

    return names


def argument_name(text: str) -> str:
    """Return `text` as the name of an argument of a signature, changed where needed."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    # TensorFlow turns signatures into Python functions, and calls them with an argument of its own, `self`.
    taken = keyword.iskeyword(name) or name == "self"
    return name if name[:1].isalpha() and not taken else f"arg_{name}"


def of_batch(spec: tf.TypeSpec, examples: int | None) -> tf.TypeSpec:
    """Return the specification of an input for another batch size."""
    shape = [examples, *spec.shape[1:]]
    if isinstance(spec, tf.RaggedTensorSpec):
        return tf.RaggedTensorSpec(shape, spec.dtype, spec.ragged_rank, spec.row_splits_dtype)
    if isinstance(spec, tf.SparseTensorSpec):
        return tf.SparseTensorSpec(shape, spec.dtype)
    return tf.TensorSpec(shape, spec.dtype, spec.name)


def _needed_arguments(model: keras.Model) -> list[str]:
    """Return the positional arguments of a model's `call` that have no default."""
    parameters = inspect.signature(model.call).parameters.values()
    return [p.name for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD and p.default is p.empty]


def _keys(structure: Structure, skip: int = 0) -> list[str | None]:
    """Return for each leaf the keys on the path to it, or `None` if none of them is of a dictionary."""
    paths = [path[skip:] for path, _ in keras.tree.flatten_with_path(structure)]
    return ["_".join(map(str, path)) if any(isinstance(key, str) for key in path) else None for path in paths]


def _given_name(model: keras.Model, name: str) -> str | None:
    """Return the name of a layer, unless Keras made it up and it differs from run to run."""
    layer = next((layer for layer in model.layers if layer.name == name), None)
    # The name of a class may end in a number, too.
    stems = {stem.replace("_", "") for stem in (name, re.sub(r"_\d+$", "", name))}
    automatic = layer is None or type(layer).__name__.replace("_", "").lower() in stems
    return None if automatic or _is_used_inside(layer, model) else _given(name)


def _is_used_inside(layer: keras.Layer, model: keras.Model) -> bool:
    """Return whether a layer does more than make an output, as an embedding that a decoder also ends with."""
    if any(layer in layers_in(other, include_self=False) for other in model.layers if other is not layer):
        return True
    functional = (
        as_functional(model) if functional_class(model) or isinstance(model, keras.Sequential) else None
    )
    return functional is not None and sum(call.operation is layer for call in calls_in(functional)) > 1


def _given(name: str | None) -> str | None:
    """Return the name of an input, unless Keras made it up."""
    return None if name is None or _AUTOMATIC_INPUT.fullmatch(name) else name


def _parts_of(tensor: Any) -> list[tuple[Any, str]]:
    """Return the dense tensors that a tensor consists of, and for each the suffix of its name.

    Args:
        tensor: Tensor of any kind, or the specification of one; the parts are tensors or specifications, too.
    """
    parts = tf.nest.flatten(tensor, expand_composites=True)
    if isinstance(tensor, (tf.RaggedTensor, tf.RaggedTensorSpec)):
        splits = [f"row_splits_{i}" for i in range(len(parts) - 1)] if len(parts) > 2 else ["row_splits"]
        return list(zip(parts, ["values", *splits], strict=True))
    if isinstance(tensor, (tf.SparseTensor, tf.SparseTensorSpec)):
        return list(zip(parts, ["indices", "values", "dense_shape"], strict=True))
    return [(tensor, "")]


def _joined(name: str, part: str) -> str:
    return f"{name}_{part}" if part else name


def _fixed_batch(model: keras.Model, own_batch: bool) -> int | None:
    """Return the batch size that a model fixes or, with `own_batch`, was given; `None` if there is none."""

    def sizes(tensors: Sequence[keras.KerasTensor]) -> set[int | None]:
        return {tensor.shape[0] if len(tensor.shape) else None for tensor in tensors}

    given = next((size for size in sizes(model.inputs) if size), None)
    if given is None:
        # All outputs have one size, and the inputs may have no other.
        one = sizes(model.outputs)
        fixed = one.pop() if len(one) == 1 else None
        return fixed if fixed and not _takes_batch(model, fixed + 1) else None
    stateful = any(getattr(part, "stateful", False) for part in layers_in(model))
    return given if own_batch or stateful or _needs_batch(model, given) else None


def _needs_batch(model: keras.Model, size: int) -> bool:
    """Return whether an operation in a graph has the batch size though the inputs are given none."""
    found: list[Sequence[int | None]] = []

    def noted(operation: keras.Operation) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            outputs = operation.compute_output_spec(*args, **kwargs)
            found.extend(tensor.shape for tensor in keras.tree.flatten(outputs))
            return outputs

        return call

    # If an operation takes no other size, it has this one.
    return not _takes_batch(model, None, noted) or any(shape and shape[0] == size for shape in found)


def _takes_batch(
    model: keras.Model,
    size: int | None,
    instead: Callable[[keras.Operation], Callable[..., Any]] = operator.attrgetter("compute_output_spec"),
) -> bool:
    """Return whether a graph can be called on a batch of this size, or of any if it is `None`."""

    def sized(tensor: keras.KerasTensor) -> keras.KerasTensor:
        shape = (size, *tensor.shape[1:])
        return keras.KerasTensor(shape, tensor.dtype, sparse=tensor.sparse, ragged=tensor.ragged)

    functional = as_functional(model)
    try:
        call_again(functional, [sized(tensor) for tensor in functional.inputs], instead)
    except Exception:
        return False
    return True


def _spec_of(tensor: keras.KerasTensor, batch: int | None) -> tf.TypeSpec:
    """Return the specification of an input of a graph."""
    if tensor.ragged:
        return tf.RaggedTensorSpec((batch, *tensor.shape[1:]), tensor.dtype, tensor.ragged_rank or 1)
    if tensor.sparse:
        return tf.SparseTensorSpec((batch, *tensor.shape[1:]), tensor.dtype)
    return _spec(tensor.shape, tensor.dtype, _given(tensor.name), batch)


def _spec(
    shape: Sequence[int | None], dtype: str | tf.DType, name: str | None = None, batch: int | None = None
) -> tf.TensorSpec:
    return tf.TensorSpec((batch, *shape[1:]), dtype, name)
