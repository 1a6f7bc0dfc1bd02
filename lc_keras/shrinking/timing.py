r"""Time a net at a few widths, or with a few ranks, and fit what its time depends on.

Multiply-adds do not turn into time alike in all layers: a depthwise convolution, a wide image or a batch of
one waits for memory (Idelbayev & Carreira-Perpiñán, Beyond FLOPs in low-rank compression of neural networks:
optimizing device-specific inference runtime, ICIP 2021, who fit such a model to timed layers).
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from lc_keras.arguments import keras_model, one_of, positive, warn, whole
from lc_keras.internals.keras import as_functional
from lc_keras.internals.tensorflow import compiled
from lc_keras.model.latency import Latency, Of, known, remember
from lc_keras.shrinking.samples import Ranks, Samples, Widths

_ROUNDS, _TURN = 10, 5
# A budget that is missed by more is not what was asked for (`benchmarks/serving/milliseconds.py`).
_BAD = 0.1
# What a kernel pays for a coefficient of its own, against the squared relative error of a net.
_RIDGE = 0.02


def latency(
    model: keras.Model,
    batch_size: int = 1,
    nets: int = 20,
    seconds: float = 10.0,
    path: str | os.PathLike[str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    of: Of = "widths",
) -> Latency:
    """Fit how the time of a model depends on its widths or ranks, for costs with `measure="milliseconds"`.

    The model is made again with random widths of its layers, or with two layers in place of some, as for
    kernels of low rank. These nets are timed in turns, as a `tf.function`, on random inputs: zeros if they
    are not floats, and 32 for sizes that are open. The fit is remembered for this model and its copies, and
    costs in milliseconds use it. Let nothing else run on the machine meanwhile.

    Args:
        model: Functional or built Sequential `keras.Model`.
        batch_size: Int ≥ 1, default 1: the examples of a batch.
        nets: Int ≥ 4, default 20: how many nets to time.
        seconds: Float > 0, default 10: how long to measure, but at least ten batches of each net. The lower
            quartile of their times counts.
        path: Path or `None` (default): a file to read the fit from, or to write it to if there is none yet,
            as for a training that may be cut off, or one on another machine than the net is for.
        clock: Function that returns seconds, default `time.perf_counter`. `time.process_time` is less
            disturbed by other processes; then give TensorFlow one thread, since this clock adds up the time
            of all threads.
        of: `"widths"` (default), for budgets of neurons, or `"ranks"`, for `RankSelection`.

    Returns:
        `Latency`.

    Raises:
        TypeError: If an argument is of the wrong type, or the model is not a graph of layers.
        ValueError: If an argument is out of range, no neuron can be removed, no layer could be replaced by
            two, or the file was not written by this function, or is for another model, batch size or kind.

    Example:

    ```python
    print(lc_keras.latency(model, batch_size=32))
    half = lc_keras.L0Constraint(0.5, lc_keras.Neurons(), measure="milliseconds")
    ```
    """
    batch_size, nets = whole("batch_size", batch_size), whole("nets", nets)
    seconds = positive("seconds", seconds)
    if nets < 4:
        raise ValueError(f"Expected `nets` to be at least 4. Received: nets={nets}")
    one_of("widths", "ranks")("of", of)
    samples: Samples = Widths(keras_model(model)) if of == "widths" else Ranks(keras_model(model))
    if path is not None and Path(path).exists():
        found = _read(Path(path), batch_size, of, samples.sizes)
    else:
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        found = _fitted(samples, batch_size, nets, seconds, clock, of)
        if path is not None:
            # Completely or not at all.
            written = Path(path).with_name(Path(path).name + ".tmp")
            written.write_text(found.to_json())
            os.replace(written, path)
    remember(model, found)
    return found


def ensure_known(model: keras.Model, needed: Iterable[Of | None]) -> None:
    """Fit how the time of a model depends on its sizes, at a batch of one, unless it was fitted before.

    Warn about a fit that misjudges times.

    Args:
        model: `keras.Model`.
        needed: Iterable of what to fit, as `latency` takes it, or of `None`.
    """
    for of in sorted({of for of in needed if of}):
        found = known(model, of) or latency(model, of=of)
        if found.error > _BAD:
            option = "" if of == "widths" else f', of="{of}"'
            option = option if found.batch_size == 1 else f", batch_size={found.batch_size}{option}"
            warn(
                f"The fitted time of this model is off by {100 * found.error:.0f} % on average, and so are "
                "budgets in milliseconds: time it for longer, or while nothing else runs, by "
                f"`lc_keras.latency(model, seconds=60{option})`.",
            )


def _read(path: Path, batch_size: int, of: Of, sizes: dict[str, tuple[int, ...]]) -> Latency:
    """Return the fit in a file, if it is for this model and batch size."""
    try:
        found = Latency.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"Expected '{path}' to be a file that `latency` wrote. {error}") from error
    expected = {"batch_size": batch_size, "of": of, **sizes}
    received = {"batch_size": found.batch_size, "of": found.of, **found.sizes}
    for name in {**expected, **received}:
        if expected.get(name) != received.get(name):
            raise ValueError(
                f"Expected the file '{path}' to be of this model and batch size, with {name} "
                f"{expected.get(name)}. Received: {received.get(name)}. Give another path, or delete it."
            )
    return found


def _fitted(
    samples: Samples, batch_size: int, nets: int, seconds: float, clock: Callable[[], float], of: Of
) -> Latency:
    generator = np.random.default_rng(0)
    drawn = [samples.whole(), *(samples.drawn(generator) for _ in range(nets - 1))]
    times = np.array(quartiles([samples.model(sample) for sample in drawn], batch_size, seconds, clock))
    features, scales = np.array([samples.features(sample) for sample in drawn]), samples.scales()
    coefficients = _fit(features, times, scales)
    errors = []
    for i in range(nets):
        others = np.arange(nets) != i
        errors.append(abs(features[i] @ _fit(features[others], times[others], scales) / times[i] - 1))
    return Latency(
        batch_size,
        float(features[0] @ coefficients),
        float(coefficients[0]),
        samples.of_kernels(coefficients),
        statistics.mean(errors),
        max(errors),
        nets,
        samples.sizes,
        f"{platform.node()} ({platform.machine()}, {os.cpu_count()} cores)",
        of,
    )


def _fit(features: np.ndarray, times: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Return the time of each feature: shared guesses first, then what each kernel has of its own."""
    relative = features / times[:, None]
    ones = np.ones(len(times))
    guess = scales @ _non_negative(relative @ scales, ones)
    ridge = np.sqrt(_RIDGE) * np.eye(len(guess))
    own = _non_negative(np.vstack([relative * guess, ridge]), np.concatenate([ones, ridge.sum(axis=1)]))
    return guess * own


