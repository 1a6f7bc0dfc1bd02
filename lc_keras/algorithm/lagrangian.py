r"""The augmented Lagrangian of $w = \theta$: the copy θ, the multipliers λ, and the C step."""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from lc_keras.algorithm.beside import Reach
from lc_keras.algorithm.graphs import Arrays, Part, in_graph
from lc_keras.algorithm.passes import distances, in_place, new_target
from lc_keras.algorithm.penalty import LCPenalty
from lc_keras.algorithm.shadows import Shadow, fingerprint, is_same
from lc_keras.algorithm.tasks import SharedCost
from lc_keras.costs import thresholds
from lc_keras.costs.compression import Map
from lc_keras.costs.thresholds import read
from lc_keras.internals.tensorflow import copies_of, emptied

# How much is lost when Keras swaps weights and their averages by adding and subtracting, by the bytes of
# the weights.
_SWAPPED = {2: 0.03, 4: 1e-4, 8: 1e-4}


class CStep(NamedTuple):
    """Hold what a C step found, as tensors.

    Attributes:
        finite: Bool vector, one for each variable. If any is false, nothing was changed.
        gap: Float, ‖w − θ‖ / ‖w‖ over all variables; −1 if nothing was changed, or θ is loose.
        density: Float, fraction of the weights that are not zero in θ; −1 if the gap is.
    """

    finite: tf.Tensor
    gap: tf.Tensor
    density: tf.Tensor


@dataclass(frozen=True, eq=False)
class Slot:
    r"""Hold what LC keeps for one weight.

    Attributes:
        variable: `keras.Variable`, w.
        theta: `tf.Variable`, θ.
        target: `tf.Variable`, $t = \theta + \lambda/\mu$; the same as `theta` without multipliers. Beside
            the optimizer it is NaN where a weight is left free.
        pull: `LCPenalty`, the pull through the loss, or `PullBeside`, the pull beside the optimizer; `None`
            in a graph.
    """

    variable: keras.Variable
    theta: tf.Variable
    target: tf.Variable
    pull: Any


