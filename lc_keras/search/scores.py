"""Ask a user's function for the score of a model, and leave the model as it was."""

import contextlib
import math
from collections.abc import Callable, Iterator

import keras

from lc_keras.arguments import is_number
from lc_keras.fit.optimizers import parts_of, reset_state, wrapped_optimizers_of

Score = Callable[[keras.Model], float]


def score_of(model: keras.Model, score: Score, finite: bool = True) -> float:
    """Return the score of a model, after checking it.

    Args:
        model: `keras.Model`.
        score: Function of it.
        finite: Bool, default `True`, whether the score must be finite.

    Raises:
        TypeError: If the score is not a number.
        ValueError: If the score is not finite.
    """
    value = score(model)
    if not is_number(value):
        raise TypeError(f"Expected `score` to return a number. Received: {value!r}")
    if finite and not math.isfinite(value):
        raise ValueError(f"Expected a finite score of model '{model.name}'. Received: {float(value)}")
    return float(value)


@contextlib.contextmanager
def restored(model: keras.Model) -> Iterator[Callable[[], None]]:
    """Restore the values of a model and its optimizers at the end and when the yielded function is called."""
    optimizers = wrapped_optimizers_of(model)
    fresh = [optimizer for optimizer in optimizers if not optimizer.built]
    held = [(v, keras.ops.copy(v)) for part in (model, *optimizers) for v in part.variables]

    def restore() -> None:
        for optimizer in fresh:
            for part in parts_of(optimizer):
                reset_state(part, wholly=True)
        for variable, value in held:
            variable.assign(value)

    try:
        yield restore
    finally:
        restore()
