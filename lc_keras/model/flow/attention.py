"""Describe attention, whose heads are units that never leave the layer."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from lc_keras.internals.keras import is_gated, mask_of, with_masks
from lc_keras.model.flow.keras_hub import without_cache
from lc_keras.model.flow.kinds import Flow, describes
from lc_keras.model.flow.units import Along, Signal, Weight, last


@describes(layers.MultiHeadAttention)
class MultiHeadAttention(Flow):
    """Attention by heads; a head whose values do not vary outputs a constant, since attention sums to 1."""

    weights = (
        *(
            Weight(f"{name}_dense.kernel", makes=Along(1, "heads", inside=2), reads=Along(0, name))
            for name in ("query", "value", "key")
        ),
        *(
            Weight(f"{name}_dense.bias", makes=Along(0, "heads", inside=1))
            for name in ("query", "value", "key")
        ),
        Weight("output_dense.kernel", makes=Along(-1, "out"), reads=Along(0, "heads")),
        Weight("output_dense.bias", makes=Along(-1, "out")),
    )

    @classmethod
    def fits(cls, layer: keras.Layer) -> bool:
        return not is_gated(layer) and layer.output_dense.kernel.ndim == 3

    def forward(self) -> list[Signal]:
        names = ("query", "value", "key")
        signals = [self.along(x, last(x.shape)) for x in self.inputs]
        signals += signals[len(signals) - 1 :] * (3 - len(signals))
        self.signals = dict(zip(names, signals, strict=False))
        self.kernels = {name: self.array(f"{name}_dense.kernel") for name in names}
        for x in signals:
            self.hold(x, "projects what is constant", x.constant & (x.value != 0))
        kernel, output = self.kernels["value"], self.array("output_dense.kernel")
        bias = self.optional("value_dense.bias")
        self.constants = np.einsum("i,ihv->hv", np.nan_to_num(self.signals["value"].value), kernel)
        if bias is not None:
            self.constants += bias
        varies = (kernel[~self.signals["value"].constant] != 0).any(axis=(0, 2))
        if self.layer.dropout > 0 or len(self.shapes[0]) != 3:
            # Keras then computes attention in such a way that a fully masked place attends to nothing.
            varies |= self.constants.any(axis=1)
        heads = np.where(varies, np.nan, self.constants.any(axis=1))
        self.heads = Signal((None, len(heads)), 1, self.units.new(len(heads)), heads)
        self.hidden = [self.heads]
        self.touch = (output != 0).any(axis=1)
        shape = self.shapes[0]
        value = np.einsum("hv,hvd->d", np.where(varies[:, None], 0, self.constants), output)
        bias = self.optional("output_dense.bias")
        if bias is None:
            self.hold(self.heads, "has no bias for a constant", self.heads.constant & (heads != 0))
        else:
            value = value + bias
        value[self.touch[varies].any(axis=0)] = np.nan
        out = self.fresh(shape, last(shape), value)
        self.ports = {name: x.ids for name, x in self.signals.items()}
        self.ports |= {"heads": self.heads.ids, "out": out.ids}
        return [out]

    def backward(self) -> None:
        self.heads.read |= self.touch[:, self.outputs[0].needed].any(axis=1)
        for name, x in self.signals.items():
            x.read |= (self.kernels[name][:, self.heads.needed] != 0).any(axis=(1, 2))

    def config(self, count: Callable[[str], int]) -> dict[str, object]:
        return {"num_heads": count("heads"), "output_shape": count("out")}

    def fold(self, kept: dict[str, np.ndarray], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        gone = ~kept["heads"] & self.heads.constant
        left = np.einsum("hv,hvd->d", self.constants[gone], self.array("output_dense.kernel")[gone])
        left = left[kept["out"]]
        return {"output_dense.bias": arrays["output_dense.bias"] + left} if left.any() else {}

    def called(self, made: Any, kept: dict[str, np.ndarray]) -> Any:
        def call(query: Any, *args: Any, **kwargs: Any) -> Any:
            mask, given = mask_of(query), kwargs.get("attention_mask")
            if mask is not None:
                # Keras reads it off the query alone, which may have lost it when the graph runs.
                rows = keras.ops.expand_dims(mask, -1)
                kwargs["attention_mask"] = (
                    rows if given is None else keras.ops.logical_and(keras.ops.cast(given, "bool"), rows)
                )
            return with_masks(made)(query, *args, **kwargs)

        return call


@describes("keras_hub>CachedMultiHeadAttention")
class CachedMultiHeadAttention(MultiHeadAttention):
    """Attention with a cache. Calls in a graph do not use the cache, and Keras cannot put it into a graph."""

    made_as = layers.MultiHeadAttention

    def called(self, made: Any, kept: dict[str, np.ndarray]) -> Any:
        return without_cache(super().called(made, kept))