def _non_negative(matrix: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the x ≥ 0 of least squares, by coordinate descent."""
    gram, right = matrix.T @ matrix, matrix.T @ target
    x = np.zeros(len(right))
    some = np.flatnonzero(np.diag(gram) > 1e-15)
    for _ in range(300):
        before = x.copy()
        for i in some:
            x[i] = max(0.0, x[i] + (right[i] - gram[i] @ x) / gram[i, i])
        if np.allclose(x, before, rtol=1e-4, atol=1e-9):
            break
    return x


def quartiles(
    models: Sequence[keras.Model],
    batch_size: int,
    seconds: float = 1.0,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """Return the lower quartile of the times of a batch, for models that take turns, in milliseconds.

    A turn is a few batches, after one that is not timed: a model that is served finds its weights in the
    cache, from which the others have pushed them out. Whatever else runs on the machine makes a batch slower,
    never faster.
    """
    calls = [(_call(model), _inputs(model, batch_size)) for model in models]
    times: list[list[float]] = [[] for _ in models]

    def run(index: int) -> None:
        call, inputs = calls[index]
        keras.tree.map_structure(lambda t: t.numpy(), call(inputs))

    for index in range(len(models)):
        run(index)  # traces
    end = time.monotonic() + seconds
    while len(times[0]) < _ROUNDS or time.monotonic() < end:
        for index, measured in enumerate(times):
            run(index)
            for _ in range(_TURN):
                start = clock()
                run(index)
                measured.append(1e3 * (clock() - start))
    return [float(np.quantile(measured, 0.25)) for measured in times]


def _call(model: keras.Model) -> Callable[[object], object]:
    return compiled(lambda x: model(x, training=False))


def _inputs(model: keras.Model, batch_size: int) -> object:
    generator = np.random.default_rng(0)
    inputs = []
    for tensor in model.inputs:
        shape = (batch_size, *(n or 32 for n in tensor.shape[1:]))
        floating = tensor.dtype.startswith("float")
        inputs.append(
            tf.cast(generator.normal(size=shape), tensor.dtype) if floating else tf.zeros(shape, tensor.dtype)
        )
    return keras.tree.pack_sequence_as(as_functional(model).input, inputs)
