"""The base of costs that let each weight have one of a few values."""

import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import Compression, Layouts, Map, Tensors
from lc_keras.costs.kmeans import nearest_code


class Values(Compression):
    """Base class of costs whose θ takes, weight by weight, the nearest of a few values.

    A subclass overrides `learn`, and `nearest` if what it learns is not a vector of values.
    """

    has_budget = few_values = maps_others = True

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

    def nearest(self, learned: tf.Tensor, dtype: tf.DType) -> Map:
        """Return a function that maps each weight to the nearest of the values.

        Args:
            learned: What `learn` found for a tensor: a vector of values, ascending.
            dtype: `tf.float32` or `tf.float64`, the type of the tensor.

        Returns:
            Function of the tensor.
        """
        codes = tf.cast(learned, dtype)
        find = nearest_code(codes)
        return lambda value: tf.gather(codes, find(value))

    def maps(self, weights: Tensors, mu: tf.Tensor, layouts: Layouts) -> list[Map]:
        given = [tf.convert_to_tensor(weight) for weight in weights]
        dtypes = [thresholds.common_dtype([weight]) for weight in given]
        return [self._theta(*pair) for pair in zip(self.learn(given, layouts), dtypes, strict=True)]

    def _theta(self, learned: tf.Tensor, dtype: tf.DType) -> Map:
        nearest = self.nearest(learned, dtype)
        return lambda value: tf.cast(nearest(tf.cast(value, dtype)), value.dtype)
