"""TensorFlow's own toolkit on legacy Keras: gradual magnitude pruning, the same fraction of each layer.

`peer.run` calls this with the interpreter of an environment of its own; it prints one line of json.
"""

import argparse
import json
import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import tensorflow_model_optimization as tfmot
import tf_keras

from benchmarks.nets import NETS
from examples import data


def legacy(model):
    """Returns the layers of a Keras 3 model, rebuilt in legacy Keras."""
    layers = [tf_keras.layers.InputLayer(model.input_shape[1:])]
    for layer in model.layers:
        config = layer.get_config()
        names = {"units", "activation", "filters", "kernel_size", "pool_size", "strides", "padding", "name"}
        kind = getattr(tf_keras.layers, type(layer).__name__)
        layers.append(kind(**{name: config[name] for name in names & set(config)}))
    return tf_keras.Sequential(layers)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", help="npz file of the weights to start from, in order")
    parser.add_argument("--net", choices=NETS, required=True)
    parser.add_argument("--optimizer", choices=["sgd", "adam"], required=True)
    parser.add_argument("--keep", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the learning rate")
    parser.add_argument("--weight_decay", type=float)
    parser.add_argument("--clip_norm", type=float)
    parser.add_argument("--label_smoothing", type=float, default=0.0)
    parser.add_argument("--until", type=float, default=0.75, help="share of the run that removes weights")
    parser.add_argument("--validation", action="store_true")
    options = parser.parse_args()

    net = NETS[options.net]
    part, (images, labels) = net.parts(options.validation)
    model = legacy(net.build())
    with np.load(options.reference) as arrays:
        model.set_weights([arrays[name] for name in arrays.files])
    tf_keras.utils.set_random_seed(options.seed)
    losses = tf_keras.losses
    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    if options.label_smoothing:
        part = data.smoothed(part, options.label_smoothing)
        loss = losses.CategoricalCrossentropy(from_logits=True)
    train = data.batches(part, net.batch_size, seed=options.seed)
    batches = int(train.cardinality())

    pruning = tfmot.sparsity.keras
    schedule = pruning.PolynomialDecay(
        initial_sparsity=0.0,
        final_sparsity=1 - options.keep,
        begin_step=0,
        end_step=int(options.until * options.epochs * batches),
        frequency=max(1, batches // 4),
    )
    wrapped = pruning.prune_low_magnitude(model, pruning_schedule=schedule)
    optimizers = tf_keras.optimizers
    falling = optimizers.schedules.ExponentialDecay(
        options.rate * net.rates[options.optimizer], batches, 0.98 ** (40 / options.epochs), staircase=True
    )
    of_gradients = {"weight_decay": options.weight_decay, "global_clipnorm": options.clip_norm}
    wrapped.compile(
        optimizers.Adam(falling, **of_gradients)
        if options.optimizer == "adam"
        else optimizers.SGD(falling, momentum=0.9, nesterov=True, **of_gradients),
        loss,
    )
    wrapped.fit(train, epochs=options.epochs, verbose=0, callbacks=[pruning.UpdatePruningStep()])
    model = pruning.strip_pruning(wrapped)
    kernels = {w.name: w.numpy() for w in model.trainable_weights if w.shape.rank > 1}
    wrong = np.argmax(model.predict(images, batch_size=1000, verbose=0), axis=-1) != labels
    result = {
        "kept": int(sum(np.count_nonzero(kernel) for kernel in kernels.values())),
        "error": 100 * float(np.mean(wrong)),
        "density_by_layer": {name: float(np.mean(kernel != 0)) for name, kernel in kernels.items()},
        "version": tfmot.__version__,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
