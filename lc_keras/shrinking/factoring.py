"""Make two layers out of one whose kernel is of low rank."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

# What a config says about each axis of a window.
_OF_AXES = "kernel_size", "strides", "dilation_rate"
# Ranks from here on are not looked for, since that takes a long time.
_HIGH = 1024
# What is left to the second layer.
_PLAIN = {"use_bias": False, "activation": None, "activity_regularizer": None}


class Pair(tuple[keras.Layer, keras.Layer]):
    """Two layers, called one after the other."""

    __slots__ = ()

    def __call__(self, *args: Any, **kwargs: Any) -> keras.KerasTensor:
        first, second = self
        return second(first(next(iter((*args, *kwargs.values())))))


class Factors(NamedTuple):
    """Hold the kernels of two layers that together stand for one.

    Attributes:
        first: Array, the kernel of the first.
        second: Array, the kernel of the second, with as many axes.
        window: Tuple of bools, for each axis of the window whether the first layer goes along it.
    """

    first: np.ndarray
    second: np.ndarray
    window: tuple[bool, ...]

    @property
    def size(self) -> int:
        """Return how many weights both have together."""
        return self.first.size + self.second.size

    @property
    def rank(self) -> int:
        return self.first.shape[-1]

    def layers(self, kind: type[keras.Layer], config: dict[str, Any], name: str) -> Pair:
        """Return the two layers.

        Args:
            kind: Class of layers.
            config: Dict, the config of the one layer.
            name: String, the name of the first layer.
        """
        width = "units" if "units" in config else "filters"
        # A bound on the one kernel is not one on the two.
        second = {**config, "kernel_constraint": None}
        first = {**second, **_PLAIN, "name": name, width: self.rank}
        for part in set(_OF_AXES) & set(config):
            pairs = list(zip(self.window, config[part], strict=True))
            first[part] = tuple(n if is_first else 1 for is_first, n in pairs)
            second[part] = tuple(1 if is_first else n for is_first, n in pairs)
        return Pair((kind.from_config(first), kind.from_config(second)))


def split(kernel: np.ndarray, ways: Sequence[tuple[int, ...]]) -> Factors | None:
    """Return the kernels of two layers that together stand for one of low rank, if they are smaller.

    Args:
        kernel: Floating array; its last two axes are those of the input and output channels, any others those
            of a window.
        ways: Sequence of tuples of ints: the axes of the window along which the first layer goes. The second
            goes along the others.

    Returns:
        `Factors` in the way that has the fewest weights; `None` if these are no fewer than the nonzero
        weights of the kernel.
    """
    best, least = None, int(np.count_nonzero(kernel))
    for way in ways:
        rows, columns = sides(kernel.shape, way)
        matrix = kernel.transpose(*rows, *columns)
        matrix = matrix.reshape(math.prod(matrix.shape[: len(rows)]), -1)
        if found := _factors(matrix, (least - 1) // sum(matrix.shape)):
            best = _layers(*found, kernel.shape, way)
            least = best.size
    return best


def blank(shape: tuple[int, ...], way: tuple[int, ...], rank: int) -> Factors:
    """Return kernels of zeros for two layers that together stand for one of a given rank.

    Args:
        shape: Tuple of ints, the shape of the one layer's kernel.
        way: Tuple of ints, as in `split`.
        rank: Int ≥ 1.
    """
    rows, columns = (math.prod(shape[a] for a in side) for side in sides(shape, way))
    return _layers(np.zeros((rows, rank)), np.zeros((rank, columns)), shape, way)


def sides(shape: tuple[int, ...], way: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """Return the axes of a kernel that are rows of its matrix, and those that are columns."""
    *window, read, made = range(len(shape))
    return [*way, read], [*(axis for axis in window if axis not in way), made]


def _layers(first: np.ndarray, second: np.ndarray, shape: tuple[int, ...], way: tuple[int, ...]) -> Factors:
    """Return the two factors of a matrix as the kernels of two layers."""
    left, right = ([shape[a] for a in side] for side in sides(shape, way))
    window = range(len(shape) - 2)
    first = np.expand_dims(first.reshape(*left, -1), tuple(a for a in window if a not in way))
    second = np.expand_dims(np.moveaxis(second.reshape(-1, *right), 0, -2), way)
    return Factors(first, second, tuple(a in way for a in window))


def _factors(matrix: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Return two factors of a matrix, or `None` if its rank is 0, above `most`, or at least `_HIGH`.

    A singular value that rounding the matrix may have made counts as zero.
    """
    wide = matrix.astype("float64")
    if most < 1 or not np.isfinite(wide).all():
        return None
    # Each weight is rounded by its own size: one that is much larger than the others makes no more noise.
    largest = sum(np.linalg.norm(wide, axis=axis).max() for axis in (0, 1))
    noise = 2 * float(np.spacing(np.ones([], matrix.dtype))) * largest
    if _has_rank(wide, min(most + 1, _HIGH), noise):
        return None
    left, values, right = np.linalg.svd(wide, full_matrices=False)
    rank = int((values > noise).sum())
    if not 1 <= rank <= most:
        return None
    roots = np.sqrt(values[:rank])
    # A row or column that is small as a whole may be much more than rounding where it belongs.
    rest = np.abs(wide - left[:, :rank] * values[:rank] @ right[:rank])
    for axis in (0, 1):
        if (rest.max(axis) > noise / values[rank - 1] * np.linalg.norm(wide, axis=axis)).any():
            return None
    return left[:, :rank] * roots, roots[:, None] * right[:rank]


def _has_rank(matrix: np.ndarray, rank: int, noise: float) -> bool:
    """Return whether random projections, which are faster than an SVD, show that a matrix has this rank.

    Halko, Martinsson & Tropp, Finding structure with randomness, SIAM Review 2011.
    """
    if rank > min(matrix.shape):
        return False
    draw = np.random.default_rng(0).normal
    rows, columns = (draw(size=(n, rank)) for n in matrix.shape)
    # The projections make no more than this of noise.
    most = noise * math.prod(math.sqrt(n) + math.sqrt(rank) + 2 for n in matrix.shape)
    return bool(np.linalg.svd(rows.T @ matrix @ columns, compute_uv=False)[-1] > most)
