"""How large a SavedModel of a pruned net is and how fast it answers, compared with the dense one.

    python -m benchmarks.serving.saved_model [--net mlp|pointwise|lenet300] [--keep 0.02] [--rounds 30]
    python -m benchmarks.serving.saved_model --calibrate   # fits the rule of compute="auto"

All variants take turns in each round; the ratios are medians over rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import lc_keras
from benchmarks import record
from lc_keras.export.sparse import multiply
from lc_keras.export.stored import StoredSparse
from lc_keras.measuring.packing import pack

VARIANTS = {
    "dense": {"storage": "dense", "compute": "dense"},
    "packed": {"compute": "dense"},
    "sparse": {"compute": "sparse"},
    "auto": {"compute": "auto", "expected_batch": (1, 8, 32, 128)},
}
SHAPES = [(256, 256), (784, 300), (512, 512), (1024, 1024), (2048, 512), (512, 2048)]
SHAPES += [(4096, 1024), (4096, 4096)]


def mlp():
    layers = [keras.layers.Dense(n, "relu") for n in (4096, 4096)]
    return keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10)])


def pointwise():
    layers = [keras.layers.Conv2D(n, 1, activation="relu") for n in (256, 512, 512)]
    return keras.Sequential([keras.Input((14, 14, 256)), *layers, keras.layers.GlobalAveragePooling2D()])


def lenet300():
    layers = [keras.layers.Dense(n, "tanh") for n in (300, 100)]
    return keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10)])


NETS = {"mlp": mlp, "pointwise": pointwise, "lenet300": lenet300}


def prune(model, keep):
    kernels = lc_keras.Task(lc_keras.L0Constraint(keep)).select(model)
    for kernel, theta in zip(
        kernels, lc_keras.L0Constraint(keep).c_step([k.value for k in kernels], 1.0), strict=True
    ):
        kernel.assign(theta)


def seconds(function, x):
    start = time.perf_counter()
    for output in tf.nest.flatten(function(x)):
        output.numpy()
    return time.perf_counter() - start


def compare(functions, x, rounds):
    """Returns the seconds of each function by round; the order rotates from round to round."""
    names = list(functions)
    for _ in range(3):
        for name in names:
            seconds(functions[name], x)
    times = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            times[name].append(seconds(functions[name], x))
    return times


def measure(net, keep, batches, rounds):
    model = NETS[net]()
    prune(model, keep)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        exported, loaded = {}, {}
        for name, options in VARIANTS.items():
            exported[name] = lc_keras.export_saved_model(model, Path(folder) / name, **options)
            loaded[name] = tf.saved_model.load(str(Path(folder) / name))
        for name, export in exported.items():
            sparse = sum(weight.compute == "sparse" for weight in export.weights)
            smaller = exported["dense"].nbytes / export.nbytes
            print(f"{name:7} {export.nbytes / 1e6:7.2f} MB  {smaller:5.1f} x smaller  {sparse} layers sparse")
        for batch in batches:
            x = tf.constant(np.random.default_rng(0).normal(size=(batch, *model.input_shape[1:])), "float32")
            times = compare({name: model.serve for name, model in loaded.items()}, x, rounds)
            for name in times:
                ratio = statistics.median(d / t for d, t in zip(times["dense"], times[name], strict=True))
                median = 1e3 * statistics.median(times[name])
                row = {"net": net, "keep": keep, "batch": batch, "variant": name}
                row["bytes"] = exported[name].nbytes
                rows.append({**row, "ms": median, "ratio": ratio})
                print(f"batch {batch:4}  {name:7} {median:8.2f} ms  {ratio:5.2f} x as fast as dense")
    return rows


def calibrate(rounds):
    """Fits the time of a matrix to its weights, its kept weights, and the rows; prints the coefficients."""
    from scipy.optimize import nnls

    samples = {"dense": [], "by entry": [], "by row": []}
    for inputs, outputs in SHAPES:
        for density in (0.01, 0.02, 0.05, 0.1, 0.15):
            random = np.random.default_rng(0)
            kernel = random.normal(size=(inputs, outputs)) * (random.random((inputs, outputs)) < density)
            kernel = kernel.astype("float32")
            weight = StoredSparse(pack(np.ascontiguousarray(kernel.T), dense=False), "float32")
            weight.load()
            variable, signature = tf.Variable(kernel), [tf.TensorSpec([None, inputs])]
            functions = {
                "dense": tf.function(lambda x, v=variable: tf.matmul(x, v), signature, autograph=False),
                "sparse": tf.function(lambda x, w=weight: multiply(x, w), signature, autograph=False),
            }
            for rows in (1, 4, 16, 17, 32, 128, 512):
                x = tf.constant(random.normal(size=(rows, inputs)), "float32")
                times = compare(functions, x, rounds)
                dense, sparse = (1e9 * statistics.median(times[name]) for name in ("dense", "sparse"))
                kept, ends = np.count_nonzero(kernel), (inputs + outputs) * rows
                samples["dense"].append((dense, 1, kernel.size, kernel.size * rows))
                name = "by entry" if rows <= 16 else "by row"
                samples[name].append((sparse, 1, kept, kept * rows, ends))
        print(f"{inputs} x {outputs} measured", flush=True)
    for name, measured in samples.items():
        nanoseconds, terms = np.array(measured)[:, :1], np.array(measured)[:, 1:]
        # Relative errors count the same, whatever the size of the matrix.
        coefficients, _ = nnls(terms / nanoseconds, np.ones(len(measured)))
        print(
            name, "ns =", " + ".join(f"{c:.3g} {t}" for c, t in zip(coefficients, TERMS[name], strict=True))
        )


TERMS = {
    "dense": ("", "weights", "weights rows"),
    "by entry": ("", "kept", "kept rows", "(inputs + outputs) rows"),
    "by row": ("", "kept", "kept rows", "(inputs + outputs) rows"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="mlp")
    parser.add_argument("--keep", type=float, default=0.02)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calibrate", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="two rounds of LeNet-300 and one batch")
    parser.add_argument("--output", type=Path, help="a json file for the figures")
    arguments = parser.parse_args()
    if arguments.calibrate:
        calibrate(arguments.rounds)
        return
    if arguments.tiny:
        arguments.net, arguments.batches, arguments.rounds = "lenet300", [1], 2
    rows = measure(arguments.net, arguments.keep, arguments.batches, arguments.rounds)
    record.write(arguments.output, rows)


if __name__ == "__main__":
    main()
