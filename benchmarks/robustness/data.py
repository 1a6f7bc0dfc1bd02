"""The data of the matrix: prepared by TFDS, shipped with Python, or drawn from a seed.

Each function is called with a bool, whether to hold out training examples and measure on them, and
returns two tuples of inputs and labels: one to train on, and one to measure on.
"""

import os

import numpy as np

LENGTH, CHARACTERS = 32, 96  # of a sequence; the printable ones of ASCII, and one for all others
COLUMNS, CLASSES = 54, 7  # of the table


def mnist(validation):
    """50,000 images of MNIST, shape `(n, 28, 28, 1)`, and 10,000 others."""
    return _images("mnist", "train[:50000]", "train[50000:]" if validation else "test")


def flat_mnist(validation):
    """The images of `mnist` as vectors, less the mean of the training images."""
    train, measured = mnist(validation)
    mean = train[0].mean(axis=0)
    return tuple(((images - mean).reshape(-1, 784), labels) for images, labels in (train, measured))


def rows_of_mnist(validation):
    """The images of `mnist` as 14 rows of 14 pixels."""
    return tuple((_halved(images)[..., 0], labels) for images, labels in mnist(validation))


def cifar10(validation):
    """6,400 images of CIFAR-10, shape `(n, 32, 32, 3)`, and 5,000 others."""
    return _images("cifar10", "train[:6400]", "train[45000:]" if validation else "test[:5000]")


def small_cifar10(validation):
    """The images of `cifar10` with 16 × 16 pixels."""
    return tuple((_halved(images), labels) for images, labels in cifar10(validation))


def _images(name, *splits):
    import tensorflow_datasets as tfds

    parts = tfds.load(
        name,
        split=splits,
        batch_size=-1,
        as_supervised=True,
        data_dir=os.environ.get("TFDS_DATA_DIR"),
    )
    return tuple(
        (images.astype("float32") / 255, labels.astype("int32")) for images, labels in tfds.as_numpy(parts)
    )


def _halved(images):
    count, rows, columns, channels = images.shape
    return images.reshape(count, rows // 2, 2, columns // 2, 2, channels).mean(axis=(2, 4))


def text(validation):
    """Python's description of its own language, cut into sequences; the labels are the next characters.

    The last sequences are held out, or are the test set.
    """
    from pydoc_data.topics import topics

    codes = np.frombuffer("".join(map(topics.get, sorted(topics))).encode("latin1", "replace"), "uint8")
    codes = np.clip(codes.astype("int32") - 32, -1, CHARACTERS - 2) % CHARACTERS
    starts = np.arange(0, len(codes) - LENGTH, LENGTH)
    sequences = codes[starts[:, None] + np.arange(LENGTH + 1)]
    sequences = sequences[np.random.default_rng(0).permutation(len(sequences))]
    pairs = sequences[:, :-1], sequences[:, 1:]
    held_out = slice(-4000, -2000) if validation else slice(-2000, None)
    return tuple(tuple(array[part] for array in pairs) for part in (slice(-4000), held_out))


def table(validation):
    """Numbers and categories that a random net turns into classes; one label in twenty is drawn anew."""

    def draw(count, seed):
        rng = np.random.default_rng(seed)
        numbers = rng.normal(size=(count, 10))
        categories = [np.eye(n)[rng.integers(n, size=count)] for n in (4, 40)]
        x = np.concatenate([numbers, *categories], axis=1).astype("float32")
        labels = np.argmax(np.tanh(x @ first) @ second, axis=1)
        labels = np.where(rng.random(count) < 0.05, rng.integers(CLASSES, size=count), labels)
        return x, labels.astype("int32")

    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(COLUMNS, 24)) / 2, rng.normal(size=(24, CLASSES))
    return draw(6_400, 1), draw(10_000, 2 if validation else 3)


def shapes(validation):
    """Noisy images with three discs or squares each, shape `(n, 32, 32, 1)`, and a label for each pixel."""

    def draw(count, seed, size=32):
        rng, grid = np.random.default_rng(seed), np.mgrid[:size, :size]
        x, y = np.zeros((count, size, size, 1), "float32"), np.zeros((count, size, size), "int32")
        for image, labels in zip(x, y, strict=True):
            for _ in range(3):
                (row, column), half = rng.integers(4, size - 4, 2), rng.integers(3, 8)
                value, is_round = rng.uniform(0.4, 1), rng.random() < 0.5
                down, right = abs(grid[0] - row), abs(grid[1] - column)
                inside = (np.hypot(down, right) if is_round else np.maximum(down, right)) < half
                image[inside], labels[inside] = value, 1 if is_round else 2
            image += rng.normal(0, 0.25, image.shape)
        return x, y

    return draw(800, 0), draw(400, 2 if validation else 1)
