"""The pull of the weights towards their compressed copy beside the optimizer, as a Keras constraint."""

from dataclasses import dataclass

import keras
import tensorflow as tf

from lc_keras.algorithm.passes import rounded
from lc_keras.costs import thresholds
from lc_keras.internals.tensorflow import at_once, kept_with_trace


@dataclass(frozen=True)
class Reach:
    """Hold how far the pull beside the optimizer reaches, and how strong it is.

    Attributes:
        part: Float from 0 to 1: the part of the way to its target that a weight is pulled in a batch.
        ratio: Float ≥ 0: the part of λ/μ that is left as μ grows, which is μ of the L step that ends divided
            by μ of the next one; 0 starts from λ = 0. If weights are carried (`CarryingLagrangian`), how far
            they go on, relative to how far the optimizer moved them.
        slack: Float from 0, which keeps as much as the budget, to 1: θ is that of a looser budget, and only
            what the looser budget removes need be pulled. `None` (default): θ is that of the cost itself.
        frees: Bool, whether weights that are kept are left free instead of pulled to their θ. If they are
            pulled to a looser θ, λ is 0.
        puts: Bool, whether weights are put onto θ as the C step ends.
        least: Float from 0 to 1, default 1: the least part of `ratio` that counts if weights are carried.
    """

    part: float
    ratio: float = 0.0
    slack: float | None = None
    frees: bool = False
    puts: bool = False
    least: float = 1.0


class PullBeside(keras.constraints.Constraint):
    r"""Move weights a part of the way to their targets after each update: $w \leftarrow w - a\,(w - t)$.

    As a gradient, $\mu (w - t)$, the pull of an L step is as strong as the optimizer makes it: it goes
    through momentum, second moments and signs. Beside the optimizer it is $a$ in each batch, whatever trains
    the weights. It is then the proximal step of the penalty $\frac{\mu}{2} \lVert w - t \rVert^2$, just as
    decoupled weight decay is a proximal step (Loshchilov & Hutter, "Decoupled weight decay regularization",
    ICLR 2019).

    Args:
        target: `tf.Variable` of the weight's shape: t; NaN where a weight is left free.
        part: `tf.Variable`, a scalar from 0 to 1: $a$.

    Attributes:
        constraint: `keras.constraints.Constraint` or `None`: the weight's own, which is applied first.
        pulls: Bool, whether an update, or the trace of one, has used it.
    """

    why_not = (
        "The training step of the model leaves out the constraints of its weights, by which the L step pulls "
        "them, for {}. Expected a `train_step` that updates weights with the `apply` of a Keras optimizer, "
        "without a tf.function of its own, which would go on as it was traced before; or a `Task` that "
        "leaves them out."
    )

    def __init__(self, target: tf.Variable, part: tf.Variable) -> None:
        self.target = target
        self.part = part
        self.constraint: keras.constraints.Constraint | None = None
        self.pulls = False

    def __call__(self, weight: tf.Tensor) -> tf.Tensor:
        self.pulls = True
        kept_with_trace(self.target, self.part)
        weight = tf.convert_to_tensor(weight if self.constraint is None else self.constraint(weight))
        return _pulled(weight, self.target.value(), self.part.value())

    def forget(self) -> None:
        """Forget that an update has used it."""
        self.pulls = False

    def attach(self, variable: keras.Variable) -> None:
        """Make this the constraint of a weight, in addition to the weight's own."""
        self.constraint, variable.constraint = variable.constraint, self

    def detach(self, variable: keras.Variable) -> None:
        """Give a weight its own constraint back."""
        variable.constraint = self.constraint


@at_once
def _pulled(weight: tf.Tensor, target: tf.Tensor, part: tf.Tensor) -> tf.Tensor:
    wide = thresholds.read(weight)
    pulled = wide - rounded(tf.cast(part, wide.dtype) * (wide - target), part)
    return tf.cast(tf.where(tf.math.is_nan(target), wide, pulled), weight.dtype)
