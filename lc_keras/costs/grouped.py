"""Costs of the magnitudes of groups of weights."""

from collections.abc import Callable, Sequence
from typing import TypeGuard

import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import Compression, Map, axes_of
from lc_keras.costs.groups import Groups, Layout, Neurons, Weights

# Which of the magnitudes of a tensor, given by its index, are kept.
Decide = Callable[[int, tf.Tensor], tf.Tensor]


class Grouped(Compression):
    """A cost of the magnitudes of groups."""

    def __init__(self, groups: Groups | None) -> None:
        self.groups: Groups = Weights() if groups is None else groups
        if not isinstance(self.groups, Groups):
            raise TypeError(
                f"Expected `groups` to be Weights(), Neurons() or Blocks(shape). Received: groups={groups!r}"
            )

    @property
    def looks_into_graph(self) -> bool:
        return isinstance(self.groups, Neurons)

    def check(
        self, shapes: Sequence[Sequence[int]], output_axes: Sequence[Sequence[int]] | None = None
    ) -> None:
        self.count(shapes, output_axes)

    def count(
        self, shapes: Sequence[Sequence[int]], output_axes: Sequence[Sequence[int]] | None = None
    ) -> int:
        """The number of groups in tensors of these shapes.

        Args:
            shapes: Sequence of static shapes.
            output_axes: Sequence of tuples of ints, the axes of the output units of each tensor, or of
                `Layout`s. Defaults to the last axis.

        Returns:
            Python int.
        """
        output_axes = axes_of(output_axes, shapes)
        if self._shared(output_axes):
            return output_axes[0].count
        return sum(self.groups.count(shape, axes) for shape, axes in zip(shapes, output_axes, strict=True))

    @property
    def _single(self) -> bool:
        return isinstance(self.groups, Weights)

    def _shared(self, output_axes: Sequence[Sequence[int]]) -> TypeGuard[Sequence[Layout]]:
        """Whether groups reach over several tensors."""
        return isinstance(self.groups, Neurons) and self.groups.are_shared(output_axes)

    def _measure(
        self,
        weights: Sequence[tf.Tensor],
        output_axes: Sequence[Sequence[int]],
        units: Sequence[tf.Tensor] | None = None,
    ) -> list[tf.Tensor]:
        """The magnitudes of the groups: of each tensor, or, if they are shared, of all in one tensor.

        Single weights are their own magnitudes, not yet in the units of `units`.
        """
        measured: list[tf.Tensor] = []
        for i, (weight, axes) in enumerate(zip(weights, output_axes, strict=True)):
            # One after the other: the squares of one tensor at a time are alive.
            with tf.control_dependencies(measured[-1:]):
                magnitudes = self.groups.measure(tf.convert_to_tensor(weight), axes)
                if units is not None and not self._single:
                    magnitudes *= tf.cast(units[i], magnitudes.dtype)
                measured.append(magnitudes)
        if isinstance(self.groups, Neurons) and self._shared(output_axes):
            return [self.groups.join(measured, output_axes)]
        return measured

    def _spread(
        self, per_group: tf.Tensor, value: tf.Tensor, axes: Sequence[int], otherwise: float | bool
    ) -> tf.Tensor:
        if isinstance(self.groups, Neurons) and isinstance(axes, Layout) and self._shared([axes]):
            per_group = self.groups.hand_out(per_group, axes, otherwise)
        return self.groups.spread(per_group, value.shape, axes)

    def _places(
        self, measured: Sequence[tf.Tensor], output_axes: Sequence[Sequence[int]]
    ) -> list[tuple[int, tf.Tensor, Sequence[int]]]:
        """For each tensor the index of its magnitudes, the magnitudes, and the axes."""
        if self._shared(output_axes):
            return [(0, measured[0], axes) for axes in output_axes]
        return list(zip(range(len(measured)), measured, output_axes, strict=True))

    def _hard(
        self, decide: Decide, measured: Sequence[tf.Tensor], output_axes: Sequence[Sequence[int]]
    ) -> list[Map]:
        """Maps that keep the groups chosen by `decide(index, magnitudes)`, bit for bit."""

        def of(index: int, magnitudes: tf.Tensor, axes: Sequence[int]) -> Map:
            def theta(value: tf.Tensor) -> tf.Tensor:
                # Single weights are their own magnitudes: taken from the value, nothing is held meanwhile.
                kept = decide(index, value if self._single else magnitudes)
                return tf.where(self._spread(kept, value, axes, True), value, tf.zeros([], value.dtype))

            return theta

        return [of(*place) for place in self._places(measured, output_axes)]

    def _soft(
        self, tau: tf.Tensor, measured: Sequence[tf.Tensor], output_axes: Sequence[Sequence[int]]
    ) -> list[Map]:
        """Maps $(1 - \\tau/m)_+ v$."""

        def of(_: int, magnitudes: tf.Tensor, axes: Sequence[int]) -> Map:
            def theta(value: tf.Tensor) -> tf.Tensor:
                wide = tf.cast(value, thresholds.common_dtype([value]))
                cut = tf.cast(tau, wide.dtype)
                if self._single:
                    shrunk = wide - tf.clip_by_value(wide, -cut, cut)
                else:
                    factor = tf.math.divide_no_nan(tf.nn.relu(magnitudes - cut), magnitudes)
                    shrunk = wide * self._spread(factor, value, axes, 1)
                return tf.cast(shrunk, value.dtype)

            def inside_or_not(value: tf.Tensor) -> tf.Tensor:
                return tf.cond(tau > 0, lambda: theta(value), lambda: tf.identity(value))

            return inside_or_not

        return [of(*place) for place in self._places(measured, output_axes)]
