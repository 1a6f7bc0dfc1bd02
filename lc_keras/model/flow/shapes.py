"""Describe layers that move units to other places: flatten, reshape, permute, repeat, concatenate, embed."""

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from lc_keras.model.flow.kinds import Flow, describes
from lc_keras.model.flow.units import Along, Shape, Signal, Weight, last


class Moved(Flow):
    """A layer that gives a tensor another shape, or takes parts of it: its elements are those of the input.

    Units that come to lie at the same place of the axis of units live or die together.
    """

    takes = 1

    def moved(self, elements: np.ndarray) -> np.ndarray | list[np.ndarray] | None:
        """Return what becomes of the elements of one example, or `None` if that is not known."""
        raise NotImplementedError

    def forward(self) -> list[Signal]:
        (x,) = self.inputs
        self.ports = {"in": x.ids}
        # For each place of the units' axis of each output, all that comes to lie there.
        self.sources: list[np.ndarray] = []
        outputs = []
        for shape, places in zip(self.shapes, self._found(x), strict=True):
            axis = None if places is None else _axis_of(places)
            if places is None or axis is None:
                self.pin(x, "moves its units in a way that is not followed")
                self.sources = []
                return [
                    self.fresh(s, last(s), pinned="moves units in a way that is not followed")
                    for s in self.shapes
                ]
            sources = np.moveaxis(places, axis, 0).reshape(places.shape[axis], -1)
            several = (sources != sources[:, :1]).any(axis=1)
            for row in map(np.unique, sources[several]):
                self.units.tie(x.ids[row], np.repeat(x.ids[row[0]], len(row)))
            value = x.value[sources]
            value = np.where((value == value[:, :1]).all(axis=1), value[:, 0], np.nan)
            outputs.append(Signal(shape, axis, x.ids[sources[:, 0]], value))
            self.sources.append(sources)
        for number, out in enumerate(outputs):
            self.ports[f"out{number}"] = out.ids
        return outputs

    def backward(self) -> None:
        for out, sources in zip(self.outputs, self.sources, strict=False):
            self.inputs[0].read[sources[out.needed].ravel()] = True

    # The size that an open axis is taken to have; any will do.
    size_of_open = 1

    def _found(self, x: Signal) -> list[np.ndarray | None]:
        """Return for each element of each output for one example the place of its unit in the input."""
        nothing: list[np.ndarray | None] = [None] * len(self.shapes)
        if not x.axis or not len(x.ids):
            return nothing
        sizes = [1, *(self.size_of_open if n is None else n for n in x.shape[1:])]
        along = [1] * len(sizes)
        along[x.axis] = len(x.ids)
        found = self.moved(np.broadcast_to(np.arange(len(x.ids)).reshape(along), sizes))
        if found is None:
            return nothing
        found = found if isinstance(found, list) else [found]
        return [
            np.asarray(places) if np.ndim(places) == len(s) else None
            for s, places in zip(self.shapes, found, strict=True)
        ]


def _axis_of(places: np.ndarray) -> int | None:
    """Return the last axis along which places vary, `None` if they vary along that of examples, or none."""
    varies = (
        [a for a in range(places.ndim) if (places != places.take([0], axis=a)).any()] if places.size else []
    )
    if not varies:
        return places.ndim - 1 if places.ndim > 1 and places.shape[-1] == 1 else None
    return varies[-1] if varies[0] else None


