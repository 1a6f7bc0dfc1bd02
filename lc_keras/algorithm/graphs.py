"""Graphs that Lagrangians of equal costs and shapes share: tracing one takes longer than many C steps."""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from lc_keras.costs.compression import Compression, Map
from lc_keras.costs.layout import Layout
from lc_keras.internals.tensorflow import compiled, copies_of, kept_with_trace, variable_of

# How many graphs are kept after the last model that used them.
_KEPT = 64


class Part(NamedTuple):
    """Hold what is known about weights that share a cost before there is a graph, apart from their shapes.

    Attributes:
        compression: `Compression`.
        layouts: List of `Layout`, one for each weight.
        constraints: List of the weights' own Keras constraints, or `None`.
    """

    compression: Compression
    layouts: Sequence[Layout]
    constraints: Sequence[keras.constraints.Constraint | None]

    def constrained(self, solves: Sequence[Map]) -> list[Map]:
        """Apply the weights' own constraints to θ, if the cost only says which weights are zero."""

        def constrained(constraint: keras.constraints.Constraint | None, solve: Map) -> Map:
            if constraint is None or not self.compression.keeps_values:
                return solve

            def apply(value: tf.Tensor) -> tf.Tensor:
                theta = solve(value)
                changed = tf.cast(tf.convert_to_tensor(constraint(theta)), theta.dtype)
                return tf.where(theta != 0, changed, tf.zeros([], theta.dtype))

            return apply

        return [constrained(*pair) for pair in zip(self.constraints, solves, strict=True)]


class Arrays(NamedTuple):
    """Hold the variables of a Lagrangian.

    Attributes:
        variables: List of variables, the weights.
        thetas: List of `tf.Variable`, θ of each.
        targets: List of `tf.Variable`, or `None` if they are θ.
        strength: `tf.Variable`, a scalar.
    """

    variables: list[keras.Variable]
    thetas: list[tf.Variable]
    targets: list[tf.Variable] | None
    strength: tf.Variable


def in_graph(
    method: Callable[..., Any], holder: Callable[..., Any], parts: Sequence[Part], arrays: Arrays
) -> Callable[..., Any]:
    """Compile a method into a graph that serves all objects with equal parts and arrays of equal shapes.

    Args:
        method: Function of an object and scalar tensors, or `None`.
        holder: Called with `parts` and `Arrays`, returns the object, whose variables may be others.
        parts: List of `Part`.
        arrays: `Arrays`. If several devices hold them, the graph is theirs alone.
    """
    flat = [*arrays.variables, *arrays.thetas, *(arrays.targets or ()), arrays.strength]
    copies = [copy for variable in flat for copy in copies_of(variable)]
    devices = {copy.device for copy in copies}
    if len(devices) > 1:
        return compiled(functools.partial(method, holder(parts, arrays)))
    kinds = tuple((tuple(copy.shape), copy.dtype) for copy in copies)
    graph = shared(method, holder, _Parts(parts), kinds, *devices)
    handles = [copy.handle for copy in copies]

    @functools.cache
    def traced(*dtypes: tf.DType | None) -> Callable[..., Any]:
        return graph.get_concrete_function(handles, *(d and tf.TensorSpec([], d) for d in dtypes))

    # TensorFlow takes longer to find the trace of hundreds of handles than to pass them.
    return lambda *scalars: traced(*(s if s is None else s.dtype for s in scalars))(handles, *scalars)


class _Parts(tuple[Part, ...]):
    """Hold parts that are equal if everything that a graph depends on is equal."""

    @functools.cached_property
    def _content(self) -> Hashable:
        return _content(tuple(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Parts) and self._content == other._content

    def __hash__(self) -> int:
        return hash(self._content)


@functools.lru_cache(_KEPT)
def shared(
    method: Callable[..., Any], holder: Callable[..., Any], parts: _Parts, kinds: tuple[Any, ...], device: str
) -> Any:
    """Return the graph of a method, which takes the handles of variables of these shapes and types."""

    def traced(handles: Sequence[tf.Tensor], *tensors: tf.Tensor) -> Any:
        variables = [variable_of(handle, *kind) for handle, kind in zip(handles, kinds, strict=True)]
        kept_with_trace(*variables)
        strength = variables.pop()
        count = sum(len(part.layouts) for part in parts)
        weights, thetas, targets = (variables[i * count : (i + 1) * count] for i in range(3))
        with tf.device(device):
            return method(holder(parts, Arrays(weights, thetas, targets or None, strength)), *tensors)

    return compiled(traced)


def _content(value: Any) -> Hashable:
    """Return what tells a value from others; objects of other kinds, which may change, equal no others."""
    if isinstance(value, (tuple, list)):
        return type(value), *map(_content, value)
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype.str, value.tobytes()
    if "__dataclass_fields__" in vars(type(value)):
        # 1 and 1.0 are not the same.
        return type(value), *(_content(getattr(value, field.name)) for field in dataclasses.fields(value))
    return type(value), value if isinstance(value, (bool, int, float, str, type(None))) else object()
