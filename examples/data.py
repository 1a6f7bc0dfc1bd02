"""Data sets as whole arrays, and batches of them."""

import math
import os

import numpy as np
import tensorflow as tf


def digits():
    """Returns scikit-learn's 8 × 8 digits, always split in the same way.

    Returns:
        Three tuples of images, shape `(n, 64)` with values from 0 to 1, and labels:
        1,000 for training, 297 for validation and 500 for the test.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = images[order].astype("float32") / 16, labels[order].astype("int32")
    parts = slice(0, 1000), slice(1000, 1297), slice(1297, None)
    return tuple((images[part], labels[part]) for part in parts)


def mnist():
    """Loads MNIST, from the folder `TFDS_DATA_DIR` or downloaded by TFDS.

    Returns:
        Two tuples of images, shape `(n, 28, 28, 1)` with values from 0 to 1, and
        labels: 60,000 for training and 10,000 for the test.
    """
    return _images("mnist")


def cifar10():
    """Loads CIFAR-10, like `mnist`: images of shape `(n, 32, 32, 3)`, 50,000 and 10,000."""
    return _images("cifar10")


def _images(name):
    import tensorflow_datasets as tfds

    parts = tfds.load(
        name,
        split=["train", "test"],
        batch_size=-1,
        as_supervised=True,
        data_dir=os.environ.get("TFDS_DATA_DIR"),
    )
    return tuple(
        (images.astype("float32") / 255, labels.astype("int32")) for images, labels in tfds.as_numpy(parts)
    )


def smoothed(part, smoothing, classes=10):
    """Turns labels into probabilities: the right class gets most, and all classes share the rest equally.

    Args:
        part: Tuple of images and labels.
        smoothing: Float, the probability that all classes share.
        classes: Int.

    Returns:
        Tuple of the images, and an array of shape `(n, classes)`.
    """
    images, labels = part
    return images, (1 - smoothing) * np.eye(classes, dtype="float32")[labels] + smoothing / classes


def batches(part, size, seed=None):
    """Returns batches of a data set held in memory.

    Args:
        part: Tuple of arrays of equal length.
        size: Int, elements in a batch.
        seed: Int: a new order in each epoch, the same in each run. `None` (default):
            the order of the arrays.

    Returns:
        `tf.data.Dataset` of tuples of tensors.
    """
    tensors = tuple(map(tf.constant, part))
    count = len(part[0])
    # If TensorFlow tunes a pipeline, the end of an epoch may wait for the thread that tunes it.
    options = tf.data.Options()
    options.autotune.enabled = False
    # Shuffles the indices, not the images, and gathers a batch at a time.
    indices = tf.data.Dataset.range(count)
    if seed is not None:
        indices = indices.shuffle(count, seed=seed, reshuffle_each_iteration=True)
    return (
        indices.batch(size)
        .map(lambda i: tuple(tf.gather(tensor, i) for tensor in tensors))
        .prefetch(2)
        .with_options(options)
    )


def shifted(batches, part, seed):
    """Moves some of the square images in batches by a pixel to one of four sides, anew in each epoch.

    Pixels that leave an image on one side come in on the other.

    Args:
        batches: `tf.data.Dataset` of tuples of images, flat or not, and labels.
        part: Float in [0, 1], the fraction of the images to move.
        seed: Int.

    Returns:
        `tf.data.Dataset` as `batches`.
    """

    def shift(images, seed):
        side = math.isqrt(math.prod(images.shape[1:]))
        squares = tf.reshape(images, [-1, side, side])
        drawn = tf.random.stateless_uniform([tf.shape(squares)[0], 1, 1], seed)
        moved = squares
        for i, (down, right) in enumerate([(1, 0), (-1, 0), (0, 1), (0, -1)]):
            chosen = (part * i / 4 <= drawn) & (drawn < part * (i + 1) / 4)
            moved = tf.where(chosen, tf.roll(squares, [down, right], axis=[1, 2]), moved)
        return tf.reshape(moved, [-1, *images.shape[1:]])

    return _changed(batches, shift, seed)


def dropped(batches, part, seed):
    """Sets some values in batches to 0 and scales up the others to compensate, anew in each epoch: dropout.

    Args:
        batches: `tf.data.Dataset` of tuples of inputs and labels.
        part: Float in [0, 1), the fraction of the values to drop.
        seed: Int.

    Returns:
        `tf.data.Dataset` as `batches`.
    """
    return _changed(batches, lambda x, seed: tf.nn.experimental.stateless_dropout(x, part, seed), seed)


def _changed(batches, change, seed):
    """Changes the inputs of batches by a function of them and of a seed, which is new in each epoch."""
    seeds = tf.data.Dataset.random(seed, rerandomize_each_iteration=True).batch(2)
    changed = tf.data.Dataset.zip(batches, seeds).map(lambda batch, seed: (change(batch[0], seed), batch[1]))
    return changed.prefetch(2)
