"""Let Keras write costs, groups, schedules and tasks as configs, and make them again from these."""

import dataclasses
from typing import Any, Self

import keras


class Serializable:
    """Base class of what `keras.saving` can serialize: its config holds the fields of a dataclass.

    Subclasses in this package are registered with Keras; others are registered by whoever writes them, as
    usual in Keras.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__module__.startswith("lc_keras."):
            keras.saving.register_keras_serializable("lc_keras")(cls)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]  # its subclasses are dataclasses
        return {field.name: getattr(self, field.name) for field in fields}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Make an object from what `get_config` returned, serialized or not."""
        return cls(**{name: made(value) for name, value in config.items()})


def made(value: Any) -> Any:
    """Make what a part of a config describes; return what is not serialized as it is."""
    if isinstance(value, (list, tuple)):
        return [made(part) for part in value]
    return keras.saving.deserialize_keras_object(value) if isinstance(value, dict) else value
