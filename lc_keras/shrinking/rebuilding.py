"""Take dead neurons and filters out of a graph: make a smaller model that computes the same."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from lc_keras.arguments import warn
from lc_keras.internals.keras import (
    as_functional,
    call_again,
    copied_together,
    functional_class,
    is_of_keras,
    layers_in,
    output_shape_of,
    source_of,
)
from lc_keras.model.flow import Graph
from lc_keras.model.flow.graph import in_order
from lc_keras.model.flow.kinds import Flow, Wall
from lc_keras.model.flow.opening import tensors_of, with_shown_mask
from lc_keras.model.flow.units import Signal, Weight, find
from lc_keras.shrinking.configs import config_of, without_fixed_values
from lc_keras.shrinking.factoring import Factors, Pair, split
from lc_keras.shrinking.stand_ins import stand_in
from lc_keras.shrinking.states import copy_state, restore


def shrink(model: keras.Model) -> keras.Model:
    """Return a smaller model that computes the same, without the units that are dead.

    A unit is dead if its output does not depend on the model's input, since all weights into it are zero, or
    if nothing depends on it. The constant output of a dead unit, if it is not zero, is folded into the biases
    of what follows; where that is not exact, as before a convolution that pads, the unit stays. Units that
    are tied, by an addition or a shared layer, go together or not at all. No layer loses all its units,
    except in a residual block that goes as a whole. Layers of unknown kinds stay as they are, with all units
    that enter or leave them; those that Keras cannot make anew from their config are shared by both models.

    A dense layer or a convolution whose remaining kernel is of low rank becomes two layers, if the two have
    fewer weights than the kernel has nonzero ones; outputs are then equal up to rounding.

    Any model with zeros or low ranks in it will do, however they got there. The model itself is not changed.

    Args:
        model: Functional or built Sequential `keras.Model`, of any depth of nesting.

    Returns:
        `keras.Model` with layers of the same names and weights of its own, Sequential or Functional as
        `model` is, and not compiled. Where a layer made of other layers loses units, the model holds its
        inner layers directly, under names that begin with the outer one's, and is Functional. It also holds
        those of a nested model that shares layers with others; `_1` follows a name that is taken. Where two
        layers take the place of one, the first is named `name_factor`. Outputs keep their names. A user's
        own class is kept if its constructor is that of Keras, or if nothing in the model goes.

    Raises:
        TypeError: If `model` is not a graph of layers, or not built.

    Example:

    ```python
    small = lc_keras.shrink(model)
    small.save("small.keras")
    ```
    """
    small, _ = rebuild(model)
    return small


def rebuild(model: keras.Model) -> tuple[keras.Model, "Rebuilt"]:
    """Return the smaller model, and how it was made.

    Args:
        model: As in `shrink`.

    Raises:
        TypeError: As in `shrink`.
    """
    rebuilt = Rebuilt(Graph(model))
    small = rebuilt.model(model)
    rebuilt.set_weights()
    return small, rebuilt


class Rebuilt:
    """The layers and models of a graph, made anew at their new sizes, each once.

    Args:
        graph: `Graph`.
        stays: Array of bools, which units stay. `None` (default): those that are not dead.
        factors: Dict of `Factors` by the ids of the layers to replace by two. `None` (default): those of
            kernels of low rank, or none if `stays` is given.
    """

    def __init__(
        self,
        graph: Graph,
        stays: np.ndarray | None = None,
        factors: Mapping[int, Factors] | None = None,
    ) -> None:
        self.graph = graph
        self._stays = graph.kept() if stays is None else stays
        self._made: dict[int, keras.Layer] = {}
        # What is called instead of a layer, which may be a function.
        self._calls: dict[int, Any] = {}
        # For nets with given units, no weights are looked at.
        self._factors: dict[int, Factors | None] = {}
        if stays is not None:
            self._factors |= dict.fromkeys(graph.layers) | dict(factors or {})
        self._copies: list[tuple[keras.Layer, keras.Layer]] = []
        self._wholes: list[tuple[keras.Layer, keras.Layer]] = []
        # The names of the layers inside which layers are being made.
        self._path: list[str] = []
        self._is_inlining = False
        self._names: dict[str, keras.Layer] = {}
        try:
            made = copied_together(graph.tied)
        except Exception:  # for layers of the user's own, which are then in both models
            made = graph.tied
        self._made.update(zip(map(id, graph.tied), made, strict=True))

    def model(self, model: keras.Model) -> keras.Model:
        functional, signals = as_functional(model), self.graph.models[id(model)]
        for operation in functional.operations:
            self._names.setdefault(operation.name, operation)
        kind = _class_of(model)
        if kind is None:
            copy = None if self._changes(model) else self._copy(model)
            if copy is not None:
                return copy
            kind = keras.Sequential if isinstance(model, keras.Sequential) else keras.Model
        inputs = [self._input(*pair) for pair in zip(functional.inputs, signals, strict=True)]
        if issubclass(kind, keras.Sequential):
            made = map(self._operation, model.layers)
            stack = [layer for some in made for layer in (some if isinstance(some, Pair) else [some])]
            if all(isinstance(layer, keras.Layer) for layer in stack):
                return kind([*inputs, *stack], name=self._name(model), trainable=model.trainable)
            kind = keras.Model
        outputs = call_again(functional, inputs, lambda op: with_shown_mask(op, self._operation(op)))
        outputs = _named_as(functional, outputs)
        inputs = keras.tree.pack_sequence_as(functional.input, inputs)
        new = kind(inputs, outputs, name=self._name(model))
        if not model.trainable:
            new.trainable = False
        return new

    def instead_of(self, layer: keras.Layer) -> Any:
        """Return what stands for a layer, the second if there are two, or `None` if nothing was made."""
        made = self._made.get(id(layer))
        return made[-1] if isinstance(made, Pair) else made

    def factors(self, flow: Flow) -> Factors | None:
        """Return the kernels of the two layers that take the place of one, or `None` if the one stays."""
        key = id(flow.layer)
        if key not in self._factors:
            ways = ways_of(self.graph, flow)
            self._factors[key] = split(self._folded(flow)["kernel"], ways) if ways else None
        return self._factors[key]

    def set_weights(self) -> None:
        for made, model in self._copies:
            copy_state(made, model, all_of_it=True)
        for made, layer in self._wholes:
            restore(made, layer)
        for flow in self.graph.layers.values():
            # Layers that only masks need may be made by Keras itself.
            made = self._made.get(id(flow.layer))
            factors = self.factors(flow)
            if isinstance(made, Pair) and factors:
                _, *others = self._weights(flow)
                made[0].set_weights([factors.first])
                made[1].set_weights([factors.second, *others])
            elif isinstance(made, keras.Layer) and made is not flow.layer:
                if isinstance(flow, Wall):
                    restore(made, flow.layer)
                else:
                    made.set_weights(self._weights(flow))

    def _changes(self, model: keras.Model) -> bool:
        """Return whether any units in a model go, or two layers take the place of one."""
        flows = self.graph.inside[id(model)]
        if any(flow.bypasses(self._kept(flow)) or self.factors(flow) for flow in flows):
            return True
        signals = [s for flow in flows for s in flow.all_signals]
        return not all(self._stays[s.ids].all() for s in (*signals, *self.graph.models[id(model)]))

    def _copy(self, model: keras.Model) -> keras.Model | None:
        """Return a copy that a model's own class makes, or `None` if it makes another one from the config."""
        try:
            made = type(model).from_config(model.get_config())
        except Exception:  # whatever a class of the user's own raises
            return None
        pairs = list(zip(layers_in(made), layers_in(model), strict=False))
        same = [v.shape for v in made.variables] == [v.shape for v in model.variables]
        if not same or any(type(new) is not type(old) for new, old in pairs):
            return None
        self._made.update((id(old), new) for new, old in pairs)
        self._copies.append((made, model))
        return made

    def _input(self, tensor: keras.KerasTensor, signal: Signal) -> keras.KerasTensor:
        shape = list(tensor.shape)
        if len(signal.ids) and shape[signal.axis] is not None:
            shape[signal.axis] = int(self._stays[signal.ids].sum())
        source = source_of(tensor)
        optional = getattr(source, "optional", False)
        return keras.Input(
            batch_shape=shape,
            dtype=tensor.dtype,
            name=source.name,
            sparse=tensor.sparse,
            ragged=tensor.ragged,
            optional=optional,
        )

    def _operation(self, operation: keras.Layer) -> Any:
        """Return what to call instead of a layer."""
        if id(operation) not in self._calls:
            self._calls[id(operation)] = self._again(operation)
        return self._calls[id(operation)]

    def _again(self, operation: keras.Layer) -> Any:
        if id(operation) in self._made:
            return self._made[id(operation)]
        if id(operation) in self.graph.models:
            return self._inline(operation) if self._is_shared(operation) else self.model(operation)
        inside = self.graph.opened.get(id(operation))
        if inside is None:
            made = self._made[id(operation)] = self._layer(operation)
            flow = self.graph.layers.get(id(operation))
            return flow.called(made, self._kept(flow)) if flow else made
        whole = None if self._changes(inside) else self._whole(operation)
        return self._opened(operation, inside) if whole is None else whole

    def _whole(self, layer: keras.Layer) -> keras.Layer | None:
        """Return a layer made anew as it is, or `None` if it cannot be."""
        try:
            made = type(layer).from_config(layer.get_config() | {"name": self._name(layer)})
        except Exception:  # whatever a layer of the user's own raises
            return None
        self._wholes.append((made, layer))
        return made

    def _opened(self, layer: keras.Layer, inside: keras.Model) -> Callable[..., Any]:
        """Return a function that calls the layers inside a layer, under names that begin with the layer's."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._path.append(layer.name)
            outputs = call_again(inside, tensors_of(args, kwargs), self._operation)
            self._path.pop()
            return outputs

        return call

    @property
    def _is_inside(self) -> bool:
        """Say whether layers are made that were inside another layer or model, with names of their own."""
        return bool(self._path) or self._is_inlining

    def _name(self, layer: keras.Layer) -> str:
        name = "_".join([*self._path, layer.name])
        # "a_b" may be b in a, and also another layer's name.
        while self._is_inside and self._names.setdefault(name, layer) is not layer:
            name += "_1"
        return name

    def _name_of_first(self, name: str) -> str:
        """Return a name for the first of two layers."""
        taken, name = {flow.layer.name for flow in self.graph.layers.values()}, f"{name}_factor"
        while name in taken:
            name += "_1"
        return name

    def _is_shared(self, model: keras.Model) -> bool:
        """Return whether layers in a nested model are also called outside it, which Keras cannot load."""
        callers = self.graph.callers
        return any(len(callers.get(id(f.layer), ())) > 1 for f in self.graph.inside[id(model)])

    def _inline(self, model: keras.Model) -> Callable[..., Any]:
        """Return a function that calls the layers in a nested model as if they were in the outer one."""

        def call(inputs: Any, *_: Any, **__: Any) -> Any:
            before, self._is_inlining = self._is_inlining, True
            outputs = call_again(as_functional(model), in_order(model, inputs), self._operation)
            self._is_inlining = before
            return outputs

        return call

    def _layer(self, layer: keras.Layer) -> keras.Layer:
        if isinstance(layer, keras.layers.Lambda):
            # Keras does not read a Python function back from a config.
            return keras.layers.Lambda(
                layer.function,
                output_shape_of(layer),
                layer.mask,
                layer.arguments,
                name=self._name(layer),
                dtype=layer.dtype_policy,
            )
        if id(layer) not in self.graph.layers:
            wrapped = self._operation(layer.layer)
            if not isinstance(wrapped, (keras.Layer, Pair)):
                wrapped = self.model(layer.layer)
            name, options = self._name(layer), {"dtype": layer.dtype_policy, "trainable": layer.trainable}
            if isinstance(wrapped, Pair):
                names = self._name_of_first(name), name
                return Pair(
                    keras.layers.TimeDistributed(half, name=n, **options)
                    for n, half in zip(names, wrapped, strict=True)
                )
            return keras.layers.TimeDistributed(wrapped, name=name, **options)
        flow = self.graph.layers[id(layer)]
        if isinstance(flow, Wall):
            try:
                return type(layer).from_config(layer.get_config() | self._renamed(layer))
            except Exception:
                # A layer of the user's own, such as an operation that holds a function.
                instead = stand_in(layer, self._name(layer))
                if instead is None:
                    warn(
                        f"'{layer.name}' cannot be rebuilt from its config. Both models share it, and the "
                        "smaller one can be exported, but perhaps not loaded from a .keras file.",
                    )
                return instead or layer
        kept = self._kept(flow)
        config = config_of(layer) | self._renamed(layer)
        if not all(stays.all() for stays in kept.values()):
            config = without_fixed_values(config) | flow.config(lambda port: int(kept[port].sum()))
            if "bias" in self._folded(flow) and flow.optional("bias") is None:
                config["use_bias"] = True
        if factors := self.factors(flow):
            config = without_fixed_values(config)
            return factors.layers(type(layer), config, self._name_of_first(config["name"]))
        return (flow.made_as or type(layer)).from_config(config)

    def _renamed(self, layer: keras.Layer) -> dict[str, Any]:
        return {"name": self._name(layer)} if self._is_inside else {}

    def _kept(self, flow: Flow) -> dict[str, np.ndarray]:
        return {port: self._stays[ids] for port, ids in flow.ports.items()}

    def _folded(self, flow: Flow) -> dict[str, np.ndarray]:
        """Return, by name, the weights of a layer that are cut, or changed by what is folded in."""
        kept = self._kept(flow)
        arrays = {
            w.name: _cut(array, w, kept) for w in flow.weights if (array := flow.optional(w.name)) is not None
        }
        return arrays | flow.fold(kept, arrays)

    def _weights(self, flow: Flow) -> list[np.ndarray]:
        folded = self._folded(flow)
        named = {id(variable): name for name in folded if (variable := find(flow.layer, name)) is not None}
        weights = [
            folded.pop(named[id(v)]) if id(v) in named else keras.ops.convert_to_numpy(v)
            for v in flow.layer.weights
        ]
        # A bias that the layer did not have comes last.
        return [*weights, *folded.values()]


def ways_of(graph: Graph, flow: Flow) -> tuple[tuple[int, ...], ...]:
    """Return the ways in which two layers can stand for one, as `split` takes them; none if they cannot."""
    # A class of the user's own may do more than its base, and would do so twice.
    may_split = is_of_keras(flow.layer) and id(flow.layer) not in map(id, graph.tied)
    return flow.ways if may_split else ()


def _class_of(model: keras.Model) -> type[keras.Model] | None:
    """Return the class of a model, or `None` if its constructor is not that of Keras."""
    of_keras = keras.Sequential if isinstance(model, keras.Sequential) else functional_class(model)
    return type(model) if type(model).__init__ is of_keras.__init__ else None  # type: ignore[misc]


def _named_as(functional: keras.Model, outputs: Any) -> Any:
    """Return outputs under the names of those of a graph, which are the names of the layers they come from.

    Another layer makes an output if the last one was taken apart, or was a sum of which one part is left.
    """
    made: dict[str, keras.Layer] = {}

    def named(tensor: keras.KerasTensor, old: keras.KerasTensor) -> keras.KerasTensor:
        name = source_of(old).name
        if source_of(tensor).name == name:
            return tensor
        identity = made.setdefault(name, keras.layers.Identity(name=name, dtype=tensor.dtype))
        return identity(tensor)

    pairs = zip(keras.tree.flatten(outputs), functional.outputs, strict=True)
    return keras.tree.pack_sequence_as(outputs, [named(*pair) for pair in pairs])


def _cut(array: np.ndarray, weight: Weight, kept: dict[str, np.ndarray]) -> np.ndarray:
    """Return a weight without the units that go."""
    for along in (weight.makes, weight.reads):
        if along is not None:
            array = np.compress(np.tile(kept[along.port], along.tiles), array, axis=along.axis)
    return array
