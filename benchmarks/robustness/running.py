"""Prunes in one cell with one contender, and keeps what was measured."""

import contextlib
import fcntl
import gc
import json
import os
import time
import warnings
from dataclasses import asdict

import keras
import numpy as np
import tensorflow as tf

from benchmarks import record
from benchmarks.robustness import optimizers
from benchmarks.robustness.nets import NETS, parts
from benchmarks.robustness.summary import DIRECT, LC
from lc_keras import LearningCompression
from lc_keras.baselines import GradualPruning, MagnitudePruning, compress_directly
from lc_keras.model import default_kernels

_BASELINES = {"magnitude": MagnitudePruning, "gradual": GradualPruning}
tf.get_logger().setLevel("ERROR")  # each model has a function of its own on purpose
_REFERENCE_RATE = 2e-3  # of Adam


class Store:
    """The rows of figures in a file that several processes may write to.

    Args:
        path: `pathlib.Path` of a json file.
    """

    def __init__(self, path):
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def rows(self):
        """Returns all rows, a list of dicts."""
        return record.read(self._path)

    def add(self, row):
        """Adds a row; the file is whole at any moment."""
        with self._locked():
            written = self._path.with_suffix(".new")
            record.write(written, [*self.rows(), row])
            os.replace(written, self._path)

    @contextlib.contextmanager
    def _locked(self):
        with self._path.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def key(row):
    """Returns what a row is the result of, as a tuple; only LC has a label."""
    names = "cell", "seed", "measured_on", "contender"
    return (*(row[name] for name in names), row["label"] if row["contender"] == LC else None)


def measure(cell, contender, *, label, validation, folder, options=None):
    """Prunes the reference of a cell's net.

    Args:
        cell: `Cell`.
        contender: String, of `CONTENDERS`.
        label: String, the name of this state of LC.
        validation: Bool, whether to measure on held-out training examples.
        folder: `pathlib.Path`, where references are kept.
        options: Dict of options of `LearningCompression`. `None` (default): none.

    Returns:
        Dict of figures, a row. `warnings` is what the contender said, including an error that it raised;
        `seconds` is processor time.
    """
    net = NETS[cell.net]
    train, measured = parts(cell.net, validation)
    model, reference_error = reference(net, validation, folder)
    budget, said, gap = net.budget(cell.keep), [], None
    began = time.process_time()
    if contender == DIRECT:
        compress_directly(model, budget)
    elif contender == LC:
        compress = LearningCompression(budget, **(options or {}))
        said, gap = _fit(model, train, cell, compress), float(compress.gap)
    else:
        said = _fit(model, train, cell, _BASELINES[contender](budget))
    seconds = time.process_time() - began
    weights = np.concatenate([v.numpy().ravel() for v in default_kernels(model)])
    row = {
        **asdict(cell),
        "cell": cell.of_all_seeds,
        "setting": cell.setting,
        "is_fit": net.is_fit,
        "measured_on": "validation" if validation else "test",
        "contender": contender,
        "label": label if contender == LC else None,
        "error": error(model, measured),
        "reference_error": reference_error,
        "gap": gap,
        "kept": np.count_nonzero(weights) / weights.size,
        "warnings": said,
        "seconds": round(seconds, 2),
    }
    keras.backend.clear_session()
    gc.collect()
    return row


def _fit(model, train, cell, callback):
    """Trains as every contender is trained, and returns what was said meanwhile."""
    net = NETS[cell.net]
    size, examples = net.batch(cell.batches)
    keras.utils.set_random_seed(cell.seed)
    optimizer = optimizers.make(
        cell.optimizer, net.rate, cell.rate, cell.schedule, cell.batches * cell.epochs
    )
    prepare(model, optimizer)
    data = batches([array[:examples] for array in train], size, cell.seed)
    failed = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            model.fit(data, epochs=cell.epochs, shuffle=False, verbose=0, callbacks=[callback])
        except Exception as error:  # what goes wrong is a result, too
            failed = [f"{type(error).__name__}: {error}"]
    said = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    return [*dict.fromkeys(said), *failed]


def prepare(model, optimizer):
    """Compiles a model of logits."""
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True))


def batches(part, size, seed):
    """Makes batches in an order that differs from epoch to epoch, and is the same in each run.

    Args:
        part: Sequence of arrays of one length.
        size: Int.
        seed: Int.

    Returns:
        `tf.data.Dataset` of tuples of tensors.
    """
    tensors, count = tuple(map(tf.constant, part)), len(part[0])
    indices = tf.data.Dataset.range(count).shuffle(count, seed=seed, reshuffle_each_iteration=True)
    return indices.batch(size).map(lambda i: tuple(tf.gather(tensor, i) for tensor in tensors)).prefetch(2)


def error(model, part):
    """Returns the percentage of labels that a model gets wrong."""
    inputs, labels = part
    forward = tf.function(lambda x: tf.argmax(model(x, training=False), -1, tf.int32), reduce_retracing=True)
    wrong = [forward(inputs[i : i + 500]) != labels[i : i + 500] for i in range(0, len(labels), 500)]
    return 100 * float(np.concatenate(wrong).mean())


def reference(net, validation, folder):
    """Returns the reference of a net and its error: from an earlier run, trained elsewhere, or trained now.

    Args:
        net: `Net`.
        validation: Bool, whether the error is measured on held-out training examples.
        folder: `pathlib.Path`, where references are kept.
    """
    path = folder / f"{net.name}{'-validation' if validation else ''}.weights.h5"
    of_error = path.with_suffix(".json")
    train, measured = parts(net.name, validation)
    keras.utils.set_random_seed(0)
    # A model that was trained elsewhere has seen the images that are held out.
    model = (not validation and net.anchor()) or net.build()
    if of_error.exists():
        model.load_weights(path)
        return model, json.loads(of_error.read_text())
    if validation or net.anchor() is None:
        data = batches(train, net.batch(net.batches)[0], seed=0)
        total = net.reference_epochs * int(data.cardinality())
        falling = keras.optimizers.schedules.CosineDecay(_REFERENCE_RATE, total)
        prepare(model, keras.optimizers.Adam(falling))
        model.fit(data, epochs=net.reference_epochs, shuffle=False, verbose=0)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_weights(path)
    of_error.write_text(json.dumps(error(model, measured)))
    return reference(net, validation, folder)
