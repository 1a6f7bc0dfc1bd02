r"""The augmented Lagrangian of $w = \theta$: the copy θ, the multipliers λ, and the C step."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import keras
import tensorflow as tf

from lc_keras import thresholds
from lc_keras.penalty import LCPenalty
from lc_keras.tasks import SharedCost
from lc_keras.tracing import compiled


class CStep(NamedTuple):
    """What a C step found, as scalar tensors.

    Attributes:
        finite: Bool, one for each variable. If any is false, nothing was changed.
        gap: Float, ‖w − θ‖ / ‖w‖ over all variables.
        density: Float, fraction of the weights that are not zero in θ.
    """

    finite: tf.Tensor
    gap: tf.Tensor
    density: tf.Tensor


class Lagrangian:
    r"""θ and λ of a model's weights.

    Two arrays of each weight's shape are kept, θ and $t = \theta + \lambda/\mu$, the
    target of the L step; λ is $\mu (t - \theta)$. Without multipliers t is θ and one
    array serves as both. Nothing here runs weight by weight in Python, and nothing
    is retraced when μ changes.

    Args:
        shared: List of `SharedCost`.
        multipliers: Bool, default `True`. `False` gives the plain quadratic penalty.
    """

    def __init__(self, shared: Sequence[SharedCost], multipliers: bool = True) -> None:
        self.shared = shared
        self.variables = [v for part in shared for v in part.variables]
        self.mu = tf.Variable(0.0, trainable=False, name="mu")
        self.targets = [_slot(v, "target") for v in self.variables]
        self.thetas = [_slot(v, "theta") for v in self.variables] if multipliers else self.targets
        self.penalties = [
            LCPenalty(target, self.mu, v.regularizer)
            for v, target in zip(self.variables, self.targets, strict=True)
        ]
        self.size = sum(int(target.shape.num_elements()) for target in self.targets)
        self.compressed = False
        self._c_step = compiled(self._c_step)  # type: ignore[method-assign]  # compiled
        self._swap = compiled(self._swap)  # type: ignore[method-assign]  # compiled

    @property
    def multipliers(self) -> list[tf.Tensor]:
        """λ, a tensor for each variable."""
        return [
            self.mu * (target - theta)
            for target, theta in zip(self.targets, self.thetas, strict=True)
        ]

    @contextlib.contextmanager
    def pulling(self) -> Iterator[None]:
        """The context in which the penalty counts among the regularizers of the weights."""
        for variable, penalty in zip(self.variables, self.penalties, strict=True):
            variable.regularizer = penalty
        try:
            yield
        finally:
            for variable, penalty in zip(self.variables, self.penalties, strict=True):
                variable.regularizer = penalty.regularizer

    def direct_compression(self, mu: float) -> CStep:
        r"""Starts from $\theta = \Pi(w)$, $\lambda = 0$.

        Args:
            mu: Float > 0, μ of the first L step.

        Returns:
            `CStep`.
        """
        result = self._c_step(tf.constant(mu, tf.float32), tf.constant(0.0))
        self.mu.assign(mu)
        return result

    def c_step(self, mu: float, next_mu: float) -> CStep:
        r"""$\theta \leftarrow \Pi(w - \lambda/\mu)$, $\lambda \leftarrow \lambda - \mu(w - \theta)$.

        Args:
            mu: Float > 0, μ of the L step that ends.
            next_mu: Float > 0, μ of the L step that begins.

        Returns:
            `CStep`.
        """
        result = self._c_step(tf.constant(mu, tf.float32), tf.constant(mu / next_mu, tf.float32))
        self.mu.assign(tf.where(tf.reduce_all(result.finite), next_mu, self.mu))
        return result

    def project(self, mu: float) -> None:
        r"""Puts $\Pi(w)$ of the model's present weights into the model, λ left aside.

        Args:
            mu: Float > 0.
        """
        for variable, target, theta in zip(self.variables, self.targets, self.thetas, strict=True):
            target.assign(_read(variable))
            theta.assign(_read(variable))
        self.direct_compression(mu)
        self.compressed = False
        self.show_compressed()

    def show_compressed(self) -> None:
        """Puts θ into the model, and w where θ was."""
        if not self.compressed:
            self._swap()
            self.compressed = True

    def show_training(self) -> None:
        """Puts w back into the model."""
        if self.compressed:
            self._swap()
            self.compressed = False

    def _swap(self) -> None:
        for variable, theta in zip(self.variables, self.thetas, strict=True):
            weight, compressed = _read(variable), theta.value()
            variable.assign(tf.cast(compressed, variable.dtype))
            theta.assign(weight)

    def _c_step(self, mu: tf.Tensor, ratio: tf.Tensor) -> CStep:
        finite = thresholds.finite([tf.convert_to_tensor(v) for v in self.variables])
        gap, density = tf.cond(
            tf.reduce_all(finite),
            lambda: self._update(mu, ratio),
            lambda: (tf.constant(float("nan")), tf.constant(float("nan"))),
        )
        return CStep(finite, gap, density)

    def _update(self, mu: tf.Tensor, ratio: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # With v = w − λ/μ the new multipliers are λ − μ(w − θ) = μ(θ − v), so the new
        # target is θ + (μ/μ')(θ − v). v waits where θ will be: no third array.
        with_multipliers = self.thetas is not self.targets
        if with_multipliers:
            for variable, target, theta in zip(self.variables, self.targets, self.thetas, strict=True):
                theta.assign(_read(variable) - (target - theta))
        sources = self.thetas if with_multipliers else self.variables
        squared_gap = squared_norm = tf.constant(0.0)
        kept = tf.constant(0.0, tf.float64)
        start = 0
        for part in self.shared:
            stop = start + len(part.variables)
            maps = part.compression.maps(
                [_read(source) for source in sources[start:stop]], mu, part.output_axes
            )
            for i, solve in zip(range(start, stop), maps, strict=True):
                shifted, weight = _read(sources[i]), _read(self.variables[i])
                theta = solve(shifted)
                self.thetas[i].assign(theta)
                if with_multipliers:
                    self.targets[i].assign(theta + ratio * (theta - shifted))
                squared_gap += tf.nn.l2_loss(weight - theta)
                squared_norm += tf.nn.l2_loss(weight)
                kept += tf.cast(tf.math.count_nonzero(theta, dtype=tf.int32), tf.float64)
            start = stop
        gap = tf.sqrt(tf.math.divide_no_nan(squared_gap, squared_norm))
        return gap, tf.cast(kept / self.size, tf.float32)


def _read(variable: keras.Variable | tf.Variable) -> tf.Tensor:
    # tf.cast of a variable to its own dtype would not read it yet.
    return tf.cast(tf.convert_to_tensor(variable), tf.float32)


def _slot(variable: keras.Variable, name: str) -> tf.Variable:
    return tf.Variable(_read(variable), trainable=False, name=f"{variable.name}_{name}")
