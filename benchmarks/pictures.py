"""Draws the pictures of docs/how-it-works.md into docs/plots/, in two minutes.

python -m benchmarks.pictures
"""

import argparse
from pathlib import Path

import keras
import numpy as np
from matplotlib.figure import Figure

import lc_keras
from examples import data, digits, tradeoff

# A loss of two weights, (w - m)ᵀ H (w - m) / 2. It falls lower along the axis of the second weight, though
# the first weight is the larger one where the loss is least.
BEST = np.array([1.0, 0.8], "float32")
HESSIAN = np.array([[0.3, -0.3], [-0.3, 2.0]], "float32")


def loss(w):
    away = w - BEST
    return 0.5 * keras.ops.sum(keras.ops.matmul(away, HESSIAN) * away, axis=-1)


def pulled(steps=40, batches=10, rate=0.1):
    """Returns the paths of w and θ, arrays of shape `(steps, 2)`, where one of two weights may stay."""
    import tensorflow as tf

    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1, use_bias=False)])
    (kernel,) = model.trainable_variables
    kernel.assign(BEST[:, None])
    mus = lc_keras.Geometric(0.5, 30.0).over(steps)
    run = lc_keras.Alternation(model, lc_keras.L0Constraint(1), mu=mus[0])
    paths = [], []

    def note():
        paths[0].append(kernel.numpy()[:, 0])
        with run.compressed():
            paths[1].append(kernel.numpy()[:, 0])

    note()
    for mu in [*mus[1:], None]:
        for _ in range(batches):
            with tf.GradientTape() as tape:
                value = loss(kernel[:, 0]) + run.penalty()
            kernel.assign_sub(min(rate, 1 / run.mu) * tape.gradient(value, kernel.value))
        run.c_step(mu)
        note()
    run.finish()
    return map(np.array, paths)


def draw_pull(path):
    w, theta = pulled()
    axes = Figure(figsize=(6.4, 4.6), layout="constrained").subplots()
    x, y = np.meshgrid(np.linspace(-0.15, 1.25, 120), np.linspace(-0.15, 1.25, 100))
    levels = np.linspace(0, 0.9, 13)[1:]
    axes.contour(x, y, np.array(loss(np.stack([x, y], -1).astype("float32"))), levels, colors="0.8")
    axes.axhline(0, color="black", linewidth=1)
    axes.axvline(0, color="black", linewidth=1)
    for a, b in zip(w[:12], theta[:12], strict=True):
        axes.annotate("", b, a, arrowprops={"arrowstyle": "->", "color": "C1", "alpha": 0.5})
    axes.plot(*w.T, ".-", color="C0", label="w, which is trained")
    axes.plot(*theta.T, "s", color="C1", label="θ, which keeps the budget; arrows: the pull")
    axes.plot(*BEST, "+", color="black", markersize=12, label="the loss is least here")
    axes.set(xlabel="the first weight", ylabel="the second weight")
    axes.legend(fontsize="small", loc="upper right")
    axes.figure.savefig(path, dpi=120)


def draw_run(path, layers, epochs):
    keras.utils.set_random_seed(0)
    train, validation, _ = data.digits()
    reference = digits.build()
    digits.fit(reference, train, validation, epochs, "Reference")
    kept = {}
    for keep in (0.2, 0.1, 0.05, 0.02):
        model = tradeoff.copy_of(reference)
        compress = lc_keras.LearningCompression(lc_keras.L0Constraint(keep))
        digits.fit(model, train, validation, epochs, f"LC, {100 * keep:g} % kept", [compress])
        if keep == 0.05:
            compress.plot(path)
        kept[keep] = [100 * row.density for row in lc_keras.report(model).rows]
    axes = Figure(figsize=(6.4, 3.4), layout="constrained").subplots()
    for i, (keep, densities) in enumerate(kept.items()):
        places = np.arange(len(densities)) + 0.2 * i - 0.3
        bars = axes.bar(places, densities, 0.2, label=f"{100 * keep:g} % of all")
        axes.bar_label(bars, [f"{density:.3g}" for density in densities], fontsize="x-small")
    sizes = [f"{row.shape[0]} × {row.shape[1]}" for row in lc_keras.report(model).rows]
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set(xlabel="layer", ylabel="kept, % of the layer's weights")
    axes.legend(fontsize="small")
    axes.figure.savefig(layers, dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/plots"))
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--tiny", action="store_true", help="one epoch of each run")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    draw_pull(options.output / "how_pull.png")
    draw_run(
        options.output / "how_run.png",
        options.output / "how_layers.png",
        1 if options.tiny else options.epochs,
    )


if __name__ == "__main__":
    main()
