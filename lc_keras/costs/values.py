"""The base of costs that let each weight have one of a few values."""

import functools

import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import Compression, Layouts, Map, Tensors
from lc_keras.costs.kmeans import nearest_code


class Values(Compression):
    """Base class of costs whose θ takes, weight by weight, the nearest of a few values.

    A subclass overrides `learn`, and `nearest` if what it learns is no vector of values.
    """

    has_budget = pulls_beside = True

    def learn(self, weights: Tensors, layouts: Layouts, sparse: bool = False) -> list[tf.Tensor]:
        """Find the values for some weights.

        Args:
            weights: Sequence of floating tensors of static shapes.
            layouts: Sequence of `Layout`, one for each tensor.
            sparse: Bool, default `False`. `True`: weights that are zero stay so, and are not looked at.

        Returns:
            List of what `nearest` needs, one for each tensor.
        """
        raise NotImplementedError

    def nearest(self, value: tf.Tensor, learned: tf.Tensor) -> tf.Tensor:
        """Return for each weight the nearest of the values.

        Args:
            value: float32 or float64 tensor.
            learned: What `learn` found for it: a vector of values, ascending.

        Returns:
            Tensor of the same shape and type.
        """
        codes = tf.cast(learned, value.dtype)
        return tf.gather(codes, nearest_code(value, codes))

    def maps(self, weights: Tensors, mu: float | tf.Tensor, layouts: Layouts) -> list[Map]:
        learned = self.learn([tf.convert_to_tensor(weight) for weight in weights], layouts)
        return [functools.partial(self._theta, found) for found in learned]

    def _theta(self, learned: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        wide = tf.cast(value, thresholds.common_dtype([value]))
        return tf.cast(self.nearest(wide, learned), value.dtype)
