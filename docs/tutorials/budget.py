# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Choosing the budget
#
# How small can a net become? Look at the layers first, then run a few budgets, and choose on validation data.

# %% tags=["hide_output"]
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from matplotlib import pyplot as plt
from sklearn.datasets import load_digits

import lc_keras

keras.utils.set_random_seed(0)
folder = Path("outputs/budget")
folder.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## A trained net
#
# The net of [Digits in two minutes](digits.py), a little smaller.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images, labels = images[order].astype("float32") / 16, labels[order]
train = tf.data.Dataset.from_tensor_slices((images[:1000], labels[:1000])).cache()
train = train.shuffle(1000, seed=0).batch(32)
validation, test = ((images[a:b], labels[a:b]) for a, b in ((1000, 1297), (1297, None)))


def fit(model, epochs, callbacks=()):
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=8,
    )
    model.fit(train, validation_data=validation, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0)


def error(model, part):
    return 100 * float(np.mean(np.argmax(model.predict(part[0], verbose=0), axis=1) != part[1]))


reference = keras.Sequential(
    [
        keras.Input((64,), name="pixels"),
        keras.layers.Dense(200, "relu", name="first"),
        keras.layers.Dense(100, "relu", name="second"),
        keras.layers.Dense(10, name="last"),
    ]
)
fit(reference, 30)
print(f"error {error(reference, validation):.2f} %")

# %% [markdown]
# ## Which layers can bear it?
#
# `sensitivity` compresses each layer by itself, without training, and measures the error. A layer whose error rises early needs its weights; here it is the last one, which has 1,000 of the 33,800 weights. One budget for all layers will leave it most of them.

# %%
found = lc_keras.sensitivity(
    reference, lambda model: error(model, validation), keep=(0.5, 0.2, 0.1, 0.05, 0.02), verbose=0
)
found.plot()

# %% [markdown]
# ## A run for each budget
#
# Each run starts from the same net. Direct compression, which removes as many weights without training, shows how much the training does.

# %%
keeps, pruned, direct = (0.2, 0.1, 0.05, 0.03, 0.02, 0.01), {}, {}
for keep in keeps:
    cost = lc_keras.L0Constraint(keep)
    for models in (pruned, direct):
        models[keep] = keras.models.clone_model(reference)
        models[keep].set_weights(reference.get_weights())
    lc_keras.baselines.compress_directly(direct[keep], cost)
    fit(pruned[keep], 40, [lc_keras.LearningCompression(cost)])
    print(f"{100 * keep:g} % kept: error {error(pruned[keep], validation):.2f} %")

# %% [markdown]
# ## Choose
#
# Choose the smallest net whose validation error is at most one point above the reference's. 297 images cannot tell finer differences: each of them is a third of a point.

# %%
limit = error(reference, validation) + 1
chosen = min(keep for keep in keeps if error(pruned[keep], validation) <= limit)
print(f"{100 * chosen:g} % of the weights; test error {error(pruned[chosen], test):.2f} %, ", end="")
print(f"the reference's {error(reference, test):.2f} %")
pruned[chosen].save(folder / "chosen.keras")
lc_keras.report(pruned[chosen])

# %%
figure, axes = plt.subplots(figsize=(6, 3.4), layout="constrained")
for name, models in (("LC", pruned), ("direct compression", direct)):
    axes.plot([100 * keep for keep in keeps], [error(models[k], validation) for k in keeps], "o-", label=name)
axes.axhline(limit, color="black", linestyle=":", label="one point above the reference")
axes.axvline(100 * chosen, color="C0", alpha=0.3, linewidth=6)
axes.set(xscale="log", yscale="log", xlabel="kept, % of the weights", ylabel="validation error, %")
axes.set_xticks([100 * keep for keep in keeps], [f"{100 * keep:g}" for keep in keeps])
axes.minorticks_off()
axes.legend()
plt.show()
