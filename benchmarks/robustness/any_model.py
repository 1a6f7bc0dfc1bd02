"""Compresses models that nobody tuned this library for: does each survive, and what is left of it?

    python -m benchmarks.robustness.any_model --only ResNet
    python -m benchmarks.robustness.any_model --output any_model.json --docs docs/models.md

The models are those of every builder in `keras.applications`, with random weights and small images,
and the kinds in `kinds.py`. LC is attached to each model, and two short L steps follow. The model
must then keep its budget with w = θ and nothing of lc_keras on it. It is saved and reloaded in a
process without lc_keras, where its outputs must be the same. Models of KerasHub (`hub.py`), in the
smallest configurations, go through the same. They are also exported and called in that process; then
they lose half of their neurons, and are shrunk, saved and reloaded.
"""

import argparse
import contextlib
import functools
import gc
import inspect
import math
import multiprocessing
import re
import tempfile
import traceback
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import keras
import numpy as np

import lc_keras
from benchmarks import record
from benchmarks.robustness.kinds import KINDS, Kind
from benchmarks.robustness.reload import Reloader
from lc_keras.algorithm.tasks import bind_tasks

KEEP = 0.3
# For what is computed in another order, relative to the largest output.
TOLERANCE = 1e-4
# Keras' smallest images, from small to large: each builder takes the first that fits.
SIZES = (32, 71, 75, 96, 224)
# With two images whose last feature map is one pixel, these diverge (EfficientNetB6 without LC, too).
DEEP = "EfficientNetB6", "EfficientNetB7", "EfficientNetV2L", "EfficientNetV2M", "EfficientNetV2S"
# Weights, gradients, θ, t, the saved file and its copies in two processes, and graphs.
COPIES = 10

HEAD = """# Models that were tried

Written by `benchmarks/robustness/any_model.py`, whose docstring says what each model goes through.
"compressed" counts the weights that share the budget, which is 30 % of them; "kept" counts those that are
not zero at the end. The first models are from `benchmarks/robustness/kinds.py`, the next from KerasHub in
its smallest configurations; the others are all the builders of `keras.applications`, with random weights
and the smallest images that each takes, but for the five deepest. "shrunk" is what is left of the parameters
when half of the neurons of a KerasHub model that can go are dead and `shrink` has taken them out; these
models are also reported and exported.
"""


def builders():
    """Returns the functions of `keras.applications` that build a model, by name."""
    functions = inspect.getmembers(keras.applications, inspect.isfunction)
    return {name: f for name, f in functions if "weights" in inspect.signature(f).parameters}


def application(builder):
    """Returns a model of ten classes from a builder, with the smallest images that it takes, as a `Kind`.

    Args:
        builder: Function of `keras.applications`.

    Returns:
        `Kind`.
    """
    for size in SIZES[1:] if builder.__name__ in DEEP else SIZES:
        try:
            model = builder(weights=None, input_shape=(size, size, 3), classes=10)
            break
        except ValueError as error:
            if size == SIZES[-1]:
                raise error
    # With normalisation over two examples of one pixel, gradients have no bound.
    optimizer = keras.optimizers.SGD(1e-3, global_clipnorm=1.0)
    model.compile(optimizer, "sparse_categorical_crossentropy")
    random = np.random.default_rng(0)
    images = random.uniform(0, 255, (2, size, size, 3)).astype("float32")
    return Kind(model, images, random.integers(0, 10, 2))


