"""Costs of the number of groups that are not zero."""

import dataclasses
import decimal
import functools
import math
import typing
from collections.abc import Callable
from typing import Literal

import tensorflow as tf

from lc_keras.arguments import number_or_fraction, optional, warn, whole
from lc_keras.costs import budgets, thresholds
from lc_keras.costs.compression import NON_NEGATIVE, Layouts, Map, Tensors, check_number
from lc_keras.costs.grouped import Decide, Grouped
from lc_keras.costs.groups import WEIGHTS, Groups
from lc_keras.costs.multiples import numbered
from lc_keras.costs.prices import Measure, TensorPrices, UnitPrices, rounded
from lc_keras.costs.sparse import sparse_values
from lc_keras.costs.values import Values
from lc_keras.internals.tensorflow import compiled, traced_once

MEASURES = typing.get_args(Measure)


# Milliseconds need not be whole.
_KEPT = {"check": functools.partial(number_or_fraction, most=math.inf)}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class L0Constraint(Grouped):
    r"""At most κ groups are nonzero: $\lVert \theta \rVert_0 \le \kappa$; or the nonzero ones cost at most κ.

    The C step keeps the κ groups of largest magnitude, over all tensors together, bit for bit, and zeroes the
    others (Carreira-Perpiñán & Idelbayev, "Learning-Compression" algorithms for neural net pruning, CVPR
    2018). Of groups of equal magnitude, it keeps the first in the order of the tensors, then of the elements.

    With another `measure`, each group has a cost, and the kept groups cost at most κ together. Groups are
    kept in the order of energy per cost, $m_g^2 / c_g$, while the budget lasts; it is never exceeded. The
    docs page "Which cost, which budget" says how near this is to the optimum. Neurons that a `Task` finds in
    a model's graph cost as much as their weights in the smaller net: weights that read a unit that stays
    count, weights that read a removed unit do not.

    Args:
        keep: Int κ ≥ 0, or float in [0, 1]: the fraction to keep of all groups, or of the cost of all
            weights, rounded down so that the budget is never exceeded. `1` is one group, `1.0` all of them.
        groups: `Weights()`, `Neurons()` or `Blocks(shape)`. Defaults to `Weights()`.
        measure: `"groups"` (default): each group counts as one. `"parameters"`: the number of its weights.
            `"macs"`: its multiply-adds for one example; each weight of a convolution has as many as there are
            output positions. `"bytes"`: the size of its weights. A block counts in full, even where it sticks
            out of the tensor. `"milliseconds"`, for `Neurons()`: the time of a batch, as fitted by `latency`;
            `keep` as an int, or as a float above 1, is then κ in milliseconds.
        keep_at_least: Int ≥ 0, or float in [0, 1]: how many groups of each layer, or what fraction of them,
            rounded up, to keep in any case. `None` (default): for neurons that a `Task` finds in a model's
            graph, half of what an even budget would keep of each layer, and at least one; otherwise none.
        multiple_of: Int ≥ 1, default 1. With `Neurons()`: each layer keeps a multiple of it, or all, counted
            in channels: a head of attention, or a group of a convolution, counts as all the channels it has.
            Layers that are tied keep the same.
        values: The values that kept weights may have, such as `Codebook(16)` or `Grid(8)`; for single weights
            only. The C step then alternates between choosing weights and learning values. `None` (default):
            any values.

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If an argument is out of range, or `measure` is none of the above; if milliseconds or a
            multiple are asked for without `Neurons()`, or `values` with groups. For given weights, if `keep`
            exceeds all there is, or is less than what is kept in any case, or their cost is not known.

    Example:

    >>> L0Constraint(keep=0.5).c_step([tf.constant([3.0, -1.0, 0.5, -2.0])], mu=1.0)[0].numpy()
    array([ 3.,  0.,  0., -2.], dtype=float32)
    """

    keep: int | float = dataclasses.field(metadata=_KEPT)
    groups: Groups = WEIGHTS
    measure: Measure = "groups"
    keep_at_least: int | float | None = dataclasses.field(
        default=None, metadata={"check": optional(number_or_fraction)}
    )
    multiple_of: int = dataclasses.field(default=1, metadata={"check": whole})
    values: Values | None = None

    has_budget = can_loosen = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.measure, str) or self.measure not in MEASURES:
            raise ValueError(
                f"Expected `measure` to be one of {MEASURES}. Received: measure={self.measure!r}"
            )
        if not self.needs_time:
            number_or_fraction("keep", self.keep)
        if (self.multiple_of > 1 or self.needs_time) and not self.needs_units:
            option = "measure='milliseconds'" if self.needs_time else f"multiple_of={self.multiple_of}"
            raise ValueError(
                f"Expected `groups` to be Neurons() with {option}. Received: groups={self.groups!r}"
            )
        if not isinstance(self.values, (Values, type(None))):
            raise TypeError(
                f"Expected `values` such as Codebook(16) or Grid(8). Received: values={self.values!r}"
            )
        if self.values and not self._single:
            raise ValueError(f"Expected `values` of single weights. Received: groups={self.groups!r}")

    @property
    def keeps_values(self) -> bool:  # type: ignore[override]  # of this one
        return self.values is None

    @property
    def close_values(self) -> bool:  # type: ignore[override]  # of this one
        return self.values is not None and self.values.close_values

    @property
    def needs_macs(self) -> bool:
        return self.measure == "macs"

    @property
    def needs_time(self) -> Literal["widths"] | None:
        return "widths" if self.measure == "milliseconds" else None

    def total(self, layouts: Layouts) -> int:
        """Return the cost of all groups of some tensors: their number, where each counts as one."""
        return self._prices(layouts).total

    def budget(self, layouts: Layouts) -> int:
        """Return the budget κ for some tensors: a number of groups, or what they may cost.

        Raises:
            ValueError: If κ exceeds the cost of all groups, or is less than the cost of what is kept in any
                case, or if the cost of the weights is not known.
        """
        prices = self._prices(layouts)
        total, least = prices.total, prices.least
        kappa = self._kappa(total)
        # Time is counted in nanoseconds, and may be off by one.
        unit, digits = (1_000_000, 6) if self.needs_time else (1, 12)
        most, fewest, received = (f"{n / unit:.{digits}g}" for n in (total, least, kappa))
        if kappa > total + bool(self.needs_time):
            each = self.measure == "groups"
            what = "the number of groups" if each else f"the {self.measure} of all weights"
            raise ValueError(f"Expected `keep` to be at most {most}, {what}. Received: {received}")
        if kappa < least:
            at_least = "one unit" if self.keep_at_least is None else self.keep_at_least
            part = math.ceil(1000 * least / total) / 1000
            raise ValueError(
                f"Expected `keep` to be at least {fewest} {self.measure}, {part} of all, which may be needed "
                f"for what is kept in any case (of each layer {at_least}, and units that cannot be removed). "
                f"Received: {received}"
            )
        return min(kappa, total)

    def check(self, layouts: Layouts) -> None:
        self.budget(layouts)
        if self.measure == "groups":
            check_number(sum(map(self.groups.count, layouts)))
        is_count = isinstance(self.keep, int) and self.measure in ("groups", "parameters")
        if is_count and 0 < self.keep <= 100 and 1000 * self.keep < (total := self.total(layouts)):
            what = "weights" if self._single or self.measure == "parameters" else "groups"
            warn(
                f"keep={self.keep} keeps {self.keep} of {total:,} {what}; for {self.keep} % write "
                f"keep={self.keep / 100}.",
            )
        if self.values:
            self.values.check(layouts)

    def maps(self, weights: Tensors, mu: float | tf.Tensor, layouts: Layouts) -> list[Map]:
        largest = functools.partial(self.largest, kappa=self.budget(layouts), layouts=layouts)
        return sparse_values(self.values, largest, weights, layouts) if self.values else largest(weights)

    def loosened(self, weights: Tensors, slack: tf.Tensor, layouts: Layouts) -> list[Map]:
        kappa, total = self.budget(layouts), self.total(layouts)
        # In double precision, so that a slack of 0 is the budget itself, however large the budget.
        more = tf.floor(tf.cast(slack, tf.float64) * (total - kappa))
        return self.largest(weights, kappa + more, layouts)

    def largest(self, weights: Tensors, kappa: int | tf.Tensor, layouts: Layouts) -> list[Map]:
        """Return the C step, as `maps`, for a κ between what is kept in any case and `total`."""
        prices, layouts = self._prices(layouts), self._numbered(layouts)
        magnitudes = self._magnitudes(weights, layouts)
        if isinstance(prices, UnitPrices):
            chosen = prices.choose(magnitudes[0], kappa)
            return self._hard([functools.partial(lambda _: chosen)], magnitudes, layouts)
        if self.measure == "groups" and not any(prices.at_least):
            return self._hard(_largest(magnitudes, kappa), magnitudes, layouts)
        counts = budgets.allocate(magnitudes, prices.prices, kappa, prices.at_least)
        each = [_largest([m], count)[0] for m, count in zip(magnitudes, counts, strict=True)]
        return self._hard(each, magnitudes, layouts)

    def _numbered(self, layouts: Layouts) -> Layouts:
        """Return layouts that say which units there are, if units are kept in multiples."""
        if self.multiple_of == 1 or self._shared(layouts):
            return layouts
        return numbered(layouts, [self.groups.count(layout) for layout in layouts])

    def _prices(self, layouts: Layouts) -> TensorPrices | UnitPrices:
        of_graph, layouts = self._shared(layouts), self._numbered(layouts)
        if not self._shared(layouts):
            return TensorPrices.of(self.groups, layouts, self.measure, self.keep_at_least or 0)

        def keeping(at_least: int | float) -> UnitPrices:
            return UnitPrices.of(layouts, self.measure, at_least).in_multiples(self.multiple_of, layouts)

        if self.keep_at_least is not None or not of_graph:
            return keeping(self.keep_at_least or 0)
        one_each = keeping(1)
        total = one_each.total
        kappa = self._kappa(total)
        # The cost of a kernel depends on the units of two layers.
        power = 1 if self.measure == "groups" else 2
        # Half of nothing would not be one unit.
        half = keeping(min(1.0, (kappa / max(total, 1)) ** (1 / power) / 2)) if kappa else one_each
        return half if half.least <= kappa else one_each

    def _kappa(self, total: int) -> int:
        # As a decimal, so that 5 % of 266,200 is 13,310 and not a rounding error below.
        if self.needs_time and (isinstance(self.keep, int) or self.keep > 1):
            return rounded(1e6 * self.keep)
        return int(decimal.Decimal(repr(self.keep)) * total) if isinstance(self.keep, float) else self.keep


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class L0Penalty(Grouped):
    r"""Each group that is not zero costs α: $C(\theta) = \alpha \lVert \theta \rVert_0$.

    The C step keeps the groups of magnitude $m > \sqrt{2\alpha/\mu}$ bit for bit and zeroes the others
    (Carreira-Perpiñán & Idelbayev, "Learning-Compression" algorithms for neural net pruning, CVPR 2018).

    Args:
        alpha: Float α ≥ 0.
        groups: `Weights()`, `Neurons()` or `Blocks(shape)`. Defaults to `Weights()`.

    Raises:
        TypeError: If `alpha` or `groups` is of the wrong type.
        ValueError: If `alpha` is negative or not finite.

    Example:

    >>> L0Penalty(alpha=2.0).c_step([tf.constant([3.0, -2.0, 1.0])], mu=1.0)[0].numpy()
    array([3., 0., 0.], dtype=float32)
    """

    alpha: float = dataclasses.field(metadata=NON_NEGATIVE)
    groups: Groups = WEIGHTS

    keeps_values = True

    def maps(self, weights: Tensors, mu: float | tf.Tensor, layouts: Layouts) -> list[Map]:
        magnitudes = self._magnitudes(weights, layouts)
        tau = tf.sqrt(2 * self.alpha / tf.cast(mu, tf.float64))
        return self._hard([functools.partial(_is_above, tau)] * len(magnitudes), magnitudes, layouts)


