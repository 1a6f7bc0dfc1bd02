# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # An image model, pruned by neurons
#
# A small convolutional net learns CIFAR-10 here and now, loses the filters that make up half of its multiply-adds, is rebuilt without them, timed, and served.

# %% tags=["hide_output"]
import os
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from keras import layers

import lc_keras

keras.utils.set_random_seed(0)
folder = Path("outputs/images")

# %% [markdown]
# ## The data
#
# 10,000 images train the net and 2,000 test it, so that this page takes minutes. TensorFlow Datasets reads them from the folder `TFDS_DATA_DIR` or downloads them once.

# %%
parts = tfds.load(
    "cifar10",
    split=["train[:10000]", "test[:2000]"],
    batch_size=-1,
    as_supervised=True,
    data_dir=os.environ.get("TFDS_DATA_DIR"),
)
(train_images, train_labels), (test_images, test_labels) = tfds.as_numpy(parts)
mean, deviation = train_images.mean(axis=(0, 1, 2)), train_images.std(axis=(0, 1, 2))
train_images, test_images = (
    ((images - mean) / deviation).astype("float32") for images in (train_images, test_images)
)
train = tf.data.Dataset.from_tensor_slices((train_images, train_labels)).shuffle(10_000, seed=0).batch(64)
train = train.prefetch(tf.data.AUTOTUNE)
test = tf.data.Dataset.from_tensor_slices((test_images, test_labels)).batch(500).cache()


# %% [markdown]
# ## A trained net
#
# The net has three residual blocks. lc_keras finds by itself that filters joined by an addition have to go together.


# %%
def block(x, filters, stride):
    shortcut = layers.Conv2D(filters, 1, stride, use_bias=False)(x)
    for strides in (stride, 1):
        x = layers.Conv2D(filters, 3, strides, padding="same", use_bias=False)(x)
        x = layers.BatchNormalization(momentum=0.9)(x)
        x = layers.ReLU()(x)
    return layers.Add()([x, shortcut])


inputs = keras.Input((32, 32, 3), name="image")
x = layers.Conv2D(16, 3, 2, padding="same", activation="relu")(inputs)
for filters, stride in ((16, 1), (32, 2), (64, 2)):
    x = block(x, filters, stride)
outputs = layers.Dense(10, name="classes")(layers.GlobalAveragePooling2D()(x))
model = keras.Model(inputs, outputs)


def train_for(epochs, rate, callbacks=()):
    falling = keras.optimizers.schedules.CosineDecay(rate, epochs * len(train), alpha=0.1)
    model.compile(
        keras.optimizers.Adam(falling),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(train, validation_data=test, epochs=epochs, callbacks=callbacks, shuffle=False, verbose=0)


train_for(8, 3e-3)
print(f"accuracy {model.evaluate(test, verbose=0)[1]:.3f}")

# %% [markdown]
# With pretrained weights, which Keras downloads, the net would be the one below instead. Everything that follows stays the same:
#
# ```python
# base = keras.applications.MobileNetV2((96, 96, 3), include_top=False, pooling="avg", weights="imagenet")
# model = keras.Model(base.input, layers.Dense(10)(base.output))   # and resize the images to 96 × 96
# ```
#
# ## Prune whole filters
#
# The budget is half of the multiply-adds. The run takes 8 epochs.

# %%
budget = lc_keras.L0Constraint(0.5, lc_keras.Neurons(), measure="macs")
compress = lc_keras.LearningCompression(budget)
train_for(8, 3e-3, [compress])
print(f"accuracy {model.evaluate(test, verbose=0)[1]:.3f}")

# %%
compress.plot()

# %% [markdown]
# ## Take the filters out
#
# `small` is a plain Keras model that computes the same as `model`.

# %%
small = lc_keras.shrink(model)
difference = np.abs(model.predict(test, verbose=0) - small.predict(test, verbose=0)).max()
print("largest difference:", difference)
lc_keras.shrink_report(model, batch_size=128)

# %% [markdown]
# ## Serve it
#
# Both nets are timed as SavedModels, in turns, on batches of 128. Before it was pruned, the net took as long as it does now with its zeros.

# %%
exports = {}
for name, net in (("before", model), ("after", small)):
    exports[name] = lc_keras.export_saved_model(
        net, folder / name, storage="dense", compute="dense", overwrite=True
    )
served = {name: tf.saved_model.load(str(folder / name)) for name in exports}
batch, seconds = tf.constant(test_images[:128]), {name: [] for name in exports}
for _ in range(30):
    for name in exports:
        start = time.perf_counter()
        served[name].serve(batch).numpy()
        seconds[name].append(time.perf_counter() - start)
times = {name: 1e3 * np.median(values[5:]) for name, values in seconds.items()}
print({name: f"{value:.2f} ms" for name, value in times.items()})

# %%
from matplotlib import pyplot as plt

figure, (size, duration) = plt.subplots(1, 2, figsize=(7, 2.6), layout="constrained")
size.bar_label(size.bar(list(exports), [export.nbytes / 1000 for export in exports.values()]), fmt="%.0f kB")
duration.bar_label(duration.bar(list(times), list(times.values())), fmt="%.2f ms")
size.set_title("SavedModel")
duration.set_title("a batch of 128")
plt.show()

# %% [markdown]
# `small.save("small.keras")` keeps it for Keras, and [`export_litert`](../serving.md#litert) writes it for phones.

# %%
small.save(folder / "small.keras")
