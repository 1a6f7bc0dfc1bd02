"""Searches for what to keep in three ways: `lc_keras.smallest`, KerasTuner, and scikit-learn's grid search.

    python -m examples.search_keep    # scikit-learn's digits, some minutes
    python -m examples.search_keep --ways smallest --epochs 30

Each looks for the smallest fraction of the weights with which a small net is at most half a point worse.
KerasTuner tries what its oracle proposes, and scikit-learn cross-validates; both take LC like any other
callback.
"""

import argparse
from pathlib import Path

import keras
import numpy as np

import lc_keras
from examples import data, digits


def compiled(weights=None):
    """Builds and compiles the net of `examples.digits`, optionally with the weights of another."""
    model = digits.build()
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=False,  # compiling would take longer than it saves
    )
    if weights is not None:
        model.set_weights(weights)
    return model


def smallest(reference, train, validation, args):
    """Searches by bisection; each run starts from the best net that was found before."""

    def fit(model, callbacks):
        batches = data.batches(train, 32, seed=args.seed)
        return model.fit(batches, epochs=args.epochs, shuffle=False, verbose=0, callbacks=callbacks)

    found = lc_keras.smallest(
        reference,
        fit,
        lambda model: accuracy(model, validation),
        args.within,
        max_runs=args.trials,
        directory=args.output / "smallest",
    )
    print(found)
    found.plot(args.output / "smallest.png")
    return found.budget


def keras_tuner(reference, train, validation, args):
    """Searches with KerasTuner for the least fraction kept, plus 1 for each point of accuracy missing."""
    import keras_tuner

    weights, asked = reference.get_weights(), accuracy(reference, validation) - args.within

    class Pruned(keras_tuner.HyperModel):
        def build(self, hp):
            return compiled(weights)

        def fit(self, hp, model, *given, callbacks=(), **options):
            keep = hp.Float("keep", 0.005, 0.5, sampling="log")
            compress = lc_keras.LearningCompression(lc_keras.L0Constraint(keep))
            model.fit(*given, callbacks=[*callbacks, compress], **options)
            return keep + 100 * max(0.0, asked - accuracy(model, validation))

    tuner = keras_tuner.BayesianOptimization(
        Pruned(), max_trials=args.trials, seed=args.seed, overwrite=True, directory=args.output
    )
    batches = data.batches(train, 32, seed=args.seed)
    tuner.search(batches, epochs=args.epochs, shuffle=False, verbose=0)
    return tuner.get_best_hyperparameters()[0].get("keep")


def scikit_learn(reference, train, validation, args):
    """Searches a grid, on three splits of the training data."""
    from sklearn.model_selection import GridSearchCV

    def build(X, y):
        model = compiled(reference.get_weights())
        # The classifier gives probabilities for labels, and its own callbacks to each fit.
        model.compile(
            model.optimizer, keras.losses.CategoricalCrossentropy(from_logits=True), jit_compile=False
        )
        return model

    def options(keep):
        compress = lc_keras.LearningCompression(lc_keras.L0Constraint(keep))
        return {"epochs": args.epochs, "verbose": 0, "callbacks": [compress]}

    keeps = np.geomspace(0.5, 0.01, args.trials).tolist()
    classifier = keras.wrappers.SKLearnClassifier(build)
    search = GridSearchCV(classifier, {"fit_kwargs": [options(keep) for keep in keeps]}, cv=3, refit=False)
    search.fit(*train)
    scores = search.cv_results_["mean_test_score"]
    return min(keep for keep, score in zip(keeps, scores, strict=True) if score >= max(scores) - args.within)


WAYS = {"smallest": smallest, "keras-tuner": keras_tuner, "scikit-learn": scikit_learn}


def accuracy(model, part):
    """Returns the fraction of the images that a model gets right."""
    images, labels = part
    return float(np.mean(np.argmax(keras.ops.convert_to_numpy(model(images)), axis=-1) == labels))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--within", type=float, default=0.005, help="how much accuracy may be lost")
    parser.add_argument("--trials", type=int, default=8)
    parser.add_argument("--epochs", type=int, default=20, help="epochs of each trial")
    parser.add_argument("--reference-epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/search_keep"))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(args.seed)
    train, validation, _ = data.digits()
    reference = compiled()
    reference.fit(data.batches(train, 32, seed=0), epochs=args.reference_epochs, shuffle=False, verbose=0)
    for name in args.ways:
        print(
            f"{name}: {100 * WAYS[name](reference, train, validation, args):.3g} % of the weights", flush=True
        )


if __name__ == "__main__":
    main()
