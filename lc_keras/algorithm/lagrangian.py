r"""The augmented Lagrangian of $w = \theta$: the copy θ, the multipliers λ, and the C step."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.penalty import LCPenalty
from lc_keras.algorithm.shadows import Shadow, read
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


@dataclass(frozen=True, eq=False)
class Slot:
    r"""Hold what LC keeps of one weight.

    Attributes:
        variable: `keras.Variable`, w.
        theta: `tf.Variable`, θ.
        target: `tf.Variable`, $t = \theta + \lambda/\mu$; the same as `theta` without multipliers.
        mu: `tf.Variable`, a scalar, the strength of the pull on this weight.
        scale: `tf.Variable`, a scalar: how much its distance counts.
        penalty: `LCPenalty`, the pull.
        can_scale: Bool, whether `scale` may be other than 1.
    """

    variable: keras.Variable
    theta: tf.Variable
    target: tf.Variable
    mu: tf.Variable
    scale: tf.Variable
    penalty: LCPenalty
    can_scale: bool


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
        variables = [v for part in shared for v in part.variables]
        self._theta = Shadow(variables, "theta", widen=True)
        targets = Shadow(variables, "target", widen=True).copies if multipliers else self._theta.copies
        self._with_multipliers = multipliers
        thetas = zip(self._theta.copies, targets, strict=True)
        self._parts = [(part, [_slot(part, v, *next(thetas)) for v in part.variables]) for part in shared]
        self.slots = [slot for _, slots in self._parts for slot in slots]
        self.size = sum(int(slot.target.shape.num_elements()) for slot in self.slots)
        self.compressed = False
        self._shown = np.empty((0, 4))
        self._c_step = compiled(self._c_step)  # type: ignore[method-assign]  # compiled

    @property
    def variables(self) -> list[keras.Variable]:
        """The weights w."""
        return self._theta.variables

    @property
    def thetas(self) -> list[tf.Variable]:
        """θ, a variable for each weight."""
        return self._theta.copies

    @property
    def targets(self) -> list[tf.Variable]:
        """The targets of the L step, a variable for each weight."""
        return [slot.target for slot in self.slots]

    @property
    def multipliers(self) -> list[tf.Tensor]:
        """λ, a tensor for each weight."""
        return [tf.cast(s.mu, s.target.dtype) * (s.target - s.theta) for s in self.slots]

    def saved(self) -> dict[str, list[tf.Variable]]:
        """Return the variables that a restart needs, by what they are."""
        return {
            "target": self.targets,
            "theta": self.thetas if self._with_multipliers else [],
            "mu": [slot.mu for slot in self.slots],
            "scale": [slot.scale for slot in self.slots],
        }

    def state(self) -> dict[str, Any]:
        """Return what `load` needs besides the variables, while the model shows θ."""
        return {"shown": self._shown.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, of which all variables have their values again."""
        self.compressed, self._shown = True, np.array(state["shown"])

    def penalty(self) -> tf.Tensor:
        r"""Return $\frac{\mu}{2} \lVert w - \theta - \lambda/\mu \rVert^2$, for the loss of an L step."""
        return tf.add_n([slot.penalty.pull(slot.variable) for slot in self.slots])

    @contextlib.contextmanager
    def pulling(self) -> Iterator[None]:
        """Return a context in which the penalty counts among the regularizers of the weights."""
        for slot in self.slots:
            slot.variable.regularizer = slot.penalty
        try:
            yield
        finally:
            for slot in self.slots:
                slot.variable.regularizer = slot.penalty.regularizer

    def check_pulls(self) -> None:
        """Check that an L step, traced in `pulling`, pulls each weight.

        Raises:
            ValueError: If it leaves one out.
        """
        free = [slot.variable.path for slot in self.slots if not slot.penalty.pulls]
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
        r"""Start from $\theta = \Pi(w)$, $\lambda = 0$.

        Args:
            mu: Float > 0, μ of the first L step.

        Returns:
            `CStep`.
        """
        mu, portions = tf.constant(mu, tf.float64), tf.ones(len(self.slots))
        scales = tf.stack([slot.scale for slot in self.slots])
        return self._c_step(mu, mu, scales, portions, tf.constant(False))

    def c_step(
        self,
        mu: float,
        next_mu: float,
        scales: Sequence[float] | np.ndarray | None = None,
        portions: Sequence[float] | np.ndarray | None = None,
    ) -> CStep:
        r"""Set $\theta \leftarrow \Pi(w - \lambda/\mu)$, $\lambda \leftarrow \lambda - \phi \mu(w - \theta)$.

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
        scales = [slot.scale for slot in self.slots] if scales is None else scales
        scales = tf.where([slot.can_scale for slot in self.slots], tf.cast(tf.stack(scales), tf.float32), 1.0)
        portions = tf.ones(len(self.slots)) if portions is None else tf.cast(portions, tf.float32)
        mu, next_mu = tf.constant(mu, tf.float64), tf.constant(next_mu, tf.float64)
        return self._c_step(mu, next_mu, scales, portions, tf.constant(True))

    def not_finite(self, result: CStep) -> list[str]:
        """Return the paths of the variables because of which a C step changed nothing."""
        finite = result.finite.numpy()
        return [v.path for v, ok in zip(self.variables, finite, strict=True) if not ok]

    def compress(self, variables: Sequence[keras.Variable], mu: tf.Tensor) -> None:
        r"""Put $\Pi(v)$ in the place of each $v$, λ left aside. To be called in a `tf.function`.

        Args:
            variables: List of variables, one for each weight.
            mu: float32 scalar tensor > 0.
        """
        given = iter(variables)
        for part, slots in self._parts:
            chosen = list(itertools.islice(given, len(slots)))
            for slot, variable, solve in zip(slots, chosen, _maps(part, slots, chosen, mu), strict=True):
                theta = _constrained(slot.variable, part, solve(read(variable)))
                variable.assign(tf.cast(theta, variable.dtype))

    def show_compressed(self) -> None:
        """Put θ into the model, and w where θ was."""
        if not self.compressed:
            self._theta.swap()
            self.compressed = True
            self._shown = self._theta.fingerprint()

    def show_training(self) -> None:
        """Put w back into the model."""
        if self.compressed:
            self._theta.swap()
            self.compressed = False

    def is_replaced(self, swapped: bool = False) -> bool:
        """Tell if somebody put other weights in the place of θ while the model showed it.

        Args:
            swapped: Bool, default `False`. `True`: weights may have changed places with their averages, and
                back, which loses some of their digits.

        Returns:
            Bool.
        """
        if not self.compressed:
            return False
        changes = np.abs(self._theta.fingerprint() - self._shown)
        lost = np.array([_SWAPPED[v.value.dtype.size] if swapped else _SAME for v in self.variables])
        return not np.all(changes <= lost[:, None] * self._shown[:, [0, 2, 2, 3]])

    def begin_anew(self, mu: float) -> CStep:
        r"""Take what the model holds in the place of θ for w; start from $\theta = \Pi(w)$, $\lambda = 0$.

        Args:
            mu: Float > 0, μ of the L step that begins.

        Returns:
            `CStep`. If what the model holds is not finite, w stays as it was, with its $\theta = \Pi(w)$.
        """
        self.compressed = False
        for slot in self.slots:
            slot.target.assign(slot.theta)  # λ = 0
        result = self.direct_compression(mu)
        if not np.all(result.finite):
            self._theta.restore()
            self.direct_compression(mu)
        return result

    def release(self) -> None:
        """Free t, and θ without multipliers. The penalty is 0 from now on, wherever it was traced."""
        for slot in self.slots:
            slot.mu.assign(0.0)
            emptied(slot.target, 0.0)

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
            scales = tf.stack([slot.scale for slot in self.slots])
            ratios = tf.where(multiply, mu * tf.cast(scales, tf.float64) / next_mus, 0.0)
            found = self._update(tf.cast(mu, tf.float32), ratios, portions)
            for i, slot in enumerate(self.slots):
                slot.scale.assign(next_scales[i])
                slot.mu.assign(tf.cast(next_mus[i], tf.float32))
            return found

        nothing = tf.constant(-1.0)
        with tf.device(self.variables[0].value.device):
            finite = thresholds.finite([tf.convert_to_tensor(v) for v in self.variables])
            gap, density = tf.cond(tf.reduce_all(finite), update, lambda: (nothing, nothing))
        return CStep(finite, gap, density)

    def _update(self, mu: tf.Tensor, ratios: tf.Tensor, portions: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        # With v = w − λ/μ the new multipliers are λ − φμ(w − θ) = μ(θ − v − (1 − φ)(θ − w)), and the
        # new target is θ + λ/μ'. v waits where θ will be: no third array.
        moves = zip(tf.unstack(ratios), tf.unstack(1 - portions), strict=True)
        done: list[tf.Tensor] = []
        if self._with_multipliers:
            for slot in self.slots:
                # One after the other, here and below: the buffers of one tensor at a time are alive.
                with tf.control_dependencies(done):
                    done = [slot.theta.assign(read(slot.variable) - (slot.target - slot.theta))]
        squared_gap = squared_norm = kept = tf.constant(0.0, tf.float64)
        for part, slots in self._parts:
            sources = [slot.theta if self._with_multipliers else slot.variable for slot in slots]
            maps = _maps(part, slots, sources, mu)
            for slot, source, solve, (ratio, rest) in zip(slots, sources, maps, moves, strict=False):
                with tf.device(slot.variable.value.device), tf.control_dependencies(done):
                    shifted, weight = read(source), read(slot.variable)
                    theta = _constrained(slot.variable, part, solve(shifted))
                    done = [slot.theta.assign(theta)]
                    if self._with_multipliers:
                        moved = theta - shifted - tf.cast(rest, theta.dtype) * (theta - weight)
                        done.append(slot.target.assign(theta + tf.cast(ratio, theta.dtype) * moved))
                    squared_gap += tf.cast(tf.nn.l2_loss(weight - theta), tf.float64)
                    squared_norm += tf.cast(tf.nn.l2_loss(weight), tf.float64)
                    kept += tf.cast(tf.math.count_nonzero(theta, dtype=tf.int32), tf.float64)
                    done += [squared_gap, squared_norm, kept]
        gap = tf.sqrt(tf.math.divide_no_nan(squared_gap, squared_norm))
        return tf.cast(gap, tf.float32), tf.cast(kept / self.size, tf.float32)


def _slot(part: SharedCost, variable: keras.Variable, theta: tf.Variable, target: tf.Variable) -> Slot:
    mu = tf.Variable(0.0, trainable=False, name=f"{variable.name}_mu")
    return Slot(
        variable,
        theta,
        target,
        mu,
        scale=tf.Variable(1.0, trainable=False, name=f"{variable.name}_scale"),
        penalty=LCPenalty(target, mu, variable.regularizer),
        # Costs that shrink the weights are exact only where all distances count alike.
        can_scale=part.compression.keeps_values,
    )


def _maps(
    part: SharedCost,
    slots: Sequence[Slot],
    sources: Sequence[keras.Variable | tf.Variable],
    mu: tf.Tensor,
) -> list[Map]:
    scales = [slot.scale.value() for slot in slots]
    return part.compression.maps([read(source) for source in sources], mu, part.layouts, scales)


def _constrained(variable: keras.Variable, part: SharedCost, theta: tf.Tensor) -> tf.Tensor:
    """Apply the weight's own constraint to θ, where the cost only says which weights are zero."""
    if variable.constraint is None or not part.compression.keeps_values:
        return theta
    constrained = tf.cast(tf.convert_to_tensor(variable.constraint(theta)), theta.dtype)
    return tf.where(theta != 0, constrained, tf.zeros([], theta.dtype))
