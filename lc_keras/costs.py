"""Costs of compression C(θ) and their exact C steps.

Given the weights $v = w - \\lambda/\\mu$ of a task, the C step of the Learning-Compression algorithm solves

$$\\min_\\theta \\tfrac{\\mu}{2} \\lVert v - \\theta \\rVert^2 + C(\\theta).$$

For every cost here the solution is one scalar, found from all tensors of the task together, and one map
applied tensor by tensor.
"""

import decimal
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from lc_keras import thresholds
from lc_keras.groups import Groups, Weights

Map = Callable[[tf.Tensor], tf.Tensor]


class Compression:
    """Base class of everything that has a C step.

    A subclass overrides `maps`; what it takes in its constructor it returns from `get_config`.
    """

    @tf.autograph.experimental.do_not_convert
    def c_step(self, weights: Sequence[Any], mu: Any) -> list[tf.Tensor]:
        r"""The compressed weights nearest to the given ones, all tensors together.

        $$\theta = \arg\min_\theta \tfrac{\mu}{2} \lVert v - \theta \rVert^2 + C(\theta)$$

        Args:
            weights: Sequence of floating tensors, variables or arrays $v$ of any static shapes.
            mu: Float μ > 0; in a `tf.function` it may be a scalar tensor.

        Returns:
            List of tensors θ, same shapes and dtypes.

        Raises:
            ValueError: If there are no weights, if μ is not positive and finite, if a tensor is not floating
                or holds an infinity or a NaN, or if the budget does not fit the shapes. Inside a `tf.function`,
                where values are not known yet, an infinity or a NaN is a `tf.errors.InvalidArgumentError`, and
                under `jit_compile=True` it is not looked for.
        """
        if isinstance(weights, (tf.Tensor, tf.Variable, np.ndarray)) or not isinstance(weights, Sequence):
            raise TypeError(f"`weights`: expected a list of tensors, received {type(weights).__name__}")
        if not weights:
            raise ValueError("`weights`: expected at least one tensor, received an empty list")
        tensors = [tf.convert_to_tensor(w) for w in weights]
        for index, (weight, tensor) in enumerate(zip(weights, tensors)):
            if not tensor.dtype.is_floating:
                raise ValueError(
                    f"{_describe(index, weight)}: expected a floating dtype, received {tensor.dtype.name}"
                )
        self.check([t.shape for t in tensors])
        if not tf.is_symbolic_tensor(mu):
            mu = float(mu)
            if not (math.isfinite(mu) and mu > 0):
                raise ValueError(f"`mu`: expected a positive finite float, received {mu}")

        if not tf.executing_eagerly():
            finite = thresholds.finite(tensors)
            message = "c_step: expected finite weights, received NaN or inf in a tensor (finite, by index)"
            with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(finite), [message, finite])]):
                return self._step(tensors, tf.cast(mu, tf.float32))
        if "_compiled" not in self.__dict__:
            self._compiled = tf.function(self._step_and_finite, autograph=False)
        compressed, finite = self._compiled(tensors, tf.constant(mu, tf.float32))
        for index, good in enumerate(finite.numpy()):
            if not good:
                raise ValueError(
                    f"{_describe(index, weights[index])}: expected finite values, received NaN or inf"
                )
        return compressed

    def check(self, shapes: Sequence[Any], output_axes: Sequence[Sequence[int]] | None = None) -> None:
        """Say early that a budget does not fit.

        Args:
            shapes: Sequence of static shapes.
            output_axes: Sequence of tuples of ints, the axes of the output units of each tensor. Defaults to
                the last axis.

        Raises:
            ValueError: If the cost cannot be applied to tensors of these shapes.
        """

    def maps(
        self, weights: Sequence[Any], mu: Any, output_axes: Sequence[Sequence[int]] | None = None
    ) -> list[Map]:
        """The C step as one callable per tensor, with what the tensors share already computed.

        For use inside a `tf.function` that goes through the tensors one by one. Nothing is checked.

        Args:
            weights: Sequence of floating tensors or variables $v$ of static shapes.
            mu: float32 scalar tensor μ.
            output_axes: Sequence of tuples of ints, the axes of the output units of each tensor. Defaults to
                the last axis.

        Returns:
            List of callables: `maps[i]` takes the value of `weights[i]` and returns θ, same shape and dtype.
        """
        raise NotImplementedError

    def get_config(self) -> dict:
        """The arguments of the constructor."""
        return {}

    def _step(self, tensors, mu):
        return [theta(tensor) for theta, tensor in zip(self.maps(tensors, mu), tensors)]

    def _step_and_finite(self, tensors, mu):
        return self._step(tensors, mu), thresholds.finite(tensors)

    def __repr__(self):
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in self.get_config().items())})"

    def __eq__(self, other):
        # By repr, since 1 == 1.0 and `keep` tells them apart.
        return type(self) is type(other) and repr(self) == repr(other)

    def __hash__(self):
        return hash(repr(self))

    def __getstate__(self):
        return {k: v for k, v in self.__dict__.items() if k != "_compiled"}


