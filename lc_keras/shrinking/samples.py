"""Draw nets to time: a model at random widths, or with kernels of random ranks."""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import keras
import numpy as np

from lc_keras.model.flow import Graph
from lc_keras.model.flow.units import find
from lc_keras.model.latency import names_in
from lc_keras.model.macs import count_uses
from lc_keras.shrinking.factoring import blank, sides
from lc_keras.shrinking.rebuilding import Rebuilt, ways_of

_PARTS = (0.15, 0.3, 0.5, 0.75, 1.0)
# How often a kernel stays whole where others are of low rank.
_WHOLE = 0.3


class Samples(Protocol):
    """Nets that differ from a model in one kind of size, and what their time depends on.

    Attributes:
        sizes: Dict from the name of a kernel (`names_in`) to its shape and the number of places of an example
            that use it.
    """

    sizes: dict[str, tuple[int, ...]]

    def whole(self) -> Any:
        """Return the sample that stands for the model itself."""

    def drawn(self, generator: np.random.Generator) -> Any:
        """Return a sample that stands for a random net."""

    def model(self, sample: Any) -> keras.Model:
        """Return the net of a sample, with meaningless weights."""

    def features(self, sample: Any) -> np.ndarray:
        """Return the terms that the time of a net is a sum of, up to coefficients; the first is 1."""

    def scales(self) -> np.ndarray:
        """Return what each feature's time depends on as a first guess, and which features share a guess."""

    def of_kernels(self, coefficients: np.ndarray) -> dict[str, tuple[float, ...]]:
        """Return the coefficients of each kernel, by its path."""


class Widths:
    """A model with some of its units."""

    def __init__(self, model: keras.Model) -> None:
        self._model, self._graph = model, Graph(model, dead=True)
        self._groups = self._graph.units.groups()
        # The units of each layer that can be removed, each listed in the first layer that has it.
        self._layers, seen = [], self._graph.lasting()
        for signal in self._graph.made:
            new = np.setdiff1d(self._groups[signal.ids], seen)
            seen = np.union1d(seen, new)
            self._layers.append(new)
        if not any(map(len, self._layers)):
            raise ValueError(f"Expected a model of which neurons can be removed. Received: '{model.name}'")
        uses, names = count_uses(model).uses, names_in(model)
        self._ports: list[tuple[np.ndarray, np.ndarray | None]] = []
        self.sizes: dict[str, tuple[int, ...]] = {}
        for flow in self._graph.layers.values():
            for weight in flow.weights:
                variable = find(flow.layer, weight.name)
                if variable is not None and weight.makes and (times := uses.get(id(variable))):
                    made = flow.ports[weight.makes.port]
                    read = flow.ports[weight.reads.port] if weight.reads else None
                    self.sizes[names[id(variable)]] = (*variable.shape, times)
                    self._ports.append((made, read))

    def whole(self) -> np.ndarray:
        return np.ones(len(self._groups), bool)

    def drawn(self, generator: np.random.Generator) -> np.ndarray:
        gone = np.zeros(len(self._groups), bool)
        parts = _parts(generator)
        for units in self._layers:
            if len(units):
                stays = max(1, round(next(parts) * len(units)))
                gone[generator.permutation(units)[stays:]] = True
        return ~gone[self._groups]

    def model(self, sample: np.ndarray) -> keras.Model:
        return Rebuilt(self._graph, sample).model(self._model)

    def features(self, sample: np.ndarray) -> np.ndarray:
        row = [1.0]
        for made, read in self._ports:
            own = sample[made].mean()
            row += [own * (1.0 if read is None else sample[read].mean()), own]
        return np.array(row)

    def scales(self) -> np.ndarray:
        kinds = np.zeros((1 + 2 * len(self.sizes), 5))
        kinds[0, 0] = 1
        for i, ((made, read), size) in enumerate(zip(self._ports, self.sizes.values(), strict=True)):
            # A kernel that reads no units of others, such as a depthwise one, waits for memory.
            kinds[1 + 2 * i, 1 if read is not None else 2] = math.prod(size)
            kinds[2 + 2 * i, 3] = size[-1] * len(made)
            # At small batches, so do the weights themselves.
            kinds[1 + 2 * i, 4] = math.prod(size[:-1])
        return _shared(kinds)

    def of_kernels(self, coefficients: np.ndarray) -> dict[str, tuple[float, ...]]:
        pairs = coefficients[1:].reshape(-1, 2).tolist()
        return {path: (both, own) for path, (both, own) in zip(self.sizes, pairs, strict=True)}


