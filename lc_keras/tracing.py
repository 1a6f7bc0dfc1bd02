"""What TensorFlow traces: functions that each `fit` has anew, and methods of layers replaced meanwhile."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import keras
import tensorflow as tf

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """A `tf.function`, one of many with the same code.

    TensorFlow counts traces by code, and would take those of a sixth object for needless ones of the first.

    Args:
        function: Function of tensors.

    Returns:
        What `tf.function` makes of it, without AutoGraph.
    """
    made = tf.function(function, autograph=False)
    made._omit_frequent_tracing_warning = True
    return made


@contextlib.contextmanager
def replaced(methods: Iterable[tuple[keras.Layer, str, Callable[..., object]]]) -> Iterator[None]:
    """Replaces methods of single layers, and puts them back whatever happens.

    Args:
        methods: Iterable of tuples of a layer, the name of a method of it, and the
            function to call in its stead, without `self`.

    Yields:
        Nothing.
    """
    with contextlib.ExitStack() as stack:
        for layer, name, function in methods:
            # Beside `Layer.__setattr__`, which would track what it is given.
            if name in vars(layer):
                stack.callback(object.__setattr__, layer, name, vars(layer)[name])
            else:
                stack.callback(object.__delattr__, layer, name)
            object.__setattr__(layer, name, function)
        yield
