"""Describe layers that take each unit by itself: activations, pooling, padding, dropout, merges of equals."""

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import layers

from lc_keras.internals.keras import inputs_of, mask_of
from lc_keras.model.flow.kinds import Flow, describes
from lc_keras.model.flow.units import Along, Signal, Weight, apply, channels, is_elementwise, last


class EachUnit(Flow):
    """A layer in which each output unit depends on one input unit only, and is the same unit.

    A subclass says what becomes of a constant.
    """

    takes = 1

    def axes(self) -> tuple[int, int]:
        """Return the axis of the units in the input and in the output."""
        return self.inputs[0].axis, self.inputs[0].axis

    def constant(self, value: np.ndarray) -> np.ndarray:
        """Return the output where the input is always `value` (NaN: it varies)."""
        return value

    def forward(self) -> list[Signal]:
        before, after = self.axes()
        self.x = self.along(self.inputs[0], before)
        self.ports = {"in": self.x.ids, "out": self.x.ids}
        return [Signal(self.shapes[0], after, self.x.ids, self.constant(self.x.value))]

    def backward(self) -> None:
        self.x.read |= self.outputs[0].needed


@describes(
    layers.ActivityRegularization,
    layers.GaussianDropout,
    layers.GaussianNoise,
    layers.Identity,
    layers.SpatialDropout1D,
    layers.SpatialDropout2D,
    layers.SpatialDropout3D,
)
class Same(EachUnit):
    """A layer that does nothing outside of training."""


@describes(layers.AlphaDropout, layers.Dropout)
class Dropout(Same):
    """A dropout, whose noise may have a shape that names the number of units."""

    @property
    def is_sized(self) -> bool:
        # A shorter shape counts as if it began with ones.
        noise = [1] * len(self.x.shape) + [*(self.layer.noise_shape or ())]
        return noise[self._place] not in (None, 1)

    @property
    def _place(self) -> int:
        return self.x.axis - len(self.x.shape)

    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        if not self.is_sized:
            return {}
        noise = list(self.layer.noise_shape)
        noise[self._place] = count("out")
        return {"noise_shape": tuple(noise)}


@describes(
    *(getattr(layers, f"{kind}Pooling{n}D") for kind in ("Max", "Average") for n in (1, 2, 3)),
    *(getattr(layers, f"{kind}{n}D") for kind in ("UpSampling", "Cropping") for n in (1, 2, 3)),
    *("ops.AveragePool", "ops.MaxPool", "ops.Resize"),
)
class Spatial(EachUnit):
    """A layer that works on positions, unit by unit; a value that is the same everywhere stays so."""

    @classmethod
    def fits(cls, layer: keras.Layer) -> bool:
        return not getattr(layer, "pad_to_aspect_ratio", False)

    def axes(self) -> tuple[int, int]:
        axis = channels(self.layer, self.shapes[0])
        return axis, axis


@describes(*(getattr(layers, f"ZeroPadding{n}D") for n in (1, 2, 3)))
class Padding(Spatial):
    def constant(self, value: np.ndarray) -> np.ndarray:
        return np.where(value == 0, value, np.nan)


@describes(*(getattr(layers, f"Global{kind}Pooling{n}D") for kind in ("Max", "Average") for n in (1, 2, 3)))
class GlobalPooling(EachUnit):
    def axes(self) -> tuple[int, int]:
        before = channels(self.layer, self.inputs[0].shape)
        return before, min(before, last(self.shapes[0]))


@describes(layers.ReLU, layers.LeakyReLU, layers.ELU)
class Elementwise(EachUnit):
    def constant(self, value: np.ndarray) -> np.ndarray:
        return apply(self.layer.call, value)


@describes(layers.Activation)
class Activation(EachUnit):
    def forward(self) -> list[Signal]:
        self.mixes = not is_elementwise(self.layer.activation)
        if self.mixes:
            self.pin(self.inputs[0], "is an activation across units")
        return super().forward()

    def constant(self, value: np.ndarray) -> np.ndarray:
        return np.full_like(value, np.nan) if self.mixes else apply(self.layer.activation, value)


@describes(layers.Rescaling)
class Rescaling(EachUnit):
    def forward(self) -> list[Signal]:
        self.one_for_all = np.ndim(self.layer.scale) == np.ndim(self.layer.offset) == 0
        if not self.one_for_all:
            self.pin(self.inputs[0], "has a scale for each unit")
        return super().forward()

    def constant(self, value: np.ndarray) -> np.ndarray:
        return (
            value * self.layer.scale + self.layer.offset if self.one_for_all else np.full_like(value, np.nan)
        )


@describes(layers.PReLU)
class PReLU(EachUnit):
    def axes(self) -> tuple[int, int]:
        return last(self.shapes[0]), last(self.shapes[0])

    def forward(self) -> list[Signal]:
        alpha = self.array("alpha")
        self.weights = (
            (Weight("alpha", makes=Along(-1, "out")),) if alpha.shape[-1] == self.shapes[0][-1] else ()
        )
        return super().forward()

    def constant(self, value: np.ndarray) -> np.ndarray:
        alpha = self.array("alpha").reshape(-1, self.array("alpha").shape[-1])
        below = np.where((alpha == alpha[0]).all(axis=0), alpha[0], np.nan) * value
        return np.where(value >= 0, value, below)


