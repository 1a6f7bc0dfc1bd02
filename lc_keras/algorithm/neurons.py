"""What makes the units of a model together, found in its graph."""

from collections.abc import Sequence

import keras
import numpy as np

from lc_keras.costs.groups import Layout
from lc_keras.model.flow import Graph
from lc_keras.model.flow.units import find
from lc_keras.model.kernels import bytes_of
from lc_keras.model.macs import count_uses


class Makers:
    """Which weights make which units, and how many multiply-adds each takes.

    Args:
        model: Functional or built Sequential `keras.Model`.
        count_macs: Bool, whether to count multiply-adds, for which the model is traced.
    """

    def __init__(self, model: keras.Model, count_macs: bool) -> None:
        graph = Graph(model, dead=True)
        groups = graph.units.groups()
        made = (s for flow in graph.flows if flow.weights for s in (*flow.outputs, *flow.hidden))
        alive = (unit for signal in made for unit in signal.ids[~signal.constant].tolist())
        self._stay = set(groups[[*graph.units.pinned, *graph.units.held, *alive]].tolist())
        self._trainable = model.trainable_variables
        self._places: dict[int, tuple[int, np.ndarray]] = {}
        self._reads: dict[int, tuple[int, np.ndarray]] = {}
        for flow in graph.layers.values():
            for weight in flow.weights:
                variable = find(flow.layer, weight.name)
                for along, places in ((weight.makes, self._places), (weight.reads, self._reads)):
                    if variable is not None and along:
                        tiled = np.tile(flow.ports[along.port], along.tiles)
                        places[id(variable)] = along.axis, groups[tiled]
        self._macs = count_uses(model).uses if count_macs else {}

    def priced(self, variable: keras.Variable, axes: Sequence[int]) -> Layout:
        """The layout of a variable whose units are its own."""
        return Layout(axes, macs=self._macs.get(id(variable)), bytes=bytes_of(variable))

    def by_units(self, parts: list[list[keras.Variable]]) -> list[list[keras.Variable]]:
        """The variables of a model's layers, together those that make units together.

        Those of which no unit can be removed are left out, if there are others.

        Args:
            parts: List of lists of `keras.Variable`, one for each layer.

        Returns:
            List of lists of `keras.Variable`.
        """
        makers = (self._places[id(v)][1].tolist() for v in self._trainable if id(v) in self._places)
        together_made = [{unit for unit in made if not self._rank(unit)} for made in makers]
        found: list[tuple[list[keras.Variable], set[int]]] = []
        for variables in parts:
            known = [[v] for v in variables if id(v) in self._places]
            unknown = [v for v in variables if id(v) not in self._places]
            for some in (*known, *filter(None, [unknown])):
                # Of a layer of another kind: a number that no other unit has.
                own = {-id(some[0])} if some is unknown else set(self._places[id(some[0])][1].tolist())
                # A norm over several layers ties them, too.
                units = own.union(*(made for made in together_made if made & own))
                tied = [(others, made) for others, made in found if units & made]
                found = [(others, made) for others, made in found if not units & made]
                together = [v for others, _ in tied for v in others] + some
                found.append((together, units.union(*(made for _, made in tied))))
        ranks = [min(map(self._rank, units)) for _, units in found]
        return [variables for (variables, _), rank in zip(found, ranks, strict=True) if rank == min(ranks)]

    def with_companions(
        self, variables: list[keras.Variable], axes: Sequence[Sequence[int]]
    ) -> tuple[list[keras.Variable], list[Layout]]:
        """All that makes the units that some variables make.

        Units that cannot be removed are left out, if there are others: the outputs of the model, what a layer
        of another kind makes, and what would hand out a constant, once dead, that cannot be folded into what
        follows.

        Args:
            variables: List of `keras.Variable`.
            axes: List of tuples, for each the axes of its output units: what its units are, where the graph
                does not say.

        Returns:
            The variables and those that make units together with them, and their `Layout`s.
        """
        own: dict[int, np.ndarray] = {}
        made: list[int] = []
        for variable, output_axes in zip(variables, axes, strict=True):
            place = self._places.get(id(variable))
            if place is None:
                count = int(np.prod([variable.shape[a] for a in output_axes]))
                # Of a layer of another kind: numbers that no other unit has.
                first = -2 - sum(map(len, own.values()))
                own[id(variable)] = first - np.arange(count)
            made += (own[id(variable)] if place is None else place[1]).tolist()
        first = min(map(self._rank, made))
        units = [u for u in dict.fromkeys(made) if self._rank(u) == first]
        number = {unit: n for n, unit in enumerate(units)}

        found, layouts = [], []
        given = {id(v): output_axes for v, output_axes in zip(variables, axes, strict=True)}
        for variable in self._trainable:
            key = id(variable)
            axis, makes = self._places.get(key, (None, own.get(key, np.empty(0, int))))
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
                    bytes=bytes_of(variable),
                )
            )
        return found, layouts

    def _rank(self, unit: int) -> int:
        """0: it can be removed; 1: nobody knows, its layer is of another kind; 2: it stays."""
        return 1 if unit < 0 else 2 * (unit in self._stay)
