"""Kills a training run at random moments, starts it again until it ends, and compares the weights.

python -m benchmarks.robustness.kill          # 100 kills
python -m benchmarks.robustness.kill --tiny   # three
"""

import argparse
import collections
import itertools
import json
import multiprocessing
import os
import random
import signal
import tempfile
import threading
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import lc_keras
from benchmarks import record
from lc_keras.algorithm.steps import Steps
from lc_keras.fit.checkpoints import Checkpoints

PHASES = ["L step", "C step", "checkpoint"]
# How many of each may begin before the kill: an epoch or two.
MOST = {"L step": 16, "C step": 8, "checkpoint": 2}
EPOCHS, SAMPLES, BATCH = 10, 256, 32


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, help="at least this many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="three kills")
    parser.add_argument("--output", type=Path, default=None)
    options = parser.parse_args()
    kills = 3 if options.tiny else options.kills

    # A server that has imported everything and run nothing forks each process.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["keras", "tensorflow", "lc_keras"])
    generator = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        expected, _ = until_done(processes, folder / "whole", iter([]))
        durations = json.loads((folder / "whole" / "durations.json").read_text())
        plans = (plan(phase, generator, durations) for phase in itertools.cycle(PHASES))
        rows, count = [], collections.Counter()
        # A kill may come late, when its phase is over: more follow until each phase has been hit.
        while count.total() < kills or len(count) < len(PHASES):
            planned = itertools.islice(plans, max(kills - count.total(), len(PHASES)))
            weights, killed = until_done(processes, folder / f"run_{len(rows)}", planned)
            count.update(killed)
            same = weights == expected
            rows.append({"killed_in": killed, "same": same})
            outcome = "the same" if same else "DIFFERENT"
            print(f"run {len(rows)}: killed in {', '.join(killed) or 'nothing'}; weights {outcome}")
    record.write(options.output, rows)
    print(f"{count.total()} kills: " + ", ".join(f"{count[phase]} in {phase}" for phase in PHASES))
    same = sum(row["same"] for row in rows)
    print(f"{same} of {len(rows)} runs ended with the weights of the whole one, bit for bit")


def until_done(processes, folder, plans):
    """Starts a training run again and again until it is not killed."""
    folder.mkdir()
    killed, phase = [], processes.Value("i", 0)
    while True:
        process = processes.Process(target=train, args=(folder, next(plans, None), phase))
        process.start()
        process.join()
        if process.exitcode == 0:
            return (folder / "weights").read_bytes(), killed
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"The training failed, with exit code {process.exitcode}.")
        killed.append(PHASES[phase.value])


class Moments(keras.callbacks.Callback):
    """Knows the phase of a training run, and kills the run in the planned phase.

    Args:
        planned: Tuple of a phase, how many times it is to begin, and how many seconds
            after that to kill; or `None`.
        phase: Shared int, the index of the phase.
    """

    def __init__(self, planned, phase):
        super().__init__()
        self._planned, self._phase = planned, phase
        self._begun = collections.Counter()
        self.durations = collections.defaultdict(list)
        Steps.c_step = self._within("C step", Steps.c_step)
        Checkpoints.save = self._within("checkpoint", Checkpoints.save)

    def on_train_batch_begin(self, batch, logs=None):
        self._begin("L step")

    def _begin(self, name):
        self._phase.value = PHASES.index(name)
        self._begun[name] += 1
        if self._planned and (name, self._begun[name]) == self._planned[:2]:
            threading.Timer(self._planned[2], os.kill, (os.getpid(), signal.SIGKILL)).start()

    def _within(self, name, method):
        def run(*arguments):
            self._begin(name)
            start = time.perf_counter()
            result = method(*arguments)
            self.durations[name].append(time.perf_counter() - start)
            self._phase.value = 0
            return result

        return run


def train(folder, planned, phase):
    """A whole program: builds the net, trains it, and writes its weights when it is done."""
    keras.utils.set_random_seed(0)
    tf.config.experimental.enable_op_determinism()
    model = keras.Sequential(
        [
            keras.Input((20,)),
            keras.layers.Dense(300, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.2),
            keras.layers.Dense(300, "relu"),
            keras.layers.Dense(5),
        ]
    )
    rate = keras.optimizers.schedules.CosineDecay(1e-3, EPOCHS * SAMPLES // BATCH)
    model.compile(keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x = np.random.default_rng(0).normal(size=(SAMPLES, 20)).astype("float32")
    y = x[:, :5].argmax(axis=1)
    epoch = tf.Variable(0)

    def shuffled(_):
        order = tf.random.experimental.stateless_shuffle(tf.range(SAMPLES), seed=[0, epoch])
        return tf.data.Dataset.from_tensor_slices((tf.gather(x, order), tf.gather(y, order)))

    batches = tf.data.Dataset.range(1).flat_map(shuffled).batch(BATCH)
    batches = batches.apply(tf.data.experimental.assert_cardinality(SAMPLES // BATCH))
    moments = Moments(planned, phase)
    count = keras.callbacks.LambdaCallback(on_epoch_begin=lambda number, logs: epoch.assign(number))
    compress = lc_keras.LearningCompression(lc_keras.L0Constraint(0.1), checkpoint_dir=folder / "checkpoints")
    model.fit(batches, epochs=EPOCHS, verbose=0, shuffle=False, callbacks=[count, moments, compress])
    medians = {name: sorted(seconds)[len(seconds) // 2] for name, seconds in moments.durations.items()}
    (folder / "durations.json").write_text(json.dumps(medians))
    variables = model.variables + model.optimizer.variables
    (folder / "weights").write_bytes(b"".join(variable.numpy().tobytes() for variable in variables))


def plan(phase, generator, durations):
    """Returns when to kill: somewhere in the given phase."""
    seconds = durations.get(phase, 0.003)
    return phase, generator.randint(1, MOST[phase]), generator.uniform(0, seconds)


if __name__ == "__main__":
    main()