class _Grouped(Compression):
    """A cost of the magnitudes of groups."""

    def __init__(self, groups: Groups | None):
        self.groups = Weights() if groups is None else groups
        if not isinstance(self.groups, Groups):
            raise TypeError(f"`groups`: expected Weights(), Neurons() or Blocks(shape), received {groups!r}")

    def check(self, shapes, output_axes=None):
        self.count(shapes, output_axes)

    def count(self, shapes: Sequence[Any], output_axes: Sequence[Sequence[int]] | None = None) -> int:
        """The number of groups in tensors of these shapes.

        Args:
            shapes: Sequence of static shapes.
            output_axes: Sequence of tuples of ints, the axes of the output units of each tensor. Defaults to
                the last axis.

        Returns:
            Python int.
        """
        return sum(self.groups.count(shape, axes) for shape, axes in zip(shapes, _axes(output_axes, shapes)))

    def _measure(self, weights, output_axes) -> list[tf.Tensor]:
        measured = []
        for weight, axes in zip(weights, output_axes):
            # One after the other: the squares of one tensor at a time are alive.
            with tf.control_dependencies(measured[-1:]):
                measured.append(self.groups.measure(tf.convert_to_tensor(weight), axes))
        return measured

    def _hard(self, decide, measured, output_axes) -> list[Map]:
        """Maps that keep the groups chosen by `decide(index, magnitudes)`, bit for bit."""

        def of(index, magnitudes, axes):
            def theta(value):
                # Single weights are their own magnitudes: taken from the value, nothing is held meanwhile.
                kept = decide(index, value if isinstance(self.groups, Weights) else magnitudes)
                return tf.where(self.groups.spread(kept, value.shape, axes), value, tf.zeros([], value.dtype))

            return theta

        return [of(i, m, a) for i, (m, a) in enumerate(zip(measured, output_axes))]

    def _soft(self, tau, measured, output_axes) -> list[Map]:
        """Maps $(1 - \\tau/m)_+ v$."""

        def of(magnitudes, axes):
            def theta(value):
                wide = tf.cast(value, thresholds.common_dtype([value]))
                cut = tf.cast(tau, wide.dtype)
                if isinstance(self.groups, Weights):
                    shrunk = wide - tf.clip_by_value(wide, -cut, cut)
                else:
                    factor = tf.math.divide_no_nan(tf.nn.relu(magnitudes - cut), magnitudes)
                    shrunk = wide * self.groups.spread(factor, value.shape, axes)
                return tf.cast(shrunk, value.dtype)

            def inside_or_not(value):
                return tf.cond(tau > 0, lambda: theta(value), lambda: tf.identity(value))

            return inside_or_not

        return [of(m, a) for m, a in zip(measured, output_axes)]


