"""Walk a model's graph once forward and once back, and find what is tied, what is constant, what is read."""

import inspect
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np

from lc_keras.internals.keras import Call, as_functional, calls_in, functional_class, layers_in, mask_of
from lc_keras.model.flow.kinds import Flow, Wall, exact_kind_of, is_altered
from lc_keras.model.flow.opening import has_hidden_masks, opened, tensors_of, with_shown_masks
from lc_keras.model.flow.units import Shape, Signal, Units, last


class Graph:
    """The units of a functional or sequential model.

    Args:
        model: Built `keras.Model` that is a graph of layers.
        dead: Bool, whether to treat all units of the model as dead, to find out which of them could not be
            removed even then. Defaults to `False`.

    Attributes:
        units: `Units`.
        flows: List of `Flow`, one for each call of a layer, in order, including those of nested models.
        layers: Dict of the first `Flow` of each layer, by the layer's id.
        outputs: List of the `Signal`s that the model outputs.
        models: Dict of the input `Signal`s of the model and of each nested one, by the model's id.
        inside: Dict of lists of the `Flow`s in the model and in each nested one, by the model's id.
        opened: Dict from a layer's id to the model that calls the layers inside it; `None` if it is closed.
        callers: Dict from a layer's id to the ids of the models in whose graphs the layer is called.
        tied: List of the layers that share weights with others, as a layer does that holds another.
        walls: List of the layers whose units are not known.

    Raises:
        TypeError: If the model is not a graph of layers, or not built.
    """

    def __init__(self, model: keras.Model, dead: bool = False) -> None:
        if not is_graph(model):
            raise TypeError(
                "Expected a Functional model or a built Sequential one, which are graphs of layers. "
                f"Received: '{getattr(model, 'name', model)}' (of type {type(model).__name__})"
            )
        self._has_hidden_masks = has_hidden_masks(model)
        self._shut: set[int] = set()
        while True:
            try:
                self._follow(model, dead)
                return
            except Unlike as found:
                self._shut.add(id(found.args[0]))

    def _follow(self, model: keras.Model, dead: bool) -> None:
        functional = as_functional(model)
        self.units = Units(dead)
        self.flows: list[Flow] = []
        self.layers: dict[int, Flow] = {}
        self.models: dict[int, list[Signal]] = {}
        self.inside: dict[int, list[Flow]] = {}
        self.opened: dict[int, keras.Model | None] = dict.fromkeys(self._shut)
        self.callers: dict[int, set[int]] = {}
        self.walls: list[keras.Layer] = []
        # Each layer is rebuilt only once, but a model that is entered in one call and not in another would be
        # rebuilt twice.
        self._closed = {id(n.operation) for n in _calls(model) if not _is_entered(n)}
        self._settings: dict[int, str] = {}
        inputs = [self._outside(tuple(t.shape), "is an input of the model") for t in functional.inputs]
        self.outputs = self._run(model, inputs)
        self.tied = self._tied()
        for signal in self.outputs:
            self.units.pin(signal.ids, "is an output of the model")
            signal.read[:] = True
        for flow in reversed(self.flows):
            flow.backward()

    @property
    def signals(self) -> list[Signal]:
        lists = [*(flow.all_signals for flow in self.flows), *self.models.values()]
        return list({id(s): s for signals in lists for s in signals}.values())

    @property
    def made(self) -> list[Signal]:
        """Return the signals that come out of layers with weights, or stay in them."""
        return [s for flow in self.flows if flow.weights for s in flow.made]

    def lasting(self) -> np.ndarray:
        """Return the groups of units that stay in a graph whose units count as dead."""
        alive = [unit for signal in self.made for unit in signal.ids[~signal.constant].tolist()]
        return np.unique(self.units.groups()[[*self.units.pinned, *self.units.held, *alive]])

    def kept(self) -> np.ndarray:
        """Return whether each unit stays, by number.

        A group of tied units goes if each of them is constant or not read at each place, and none is pinned.
        The first unit of a tensor stays if all would go.
        """
        groups = self.units.groups()
        stays = np.zeros(len(groups), bool)
        stays[groups[[*self.units.pinned, *self.units.held]]] = True
        signals = [s for s in self.signals if len(s.ids)]
        for signal in signals:
            stays[groups[signal.ids[signal.needed]]] = True
        for signal in signals:
            stays[groups[signal.ids[0]]] |= not stays[groups[signal.ids]].any()
        return stays[groups]

    def _outside(self, shape: Shape, why: str) -> Signal:
        signal = Signal(shape, last(shape), self.units.new(shape[-1] or 0 if len(shape) > 1 else 0))
        self.units.pin(signal.ids, why)
        return signal

    def _run(self, model: keras.Model, inputs: list[Signal]) -> list[Signal]:
        """Return the outputs of a model that is called on signals."""
        functional = with_shown_masks(model)
        inputs = [self._fitting(*pair, model) for pair in zip(functional.inputs, inputs, strict=True)]
        known = self.models.setdefault(id(model), inputs)
        for tensor, first, signal in zip(functional.inputs, known, inputs, strict=True):
            if first.axis != signal.axis:
                for one in (first, signal):
                    self.units.pin(one.ids, f"is an input of '{model.name}', whose units are on two axes")
            elif tensor.shape[first.axis] is not None:
                self.units.tie(first.ids, signal.ids)
        signals, start = dict(zip(map(id, functional.inputs), inputs, strict=True)), len(self.flows)
        for node in calls_in(functional):
            if not node.is_input and all(id(t) in signals for t in node.input_tensors):
                self.callers.setdefault(id(node.operation), set()).add(id(model))
                outputs = self._call(node, signals)
                signals.update(zip(map(id, node.outputs), outputs, strict=True))
        self.inside.setdefault(id(model), []).extend(self.flows[start:])
        return [signals[id(t)] for t in functional.outputs]

    def _tied(self) -> list[keras.Layer]:
        """Return the layers that share weights with others, and make all their units stay."""
        flows: dict[int, list[Flow]] = {}
        for flow in self.layers.values():
            for variable in getattr(flow.layer, "weights", ()):
                flows.setdefault(id(variable), []).append(flow)
        tied = {id(flow): flow for some in flows.values() if len(some) > 1 for flow in some}
        for flow in tied.values():
            for signal in flow.all_signals:
                flow.pin(signal, "shares weights with another layer")
        return [flow.layer for flow in tied.values()]

    def _fitting(self, tensor: keras.KerasTensor, signal: Signal, model: keras.Model) -> Signal:
        """Return a signal that a model is called on, in the form of the model's input."""
        shape = tuple(tensor.shape)
        if len(signal.shape) == len(shape) and shape[signal.axis] in (None, len(signal.ids)):
            return signal
        why = f"is an input of '{model.name}', which has another shape"
        self.units.pin(signal.ids, why)
        signal.read[:] = True
        return self._outside(shape, why)

    def _call(self, node: Call, signals: dict[int, Signal]) -> list[Signal]:
        layer = node.operation
        masks, arguments = _masks(node), _arguments(node)
        for mask in (signals[id(t)] for t in node.input_tensors if id(t) in masks):
            self.units.pin(mask.ids, f"is a mask of '{layer.name}'")
            mask.read[:] = True
        if id(layer) not in self._closed and _is_entered(node):
            outputs = self._run(layer, [signals[id(t)] for t in _given(node)])
            for signal, tensor in zip(outputs, node.outputs, strict=True):
                # A size that is open in a model may be known where it is called.
                signal.shape = tuple(tensor.shape)
            return outputs
        inside = self._open(node)
        if inside is not None:
            tensors = tensors_of(node.arguments.args, node.arguments.kwargs)
            why = f"is a mask of '{layer.name}'"
            outside = [signals.get(id(t)) or self._outside(tuple(t.shape), why) for t in tensors]
            return self._run(inside, outside)
        given = keras.tree.map_structure(
            lambda t: signals[id(t)] if _is_symbolic(t) else t, [*arguments.values()]
        )
        arguments = dict(zip(arguments, given, strict=True))
        plain = [value for name, value in arguments.items() if not name.endswith("mask")]
        inputs = [value for value in keras.tree.flatten(plain) if isinstance(value, Signal)]
        shapes = [tuple(t.shape) for t in node.outputs]
        return self._apply(layer, inputs, shapes, _is_plain(node), arguments)

    def _open(self, node: Call) -> keras.Model | None:
        """Return the model that calls the layers inside a layer, `None` if the layer stays closed."""
        layer, settings = node.operation, _settings(node)
        if id(layer) not in self.opened:
            hidden = self._has_hidden_masks and getattr(layer, "supports_masking", False)
            self.opened[id(layer)] = None if hidden else opened(node)
        inside = self.opened[id(layer)]
        if inside is not None and self._settings.setdefault(id(layer), settings) != settings:
            # What is in it is rebuilt only once.
            raise Unlike(layer)
        return inside

    def _apply(
        self,
        layer: keras.Layer,
        inputs: list[Signal],
        shapes: list[Shape],
        is_plain: bool,
        arguments: dict[str, Any] | None = None,
    ) -> list[Signal]:
        """Return the outputs of a layer that is called on signals."""
        if type(layer) is keras.layers.TimeDistributed and is_plain and inputs[0].axis > 1:
            return self._at_each_step(layer.layer, inputs[0], shapes[0])
        kind = exact_kind_of(layer)
        fits = kind.fits(layer) and kind.takes in (None, len(inputs))
        if not ((is_plain or kind.takes_arguments) and fits) or _is_altered(layer) or not _has_config(layer):
            kind = Wall
        if issubclass(kind, Wall) and layer not in self.walls:
            self.walls.append(layer)
        flow = kind(layer, inputs, shapes, self.units, arguments)
        self.flows.append(flow)
        first = self.layers.setdefault(id(layer), flow)
        if first is not flow:
            self._share(first, flow)
        return flow.outputs

    def _at_each_step(self, layer: keras.Layer, x: Signal, shape: Shape) -> list[Signal]:
        """Return the output of a layer that is called at each step of the axis after that of examples."""
        step, after = x.seen_as((x.shape[0], *x.shape[2:]), x.axis - 1), (shape[0], *shape[2:])
        if is_graph(layer) and id(layer) not in self._closed:
            (out,) = self._run(layer, [step])
        else:
            (out,) = self._apply(layer, [step], [after], is_plain=True)
        return [out.seen_as(shape, out.axis + 1)]

    def _share(self, first: Flow, again: Flow) -> None:
        """Tie the units of two calls of a layer; a constant must be the same in both to be folded."""
        first.is_shared = True
        if not (again.is_sized or first.is_sized):
            return
        if _sizes(first) != _sizes(again):
            for ids in (*first.ports.values(), *again.ports.values()):
                self.units.pin(ids, f"'{again.layer.name}' is shared and called at unlike sizes")
            return
        for port, ids in again.ports.items():
            self.units.tie(first.ports[port], ids)
        why = f"'{again.layer.name}' is shared and given unlike constants"
        for one, other in zip(first.inputs, again.inputs, strict=False):
            # What varies in one call need not be read there.
            self.units.hold(one.ids[_leaves_a_constant(one, other) & (one.value != other.value)], why)
        for one, other in zip(first.hidden, again.hidden, strict=True):
            self.units.hold(one.ids[_leaves_a_constant(one, other)], why)


