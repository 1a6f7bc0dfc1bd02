r"""Units that are kept in multiples: the units of a layer in pieces, the largest units first.

Units that the same tensors make and read cost the same, whatever else is kept. The ones to keep of such a
class are the largest, so only their number has to be found, among the numbers that give each layer a width it
may have. The units between one such number and the next are a piece, which stays or goes as a whole: it acts
as one unit whose squared magnitude is the sum of theirs. Since units are sorted, the energy per unit falls
from piece to piece of a class, so that pieces are automatically taken in their order. Pieces are chosen as in
`budgets`, with its bound: for units of one layer

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

# More than what three operations in single precision lose.
_ROUNDING = 5e-7


class Class(NamedTuple):
    """Units that the same tensors make and read.

    Attributes:
        units: Array of their numbers.
        widths: Array, how many units each piece has, with the largest units in the first.
        stays: Bool, whether the first piece always stays: without it, no width would do.
    """

    units: np.ndarray
    widths: np.ndarray
    stays: bool

    def least(self, at_least: int) -> int:
        """Return how many pieces together have at least so many units."""
        return max(int(self.stays), int(np.searchsorted(np.cumsum(self.widths), at_least)) + (at_least > 0))


def classes_of(layouts: Sequence[Layout], multiple: int) -> list[Class]:
    """Cut the units that some tensors make into pieces.

    Args:
        layouts: Sequence of `Layout` with `units`, one for each tensor.
        multiple: Int; the channels that are kept of each tensor shall be a multiple of it, or all of them.

    Returns:
        List of `Class`.
    """
    made, read = (
        np.array([_places(places, layout.count) for layout, places in zip(layouts, some, strict=True)])
        for some in ([layout.units for layout in layouts], [layout.reads for layout in layouts])
    )
    each = np.array([layout.channels for layout in layouts])
    channels = np.rint(made * each[:, None]).astype(int)
    # Channels that always stay; the first class of the same tensor makes up for them.
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
    """Return what the weights of a tensor cost, with pieces in place of units."""
    makes, reads = (
        np.concatenate([places[c.units[0]] * c.widths for c in classes])
        for places in (product.makes, product.reads)
    )
    return product._replace(makes=makes, reads=reads)


def least_pieces(
    parts: Sequence[tuple[np.ndarray, int]], classes: Sequence[Class]
) -> list[tuple[np.ndarray, int]]:
    """Return the pieces that always stay, given how many units of each layer always stay."""
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
    # Rounding could put a piece before an earlier one of its class that holds as much.
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
    """Return in how many places each unit is."""
    units = np.empty(0, int) if units is None else np.asarray(units)
    return np.bincount(units[units >= 0], minlength=count)
