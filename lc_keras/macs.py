"""Multiply-adds: how often one example meets each weight of a kernel."""

import math

import keras
from keras import layers

from lc_keras.flow import Graph
from lc_keras.flow.units import find

_CONVOLUTIONS = (
    *(layers.Conv1D, layers.Conv2D, layers.Conv3D, layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_RECURRENT = (layers.SimpleRNN, layers.GRU, layers.LSTM)


def macs(model: keras.Model) -> int:
    """The multiply-adds of all kernels for one example, zeros counted as any other weight.

    Args:
        model: Functional or built Sequential `keras.Model`, with inputs of known size.

    Returns:
        Python int; layers of kinds that are not known count nothing.

    Raises:
        TypeError: If the model is not a graph of layers.
        ValueError: If a size is not known.
    """
    total = 0
    for flow in Graph(model).flows:
        used = uses(flow.layer, [s.shape for s in flow.inputs], flow.shapes)
        if None in used.values():
            raise ValueError(f"Expected inputs of known size. Received: '{flow.layer.name}' in '{model.name}' has none")
        total += sum(times * math.prod(find(flow.layer, name).shape) for name, times in used.items())
    return total


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
        times = {"query": query, "key": value, "value": value, "output": query}
        return {f"_{name}_dense.kernel": n for name, n in times.items()}
    return {}


def _spatial(layer, shape):
    return shape[2:] if layer.data_format == "channels_first" else shape[1:-1]


def _product(sizes):
    return None if None in sizes else math.prod(sizes)
