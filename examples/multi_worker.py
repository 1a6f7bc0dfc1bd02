"""Prunes a net on several workers at once; they may be killed and started again.

    python -m examples.multi_worker                            # two workers, both on this machine
    TF_CONFIG='{"cluster": {"worker": ["a:2222", "b:2222"]}, "task": {"type": "worker", "index": 0}}' \
        python -m examples.multi_worker --output /shared/run   # on machine a; on b with index 1

Without TF_CONFIG, the program watches over the workers it starts. If one of them dies (kill one to see this),
the others cannot continue, so all are started again from the last checkpoint. Data: scikit-learn's digits.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import lc_keras
from examples import data

BATCH = 40  # across all workers


class AcrossWorkers(keras.Sequential):
    """A model that `fit` trains on several workers.

    Keras 3.15 cannot do this by itself (keras-team/keras issue 20585). Before the first batch, it takes the
    mean of a batch over the workers, and TensorFlow cannot make a tensor of that batch here. After each step,
    it reduces metrics along their first axis, but they are scalars.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        if iterator is not None:
            _, _, batches = next(iter(iterator))
            local = self.distribute_strategy.experimental_local_results
            data_batch = tf.nest.map_structure(lambda part: local(part)[0], next(batches))
        super()._maybe_symbolic_build(data_batch=data_batch)

    def train_step(self, batch):
        return self._with_axis(super().train_step(batch))

    def test_step(self, batch):
        return self._with_axis(super().test_step(batch))

    @staticmethod
    def _with_axis(metrics):
        return {name: tf.reshape(value, [1]) for name, value in metrics.items()}


class Shuffled(keras.callbacks.Callback):
    """Batches in an order that a restart reproduces: it depends on the epoch alone."""

    def __init__(self, part, size):
        super().__init__()
        self._epoch = tf.Variable(0, trainable=False)
        count = len(part[0])

        def order(_):
            shuffled = tf.random.experimental.stateless_shuffle(tf.range(count), seed=[0, self._epoch])
            return tf.data.Dataset.from_tensor_slices(tuple(tf.gather(tensor, shuffled) for tensor in part))

        batches = tf.data.Dataset.range(1).flat_map(order).batch(size, drop_remainder=True)
        self.batches = batches.apply(tf.data.experimental.assert_cardinality(count // size))

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch.assign(epoch)


def build():
    layers = [keras.Input((64,)), keras.layers.Dense(100, "relu"), keras.layers.Dense(10)]
    model = AcrossWorkers(layers, name="digits")
    model.compile(
        keras.optimizers.SGD(0.1, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def train(args, strategy, callbacks=()):
    """Prunes the net.

    Args:
        args: Namespace of `keep`, `epochs`, and `output`, a folder that all workers see.
        strategy: `tf.distribute.Strategy`.
        callbacks: Iterable of further callbacks.

    Returns:
        The model, and the history of `fit`.
    """
    keras.utils.set_random_seed(0)  # the same weights on every worker
    training, validation, _ = data.digits()
    with strategy.scope():
        model = build()
    batches = Shuffled(training, BATCH)
    compress = lc_keras.LearningCompression(
        lc_keras.L0Constraint(args.keep), checkpoint_dir=args.output / "checkpoints"
    )
    history = model.fit(
        batches.batches,
        validation_data=data.batches([part[:280] for part in validation], BATCH),
        epochs=args.epochs,
        shuffle=False,  # the batches are shuffled already
        verbose=0,
        callbacks=[batches, *callbacks, compress],
    )
    return model, history


def work(args):
    """Runs a worker."""
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    worker = strategy.cluster_resolver.task_id
    print(f"worker {worker} is process {os.getpid()}", flush=True)

    def tell(epoch, logs):
        shown = f"density {logs['density']:.3f}, gap {logs['gap']:.3f}, accuracy {logs['val_accuracy']:.3f}"
        print(f"worker {worker}, epoch {epoch + 1}/{args.epochs}: {shown}", flush=True)

    model, _ = train(args, strategy, [keras.callbacks.LambdaCallback(on_epoch_end=tell)])
    # All workers have the same weights; elsewhere, only the chief would save them.
    args.output.mkdir(parents=True, exist_ok=True)
    np.savez(args.output / f"worker-{worker}.npz", *model.get_weights())


def watch(args, attempts=3):
    """Starts workers on this machine, and starts all of them again if one dies."""
    for _ in range(attempts):
        workers = [f"localhost:{port}" for port in free_ports(args.workers)]
        running = []
        for index in range(args.workers):
            config = {"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}}
            environment = {**os.environ, "TF_CONFIG": json.dumps(config), "CUDA_VISIBLE_DEVICES": "-1"}
            running.append(subprocess.Popen([sys.executable, *sys.orig_argv[1:]], env=environment))
        try:
            while any(p.poll() is None for p in running) and not any(p.poll() for p in running):
                time.sleep(0.1)
        finally:
            for process in running:
                process.kill()
        if not any(process.wait() for process in running):
            return
        print("A worker died; all are started again from the last checkpoint.", flush=True)
    raise SystemExit(f"Workers died {attempts} times.")


def free_ports(count):
    with_ports = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in with_ports]
    for server in with_ports:
        server.close()
    return ports


def main():
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--keep", type=float, default=0.1)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--workers", type=int, default=2, help="how many to start on this machine")
    parser.add_argument("--output", type=Path, default=Path("outputs/multi_worker"))
    args = parser.parse_args()
    if "TF_CONFIG" in os.environ:
        work(args)
    else:
        watch(args)


if __name__ == "__main__":
    main()
