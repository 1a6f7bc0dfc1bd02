"""Have layers of KerasHub, which need not be installed, called on symbolic tensors."""

import functools
from collections.abc import Callable
from typing import Any

import keras

from lc_keras.internals.keras import layers_in
from lc_keras.model.flow.units import name_of


def symbolic_methods(layer: keras.Layer) -> list[tuple[keras.Layer, str, object]]:
    """Return what must be `replaced` so that a decoder of KerasHub can be called on symbolic tensors.

    The decoder makes its causal mask from the length, which a symbolic tensor need not have; the replacement
    makes it from the tensor. The decoder's attention does not tell the shape of its output.
    `_compute_self_attention_mask`, `CachedMultiHeadAttention`, KerasHub 0.32.
    """
    attention = keras.layers.MultiHeadAttention
    methods: list[tuple[keras.Layer, str, object]] = [
        (part, "compute_output_spec", without_cache(functools.partial(attention.compute_output_spec, part)))
        for part in layers_in(layer, include_self=False)
        if name_of(type(part)) == "keras_hub>CachedMultiHeadAttention"
    ]
    if hasattr(layer, "_compute_self_attention_mask") and type(layer).__module__.startswith("keras_hub."):
        methods.append((layer, "_compute_self_attention_mask", _mask_for_decoders))
    return methods


def without_cache(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that leaves out the arguments that attention in Keras does not know."""

    def call(*args: Any, cache: None = None, cache_update_index: None = None, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def _mask_for_decoders(
    decoder_sequence: keras.KerasTensor,
    decoder_padding_mask: keras.KerasTensor | None = None,
    decoder_attention_mask: keras.KerasTensor | None = None,
    use_causal_mask: bool = True,
    **_: Any,
) -> keras.KerasTensor | None:
    """Return which places of a sequence a decoder may look at from each place."""
    ops, padding = keras.ops, decoder_padding_mask
    masks = [None if padding is None else ops.expand_dims(padding, 1), decoder_attention_mask]
    if use_causal_mask:
        places = ops.cumsum(ops.ones_like(decoder_sequence[..., 0], "int32"), axis=1)
        masks.append(ops.expand_dims(places, 2) >= ops.expand_dims(places, 1))
    found = [ops.cast(mask, "int32") for mask in masks if mask is not None]
    return functools.reduce(ops.minimum, found) if found else None