def _is_above(tau: tf.Tensor, magnitudes: tf.Tensor) -> tf.Tensor:
    # Above τ is at or above the next float.
    dtype = thresholds.common_dtype([magnitudes])
    return thresholds.magnitude_bits(magnitudes, dtype) >= thresholds.magnitude_bits(tau, dtype) + 1


def _largest(tensors: Tensors, kappa: int | tf.Tensor) -> list[Decide]:
    """Return functions that choose the κ largest of all magnitudes together; of equal ones, the first."""
    find = _least_and_last if tf.executing_eagerly() else _traced_least_and_last
    least, last = find(tensors, tf.cast(kappa, tf.int32))
    return [functools.partial(_is_among, least, of_tensor) for of_tensor in tf.unstack(last)]


def _least_and_last(tensors: Tensors, kappa: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the bits of the κ-th largest magnitude, and the place of the last kept tie in each tensor."""
    dtype = thresholds.common_dtype(tensors)
    threshold = thresholds.kth_largest(tensors, kappa)
    left = kappa - threshold.above
    # For zeros, too: the norm of subnormal weights may be flushed to zero, and the weights are not zero.
    crowded = threshold.ties > left

    def places() -> tf.Tensor:
        ties_in, found, rest = _ties_in(dtype), [], left
        for tensor in tensors:

            def update(
                state: tuple[tf.Tensor, tf.Tensor], chunk: tf.Tensor, rest: tf.Tensor = rest
            ) -> tuple[tf.Tensor, tf.Tensor]:
                number, before = ties_in(tf.cast(chunk, dtype), threshold.bits, rest - state[0])
                return state[0] + number, state[1] + before

            ties, place = thresholds.fold([tensor], (tf.constant(0), tf.constant(0)), update)
            found.append(tf.where(rest > 0, place, -1))
            rest -= ties
        return tf.stack(found)

    everywhere = tf.fill([len(tensors)], tf.int32.max)
    return threshold.bits, tf.cond(crowded, places, lambda: everywhere, name="crowded")


@functools.cache
def _ties_in(dtype: tf.DType) -> Callable[..., tuple[tf.Tensor, tf.Tensor]]:
    """Return a graph of `_ties_up_to` for vectors of any length."""
    bits = thresholds.bits_type(dtype)
    signature = [tf.TensorSpec([None], dtype), tf.TensorSpec([], bits), tf.TensorSpec([], tf.int32)]
    return traced_once(_ties_up_to, signature)


def _ties_up_to(chunk: tf.Tensor, bits: tf.Tensor, nth: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return how many magnitudes have these bits, and how many places are before the n-th of them, or all.

    If n is 0 or less, both are 0: nobody asks for ties that come after the last kept one.
    """

    def counted() -> tuple[tf.Tensor, tf.Tensor]:
        ones = tf.cast(thresholds.magnitude_bits(chunk, chunk.dtype) == bits, tf.int32)
        number = tf.reduce_sum(ones)

        def here() -> tf.Tensor:
            return tf.math.count_nonzero(tf.cumsum(ones) < nth, dtype=tf.int32)

        # Sums up to each element are slow, and needed for only one chunk of many.
        return number, tf.cond(nth <= number, here, lambda: tf.size(ones))

    return tf.cond(nth > 0, counted, lambda: (tf.constant(0), tf.constant(0)))


_traced_least_and_last = compiled(_least_and_last)


def _is_among(least: tf.Tensor, last: tf.Tensor, magnitudes: tf.Tensor) -> tf.Tensor:
    """Return which magnitudes are above one that is given as bits, or equal to it up to a last place."""
    dtype = tf.float32 if least.dtype == tf.int32 else tf.float64
    bits = thresholds.magnitude_bits(magnitudes, dtype)
    place = tf.reshape(tf.range(tf.size(bits)), tf.shape(bits))
    return (bits > least) | ((bits == least) & (place <= last))
