"""Describe layers that move units to other places: flatten, reshape, permute, repeat, concatenate, embed."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from keras import layers

from lc_keras.model.flow.kinds import Flow, describes
from lc_keras.model.flow.units import Along, Shape, Signal, Weight, last


class Moved(Flow):
    """A layer that gives a tensor another shape, its elements in the order that `moved` gives."""

    takes = 1

    def moved(self, elements: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        return elements.reshape(shape)

    def forward(self) -> list[Signal]:
        (x,), (shape,) = self.inputs, self.shapes
        places = self._places(x, shape)
        axis = None if places is None else _axis_of(places)
        if places is None or axis is None:
            self.where: np.ndarray | None = None
            self.pin(x, "spreads units over several axes")
            return [self.fresh(shape, last(shape), pinned="spreads units over several axes")]
        self.where = np.moveaxis(places, axis, 0).reshape(places.shape[axis], -1)[:, 0]
        out = Signal(shape, axis + 1, x.ids[self.where], x.value[self.where])
        self.ports = {"in": x.ids, "out": out.ids}
        return [out]

    def backward(self) -> None:
        if self.where is not None:
            np.logical_or.at(self.inputs[0].read, self.where, self.outputs[0].needed)

    def _places(self, x: Signal, shape: Shape) -> np.ndarray | None:
        """Return for each element of the output, of one example, the place of its unit in the input."""
        before = list(x.shape[1:])
        if not before:
            return None
        unknown = [a for a, n in enumerate(before) if n is None]
        if unknown and (None not in shape[1:] or not len(x.ids)):
            return None
        # Any size will do where none is known, if the units come to lie on one axis for two of them.
        sizes = [1 if n is None else n for n in before]
        after = [-1 if n is None else n for n in shape[1:]]
        if after.count(-1) > 1 or (unknown and (x.axis != last(x.shape) or shape[-1] != x.shape[-1])):
            return None
        along = [1] * len(sizes)
        along[x.axis - 1] = len(x.ids)
        places = np.broadcast_to(np.arange(len(x.ids)).reshape(along), sizes)
        if -1 in after and places.size % -math.prod(after):
            # What is open is divided, too.
            return None
        return self.moved(places, after)


def _axis_of(places: np.ndarray) -> int | None:
    """Return the one axis along which places vary, `None` if there are several."""
    varies = [a for a in range(places.ndim) if (places != places.take([0], axis=a)).any()]
    if not varies:
        return places.ndim - 1 if places.shape[-1] == 1 else None
    return varies[0] if len(varies) == 1 else None


@describes(layers.Reshape)
class Reshape(Moved):
    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        shape = list(self.shapes[0][1:])
        shape[self.outputs[0].axis - 1] = count("out")
        return (
            {"target_shape": tuple(-1 if n is None else n for n in shape)} if self.where is not None else {}
        )


@describes(layers.Flatten)
class Flatten(Moved):
    def moved(self, elements: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        if self.layer.data_format == "channels_first" and elements.ndim > 1:
            elements = np.moveaxis(elements, 0, -1)
        return elements.reshape(shape)


@describes(layers.Permute)
class Permute(Moved):
    def moved(self, elements: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        return elements.transpose([d - 1 for d in self.layer.dims])


@describes(layers.RepeatVector)
class RepeatVector(Moved):
    def moved(self, elements: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        return np.broadcast_to(elements, shape)


@describes(layers.Concatenate)
class Concatenate(Flow):
    """A concatenation: along the axis of the units their list; along another they are tied."""

    def forward(self) -> list[Signal]:
        (shape,) = self.shapes
        joined = self.layer.axis % len(shape)
        axis = self.inputs[0].axis
        self.signals = [self.along(x, axis) for x in self.inputs]
        self.in_line = joined == axis
        if self.in_line:
            ids, values = ([getattr(x, a) for x in self.signals] for a in ("ids", "value"))
            return [Signal(shape, axis, np.concatenate(ids), np.concatenate(values))]
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
