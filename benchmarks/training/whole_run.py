"""What a whole run of LC costs, in time and memory, beside plain training for the same epochs.

    python -m benchmarks.training.whole_run          # 15 minutes on two cores
    python -m benchmarks.training.whole_run --nets lenet300 --rounds 5
    python -m benchmarks.training.whole_run --tiny   # a quarter of a minute

Each run has its own process, so that its peak memory is its own. Plain training and LC take turns, and the
one that begins changes from round to round. The time is that of `fit`, including tracing; the time after the
first epoch excludes it.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import keras

import lc_keras
from benchmarks import record
from benchmarks.nets import NETS
from lc_keras.algorithm.steps import Steps

KEEP = 0.02


def _wide():
    layers = [
        keras.Input((784,), name="pixels"),
        keras.layers.Dense(4096, "relu"),
        keras.layers.Dense(4096, "relu"),
        keras.layers.Dense(10),
    ]
    return keras.Sequential(layers, name="wide")


def _few(validation):
    return tuple(tuple(array[:5120] for array in part) for part in NETS["lenet300"].parts(validation))


# Twenty million weights and few images: here it is the copies of the weights that take memory.
WIDE = replace(NETS["lenet300"], name="wide", build=_wide, parts=_few, epochs=4, rates={"sgd": 0.02})
CHOICES = {net.name: net for net in (NETS["lenet300"], NETS["lenet5"], NETS["digits"], WIDE)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nets", nargs="+", choices=CHOICES, default=["lenet300", "lenet5", "wide"])
    parser.add_argument("--epochs", type=int, help="of each run; by default the net's usual number")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="one round of two epochs of digits")
    parser.add_argument("--output", type=Path, default=Path("outputs/whole_run.json"))
    parser.add_argument("--child", choices=["plain", "LC"], help="one run in this process, figures on stdout")
    options = parser.parse_args()
    if options.tiny:
        options.nets, options.epochs, options.rounds = ["digits"], 2, 1
    if options.child:
        net = CHOICES[options.nets[0]]
        print(json.dumps(one_run(net, options.child == "LC", options.epochs)))
        return
    rows = []
    for name in options.nets:
        rows.append(measure(CHOICES[name], options.epochs or CHOICES[name].epochs, options.rounds))
        record.write(options.output, rows)
    print(table(rows))


def one_run(net, compressing, epochs):
    """Trains in this process; returns its time, its peak memory and the time of its C steps."""
    train, _ = net.parts(False)
    keras.utils.set_random_seed(0)
    model = net.build()
    c_steps, ends = [], []
    callbacks = [keras.callbacks.LambdaCallback(on_epoch_end=lambda *_: ends.append(time.perf_counter()))]
    if compressing:
        callbacks.append(lc_keras.LearningCompression(lc_keras.L0Constraint(KEEP)))
        Steps.c_step = _timed(Steps.c_step, c_steps)
    began = time.perf_counter()
    net.fit(model, train, epochs, "LC" if compressing else "plain", callbacks, optimizer="sgd", seed=0)
    ended = time.perf_counter()
    return {
        "seconds": ended - began,
        "later_seconds": ended - ends[0],
        "c_steps": len(c_steps),
        "c_step_seconds": sum(c_steps),
        # In kilobytes on Linux.
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
        "weights_mb": sum(row.dense_bits for row in lc_keras.report(model).rows) / 8e6,
    }


def _timed(c_step, seconds):
    def timed(*args):
        began = time.perf_counter()
        result = c_step(*args)
        result.finite.numpy()  # waits for it
        seconds.append(time.perf_counter() - began)
        return result

    return timed


def measure(net, epochs, rounds):
    """Returns medians over rounds in which the processes take turns."""
    pairs = []
    for i in range(rounds):
        order = ("plain", "LC") if i % 2 == 0 else ("LC", "plain")
        pairs.append({kind: _child(net.name, kind, epochs) for kind in order})

    def median(name, kind):
        return statistics.median(pair[kind][name] for pair in pairs)

    def ratio(name):
        return statistics.median(pair["LC"][name] / pair["plain"][name] for pair in pairs)

    memory = {kind: median("peak_mb", kind) for kind in ("plain", "LC")}
    return {
        "net": net.name,
        "epochs": epochs,
        "rounds": rounds,
        "plain_seconds": median("seconds", "plain"),
        "lc_seconds": median("seconds", "LC"),
        "ratio": ratio("seconds"),
        "later_ratio": ratio("later_seconds"),
        "c_steps": pairs[0]["LC"]["c_steps"],
        "c_step_fraction": statistics.median(
            pair["LC"]["c_step_seconds"] / pair["LC"]["seconds"] for pair in pairs
        ),
        "plain_peak_mb": memory["plain"],
        "lc_peak_mb": memory["LC"],
        "weights_mb": pairs[0]["LC"]["weights_mb"],
    }


def _child(name, kind, epochs):
    command = [sys.executable, "-m", __spec__.name, "--child", kind, "--nets", name, "--epochs", str(epochs)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ)
    print(done.stdout.splitlines()[-2], flush=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(rows):
    """A line for each net."""
    head = (
        f"{'':10}{'epochs':>7}{'plain, s':>10}{'LC, s':>9}{'ratio':>8}{'after the first epoch':>23}"
        f"{'C steps':>9}{'of the run':>12}{'peak, MB: plain':>17}{'LC':>7}{'weights':>9}"
    )
    return "\n".join([head, *map(_line, rows)])


def _line(row):
    return (
        f"{row['net']:10}{row['epochs']:>7}{row['plain_seconds']:>10.1f}{row['lc_seconds']:>9.1f}"
        f"{row['ratio']:>8.3f}{row['later_ratio']:>23.3f}{row['c_steps']:>9}"
        f"{100 * row['c_step_fraction']:>10.2f} %"
        f"{row['plain_peak_mb']:>17.0f}{row['lc_peak_mb']:>7.0f}{row['weights_mb']:>9.1f}"
    )


if __name__ == "__main__":
    main()
