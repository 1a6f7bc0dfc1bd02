"""Costs of the magnitudes of groups of weights."""

from collections.abc import Callable

import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import Compression, Layouts, Map, Tensors
from lc_keras.costs.groups import WEIGHTS, Groups, Weights, hand_out, join
from lc_keras.costs.layout import Layout

# Which of the magnitudes of a tensor, given by its index, stay.
Decide = Callable[[int, tf.Tensor], tf.Tensor]


class Grouped(Compression):
    """Base class of costs of the magnitudes of groups. A subclass has a field `groups`."""

    groups: Groups

    def __post_init__(self) -> None:
        super().__post_init__()
        groups = WEIGHTS if self.groups is None else self.groups
        if not isinstance(groups, Groups):
            raise TypeError(
                f"Expected `groups` to be Weights(), Neurons() or Blocks(shape). Received: groups={groups!r}"
            )
        object.__setattr__(self, "groups", groups)

    @property
    def needs_units(self) -> bool:
        return self.groups.needs_units

    def check(self, layouts: Layouts) -> None:
        for layout in layouts:
            self.groups.count(layout)

    @property
    def _single(self) -> bool:
        return isinstance(self.groups, Weights)

    def _shared(self, layouts: Layouts) -> bool:
        """Return whether groups reach over several tensors."""
        return self.needs_units and any(layout.units is not None for layout in layouts)

    def _magnitudes(self, weights: Tensors, layouts: Layouts) -> list[tf.Tensor]:
        """Return the magnitudes of the groups: of each tensor, or, if they are shared, of all in one tensor.

        Those of single weights are the weights themselves.
        """
        found: list[tf.Tensor] = []
        for weight, layout in zip(weights, layouts, strict=True):
            # One after the other: the squares of one tensor at a time are alive.
            with tf.control_dependencies(found[-1:]):
                found.append(self.groups.magnitudes(tf.convert_to_tensor(weight), layout))
        return [join(found, layouts)] if self._shared(layouts) else found

    def _spread(self, per_group: tf.Tensor, layout: Layout, otherwise: float | bool) -> tf.Tensor:
        if self._shared([layout]):
            per_group = hand_out(per_group, layout, otherwise)
        return self.groups.spread(per_group, layout)

    def _places(self, magnitudes: Tensors, layouts: Layouts) -> list[tuple[int, tf.Tensor, Layout]]:
        """Return for each tensor the index of its magnitudes, the magnitudes, and the layout."""
        if self._shared(layouts):
            return [(0, magnitudes[0], layout) for layout in layouts]
        return list(zip(range(len(magnitudes)), magnitudes, layouts, strict=True))

    def _hard(self, decide: Decide, magnitudes: Tensors, layouts: Layouts) -> list[Map]:
        """Return maps that keep the groups chosen by `decide(index, magnitudes)`, bit for bit."""

        def of(index: int, magnitudes: tf.Tensor, layout: Layout) -> Map:
            def theta(value: tf.Tensor) -> tf.Tensor:
                # Single weights are their own magnitudes: taken from the value, nothing is held meanwhile.
                chosen = decide(index, value if self._single else magnitudes)
                return tf.where(self._spread(chosen, layout, True), value, tf.zeros([], value.dtype))

            return theta

        return [of(*place) for place in self._places(magnitudes, layouts)]

    def _soft(self, tau: tf.Tensor, magnitudes: Tensors, layouts: Layouts) -> list[Map]:
        r"""Return maps $(1 - \tau/m)_+ v$."""

        def of(_: int, magnitudes: tf.Tensor, layout: Layout) -> Map:
            def theta(value: tf.Tensor) -> tf.Tensor:
                wide = thresholds.read(value)
                cut = tf.cast(tau, wide.dtype)
                if self._single:
                    shrunk = wide - tf.clip_by_value(wide, -cut, cut)
                else:
                    factor = tf.math.divide_no_nan(tf.nn.relu(magnitudes - cut), magnitudes)
                    shrunk = wide * self._spread(factor, layout, 1)
                return tf.where(tau > 0, tf.cast(shrunk, value.dtype), value)

            return theta

        return [of(*place) for place in self._places(magnitudes, layouts)]
