"""What an L step and a C step cost compared with plain `fit`, side by side in one run.

python -m benchmarks.training.l_step          # six minutes on two cores
python -m benchmarks.training.l_step --tiny   # seconds
"""

import argparse
import contextlib
import statistics
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import lc_keras
from benchmarks import record
from benchmarks.nets import NETS
from lc_keras.algorithm.beside import Reach
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.reaching import ReachingLagrangian
from lc_keras.algorithm.tasks import as_tasks, bind_tasks

# The first pulls through the loss, the second beside the optimizer.
KINDS = Lagrangian, ReachingLagrangian


def compiled(build, jit_compile, steps_per_execution):
    model = build()
    model.compile(
        keras.optimizers.SGD(0.01, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
        steps_per_execution=steps_per_execution,
    )
    return model


def seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def measure(build, batches, batch_size, rounds, jit_compile, l_step_batches):
    """Returns medians over rounds in which plain epochs take turns with epochs of each kind of pull."""
    plain, *pulled = (compiled(build, jit_compile, batches) for _ in range(3))
    tasks = as_tasks(lc_keras.L0Constraint(0.05))
    loss, beside = (kind(bind_tasks(tasks, m)) for kind, m in zip(KINDS, pulled, strict=True))
    # As in the middle of a run: half of what is removed is pulled, and what stays is free.
    reach = Reach(0.01, ratio=0.9, slack=0.5, frees=True)
    generator = np.random.default_rng(0)
    x = generator.normal(size=(batch_size, *plain.input_shape[1:])).astype("float32")
    y = generator.integers(0, 10, batch_size)
    # One batch over and over, so that only the training step is timed.
    data = tf.data.Dataset.from_tensors((x, y)).repeat(batches)

    def epoch(model, pulling=contextlib.nullcontext):
        with pulling():
            model.fit(data, verbose=0)

    def c_step(lagrangian):
        # Waits for the result.
        np.all(lagrangian.c_step(1e-3, 1.1e-3, reach).finite)

    timed = [
        lambda: epoch(plain),
        lambda: epoch(pulled[0], loss.pulling),
        lambda: epoch(pulled[1], beside.pulling),
        lambda: c_step(loss),
        lambda: c_step(beside),
    ]
    for lagrangian in (loss, beside):
        lagrangian.direct_compression(1e-3, reach)
    for warm_up in timed:
        warm_up()
    times = []
    progress = keras.utils.Progbar(rounds, unit_name="round")
    for i in range(rounds):
        # The order alternates, so that none gains from being first.
        turns = [seconds(run) for run in timed[:: 1 if i % 2 else -1]]
        times.append(turns if i % 2 else turns[::-1])
        progress.update(i + 1)
    plain_time, *l_steps, c_step_time, c_step_beside = map(statistics.median, zip(*times, strict=True))
    ratios = [statistics.median(row[i] / row[0] for row in times) for i in (1, 2)]
    return {
        "xla": jit_compile,
        "batch_size": batch_size,
        "plain_ms_per_batch": 1e3 * plain_time / batches,
        "l_step_ms_per_batch": 1e3 * l_steps[0] / batches,
        "l_step_ratio": ratios[0],
        "beside_ms_per_batch": 1e3 * l_steps[1] / batches,
        "beside_ratio": ratios[1],
        "c_step_ms": 1e3 * c_step_time,
        "c_step_beside_ms": 1e3 * c_step_beside,
        "l_step_batches": l_step_batches,
        "c_step_fraction": c_step_time / (l_steps[0] / batches * l_step_batches),
    }


def table(rows):
    """A line for each net, with XLA and without."""
    return "\n".join(
        f"{row['net']:9} {'XLA' if row['xla'] else '':3}  plain {row['plain_ms_per_batch']:7.2f} ms a batch  "
        f" L step {row['l_step_ratio']:.3f} x   beside the optimizer {row['beside_ratio']:.3f} x  "
        f" C step {row['c_step_ms']:6.2f} ms ({row['c_step_beside_ms']:6.2f} ms beside), "
        f"{100 * row['c_step_fraction']:.2f} % of an L step of {row['l_step_batches']} batches"
        for row in rows
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batches", type=int, default=50, help="batches in an epoch and in an execution")
    parser.add_argument("--tiny", action="store_true", help="one round of two batches, LeNet-300 without XLA")
    parser.add_argument("--output", type=Path, help="a json file for the figures")
    arguments = parser.parse_args()
    nets = [("LeNet-300", NETS["lenet300"].build, 256, 58), ("LeNet-5", NETS["lenet5"].build, 256, 15)]
    compiling = [False, True]
    if arguments.tiny:
        arguments.rounds, arguments.batches, nets, compiling = 1, 2, nets[:1], [False]
    rows = []
    for name, build, batch_size, l_step_batches in nets:
        for jit_compile in compiling:
            row = measure(build, arguments.batches, batch_size, arguments.rounds, jit_compile, l_step_batches)
            rows.append({"net": name, **row})
            print(f"\n{table(rows[-1:])}\n")
    record.write(arguments.output, rows)


if __name__ == "__main__":
    main()
