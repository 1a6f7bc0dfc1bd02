"""What TensorFlow traces: functions that each `fit` has anew, what they read, methods replaced meanwhile."""

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


def kept_with_trace(*variables: tf.Variable) -> None:
    """Keeps variables for as long as there is the graph that is being traced and reads them.

    A function that a `train_step` calls may be called long after the `fit` in which it was traced. What they
    hold is freed with `emptied`.

    Args:
        *variables: `tf.Variable`s.
    """
    if not tf.executing_eagerly():
        graph = tf.compat.v1.get_default_graph()
        graph._lc_keras_variables = [*getattr(graph, "_lc_keras_variables", ()), *variables]


def emptied(variable: tf.Variable, value: float | bool) -> None:
    """Puts one value in the place of all that a variable holds, and frees their memory.

    TensorFlow keeps the graph of a train function for good, and with it what the variables hold that
    it reads. Where such a function runs again after all, the value is broadcast.

    Args:
        variable: `tf.Variable`, mirrored or not.
        value: Float or bool.
    """
    mirrored = isinstance(variable, tf.distribute.DistributedValues)
    for part in variable.values if mirrored else [variable]:
        single = tf.cast(value, part.dtype)
        tf.raw_ops.AssignVariableOp(resource=part.handle, value=single, validate_shape=False)


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
