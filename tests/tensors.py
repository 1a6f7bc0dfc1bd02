"""Draw tensors, compress them, and compare the results."""

import numpy as np
import tensorflow as tf

from lc_keras.costs.layout import Layout


def draw(seed, n):
    """Numbers of a different kind for each of four seeds."""
    rng = np.random.default_rng(seed)
    kinds = [rng.normal(size=n), rng.standard_t(2, n), rng.integers(-3, 4, n), rng.random(n) ** 4]
    return kinds[seed % 4].astype("float32")


def compressed(cost, weights, mu=1.0):
    """The C step without a graph, which takes longer to make than to run."""
    weights = [tf.constant(w) for w in weights]
    maps = cost.maps(weights, tf.constant(mu), [Layout(w.shape) for w in weights])
    return [theta(w) for theta, w in zip(maps, weights, strict=True)]


def flat(tensors):
    return np.concatenate([np.ravel(tf.cast(t, tf.float64)) for t in tensors])


def assert_compiles(cost, weights, mu=1.0, **tolerance):
    weights = [tf.constant(w) for w in weights]
    compiled = tf.function(lambda v: cost.c_step(v, mu), jit_compile=True)
    np.testing.assert_allclose(flat(compiled(weights)), flat(cost.c_step(weights, mu)), **tolerance)
