"""Costs of the number of groups that are not zero."""

import decimal
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import tensorflow as tf

from lc_keras.arguments import non_negative, number_or_fraction
from lc_keras.costs import budgets, thresholds
from lc_keras.costs.compression import Map, Selection, axes_of
from lc_keras.costs.grouped import Decide, Grouped
from lc_keras.costs.groups import Groups, Layout

MEASURES = ("groups", "parameters", "macs", "bytes")


class L0Constraint(Grouped, Selection):
    r"""At most κ groups are not zero: $\lVert \theta \rVert_0 \le \kappa$; or they cost at most κ together.

    The C step keeps the κ groups of largest magnitude, of all tensors together, bit for bit, and zeroes the
    others. Of groups of equal magnitude the first in the order of the tensors, then of the elements, is kept.

    With another `measure` groups have costs, which together stay within κ. They are kept in the order of
    energy for cost, $m_g^2 / c_g$, while the budget lasts; it is never exceeded. How near that is to the
    optimum, the docs page "Budgets of unequal costs" says. Neurons that a `Task` finds in a model's graph
    cost what the weights cost that stay in the smaller net: those that make them out of units that stay, and
    none of those that do not.

    Args:
        keep: Int κ ≥ 0, or float in [0, 1]: the fraction of the groups, or of what all weights cost, to keep,
            rounded down so that the budget is never exceeded. `1` is one group, `1.0` is all of them.
        groups: `Weights()`, `Neurons()` or `Blocks(shape)`. Defaults to `Weights()`.
        measure: `"groups"` (default): each group counts one. `"parameters"`: as many as it has weights.
            `"macs"`: the multiply-adds of one example, which are the output positions for each weight of a
            convolution. `"bytes"`: the size of its weights. Of `Blocks` each counts whole, though it may
            stick out of the tensor.
        keep_at_least: Int ≥ 0, or float in [0, 1]: how many groups of each layer, or what fraction of them,
            rounded up, to keep whatever it takes. `None` (default): one neuron of each layer, where a `Task`
            finds neurons in a model's graph, else none.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If one is negative, or a float beyond 1 or NaN, or `measure` is another.

    Example:

    >>> L0Constraint(keep=0.5).c_step([tf.constant([3.0, -1.0, 0.5, -2.0])], mu=1.0)[0].numpy()
    array([ 3.,  0.,  0., -2.], dtype=float32)
    """

    has_budget = True

    def __init__(
        self,
        keep: int | float,
        groups: Groups | None = None,
        measure: Literal["groups", "parameters", "macs", "bytes"] = "groups",
        keep_at_least: int | float | None = None,
    ) -> None:
        super().__init__(groups)
        self.keep = number_or_fraction("keep", keep)
        if not isinstance(measure, str) or measure not in MEASURES:
            raise ValueError(f"Expected `measure` to be one of {MEASURES}. Received: measure={measure!r}")
        self.measure = measure
        self.keep_at_least = (
            None if keep_at_least is None else number_or_fraction("keep_at_least", keep_at_least)
        )

    @property
    def looks_into_graph(self) -> bool:
        return super().looks_into_graph or self.measure != "groups"

    def total(
        self, shapes: Sequence[Sequence[int]], output_axes: Sequence[Sequence[int]] | None = None
    ) -> int:
        """What all groups in tensors of these shapes cost: their number, where each counts one.

        Args:
            shapes: Sequence of static shapes.
            output_axes: Sequence of tuples of ints, the axes of the output units of each tensor, or of
                `Layout`s. Defaults to the last axis.

        Returns:
            Python int.

        Raises:
            ValueError: If it is not known what the weights cost.
        """
        return self._cost(shapes, axes_of(output_axes, shapes), True)

    def kept(
        self, shapes: Sequence[Sequence[int]], output_axes: Sequence[Sequence[int]] | None = None
    ) -> int:
        """The budget κ in tensors of these shapes: a number of groups, or what they may cost.

        Args:
            shapes: Sequence of static shapes.
            output_axes: Sequence of tuples of ints, the axes of the output units of each tensor, or of
                `Layout`s. Defaults to the last axis.

        Returns:
            Python int.

        Raises:
            ValueError: If κ exceeds what all groups cost, or is less than what is kept whatever it takes, or
                if it is not known what the weights cost.
        """
        total = self.total(shapes, output_axes)
        # As a decimal, so that 5 % of 266,200 is 13,310 and not a rounding error below.
        kappa = int(decimal.Decimal(repr(self.keep)) * total) if isinstance(self.keep, float) else self.keep
        if kappa > total:
            each = self.measure == "groups"
            what = "the number of groups" if each else f"the {self.measure} of all weights"
            raise ValueError(f"Expected `keep` to be at most {total}, {what}. Received: {kappa}")
        least = self._cost(shapes, axes_of(output_axes, shapes), False)
        if kappa < least:
            at_least = "one unit" if self.keep_at_least is None else self.keep_at_least
            raise ValueError(
                f"Expected `keep` to be at least {least} {self.measure}, which may be needed for what is "
                f"kept in any case (of each layer {at_least}, and units that cannot "
                f"be removed). Received: {kappa}"
            )
        return kappa

    def check(
        self, shapes: Sequence[Sequence[int]], output_axes: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.kept(shapes, output_axes)

    def maps(
        self,
        weights: Sequence[tf.Tensor],
        mu: float | tf.Tensor,
        output_axes: Sequence[Sequence[int]] | None = None,
        scales: Sequence[float | tf.Tensor] | None = None,
    ) -> list[Map]:
        kappa = self.kept([w.shape for w in weights], output_axes)
        return self.largest(weights, kappa, output_axes, scales)

    def largest(
        self,
        weights: Sequence[tf.Tensor],
        kappa: int | tf.Tensor,
        output_axes: Sequence[Sequence[int]] | None = None,
        scales: Sequence[float | tf.Tensor] | None = None,
    ) -> list[Map]:
        """The C step with another κ than the budget's.

        Args:
            weights: Sequence of floating tensors or variables of static shapes.
            kappa: Int κ, up to `total`, and as much as is kept in any case.
            output_axes: Sequence of tuples of ints, the axes of the output units of each tensor, or of
                `Layout`s. Defaults to the last axis.
            scales: Sequence of float scalars or `None`, as of `maps`.

        Returns:
            List of callables, as of `maps`.
        """
        output_axes = axes_of(output_axes, weights)
        shapes = [w.shape for w in weights]
        units = _units(scales)
        measured = self._measure(weights, output_axes, units)
        units = units if self._single else None
        parts = self._parts(shapes, output_axes)
        if self.measure == "groups" and not any(at_least for _, at_least in parts):
            return self._hard(_largest(measured, kappa, units), measured, output_axes)
        if self._shared(output_axes):
            chosen = budgets.choose(measured[0], self._products(shapes, output_axes), kappa, parts)
            return self._hard(lambda *_: chosen, measured, output_axes)
        prices = [self._price(shape, axes) for shape, axes in zip(shapes, output_axes, strict=True)]
        counts = budgets.allocate(measured, prices, kappa, [at_least for _, at_least in parts], units)
        # In a tensor of its own a scale changes no order.
        each = [_largest([m], count) for m, count in zip(measured, counts, strict=True)]
        return self._hard(lambda index, magnitudes: each[index](0, magnitudes), measured, output_axes)

    def get_config(self) -> dict[str, object]:
        config: dict[str, object] = {"keep": self.keep, "groups": self.groups}
        if self.measure != "groups":
            config["measure"] = self.measure
        return config if self.keep_at_least is None else {**config, "keep_at_least": self.keep_at_least}

    def _weight_price(self, axes: Sequence[int]) -> int:
        """What a single weight costs."""
        layout = axes if isinstance(axes, Layout) else Layout(axes)
        price = {"groups": 1, "parameters": 1, "macs": layout.macs, "bytes": layout.bytes}[self.measure]
        if price is None:
            raise ValueError(
                "Expected weights whose multiply-adds are known, those of Keras layers in a Functional or "
                f"Sequential model with inputs of known size. Received: measure={self.measure!r}"
            )
        return price

    def _price(self, shape: Sequence[int], axes: Sequence[int]) -> int:
        """What a group of a tensor costs, all of which are alike."""
        if self.measure == "groups":
            return 1
        return self.groups.size(shape, axes) * self._weight_price(axes)

    def _cost(
        self, shapes: Sequence[Sequence[int]], output_axes: Sequence[Sequence[int]], everything: bool
    ) -> int:
        """What all groups cost, or what is kept whatever it takes costs at most."""
        parts = self._parts(shapes, output_axes)
        if not self._shared(output_axes):
            counts = (
                self.groups.count(shape, axes) if everything else at_least
                for shape, axes, (_, at_least) in zip(shapes, output_axes, parts, strict=True)
            )
            return sum(n * self._price(s, a) for n, s, a in zip(counts, shapes, output_axes, strict=True))

        def most(places: np.ndarray) -> int:
            if everything:
                return places.sum()
            return sum(np.sort(places[units])[::-1][:at_least].sum() for units, at_least in parts)

        products = self._products(shapes, output_axes)
        return int(sum(p.price * (p.made + most(p.makes)) * (p.read + most(p.reads)) for p in products))

    def _products(
        self, shapes: Sequence[Sequence[int]], output_axes: Sequence[Layout]
    ) -> list[budgets.Product]:
        """What shared units cost in each tensor."""
        count = output_axes[0].count
        if self.measure == "groups":
            return [budgets.Product(1, np.ones(count, int), np.zeros(count, int), 0, 1)]

        def places(units: np.ndarray) -> tuple[np.ndarray, int]:
            return np.bincount(units[units >= 0], minlength=count), int((units < 0).sum())

        products = []
        for shape, layout in zip(shapes, output_axes, strict=True):
            units = np.asarray(layout.units)
            (makes, made), (reads, read) = places(units), (np.zeros(count, int), 1)
            if layout.reads is not None:
                reads, read = places(layout.reads)
            size = math.prod(shape) // (len(units) * (1 if layout.reads is None else len(layout.reads)))
            products.append(budgets.Product(size * self._weight_price(layout), makes, reads, made, read))
        return [p for p in products if p.price]

    def _parts(
        self, shapes: Sequence[Sequence[int]], output_axes: Sequence[Sequence[int]]
    ) -> list[tuple[np.ndarray | None, int]]:
        """The groups of each layer, as numbers if they are shared, and how many to keep whatever it takes."""
        shared = self._shared(output_axes)
        parts, seen = [], np.empty(0, int)
        for shape, axes in zip(shapes, output_axes, strict=True):
            groups = None
            if shared and isinstance(axes, Layout) and axes.units is not None:
                # A layer's other weights, layers tied to it, and norms after it have units of before.
                groups = np.setdiff1d(axes.units[axes.units >= 0], seen)
                seen = np.union1d(seen, groups)
                count = len(groups)
            else:
                count = self.groups.count(shape, axes)
            at_least = self.keep_at_least
            if at_least is None:
                at_least = int(shared)
            elif isinstance(at_least, float):
                at_least = math.ceil(decimal.Decimal(repr(at_least)) * count)
            parts.append((groups, min(at_least, count)))
        return parts


class L0Penalty(Grouped, Selection):
    r"""Each group that is not zero costs α: $C(\theta) = \alpha \lVert \theta \rVert_0$.

    The C step keeps the groups of magnitude $m > \sqrt{2\alpha/\mu}$ bit for bit and zeroes the others.

    Args:
        alpha: Float α ≥ 0.
        groups: `Weights()`, `Neurons()` or `Blocks(shape)`. Defaults to `Weights()`.

    Raises:
        TypeError: If `alpha` or `groups` is of another type.
        ValueError: If `alpha` is negative or not finite.

    Example:

    >>> L0Penalty(alpha=2.0).c_step([tf.constant([3.0, -2.0, 1.0])], mu=1.0)[0].numpy()
    array([3., 0., 0.], dtype=float32)
    """

    def __init__(self, alpha: float, groups: Groups | None = None) -> None:
        super().__init__(groups)
        self.alpha = non_negative("alpha", alpha)

    def maps(
        self,
        weights: Sequence[tf.Tensor],
        mu: float | tf.Tensor,
        output_axes: Sequence[Sequence[int]] | None = None,
        scales: Sequence[float | tf.Tensor] | None = None,
    ) -> list[Map]:
        output_axes = axes_of(output_axes, weights)
        units = _units(scales)
        measured = self._measure(weights, output_axes, units)
        units = units if self._single else None
        tau = tf.sqrt(2 * self.alpha / tf.cast(mu, tf.float64))

        def decide(index: int, magnitudes: tf.Tensor) -> tf.Tensor:
            # Above τ is at or above the next float.
            dtype = thresholds.common_dtype([magnitudes])
            next_float = thresholds.magnitude_bits(tau, dtype) + 1
            return thresholds.at_least(_in_units(magnitudes, units, index, dtype), next_float)

        return self._hard(decide, measured, output_axes)

    def get_config(self) -> dict[str, object]:
        return {"alpha": self.alpha, "groups": self.groups}


def _units(scales: Sequence[float | tf.Tensor] | None) -> list[tf.Tensor] | None:
    """What magnitudes are multiplied by, so that squares of distances have these scales."""
    return None if scales is None else [tf.sqrt(tf.convert_to_tensor(scale)) for scale in scales]


def _in_units(
    magnitudes: tf.Tensor, units: Sequence[tf.Tensor] | None, index: int, dtype: tf.DType
) -> tf.Tensor:
    return magnitudes if units is None else tf.cast(magnitudes, dtype) * tf.cast(units[index], dtype)


def _largest(
    measured: Sequence[tf.Tensor], kappa: int | tf.Tensor, units: Sequence[tf.Tensor] | None = None
) -> Decide:
    """Decides for the κ largest of all magnitudes together, each in its units; of ties, for the first."""
    dtype = thresholds.common_dtype(measured)
    threshold = thresholds.kth_largest(measured, kappa, units)
    left = kappa - threshold.above
    # Of zeros, too: what is subnormal may be flushed to zero in its units, and is none in the tensor.
    crowded = threshold.ties > left

    def count_ties() -> tf.Tensor:
        def of(tensor: tf.Tensor, unit: Sequence[tf.Tensor] | None) -> tf.Tensor:
            def update(n: tf.Tensor, chunk: tf.Tensor) -> tf.Tensor:
                tie = thresholds.magnitude_bits(chunk, dtype) == threshold.bits
                return n + tf.math.count_nonzero(tie, dtype=tf.int32)

            return thresholds.fold([tensor], tf.constant(0), update, unit)

        return tf.stack([of(m, units and units[i : i + 1]) for i, m in enumerate(measured)])

    ties = tf.cond(crowded, count_ties, lambda: tf.zeros([len(measured)], tf.int32), name="crowded")
    quota = left - tf.cumsum(ties, exclusive=True)

    def decide(index: int, magnitudes: tf.Tensor) -> tf.Tensor:
        magnitudes = _in_units(magnitudes, units, index, dtype)

        def first_come() -> tf.Tensor:
            bits = thresholds.magnitude_bits(magnitudes, dtype)
            tie = tf.reshape(bits == threshold.bits, [-1])
            rank = tf.reshape(tf.cumsum(tf.cast(tie, tf.int32)), tf.shape(bits))
            return (bits > threshold.bits) | ((bits == threshold.bits) & (rank <= quota[index]))

        return tf.cond(
            crowded, first_come, lambda: thresholds.at_least(magnitudes, threshold.bits), name="crowded"
        )

    return decide