def _leaves_a_constant(one: Signal, other: Signal) -> np.ndarray:
    """Return which units are a constant other than zero in one of two calls, or in both."""
    given = [signal.constant & (signal.value != 0) for signal in (one, other)]
    return given[0] | given[1]


class Unlike(Exception):
    """Say that a layer is called in two ways that give different graphs of what is in it."""


def is_graph(layer: keras.Layer) -> bool:
    """Return whether a layer is a model that does what its graph of layers says."""
    if isinstance(layer, keras.Sequential):
        return as_functional(layer) is not None and type(layer).call is keras.Sequential.call
    functional = functional_class(layer)
    return functional is not None and type(layer).call is functional.call


def in_order(model: keras.Model, given: Any) -> list[keras.KerasTensor]:
    """Return the tensors that a model is called on, in the order of its inputs."""
    inputs = as_functional(model).input
    if isinstance(given, dict) and isinstance(inputs, (list, tuple)):
        given = [given[tensor.name] for tensor in inputs]
    return [tensor for tensor in keras.tree.flatten(given) if tensor is not None]


def _given(node: Call) -> list[keras.KerasTensor]:
    """Return the tensors that a node calls a model on."""
    return in_order(node.operation, next(iter(_arguments(node).values())))


def _sizes(flow: Flow) -> tuple[dict[str, int], list[int]]:
    """Return the numbers of units of a call, by port and for each of its inputs."""
    return {port: len(ids) for port, ids in flow.ports.items()}, [len(x.ids) for x in flow.inputs]


