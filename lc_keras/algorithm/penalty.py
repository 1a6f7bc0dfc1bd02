"""The pull of the weights towards their compressed copy, as a Keras regularizer."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from lc_keras.arguments import non_negative, switch
from lc_keras.internals.tensorflow import kept_with_trace

Gradient = Callable[[tf.Tensor], tuple[tf.Tensor, None, None]]


@keras.saving.register_keras_serializable(package="lc_keras")
class LCPenalty(keras.regularizers.Regularizer):
    r"""Regularizer $\frac{\mu}{2}\lVert w - t\rVert^2$ of the L step.

    With $t = \theta + \lambda/\mu$ this is the augmented Lagrangian of
    $w = \theta$, up to a constant (Carreira-Perpiñán & Idelbayev, CVPR 2018). Its
    gradient is given directly as $\mu (w - t)$.
    `mu` and `target` are variables: a new value causes no retracing.

    Args:
        target: `tf.Variable`, or an array of the weight's shape, from which a float32 variable is made: t.
        mu: `tf.Variable` or float, default 0: μ ≥ 0.
        regularizer: Regularizer that the weight already has, or `None` (default); both
            count.
        is_shown: Bool, default `True`. `False`: as a regularizer, this adds its gradient to that of the loss,
            but 0 to the value of the loss, so that the loss in the logs is the user's.

    Raises:
        TypeError: If `mu` is not a number, or `is_shown` not a bool.
        ValueError: If `mu` is negative or not finite in single precision, or a weight has
            another shape than `target`.

    Example:

    ```python
    pull = lc_keras.LCPenalty(target=np.zeros((64, 10)), mu=0.1)
    layer = keras.layers.Dense(10, kernel_regularizer=pull)
    ```
    """

    why_not = (
        "The training step of the model leaves out `model.losses`, where the penalty of the L step is, for "
        "{}. Expected a `train_step` that calls `compute_loss` of `keras.Model`, or adds the `losses` of the "
        "model, or of the part that holds these weights, to the loss whose gradient trains them, without a "
        "tf.function of its own, which would go on as it was traced before; or a `Task` that leaves them out."
    )

    def __init__(
        self,
        target: tf.Variable | np.ndarray,
        mu: tf.Variable | float = 0.0,
        regularizer: keras.regularizers.Regularizer | None = None,
        is_shown: bool = True,
    ) -> None:
        if not isinstance(mu, tf.Variable):
            mu = non_negative("mu", mu)
            if mu > float(tf.float32.max):
                raise ValueError(f"Expected `mu` to be finite in single precision. Received: mu={mu}")
            mu = tf.Variable(mu, trainable=False, dtype=tf.float32, name="mu")
        if not isinstance(target, tf.Variable):
            target = tf.Variable(target, trainable=False, dtype=tf.float32, name="target")
        self.target = target
        self.mu = mu
        self.is_shown = switch("is_shown", is_shown)
        self._gradients: list[tf.Tensor | None] = []
        self.regularizer = keras.regularizers.get(regularizer)

    @property
    def pulls(self) -> bool:
        """Return whether its gradient has been taken and, as far as a graph shows, been used."""
        return any(map(_is_used, self._gradients))

    def __call__(self, weight: tf.Tensor) -> tf.Tensor:
        weight = tf.convert_to_tensor(weight)
        penalty = self._of(weight, self.is_shown)
        if self.regularizer is not None:
            penalty += tf.cast(self.regularizer(weight), penalty.dtype)
        return penalty

    def forget(self) -> None:
        """Forget the graphs that have used it."""
        self._gradients = []

    def attach(self, variable: keras.Variable) -> None:
        """Make this the regularizer of a weight, with the weight's own."""
        self.regularizer, variable.regularizer = variable.regularizer, self

    def detach(self, variable: keras.Variable) -> None:
        """Give a weight its own regularizer back."""
        variable.regularizer = self.regularizer

    def pull(self, weight: tf.Tensor) -> tf.Tensor:
        r"""Return $\frac{\mu}{2}\lVert w - t\rVert^2$ by itself, without the weight's own regularizer.

        Args:
            weight: Tensor or variable of the target's shape: w.

        Returns:
            Scalar tensor of type `keras.config.floatx()`.
        """
        return self._of(weight, True)

    def _of(self, weight: tf.Tensor, is_shown: bool) -> tf.Tensor:
        weight = tf.convert_to_tensor(weight)
        if not weight.shape.is_compatible_with(self.target.shape):
            raise ValueError(
                f"Expected a weight of the target's shape {tuple(self.target.shape)}. "
                f"Received: a weight of shape {tuple(weight.shape)}"
            )
        kept_with_trace(self.target, self.mu)
        target = self.target.value()
        weight, mu = tf.cast(weight, target.dtype), tf.cast(self.mu.value(), target.dtype)

        @tf.custom_gradient
        def pull(weight: tf.Tensor, target: tf.Tensor, mu: tf.Tensor) -> tuple[tf.Tensor, Gradient]:
            def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, None, None]:
                pulling = upstream * mu * (weight - target)
                if tf.is_symbolic_tensor(pulling):
                    self._gradients.append(pulling)
                else:
                    self._gradients = [None]
                return pulling, None, None

            value = mu * tf.nn.l2_loss(weight - target) if is_shown else tf.zeros([], weight.dtype)
            return value, gradient

        # Keras adds it to losses of that type, whatever the type of the weight.
        return tf.cast(pull(weight, target, mu), keras.config.floatx())

    def get_config(self) -> dict[str, object]:
        return {
            "target": self.target.numpy(),
            "mu": float(self.mu.numpy()),
            "is_shown": self.is_shown,
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "LCPenalty":
        target = config["target"]
        if isinstance(target, dict):
            target = keras.saving.deserialize_keras_object(target)
        dtype = tf.float64 if np.asarray(target).dtype == "float64" else tf.float32
        target = tf.Variable(target, trainable=False, dtype=dtype, name="target")
        return cls(**{**config, "target": target})


def _is_used(tensor: tf.Tensor | None) -> bool:
    """Return whether a tensor has an effect; a tape computes gradients that it then throws away."""
    if tensor is None:
        # Run eagerly: it leaves no trace.
        return True
    seen, todo = set(), [tensor]
    while todo:
        tensor = todo.pop()
        if any(tensor is output for output in getattr(tensor.graph, "outputs", ())):
            return True
        for operation in tensor.consumers():
            if operation.op_def.is_stateful or not operation.outputs:
                return True
            if operation.name not in seen:
                seen.add(operation.name)
                todo += operation.outputs
    return False