def survives(kind, reloader, folder):
    """Compresses a model in two L steps, and checks everything that should hold afterwards.

    Args:
        kind: `Kind`.
        reloader: `Reloader`.
        folder: Path, a folder to write into.

    Returns:
        Dictionary of what was found.

    Raises:
        AssertionError: If something does not hold.
    """
    model = kind.model
    task = lc_keras.Task(lc_keras.L0Constraint(KEEP), weights=kind.compressed)
    (shared,) = bind_tasks([task], model)
    weights, described = list(model.weights), described_as(kind.shipped)
    fixed = [(v, v.numpy()) for v in model.non_trainable_weights if v.path.endswith("kernel")]
    start = values(shared.variables)

    compress = lc_keras.LearningCompression(task, mu=[0.01, 0.1], steps=2, epochs_per_step=1)
    thetas = []  # what the model shows at the end of each epoch
    note = keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: thetas.append(values(shared.variables)))
    model.fit(kind.x, kind.y, batch_size=2, epochs=2, callbacks=[compress, note], verbose=0)

    end = values(shared.variables)
    total, kept = sum(w.size for w in end), sum(int(np.count_nonzero(w)) for w in end)
    expect(kept == int(KEEP * total), f"{kept} of {total} weights kept")
    expect(all(map(np.array_equal, end, thetas[-1])), "w is not θ")
    expect(all(np.isfinite(w).all() for w in end), "weights are not finite")
    moved = any((w != v)[w != 0].any() for v, w in zip(start, end, strict=True))
    expect(moved, "nothing was trained")
    expect(all(np.array_equal(v.numpy(), value) for v, value in fixed), "a frozen weight moved")
    expect(list(map(id, weights)) == list(map(id, model.weights)), "the variables are others")
    expect(described == described_as(kind.shipped), "the config is another")
    left = left_over(model)
    expect(not left, f"left on the model: {left[:3]}")
    frozen = [variable.path for variable, _ in fixed]
    expect(bool(frozen) == bool(kind.left_out), f"frozen: {frozen}")
    if frozen:
        reported = [row.path for row in lc_keras.report(model).frozen]
        expect(reported == frozen, f"reported frozen: {reported}, frozen: {frozen}")
        expect(all(any(name in path for path in frozen) for name in kind.left_out), f"frozen: {frozen}")
    difference = reloader.difference(kind.shipped, kind.x if kind.served is None else kind.served, folder)
    expect(difference == 0, f"outputs differ by {difference}")
    return {"compressed": total, "kept": kept, "frozen": len(frozen)}


def serves(kind, reloader, folder):
    """Reports on and exports a model that `survives`, and takes out half of its neurons; checked alike."""
    model, x = kind.model, kind.x
    report = lc_keras.report(model)
    expect(report.density < 1, f"{report.density} of the kernels is left")
    expect(not math.isnan(report.macs_density or 0), "no fraction of the multiply-adds")
    largest = max(float(np.abs(y).max()) for y in outputs_of(model, x))
    difference = reloader.difference_served(model, x, folder)
    expect(difference <= TOLERANCE * largest, f"served outputs differ by {difference}")
    try:
        lc_keras.baselines.compress_directly(model, lc_keras.L0Constraint(0.5, lc_keras.Neurons()))
    except ValueError as error:
        expect("none can be removed" in str(error), str(error))
    before = outputs_of(model, x)
    largest = max(float(np.abs(y).max()) for y in before)
    small = lc_keras.shrink(model)
    difference = max(float(np.abs(y - z).max()) for y, z in zip(before, outputs_of(small, x), strict=True))
    expect(difference <= TOLERANCE * largest, f"outputs differ by {difference} after shrink")
    difference = reloader.difference(small, x, folder)
    expect(difference == 0, f"outputs of the smaller model differ by {difference}")
    return {"shrunk": small.count_params() / model.count_params()}


def outputs_of(model, x):
    """Returns the outputs of a model for all examples, in a list."""
    outputs = model(keras.tree.map_structure(keras.ops.convert_to_tensor, x), training=False)
    return list(map(keras.ops.convert_to_numpy, keras.tree.flatten(outputs)))


def values(variables):
    return [keras.ops.convert_to_numpy(v) for v in variables]


def expect(holds, otherwise):
    if not holds:
        raise AssertionError(otherwise)


def described_as(model):
    return keras.saving.serialize_keras_object(model)


def left_over(model):
    """Returns where something of lc_keras can be reached from a model.

    Args:
        model: `keras.Model`.

    Returns:
        List of strings, the paths to it.
    """
    found, seen, todo = [], {id(model)}, [("model", model)]
    while todo:
        way, item = todo.pop()
        # For an object, the module of its class; for a function or a class, its own.
        if "lc_keras" in (_package(item), _package(type(item))):
            found.append(way)
            continue
        for name, part in _parts(item):
            if id(part) not in seen:
                seen.add(id(part))
                todo.append((f"{way}.{name}", part))
    return found