def _arguments(node: Call) -> dict[str, Any]:
    """Return the arguments of a call by name, in the order of its signature if that is known."""
    args, kwargs = node.arguments.args, node.arguments.kwargs
    try:
        return dict(inspect.signature(node.operation.call).bind(*args, **kwargs).arguments)
    except TypeError:
        return {str(place): value for place, value in enumerate(args)} | kwargs


def _settings(node: Call) -> str:
    """Return a text that is equal for two calls of a layer if the same happens in it."""
    given = keras.tree.map_structure(
        lambda t: (t.shape, t.dtype, mask_of(t) is None) if _is_symbolic(t) else repr(t),
        (node.arguments.args, node.arguments.kwargs),
    )
    return str(given)


def _is_symbolic(value: Any) -> bool:
    return isinstance(value, keras.KerasTensor)


def _is_plain(node: Call) -> bool:
    """Return whether a layer is called only on tensors of the graph and on masks, outside of training."""
    given = [value for name, value in _arguments(node).items() if not name.endswith("mask")]
    return all(value is None or value is False or _is_symbolic(value) for value in keras.tree.flatten(given))


def _is_entered(node: Call) -> bool:
    """Return whether a call is of a graph of layers that act as if they were called themselves."""
    if not (is_graph(node.operation) and _is_plain(node)):
        return False
    return len(_given(node)) == len(as_functional(node.operation).inputs)


def _masks(node: Call) -> set[int]:
    """Return the ids of the masks among the tensors of a call."""
    given = [value for name, value in _arguments(node).items() if name.endswith("mask")]
    return {id(tensor) for tensor in keras.tree.flatten(given) if tensor is not None}


def _calls(model: keras.Model) -> Iterator[Call]:
    """Yield all calls of layers in a graph and in the graphs inside it."""
    for node in calls_in(as_functional(model)):
        if not node.is_input:
            yield node
            if is_graph(node.operation):
                yield from _calls(node.operation)


def _has_config(layer: keras.Layer) -> bool:
    """Return whether a layer says what it was made with."""
    try:
        layer.get_config()
    except Exception:  # whatever a layer of the user's own raises
        return False
    return True


def _is_altered(layer: keras.Layer) -> bool:
    """Return whether a layer, or one inside it, does not multiply by its kernel itself."""
    return isinstance(layer, keras.Layer) and any(map(is_altered, layers_in(layer)))
