"""Costs of the magnitudes of groups of weights."""

import functools
from collections.abc import Callable, Sequence

import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import Compression, Layouts, Map, Tensors
from lc_keras.costs.groups import WEIGHTS, Groups, Weights, hand_out, join
from lc_keras.costs.layout import Layout

# Decides which magnitudes of a tensor stay. Like a `Map`, it may be a partial of one function for all
# tensors.
Decide = functools.partial[tf.Tensor]


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
        """Return whether groups span several tensors."""
        return self.needs_units and any(layout.units is not None for layout in layouts)

    def _magnitudes(self, weights: Tensors, layouts: Layouts) -> list[tf.Tensor]:
        """Return the magnitudes of the groups: for each tensor, or, if groups are shared, all in one tensor.

        The magnitudes of single weights are the weights themselves.
        """
        found: list[tf.Tensor] = []
        for weight, layout in zip(weights, layouts, strict=True):
            # One after the other, so that only one tensor's squares are alive at a time.
            with tf.control_dependencies(found[-1:]):
                found.append(self.groups.magnitudes(tf.convert_to_tensor(weight), layout))
        return [join(found, layouts)] if self._shared(layouts) else found

    def _hard(self, decides: Sequence[Decide], magnitudes: Tensors, layouts: Layouts) -> list[Map]:
        """Return maps that keep the groups chosen by `decides`, one for each tensor of magnitudes."""
        if self._single:
            # Single weights are their own magnitudes: taken from the value, they need no memory meanwhile.
            return [functools.partial(_where(decide.func), *decide.args) for decide in decides]
        chosen = [decide(m) for decide, m in zip(decides, magnitudes, strict=True)]
        return self._spread(chosen, layouts, True, _kept)

    def _soft(self, tau: tf.Tensor, magnitudes: Tensors, layouts: Layouts) -> list[Map]:
        r"""Return maps $(1 - \tau/m)_+ v$."""
        if self._single:
            return [functools.partial(_shrunk, tau)] * len(layouts)
        cuts = [tf.cast(tf.maximum(tau, 0), m.dtype) for m in magnitudes]
        factors = [
            tf.where(cut > 0, tf.math.divide_no_nan(tf.nn.relu(m - cut), m), tf.ones_like(m))
            for m, cut in zip(magnitudes, cuts, strict=True)
        ]
        return self._spread(factors, layouts, 1, _scaled)

    def _spread(
        self, per_group: Tensors, layouts: Layouts, otherwise: float | bool, combine: Callable[..., tf.Tensor]
    ) -> list[Map]:
        """Return the maps that combine a value for each group with the weights."""
        if self._shared(layouts):
            per_group = hand_out(per_group[0], layouts, otherwise)

        def of(per_group: tf.Tensor, layout: Layout) -> Map:
            if self.needs_units:
                # Only the size of an axis.
                return functools.partial(combine, self.groups.spread(per_group, layout))
            return lambda value: combine(self.groups.spread(per_group, layout), value)

        return [of(*pair) for pair in zip(per_group, layouts, strict=True)]


@functools.cache
def _where(decide: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Return a function that keeps the weights that `decide` chooses, the same one for the same `decide`."""
    return lambda *operands: _kept(decide(*operands), operands[-1])


def _kept(chosen: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    return tf.where(chosen, value, tf.zeros([], value.dtype))


def _scaled(factor: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    wide = thresholds.read(value)
    return tf.cast(wide * tf.cast(factor, wide.dtype), value.dtype)


def _shrunk(tau: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
    wide = thresholds.read(value)
    cut = tf.cast(tau, wide.dtype)
    return tf.where(tau > 0, tf.cast(wide - tf.clip_by_value(wide, -cut, cut), value.dtype), value)
