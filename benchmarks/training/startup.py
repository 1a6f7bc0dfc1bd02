"""The time that LC adds before anything is trained: to `import keras`, and to a `fit` of two batches.

python -m benchmarks.training.startup          # a quarter of an hour on two cores
python -m benchmarks.training.startup --tiny   # half a minute

With two batches, each an epoch, nearly all of the time is spent on tracing. Contenders take turns, each with
a new model.
"""

import argparse
import functools
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np

import lc_keras
from benchmarks import record
from benchmarks.nets import NETS


def _resnet50():
    return keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=10)


BUILDS = {"LeNet-300": NETS["lenet300"].build, "ResNet50": _resnet50}
CONTENDERS = {
    "plain": list,
    "LC": lambda: [lc_keras.LearningCompression(lc_keras.L0Constraint(0.5))],
    "LC, neurons": lambda: [lc_keras.LearningCompression(lc_keras.L0Constraint(0.5, lc_keras.Neurons()))],
}
# Prints the seconds that the two imports take.
IMPORTS = """
import time
times = [time.perf_counter()]
import keras
times.append(time.perf_counter())
import lc_keras
times.append(time.perf_counter())
print(times[1] - times[0], times[2] - times[0])
"""


def fit(build, callbacks):
    """Returns the seconds that a `fit` of a new model takes."""
    keras.backend.clear_session()
    model = build()
    loss = keras.losses.SparseCategoricalCrossentropy()
    model.compile(keras.optimizers.Adam(1e-4), loss, metrics=["accuracy"])
    x, y = np.zeros((2, *model.input_shape[1:]), "float32"), np.zeros(2, int)
    began = time.perf_counter()
    model.fit(x, y, epochs=2, callbacks=callbacks, verbose=0)
    return time.perf_counter() - began


def imports():
    """Returns the seconds to import Keras, and both, in a process of its own, from compiled files."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": ""},
    )
    return dict(zip(("keras", "and lc_keras"), map(float, done.stdout.split()), strict=True))


def fits(build, contenders):
    """Returns the seconds of the contenders, in their order."""
    return {name: fit(build, CONTENDERS[name]()) for name in contenders}


def compare(what, measure, names, rounds):
    """Returns a row for each name: medians, and how much more they are than for the first.

    Args:
        what: String.
        measure: Called with the names, in either order; returns seconds by name.
        names: List of strings.
        rounds: Int, not counting a first one that warms up.
    """
    measure(names)
    # The order alternates, so that none gains from being first.
    times = [measure(names[:: -1 if i % 2 else 1]) for i in range(rounds)]
    return [
        {
            "what": what,
            "contender": name,
            "rounds": rounds,
            "seconds": statistics.median(row[name] for row in times),
            "more": statistics.median(row[name] - row[names[0]] for row in times),
            "ratio": statistics.median(row[name] / row[names[0]] for row in times),
        }
        for name in names
    ]


def table(rows):
    """A line for each contender."""
    return "\n".join(
        f"{row['what']:10} {row['contender']:12}  {row['seconds']:7.2f} s  {row['more']:+7.2f} s  "
        f"{row['ratio']:6.2f} x"
        for row in rows
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="one round of LeNet-300")
    parser.add_argument("--output", type=Path, help="a json file for the figures")
    options = parser.parse_args()
    if options.tiny:
        options.rounds = 1
    rows = []
    for name, build in list(BUILDS.items())[: 1 if options.tiny else None]:
        rows += compare(name, functools.partial(fits, build), list(CONTENDERS), options.rounds)
    rows += compare("import", lambda names: imports(), ["keras", "and lc_keras"], 3 * options.rounds)
    print(table(rows))
    record.write(options.output, rows)


if __name__ == "__main__":
    main()
