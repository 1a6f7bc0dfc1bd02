"""The base of every cost: its declarations, its C step, and the form in which the C step is called."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import tensorflow as tf

from lc_keras.arguments import non_negative, strength
from lc_keras.costs import thresholds
from lc_keras.costs.layout import Layout
from lc_keras.costs.serialization import Serializable
from lc_keras.internals.tensorflow import compiled, fused

# A map that is the same for several tensors of whatever shapes, except for what it is computed with, is a
# `functools.partial` of one function, with the tensors it is computed with in front of the one that it takes.
Map = Callable[[tf.Tensor], tf.Tensor]
Tensors = Sequence[tf.Tensor]
Layouts = Sequence[Layout]

# How a field is checked when a cost is made: by a function of its name and its value that returns the value.
NON_NEGATIVE = {"check": non_negative}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Compression(Serializable):
    """Base class of everything that has a C step.

    A subclass is a frozen dataclass whose fields are the arguments of its constructor. It overrides `maps`,
    `check` if it does not fit all weights, and the declarations whose defaults do not fit:

    Attributes:
        has_budget: Bool, whether it is a constraint, which weights can be said to keep. The pull is then by
            default beside the optimizer.
        keeps_values: Bool, whether the C step keeps each weight bit for bit or zeroes it.
        can_loosen: Bool, whether it has a budget that can be `loosened`; the looser C step keeps values,
            unless the cost `shrinks`.
        shrinks: Bool, whether weights that the C step does not zero become smaller.
        is_smooth: Bool, whether weights can move from any point that keeps the budget to neighbouring points
            that keep it, in most directions that matter.
        few_values: Bool, whether weights can only be at a few places far from one another.
        close_values: Bool, whether kept weights move to other values, which are so close to one another that
            the weights hardly change.
        maps_others: Bool, whether the maps found for some weights bring others under the cost, too.
        needs_units: Bool, whether its `Layout`s should say which units of a model's graph the weights make.
        needs_macs: Bool, whether its `Layout`s must say how many multiply-adds the weights take.
        needs_time: `"widths"` or `"ranks"` if its `Layout`s must say the time of these, else `None`.
    """

    has_budget: ClassVar[bool] = False
    keeps_values: ClassVar[bool] = False
    can_loosen: ClassVar[bool] = False
    shrinks: ClassVar[bool] = False
    is_smooth: ClassVar[bool] = False
    few_values: ClassVar[bool] = False
    close_values: ClassVar[bool] = False
    maps_others: ClassVar[bool] = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if check := field.metadata.get("check"):
                object.__setattr__(self, field.name, check(field.name, getattr(self, field.name)))

    @property
    def needs_units(self) -> bool:
        return False

    @property
    def needs_macs(self) -> bool:
        return False

    @property
    def needs_time(self) -> Literal["widths", "ranks"] | None:
        return None

    @tf.autograph.experimental.do_not_convert
    def c_step(
        self, weights: Sequence[tf.Tensor | tf.Variable | np.ndarray], mu: float | tf.Tensor
    ) -> list[tf.Tensor]:
        r"""Return the compressed weights nearest to the given ones, all tensors together.

        $$\theta = \arg\min_\theta \tfrac{\mu}{2} \lVert v - \theta \rVert^2 + C(\theta)$$

        The last axis of each tensor is taken as the axis of its output units.

        Args:
            weights: Sequence of floating tensors, variables or arrays $v$ of any static shapes.
            mu: Float μ > 0; in a `tf.function` it may be a scalar tensor or `tf.Variable`.

        Returns:
            List of tensors θ, of the same shapes and dtypes.

        Raises:
            TypeError: If `weights` is not a list, or μ not a number.
            ValueError: If there are no weights, if μ is not positive and finite, if a tensor is not floating
                or holds an infinity or a NaN, or if the budget does not fit the shapes. Inside a
                `tf.function`, where values are not known yet, an infinity or a NaN raises a
                `tf.errors.InvalidArgumentError` instead, and under `jit_compile=True` neither is looked for.
        """
        if not isinstance(weights, Sequence):
            raise TypeError(f"Expected `weights` to be a list of tensors. Received: {type(weights).__name__}")
        if not weights:
            raise ValueError("Expected `weights` to hold at least one tensor. Received: an empty list")
        tensors = [tf.convert_to_tensor(w) for w in weights]
        for index, (weight, tensor) in enumerate(zip(weights, tensors, strict=True)):
            if not tensor.dtype.is_floating:
                raise ValueError(
                    f"Expected {_describe(index, weight)} to be floating. Received: dtype {tensor.dtype.name}"
                )
        self.check(_layouts(tensors))
        if isinstance(mu, tf.Variable) and not tf.executing_eagerly():
            mu = mu.value()
        if not tf.is_symbolic_tensor(mu):
            mu = strength("mu", mu)

        if not tf.executing_eagerly():
            thetas, finite = self._step(tensors, tf.cast(mu, tf.float32))
            message = "Expected finite weights. Received: NaN or inf in a tensor (finite, by index)"
            with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(finite), [message, finite])]):
                return [tf.identity(theta) for theta in thetas]
        thetas, finite = self._compiled(tensors, tf.constant(mu, tf.float32))
        for index, good in enumerate(finite.numpy()):
            if not good:
                raise ValueError(
                    f"Expected {_describe(index, weights[index])} to be finite. Received: NaN or inf"
                )
        return thetas

    def check(self, layouts: Layouts) -> None:
        """Raise a ValueError if the cost or its budget does not fit weights of some `Layout`s."""

    def spares(self, layout: Layout) -> bool:
        """Return whether the cost keeps more of a weight of this `Layout` than its arguments say."""
        return False

    def maps(self, weights: Tensors, mu: float | tf.Tensor, layouts: Layouts) -> list[Map]:
        r"""Return the C step as one callable per tensor, with what the tensors share already computed.

        For use inside a `tf.function` that goes through the tensors one by one. Nothing is checked.

        Args:
            weights: Sequence of floating tensors or variables $v$ of static shapes.
            mu: float32 scalar tensor μ.
            layouts: Sequence of `Layout`, one for each tensor.

        Returns:
            List of callables: `maps[i]` takes the value of `weights[i]` and returns θ, of the same shape and
            dtype.
        """
        raise NotImplementedError

    def loosened(self, weights: Tensors, slack: tf.Tensor, layouts: Layouts) -> list[Map]:
        """Return the C step of a looser budget, as `maps`. Only costs that declare `can_loosen` have one.

        Args:
            weights: Sequence of floating tensors or variables of static shapes.
            slack: float32 scalar tensor from 0, the budget itself, to 1, where all is kept.
            layouts: Sequence of `Layout`, one for each tensor.
        """
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor, except those that have their defaults."""
        values = ((field, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {field.name: value for field, value in values if value != field.default}

    def _step(self, tensors: Tensors, mu: tf.Tensor) -> tuple[list[tf.Tensor], tf.Tensor]:
        maps = self.maps(tensors, mu, _layouts(tensors))
        sizes = [tensor.shape.num_elements() for tensor in tensors]
        thetas = [
            fused(lambda t, theta=theta: theta(t), n)(t)
            for theta, n, t in zip(maps, sizes, tensors, strict=True)
        ]
        return thetas, thresholds.finite(tensors)

    @functools.cached_property
    def _compiled(self) -> Callable[[Tensors, tf.Tensor], tuple[list[tf.Tensor], tf.Tensor]]:
        return compiled(self._step)

    def __getstate__(self) -> dict[str, object]:
        # Graphs cannot be copied; they are made anew.
        return {k: v for k, v in self.__dict__.items() if k != "_compiled"}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"

    def __eq__(self, other: object) -> bool:
        # By repr, since 1 == 1.0 and `keep` tells them apart.
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))


def check_number(number: int) -> None:
    """Raise a ValueError if more weights or groups share a cost than the cost can count."""
    if number >= 2**31:
        raise ValueError(
            f"Expected fewer than {2**31:,} weights, or groups of them, that are counted together. "
            f"Received: {number:,}; `per_layer=True`, or several tasks, count them separately."
        )


def _layouts(tensors: Tensors) -> list[Layout]:
    return [Layout(tensor.shape, bytes=tensor.dtype.size) for tensor in tensors]


def _describe(index: int, weight: object) -> str:
    name = getattr(weight, "path", None) or getattr(weight, "name", None)
    return f"`weights[{index}]`" + (f" ({name})" if name else "")
