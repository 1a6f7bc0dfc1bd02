"""Look into layers made of other layers: their `call` on symbolic tensors gives a graph of the inner ones."""

import inspect
from typing import Any

import keras

from lc_keras.internals.keras import (
    Call,
    as_functional,
    call_again,
    calls_in,
    created_by,
    layers_in,
    mask_of,
    replaced,
    set_mask,
    with_masks,
    without_traces,
)
from lc_keras.model.flow.keras_hub import symbolic_methods
from lc_keras.model.flow.kinds import Wall, exact_kind_of
from lc_keras.model.flow.units import has_arrays, name_of


def tensors_of(*arguments: Any) -> list[keras.KerasTensor]:
    """Return the tensors among the arguments of a call, followed by the masks that they carry."""
    tensors = [t for t in keras.tree.flatten(arguments) if isinstance(t, keras.KerasTensor)]
    return [*tensors, *(mask for t in tensors if (mask := mask_of(t)) is not None)]


def opened(node: Call) -> keras.Model | None:
    """Return a graph of layers that does what a layer does in a call.

    Args:
        node: Call of a layer.

    Returns:
        Functional model of `tensors_of` the call, which uses the inner layers themselves. `None` if the layer
        is not made of layers, or if such a graph does not hold all that it does: it has weights, a loss or a
        state of its own, or it does something else in training.
    """
    layer = node.operation
    if not isinstance(layer, keras.Layer) or isinstance(layer, keras.Model):
        return None
    known = exact_kind_of(layer) is not Wall
    if known or type(layer).__module__.startswith("keras.") or not layer.built:
        return None
    if created_by(layer) or layer.activity_regularizer or node.arguments.kwargs.get("training"):
        return None
    with without_traces(layers_in(layer)):
        try:
            graphs = [_graph(node, training) for training in (False, True)]
        except Exception:  # whatever its `call` raises on tensors without values
            return None
        here, there = ([type(call.operation) for call in calls_in(graph)] for graph in graphs)
        return graphs[0] if here == there and _is_whole(graphs[0], node) else None


def _graph(node: Call, training: bool) -> keras.Model:
    """Return the graph of what a layer calls; a loss or a state is an error."""
    layer, inputs, masks = node.operation, [], []

    def fresh(tensor: Any) -> Any:
        if not isinstance(tensor, keras.KerasTensor):
            return tensor
        x = keras.Input(batch_shape=tensor.shape, dtype=tensor.dtype)
        inputs.append(x)
        if layer.autocast and "float" in x.dtype and x.dtype != layer.compute_dtype:
            x = keras.ops.cast(x, layer.compute_dtype)
        if (mask := mask_of(tensor)) is not None:
            masks.append(keras.Input(batch_shape=mask.shape, dtype=mask.dtype))
            set_mask(x, masks[-1])
        return x

    methods = symbolic_methods(layer)
    args, kwargs = keras.tree.map_structure(fresh, (node.arguments.args, node.arguments.kwargs))
    if training and "training" in inspect.signature(layer.call).parameters:
        kwargs |= {"training": True}
    with keras.StatelessScope(collect_losses=True) as scope, replaced(methods):
        outputs = layer.call(*args, **kwargs)
    if scope.losses or scope.state_mapping or (masks and methods):
        raise ValueError(f"'{layer.name}' has a loss, a state, or masks of another kind.")
    graph = keras.Model([*inputs, *masks], outputs)
    return _with_masks(graph) if masks and layer.supports_masking else graph


# Layers whose outputs are made from ids alone, and whose mask is where the ids are not zero.
_OF_IDS = ("ReversibleEmbedding", "keras_hub>ReversibleEmbedding", "keras_hub>TokenAndPositionEmbedding")


def has_hidden_masks(model: keras.Model) -> bool:
    """Return whether layers in a model make masks that `with_shown_masks` does not show."""
    calls = calls_in(as_functional(model))
    shown = [x for call in calls if _is_of_ids(call.operation) for x in layers_in(call.operation)]
    return any(_hides_mask(x) and x not in shown for x in layers_in(model))


def with_shown_masks(model: keras.Model) -> keras.Model:
    """Return the graph of a model, in which symbolic tensors carry the masks that tensors carry in a run."""
    functional = as_functional(model)
    if not any(
        _is_of_ids(call.operation) or _takes_masks_off(call.operation) for call in calls_in(functional)
    ):
        return functional
    with without_traces(layers_in(functional)):
        outputs = call_again(functional, functional.inputs, lambda layer: with_shown_mask(layer, layer))
        return keras.Model(functional.inputs, outputs)


def with_shown_mask(layer: keras.Layer, call: Any) -> Any:
    """Return a function that calls a layer or its stand-in, and treats masks as the layer's `call` does."""
    if not (_is_of_ids(layer) or _takes_masks_off(layer)):
        return call

    def called(*args: Any, **kwargs: Any) -> Any:
        outputs = with_masks(call)(*args, **kwargs)
        if _takes_masks_off(layer):
            for tensor in tensors_of(args, kwargs):
                set_mask(tensor, None)
        elif not any(value is True for value in (*args, kwargs.get("reverse"))):
            set_mask(outputs, keras.ops.not_equal(args[0], 0))
        return outputs

    return called


def _takes_masks_off(layer: Any) -> bool:
    """Return whether a layer takes the masks off its inputs, so that later calls do not see them."""
    attention = keras.layers.MultiHeadAttention
    return isinstance(layer, attention) and type(layer).call is attention.call


def _is_of_ids(layer: Any) -> bool:
    known = isinstance(layer, keras.Layer) and name_of(type(layer)) in _OF_IDS
    return known and any(map(_hides_mask, layers_in(layer)))


def _hides_mask(layer: keras.Layer) -> bool:
    """Return whether a layer sets a mask in its `call`, as `ReversibleEmbedding` does."""
    return getattr(layer, "mask_zero", False) and type(layer) is not keras.layers.Embedding


def _with_masks(graph: keras.Model) -> keras.Model:
    """Return a graph in which masks pass through sums, as they do through the layer that the graph is in."""

    def instead(operation: Any) -> Any:
        if name_of(type(operation)) != "ops.Add":
            return operation
        return lambda x, y: keras.layers.Add()([x, y]) if _are_alike(x, y) else operation(x, y)

    masked = keras.Model(graph.inputs, call_again(graph, graph.inputs, instead))
    if _masks_read(masked) != _masks_read(graph):
        raise ValueError("A layer would be given a mask that it was not given before.")
    return masked


def _masks_read(graph: keras.Model) -> list[list[bool]]:
    """Return for each call of a layer that takes masks which of its tensors carry one."""
    return [
        [mask_of(value) is not None for value in keras.tree.flatten([call.arguments.args, plain])]
        for call in calls_in(graph)
        if any(name.endswith("mask") for name in inspect.signature(call.operation.call).parameters)
        for plain in [[v for name, v in call.arguments.kwargs.items() if not name.endswith("mask")]]
    ]


def _are_alike(*values: Any) -> bool:
    return len({getattr(value, "shape", None) for value in values}) == 1


def _is_whole(graph: keras.Model, node: Call) -> bool:
    """Return whether a graph has all that its outputs are made from, and the call's shapes and masks."""
    pairs = list(zip(graph.outputs, node.outputs, strict=False))
    same = len(graph.outputs) == len(node.outputs) and all(
        tuple(x.shape) == tuple(y.shape) and (mask_of(x) is None) == (mask_of(y) is None) for x, y in pairs
    )
    return same and not any(map(has_arrays, calls_in(graph)))