class Merge(Flow):
    """A layer that makes one tensor of several, element by element: their units are tied."""

    def constant(self, values: list[np.ndarray]) -> np.ndarray:
        raise NotImplementedError

    def forward(self) -> list[Signal]:
        (shape,) = self.shapes
        rank = len(shape)
        # Shorter shapes count as if they began with ones.
        axis = max((x.axis - len(x.shape) for x in self.inputs if len(x.ids) > 1), default=-1)
        if not rank or any(len(x.shape) < -axis for x in self.inputs):
            return self._pinned()
        self.signals = [self.along(x, len(x.shape) + axis) for x in self.inputs]
        widest = max(self.signals, key=lambda x: len(x.ids))
        for x in self.signals:
            if len(x.ids) == len(widest.ids):
                self.units.tie(x.ids, widest.ids)
            elif len(x.ids) == 1:
                self.pin(x, "spreads one unit over several")
            else:
                return self._pinned()
        self.ports = {"out": widest.ids}
        values = [np.broadcast_to(x.value, widest.value.shape) for x in self.signals]
        return [Signal(shape, rank + axis, widest.ids, np.array(self.constant(values)))]

    def backward(self) -> None:
        for x in self.signals:
            if len(x.ids) == len(self.outputs[0].ids):
                x.read |= self.outputs[0].needed

    def _pinned(self, why: str = "merges tensors of unlike shapes") -> list[Signal]:
        self.signals = []
        return self.closed(why)


@describes(layers.Add)
class Add(Merge):
    """A sum, to which an input that is always zero, such as a block whose inside is dead, adds nothing."""

    def constant(self, values: list[np.ndarray]) -> np.ndarray:
        return np.add.reduce(values)

    def bypasses(self, kept: dict[str, np.ndarray]) -> bool:
        # Where everything counts as dead, an input that is zero here need not be zero.
        known = not (self.is_shared or self.units.dead)
        return known and len(self._summands(kept)) < len(self.signals)

    def called(self, made: Any, kept: dict[str, np.ndarray]) -> Any:
        if not self.bypasses(kept):
            return made
        summands = self._summands(kept)

        def call(*args: Any, **kwargs: Any) -> Any:
            every = keras.tree.flatten((args, kwargs))
            tensors = [every[place] for place in summands]
            # A layer hands on a mask that all of its inputs have, an operation none.
            mask = mask_of(every[0]) if isinstance(made, keras.Layer) else None
            has_mask = all(mask_of(tensor) is mask for tensor in every)
            if not has_mask or tensors[0].dtype != made.compute_output_spec(*args, **kwargs).dtype:
                return made(*args, **kwargs)
            if None in tensors[0].shape[1:] and not _are_as_large(tensors, every):
                return made(*args, **kwargs)
            return tensors[0] if len(tensors) == 1 else made(tensors)

        return call

    def _summands(self, kept: dict[str, np.ndarray]) -> list[int]:
        """Return the places of the inputs that are not always zero, and are as large as the sum."""
        every = list(range(len(self.signals)))
        if any(x.shape != self.shapes[0] for x in self.signals):
            return every
        return [n for n in every if self.signals[n].value[kept["out"]].any()] or every[:1]


def _are_as_large(some: Sequence[keras.KerasTensor], every: Sequence[keras.KerasTensor]) -> bool:
    """Return whether some tensors make a sum as large as all do, as far as a few sizes of the inputs show.

    Sizes that are open are tried: 64, which strides divide, for all inputs, or single steps for one of them,
    which the others spread.
    """
    inputs = inputs_of([*some, *every])
    function = keras.Function(inputs, [*some, *every])
    for single in (None, *inputs):
        given = [
            keras.KerasTensor((t.shape[0], *(n or (1 if t is single else 64) for n in t.shape[1:])), t.dtype)
            for t in inputs
        ]
        try:
            shapes = [t.shape[1:] for t in function.compute_output_spec(given)]
        except Exception:  # whatever a layer raises that cannot be given inputs of these sizes
            if single is None:
                return False
            continue
        if any(None in shape for shape in shapes):
            return False
        one, other = (np.max(part, axis=0) for part in (shapes[: len(some)], shapes[len(some) :]))
        if (one != other).any():
            return False
    return True


@describes(layers.Subtract)
class Subtract(Merge):
    def constant(self, values: list[np.ndarray]) -> np.ndarray:
        return values[0] - values[1]


@describes(layers.Average)
class Average(Merge):
    def constant(self, values: list[np.ndarray]) -> np.ndarray:
        return np.add.reduce(values) / len(values)


@describes(layers.Maximum)
class Maximum(Merge):
    def constant(self, values: list[np.ndarray]) -> np.ndarray:
        return np.maximum.reduce(values)


@describes(layers.Minimum)
class Minimum(Merge):
    def constant(self, values: list[np.ndarray]) -> np.ndarray:
        return np.minimum.reduce(values)


@describes(layers.Multiply)
class Multiply(Merge):
    def constant(self, values: list[np.ndarray]) -> np.ndarray:
        product = np.multiply.reduce(values)
        return np.where(np.any([v == 0 for v in values], axis=0), 0.0, product)
