"""Passes over weights in place, and what XLA must not change in them."""

import collections
from collections.abc import Callable, Sequence
from typing import Any

import keras
import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.internals.tensorflow import copies_of, fused


def in_place(update: Callable[..., None], *columns: Sequence[keras.Variable | tf.Variable]) -> None:
    """Update variables element by element, on each device that holds them.

    Args:
        update: Called with an index and, from each column, the `tf.Variable` of that index on one device.
        *columns: Sequences of variables, those of one index on the same devices.
    """
    by_device = collections.defaultdict(list)
    for index, row in enumerate(zip(*columns, strict=True)):
        for copies in zip(*map(copies_of, row), strict=True):
            by_device[copies[0].device].append((index, *copies))
    for device, places in by_device.items():

        def run(places: list[tuple[Any, ...]] = places) -> None:
            for place in places:
                update(*place)

        with tf.device(device):
            fused(run, sum(place[1].shape.num_elements() for place in places))()


def new_target(theta: tf.Tensor, shifted: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    r"""Return the target $\theta + \lambda/\mu'$ of new multipliers $\lambda - \mu (w - \theta)$.

    Args:
        theta: Tensor, θ.
        shifted: Tensor, v = w − λ/μ.
        ratio: float64 scalar ≥ 0, μ/μ'.
    """
    theta = _rounded(theta, ratio)
    return theta + _rounded(tf.cast(ratio, theta.dtype) * (theta - shifted), ratio)


def _rounded(product: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    """Return a product as it is; XLA would add to it before it is rounded, and the sum had other digits."""
    bits = thresholds.bits_type(product.dtype)
    nothing = tf.cast(ratio < 0, bits)
    return tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(product, bits), nothing), product.dtype)
