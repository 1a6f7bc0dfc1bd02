"""Passes over weights, in place or for a few sums, and what XLA must not change in them."""

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import keras
import tensorflow as tf

from lc_keras.costs import thresholds
from lc_keras.costs.compression import Map
from lc_keras.internals.tensorflow import compiled, copies_of, fused, is_large


def in_place(
    update: Callable[..., tf.Tensor | tuple[tf.Tensor, ...]],
    *columns: Sequence[keras.Variable | tf.Variable],
    maps: Sequence[Map] | None = None,
    count: int = 1,
) -> None:
    """Update variables element by element, on each device that holds them.

    What is the same for many tensors is traced once, whatever their shapes, and XLA compiles it once for
    each shape: models have hundreds of tensors.

    Args:
        update: Returns the new value of a variable of the first column, or a tuple of new values for the
            first columns, none of which depends on a later one of these. It is called with the values at one
            index of all columns and, if there are maps, with the map at that index.
        *columns: Sequences of variables, those at the same index on the same devices.
        maps: Sequence of `Map`, or `None` (default). Maps that are `functools.partial` of one function are
            treated as the same, and as fast.
        count: Int, how many columns are updated, default 1.
    """
    traced: dict[Hashable, Any] = {}
    for index, row in enumerate(zip(*columns, strict=True)):
        function, operands = _split(maps[index]) if maps else (None, [])
        specs = [tf.TensorSpec(None, operand.dtype) for operand in operands]
        for copies in zip(*map(copies_of, row), strict=True):
            shape, dtypes = copies[0].shape, tuple(copy.dtype for copy in copies)
            size, known = shape.num_elements(), None if operands or not maps else shape
            kind = function, known, dtypes, tuple(specs), copies[0].device, is_large(size)
            every = range(count)
            # Of several at once XLA keeps a copy, which takes longer than a map beyond the caches. The last
            # comes first, because it depends on the others as they are.
            apart = operands and is_large(size) and size > thresholds.CHUNK
            for places in [(i,) for i in reversed(every)] if apart else [tuple(every)]:
                with tf.device(copies[0].device):
                    if (*kind, places) not in traced:
                        handles = [tf.TensorSpec([], tf.resource) for _ in copies]
                        run = functools.partial(_run, update, function, known, dtypes, places)
                        traced[*kind, places] = fused(run, size, [handles, specs])
                    traced[*kind, places]([copy.handle for copy in copies], operands)


def _split(solve: Map) -> tuple[Map, list[tf.Tensor]]:
    """Return what a map has in common with others, and the tensors that are its own."""
    if isinstance(solve, functools.partial) and not solve.keywords and all(map(tf.is_tensor, solve.args)):
        return solve.func, list(solve.args)
    return solve, []


def _run(
    update: Callable[..., tf.Tensor | tuple[tf.Tensor, ...]],
    function: Callable[..., tf.Tensor] | None,
    shape: tf.TensorShape | None,
    dtypes: Sequence[tf.DType],
    places: Sequence[int],
    handles: Sequence[tf.Tensor],
    operands: Sequence[tf.Tensor],
) -> None:
    values = [tf.raw_ops.ReadVariableOp(resource=h, dtype=d) for h, d in zip(handles, dtypes, strict=True)]
    for value in values:
        value.set_shape(shape)
    solve = [functools.partial(function, *operands)] if function else []
    new = tf.nest.flatten(update(*values, *solve))
    for place in places:
        tf.raw_ops.AssignVariableOp(resource=handles[place], value=new[place])


def halves_of_squares(
    count: int, terms: Callable[[tf.Tensor, tf.Tensor], Sequence[tf.Tensor]]
) -> Callable[[Sequence[tuple[tf.Tensor, tf.Tensor]]], tf.Tensor]:
    """Return a function that adds up halves of squares over pairs of tensors.

    Args:
        count: Int, how many terms there are.
        terms: Called with a flat chunk of both tensors of a pair, returns what is squared.

    Returns:
        Compiled function of a list of pairs, which returns a float64 vector of `count` sums.
    """

    def halves(pairs: Sequence[tuple[tf.Tensor, tf.Tensor]]) -> tf.Tensor:
        def update(sums: tf.Tensor, *chunks: tf.Tensor) -> tf.Tensor:
            return sums + tf.cast(tf.stack([tf.nn.l2_loss(term) for term in terms(*chunks)]), tf.float64)

        return thresholds.fold(pairs, tf.zeros([count], tf.float64), update)

    return compiled(halves)


def distances(weights: Sequence[keras.Variable | tf.Variable], thetas: Sequence[tf.Variable]) -> tf.Tensor:
    """Return a vector: half of ‖w − θ‖², of ‖w‖² and of the number of weights that are not zero in θ."""
    pairs = zip(weights, thetas, strict=True)
    return _distances([(tf.convert_to_tensor(w), tf.convert_to_tensor(theta)) for w, theta in pairs])


_distances = halves_of_squares(3, lambda weight, theta: (weight - theta, weight, tf.sign(theta)))


def new_target(theta: tf.Tensor, shifted: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    r"""Return the target $\theta + \lambda/\mu'$ for new multipliers $\lambda - \mu (w - \theta)$.

    Args:
        theta: Tensor, θ.
        shifted: Tensor, v = w − λ/μ.
        ratio: float64 scalar ≥ 0, μ/μ'.
    """
    theta = rounded(theta, ratio)
    return theta + rounded(tf.cast(ratio, theta.dtype) * (theta - shifted), ratio)


def rounded(product: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    """Return a product as it is; otherwise XLA would add to it unrounded, and the sum have other digits."""
    bits = thresholds.bits_type(product.dtype)
    nothing = tf.cast(ratio < 0, bits)
    return tf.bitcast(tf.bitwise.bitwise_xor(tf.bitcast(product, bits), nothing), product.dtype)
