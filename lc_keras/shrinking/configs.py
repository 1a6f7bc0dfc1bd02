"""Read the configs of layers, to make the layers anew at other sizes."""

from typing import Any

import keras


def config_of(layer: keras.Layer) -> dict[str, Any]:
    """Return the config of a layer, with the user's functions themselves, which the config may not hold."""
    config = layer.get_config()
    functions = [
        name
        for name, value in config.items()
        if callable(getattr(layer, name, None)) and not isinstance(value, str) and not _is_of_keras(value)
    ]
    return config | {name: getattr(layer, name) for name in functions}


def _is_of_keras(config: Any) -> bool:
    return isinstance(config, dict) and str(config.get("module")).startswith("keras")


def without_fixed_values(config: Any) -> Any:
    """Return a config in which initializers that hold arrays of the old sizes give zeros."""
    if isinstance(config, list):
        return [without_fixed_values(part) for part in config]
    if not isinstance(config, dict):
        return config
    of_keras = (config.get("module"), config.get("class_name")) == ("keras.initializers", "Constant")
    if of_keras and isinstance(config["config"]["value"], (dict, list, tuple)):
        return _zeros()
    return {
        name: _zeros() if name.endswith("initializer") and _is_of_user(part) else without_fixed_values(part)
        for name, part in config.items()
    }


def _zeros() -> dict[str, Any]:
    return keras.initializers.serialize(keras.initializers.Zeros())


def _is_of_user(initializer: Any) -> bool:
    """Return whether an initializer is the user's own, which may hold an array as well."""
    return not (initializer is None or isinstance(initializer, str) or _is_of_keras(initializer))
