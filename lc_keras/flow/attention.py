"""Attention: its heads are units that never leave the layer."""

import numpy as np
from keras import layers

from lc_keras.flow.units import Along, Flow, Signal, Weight, describes, find, last


@describes(layers.MultiHeadAttention)
class MultiHeadAttention(Flow):
    """A head whose values do not depend on the input hands out a constant, since attention sums to 1."""

    @classmethod
    def fits(cls, layer):
        return not getattr(layer, "_use_gate", False) and find(layer, "_output_dense.kernel").ndim == 3

    def forward(self):
        names = ("query", "value", "key")
        signals = [self.along(x, last(x.shape)) for x in self.inputs]
        signals += signals[len(signals) - 1 :] * (3 - len(signals))
        self.signals = dict(zip(names, signals, strict=False))
        self.kernels = {name: self.array(f"_{name}_dense.kernel") for name in names}
        for x in signals:
            self.hold(x, "projects what is constant", x.constant & (x.value != 0))
        kernel, output = self.kernels["value"], self.array("_output_dense.kernel")
        bias = self.array("_value_dense.bias")
        self.constants = np.einsum("i,ihv->hv", np.nan_to_num(self.signals["value"].value), kernel)
        if bias is not None:
            self.constants += bias
        varies = (kernel[~self.signals["value"].constant] != 0).any(axis=(0, 2))
        heads = np.where(varies, np.nan, self.constants.any(axis=1))
        self.heads = Signal((None, len(heads)), 1, self.units.new(len(heads)), heads)
        self.hidden = [self.heads]
        self.touch = (output != 0).any(axis=1)
        shape = self.shapes[0]
        value = np.einsum("hv,hvd->d", np.where(varies[:, None], 0, self.constants), output)
        if (bias := self.array("_output_dense.bias")) is not None:
            value = value + bias
        value[self.touch[varies].any(axis=0)] = np.nan
        out = self.fresh(shape, last(shape), value)
        self.ports = {name: x.ids for name, x in self.signals.items()}
        self.ports |= {"heads": self.heads.ids, "out": out.ids}
        self.weights = (
            *(Weight(f"_{n}_dense.kernel", makes=Along(1, "heads"), reads=Along(0, n)) for n in names),
            *(Weight(f"_{n}_dense.bias", makes=Along(0, "heads")) for n in names),
            Weight("_output_dense.kernel", makes=Along(-1, "out"), reads=Along(0, "heads")),
            Weight("_output_dense.bias", makes=Along(-1, "out")),
        )
        return [out]

    def backward(self):
        self.heads.read |= self.touch[:, self.outputs[0].needed].any(axis=1)
        for name, x in self.signals.items():
            x.read |= (self.kernels[name][:, self.heads.needed] != 0).any(axis=(1, 2))

    def config(self, count):
        return {"num_heads": count("heads"), "output_shape": count("out")}

    def fold(self, kept, arrays):
        gone = ~kept["heads"] & self.heads.constant
        left = np.einsum("hv,hvd->d", self.constants[gone], self.array("_output_dense.kernel")[gone])
        left = left[kept["out"]]
        return {"_output_dense.bias": arrays["_output_dense.bias"] + left} if left.any() else {}
