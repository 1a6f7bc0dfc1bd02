"""Describe layers whose outputs are sums over their input units: dense, convolutions, and their relatives."""

import re
from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from lc_keras.model.flow.kinds import Flow, Wall, describes
from lc_keras.model.flow.units import Along, Signal, Weight, apply, channels, is_elementwise


class Linear(Flow):
    """A kernel from all units to all units, a bias, an activation.

    A subclass says where the units are and gives the kernel as matrices from inputs to outputs.
    """

    takes = 1

    def touches(self) -> np.ndarray:
        """Return a matrix of bools, inputs × outputs: whether a weight between them is not zero."""
        raise NotImplementedError

    def totals(self, where: np.ndarray) -> np.ndarray:
        """Return rows of a matrix inputs × outputs: the sums of the weights of an input that is 1 everywhere.

        Called only if such an input makes outputs that are the same everywhere.
        """
        raise NotImplementedError

    # Whether an input that is the same everywhere makes outputs that are, too.
    spreads_constants = True
    # Why it does not.
    unsteady = "pads what is not zero"

    def axes(self) -> tuple[int, int]:
        """Return the axis of the units in the input and in the output."""
        return channels(self.layer, self.inputs[0].shape), channels(self.layer, self.shapes[0])

    def forward(self) -> list[Signal]:
        before, after = self.axes()
        self.x = x = self.along(self.inputs[0], before)
        self.touch = self.touches()
        given = x.constant & (x.value != 0)
        self.steady = given & self.spreads_constants
        # What it leaves behind is not the same everywhere, and no bias can replace it.
        touched = self.touch.any(axis=1) | self.units.dead
        self.hold(x, self.unsteady, given & ~self.steady & touched)
        value = self._bias() + self._sums(self.steady)
        value[self.touch[~x.constant | (given & ~self.steady)].any(axis=0)] = np.nan
        activation = getattr(self.layer, "activation", None)
        mixes = not is_elementwise(activation or keras.activations.linear)
        value = np.full_like(value, np.nan) if mixes else apply(activation or keras.activations.linear, value)
        out = self.fresh(
            self.shapes[0],
            after,
            value,
            pinned="has an activation across units" if mixes else None,
        )
        self.ports = {"in": x.ids, "out": out.ids}
        return [out]

    def backward(self) -> None:
        self.x.read |= self.touch[:, self.outputs[0].needed].any(axis=1)

    def fold(self, kept: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        left = self._sums(~kept["in"] & self.steady)[kept["out"]]
        bias = arrays.get("bias", np.zeros_like(left))
        return {"bias": bias + left.reshape(bias.shape)} if left.any() else {}

    def _sums(self, where: np.ndarray) -> np.ndarray:
        return self.x.value[where] @ self.totals(where).astype("float64") if where.any() else self._zeros()

    def _bias(self) -> np.ndarray:
        bias = self.optional("bias")
        return self._zeros() if bias is None else bias.astype("float64")

    def _zeros(self) -> np.ndarray:
        return np.zeros(self.touch.shape[1])


_IN_OUT = (
    Weight("kernel", makes=Along(-1, "out"), reads=Along(-2, "in")),
    Weight("bias", makes=Along(-1, "out")),
)


@describes(layers.Dense)
class Dense(Linear):
    weights, width, ways = _IN_OUT, "units", ((),)

    def touches(self) -> np.ndarray:
        return self.array("kernel") != 0

    def totals(self, where: np.ndarray) -> np.ndarray:
        return self.array("kernel")[where]


@describes(layers.EinsumDense)
class EinsumDense(Linear):
    """A dense layer along any axes; if it makes several, the first is that of its units, such as heads."""

    unsteady = "has no bias for a constant of all its channels"

    @classmethod
    def output_axes(cls, layer: layers.EinsumDense, variable: keras.Variable) -> tuple[int, ...]:
        if not cls.is_kernel(variable):
            # All axes of a bias that an einsum adds are axes of its units.
            return tuple(range(-len(variable.shape), 0)) if variable.name == "bias" else (-1,)
        _, kernel, output = cls._labels(layer)
        return tuple(i - len(kernel) for i, label in enumerate(kernel) if label in output)

    @classmethod
    def fits(cls, layer: layers.EinsumDense) -> bool:
        labels = cls._labels(layer)
        given, kernel, output = map(set, labels)
        made = [label for label in labels[1] if label not in given]
        if not 1 <= len(made) <= 2:
            return False
        plain = kernel == given ^ output and len(labels[1]) == len(kernel) > len(made)
        # Keras 3.15 mistakes a bias of shape such as (3, 1) for one of the last axis if that has size 3, too.
        biased = layer.bias is None or {made[0], labels[2][-1]} <= {*layer.bias_axes} <= {*made}
        # Axes that are left open come first.
        return plain and biased and not re.search(r"\w\.\.\.", layer.equation)

    @staticmethod
    def _labels(layer: layers.EinsumDense) -> list[str]:
        return re.split(",|->", layer.equation.replace("...", "").replace(" ", ""))

    def axes(self) -> tuple[int, int]:
        given, kernel, output = self._labels(self.layer)
        x, (shape,) = self.inputs[0], self.shapes
        axes = {n: len(x.shape) - len(given) + given.index(n) for n in kernel if n in given}
        self.read = next((label for label in axes if axes[label] == x.axis), max(axes, key=axes.__getitem__))
        self.unit, *self.inside = (label for label in kernel if label in output)
        self.weights = (
            Weight("kernel", makes=self._made(kernel), reads=Along(kernel.index(self.read), "in")),
            Weight("bias", makes=self._made(self._of_bias(output))),
        )
        self.spreads_constants = self.layer.bias is not None and not self.inside
        return axes[self.read], len(shape) - len(output) + output.index(self.unit)

    def touches(self) -> np.ndarray:
        # NumPy has no sums of products in bfloat16.
        return self._matrix(np.abs(self.array("kernel")).astype("float64")) != 0

    def totals(self, where: np.ndarray) -> np.ndarray:
        return self._matrix(self.array("kernel").astype("float64"))[where]

    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        sizes, output = list(self.layer.partial_output_shape), self._labels(self.layer)[2]
        sizes[output.index(self.unit) - len(output)] = count("out")
        return {"output_shape": tuple(sizes)}

    def _of_bias(self, output: str) -> str:
        """Return the axes of the bias, which are those of the output from the first axis of the bias on."""
        return output[min(map(output.index, self.layer.bias_axes or self.unit)) :]

    def _made(self, labels: str) -> Along:
        inside = next((labels.index(label) for label in self.inside if label in labels), None)
        return Along(labels.index(self.unit), "out", inside=inside)

    def _matrix(self, kernel: np.ndarray) -> np.ndarray:
        """Return the sums of a kernel for each pair of a unit that is read and a unit that is made."""
        return np.einsum(f"{self._labels(self.layer)[1]}->{self.read}{self.unit}", kernel)

    def _bias(self) -> np.ndarray:
        bias = self.optional("bias")
        if bias is None:
            return self._zeros()
        axis = self._of_bias(self._labels(self.layer)[2]).index(self.unit)
        bias = np.moveaxis(bias, axis, -1).reshape(-1, self.touch.shape[1])
        # The output of a unit with channels is the same everywhere only where the channels agree.
        return np.where((bias == bias[0]).all(axis=0), bias[0], np.nan).astype("float64")


@describes(layers.Conv1D, layers.Conv2D, layers.Conv3D)
class Conv(Linear):
    """A convolution; one with several groups keeps or loses each group as a whole."""

    def forward(self) -> list[Signal]:
        self.groups = self.layer.groups
        self.spreads_constants = not _pads(self.layer)
        self.weights = _IN_OUT if self.groups == 1 else (Weight("kernel", makes=Along(-1, "out")), _IN_OUT[1])
        outputs = super().forward()
        if self.groups == 1:
            window = tuple(range(len(self.layer.kernel_size)))
            self.ways = (window, (0,)) if len(window) == 2 else (window,)
        else:
            for ids in self.ports.values():
                ids = ids.reshape(self.groups, -1)
                self.units.tie(ids[:, 1:].ravel(), np.repeat(ids[:, 0], ids.shape[1] - 1))
            self.units.tie(*(self.ports[p].reshape(self.groups, -1)[:, 0] for p in ("in", "out")))
        return outputs

    def touches(self) -> np.ndarray:
        kernel = self.array("kernel")
        return self._over_groups((kernel != 0).any(axis=tuple(range(kernel.ndim - 2))))

    def totals(self, where: np.ndarray) -> np.ndarray:
        kernel = self.array("kernel")
        return self._over_groups(kernel.sum(axis=tuple(range(kernel.ndim - 2)), dtype="float64"))[where]

    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        size = len(self.ports["in"]) // self.groups
        return {"filters": count("out"), "groups": count("in") // size if self.groups > 1 else 1}

    def _over_groups(self, matrix: np.ndarray) -> np.ndarray:
        if self.groups == 1:
            return matrix
        rows, columns = matrix.shape
        whole = np.zeros((self.groups, rows, self.groups, columns // self.groups), matrix.dtype)
        for g, part in enumerate(np.split(matrix, self.groups, axis=1)):
            whole[g, :, g] = part
        return whole.reshape(self.groups * rows, columns)


@describes(layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
class ConvTranspose(Linear):
    kernel_axes, width = (-2,), "filters"
    weights = (
        Weight("kernel", makes=Along(-2, "out"), reads=Along(-1, "in")),
        Weight("bias", makes=Along(-1, "out")),
    )
    # Each output position meets different positions of the kernel.
    spreads_constants = False

    def touches(self) -> np.ndarray:
        kernel = self.array("kernel")
        return (kernel != 0).any(axis=tuple(range(kernel.ndim - 2))).T


@describes(layers.DepthwiseConv1D, layers.DepthwiseConv2D)
class DepthwiseConv(Flow):
    """One or several filters of its own for each unit: output units are tied to input units."""

    kernel_axes = (-2, -1)
    weights = (Weight("kernel", makes=Along(-2, "in")), Weight("bias", makes=Along(-1, "out")))

    def forward(self) -> list[Signal]:
        self.x = x = self.along(self.inputs[0], channels(self.layer, self.inputs[0].shape))
        (shape,) = self.shapes
        many = self.layer.depth_multiplier
        out = Signal(shape, channels(self.layer, shape), np.repeat(x.ids, many))
        self.ports = {"in": x.ids, "out": out.ids}
        self.touch, value = depthwise(self.layer, self.array("kernel"), np.repeat(x.value, many))
        bias = self.optional("bias")
        value = value if bias is None else value + bias
        if is_elementwise(self.layer.activation):
            out.value = apply(self.layer.activation, value)
        else:
            self.pin(out, "has an activation across units")
        return [out]

    def backward(self) -> None:
        self.x.read |= (self.touch & self.outputs[0].needed).reshape(len(self.x.ids), -1).any(axis=1)


@describes(layers.SeparableConv1D, layers.SeparableConv2D)
class SeparableConv(Linear):
    """A depthwise convolution, followed by a pointwise one."""

    width = "filters"
    weights = (
        Weight("depthwise_kernel", makes=Along(-2, "in")),
        Weight("pointwise_kernel", makes=Along(-1, "out"), reads=Along(-2, "between")),
        Weight("bias", makes=Along(-1, "out")),
    )

    def forward(self) -> list[Signal]:
        self.spreads_constants = not _pads(self.layer)
        outputs = super().forward()
        self.ports["between"] = np.repeat(self.x.ids, self.layer.depth_multiplier)
        return outputs

    def touches(self) -> np.ndarray:
        touch, _ = depthwise(self.layer, self.array("depthwise_kernel"))
        touch = self._by_input(touch[:, None] & (self._pointwise() != 0))
        return np.logical_or.reduce(touch, axis=1)

    def totals(self, where: np.ndarray) -> np.ndarray:
        _, total = depthwise(self.layer, self.array("depthwise_kernel"), 1.0)
        return self._by_input(np.nan_to_num(total)[:, None] * self._pointwise()).sum(axis=1)[where]

    def _by_input(self, matrix: np.ndarray) -> np.ndarray:
        return matrix.reshape(-1, self.layer.depth_multiplier, matrix.shape[-1])

    def _pointwise(self) -> np.ndarray:
        kernel = self.array("pointwise_kernel")
        return kernel.reshape(kernel.shape[-2:])


@describes(layers.STFTSpectrogram)
class STFTSpectrogram(Wall):
    """A convolution with the waves of a Fourier transform, which are named kernels but are none."""

    waves = ("real_kernel", "imag_kernel")

    @classmethod
    def is_kernel(cls, variable: keras.Variable) -> bool:
        return variable.name not in cls.waves and super().is_kernel(variable)


def depthwise(
    layer: keras.Layer, kernel: np.ndarray, value: float | np.ndarray = np.nan
) -> tuple[np.ndarray, np.ndarray]:
    """Return which outputs of a depthwise convolution have nonzero weights, and the outputs' constants."""
    spatial = tuple(range(kernel.ndim - 2))
    touch = (kernel != 0).any(axis=spatial).ravel()
    result = value * kernel.sum(axis=spatial, dtype="float64").ravel()
    if _pads(layer):
        result[(result != 0) | (np.broadcast_to(value, touch.shape) != 0)] = np.nan
    result[~touch] = 0
    return touch, result


def _pads(layer: keras.Layer) -> bool:
    """Return whether a convolution meets padding at some places."""
    return layer.padding != "valid" and set(layer.kernel_size) != {1}