class Lagrangian:
    r"""Keep θ and λ of a model's weights, and run the C step.

    The augmented Lagrangian is, up to a constant,

    $$L(w) + \frac{\mu}{2} \lVert w - \theta - \lambda / \mu \rVert^2 + C(\theta).$$

    Two arrays of each weight's shape are kept, θ and $t = \theta + \lambda/\mu$, the target of the L step;
    λ is $\mu (t - \theta)$. Without multipliers t is θ and one array serves as both. Nothing here runs weight
    by weight in Python, and nothing is retraced when μ changes.

    The arrays have the weight's own type, at least float32, and live where the weight lives;
    if made in the scope of a `tf.distribute` strategy, they are mirrored as it is. The C step
    runs on the device of the weights, and no replica asks another for anything.

    Args:
        shared: List of `SharedCost`.
        multipliers: Bool, default `True`. `False` gives the plain quadratic penalty.

    Attributes:
        slots: List of `Slot`, one for each weight.
        shadow: `Shadow`, θ, which changes places with the weights.
        size: Int, the number of weights.
        compressed: Bool, whether the model shows θ.
        shown: Array, the fingerprint of the θ that the model shows or showed last.
    """

    is_loose = False
    # `project` is for a Lagrangian that can be loose, `moved` for one that is asked how far weights moved.
    project: Callable[[], CStep]
    moved: Callable[[], float]
    # The value that emptied targets have, so that nothing is pulled any more.
    _nowhere = 0.0

    # Methods that are compiled, once for all Lagrangians that are alike.
    _in_graphs: tuple[str, ...] = ("_c_step", "_measure")

    def __init__(self, shared: Sequence[SharedCost], multipliers: bool = True) -> None:
        variables = [v for part in shared for v in part.variables]
        # μ, or the part of the way that a batch pulls beside the optimizer.
        strength = tf.Variable(0.0, trainable=False, name="strength")
        self._multipliers = multipliers
        theta, target = Shadow(variables, "theta", widen=True), self._made_target(variables)
        parts = [Part(s.compression, s.layouts, [v.constraint for v in s.variables]) for s in shared]
        targets = target.copies if target else None
        self._begin(shared, parts, theta, Arrays(variables, theta.copies, targets, strength))

    def _begin(
        self, shared: Sequence[SharedCost], parts: Sequence[Part], theta: Shadow, arrays: Arrays
    ) -> None:
        self.shared, self.shadow = shared, theta
        self._hold(parts, arrays)
        self.compressed = False
        self.shown = np.empty((0, 3))
        self._unpulled: np.ndarray | None = None
        for name in self._in_graphs:
            setattr(self, name, in_graph(getattr(type(self), name), type(self)._of, parts, self._arrays))

    @classmethod
    def _of(cls, parts: Sequence[Part], arrays: Arrays) -> "Lagrangian":
        """Return a Lagrangian that has nothing but arrays, and no pull, for a graph of them."""
        made = object.__new__(cls)
        made._hold(parts, arrays, pulls=False)
        return made

    def _hold(self, parts: Sequence[Part], arrays: Arrays, pulls: bool = True) -> None:
        self._arrays, self._strength = arrays, arrays.strength
        rows = zip(self.variables, self.thetas, self.targets, strict=True)
        slots = (Slot(*row, pull=self._pull(*row) if pulls else None) for row in rows)
        self._parts = [(part, list(itertools.islice(slots, len(part.layouts)))) for part in parts]
        self.slots = [slot for _, slots in self._parts for slot in slots]
        self.size = sum(int(slot.target.shape.num_elements()) for slot in self.slots)

    @property
    def variables(self) -> list[keras.Variable]:
        """The weights w."""
        return self._arrays.variables

    @property
    def thetas(self) -> list[tf.Variable]:
        """θ, a variable for each weight."""
        return self._arrays.thetas

    @property
    def targets(self) -> list[tf.Variable]:
        """The targets of the L step, a variable for each weight."""
        return self._arrays.targets or self.thetas

    @property
    def mu(self) -> float:
        """μ of the running L step, if the pull goes through the loss."""
        return float(self._strength.numpy())

    @property
    def multipliers(self) -> list[tf.Tensor]:
        """λ, a tensor for each weight, if the pull goes through the loss."""
        return [tf.cast(self._strength, s.target.dtype) * (s.target - s.theta) for s in self.slots]

    def saved(self) -> dict[str, list[tf.Variable]]:
        """Return the variables that a restart needs, by name."""
        theta = self.thetas if self._arrays.targets else []
        return {"target": self.targets, "theta": theta, "strength": [self._strength]}

    def state(self) -> dict[str, Any]:
        """Return what `load` needs besides the variables, while the model shows θ."""
        return {"shown": self.shown.tolist()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a `state`, once all variables have the values of that state again."""
        self.compressed, self.shown = True, np.array(state["shown"])

    def penalty(self) -> tf.Tensor:
        r"""Return $\frac{\mu}{2} \lVert w - \theta - \lambda/\mu \rVert^2$, for the loss of an L step."""
        return tf.add_n([slot.pull.pull(slot.variable) for slot in self.slots])

    @contextlib.contextmanager
    def pulling(self) -> Iterator[None]:
        """Return a context in which training pulls the weights."""
        if self._unpulled is None:
            self._unpulled = fingerprint([slot.variable for slot in self.slots])
        for slot in self.slots:
            slot.pull.attach(slot.variable)
        try:
            yield
        finally:
            for slot in self.slots:
                slot.pull.detach(slot.variable)

    def forget_pulls(self) -> None:
        """Forget what was traced so far, so that `check_pulls` checks what is traced from now on."""
        for slot in self.slots:
            slot.pull.forget()
        self._unpulled = None

    def check_pulls(self) -> None:
        """Check that an L step, traced in `pulling`, pulls each weight that it trains.

        Keras leaves alone, and so does not pull, weights that no gradient reaches.

        Raises:
            ValueError: If it leaves one out, or pulls none.
        """
        free = [slot for slot in self.slots if not slot.pull.pulls]
        if 0 < len(free) < len(self.slots):
            found = fingerprint([slot.variable for slot in self.slots])
            changed = np.any(found != self._unpulled, axis=1)
            free = [s for s, is_new in zip(self.slots, changed, strict=True) if is_new and not s.pull.pulls]
        if free:
            more = f" and {len(free) - 1} more" if len(free) > 1 else ""
            raise ValueError(free[0].pull.why_not.format(f"{free[0].variable.path}{more}"))

    def direct_compression(self, mu: float, reach: Reach | None = None) -> CStep:
        r"""Start from $\theta = \Pi(w)$, $\lambda = 0$.

        Args:
            mu: Float > 0, μ of the first L step.
            reach: `Reach` of the first L step, if the pull is beside the optimizer.

        Returns:
            `CStep`.
        """
        single = tf.constant(mu, tf.float32)
        return self._found(self._c_step(single, tf.constant(0.0, tf.float64), single))

    def c_step(self, mu: float, next_mu: float, reach: Reach | None = None) -> CStep:
        r"""Set $\theta \leftarrow \Pi(w - \lambda/\mu)$, $\lambda \leftarrow \lambda - \mu(w - \theta)$.

        Args:
            mu: Float > 0, μ of the L step that ends.
            next_mu: Float > 0, μ of the L step that begins.
            reach: `Reach` of the L step that begins, if the pull is beside the optimizer.

        Returns:
            `CStep`.
        """
        # In double precision: μ may grow by very little.
        ratio = tf.constant(mu / next_mu, tf.float64)
        return self._found(self._c_step(tf.constant(mu, tf.float32), ratio, tf.constant(next_mu, tf.float32)))

    def latest(self, mu: float) -> CStep:
        """Bring θ to the weights as they are now, under the budget itself, before training ends midway.

        Args:
            mu: Float > 0, μ of the running L step.

        Returns:
            `CStep`.
        """
        return self.c_step(mu, mu)

    def not_finite(self, result: CStep) -> list[str]:
        """Return the paths of the variables because of which a C step changed nothing."""
        finite = result.finite.numpy()
        return [v.path for v, ok in zip(self.variables, finite, strict=True) if not ok]

    def compress(self, variables: Sequence[keras.Variable], mu: tf.Tensor) -> None:
        r"""Replace each $v$ by $\Pi(v)$, leaving λ aside. This must be called in a `tf.function`.

        Args:
            variables: List of variables, one for each weight.
            mu: float32 scalar tensor > 0.
        """
        given = iter(variables)
        for part, slots in self._parts:
            chosen = list(itertools.islice(given, len(slots)))
            solves = part.constrained(part.compression.maps([read(v) for v in chosen], mu, part.layouts))

            in_place(lambda value, solve: tf.cast(solve(read(value)), value.dtype), chosen, maps=solves)

    def show_compressed(self) -> None:
        """Put θ into the model, and w where θ was."""
        if not self.compressed:
            self.shadow.swap()
            self.compressed = True
            self.shown = fingerprint(self.variables)

    def show_training(self) -> None:
        """Put w back into the model."""
        if self.compressed:
            self.shadow.swap()
            self.compressed = False

    def is_replaced(self, swapped: bool = False) -> bool:
        """Return whether θ was replaced by other weights while the model showed it.

        Args:
            swapped: Bool, default `False`. `True`: weights may have changed places with their averages, and
                back, which loses some of their digits.

        Returns:
            Bool.
        """
        if not self.compressed:
            return False
        lost = [np.array([_SWAPPED[v.value.dtype.size] for v in self.variables])] if swapped else []
        return not is_same(fingerprint(self.variables), self.shown, *lost)

    def begin_anew(self, mu: float) -> CStep:
        r"""Take what the model holds in place of θ as w; start from $\theta = \Pi(w)$, $\lambda = 0$.

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
            self.shadow.restore()
            self.direct_compression(mu)
        return result

    def release(self) -> None:
        """Free t, or θ without multipliers. From now on nothing is pulled, wherever the pull was traced."""
        self._strength.assign(0.0)
        for slot in self.slots:
            emptied(slot.target, self._nowhere)

    def _made_target(self, variables: Sequence[keras.Variable]) -> Shadow | None:
        return Shadow(variables, "target", widen=True) if self._multipliers else None

    def _pull(self, variable: keras.Variable, theta: tf.Variable, target: tf.Variable) -> Any:
        return LCPenalty(target, self._strength, variable.regularizer, is_shown=False)

    def _c_step(self, mu: tf.Tensor, ratio: tf.Tensor, next_mu: tf.Tensor) -> tf.Tensor:
        def maps(part: Part, values: Sequence[tf.Tensor], _: Sequence[Slot]) -> list[Map]:
            return part.compression.maps(values, mu, part.layouts)

        def shifted(weight: tf.Tensor, theta: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
            return read(weight) - (target - theta)

        return self._update(maps, shifted, lambda theta, v: new_target(theta, v, ratio), next_mu)

    def _found(self, finite: tf.Tensor, is_loose: bool = False) -> CStep:
        if is_loose or not np.all(finite):
            return CStep(finite, tf.constant(-1.0), tf.constant(-1.0))
        return CStep(finite, *self._measure())

    def _measure(self) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.device(self.thetas[0].device):
            away, all_of_it, kept = tf.unstack(distances(self.variables, self.thetas))
            gap, density = tf.sqrt(tf.math.divide_no_nan(away, all_of_it)), 2 * kept / self.size
            return tf.cast(gap, tf.float32), tf.cast(density, tf.float32)

    def _update(
        self,
        maps: Callable[[Part, Sequence[tf.Tensor], Sequence[Slot]], list[Map]],
        shifted: Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor],
        target: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
        strength: tf.Tensor,
        retargets: tf.Tensor | bool = True,
    ) -> tf.Tensor:
        """Solve for θ, if all weights are finite.

        Args:
            maps: Called with a part, the tensors v and their slots, returns the C step of the cost.
            shifted: Called with w, θ and t, returns v = w − λ/μ.
            target: Called with the new θ and v, returns the target of the next L step.
            strength: float32 scalar, of the next L step.
            retargets: Bool or bool scalar tensor, default `True`: whether targets change.

        Returns:
            bool vector, whether each variable is finite.
        """
        two_arrays = self._arrays.targets is not None

        def both(v: tf.Tensor, t: tf.Tensor, solve: Map) -> tuple[tf.Tensor, tf.Tensor]:
            theta = solve(v)
            new = target(theta, v)
            return theta, new if retargets is True else tf.where(retargets, new, t)

        def update() -> tf.Tensor:
            if two_arrays:
                # v waits where θ will be, so that no third array is needed.
                arrays = self.thetas, self.variables, self.targets
                in_place(lambda theta, weight, t: shifted(weight, theta, t), *arrays)
            for part, slots in self._parts:
                thetas, targets = [slot.theta for slot in slots], [slot.target for slot in slots]
                sources = thetas if two_arrays else [slot.variable for slot in slots]
                solves = part.constrained(maps(part, [read(source) for source in sources], slots))
                if two_arrays:
                    in_place(both, thetas, targets, maps=solves, count=2)
                else:
                    in_place(lambda _, weight, solve: solve(read(weight)), thetas, sources, maps=solves)
            self._strength.assign(strength)
            return tf.constant(True)

        with tf.device(copies_of(self.variables[0])[0].device):
            finite = thresholds.finite([tf.convert_to_tensor(v) for v in self.variables])
            tf.cond(tf.reduce_all(finite), update, lambda: tf.constant(False))
        return finite
