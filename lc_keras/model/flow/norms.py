"""Describe normalisations: of each unit by itself, of groups of units, of all of them."""

from collections.abc import Callable

import keras
import numpy as np
from keras import layers

from lc_keras.model.flow.elementwise import EachUnit
from lc_keras.model.flow.kinds import describes
from lc_keras.model.flow.units import Along, Signal, Weight

_SCALE_AND_SHIFT = (Weight("gamma", makes=Along(-1, "out")), Weight("beta", makes=Along(-1, "out")))


class Normalization(EachUnit):
    """A normalisation of the units of one axis, given by the layer's `axis`."""

    weights: tuple[Weight, ...] = _SCALE_AND_SHIFT

    @classmethod
    def fits(cls, layer: keras.Layer) -> bool:
        one = not isinstance(layer.axis, (list, tuple)) or len(layer.axis) == 1
        return one and not getattr(layer, "rms_scaling", False)

    def axes(self) -> tuple[int, int]:
        axis = self.layer.axis
        axis = (axis[0] if isinstance(axis, (list, tuple)) else axis) % len(self.shapes[0])
        return axis, axis

    def scaled(self, value: np.ndarray) -> np.ndarray:
        """Return the output where what is scaled and shifted is always `value`."""
        gamma, beta = self.optional("gamma"), self.optional("beta")
        if gamma is not None:
            value = np.where(gamma == 0, 0, value * gamma)
        return value if beta is None else value + beta


@describes(layers.BatchNormalization)
class BatchNormalization(Normalization):
    """A normalisation with the statistics from training, as it is done outside of training."""

    weights = (
        *_SCALE_AND_SHIFT,
        Weight("moving_mean", makes=Along(-1, "out")),
        Weight("moving_variance", makes=Along(-1, "out")),
    )

    @classmethod
    def fits(cls, layer: keras.Layer) -> bool:
        return super().fits(layer) and not getattr(layer, "renorm", False)

    def constant(self, value: np.ndarray) -> np.ndarray:
        mean, variance = self.array("moving_mean"), self.array("moving_variance")
        if self.units.dead:
            # Training will change it: all that can be said is that it is not zero.
            mean = np.full_like(mean, -1)
        return self.scaled((value - mean) / np.sqrt(variance + self.layer.epsilon))


class OfGroups(Normalization):
    """A normalisation with statistics over groups of units: a group stays or goes as a whole."""

    def groups(self) -> int:
        return 1

    def forward(self) -> list[Signal]:
        (out,) = super().forward()
        ids = self.x.ids.reshape(self.groups(), -1)
        self.units.tie(ids[:, 1:].ravel(), np.repeat(ids[:, :1], max(ids.shape[1] - 1, 0)))
        return [out]

    def constant(self, value: np.ndarray) -> np.ndarray:
        if not len(value):
            # An axis of an open size.
            return value
        value = value.reshape(self.groups(), -1)
        mean, variance = value.mean(axis=1, keepdims=True), value.var(axis=1, keepdims=True)
        return self.scaled(((value - mean) / np.sqrt(variance + self.layer.epsilon)).ravel())

    def backward(self) -> None:
        needed = self.outputs[0].needed.reshape(self.groups(), -1)
        self.x.read |= np.repeat(needed.any(axis=1), needed.shape[1])


@describes(layers.GroupNormalization)
class GroupNormalization(OfGroups):
    def groups(self) -> int:
        return self.layer.groups if self.layer.groups > 0 else len(self.x.ids)

    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        return {"groups": count("out") * self.groups() // len(self.ports["out"])}


@describes(layers.LayerNormalization)
class LayerNormalization(OfGroups):
    """A normalisation whose mean is over all units, dead ones too, so that all stay."""


@describes(layers.RMSNormalization, layers.UnitNormalization)
class OfSquares(Normalization):
    r"""A division by $\sqrt{\frac1n \sum x_i^2 + \epsilon}$ or the norm: zeros add nothing to the sum."""

    weights = (Weight("scale", makes=Along(-1, "out")),)

    @classmethod
    def fits(cls, layer: keras.Layer) -> bool:
        # Keras multiplies by the scale along the last axis, whichever axis it normalises.
        return super().fits(layer) and (not hasattr(layer, "scale") or layer.axis in (-1, [-1]))

    def constant(self, value: np.ndarray) -> np.ndarray:
        self.hold(self.x, "has a norm to which a constant adds", self.x.constant & (value != 0))
        return np.where(value == 0, 0, np.nan)

    def backward(self) -> None:
        self.x.read |= self.outputs[0].needed.any()

    def _share(self, kept: dict[str, np.ndarray]) -> float:
        return kept["out"].mean()

    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        if not hasattr(self.layer, "epsilon"):
            return {}
        return {"epsilon": self.layer.epsilon * len(self.ports["out"]) / count("out")}

    def fold(self, kept: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # With n' of n left, the mean of the squares is n/n' times what it was, and so is ε.
        scale = arrays.get("scale")
        return {} if scale is None else {"scale": scale / np.sqrt(self._share(kept))}