@describes(layers.Reshape, "ops.Reshape")
class Reshape(Moved):
    def moved(self, elements: np.ndarray) -> np.ndarray | None:
        (x,), (shape,) = self.inputs, self.shapes
        if None in x.shape[1:] and (
            None not in shape[1:] or x.axis != last(x.shape) or shape[-1] != x.shape[-1]
        ):
            return None
        after = [-1 if n is None else n for n in shape[1:]]
        # Examples may be taken apart, and what is open may be divided.
        for first in (1, -1):
            size, parts = abs(math.prod(after)), [first, *after].count(-1)
            if parts <= 1 and (elements.size % size == 0 if parts else elements.size == size):
                return elements.reshape([first, *after])
        return None

    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        if not self.sources:
            return {}
        axis, of_layer = self.outputs[0].axis, isinstance(self.layer, keras.Layer)
        shape = [-1 if n is None else n for n in self.shapes[0]] if of_layer else list(self.layer.newshape)
        shape[axis] = count("out0") if shape[axis] != -1 else -1
        return {"target_shape": tuple(shape[1:])} if of_layer else {"newshape": tuple(shape)}


@describes(layers.Flatten)
class Flatten(Moved):
    def moved(self, elements: np.ndarray) -> np.ndarray | None:
        if None in self.inputs[0].shape[1:]:
            return None
        if self.layer.data_format == "channels_first" and elements.ndim > 2:
            elements = np.moveaxis(elements, 1, -1)
        return elements.reshape(1, -1)


@describes(layers.Permute)
class Permute(Moved):
    def moved(self, elements: np.ndarray) -> np.ndarray:
        return elements.transpose([0, *self.layer.dims])


@describes(layers.RepeatVector)
class RepeatVector(Moved):
    def moved(self, elements: np.ndarray) -> np.ndarray:
        return np.repeat(elements[:, None], self.layer.n, axis=1)


@describes(
    *(f"ops.{name}" for name in "ExpandDims Flip Moveaxis SpaceToDepth Squeeze".split()),
    *(f"ops.{name}" for name in "Swapaxes Tile Transpose".split()),
)
class MovingOperation(Moved):
    """An operation that moves elements, and whose arguments do not change with the number of units."""

    size_of_open = 2

    def moved(self, elements: np.ndarray) -> np.ndarray | None:
        try:
            return keras.ops.convert_to_numpy(self.layer.call(keras.ops.convert_to_tensor(elements)))
        except Exception:  # a shape that is open must be another
            return None


@describes("ops.Repeat")
class Repeat(MovingOperation):
    """A repetition, in which each unit may have a number of its own."""

    def moved(self, elements: np.ndarray) -> np.ndarray | None:
        return None if np.size(self.layer.repeats) > 1 else super().moved(elements)


@describes("ops.DepthToSpace")
class DepthToSpace(MovingOperation):
    """A move of channels to places; if one channel is left, its axis cannot be told from another."""

    def moved(self, elements: np.ndarray) -> np.ndarray | None:
        makes_one = len(self.inputs[0].ids) == self.layer.block_size**2
        # With channels first, what were channels is in both axes of the image.
        mixes = self.layer.data_format == "channels_first"
        return None if makes_one or mixes else super().moved(elements)


@describes("ops.Split")
class Split(Moved):
    """A tensor in parts, which may have different widths once units are removed."""

    size_of_open = 2

    def moved(self, elements: np.ndarray) -> list[np.ndarray] | None:
        self.cuts_units = self.layer.axis % elements.ndim == self.inputs[0].axis
        if not self.layer.axis % elements.ndim or (
            not self.cuts_units and self.inputs[0].shape[self.layer.axis] is None
        ):
            return None
        return list(np.split(elements, self.layer.indices_or_sections, self.layer.axis))

    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        if not (self.sources and self.cuts_units):
            return {}
        widths = [count(f"out{number}") for number in range(len(self.outputs))]
        return {"indices_or_sections": tuple(int(n) for n in np.cumsum(widths)[:-1])}