class Ranks:
    """A model with two layers in place of some, as for kernels of low rank."""

    def __init__(self, model: keras.Model) -> None:
        self._model, self._graph = model, Graph(model, dead=True)
        uses, names = count_uses(model).uses, names_in(model)
        self.sizes: dict[str, tuple[int, ...]] = {}
        self._layers: list[keras.Layer] = []
        # For each kernel and each way: its axes, and the rows and columns of the matrix.
        self._ways: list[list[tuple[tuple[int, ...], int, int]]] = []
        for flow in self._graph.layers.values():
            ways = ways_of(self._graph, flow)
            variable = find(flow.layer, "kernel") if ways else None
            if variable is not None and (times := uses.get(id(variable))):
                shape = tuple(variable.shape)
                matrices = [[math.prod(shape[a] for a in side) for side in sides(shape, w)] for w in ways]
                self.sizes[names[id(variable)]] = (*shape, times)
                self._layers.append(flow.layer)
                self._ways.append([(way, *matrix) for way, matrix in zip(ways, matrices, strict=True)])
        if not any(_highest(*matrix) for ways in self._ways for _, *matrix in ways):
            raise ValueError(
                "Expected a model with a dense layer or a convolution that two smaller ones could stand for. "
                f"Received: '{model.name}'"
            )

    def whole(self) -> list[None]:
        return [None] * len(self._ways)

    def drawn(self, generator: np.random.Generator) -> list[tuple[int, int] | None]:
        """Return the way and the rank of each kernel, `None` where it stays whole."""
        sample: list[tuple[int, int] | None] = []
        parts = _parts(generator)
        for ways in self._ways:
            way = generator.integers(len(ways))
            _, *matrix = ways[way]
            rank = round(next(parts) * _highest(*matrix))
            sample.append((int(way), rank) if rank and generator.random() >= _WHOLE else None)
        return sample

    def model(self, sample: list[tuple[int, int] | None]) -> keras.Model:
        factors = {}
        sizes = self.sizes.values()
        for layer, ways, (*shape, _), drawn in zip(self._layers, self._ways, sizes, sample, strict=True):
            if drawn:
                index, rank = drawn
                way, *_ = ways[index]
                factors[id(layer)] = blank(tuple(shape), way, rank)
        all_units = np.ones(len(self._graph.units.groups()), bool)
        return Rebuilt(self._graph, all_units, factors).model(self._model)

    def features(self, sample: list[tuple[int, int] | None]) -> np.ndarray:
        row = [1.0]
        for ways, drawn in zip(self._ways, sample, strict=True):
            way, rank = drawn or (None, 0)
            row.append(float(drawn is None))
            for index in range(len(ways)):
                row += [1.0, float(rank)] if way == index else [0.0, 0.0]
        return np.array(row)

    def scales(self) -> np.ndarray:
        # Whatever time goes into: multiply-adds, weights, what is written, how many layers are called.
        rows = [[1.0, 0, 0, 0, 0]]
        for ways, (*shape, times) in zip(self._ways, self.sizes.values(), strict=True):
            written, weights = times * shape[-1], math.prod(shape)
            rows.append([0, times * weights, weights, written, 1])
            for _, m, n in ways:
                rows += [[0, 0, 0, written, 2], [0, times * (m + n), m + n, times, 0]]
        return _shared(np.array(rows, float))

    def of_kernels(self, coefficients: np.ndarray) -> dict[str, tuple[float, ...]]:
        found, rest = {}, iter(coefficients[1:].tolist())
        for path, ways in zip(self.sizes, self._ways, strict=True):
            found[path] = tuple(next(rest) for _ in range(1 + 2 * len(ways)))
        return found


def _parts(generator: np.random.Generator) -> Iterator[float]:
    """Draw which part of each layer stays, in nets that are wide throughout, too."""
    below = generator.choice(_PARTS)
    while True:
        part = generator.choice([part for part in _PARTS if part >= below])
        # Multiples of 8, such as parts of 64, are faster than the sizes that a budget leads to.
        yield part * generator.uniform(0.8, 1.2) if part < 1 else part


def _highest(rows: int, columns: int) -> int:
    """Return the highest rank whose factors have fewer weights than the matrix."""
    return (rows * columns - 1) // (rows + columns)


def _shared(kinds: np.ndarray) -> np.ndarray:
    return kinds / np.maximum(kinds.sum(axis=0), 1)
