"""Multiply-adds: how often one example meets each weight of a kernel."""

import math

import keras
from keras import layers

_CONVOLUTIONS = (
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_RECURRENT = (layers.SimpleRNN, layers.GRU, layers.LSTM)


def uses(layer: keras.Layer, inputs: list, outputs: list) -> dict[str, int | None]:
    """How many multiply-adds a weight of each kernel takes in one call of a layer, for one example.

    Args:
        layer: Built layer.
        inputs: List of shapes of the inputs, the batch first.
        outputs: List of shapes of the outputs.

    Returns:
        Dict of ints by the dotted names of the kernels, `None` where a shape is not known; empty for a layer that
        has no kernel, or is of another kind.
    """
    kind = type(layer)
    if kind in (layers.Dense, layers.EinsumDense):
        kernel = layer.kernel.shape
        if kind is layers.Dense:
            return {"kernel": _product(outputs[0][1:-1])}
        labels, output = layer.equation.replace("...", "").replace(" ", "").split("->")
        made = [n for n, label in zip(kernel, labels.split(",")[1], strict=True) if label in output]
        total = _product(outputs[0][1:])
        return {"kernel": None if total is None else total // math.prod(made)}
    if kind in _CONVOLUTIONS:
        names = ["depthwise_kernel", "pointwise_kernel"] if hasattr(layer, "pointwise_kernel") else ["kernel"]
        return dict.fromkeys(names, _product(_spatial(layer, outputs[0])))
    if kind in _TRANSPOSED:
        return {"kernel": _product(_spatial(layer, inputs[0]))}
    if kind in _RECURRENT:
        return dict.fromkeys(("cell.kernel", "cell.recurrent_kernel"), inputs[0][1])
    if kind is layers.MultiHeadAttention:
        query, value = (_product(shape[1:-1]) for shape in inputs[:2])
        return {f"_{name}_dense.kernel": n for name, n in
                dict(query=query, output=query, key=value, value=value).items()}
    return {}


def _spatial(layer, shape):
    return shape[2:] if layer.data_format == "channels_first" else shape[1:-1]


def _product(sizes):
    return None if None in sizes else math.prod(sizes)
