"""Give layers that were made anew what their configs do not say: weights, states, quantisation, LoRA."""

import tempfile

import keras
import numpy as np

from lc_keras.internals.keras import created_by, layers_in


def restore(made: keras.Layer, layer: keras.Layer) -> None:
    """Give a layer that was made anew as it is everything that its config does not say."""
    _alter(made, layer)
    for new, old in zip(layers_in(made), layers_in(layer), strict=True):
        own, held = created_by(new), created_by(old)
        if getattr(old, "quantization_mode", None):
            # It is built with its weights in another order, under names that Keras gives.
            named = {variable.name: variable for variable in own}
            own = [named[variable.name] for variable in held]
        for variable, value in zip(own, held, strict=True):
            variable.assign(value)
    copy_state(made, layer, all_of_it=False)


def _alter(made: keras.Layer, layer: keras.Layer) -> None:
    """Quantise what is quantised inside a layer, and enable LoRA where it was, which no config says."""
    for new, old in zip(layers_in(made), layers_in(layer), strict=True):
        mode = getattr(old, "quantization_mode", None)
        if mode and getattr(new, "quantization_mode", None) != mode:
            new.quantize(mode, config=getattr(old, "quantization_config", None))
        if getattr(old, "lora_enabled", False):
            if not new.lora_enabled:
                new.enable_lora(old.lora_rank)
            new.lora_alpha = old.lora_alpha


def copy_state(made: keras.Layer, layer: keras.Layer, all_of_it: bool) -> None:
    """Give a layer what another has learnt by `adapt`, besides its weights, or all that it holds."""
    for new, old in zip(layers_in(made), layers_in(layer), strict=True):
        # What is trained is in the weights.
        if old.trainable_weights and not all_of_it:
            continue
        weights: dict[str, np.ndarray] = {}
        old.save_own_variables(weights)
        new.load_own_variables(weights)
        if hasattr(old, "save_assets"):
            with tempfile.TemporaryDirectory() as folder:
                old.save_assets(folder)
                new.load_assets(folder)
