"""The prices of groups: of all of them, and of those of each layer that always stay."""

import decimal
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import tensorflow as tf

from lc_keras.costs.budgets import Product, choose
from lc_keras.costs.groups import Groups
from lc_keras.costs.layout import Layout
from lc_keras.costs.multiples import Class, choose_pieces, classes_of, in_pieces, least_pieces

Measure = Literal["groups", "parameters", "macs", "bytes", "milliseconds"]


@dataclass(frozen=True)
class TensorPrices:
    """The prices of groups that lie in one tensor each; all groups of a tensor cost the same.

    Attributes:
        prices: List of ints, what a group of each tensor costs.
        counts: List of ints, how many groups each tensor has.
        at_least: List of ints, how many of these always stay.
    """

    prices: list[int]
    counts: list[int]
    at_least: list[int]

    @classmethod
    def of(
        cls, groups: Groups, layouts: Sequence[Layout], measure: Measure, at_least: int | float
    ) -> "TensorPrices":
        """Return the prices of some tensors' groups; `at_least` is the number or fraction of each to keep.

        Raises:
            ValueError: If a tensor cannot be grouped, or the cost of its weights is not known.
        """
        counts = [groups.count(layout) for layout in layouts]
        sizes = [1 if measure == "groups" else groups.size(layout) for layout in layouts]
        prices = [
            size * price_of_weight(layout, measure) for size, layout in zip(sizes, layouts, strict=True)
        ]
        return cls(prices, counts, [_part(at_least, count) for count in counts])

    @property
    def total(self) -> int:
        """Return what all groups cost."""
        return sum(price * count for price, count in zip(self.prices, self.counts, strict=True))

    @property
    def least(self) -> int:
        """Return the cost of the groups that always stay."""
        return sum(price * count for price, count in zip(self.prices, self.at_least, strict=True))


@dataclass(frozen=True)
class UnitPrices:
    """The prices of units that several tensors make, where the cost of one depends on others.

    Attributes:
        products: List of `Product`, what the weights of each tensor cost.
        parts: List of pairs: the units of a layer, as an array of their numbers, and how many of these always
            stay.
        classes: List of `Class`, whose pieces take the place of units; empty (default) if units stay or go
            one by one.
    """

    products: list[Product]
    parts: list[tuple[np.ndarray, int]]
    classes: list[Class] = field(default_factory=list)

    @classmethod
    def of(cls, layouts: Sequence[Layout], measure: Measure, at_least: int | float) -> "UnitPrices":
        """Return the prices of the units that some tensors make, as `TensorPrices.of` does."""
        parts, seen = [], np.empty(0, int)
        for layout in layouts:
            units = np.asarray(layout.units)
            # A layer's other weights, layers tied to it, and norms after it have units seen before.
            new = np.setdiff1d(units[units >= 0], seen)
            seen = np.union1d(seen, new)
            parts.append((new, _part(at_least, len(new))))
        if measure == "groups":
            count = layouts[0].count
            return cls([Product(1, np.ones(count, int), np.zeros(count, int), 0, 1)], parts)
        products = [product for layout in layouts for product in _products(layout, measure)]
        return cls([product for product in products if product.price], parts)

    def in_multiples(self, multiple: int, layouts: Sequence[Layout]) -> "UnitPrices":
        """Return the prices of pieces of units, where layers keep multiples of a number."""
        if multiple == 1:
            return self
        classes = classes_of(layouts, multiple)
        products = [in_pieces(product, classes) for product in self.products]
        return UnitPrices(products, least_pieces(self.parts, classes), classes)

    def choose(self, magnitudes: tf.Tensor, budget: float | tf.Tensor) -> tf.Tensor:
        """Return which units to keep, as a bool vector, from their magnitudes and a budget."""
        if self.classes:
            return choose_pieces(magnitudes, self.products, budget, self.parts, self.classes)
        return choose(magnitudes, self.products, budget, self.parts)

    @property
    def total(self) -> int:
        """Return what all units cost."""
        return rounded(sum(product(np.ones_like(product.makes)) for product in self.products))

    @property
    def least(self) -> int:
        """Return the most that the units that always stay can cost, whichever they are."""

        def most(places: list[np.ndarray]) -> np.ndarray:
            of_parts = (
                np.sort(np.array(places)[:, units])[:, ::-1][:, :least] for units, least in self.parts
            )
            return sum((largest.sum(1) for largest in of_parts), np.zeros(len(places), int))

        if not self.products:
            return 0
        makes, reads = most([p.makes for p in self.products]), most([p.reads for p in self.products])
        costs = zip(self.products, makes, reads, strict=True)
        return rounded(sum(p.price * (p.made + m) * (p.read + r) for p, m, r in costs))


def rounded(cost: float | np.ndarray) -> int:
    """Return a cost as a whole number; nanoseconds are rounded up, past what a sum in another order is."""
    return math.ceil(cost + 0.01) if isinstance(cost, float) else int(cost)


def price_of_weight(layout: Layout, measure: Measure) -> int:
    """Return what a single weight costs."""
    if measure == "milliseconds":
        raise _time_unknown()
    price = {"groups": 1, "parameters": 1, "macs": layout.macs, "bytes": layout.bytes}[measure]
    if price is None:
        raise ValueError(
            "Expected weights whose multiply-adds are known: those by which a matrix product, an einsum or a "
            "convolution multiplies inputs of known sizes, which a Task takes as `input_signature` where the "
            f"model leaves them open. Received: measure={measure!r}"
        )
    return price


def _products(layout: Layout, measure: Measure) -> list[Product]:
    """Return the cost of the weights of a tensor that makes shared units, and may read some."""

    def places(units: np.ndarray) -> tuple[np.ndarray, int]:
        return np.bincount(units[units >= 0], minlength=layout.count), int((units < 0).sum())

    units, none = np.asarray(layout.units), np.zeros(layout.count, int)
    (makes, made), (reads, read), size = places(units), (none, 1), len(units)
    if layout.reads is not None:
        (reads, read), size = places(layout.reads), size * len(layout.reads)
    if measure != "milliseconds":
        return [Product(layout.size // size * price_of_weight(layout, measure), makes, reads, made, read)]
    if layout.nanoseconds is None:
        raise _time_unknown()
    both, own, fixed = layout.nanoseconds
    return [
        Product(both / size, makes, reads, made, read),
        Product(own / len(units), makes, none, made, 1),
        Product(fixed, none, none, 1, 1),
    ]


def _time_unknown() -> ValueError:
    return ValueError(
        "Expected, for a budget in milliseconds, weights of a model whose time `lc_keras.latency(model)` has "
        "fitted, as a Task finds it. Received: weights by themselves"
    )


def _part(at_least: int | float, count: int) -> int:
    """Return how many of `count` groups a number, or a fraction rounded up, asks for."""
    if isinstance(at_least, float):
        at_least = math.ceil(decimal.Decimal(repr(at_least)) * count)
    return min(at_least, count)
