r"""Units that are kept in multiples: those of a layer in pieces, the largest units first.

Units that the same tensors make and read cost the same, whatever else is kept. Of such a class the ones to
keep are the largest, so only their number is to be found, among the numbers that make each layer as wide as
it may be. From one such number to the next, the units in between are a piece, which stays or goes as a whole:
a unit of its own, whose squared magnitude is the sum of theirs. Since units are sorted, the pieces of a class
hold less and less energy a unit, and are taken in their order by themselves. The choice among pieces is that
of `budgets`, with its bound: of units of one layer

$$\text{optimum} - \text{energy kept} < m_s^2,$$

with s the first piece that no longer fits.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from lc_keras.costs.budgets import Product, choose
from lc_keras.costs.layout import Layout

# More than three operations in single precision lose.
_ROUNDING = 5e-7


class Class(NamedTuple):
    """Units that the same tensors make and read.

    Attributes:
        units: Array of their numbers.
        widths: Array, how many of them each piece has, the largest units in the first.
        stays: Bool, whether the first piece stays whatever it takes: without it no width would do.
    """

    units: np.ndarray
    widths: np.ndarray
    stays: bool

    def least(self, at_least: int) -> int:
        """Return how many pieces have so many units together."""
        return max(int(self.stays), int(np.searchsorted(np.cumsum(self.widths), at_least)) + (at_least > 0))


def classes_of(layouts: Sequence[Layout], multiple: int) -> list[Class]:
    """Cut the units that some tensors make into pieces.

    Args:
        layouts: Sequence of `Layout` with `units`, one for each tensor.
        multiple: Int, of which the channels that are kept of each tensor shall be a multiple, or all of them.

    Returns:
        List of `Class`.
    """
    made, read = (
        np.array([_places(places, layout.count) for layout, places in zip(layouts, some, strict=True)])
        for some in ([layout.units for layout in layouts], [layout.reads for layout in layouts])
    )
    each = np.array([layout.channels for layout in layouts])
    channels = np.rint(made * each[:, None]).astype(int)
    # Channels that always stay; the first class beside them makes up for them.
    beside = np.array([round((np.asarray(y.units) < 0).sum() * y.channels) for y in layouts])
    kinds, kind = np.unique(np.concatenate([made, read]), axis=1, return_inverse=True)
    found = []
    for number in range(kinds.shape[1]):
        units = np.flatnonzero(kind.ravel() == number)
        of_one = channels[:, units[0]]
        widths = beside + of_one * np.arange(len(units) + 1)[:, None]
        fits = np.flatnonzero((widths[:, of_one > 0] % multiple == 0).all(axis=1))
        beside[of_one > 0] = 0
        bounds = np.unique([0, *fits, len(units)])
        found.append(Class(units, np.diff(bounds), 0 not in fits))
    return found


def in_pieces(product: Product, classes: Sequence[Class]) -> Product:
    """Return what the weights of a tensor cost, by pieces in the place of units."""
    makes, reads = (
        np.concatenate([places[c.units[0]] * c.widths for c in classes])
        for places in (product.makes, product.reads)
    )
    return product._replace(makes=makes, reads=reads)


def least_pieces(
    parts: Sequence[tuple[np.ndarray, int]], classes: Sequence[Class]
) -> list[tuple[np.ndarray, int]]:
    """Return the pieces that stay whatever it takes, where of each layer a number of units does."""
    found, first = [], 0
    for one in classes:
        shares = (len(np.intersect1d(one.units, units)) * n / len(units) for units, n in parts if len(units))
        count = one.least(math.ceil(sum(shares) - 1e-9))
        found.append((first + np.arange(count), count))
        first += len(one.widths)
    return found


@tf.autograph.experimental.do_not_convert
def choose_pieces(
    magnitudes: tf.Tensor,
    costs: Sequence[Product],
    budget: float,
    parts: Sequence[tuple[np.ndarray, int]],
    classes: Sequence[Class],
) -> tf.Tensor:
    """Choose the units to keep, in pieces.

    Args:
        magnitudes: Vector of the magnitudes of units.
        costs: Sequence of `Product` of pieces.
        budget: Number κ, at least what `parts` cost.
        parts: As `least_pieces` returns them.
        classes: Sequence of `Class`.

    Returns:
        bool vector, one for each unit.
    """
    ranked = [tf.math.top_k(tf.gather(magnitudes, c.units), len(c.units)).indices for c in classes]
    order = tf.concat(
        [tf.gather(tf.constant(c.units), rank) for c, rank in zip(classes, ranked, strict=True)], 0
    )
    widths = np.concatenate([c.widths for c in classes])
    piece = tf.constant(np.repeat(np.arange(len(widths)), widths))
    energy = tf.square(tf.cast(tf.gather(magnitudes, order), tf.float64))
    norms = tf.cast(tf.sqrt(tf.math.unsorted_segment_sum(energy, piece, len(widths))), magnitudes.dtype)
    counts = [len(c.widths) for c in classes]
    first = np.repeat(np.cumsum([0, *counts[:-1]]), counts)
    # By rounding a piece could come before one of its class that holds as much.
    norms *= tf.constant(1 - _ROUNDING * (np.arange(len(widths)) - first), norms.dtype)
    kept = choose(norms, costs, budget, parts, first)
    return tf.scatter_nd(order[:, None], tf.cast(tf.gather(kept, piece), tf.int32), magnitudes.shape) > 0


def numbered(layouts: Sequence[Layout], counts: Sequence[int]) -> list[Layout]:
    """Return layouts of tensors whose units are their own, numbered one after the other."""
    ends, total = np.cumsum(counts), sum(counts)
    return [
        dataclasses.replace(layout, units=np.arange(end - count, end), count=total)
        for layout, count, end in zip(layouts, counts, ends, strict=True)
    ]


def _places(units: np.ndarray | None, count: int) -> np.ndarray:
    """Return at how many places each unit is."""
    units = np.empty(0, int) if units is None else np.asarray(units)
    return np.bincount(units[units >= 0], minlength=count)
