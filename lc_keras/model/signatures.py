"""Describe what goes into a model and what comes out, by name and type."""

import inspect
import keyword
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import keras
import tensorflow as tf

from lc_keras.internals import layers_in

# What a model takes or returns, or the specification of that.
Structure: TypeAlias = "tf.Tensor | tf.TensorSpec | Sequence[Structure] | Mapping[str, Structure]"

_AUTOMATIC_INPUT = re.compile(r"(input_layer|keras_tensor)(_\d+)?")


def is_built(model: keras.Model) -> bool:
    """Return whether a model has all its weights.

    One that is never called itself, such as a pair of nets that play against each other,
    has them when its parts do.
    """
    parts = layers_in(model, include_self=False)
    return model.built or (bool(model.variables) and all(layer.built for layer in parts))


def input_signature_of(model: keras.Model, own_batch: bool = False) -> list[Structure]:
    """Return the inputs that a model was built for, with any batch size unless a layer of it is `stateful`.

    Args:
        model: Built `keras.Model`. A stateful layer has states for as many examples as the inputs were
            given, and takes no others.
        own_batch: Bool, default `False`. `True`: with the batch size that the inputs were given,
            if they were given one.

    Returns:
        List of `tf.TensorSpec` or of structures of these, one for each positional
        argument of the model. A subclassed model does not record the types of its
        inputs: they are taken to be its `input_dtype`. Arguments that it has defaults
        for keep these, unless its `build` takes their shapes.

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
        own_batch = own_batch or any(getattr(part, "stateful", False) for part in layers_in(model))
        structure = inputs[0] if isinstance(model, keras.Sequential) else model.input
        return [
            keras.tree.map_structure(
                lambda x: _spec(x.shape, x.dtype, x.name, x.shape[0] if own_batch else None), structure
            )
        ]
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


def named(structure: list[Structure]) -> list[tf.TensorSpec]:
    """Flatten an input signature, and give each input the name that it is served under.

    A key of a dictionary is a name; else the name that the specification has; else
    `"inputs"` if there is one input, and `"inputs_0"`, `"inputs_1"`, ... if several. What is
    no ASCII letter or digit becomes `_`, and what does not begin with a letter, or is a word of
    Python's, is put after `"arg_"`.

    Raises:
        TypeError: If it is no list, or the structures hold anything else.
        ValueError: If there are none, or two inputs have one name.
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
        if not isinstance(spec, tf.TensorSpec):
            raise TypeError(
                "Expected `input_signature` to consist of tf.TensorSpec. "
                f"Received: {spec!r} (of type {type(spec).__name__})"
            )
    keys = _keys(structure, skip=1)
    given = []
    for i, (key, spec) in enumerate(zip(keys, specs, strict=True)):
        default = "inputs" if len(specs) == 1 else f"inputs_{i}"
        given.append(key or spec.name or default)
    names = list(map(argument_name, given))
    if len(set(names)) < len(names):
        raise ValueError(
            f"Expected inputs of different names. Received: {', '.join(given)}, served as {', '.join(names)}."
        )
    return [tf.TensorSpec(spec.shape, spec.dtype, name) for spec, name in zip(specs, names, strict=True)]


def named_outputs(model: keras.Model) -> Callable[[Structure], dict[str, tf.Tensor]]:
    """Return a function from what a model returns to a dictionary of tensors by name.

    A key of a dictionary is a name; else the name that the user gave the layer which
    the output comes from, where outputs are as many and of such shapes as the model's;
    else `"output_0"`, `"output_1"`, ....
    """
    layers = [_given_name(model, name) for name in getattr(model, "output_names", None) or []]
    if isinstance(model, keras.Sequential) and model.layers:
        layers = [_given_name(model, model.layers[-1].name)]
    shapes = [tf.TensorShape(tensor.shape)[1:] for tensor in getattr(model, "outputs", None) or []]

    def names(outputs: Structure) -> dict[str, tf.Tensor]:
        flat = keras.tree.flatten(outputs)
        own = len(layers) == len(flat) and all(
            # Of a model without a graph they are not known.
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
        return dict(zip(found if unique else defaults, flat, strict=True))

    return names


def argument_name(text: str) -> str:
    """Return the name of an argument of a signature: `text`, as far as that may be one."""
    name = re.sub(r"\W", "_", text, flags=re.ASCII)
    # TensorFlow makes Python functions of signatures, and calls them with an argument of its own, `self`.
    taken = keyword.iskeyword(name) or name == "self"
    return name if name[:1].isalpha() and not taken else f"arg_{name}"


def of_batch(spec: tf.TensorSpec, examples: int | None) -> tf.TensorSpec:
    """Return the specification of an input for another batch size."""
    return tf.TensorSpec([examples, *spec.shape[1:]], spec.dtype, spec.name)


def _needed_arguments(model: keras.Model) -> list[str]:
    """Return the positional arguments of a model's `call` that have no default."""
    parameters = inspect.signature(model.call).parameters.values()
    return [p.name for p in parameters if p.kind <= p.POSITIONAL_OR_KEYWORD and p.default is p.empty]


def _keys(structure: Structure, skip: int = 0) -> list[str | None]:
    """Return for each leaf the keys on the way to it, or `None` if none is of a dictionary."""
    paths = [path[skip:] for path, _ in keras.tree.flatten_with_path(structure)]
    return ["_".join(map(str, path)) if any(isinstance(key, str) for key in path) else None for path in paths]


def _given_name(model: keras.Model, name: str) -> str | None:
    """Return the name of a layer, unless Keras made it up and it differs from run to run."""
    layer = next((layer for layer in model.layers if layer.name == name), None)
    # A class may end in a number, too.
    stems = {stem.replace("_", "") for stem in (name, re.sub(r"_\d+$", "", name))}
    automatic = layer is None or type(layer).__name__.replace("_", "").lower() in stems
    return None if automatic or _AUTOMATIC_INPUT.fullmatch(name) else name


def _spec(
    shape: Sequence[int | None], dtype: str | tf.DType, name: str | None = None, batch: int | None = None
) -> tf.TensorSpec:
    if name is not None and _AUTOMATIC_INPUT.fullmatch(name):
        name = None
    return tf.TensorSpec((batch, *shape[1:]), dtype, name)
