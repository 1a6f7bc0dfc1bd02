"""PQuantML on Keras 3, with the methods that are told what fraction of each layer to remove.

PDP prunes with a soft mask that hardens. Wanda prunes once, by magnitude times the size of the inputs, and
trains what is left. `peer.run` calls this with the interpreter of an environment of its own; it prints one
line of json.
"""

import argparse
import json
from importlib.metadata import version

import keras
import numpy as np
import pquant
from pquant.core.keras.train import PQuantCallback

from benchmarks.nets import NETS
from examples import tradeoff

# The shares in the library's own configuration of PDP: the last 20 of 120 epochs train what is left; of the
# 100 before, 67 each prune more.
TUNED, PRUNED_MORE = 20 / 120, 67 / 100


def functional(model):
    """Returns the layers of a Sequential model with an input layer among them, as PQuantML expects."""
    inputs = outputs = keras.Input(model.input_shape[1:])
    for layer in model.layers:
        outputs = layer(outputs)
    return keras.Model(inputs, outputs)


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
    parser.add_argument("--method", choices=["pdp", "wanda"], required=True)
    parser.add_argument("--tuned", type=float, default=TUNED, help="share of PDP's run after all pruning")
    parser.add_argument("--seen", type=int, default=100, help="batches that Wanda sees before it prunes")
    parser.add_argument("--validation", action="store_true")
    options = parser.parse_args()

    net = NETS[options.net]
    train, measured = net.parts(options.validation)
    reference = net.build()
    with np.load(options.reference) as arrays:
        reference.set_weights([arrays[name] for name in arrays.files])

    if options.method == "pdp":
        tuned = min(round(options.tuned * options.epochs), options.epochs - 1)
        config = pquant.pdp_config()
        config.pruning_parameters.epsilon = min(1.0, 1 / (PRUNED_MORE * (options.epochs - tuned)))
    else:
        tuned = 0
        config = pquant.wanda_config()
        config.pruning_parameters.t_start_collecting_batch = 0
        config.pruning_parameters.t_delta = options.seen
        # With budgets that the layers share, the method fails inside `fit` on TensorFlow.
        config.pruning_parameters.calculate_pruning_budget = False
    config.pruning_parameters.sparsity = 1 - options.keep
    config.quantization_parameters.enable_quantization = False
    model = pquant.add_compression_layers(functional(reference), config)
    prune = PQuantCallback(
        config,
        log_ebops=False,
        log_keep_ratio=False,
        pretraining_epochs=0,
        epochs=options.epochs - tuned,
        fine_tuning_epochs=tuned,
    )
    keras.utils.set_random_seed(options.seed)
    label = f"PQuantML {100 * options.keep:g} %"
    names = "optimizer", "seed", "rate", "weight_decay", "label_smoothing", "clip_norm"
    chosen = {name: getattr(options, name) for name in names}
    net.fit(model, train, options.epochs, label, [prune], **chosen)

    kernels = {layer.name: layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")}
    images, labels = measured
    wrong = np.argmax(tradeoff.outputs(model, images), axis=-1) != labels
    result = {
        "kept": int(sum(np.count_nonzero(kernel) for kernel in kernels.values())),
        "error": 100 * float(np.mean(wrong)),
        "density_by_layer": {name: float(np.mean(kernel != 0)) for name, kernel in kernels.items()},
        "version": version("pquant-ml"),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