class L0Constraint(_Grouped):
    r"""At most κ groups are not zero: $\lVert \theta \rVert_0 \le \kappa$.

    The C step keeps the κ groups of largest magnitude, of all tensors together, bit for bit, and zeroes the
    others. Of groups of equal magnitude the first in the order of the tensors, then of the elements, is kept.

    Args:
        keep: Int κ ≥ 0, or float in [0, 1], the density: the fraction of the groups to keep, rounded down so that
            the budget is never exceeded. `1` is one group, `1.0` is all of them.
        groups: `Weights()`, `Neurons()` or `Blocks(shape)`. Defaults to `Weights()`.

    Raises:
        TypeError: If `keep` or `groups` is of another type.
        ValueError: If `keep` is negative, or a float beyond 1 or NaN.

    Example:

    >>> L0Constraint(keep=0.5).c_step([tf.constant([3.0, -1.0, 0.5, -2.0])], mu=1.0)[0].numpy()
    array([ 3.,  0.,  0., -2.], dtype=float32)
    """

    def __init__(self, keep: int | float, groups: Groups | None = None):
        super().__init__(groups)
        if isinstance(keep, (bool, np.bool_)) or not isinstance(keep, (int, float, np.integer, np.floating)):
            raise TypeError(f"`keep`: expected an int or a float, received {keep!r}")
        whole = isinstance(keep, (int, np.integer))
        if not (keep >= 0 if whole else 0 <= keep <= 1):
            raise ValueError(f"`keep`: expected an int >= 0 or a float in [0, 1], received {keep!r}")
        self.keep = int(keep) if whole else _decimal_float(keep)

    def kept(self, shapes: Sequence[Any], output_axes: Sequence[Sequence[int]] | None = None) -> int:
        """The number κ of groups kept in tensors of these shapes.

        Args:
            shapes: Sequence of static shapes.
            output_axes: Sequence of tuples of ints, the axes of the output units of each tensor. Defaults to
                the last axis.

        Returns:
            Python int.

        Raises:
            ValueError: If κ exceeds the number of groups.
        """
        count = self.count(shapes, output_axes)
        # As a decimal, so that 5 % of 266,200 is 13,310 and not a rounding error below.
        kappa = int(decimal.Decimal(repr(self.keep)) * count) if isinstance(self.keep, float) else self.keep
        if kappa > count:
            raise ValueError(f"`keep`: expected at most {count}, the number of groups, received {kappa}")
        return kappa

    def check(self, shapes, output_axes=None):
        self.kept(shapes, output_axes)

    def maps(self, weights, mu, output_axes=None):
        return self.largest(weights, self.kept([w.shape for w in weights], output_axes), output_axes)

    def largest(
        self, weights: Sequence[Any], kappa: Any, output_axes: Sequence[Sequence[int]] | None = None
    ) -> list[Map]:
        """The C step with another κ than the budget's.

        Args:
            weights: Sequence of floating tensors or variables of static shapes.
            kappa: Int or int32 scalar tensor κ, from 0 to the number of groups.
            output_axes: Sequence of tuples of ints, the axes of the output units of each tensor. Defaults to
                the last axis.

        Returns:
            List of callables, as of `maps`.
        """
        output_axes = _axes(output_axes, weights)
        measured = self._measure(weights, output_axes)
        dtype = thresholds.common_dtype(measured)
        threshold = thresholds.kth_largest(measured, kappa)
        left = kappa - threshold.above
        crowded = tf.logical_and(threshold.ties > left, threshold.bits > 0)

        def count_ties():
            def of(tensor):
                def update(n, chunk):
                    tie = thresholds.magnitude_bits(chunk, dtype) == threshold.bits
                    return n + tf.math.count_nonzero(tie, dtype=tf.int32)

                return thresholds.fold([tensor], tf.constant(0), update)

            return tf.stack([of(m) for m in measured])

        ties = tf.cond(crowded, count_ties, lambda: tf.zeros([len(measured)], tf.int32))
        quota = left - tf.cumsum(ties, exclusive=True)

        def decide(index, magnitudes):
            def first_come():
                bits = thresholds.magnitude_bits(magnitudes, dtype)
                tie = tf.reshape(bits == threshold.bits, [-1])
                rank = tf.reshape(tf.cumsum(tf.cast(tie, tf.int32)), tf.shape(bits))
                return (bits > threshold.bits) | ((bits == threshold.bits) & (rank <= quota[index]))

            return tf.cond(crowded, first_come, lambda: thresholds.at_least(magnitudes, threshold.bits))

        return self._hard(decide, measured, output_axes)

    def get_config(self):
        return {"keep": self.keep, "groups": self.groups}


class L0Penalty(_Grouped):
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

    def __init__(self, alpha: float, groups: Groups | None = None):
        super().__init__(groups)
        self.alpha = _non_negative("alpha", alpha)

    def maps(self, weights, mu, output_axes=None):
        output_axes = _axes(output_axes, weights)
        measured = self._measure(weights, output_axes)
        tau = tf.sqrt(2 * self.alpha / tf.cast(mu, tf.float64))

        def decide(index, magnitudes):
            dtype = thresholds.common_dtype([magnitudes])
            return thresholds.magnitude_bits(magnitudes, dtype) > thresholds.magnitude_bits(tau, dtype)

        return self._hard(decide, measured, output_axes)

    def get_config(self):
        return {"alpha": self.alpha, "groups": self.groups}


class L1Constraint(_Grouped):
    r"""The sum of the magnitudes is bounded: $\lVert \theta \rVert_1 \le r$.

    The C step projects on the ℓ1 ball: $\theta_g = (1 - \tau/m_g)_+ v_g$ with the τ ≥ 0 that brings the sum of
    magnitudes of all tensors together down to $r$.

    Args:
        radius: Float r ≥ 0.
        groups: `Weights()`, `Neurons()` or `Blocks(shape)`. Defaults to `Weights()`.

    Raises:
        TypeError: If `radius` or `groups` is of another type.
        ValueError: If `radius` is negative or not finite.

    Example:

    >>> L1Constraint(radius=2.0).c_step([tf.constant([3.0, -1.0])], mu=1.0)[0].numpy()
    array([2., 0.], dtype=float32)
    """

    def __init__(self, radius: float, groups: Groups | None = None):
        super().__init__(groups)
        self.radius = _non_negative("radius", radius)

    def maps(self, weights, mu, output_axes=None):
        output_axes = _axes(output_axes, weights)
        measured = self._measure(weights, output_axes)
        tau = thresholds.l1_ball_threshold(measured, self.radius)
        return self._soft(tau, measured, output_axes)

    def get_config(self):
        return {"radius": self.radius, "groups": self.groups}


