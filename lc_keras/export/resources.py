"""Find the lookup tables and files that traced functions use, which a SavedModel tracks besides weights."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import CodeType, FunctionType, ModuleType
from typing import Any

import keras
import tensorflow as tf

from lc_keras.internals.tensorflow import is_tracking

_LIBRARIES = ("keras", "tensorflow", "numpy", "builtins")


def resources_of(model: keras.Model, functions: Iterable[Callable[..., Any]]) -> list[object]:
    """Return the tables and assets that a model or functions may use.

    Args:
        model: Built `keras.Model`.
        functions: Iterable of functions. What they refer to in default arguments, closures and globals is
            searched, too.

    Returns:
        List of `tf.saved_model.experimental.TrackableResource` and `tf.saved_model.Asset`.
    """
    kinds = (tf.saved_model.experimental.TrackableResource, tf.saved_model.Asset)
    return [part for part in _reached([model, *functions]) if isinstance(part, kinds)]


def save_tracked(module: tf.Module, folder: str, functions: dict[str, Any]) -> None:
    """Write a SavedModel, or say what to do about a resource that nothing tracks."""
    try:
        # TensorFlow would trace a function once more if it were not traced yet.
        traced = {name: function.get_concrete_function() for name, function in functions.items()}
        tf.saved_model.save(module, folder, signatures=traced)
    except AssertionError as error:
        # A captured tensor does not lead back to the object that owns it.
        raise ValueError(
            "Expected signatures that use what the model holds, or what their functions refer to by name. "
            f"Received: functions that use something else, such as a lookup table: {error}"
        ) from error


def _reached(roots: list[object]) -> Iterator[object]:
    waiting, seen = roots, dict[int, object]()
    while waiting:
        part = waiting.pop()
        if id(part) not in seen:
            seen[id(part)] = part
            yield part
            waiting += _held_by(part)


def _held_by(part: Any) -> Iterable[object]:
    if isinstance(part, Mapping):
        return list(part.values())
    if isinstance(part, (list, tuple, set)):
        return list(part)
    if isinstance(part, functools.partial):
        return [part.func, *part.args, *part.keywords.values()]
    if inspect.ismethod(part):
        return [part.__self__, part.__func__]
    if isinstance(part, tf.types.experimental.PolymorphicFunction):
        return [part.python_function]
    if isinstance(part, keras.Layer) or is_tracking(part):
        return [*tf.train.TrackableView(part).descendants(), *vars(part).values()]
    if _is_of_a_library(part):
        return []
    if isinstance(part, FunctionType):
        return _referred_to(part)
    return list(getattr(part, "__dict__", {}).values()) if not isinstance(part, (type, ModuleType)) else []


def _is_of_a_library(part: object) -> bool:
    where = part if isinstance(part, (type, FunctionType)) else type(part)
    return (where.__module__ or "").partition(".")[0] in _LIBRARIES


def _referred_to(function: FunctionType) -> Iterator[object]:
    """Yield what the code of a function, and of functions inside it, refers to by name."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        # The cell of a name that is not bound yet is empty.
        with contextlib.suppress(ValueError):
            yield cell.cell_contents
    names = set(_names_in(function.__code__))
    for name in names & function.__globals__.keys():
        value = function.__globals__[name]
        yield value
        if isinstance(value, ModuleType) and value.__name__.partition(".")[0] not in _LIBRARIES:
            yield from (vars(value)[inner] for inner in names & vars(value).keys())


def _names_in(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names_in(constant)
