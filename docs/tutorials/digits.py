# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # Digits in two minutes
#
# A small net learns scikit-learn's 8 × 8 digits, loses 95 % of its weights, and is served without Keras. Nothing is downloaded.

# %% tags=["hide_output"]
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import lc_keras

keras.utils.set_random_seed(0)
folder = Path("outputs/digits")

# %% [markdown]
# ## The data
#
# `shuffle` gives the batches a different order in each epoch. `fit(x, y)` on arrays would not, once a seed is set.

# %%
images, labels = load_digits(return_X_y=True)
order = np.random.default_rng(0).permutation(len(labels))
images, labels = images[order].astype("float32") / 16, labels[order]


def batches(start, stop):
    data = tf.data.Dataset.from_tensor_slices((images[start:stop], labels[start:stop]))
    return data.cache().shuffle(1000, seed=0).batch(32)


train, validation = batches(0, 1000), batches(1000, 1297)
test_images, test_labels = images[1297:], labels[1297:]

# %% [markdown]
# ## A trained net
#
# Pruning starts from a net that works.

# %%
model = keras.Sequential(
    [
        keras.Input((64,), name="pixels"),
        keras.layers.Dense(300, "relu"),
        keras.layers.Dense(100, "relu"),
        keras.layers.Dense(10, name="digits"),
    ]
)


def compile_model():
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.9, nesterov=True),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        steps_per_execution=8,
    )


compile_model()
model.fit(train, validation_data=validation, epochs=30, shuffle=False, verbose=0)
print(f"accuracy {model.evaluate(test_images, test_labels, verbose=0)[1]:.3f}")

# %% [markdown]
# ## Prune it
#
# This takes one callback. The budget is 5 % of all weights; how much each layer keeps is up to the training. The model is compiled again so that the optimizer starts fresh.

# %%
compile_model()
compress = lc_keras.LearningCompression(lc_keras.L0Constraint(keep=0.05))
model.fit(train, validation_data=validation, epochs=60, callbacks=[compress], shuffle=False, verbose=0)
print(compress)
print(f"accuracy {model.evaluate(test_images, test_labels, verbose=0)[1]:.3f}")

# %% [markdown]
# ## Look at it
#
# During the run, the gap between the trained weights and the pruned ones closes, and `val_accuracy`, which is measured on the pruned ones, rises as it does.

# %%
compress.plot()

# %% [markdown]
# This is what each layer keeps:

# %%
report = lc_keras.report(model)
report

# %%
report.plot()

# %% [markdown]
# ## Ship it
#
# The SavedModel holds the weights that are left and runs where neither Keras nor lc_keras is installed.

# %%
exported = lc_keras.export_saved_model(model, folder, version=1, overwrite=True)
exported

# %%
served = tf.saved_model.load(f"{folder}/1")
answers = served.serve(test_images).numpy()
print("largest difference from Keras:", np.abs(answers - model.predict(test_images, verbose=0)).max())
print("answers", answers[:10].argmax(axis=1), "labels", test_labels[:10])

# %% [markdown]
# Next: [an image model, pruned by neurons](images.py), or [which cost, which budget](../costs.md).
