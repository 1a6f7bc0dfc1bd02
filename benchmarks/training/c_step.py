"""How long a C step takes, compared with what it could be built on instead.

    python -m benchmarks.training.c_step          # 266,200, 5 M and 25 M weights: some minutes
    python -m benchmarks.training.c_step --sizes 1000000 --repeats 5 --output c_step.json
    python -m benchmarks.training.c_step --tiny   # seconds

All contenders take turns in one process, so that whatever else the machine does affects them alike. The
memory of a threshold is the rise of the peak resident size in a process of its own.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from benchmarks import record
from benchmarks.memory import forget_peak, resident
from lc_keras.algorithm.beside import Reach
from lc_keras.algorithm.lagrangian import Lagrangian
from lc_keras.algorithm.reaching import ReachingLagrangian
from lc_keras.algorithm.tasks import Task, bind_tasks
from lc_keras.costs import L0Constraint, thresholds

DENSITY = 0.05


def uneven(size: int, number: int) -> list[int]:
    """Returns sizes of tensors that add up to `size`, the largest some fifty times the smallest."""
    shares = np.arange(1, number + 1)
    sizes = (size * shares // shares.sum()).tolist()
    sizes[-1] += size - sum(sizes)
    return sizes


def weights_of(size: int, number: int) -> list[tf.Tensor]:
    rng = np.random.default_rng(0)
    return [tf.constant(rng.standard_normal(n, np.float32) * np.float32(0.05)) for n in uneven(size, number)]


def sorted_l1_threshold(x: np.ndarray, radius: float) -> float:
    descending = np.sort(np.abs(x))[::-1]
    sums = np.cumsum(descending, dtype=np.float64)
    last = np.flatnonzero(descending > (sums - radius) / np.arange(1, len(x) + 1))[-1]
    return (sums[last] - radius) / (last + 1)


class Holder(keras.Model):
    """Has weights and does nothing with them."""

    def __init__(self, tensors):
        super().__init__()
        for i, tensor in enumerate(tensors):
            weight = self.add_weight(shape=(1, *tensor.shape), initializer="zeros", name=f"kernel_{i}")
            weight.assign(tensor[None])

    def call(self, x):
        return x


def whole_steps(tensors, compression) -> dict:
    """Returns the C step of `fit`, with θ, multipliers and targets, both by default and with μ given."""
    model = Holder(tensors)
    model.build((None, 1))
    task, reach = Task(compression, weights=model.weights), Reach(0.1, ratio=0.9, slack=0.2, frees=True)
    beside, through = (kind(bind_tasks([task], model)) for kind in (ReachingLagrangian, Lagrangian))
    beside.direct_compression(1.0, reach)
    through.direct_compression(1.0)
    return {
        "C step in fit": lambda: bool(np.all(beside.c_step(1.0, 1.1, reach).finite)),
        "C step in fit, μ given": lambda: float(through.c_step(1.0, 1.1).gap),
        "θ shown, end of an epoch": lambda: float(beside.project().gap),
    }


def contenders(tensors: list[tf.Tensor]) -> dict:
    """Returns callables by name; those of NumPy and `top_k` get the concatenated weights for free."""
    size = sum(int(tf.size(t)) for t in tensors)
    kappa = int(DENSITY * size)
    array = np.concatenate([t.numpy() for t in tensors])
    whole, other = tf.constant(array), array.copy()
    radius = float(np.sum(np.abs(array), dtype=np.float64)) * DENSITY
    compression = L0Constraint(kappa)
    kth = tf.function(lambda t: thresholds.kth_largest(t, kappa).value, autograph=False)
    l1 = tf.function(lambda t: thresholds.l1_ball_threshold(t, radius), autograph=False)
    top = tf.function(lambda t: tf.math.top_k(tf.abs(t), kappa, sorted=True)[0][-1], autograph=False)
    return {
        "kth_largest": lambda: float(kth(tensors)),
        "L0Constraint.c_step": lambda: float(tf.reshape(compression.c_step(tensors, 1.0)[-1], [-1])[0]),
        "l1_ball_threshold": lambda: float(l1(tensors)),
        "tf.math.top_k": lambda: float(top(whole)),
        "np.partition": lambda: float(np.partition(np.abs(array), size - kappa)[size - kappa]),
        "np.sort, ℓ1 threshold": lambda: float(sorted_l1_threshold(array, radius)),
        "copy": lambda: np.copyto(other, array),
    } | whole_steps(tensors, compression)


def times(tensors: list[tf.Tensor], repeats: int, progress) -> dict[str, list[float]]:
    functions = contenders(tensors)
    results = {name: function() for name, function in functions.items()}
    assert results["kth_largest"] == results["tf.math.top_k"] == results["np.partition"]
    assert np.isclose(results["l1_ball_threshold"], results["np.sort, ℓ1 threshold"], rtol=1e-5)
    taken = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            taken[name].append(1e3 * (time.perf_counter() - start))
        progress.add(1)
    return taken


def rise(size: int, number: int) -> float:
    """Returns the extra memory of `kth_largest` at its peak, in copies of the weights. Linux only."""
    kth = tf.function(lambda t, k: thresholds.kth_largest(t, k).value, autograph=False)
    kappa = tf.constant(int(DENSITY * size))
    kth(weights_of(5000, number), tf.constant(250))
    tensors = weights_of(size, number)
    before = forget_peak()
    kth(tensors, kappa).numpy()
    return (resident("VmHWM") - before) / (4 * size)


def measured_rise(size: int, number: int) -> float | None:
    command = [sys.executable, "-m", __spec__.name, "--rise", str(size), str(number)]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def table(rows):
    """A block for each number of weights and tensors."""
    lines = [f"median (fastest) ms; {DENSITY:.0%} of the weights kept"]
    for row in rows:
        medians, memory = row["median_ms"], row["extra_memory"]
        lines.append(f"\n{row['weights']:,} weights in {row['tensors']} tensor(s)")
        for name, median in medians.items():
            copies, sorts = median / medians["copy"], median / medians["np.partition"]
            lines.append(
                f"  {name:<26}{median:10.2f} ({row['fastest_ms'][name]:.2f})   {copies:6.1f} copies   "
                f"{sorts:6.2f} x np.partition"
            )
        if memory is not None:
            lines.append(f"  peak extra memory of kth_largest: {memory:.2f} of one copy of the weights")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[266_200, 5_000_000, 25_000_000])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tiny", action="store_true", help="one pass over a few thousand weights")
    parser.add_argument("--output", type=Path, help="a json file for the figures")
    parser.add_argument("--rise", type=int, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rise:
        print(rise(*options.rise))
        return
    if options.tiny:
        options.sizes, options.repeats = [5_000], 1

    cases = [(size, number) for size in options.sizes for number in (1, 50)]
    progress = keras.utils.Progbar(len(cases) * options.repeats, unit_name="round")
    rows = []
    for size, number in cases:
        taken = times(weights_of(size, number), options.repeats, progress)
        medians = {name: statistics.median(values) for name, values in taken.items()}
        fastest = {name: min(values) for name, values in taken.items()}
        rows.append({"weights": size, "tensors": number, "median_ms": medians, "fastest_ms": fastest})
        rows[-1]["extra_memory"] = None if options.tiny else measured_rise(size, number)

    print(f"\n{table(rows)}")
    record.write(options.output, rows)


if __name__ == "__main__":
    main()
