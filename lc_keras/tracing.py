"""Methods of layers replaced for the length of a trace."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import keras


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
