"""The Learning-Compression algorithm in the user's own training loop."""

import contextlib
from collections.abc import Iterator

import keras
import tensorflow as tf

from lc_keras.algorithm.lagrangian import CStep
from lc_keras.algorithm.steps import Steps
from lc_keras.algorithm.tasks import Tasks, as_tasks, bind_tasks
from lc_keras.arguments import strength, switch


class Alternation:
    r"""Alternate the L steps of your own training loop with C steps.

    `LearningCompression` does this inside `fit`. Here the loop is yours, and so are its
    loss, its optimizers and μ:

    - in an L step, you add `penalty()`, $\frac{\mu}{2} \lVert w - \theta - \lambda/\mu \rVert^2$,
      to the loss whose gradient trains the weights;
    - at the end of an L step, you call `c_step(next_mu)`: it finds
      $\theta \leftarrow \arg\min_\theta \lVert w - \lambda/\mu - \theta \rVert^2$ under the cost,
      updates the multipliers, $\lambda \leftarrow \lambda - \mu (w - \theta)$, and sets μ;
    - in the end, `finish()` leaves θ in the model.

    Nothing is attached to the model. μ should grow from one L step to the next, and a
    gradient step of SGD is stable if its learning rate is at most $1/\mu$.

    Args:
        model: Built `keras.Model`.
        tasks: A compression (over all default kernels jointly), a `Task`, or a list
            of these.
        mu: Float > 0, μ of the first L step.
        multipliers: Bool, default `True`. `False`: the plain quadratic penalty.

    Attributes:
        mu: Float, μ of the running L step.
        gap: Float, $\lVert w - \theta \rVert / \lVert w \rVert$ at the latest C step.
        density: Float, the fraction of the weights that θ keeps.

    Raises:
        TypeError: If an argument is not of the type described.
        ValueError: If μ is not positive and finite, a task does not fit the model, or a
            weight is not finite. The model is then unchanged.

    Example:

    ```python
    mus = lc_keras.Geometric(1e-3, 1e-1).over(20)
    alternation = lc_keras.Alternation(model, lc_keras.L0Constraint(keep=0.05), mu=mus[0])

    @tf.function
    def train_step(images, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(images, training=True))
            loss += sum(model.losses) + alternation.penalty()
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))

    for next_mu in [*mus[1:], None]:
        for images, labels in train:
            train_step(images, labels)
        alternation.c_step(next_mu)
    alternation.finish()
    ```
    """

    def __init__(self, model: keras.Model, tasks: Tasks, mu: float, multipliers: bool = True) -> None:
        self.mu = strength("mu", mu)
        shared = bind_tasks(as_tasks(tasks), model)
        with model.distribute_strategy.scope():
            self._steps = Steps(model, shared, switch("multipliers", multipliers))
        self._finished = False
        self._note(self._steps.begin(self.mu))

    def penalty(self) -> tf.Tensor:
        r"""Return the term that an L step adds to the loss. Call it where the loss is computed.

        The weights' own regularizers are not part of it: those are in `model.losses`.

        Returns:
            Scalar tensor of type `keras.config.floatx()`, 0 once the alternation is finished. In a
            `tf.function` it follows θ, λ and μ without retracing.
        """
        return self._steps.lagrangian.penalty()

    def c_step(self, next_mu: float | None = None) -> float:
        """End an L step: compress the weights, update the multipliers, and set μ.

        Args:
            next_mu: Float > 0, μ of the next L step. `None` (default): μ stays the same.

        Returns:
            Float, the gap ‖w − θ‖ / ‖w‖ between the trained and the compressed weights.

        Raises:
            TypeError: If μ is not a number.
            ValueError: If μ is not positive and finite, the call is inside a `tf.function`, the model
                holds θ instead of w, or a weight of the model is not finite. In the last case the
                alternation is finished, with the compressed weights of the previous C step.
        """
        next_mu = self.mu if next_mu is None else strength("next_mu", next_mu)
        self._check_training("a C step")
        try:
            found = self._steps.c_step(self.mu, next_mu)
        except ValueError:
            self.finish()
            raise
        self._note(found)
        self.mu = next_mu
        return self.gap

    @contextlib.contextmanager
    def compressed(self) -> Iterator[None]:
        """Return a context in which the model holds θ, so that the net that would ship can be evaluated.

        Raises:
            ValueError: If the model already holds θ, or the call is inside a `tf.function`.
        """
        self._check_training("to show θ")
        self._steps.lagrangian.show_compressed()
        try:
            yield
        finally:
            if not self._finished:
                self._steps.lagrangian.show_training()

    def finish(self) -> None:
        """Leave θ of the latest C step, which keeps the budget exactly, in the model.

        Any training after that C step is lost. A finished alternation stays finished.

        Raises:
            ValueError: If the call is inside a `tf.function`.
        """
        self._check_eager("to finish")
        self._steps.lagrangian.show_compressed()
        self._steps.lagrangian.release()
        self._finished = True

    def _check_eager(self, what: str) -> None:
        if not tf.executing_eagerly():
            raise ValueError(f"Expected {what} between calls of a tf.function. Received: one inside of it.")

    def _check_training(self, what: str) -> None:
        self._check_eager(what)
        if self._steps.lagrangian.compressed:
            why = "it was finished" if self._finished else "it is shown compressed"
            raise ValueError(f"Expected the model to hold the weights in training, {what} needs them; {why}.")

    def _note(self, found: CStep) -> None:
        self.gap, self.density = float(found.gap), float(found.density)
