r"""The augmented Lagrangian of $w = \theta$: the copy θ, the multipliers λ, and the C step."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.penalty import LCPenalty
from lc_keras.algorithm.tasks import SharedCost
from lc_keras.costs import thresholds
from lc_keras.costs.compression import Map
from lc_keras.internals import compiled, emptied

# How much is lost where Keras swaps weights and their averages by adding and subtracting, by the bytes of
# the weights; and where two sums are of the same values.
_SWAPPED, _SAME = {2: 0.03, 4: 1e-4, 8: 1e-4}, 1e-12


class CStep(NamedTuple):
    """What a C step found, as scalar tensors.

    Attributes:
        finite: Bool, one for each variable. If any is false, nothing was changed.
        gap: Float, ‖w − θ‖ / ‖w‖ over all variables; −1 if nothing was changed.
        density: Float, fraction of the weights that are not zero in θ; −1 if nothing was changed.
    """

    finite: tf.Tensor
    gap: tf.Tensor
    density: tf.Tensor


class Lagrangian:
    r"""θ and λ of a model's weights.

    The distance of w to θ may count more in one variable than in another: variable l has
    the scale $s_l$, hence $\mu_l = \mu s_l$, and the augmented Lagrangian is

    $$L(w) + \sum_l \frac{\mu_l}{2} \lVert w_l - \theta_l - \lambda_l / \mu_l \rVert^2 + C(\theta)$$

    up to a constant. Two arrays of each weight's shape are kept, θ and
    $t = \theta + \lambda/\mu$, the target of the L step; λ is $\mu (t - \theta)$. Without
    multipliers t is θ and one array serves as both. Nothing here runs weight by weight in
    Python, and nothing is retraced when μ changes.

    The arrays are of the weight's own type, at least float32, and live where it lives; made
    in the scope of a `tf.distribute` strategy they are mirrored as it is. The C step runs
    on the device of the weights, and no replica asks another for anything.

    Args:
        shared: List of `SharedCost`.
        multipliers: Bool, default `True`. `False` gives the plain quadratic penalty.
    """

    def __init__(self, shared: Sequence[SharedCost], multipliers: bool = True) -> None:
        self.shared = shared
        self.variables = [v for part in shared for v in part.variables]
        # Costs that shrink the weights are exact only where all distances count alike.
        self._scalable = [p.compression.keeps_values for p in shared for _ in p.variables]
        self.scales = tf.Variable(tf.ones(len(self.variables)), trainable=False, name="scales")
        self.mus = [tf.Variable(0.0, trainable=False, name=f"{v.name}_mu") for v in self.variables]
        self.targets = [_slot(v, "target") for v in self.variables]
        self.thetas = [_slot(v, "theta") for v in self.variables] if multipliers else self.targets
        self.penalties = [
            LCPenalty(target, mu, v.regularizer)
            for v, target, mu in zip(self.variables, self.targets, self.mus, strict=True)
        ]
        self.size = sum(int(target.shape.num_elements()) for target in self.targets)
        self.compressed = False
        self.shown = np.empty((0, 4))
        self._c_step = compiled(self._c_step)  # type: ignore[method-assign]  # compiled
        self._swap = compiled(self._swap)  # type: ignore[method-assign]  # compiled
        self._outlines = compiled(self._outlines)  # type: ignore[method-assign]  # compiled

    @property
    def multipliers(self) -> list[tf.Tensor]:
        """λ, a tensor for each variable."""
        return [
            tf.cast(mu, target.dtype) * (target - theta)
            for mu, target, theta in zip(self.mus, self.targets, self.thetas, strict=True)
        ]

    def penalty(self) -> tf.Tensor:
        r"""$\frac{\mu}{2} \lVert w - \theta - \lambda/\mu \rVert^2$: what an L step adds to the loss."""
        return tf.add_n([penalty.pull(v) for v, penalty in zip(self.variables, self.penalties, strict=True)])

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

    def check_pulls(self) -> None:
        """Checks that an L step, traced in `pulling`, pulls each weight.

        Raises:
            ValueError: If it leaves one out.
        """
        free = [
            v.path for v, penalty in zip(self.variables, self.penalties, strict=True) if not penalty.pulls
        ]
        if free:
            more = f" and {len(free) - 1} more" if len(free) > 1 else ""
            raise ValueError(
                "The training step of the model leaves out `model.losses`, where the penalty of the "
                f"L step is, for {free[0]}{more}. Expected a `train_step` that calls `compute_loss` of "
                "`keras.Model`, or adds the `losses` of the model, or of the part that holds these "
                "weights, to the loss whose gradient trains them, without a tf.function of its own, which "
                "would go on as it was traced before; or a `Task` that leaves them out."
            )

    def direct_compression(self, mu: float) -> CStep:
        r"""Starts from $\theta = \Pi(w)$, $\lambda = 0$.

        Args:
            mu: Float > 0, μ of the first L step.

        Returns:
            `CStep`.
        """
        mu, portions = tf.constant(mu, tf.float64), tf.ones(len(self.variables))
        return self._c_step(mu, mu, tf.convert_to_tensor(self.scales), portions, tf.constant(False))

    def c_step(
        self,
        mu: float,
        next_mu: float,
        scales: Sequence[float] | np.ndarray | None = None,
        portions: Sequence[float] | np.ndarray | None = None,
    ) -> CStep:
        r"""$\theta \leftarrow \Pi(w - \lambda/\mu)$, $\lambda \leftarrow \lambda - \phi \mu(w - \theta)$.

        Args:
            mu: Float > 0, μ of the L step that ends.
            next_mu: Float > 0, μ of the L step that begins.
            scales: Sequence of floats $s_l$ > 0, one for each variable, from the L step that
                begins on, or `None` (default), which leaves them as they are. Variables whose
                cost shrinks weights have the scale 1, whatever is given.
            portions: Sequence of floats φ in [0, 1], one for each variable, or `None` (default),
                all 1: how much of their step the multipliers take.

        Returns:
            `CStep`.
        """
        scales = tf.convert_to_tensor(self.scales) if scales is None else tf.cast(scales, tf.float32)
        scales = tf.where(self._scalable, scales, 1.0)
        portions = tf.ones(len(self.variables)) if portions is None else tf.cast(portions, tf.float32)
        mu, next_mu = tf.constant(mu, tf.float64), tf.constant(next_mu, tf.float64)
        return self._c_step(mu, next_mu, scales, portions, tf.constant(True))

    def not_finite(self, result: CStep) -> list[str]:
        """The paths of the variables because of which a C step changed nothing."""
        finite = result.finite.numpy()
        return [v.path for v, ok in zip(self.variables, finite, strict=True) if not ok]

    def compress(self, variables: Sequence[keras.Variable], mu: tf.Tensor) -> None:
        r"""Puts $\Pi(v)$ in the place of each $v$, λ left aside. To be called in a `tf.function`.

        Args:
            variables: List of variables, one for each weight.
            mu: float32 scalar tensor > 0.
        """
        scales, start = tf.unstack(self.scales), 0
        for part in self.shared:
            chosen = variables[start : start + len(part.variables)]
            start += len(chosen)
            maps = _maps(part, chosen, scales[start - len(chosen) : start], mu)
            weights = self.variables[start - len(chosen) : start]
            for variable, weight, solve in zip(chosen, weights, maps, strict=True):
                theta = _constrained(weight, part, solve(_read(variable)))
                variable.assign(tf.cast(theta, variable.dtype))

    def show_compressed(self) -> None:
        """Puts θ into the model, and w where θ was."""
        if not self.compressed:
            self._swap()
            self.compressed = True
            self.shown = self._outlines().numpy()

    def show_training(self) -> None:
        """Puts w back into the model."""
        if self.compressed:
            self._swap()
            self.compressed = False

    def is_replaced(self, swapped: bool = False) -> bool:
        """Whether somebody put other weights in the place of θ while the model showed it.

        Args:
            swapped: Bool, default `False`. `True`: weights may have changed places with their averages, and
                back, which loses some of their digits.

        Returns:
            Bool.
        """
        if not self.compressed:
            return False
        changes = np.abs(self._outlines().numpy() - self.shown)
        lost = np.array([_SWAPPED[v.value.dtype.size] if swapped else _SAME for v in self.variables])
        return not np.all(changes <= lost[:, None] * self.shown[:, [0, 2, 2, 3]])

    def begin_anew(self, mu: float) -> CStep:
        r"""Takes what the model holds in the place of θ for w, and $\theta = \Pi(w)$, $\lambda = 0$.

        Args:
            mu: Float > 0, μ of the L step that begins.

        Returns:
            `CStep`. If what the model holds is not finite, w stays as it was, with its $\theta = \Pi(w)$.
        """
        self.compressed = False
        for target, theta in zip(self.targets, self.thetas, strict=True):
            target.assign(theta)  # λ = 0
        result = self.direct_compression(mu)
        if not np.all(result.finite):
            for variable, theta in zip(self.variables, self.thetas, strict=True):
                variable.assign(tf.cast(theta, variable.dtype))
            self.direct_compression(mu)
        return result

    def release(self) -> None:
        """Frees t, and θ without multipliers. The penalty is 0 from now on, wherever it was traced."""
        for mu, target in zip(self.mus, self.targets, strict=True):
            mu.assign(0.0)
            emptied(target, 0.0)

    def _swap(self) -> None:
        for variable, theta in zip(self.variables, self.thetas, strict=True):
            weight, compressed = _read(variable), theta.value()
            variable.assign(tf.cast(compressed, variable.dtype))
            theta.assign(weight)

    def _outlines(self) -> tf.Tensor:
        return tf.stack([thresholds.outline(tf.convert_to_tensor(v)) for v in self.variables])

    def _c_step(
        self,
        mu: tf.Tensor,
        next_mu: tf.Tensor,
        next_scales: tf.Tensor,
        portions: tf.Tensor,
        multiply: tf.Tensor,
    ) -> CStep:
        def update() -> tuple[tf.Tensor, tf.Tensor]:
            next_mus = next_mu * tf.cast(next_scales, tf.float64)
            ratios = tf.where(multiply, mu * tf.cast(self.scales, tf.float64) / next_mus, 0.0)
            found = self._update(tf.cast(mu, tf.float32), ratios, portions)
            self.scales.assign(next_scales)
            for variable, value in zip(self.mus, tf.unstack(next_mus), strict=True):
                variable.assign(tf.cast(value, tf.float32))
            return found

        nothing = tf.constant(-1.0)
        with tf.device(self.variables[0].value.device):
            finite = thresholds.finite([tf.convert_to_tensor(v) for v in self.variables])
            gap, density = tf.cond(tf.reduce_all(finite), update, lambda: (nothing, nothing))
        return CStep(finite, gap, density)

    def _update(self, mu: tf.Tensor, ratios: tf.Tensor, portions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # With v = w − λ/μ the new multipliers are λ − φμ(w − θ) = μ(θ − v − (1 − φ)(θ − w)), and the
        # new target is θ + λ/μ'. v waits where θ will be: no third array.
        scales, ratios, rests = tf.unstack(self.scales), tf.unstack(ratios), tf.unstack(1 - portions)
        with_multipliers = self.thetas is not self.targets
        done: list[tf.Tensor] = []
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
            maps = _maps(part, sources[start:stop], scales[start:stop], mu)
            for i, solve in zip(range(start, stop), maps, strict=True):
                with tf.device(self.variables[i].value.device), tf.control_dependencies(done):
                    shifted, weight = _read(sources[i]), _read(self.variables[i])
                    theta = _constrained(self.variables[i], part, solve(shifted))
                    done = [self.thetas[i].assign(theta)]
                    if with_multipliers:
                        moved = theta - shifted - tf.cast(rests[i], theta.dtype) * (theta - weight)
                        target = theta + tf.cast(ratios[i], theta.dtype) * moved
                        done.append(self.targets[i].assign(target))
                    squared_gap += tf.cast(tf.nn.l2_loss(weight - theta), tf.float64)
                    squared_norm += tf.cast(tf.nn.l2_loss(weight), tf.float64)
                    kept += tf.cast(tf.math.count_nonzero(theta, dtype=tf.int32), tf.float64)
                    done += [squared_gap, squared_norm, kept]
            start = stop
        gap = tf.sqrt(tf.math.divide_no_nan(squared_gap, squared_norm))
        return tf.cast(gap, tf.float32), tf.cast(kept / self.size, tf.float32)


def _maps(
    part: SharedCost,
    sources: Sequence[keras.Variable | tf.Variable],
    scales: Sequence[tf.Tensor],
    mu: tf.Tensor,
) -> list[Map]:
    return part.compression.maps([_read(source) for source in sources], mu, part.layouts, scales)


def _constrained(variable: keras.Variable, part: SharedCost, theta: tf.Tensor) -> tf.Tensor:
    """θ under the weight's own constraint, where the cost only says which weights are zero."""
    if variable.constraint is None or not part.compression.keeps_values:
        return theta
    constrained = tf.cast(tf.convert_to_tensor(variable.constraint(theta)), theta.dtype)
    return tf.where(theta != 0, constrained, tf.zeros([], theta.dtype))


def _read(variable: keras.Variable | tf.Variable) -> tf.Tensor:
    # tf.cast of a variable to its own dtype would not read it yet.
    value = tf.convert_to_tensor(variable)
    return tf.cast(value, thresholds.common_dtype([value]))


def _slot(variable: keras.Variable, name: str) -> tf.Variable:
    with tf.device(variable.value.device):
        return tf.Variable(_read(variable), trainable=False, name=f"{variable.name}_{name}")
