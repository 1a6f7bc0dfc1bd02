"""The neurons and filters of a model: the weights that make each of them, found in the model's graph."""

from collections.abc import Iterable, Sequence

import keras
import numpy as np

from lc_keras.costs.groups import Neurons
from lc_keras.costs.layout import Layout
from lc_keras.model.flow import Graph
from lc_keras.model.flow.units import find
from lc_keras.model.kernels import bytes_of
from lc_keras.showing import listed


class Makers:
    """Find the weights that make each unit of a model.

    Args:
        model: Functional or built Sequential `keras.Model`.
        uses: Dict from the id of a variable to how often it is multiplied by; see `count_uses`.

    Attributes:
        kept_by: Set of strings, the reasons why some of the requested units stay in the model.
        none_goes: Bool, whether there was a request for units of which none can be removed.
    """

    def __init__(self, model: keras.Model, uses: dict[int, int | None]) -> None:
        self.kept_by: set[str] = set()
        self.none_goes = False
        graph = Graph(model, dead=True)
        groups = graph.units.groups()
        self._stay = set(graph.lasting().tolist())
        why = "is of a kind whose units are not known"
        walls = [layer for layer in graph.walls if isinstance(layer, keras.Layer)]
        self._walls = {id(v): f"'{layer.name}' {why}" for layer in walls for v in layer.variables}
        outputs = {int(unit) for signal in graph.outputs for unit in groups[signal.ids]}
        # Why units stay, other than that the model returns them or is given them.
        self._reasons = {
            int(groups[unit]): why
            for unit, why in graph.units.pinned.items()
            if not (int(groups[unit]) in outputs or why.endswith(("put of the model", "looks its input up")))
        }
        self._trainable = model.trainable_variables
        self._places: dict[int, tuple[int, np.ndarray]] = {}
        self._reads: dict[int, tuple[int, np.ndarray]] = {}
        self._channels: dict[int, float] = {}
        for flow in graph.layers.values():
            for weight in flow.weights:
                variable = find(flow.layer, weight.name)
                for along, places in ((weight.makes, self._places), (weight.reads, self._reads)):
                    if variable is not None and along:
                        tiled = np.tile(flow.ports[along.port], along.tiles)
                        places[id(variable)] = along.axis, groups[tiled]
                if variable is not None and weight.makes:
                    inside, tiles = weight.makes.inside, weight.makes.tiles
                    self._channels[id(variable)] = (1 if inside is None else variable.shape[inside]) / tiles
        self._macs = uses

    @property
    def reasons(self) -> str:
        """Return `kept_by` as text."""
        return listed(sorted(self.kept_by) or ["they are inputs or outputs of the model"], "; ")

    def by_units(self, parts: list[list[keras.Variable]]) -> list[list[keras.Variable]]:
        """Return the variables of a model's layers in lists, those that make units together in one list.

        Variables of which no unit can be removed are left out, if there are others; `kept_by` says why,
        unless they make the outputs of the model.
        """
        makers = (self._places[id(v)][1].tolist() for v in self._trainable if id(v) in self._places)
        together_made = [{unit for unit in made if not self._rank(unit)} for made in makers]
        found: list[tuple[list[keras.Variable], set[int]]] = []
        for variables in parts:
            known = [[v] for v in variables if id(v) in self._places]
            unknown = [v for v in variables if id(v) not in self._places]
            for some in (*known, *filter(None, [unknown])):
                # For a layer of another kind, a number that no other unit has.
                own = {-id(some[0])} if some is unknown else set(self._places[id(some[0])][1].tolist())
                # A norm over several layers ties them, too.
                units = own.union(*(made for made in together_made if made & own))
                tied = [(others, made) for others, made in found if units & made]
                found = [(others, made) for others, made in found if not units & made]
                together = [v for others, _ in tied for v in others] + some
                found.append((together, units.union(*(made for _, made in tied))))
        ranks = [min(map(self._rank, units)) for _, units in found]
        for (variables, units), rank in zip(found, ranks, strict=True):
            if rank > min(ranks):
                self._note(variables, units)
        return [variables for (variables, _), rank in zip(found, ranks, strict=True) if rank == min(ranks)]

    def with_companions(
        self, variables: list[keras.Variable], layouts: Sequence[Layout]
    ) -> tuple[list[keras.Variable], list[Layout]]:
        """Return all variables that make the units that some variables make, and their `Layout`s.

        Units that cannot be removed are left out, if there are others: the outputs of the model, the units
        that a layer of another kind makes, and units that, once dead, would return a constant that cannot be
        folded into what follows. For a layer of another kind, `layouts` say what its units are.
        """
        given = {id(v): layout for v, layout in zip(variables, layouts, strict=True)}
        own: dict[int, np.ndarray] = {}
        made: list[int] = []
        for key, layout in given.items():
            place = self._places.get(key)
            if place is None:
                # For a layer of another kind, numbers that no other unit has.
                first = -2 - sum(map(len, own.values()))
                own[key] = first - np.arange(Neurons().count(layout))
            made += (own[key] if place is None else place[1]).tolist()
        first = min(map(self._rank, made))
        self._note(variables, made)
        self.none_goes |= first > 0
        units = [u for u in dict.fromkeys(made) if self._rank(u) == first]
        number = {unit: n for n, unit in enumerate(units)}

        def numbers(places: np.ndarray) -> np.ndarray:
            return np.array([number.get(u, -1) for u in places.tolist()], np.int32)

        found, its_layouts = [], []
        for variable in self._trainable:
            key = id(variable)
            axis, makes = self._places.get(key, (None, own.get(key, np.empty(0, int))))
            if key not in given and not any(u in number for u in np.unique(makes).tolist()):
                continue
            found.append(variable)
            reads = self._reads.get(key)
            its_layouts.append(
                Layout(
                    variable.shape,
                    given[key].axes if axis is None else (axis,),
                    units=numbers(makes),
                    reads=None if reads is None else numbers(reads[1]),
                    count=len(units),
                    channels=self._channels.get(key, 1.0),
                    macs=self._macs.get(key, None if key in own else 0),
                    bytes=bytes_of(variable),
                )
            )
        return found, its_layouts

    def _note(self, variables: Iterable[keras.Variable], units: Iterable[int]) -> None:
        """Note why some of the units that variables make stay in the model, if some do."""
        self.kept_by |= {self._reasons[u] for u in units if u in self._reasons}
        unknown = (id(v) for v in variables if id(v) not in self._places)
        self.kept_by |= {self._walls[key] for key in unknown if key in self._walls}

    def _rank(self, unit: int) -> int:
        """Return 0 if a unit can be removed, 1 if its layer is of another kind, 2 if it stays."""
        return 1 if unit < 0 else 2 * (unit in self._stay)