def _package(item):
    module = getattr(item, "__module__", None)
    return module.split(".")[0] if isinstance(module, str) else None


def _parts(item):
    if isinstance(item, dict):
        return [(str(key), part) for key, part in item.items()]
    if isinstance(item, (list, tuple, set, frozenset)):
        return [(str(i), part) for i, part in enumerate(item)]
    if inspect.ismethod(item):
        return [("__self__", item.__self__), ("__func__", item.__func__)]
    if inspect.isfunction(item):
        return [("closure", cell.cell_contents) for cell in item.__closure__ or () if _filled(cell)]
    if inspect.ismodule(item) or inspect.isclass(item) or _package(type(item)) in ("tensorflow", "numpy"):
        return []
    return list(getattr(item, "__dict__", {}).items())


def _filled(cell):
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _available():
    """Returns the bytes of memory that are free, or infinity if that is not known."""
    try:
        text = Path("/proc/meminfo").read_text()
    except OSError:
        return float("inf")
    return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", text)[1])


def row_of(name, build, reloader):
    """Builds and compresses a model; whatever happens becomes a row."""
    row = {"model": name}
    try:
        kind = build()
        row["parameters"] = sum(math.prod(v.shape) for v in kind.model.weights)
        needed = 4 * COPIES * row["parameters"]
        if needed > _available():
            return {**row, "outcome": f"skipped: needs some {needed / 1e9:.0f} GB of memory"}
        with tempfile.TemporaryDirectory() as folder:
            row |= survives(kind, reloader, Path(folder))
            if kind.served_too:
                row |= serves(kind, reloader, Path(folder))
        row["outcome"] = "ok"
    except MemoryError:
        row["outcome"] = "skipped: out of memory"
    except Exception as error:
        row["outcome"] = f"failed: {type(error).__name__}: {str(error).splitlines()[0]}"
        row["traceback"] = traceback.format_exc()
    finally:
        keras.backend.clear_session()
        gc.collect()
    return row


def models():
    """Returns a dict from the name of each model to a function that builds it, as a `Kind`."""
    kinds = {kind.__name__.replace("_", " "): kind for kind in KINDS}
    with contextlib.suppress(ImportError):
        from benchmarks.robustness import hub

        kinds |= hub.kinds()
    return kinds | {name: functools.partial(application, builder) for name, builder in builders().items()}


def alone(name):
    """Returns the row of a model, from a process of its own: TensorFlow does not release memory."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_row_of, name).result()
        except BrokenProcessPool:
            return {"model": name, "outcome": "failed: its process died, perhaps for want of memory"}


def _row_of(name):
    with Reloader() as reloader:
        return row_of(name, models()[name], reloader)


def table(rows):
    """Returns the rows as a Markdown table."""
    lines = ["| model | parameters | compressed | kept | shrunk | outcome |", "|---|---|---|---|---|---|"]
    for row in rows:
        counts = (f"{row[key]:,}" if key in row else "" for key in ("parameters", "compressed", "kept"))
        shrunk = f"{100 * row['shrunk']:.0f} %" if "shrunk" in row else ""
        lines.append(f"| {row['model']} | {' | '.join(counts)} | {shrunk} | {row['outcome']} |")
    return "\n".join(lines)


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--only", default="", help="models whose name matches this regular expression")
    parser.add_argument("--tiny", action="store_true", help="a small model, to see that it runs")
    parser.add_argument("--output", type=Path, help="json file to write; rows of other models in it stay")
    parser.add_argument("--docs", type=Path, help="Markdown file to write")
    args = parser.parse_args()

    only = "^nested three deep$" if args.tiny else args.only
    found = {row["model"]: row for row in record.read(args.output)} if args.output else {}
    for name in models():
        if re.search(only, name):
            found[name] = alone(name)
            print(f"{name:<28}{found[name]['outcome']}", flush=True)
            record.write(args.output, [found[name] for name in models() if name in found])
    if args.docs:
        rows = [found.get(name, {"model": name, "outcome": "not run"}) for name in models()]
        args.docs.write_text(f"{HEAD}\n{table(rows)}\n")


if __name__ == "__main__":
    main()
