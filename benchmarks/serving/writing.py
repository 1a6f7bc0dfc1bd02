"""What it takes to export a large pruned net, and to report on it, compared with writing the dense file.

    python -m benchmarks.serving.writing          # four minutes on two cores, 2 GB of memory
    python -m benchmarks.serving.writing --tiny   # a quarter of a minute

Each contender has its own process, so that its peak memory is its own; they take turns. The memory is what
was needed beyond the model, on Linux.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras

import lc_keras
from benchmarks import record
from benchmarks.memory import forget_peak, resident
from lc_keras.baselines import compress_directly

KEEP = 0.05
CONTENDERS = {
    "Keras's export": lambda model, path: model.export(path, verbose=False),
    "export, dense": lambda model, path: lc_keras.export_saved_model(model, path, storage="dense"),
    "export, packed": lambda model, path: lc_keras.export_saved_model(model, path),
    "report": lambda model, path: lc_keras.report(model),
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--width", type=int, default=5000, help="of each of four dense layers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="one round of layers of 100 units")
    parser.add_argument("--output", type=Path, help="a json file for the figures")
    parser.add_argument("--child", choices=CONTENDERS, help="one run in this process, figures on stdout")
    options = parser.parse_args()
    if options.tiny:
        options.width, options.rounds = 100, 1
    if options.child:
        print(json.dumps(one_run(options.child, options.width)))
        return
    rows = measure(options.width, options.rounds)
    print(table(rows))
    record.write(options.output, rows)


def one_run(name, width):
    """Returns a contender's seconds in this process, and its peak memory beyond the model's, in MB."""
    layers = [keras.layers.Dense(width) for _ in range(4)]
    model = keras.Sequential([keras.Input((width,)), *layers])
    compress_directly(model, lc_keras.L0Constraint(KEEP))
    with tempfile.TemporaryDirectory() as folder:
        before = forget_peak()
        began = time.perf_counter()
        CONTENDERS[name](model, f"{folder}/1")
        seconds = time.perf_counter() - began
        grown = resident("VmHWM") - before
        written = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    weights = sum(variable.value.numpy().nbytes for variable in model.variables)
    sizes = {"mb": grown, "written_mb": written, "model_mb": weights}
    return {"seconds": seconds} | {name: size / 1e6 for name, size in sizes.items()}


def measure(width, rounds):
    """Returns medians over rounds in which the processes take turns."""
    found = {name: [] for name in CONTENDERS}
    for i in range(rounds):
        for name in list(CONTENDERS)[:: -1 if i % 2 else 1]:
            found[name].append(_child(name, width))

    def median(name, figure):
        return statistics.median(run[figure] for run in found[name])

    first = found["Keras's export"]
    return [
        {
            "contender": name,
            "rounds": rounds,
            "ratio": statistics.median(
                run["seconds"] / base["seconds"] for run, base in zip(found[name], first, strict=True)
            ),
            **{figure: median(name, figure) for figure in ("seconds", "mb", "written_mb", "model_mb")},
        }
        for name in CONTENDERS
    ]


def _child(name, width):
    command = [sys.executable, "-m", __spec__.name, "--child", name, "--width", str(width)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows):
    """A line for each contender."""
    return "\n".join(
        f"{row['contender']:15} {row['seconds']:6.2f} s  {row['ratio']:5.2f} x  {row['written_mb']:6.1f} MB "
        f"written  {row['mb']:5.0f} MB of memory beyond the {row['model_mb']:.0f} MB of the model"
        for row in rows
    )


if __name__ == "__main__":
    main()
