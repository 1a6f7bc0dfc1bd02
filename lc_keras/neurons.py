"""What makes the units of a model together, found in its graph."""

import keras
import numpy as np

from lc_keras.flow import Graph
from lc_keras.flow.units import find
from lc_keras.groups import Layout
from lc_keras.macs import uses


class Makers:
    """Which weights make which units, and how many multiply-adds each takes.

    Args:
        model: Functional or built Sequential `keras.Model`.
        count_macs: Bool, whether to count multiply-adds, for which the model is traced.
    """

    def __init__(self, model: keras.Model, count_macs: bool):
        graph = Graph(model)
        groups = graph.units.groups()
        self._stay = set(groups[list(graph.units.pinned)].tolist())
        self._trainable = model.trainable_variables
        self._places, self._reads = {}, {}
        for flow in graph.layers.values():
            for weight in flow.weights:
                variable = find(flow.layer, weight.name)
                for along, places in ((weight.makes, self._places), (weight.reads, self._reads)):
                    if variable is not None and along:
                        tiled = np.tile(flow.ports[along.port], along.tiles)
                        places[id(variable)] = along.axis, groups[tiled]
        self._macs = uses(model) if count_macs else {}

    def priced(self, variable: keras.Variable, axes) -> Layout:
        """The layout of a variable whose units are its own."""
        return Layout(axes, macs=self._macs.get(id(variable)), bytes=_bytes(variable))

    def with_companions(self, variables: list, axes: list) -> tuple[list, list[Layout]]:
        """All that makes the units that some variables make.

        Units that cannot be removed, such as the outputs of the model, are left out, if there are others.

        Args:
            variables: List of `keras.Variable`.
            axes: List of tuples, for each the axes of its output units: what its units are, where the graph
                does not say.

        Returns:
            The variables and those that make units together with them, and their `Layout`s.
        """
        own = {}
        made = []
        for variable, output_axes in zip(variables, axes, strict=True):
            place = self._places.get(id(variable))
            if place is None:
                count = int(np.prod([variable.shape[a] for a in output_axes]))
                # Of a layer of another kind: numbers that no other unit has.
                first = -2 - sum(map(len, own.values()))
                own[id(variable)] = first - np.arange(count)
            made += (own[id(variable)] if place is None else place[1]).tolist()
        units = [u for u in dict.fromkeys(made) if u not in self._stay] or list(dict.fromkeys(made))
        number = {unit: n for n, unit in enumerate(units)}

        found, layouts = [], []
        given = {id(v): output_axes for v, output_axes in zip(variables, axes, strict=True)}
        for variable in self._trainable:
            key = id(variable)
            axis, makes = self._places.get(key, (None, own.get(key, ())))
            if key not in given and not any(u in number for u in np.unique(makes).tolist()):
                continue
            found.append(variable)
            reads = self._reads.get(key)
            layouts.append(
                Layout(
                    given[key] if axis is None else (axis,),
                    units=[number.get(u, -1) for u in makes.tolist()],
                    count=len(units),
                    reads=reads and [number.get(u, -1) for u in reads[1].tolist()],
                    macs=self._macs.get(key, None if key in own else 0),
                    bytes=_bytes(variable),
                )
            )
        return found, layouts


def _bytes(variable) -> int:
    if "bfloat" in variable.dtype:
        return 2
    return np.dtype(keras.backend.standardize_dtype(variable.dtype)).itemsize