class L1Penalty(_Grouped):
    r"""The sum of the magnitudes costs α each unit: $C(\theta) = \alpha \lVert \theta \rVert_1$.

    The C step is $\theta_g = (1 - \tau/m_g)_+ v_g$ with $\tau = \alpha/\mu$.

    Args:
        alpha: Float α ≥ 0.
        groups: `Weights()`, `Neurons()` or `Blocks(shape)`. Defaults to `Weights()`.

    Raises:
        TypeError: If `alpha` or `groups` is of another type.
        ValueError: If `alpha` is negative or not finite.

    Example:

    >>> L1Penalty(alpha=1.0).c_step([tf.constant([3.0, -0.5])], mu=1.0)[0].numpy()
    array([2., 0.], dtype=float32)
    """

    def __init__(self, alpha: float, groups: Groups | None = None):
        super().__init__(groups)
        self.alpha = _non_negative("alpha", alpha)

    def maps(self, weights, mu, output_axes=None):
        output_axes = _axes(output_axes, weights)
        measured = self._measure(weights, output_axes)
        return self._soft(self.alpha / tf.cast(mu, tf.float64), measured, output_axes)

    def get_config(self):
        return {"alpha": self.alpha, "groups": self.groups}


class L2Constraint(Compression):
    r"""The norm of the weights is bounded: $\lVert \theta \rVert_2 \le r$.

    The C step is $\theta = \min(1, r / \lVert v \rVert_2)\, v$, the norm taken of all tensors together.

    Args:
        radius: Float r ≥ 0.

    Raises:
        TypeError: If `radius` is not a number.
        ValueError: If `radius` is negative or not finite.

    Example:

    >>> L2Constraint(radius=1.0).c_step([tf.constant([3.0]), tf.constant([4.0])], mu=1.0)[1].numpy()
    array([0.8], dtype=float32)
    """

    def __init__(self, radius: float):
        self.radius = _non_negative("radius", radius)

    def maps(self, weights, mu, output_axes=None):
        norm = thresholds.l2_norm(weights)
        inside = norm <= self.radius
        return [_scale(self.radius / tf.where(inside, tf.ones_like(norm), norm), inside)] * len(weights)

    def get_config(self):
        return {"radius": self.radius}


class L2Penalty(Compression):
    r"""The squared norm costs α each unit: $C(\theta) = \alpha \lVert \theta \rVert_2^2$.

    The C step is $\theta = \frac{\mu}{\mu + 2\alpha}\, v$.

    Args:
        alpha: Float α ≥ 0.

    Raises:
        TypeError: If `alpha` is not a number.
        ValueError: If `alpha` is negative or not finite.

    Example:

    >>> L2Penalty(alpha=0.5).c_step([tf.constant([4.0])], mu=1.0)[0].numpy()
    array([2.], dtype=float32)
    """

    def __init__(self, alpha: float):
        self.alpha = _non_negative("alpha", alpha)

    def maps(self, weights, mu, output_axes=None):
        mu = tf.cast(mu, tf.float64)
        return [_scale(mu / (mu + 2 * self.alpha), tf.constant(self.alpha == 0))] * len(weights)

    def get_config(self):
        return {"alpha": self.alpha}


def _scale(factor, unchanged) -> Map:
    def theta(value):
        dtype = thresholds.common_dtype([value])

        def scaled():
            return tf.cast(tf.cast(value, dtype) * tf.cast(factor, dtype), value.dtype)

        return tf.cond(unchanged, lambda: tf.identity(value), scaled)

    return theta


def _axes(output_axes, weights) -> list[Sequence[int]]:
    return [(-1,)] * len(weights) if output_axes is None else list(output_axes)


def _describe(index, weight) -> str:
    name = getattr(weight, "path", None) or getattr(weight, "name", None)
    return f"`weights[{index}]`" + (f" ({name})" if name else "")


def _decimal_float(value) -> float:
    # np.float32(0.05) means 0.05, not 0.05000000074505806.
    return float(str(value))


def _non_negative(name, value) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"`{name}`: expected a float, received {value!r}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"`{name}`: expected a finite float >= 0, received {value!r}")
    return float(value)
