"""The C steps of a run, whatever trains between them: `fit`, or a loop of your own."""

from collections.abc import Callable, Sequence
from typing import NoReturn

import keras

from lc_keras.algorithm.beside import Reach
from lc_keras.algorithm.lagrangian import CStep, Lagrangian
from lc_keras.algorithm.shadows import Shadow
from lc_keras.algorithm.tasks import SharedCost


class Steps:
    """Run the C steps of a model, and leave it usable if an L step diverges.

    Args:
        model: `keras.Model`.
        shared: List of `SharedCost`.
        multipliers: Bool, as in `Lagrangian`.
        kind: Function or class that makes the Lagrangian, `Lagrangian` itself by default.

    Attributes:
        lagrangian: `Lagrangian` of the compressed weights.
    """

    def __init__(
        self,
        model: keras.Model,
        shared: Sequence[SharedCost],
        multipliers: bool,
        kind: Callable[[Sequence[SharedCost], bool], Lagrangian] = Lagrangian,
    ) -> None:
        self.lagrangian = kind(shared, multipliers)
        compressed = set(map(id, self.lagrangian.variables))
        self._others = Shadow([v for v in model.weights if id(v) not in compressed], "finite")
        self._diverged = False

    def begin(self, mu: float, reach: Reach | None = None) -> CStep:
        r"""Start from $\theta = \Pi(w)$, $\lambda = 0$; raise a ValueError if a weight is not finite."""
        bad = [variable.path for variable in self._others.not_finite()]
        if not bad:
            found = self.lagrangian.direct_compression(mu, reach)
            bad = self.lagrangian.not_finite(found)
        if bad:
            raise ValueError(
                f"Expected a model with finite weights. Received: NaN or infinite values in {', '.join(bad)}."
            )
        return found

    def c_step(
        self, mu: float, next_mu: float, reach: Reach | None = None, l_step: str = "The L step"
    ) -> CStep:
        """End an L step, as `Lagrangian.c_step` does, and remember where the model was finite.

        Raises:
            ValueError: If a weight of the model is not finite; the message calls the L step `l_step`.
        """
        bad = [variable.path for variable in self._others.not_finite()]
        if not bad:
            found = self.lagrangian.c_step(mu, next_mu, reach)
            bad = self.lagrangian.not_finite(found)
        if bad:
            self.diverge(f"NaN or infinite values in {', '.join(bad)}", l_step)
        self._others.save()
        return found

    def diverge(self, why: str, l_step: str = "The L step") -> NoReturn:
        """Go back to where the model was finite, and raise a ValueError that says what is not finite."""
        self._others.restore()
        self._diverged = True
        raise ValueError(
            f"{l_step} diverged: {why}. The model holds the compressed weights of the last C step. Try a "
            "lower learning rate, or gradient clipping."
        )

    def settle(self, mu: float) -> bool:
        """Compress w as it is, or go back to where the model was finite, before training ends midway.

        Returns:
            Bool, `False` if training had diverged.
        """
        if self._diverged:
            return False
        finite = not self._others.not_finite()
        if finite and not self.lagrangian.compressed:
            finite = bool(self.lagrangian.latest(mu).finite.numpy().all())
        if not finite:
            self._others.restore()
            self._diverged = True
        return finite

    def go_on(self) -> None:
        """Take the weights that are not compressed as finite, after all variables have been restored."""
        self._others.save()
