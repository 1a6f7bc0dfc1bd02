"""What sparse weights do to a LiteRT file and its latency, compared with the same file without them.

    python -m benchmarks.serving.on_device [--rounds 200] [--output litert.json]

The two files take turns; the ratios are medians over rounds.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import keras
import numpy as np
from ai_edge_litert.interpreter import Interpreter

import lc_keras
from benchmarks import record


def lenet300():
    layers = [keras.layers.Dense(n, "relu") for n in (300, 100)]
    return keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(10)])


def pointwise():
    layers = [keras.layers.Conv2D(32, 3, strides=2, activation="relu")]
    for filters in (128, 256, 256):
        layers += [
            keras.layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            keras.layers.Conv2D(filters, 1, activation="relu"),
        ]
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((56, 56, 3)), *layers, *head])


NETS = {"LeNet-300": lenet300, "pointwise": pointwise}


def prune(model, keep):
    """Zeros the smallest weights of each dense layer and 1 × 1 convolution."""
    for kernel in lc_keras.Task(lc_keras.L0Constraint(keep), r"(dense|conv2d)[^/]*/kernel").select(model):
        if "depthwise" not in kernel.path and kernel.shape[0] != 3:
            kernel.assign(lc_keras.L0Constraint(keep).c_step([kernel.value], 1.0)[0])


def prepared(path, x):
    interpreter = Interpreter(model_path=str(path), num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    for _ in range(10):
        interpreter.invoke()
    return interpreter


def milliseconds(interpreter):
    start = time.perf_counter()
    interpreter.invoke()
    return 1e3 * (time.perf_counter() - start)


def measure(name, keep, quantize, rounds):
    keras.utils.set_random_seed(0)
    model = NETS[name]()
    prune(model, keep)
    x = np.random.default_rng(0).normal(size=(1, *model.input_shape[1:])).astype("float32")
    with tempfile.TemporaryDirectory() as folder:
        exported, interpreters = {}, {}
        for sparse in (False, "auto"):
            path = Path(folder) / f"{sparse}.tflite"
            exported[sparse] = lc_keras.export_litert(
                model, path, sparse=sparse, quantize=quantize, representative_data=[x]
            )
            interpreters[sparse] = prepared(path, x)
        times = [
            (milliseconds(interpreters[False]), milliseconds(interpreters["auto"])) for _ in range(rounds)
        ]
    dense, auto = exported[False], exported["auto"]
    return {
        "net": name,
        "keep": keep,
        "quantize": quantize,
        "sparse": auto.sparse,
        "smaller": dense.nbytes / auto.nbytes,
        "kB": auto.nbytes / 1000,
        "dense_ms": statistics.median(d for d, _ in times),
        "faster": statistics.median(d / s for d, s in times),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--output", type=Path, help="a json file for the figures")
    parser.add_argument("--tiny", action="store_true", help="one round of one net at 5 % kept")
    arguments = parser.parse_args()
    nets, types, densities = list(NETS), [None, "float16", "int8"], [0.2, 0.1, 0.05, 0.02, 0.01]
    if arguments.tiny:
        nets, types, densities, arguments.rounds = nets[:1], types[:1], [0.05], 1
    rows = []
    for name in nets:
        for quantize in types:
            for keep in densities:
                row = measure(name, keep, quantize, arguments.rounds)
                rows.append(row)
                print(
                    f"{name:9} {quantize or 'float32':7} {100 * keep:4.0f} % kept  "
                    f"{'sparse' if row['sparse'] else 'dense '}  {row['kB']:7.1f} kB  "
                    f"{row['smaller']:5.1f} x smaller  {row['faster']:5.2f} x as fast",
                    flush=True,
                )
    record.write(arguments.output, rows)


if __name__ == "__main__":
    main()