@describes("ops.GetItem")
class GetItem(Moved):
    """A part of a tensor, such as `x[:, 0]` or `x[..., 2:6]`."""

    takes_arguments = True
    size_of_open = 4

    def moved(self, elements: np.ndarray) -> np.ndarray | None:
        key = self.arguments["key"]
        self.key = list(key) if isinstance(key, (list, tuple)) else [key]
        if any(not isinstance(part, (int, slice, type(None), type(Ellipsis))) for part in self.key):
            return None
        self.place = self._place(self.inputs[0].axis, elements.ndim)
        part = self.key[self.place] if self.place is not None else slice(None)
        # Examples stay, and units stay in their order, side by side.
        batch = self._place(0, elements.ndim)
        whole = batch is None or self.key[batch] == slice(None)
        if not whole or not isinstance(part, slice) or part.step not in (None, 1):
            return None
        try:
            return elements[tuple(self.key)]
        except IndexError:
            return None

    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        # It is sized all the same, through the key that it is called with.
        return {}

    def called(self, made: Any, kept: dict[str, np.ndarray]) -> Any:
        if kept["in"].all() or self.place is None:
            return made
        start = kept["in"][: self.key[self.place].indices(len(kept["in"]))[0]].sum()
        units = slice(int(start), int(start + kept["out0"].sum()))
        key = (*self.key[: self.place], units, *self.key[self.place + 1 :])

        def call(x: Any, *_: Any, **__: Any) -> Any:
            return made(x, key)

        return call

    def _place(self, axis: int, rank: int) -> int | None:
        """Return the place in the key of the entry for an axis, `None` if the axis is taken whole."""
        of_axes = [n for n, part in enumerate(self.key) if part is not None]
        dots = [n for n, place in enumerate(of_axes) if self.key[place] is Ellipsis]
        if dots:
            behind = len(of_axes) - dots[0] - 1
            if axis >= dots[0]:
                return of_axes[axis - rank] if rank - axis <= behind else None
        return of_axes[axis] if axis < len(of_axes) else None


@describes(layers.Concatenate, "ops.Concatenate")
class Concatenate(Flow):
    """A concatenation: along the axis of units, it joins their lists; along another, it ties them."""

    def forward(self) -> list[Signal]:
        (shape,) = self.shapes
        joined = self.layer.axis % len(shape)
        axis = self.inputs[0].axis
        self.signals = [self.along(x, axis) for x in self.inputs]
        self.in_line = joined == axis
        if self.in_line:
            ids, values = ([getattr(x, a) for x in self.signals] for a in ("ids", "value"))
            return [Signal(shape, axis, np.concatenate(ids), np.concatenate(values))]
        return self._as_one(shape, axis)

    def _as_one(self, shape: Shape, axis: int) -> list[Signal]:
        """Return a tensor that holds the inputs side by side along another axis, so that units are tied."""
        first = self.signals[0]
        value = first.value
        for x in self.signals[1:]:
            self.units.tie(first.ids, x.ids)
            value = np.where(x.value == value, value, np.nan)
        return [Signal(shape, axis, first.ids, value)]

    def backward(self) -> None:
        needed = self.outputs[0].needed
        ends = np.cumsum([len(x.ids) for x in self.signals])[:-1]
        for x, part in zip(
            self.signals,
            np.split(needed, ends) if self.in_line else [needed] * len(self.signals),
            strict=True,
        ):
            x.read |= part


@describes("ops.Stack")
class Stack(Concatenate):
    """Tensors of one shape, side by side along an axis that they do not have."""

    in_line = False

    def forward(self) -> list[Signal]:
        (shape,) = self.shapes
        axis = self.inputs[0].axis
        self.signals = [self.along(x, axis) for x in self.inputs]
        return self._as_one(shape, axis + (self.layer.axis % len(shape) <= axis))


@describes(layers.Embedding)
class Embedding(Flow):
    weights, width = (Weight("embeddings", makes=Along(-1, "out")),), "output_dim"

    def forward(self) -> list[Signal]:
        self.pin(self.inputs[0], "looks its input up")
        table = self.array("embeddings")
        value = np.where((table == table[0]).all(axis=0), table[0], np.nan)
        out = self.fresh(self.shapes[0], last(self.shapes[0]), value)
        self.ports = {"out": out.ids}
        return [out]

    def backward(self) -> None:
        pass
