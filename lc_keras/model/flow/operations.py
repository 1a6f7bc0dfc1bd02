"""Describe operations of `keras.ops` that take each element by itself, or sum over axes without units."""

import keras
import numpy as np

from lc_keras.model.flow.elementwise import Add, EachUnit, Merge
from lc_keras.model.flow.kinds import describes
from lc_keras.model.flow.units import ELEMENTWISE, Signal, is_array, is_list


@describes(*ELEMENTWISE)
class Elementwise(Merge):
    """An operation on the elements of one tensor, or of several tensors and numbers."""

    takes_arguments = True

    def forward(self) -> list[Signal]:
        given = [*self.arguments.values(), *vars(self.layer).values()]
        if not self.inputs or any(map(is_array, keras.tree.flatten(given))) or any(map(is_list, given)):
            # A part for each unit may be in it.
            return self._pinned("is given an array")
        return super().forward()

    def constant(self, values: list[np.ndarray]) -> np.ndarray:
        """Return the output where all inputs are known."""
        known = ~np.isnan(values).any(axis=0)
        result = np.full(known.shape, np.nan)
        if known.any():
            numbers = iter(keras.ops.convert_to_tensor(value[known], "float32") for value in values)
            given = [next(numbers) if isinstance(v, Signal) else v for v in self.arguments.values()]
            try:
                result[known] = keras.ops.convert_to_numpy(self.layer.call(*given))
            except Exception:  # not an operation on floats
                return result
        return np.where(np.isfinite(result), result, np.nan)


@describes("ops.Add")
class AddOperation(Elementwise, Add):
    """A sum of two tensors, or of a tensor and a number."""


@describes("ops.Multiply")
class MultiplyOperation(Elementwise):
    """A product, which is zero where one factor is."""

    def constant(self, values: list[np.ndarray]) -> np.ndarray:
        zero = np.any([value == 0 for value in values], axis=0)
        return np.where(zero, 0.0, super().constant(values))


@describes("ops.Pad")
class Pad(EachUnit):
    """A padding of axes other than that of the units."""

    def forward(self) -> list[Signal]:
        widths = self.layer.pad_width * (len(self.shapes[0]) if len(self.layer.pad_width) == 1 else 1)
        return self.closed("pads units") if any(widths[self.inputs[0].axis]) else super().forward()

    def constant(self, value: np.ndarray) -> np.ndarray:
        return np.where(value == 0, value, np.nan)

    def backward(self) -> None:
        if self.outputs[0].ids is self.inputs[0].ids:
            super().backward()


class OverAxes(EachUnit):
    """An operation along some axes, to which that of the units does not belong."""

    def forward(self) -> list[Signal]:
        (x,) = self.inputs
        axis = self.layer.axis
        axes = range(len(x.shape)) if axis is None else axis if isinstance(axis, (list, tuple)) else [axis]
        self.along_axes = {a % len(x.shape) for a in axes}
        return self.over_units() if x.axis in self.along_axes else super().forward()

    def over_units(self) -> list[Signal]:
        """Return the outputs if the axis of the units is among these axes."""
        return self.closed("goes over units")

    def backward(self) -> None:
        if self.outputs[0].ids is self.inputs[0].ids:
            super().backward()


@describes(keras.layers.Softmax, "ops.LogSoftmax", "ops.Softmax", "ops.Sort")
class Along(OverAxes):
    def over_units(self) -> list[Signal]:
        self.pin(self.inputs[0], "goes over units")
        return EachUnit.forward(self)

    def constant(self, value: np.ndarray) -> np.ndarray:
        return np.full_like(value, np.nan)


@describes("ops.Cumprod", "ops.Cumsum")
class Cumulated(OverAxes):
    def constant(self, value: np.ndarray) -> np.ndarray:
        return np.where(value == 0, value, np.nan)


class Reduction(OverAxes):
    """A reduction of axes other than that of the units."""

    def axes(self) -> tuple[int, int]:
        before = self.inputs[0].axis
        gone = 0 if getattr(self.layer, "keepdims", False) else sum(a < before for a in self.along_axes)
        return before, before - gone


@describes(*(f"ops.{name}" for name in "Amax Amin Max Mean Median Min".split()))
class Middle(Reduction):
    """A reduction that turns a value that is the same everywhere into that value."""

    def constant(self, value: np.ndarray) -> np.ndarray:
        return value if getattr(self.layer, "initial", None) is None else np.full_like(value, np.nan)


@describes(*(f"ops.{name}" for name in "All Any CountNonzero Prod Sum".split()))
class Total(Reduction):
    def constant(self, value: np.ndarray) -> np.ndarray:
        return np.where(value == 0, value, np.nan)


@describes("ops.Std", "ops.Var")
class Deviation(Reduction):
    def constant(self, value: np.ndarray) -> np.ndarray:
        return value * 0


@describes("ops.Argmax", "ops.Argmin", "ops.Logsumexp")
class Other(Reduction):
    def constant(self, value: np.ndarray) -> np.ndarray:
        return np.full_like(value, np.nan)
