r"""The augmented Lagrangian of $w = \theta$: the copy θ, the multipliers λ, and the C step."""

import contextlib
from typing import NamedTuple

import tensorflow as tf

from lc_keras import thresholds
from lc_keras.penalty import LCPenalty


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

    The arrays are of the weight's own type, at least float32, and live where it lives; made
    in the scope of a `tf.distribute` strategy they are mirrored as it is. The C step runs
    on the device of the weights, and no replica asks another for anything.

    Args:
        shared: List of `SharedCost`.
        multipliers: Bool, default `True`. `False` gives the plain quadratic penalty.
    """

    def __init__(self, shared, multipliers=True):
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
        self._c_step = tf.function(self._c_step, autograph=False)
        self._swap = tf.function(self._swap, autograph=False)

    @property
    def multipliers(self) -> list:
        """λ, a tensor for each variable."""
        return [
            tf.cast(self.mu, target.dtype) * (target - theta)
            for target, theta in zip(self.targets, self.thetas, strict=True)
        ]

    @contextlib.contextmanager
    def pulling(self):
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
        result = self._c_step(tf.constant(mu, tf.float32), tf.constant(0.0, tf.float64))
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
        result = self._c_step(tf.constant(mu, tf.float32), tf.constant(mu / next_mu, tf.float64))
        self.mu.assign(tf.where(tf.reduce_all(result.finite), next_mu, self.mu))
        return result

    def project(self, mu: float):
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

    def show_compressed(self):
        """Puts θ into the model, and w where θ was."""
        if not self.compressed:
            self._swap()
            self.compressed = True

    def show_training(self):
        """Puts w back into the model."""
        if self.compressed:
            self._swap()
            self.compressed = False

    def _swap(self):
        for variable, theta in zip(self.variables, self.thetas, strict=True):
            weight, compressed = _read(variable), theta.value()
            variable.assign(tf.cast(compressed, variable.dtype))
            theta.assign(weight)

    def _c_step(self, mu, ratio):
        with tf.device(self.variables[0].value.device):
            finite = thresholds.finite([tf.convert_to_tensor(v) for v in self.variables])
            gap, density = tf.cond(
                tf.reduce_all(finite),
                lambda: self._update(mu, ratio),
                lambda: (tf.constant(float("nan")), tf.constant(float("nan"))),
            )
        return CStep(finite, gap, density)

    def _update(self, mu, ratio):
        # With v = w − λ/μ the new multipliers are λ − μ(w − θ) = μ(θ − v), so the new
        # target is θ + (μ/μ')(θ − v). v waits where θ will be: no third array.
        with_multipliers = self.thetas is not self.targets
        done = []
        if with_multipliers:
            for variable, target, theta in zip(self.variables, self.targets, self.thetas, strict=True):
                # One after the other, here and below: the buffers of one tensor at a time are alive.
                with tf.control_dependencies(done):
                    done = [theta.assign(_read(variable) - (target - theta))]
        sources = self.thetas if with_multipliers else self.variables
        squared_gap = squared_norm = kept = tf.constant(0.0, tf.float64)
        start = 0
        for part in self.shared:
            stop = start + len(part.variables)
            maps = part.compression.maps(
                [_read(source) for source in sources[start:stop]], mu, part.output_axes
            )
            for i, solve in zip(range(start, stop), maps, strict=True):
                with tf.device(self.variables[i].value.device), tf.control_dependencies(done):
                    shifted, weight = _read(sources[i]), _read(self.variables[i])
                    theta = solve(shifted)
                    done = [self.thetas[i].assign(theta)]
                    if with_multipliers:
                        target = theta + tf.cast(ratio, theta.dtype) * (theta - shifted)
                        done.append(self.targets[i].assign(target))
                    squared_gap += tf.cast(tf.nn.l2_loss(weight - theta), tf.float64)
                    squared_norm += tf.cast(tf.nn.l2_loss(weight), tf.float64)
                    kept += tf.cast(tf.math.count_nonzero(theta, dtype=tf.int32), tf.float64)
                    done += [squared_gap, squared_norm, kept]
            start = stop
        gap = tf.sqrt(tf.math.divide_no_nan(squared_gap, squared_norm))
        return tf.cast(gap, tf.float32), tf.cast(kept / self.size, tf.float32)


def _read(variable):
    # tf.cast of a variable to its own dtype would not read it yet.
    value = tf.convert_to_tensor(variable)
    return tf.cast(value, thresholds.common_dtype([value]))


def _slot(variable, name):
    with tf.device(variable.value.device):
        return tf.Variable(_read(variable), trainable=False, name=f"{variable.name}_{name}")
