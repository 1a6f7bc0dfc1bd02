"""Report what shrinking takes out of a model, and what keeps it from taking more."""

from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np

from lc_keras.arguments import whole
from lc_keras.internals.keras import layers_in
from lc_keras.model.flow.graph import Graph
from lc_keras.model.flow.kinds import Wall
from lc_keras.model.macs import macs
from lc_keras.model.signatures import Structure
from lc_keras.showing import Bar, Shown, Table
from lc_keras.shrinking.rebuilding import Rebuilt, rebuild
from lc_keras.shrinking.timing import quartiles


@dataclass(frozen=True)
class LayerSize:
    """The units of a layer.

    Attributes:
        name: String, the layer's name.
        units: Int, how many units it has.
        kept: Int, how many stay.
        dead: Int, how many of the units that stay do nothing.
        why: String, what keeps the first of the dead ones; empty if there are none.
        rank: Int, the rank of the kernel, if two layers take the place of this one; else `None`.
    """

    name: str
    units: int
    kept: int
    dead: int
    why: str
    rank: int | None = None


@dataclass(frozen=True)
class ShrinkReport(Shown):
    """The sizes of a model before and after `shrink`; see `shrink_report`. `str()` returns a table.

    Attributes:
        rows: Tuple of `LayerSize`, one for each layer with units of its own.
        walls: Tuple of strings, the layers whose units are not known.
        parameters: Tuple of two ints, before and after.
        macs: Tuple of two ints, the multiply-adds of one example, or `None` if not all are known.
        milliseconds: Tuple of two floats, the time of a batch, or `None` if it was not asked for.
        batch_size: Int, how many examples that batch has, or `None`.
    """

    rows: tuple[LayerSize, ...]
    walls: tuple[str, ...]
    parameters: tuple[int, int]
    macs: tuple[int, int] | None
    milliseconds: tuple[float, float] | None
    batch_size: int | None = None

    def _table(self) -> Table:
        sizes = []
        for name in ("parameters", "macs", "milliseconds"):
            if (pair := getattr(self, name)) is not None:
                before, after = (f"{n:,.2f}" if isinstance(n, float) else f"{n:,}" for n in pair)
                unit = f"{name}, batch of {self.batch_size}" if name == "milliseconds" else name
                sizes.append((unit, before, Bar(after, pair[1] / pair[0] if pair[0] else 1.0)))
        notes = [f"{row.name}: {row.dead} dead stay: {row.why}" for row in self.rows if row.dead]
        notes += [f"{row.name}: of rank {row.rank}, it becomes two layers" for row in self.rows if row.rank]
        if self.walls:
            notes.append(f"Of unknown kind, nothing goes across them: {', '.join(self.walls)}")
        rows = [(row.name, f"{row.units:,}", Bar(f"{row.kept:,}", row.kept / row.units)) for row in self.rows]
        return Table(("layer", "units", "kept"), rows, sizes, notes)


def shrink_report(
    model: keras.Model, batch_size: int | None = None, input_signature: list[Structure] | None = None
) -> ShrinkReport:
    """Report what `shrink(model)` takes out, what stays though it is dead, and why.

    Args:
        model: Functional or built Sequential `keras.Model`.
        batch_size: Int ≥ 1 or `None` (default). With an int, the time of a batch of this size is measured
            before and after. Its inputs are random where they are floats, and otherwise zero.
        input_signature: List of `tf.TensorSpec` or of structures of these, one for each positional argument
            of the model: the inputs to count multiply-adds for, where the model leaves their sizes open.
            `None` (default): as the model was built.

    Returns:
        `ShrinkReport`.

    Raises:
        TypeError: If `model` is not a graph of layers, or not built, or another argument is of the wrong
            type.
        ValueError: If `batch_size` is not such an int, or the model cannot be called with inputs of this
            `input_signature`.

    Example:

    ```python
    print(lc_keras.shrink_report(model, batch_size=32))
    ```
    """
    batch_size = None if batch_size is None else whole("batch_size", batch_size)
    small, rebuilt = rebuild(model)
    counted = macs(model, input_signature), macs(small, input_signature)
    (before, after), unknown = (c.dense for c in counted), counted[0].unknown
    return ShrinkReport(
        rows=_rows(rebuilt, small),
        walls=tuple(dict.fromkeys(_walls(rebuilt.graph))),
        parameters=(model.count_params(), small.count_params()),
        macs=None if before is None or after is None or unknown else (before, after),
        milliseconds=_pair(quartiles([model, small], batch_size)) if batch_size else None,
        batch_size=batch_size,
    )


def _rows(rebuilt: Rebuilt, small: keras.Model) -> tuple[LayerSize, ...]:
    graph, left = rebuilt.graph, set(map(id, layers_in(small)))
    stays, groups = graph.kept(), graph.units.groups()
    reasons: dict[int, str] = {}
    for unit, why in (*graph.units.pinned.items(), *graph.units.held.items()):
        reasons.setdefault(int(groups[unit]), why)
    rows = []
    for flow in graph.layers.values():
        if flow.weights and len(flow.ports.get("out", ())):
            out = flow.outputs[0]
            kept = stays[out.ids] & (id(rebuilt.instead_of(flow.layer)) in left)
            dead = np.flatnonzero(kept & ~out.needed)
            why = ""
            if len(dead):
                why = reasons.get(
                    int(groups[out.ids[dead[0]]]), "tied to units that live, or the last of a layer"
                )
            factors = rebuilt.factors(flow)
            sizes = len(kept), int(kept.sum()), len(dead)
            rows.append(LayerSize(flow.layer.name, *sizes, why, factors.rank if factors else None))
    return tuple(rows)


def _walls(graph: Graph) -> Iterator[str]:
    """Yield the names of the layers of unknown kind that units could have passed."""
    groups = graph.units.groups()
    made = {unit for signal in graph.made for unit in groups[signal.ids].tolist()}
    for flow in graph.flows:
        given = {unit for signal in flow.inputs for unit in groups[signal.ids].tolist()}
        if isinstance(flow, Wall) and (getattr(flow.layer, "weights", None) or given & made):
            made |= {unit for signal in flow.outputs for unit in groups[signal.ids].tolist()}
            yield flow.layer.name


def _pair(values: list[float]) -> tuple[float, float]:
    before, after = values
    return before, after
