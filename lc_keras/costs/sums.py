"""Sums of compressions."""

import dataclasses
from typing import Any, Literal, Self

import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import Compression, Layouts, Map, Tensors
from lc_keras.costs.layout import Layout
from lc_keras.costs.serialization import made

# How often each part is solved for anew; the last rounds gain little.
_ROUNDS = 8


@dataclasses.dataclass(frozen=True, eq=False, repr=False, init=False)
class Sum(Compression):
    r"""The weights are a sum of parts, each under a cost of its own: $\theta = \theta_1 + \dots + \theta_n$.

    The C step solves for one part at a time, $\theta_j \leftarrow \Pi_j(v - \sum_{i \ne j} \theta_i)$,
    beginning with the first part and all parts zero, so that the distance falls from round to round
    (Idelbayev & Carreira-Perpiñán, More general and effective model compression via an additive combination
    of compressions, ECML 2021). It ends when a round gains nothing, or after eight.

    Args:
        *parts: At least two `Compression`s of single weights or kernels, such as `Codebook(2)` and
            `L0Constraint(0.01)`.

    Raises:
        TypeError: If a part is not a `Compression`.
        ValueError: If there are fewer than two parts, or one is a cost of neurons.

    Example:

    >>> both = Sum(Codebook(1), L0Constraint(1))
    >>> both.c_step([tf.constant([1.0, 1.0, 5.0])], mu=1.0)[0].numpy()
    array([1., 1., 5.], dtype=float32)
    """

    parts: tuple[Compression, ...]

    def __init__(self, *parts: Compression) -> None:
        for part in parts:
            if not isinstance(part, Compression):
                raise TypeError(f"Expected compressions to add. Received: {part!r}")
        if len(parts) < 2 or any(part.needs_units for part in parts):
            raise ValueError(
                f"Expected two compressions or more, of single weights or kernels. Received: {parts!r}"
            )
        object.__setattr__(self, "parts", parts)

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(*made(config["parts"]))

    def __repr__(self) -> str:
        return f"Sum({', '.join(map(repr, self.parts))})"

    @property
    def has_budget(self) -> bool:  # type: ignore[override]  # of these parts
        return all(part.has_budget for part in self.parts)

    @property
    def few_values(self) -> bool:  # type: ignore[override]  # of these parts
        return any(part.few_values for part in self.parts)

    @property
    def needs_macs(self) -> bool:
        return any(part.needs_macs for part in self.parts)

    @property
    def needs_time(self) -> Literal["widths", "ranks"] | None:
        return next((part.needs_time for part in self.parts if part.needs_time), None)

    def check(self, layouts: Layouts) -> None:
        for part in self.parts:
            part.check(layouts)

    def spares(self, layout: Layout) -> bool:
        return any(part.spares(layout) for part in self.parts)

    def maps(self, weights: Tensors, mu: float | tf.Tensor, layouts: Layouts) -> list[Map]:
        values = [thresholds.read(weight) for weight in weights]
        thetas, _ = self.solve(values, mu, layouts)

        def of(*parts: tf.Tensor) -> Map:
            return lambda value: tf.cast(tf.add_n(parts), value.dtype)

        return [of(*parts) for parts in zip(*thetas, strict=True)]

    def solve(
        self, values: Tensors, mu: float | tf.Tensor, layouts: Layouts
    ) -> tuple[list[list[tf.Tensor]], tf.Tensor]:
        """Return the parts of θ, a list of tensors for each part, and how far their sum is from the weights.

        Args:
            values: Sequence of float32 or float64 tensors of static shapes.
            mu: float32 scalar tensor μ.
            layouts: Sequence of `Layout`, one for each tensor.

        Returns:
            Tuple of a list of lists of tensors and a float64 scalar.
        """

        def improve(thetas: list[list[tf.Tensor]]) -> tuple[list[list[tf.Tensor]], tf.Tensor]:
            rest = [v - tf.add_n(parts) for v, parts in zip(values, zip(*thetas, strict=True), strict=True)]
            found = []
            for part, theta in zip(self.parts, thetas, strict=True):
                target = [r + t for r, t in zip(rest, theta, strict=True)]
                maps = part.maps(target, mu, layouts)
                found.append([solve(t) for solve, t in zip(maps, target, strict=True)])
                rest = [t - new for t, new in zip(target, found[-1], strict=True)]
            return found, thresholds.l2_norm(rest)

        def go_on(_: tf.Tensor, thetas: object, distance: tf.Tensor, before: tf.Tensor) -> tf.Tensor:
            return distance < before

        def once_more(
            i: tf.Tensor, thetas: list[list[tf.Tensor]], distance: tf.Tensor, _: tf.Tensor
        ) -> tuple[tf.Tensor, list[list[tf.Tensor]], tf.Tensor, tf.Tensor]:
            found, new = improve(thetas)
            nearer = (new < distance) | (not self.has_budget)
            kept = tf.nest.map_structure(lambda a, b: tf.where(nearer, a, b), found, thetas)
            return i + 1, kept, tf.where(nearer, new, distance), distance

        start = improve([[tf.zeros_like(v) for v in values] for _ in self.parts])
        never = tf.fill([], tf.constant(float("inf"), tf.float64))
        _, thetas, distance, _ = tf.while_loop(
            go_on, once_more, (0, *start, never), maximum_iterations=_ROUNDS - 1
        )
        return thetas, distance
