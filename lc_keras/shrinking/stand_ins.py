"""Make layers anew, out of other layers, where their own config cannot."""

import importlib
from collections.abc import Callable

import keras

from lc_keras.model.flow.units import name_of


def stand_in(layer: keras.Layer, name: str) -> Callable[..., keras.KerasTensor] | None:
    """Return what stands for a layer, with its weights: another layer, or a function that calls others.

    Args:
        layer: The layer.
        name: String that the names of the others begin with.

    Returns:
        Layer or function of a symbolic tensor, or `None` if no other layers are known to do the same.
    """
    make = _KNOWN.get(name_of(type(layer)))
    return make(layer, name) if make else None


def _rotary(layer: keras.Layer, name: str) -> keras.Layer | None:
    """Return a rotary embedding for Llama's, which does the same unless it changes frequencies.

    The config of `LlamaRotaryEmbedding` of KerasHub 0.32 has entries that its constructor does not take.
    """
    if layer.frequency_adjustment_factor is not None or layer.position_scaling_factor != 1:
        return None
    kind = importlib.import_module("keras_hub").layers.RotaryEmbedding
    return kind.from_config(kind.get_config(layer) | {"name": name})


def _patches(layer: keras.Layer, name: str) -> Callable[[keras.KerasTensor], keras.KerasTensor]:
    return lambda images: _embedded(layer, name, images)


def _embedded(layer: keras.Layer, name: str, images: keras.KerasTensor) -> keras.KerasTensor:
    """Return the patches of images, after a class token, with embeddings of their positions.

    The config of `ViTPatchingAndEmbedding` of KerasHub 0.32 has entries that its constructor does not take. A
    row of zeros stands for the class token, which is then part of the first position.
    """
    embedding = importlib.import_module("keras_hub").layers.PositionEmbedding
    options = {"dtype": layer.dtype_policy, "trainable": layer.trainable}
    convolution = keras.layers.Conv2D.from_config(
        layer.patch_embedding.get_config() | {"name": f"{name}_patches"}
    )
    x = convolution(images)
    convolution.set_weights(layer.patch_embedding.get_weights())
    if layer.data_format == "channels_first":
        x = keras.layers.Permute((2, 3, 1), name=f"{name}_channels_last")(x)
    x = keras.layers.Reshape((-1, layer.hidden_dim), name=f"{name}_sequence")(x)
    (table,) = layer.position_embedding.get_weights()
    if layer.use_class_token:
        x = keras.layers.ZeroPadding1D((1, 0), name=f"{name}_class_token")(x)
        table[0] += keras.ops.convert_to_numpy(layer.class_token)[0, 0]
    positions = embedding(len(table), name=f"{name}_positions", **options)
    x = keras.layers.Add(name=f"{name}_sum", dtype=layer.dtype_policy)([x, positions(x)])
    positions.set_weights([table])
    return x


_KNOWN: dict[str, Callable[..., Callable[..., keras.KerasTensor] | None]] = {
    "ViTPatchingAndEmbedding": _patches,
    "LlamaRotaryEmbedding": _rotary,
}
