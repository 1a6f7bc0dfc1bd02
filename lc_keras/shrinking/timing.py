r"""Time a net at a few widths, and fit what its time depends on.

Budgets of multiply-adds do not become time alike in all layers: a depthwise convolution, a wide image or a
batch of one waits for memory (Idelbayev & Carreira-Perpiñán, Beyond FLOPs in low-rank compression of neural
networks: optimizing device-specific inference runtime, ICIP 2021, who fit such a model to timed layers).
"""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from lc_keras.arguments import keras_model, positive, warn, whole
from lc_keras.internals.keras import as_functional
from lc_keras.internals.tensorflow import compiled
from lc_keras.model.flow import Graph
from lc_keras.model.flow.units import find
from lc_keras.model.latency import Latency, known, remember
from lc_keras.model.macs import count_uses
from lc_keras.shrinking.rebuilding import Rebuilt

_WIDTHS = (0.15, 0.3, 0.5, 0.75, 1.0)
_ROUNDS, _TURN = 10, 5
# Budgets missed by more are not what was asked for (`benchmarks/serving/milliseconds.py`).
_BAD = 0.1
# How much a coefficient of its own costs a kernel, against the squared relative error of a net.
_RIDGE = 0.02


def latency(
    model: keras.Model,
    batch_size: int = 1,
    nets: int = 20,
    seconds: float = 10.0,
    path: str | os.PathLike[str] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Latency:
    """Fit what the time of a model depends on, for budgets with `measure="milliseconds"`.

    The model is made again at random widths of its layers, and these nets take turns to be timed on random
    inputs, as a `tf.function`. What was fitted is remembered for this model and its copies: budgets in
    milliseconds take it from there. Have nothing else run on the machine meanwhile.

    Args:
        model: Functional or built Sequential `keras.Model`.
        batch_size: Int ≥ 1, default 1: the examples of a batch.
        nets: Int ≥ 4, default 20: how many nets to time.
        seconds: Float > 0, default 10: for how long to time, ten batches of each net at least, of which the
            lower quartile counts.
        path: Path or `None` (default): a file to read this from, or to write it to if it is not there yet,
            as for a training that may be cut off, or one on another machine than the net is for.
        clock: Function that returns seconds, default `time.perf_counter`. `time.process_time` is less
            disturbed by other processes; give TensorFlow one thread then, since it adds up all of them.

    Returns:
        `Latency`.

    Raises:
        TypeError: If an argument is of another type, or the model is not a graph of layers.
        ValueError: If a number is out of range, no neuron can be removed, or the file is none of this
            function, or of another model or batch size.

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
    widths = _Widths(keras_model(model))
    if path is not None and Path(path).exists():
        found = _read(Path(path), batch_size, widths.sizes)
    else:
        found = _fitted(model, widths, batch_size, nets, seconds, clock)
        if path is not None:
            # As a whole or not at all.
            written = Path(path).with_name(Path(path).name + ".tmp")
            written.write_text(found.to_json())
            os.replace(written, path)
    remember(model, found)
    return found


def ensure_known(model: keras.Model) -> None:
    """Fit what the time of a model depends on, at a batch of one, if it was not fitted before.

    A fit that misjudges times is said to be bad.
    """
    found = known(model) or latency(model)
    if found.error > _BAD:
        warn(
            f"The time of this model is misjudged by {100 * found.error:.0f} % in the mean, and a budget in "
            "milliseconds will be missed by as much: time it for longer, or where nothing else runs, by "
            "`lc_keras.latency(model, seconds=60)`.",
        )


def _read(path: Path, batch_size: int, sizes: dict[str, tuple[int, ...]]) -> Latency:
    """Return what a file has, if it is of this model and batch size."""
    try:
        found = Latency.from_json(path.read_text())
    except ValueError as error:
        raise ValueError(f"Expected '{path}' to be a file that `latency` wrote. {error}") from error
    expected = {"batch_size": batch_size, **sizes}
    received = {"batch_size": found.batch_size, **found.sizes}
    for name in {**expected, **received}:
        if expected.get(name) != received.get(name):
            raise ValueError(
                f"Expected the file '{path}' to be of this model and batch size, with {name} "
                f"{expected.get(name)}. Received: {received.get(name)}. Give another path, or delete it."
            )
    return found


def _fitted(
    model: keras.Model,
    widths: "_Widths",
    batch_size: int,
    nets: int,
    seconds: float,
    clock: Callable[[], float],
) -> Latency:
    generator = np.random.default_rng(0)
    masks = [np.ones(len(widths.groups), bool), *(widths.drawn(generator) for _ in range(nets - 1))]
    models = [widths.model(model, mask) for mask in masks]
    times = np.array(quartiles(models, batch_size, seconds, clock))
    features = np.array([widths.features(mask) for mask in masks])
    scales = widths.scales()
    coefficients = _fit(features, times, scales)
    errors = []
    for i in range(nets):
        others = np.arange(nets) != i
        errors.append(abs(features[i] @ _fit(features[others], times[others], scales) / times[i] - 1))
    pairs = coefficients[1:].reshape(-1, 2)
    kernels = {v.path: (float(a), float(b)) for v, (a, b) in zip(widths.kernels, pairs, strict=True)}
    whole_time = float(features[0] @ coefficients)
    return Latency(
        batch_size,
        whole_time,
        float(coefficients[0]),
        kernels,
        statistics.mean(errors),
        max(errors),
        nets,
        widths.sizes,
        f"{platform.node()} ({platform.machine()}, {os.cpu_count()} cores)",
    )


class _Widths:
    """The units of a model's layers, and nets that have some of them."""

    def __init__(self, model: keras.Model) -> None:
        self.graph = graph = Graph(model, dead=True)
        self.groups = graph.units.groups()
        # Units of each layer that can be removed, each in the first layer that has it.
        self._layers, seen = [], graph.lasting()
        for signal in graph.made:
            new = np.setdiff1d(self.groups[signal.ids], seen)
            seen = np.union1d(seen, new)
            self._layers.append(new)
        if not any(map(len, self._layers)):
            raise ValueError(f"Expected a model of which neurons can be removed. Received: '{model.name}'")
        uses = count_uses(model).uses
        self.kernels: list[keras.Variable] = []
        self._ports: list[tuple[np.ndarray, np.ndarray | None]] = []
        self._times: list[tuple[float, float]] = []
        self.sizes: dict[str, tuple[int, ...]] = {}
        for flow in graph.layers.values():
            for weight in flow.weights:
                variable = find(flow.layer, weight.name)
                if variable is not None and weight.makes and (times := uses.get(id(variable))):
                    made = flow.ports[weight.makes.port]
                    read = flow.ports[weight.reads.port] if weight.reads else None
                    self.kernels.append(variable)
                    self.sizes[variable.path] = (*variable.shape, times)
                    self._ports.append((made, read))
                    self._times.append((float(times * np.prod(variable.shape)), float(times * len(made))))

    def drawn(self, generator: np.random.Generator) -> np.ndarray:
        """Return which units stay in a net of random widths, a bool for each unit."""
        gone = np.zeros(len(self.groups), bool)
        # Of nets that are narrow throughout, too.
        below = generator.choice(_WIDTHS)
        for units in self._layers:
            if len(units):
                part = generator.choice([w for w in _WIDTHS if w >= below])
                # Multiples of 8, as parts of 64 are, are faster than the widths that a budget comes to.
                part *= generator.uniform(0.8, 1.2) if part < 1 else 1
                gone[generator.permutation(units)[max(1, round(part * len(units))) :]] = True
        return ~gone[self.groups]

    def model(self, model: keras.Model, mask: np.ndarray) -> keras.Model:
        """Return a net that has these units, with weights of no meaning."""
        return Rebuilt(self.graph, mask).model(model)

    def features(self, mask: np.ndarray) -> np.ndarray:
        """Return 1, and for each kernel which part of what it makes and reads stays, and of what it makes."""
        row = [1.0]
        for made, read in self._ports:
            own = mask[made].mean()
            row += [own * (1.0 if read is None else mask[read].mean()), own]
        return np.array(row)

    def scales(self) -> np.ndarray:
        """Return for each feature what its time goes by as a first guess, and which ones share a guess."""
        kinds = np.zeros((1 + 2 * len(self.kernels), 5))
        kinds[0, 0] = 1
        for i, ((_, read), (macs, outputs)) in enumerate(zip(self._ports, self._times, strict=True)):
            # A kernel that reads no units of others, as a depthwise one, waits for memory.
            kinds[1 + 2 * i, 1 if read is not None else 2] = macs
            kinds[2 + 2 * i, 3] = outputs
            # At small batches so do the weights themselves.
            kinds[1 + 2 * i, 4] = np.prod(self.kernels[i].shape)
        return kinds / np.maximum(kinds.sum(axis=0), 1)


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

    A turn is a few batches, before which one is not timed: a model that is served finds its weights in the
    cache, which others have emptied. What else runs on the machine makes a batch slower, and never faster.
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
        inputs.append(tf.cast(generator.normal(size=shape) if floating else np.zeros(shape), tensor.dtype))
    return keras.tree.pack_sequence_as(as_functional(model).input, inputs)
