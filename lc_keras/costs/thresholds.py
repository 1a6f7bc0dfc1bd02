"""Thresholds of many tensors at once, in a few passes, without sorting.

Every function takes a sequence of tensors and treats it as one long vector without ever building that
vector: a tensor is read in chunks that fit the cache, and only counts and sums are kept. The functions can
be called eagerly, inside `tf.function`, and inside `tf.function(jit_compile=True)`.

Nothing of the size of the weights leaves a GPU, except where thresholds are subnormal or tied: TensorFlow
compares int32 in the memory of the host, so the usual case compares floats.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import tensorflow as tf

from lc_keras.internals.tensorflow import is_large

CHUNK = 2**20

State = TypeVar("State")


class Threshold(NamedTuple):
    """The κ-th largest magnitude, and what is needed to keep exactly κ of them.

    Args:
        bits: Integer scalar, the magnitude as the bits of its float: int32 (int64 for float64 tensors).
        above: int32 scalar, how many magnitudes are strictly larger.
        ties: int32 scalar, how many magnitudes are equal to it.
    """

    bits: tf.Tensor
    above: tf.Tensor
    ties: tf.Tensor

    @property
    def value(self) -> tf.Tensor:
        """Return the magnitude itself, float32 (float64 for float64 tensors)."""
        return tf.bitcast(self.bits, tf.float32 if self.bits.dtype == tf.int32 else tf.float64)


def common_dtype(tensors: Sequence[tf.Tensor]) -> tf.DType:
    """Return the floating type in which tensors are compared and summed: float32 unless one is float64."""
    return tf.float64 if any(t.dtype == tf.float64 for t in tensors) else tf.float32


def read(weight: tf.Tensor | tf.Variable) -> tf.Tensor:
    """Return the value of a floating tensor or variable, at least in float32."""
    # tf.cast of a variable to its own dtype would not read it yet.
    value = tf.convert_to_tensor(weight)
    return tf.cast(value, common_dtype([value]))


def bits_type(dtype: tf.DType) -> tf.DType:
    """Return the integer type that holds the bits of float32 or float64."""
    return tf.int32 if dtype == tf.float32 else tf.int64


def magnitude_bits(tensor: tf.Tensor, dtype: tf.DType = tf.float32) -> tf.Tensor:
    """Return the bits of |x|, as integers whose order is the order of the magnitudes.

    Comparing integers is exact where comparing floats is not: processors that flush subnormal numbers to
    zero take 1e-42 and 0 for equal.

    Args:
        tensor: Floating tensor of any shape.
        dtype: `tf.float32` or `tf.float64`, the type to cast to first. Defaults to `tf.float32`.

    Returns:
        int32 (int64 for float64) tensor of the same shape, non-negative.
    """
    bits = bits_type(dtype)
    return tf.bitwise.bitwise_and(tf.bitcast(tf.cast(tensor, dtype), bits), bits.max)


def fold(
    tensors: Sequence[tf.Tensor | tuple[tf.Tensor, ...]],
    initial: State,
    update: Callable[..., State],
) -> State:
    """Carry a small state over all elements of all tensors, a chunk at a time.

    Args:
        tensors: Sequence of floating tensors of any shapes, or of tuples of tensors of the same shape.
        initial: Tensor or nest of tensors, the state before the first chunk.
        update: Called with the state and a flat chunk, or one chunk for each tensor of a tuple; returns the
            new state. The chunks of one tensor come in order. Small tensors and the remainders of several are
            packed together into chunks of a few `CHUNK`s at most.

    Returns:
        The state after the last chunk.
    """
    rows = [row if isinstance(row, tuple) else (row,) for row in tensors]
    found = {tensor.dtype for row in rows for tensor in row}
    dtype = found.pop() if len(found) == 1 else common_dtype([tensor for row in rows for tensor in row])
    state, packed, held = initial, [], 0
    for row in rows:
        flat = [tf.reshape(tensor, [-1]) for tensor in row]
        size = flat[0].shape[0] if flat[0].shape[0] is not None else tf.size(flat[0])
        whole = size // CHUNK
        if not isinstance(size, int) or whole > 1:

            def step(i: tf.Tensor, state: State, flat: list[tf.Tensor] = flat) -> tuple[tf.Tensor, State]:
                chunks = [tf.cast(tf.slice(tensor, [i * CHUNK], [CHUNK]), dtype) for tensor in flat]
                return i + 1, update(state, *chunks)

            state = tf.while_loop(
                lambda i, _, whole=whole: i < whole, step, (tf.constant(0), state), parallel_iterations=2
            )[1]
            flat = [tensor[whole * CHUNK :] for tensor in flat]
        packed.append(flat)
        held += CHUNK if flat[0].shape[0] is None else flat[0].shape[0]
        if held >= CHUNK:
            state, packed, held = _update(update, state, packed, dtype), [], 0
    return _update(update, state, packed, dtype) if held else state


def _update(
    update: Callable[..., State], state: State, rows: Sequence[Sequence[tf.Tensor]], dtype: tf.DType
) -> State:
    # After the previous chunk, or all of them would be in memory at once.
    with tf.control_dependencies(tf.nest.flatten(state)):
        columns = [[tf.cast(tensor, dtype) for tensor in column] for column in zip(*rows, strict=True)]
        return update(state, *(c[0] if len(c) == 1 else tf.concat(c, 0) for c in columns))


def counted(tensors: Sequence[tf.Tensor], size: int, places: Callable[[tf.Tensor], tf.Tensor]) -> tf.Tensor:
    """Count the elements of some tensors by their places.

    Args:
        tensors: Sequence of floating tensors of any shapes.
        size: Int, how many places there are.
        places: Called with a flat chunk, returns the number of each element's place, int32 or int64; what is
            beyond the places is not counted.

    Returns:
        int32 vector of `size` counts.
    """

    def update(counts: tf.Tensor, chunk: tf.Tensor) -> tf.Tensor:
        found = places(chunk)
        return counts + tf.raw_ops.DenseBincount(
            input=found, size=tf.constant(size, found.dtype), weights=tf.constant([], tf.int32)
        )

    return fold(tensors, tf.zeros([size], tf.int32), update)


def histogram(
    tensors: Sequence[tf.Tensor],
    dtype: tf.DType,
    prefix: tf.Tensor | None,
    low: int,
    scale: tf.Tensor | None = None,
) -> tf.Tensor:
    """Count the values of the 16 bits from `low` up, for magnitudes whose higher bits agree with `prefix`.

    Args:
        tensors: Sequence of floating tensors of any shapes.
        dtype: `tf.float32` or `tf.float64`, the type to compare in.
        prefix: Integer scalar, or `None` for all magnitudes.
        low: Int, the lowest of the bits.
        scale: Scalar of type `dtype` or `None` (default: 1): what to multiply the tensors by first.

    Returns:
        int32 vector of $2^{16}$ counts, $2^{15}$ for the highest bits.
    """
    bits = bits_type(dtype)

    def places(chunk: tf.Tensor) -> tf.Tensor:
        values = chunk if scale is None else tf.cast(chunk, dtype) * scale
        if prefix is None:
            # The sign is cut off below, where it costs nothing.
            unsigned = tf.bitcast(tf.cast(values, dtype), tf.uint32 if bits == tf.int32 else tf.uint64)
            return tf.bitcast(tf.bitwise.right_shift(unsigned, tf.constant(low, unsigned.dtype)), bits)
        # Where the higher bits differ from the prefix the result is >= size, and bincount drops it.
        digits = tf.bitwise.bitwise_xor(magnitude_bits(values, dtype), prefix)
        return tf.bitwise.right_shift(digits, tf.constant(low, bits)) if low else digits

    counts = counted(tensors, 2 ** min(16, bits.size * 8 - low), places)
    return tf.add_n(tf.split(counts, 2)) if prefix is None else counts


@tf.autograph.experimental.do_not_convert
def kth_largest(tensors: Sequence[tf.Tensor], k: int | tf.Tensor) -> Threshold:
    r"""Return the exact κ-th largest magnitude over all tensors together, in $O(N)$.

    This is a radix search over the bits of $|x|$: one histogram of the high 15 bits finds the bin of

    $$\tau = \max \{ t : \#\{i : |x_i| \ge t\} \ge \kappa \}$$

    and a second one, of the next 16 bits of the elements in that bin, finds $\tau$ (three for float64).

    Args:
        tensors: Sequence of floating tensors of any shapes, fewer than $2^{31}$ elements together.
        k: Python int or int32 scalar tensor κ, from 0 (the threshold is then +inf) to the number of elements.

    Returns:
        A `Threshold`.

    Example:

    >>> kth_largest([tf.constant([3.0, -5.0]), tf.constant([[4.0]])], k=2).value.numpy()
    np.float32(4.0)
    """
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    dtype = common_dtype(tensors)
    bits = bits_type(dtype)
    k = tf.cast(k, tf.int32)
    top = bits.size * 8 - 16
    prefix, above = tf.constant(0, bits), tf.constant(0)
    for low in range(top, -1, -16):
        counts = histogram(tensors, dtype, None if low == top else prefix, low)
        digit, more, ties = _bin_of(counts, k - above)
        above += more
        prefix = tf.bitwise.bitwise_or(
            prefix, tf.bitwise.left_shift(tf.cast(digit, bits), tf.constant(low, bits))
        )
    # As bits: `tf.debugging.enable_check_numerics` does not accept an infinity as a constant.
    infinity = tf.constant(0x7F800000 if dtype == tf.float32 else 0x7FF0000000000000, bits)
    return Threshold(tf.minimum(prefix, infinity), above, ties)


def _bin_of(counts: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return the bin of the κ-th largest counted element, and how many are in the bins above it and in it.

    It looks for the row of bins first, then within that row: a cumulative sum over all bins takes longer than
    counting hundreds of thousands of weights.
    """
    rows = tf.reshape(counts, [-1, 2**8])
    row, above, _ = _place_of(tf.reduce_sum(rows, 1), k)
    place, more, ties = _place_of(tf.gather(rows, row), k - above)
    return row * 2**8 + place, above + more, ties


def _place_of(counts: tf.Tensor, k: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    at_least = tf.cumsum(counts, reverse=True)
    place = tf.reduce_sum(tf.cast(at_least >= k, tf.int32)) - 1
    # Maxima over all places: an index into the cumulative sum takes XLA minutes to compile.
    above = tf.reduce_max(tf.where(at_least < k, at_least, 0))
    ties = tf.reduce_min(tf.where(at_least >= k, at_least, tf.int32.max)) - above
    return place, above, ties


@tf.autograph.experimental.do_not_convert
def l1_ball_threshold(tensors: Sequence[tf.Tensor], radius: float | tf.Tensor) -> tf.Tensor:
    r"""Return the threshold that projects all tensors together onto the ℓ1 ball.

    $$\tau \ge 0: \quad \sum_i \max(|x_i| - \tau, 0) = r,$$

    or 0 when the sum of magnitudes does not exceed $r$. The sum is convex and decreasing in $\tau$, so Newton
    steps from the left, $\tau \leftarrow \tau + (f(\tau) - r) / \#\{i : |x_i| > \tau\}$, never overshoot and
    end after finitely many steps. The start is the solution for magnitudes rounded down to seven bits (four
    for float64), which one histogram gives: $\max_j (S_j - r) / C_j$ with $S_j, C_j$ the sum and the count
    from bin $j$ on.

    The projection is that of Duchi, Shalev-Shwartz, Singer & Chandra, Efficient projections onto the ℓ1-ball
    for learning in high dimensions, ICML 2008.

    Args:
        tensors: Sequence of floating tensors of any shapes, fewer than $2^{31}$ elements together.
        radius: Float or floating scalar tensor $r \ge 0$.

    Returns:
        Scalar τ, float32 (float64 for float64 tensors).

    Example:

    >>> l1_ball_threshold([tf.constant([3.0, -1.0])], radius=2.0).numpy()
    np.float32(1.0)
    """
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    dtype = common_dtype(tensors)
    bits = bits_type(dtype)
    radius = tf.cast(radius, tf.float64)
    low = bits.size * 8 - 16
    counts = histogram(tensors, dtype, None, low)
    edges = tf.bitcast(tf.bitwise.left_shift(tf.range(2**15, dtype=bits), tf.constant(low, bits)), dtype)
    # Sums of values near the largest float would overflow: they are taken over x / 2**64 instead.
    largest = tf.reduce_max(tf.where(counts > 0, edges, 0))
    scale = tf.where(largest > dtype.max / 2.0**64, tf.constant(2.0**-64, dtype), 1)
    edges = tf.cast(tf.where(counts > 0, edges * scale, 0), tf.float64)
    radius *= tf.cast(scale, tf.float64)
    counts = tf.cast(counts, tf.float64)
    number = tf.cumsum(counts, reverse=True)
    total = tf.cumsum(counts * edges, reverse=True)
    start = tf.reduce_max((total - radius) / tf.maximum(number, 1))

    def excess(tau: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        def update(state: tuple[tf.Tensor, tf.Tensor], chunk: tf.Tensor) -> tf.Tensor:
            over = tf.nn.relu(tf.abs(tf.cast(chunk, dtype) * scale) - tau)
            return (
                state[0] + tf.cast(tf.reduce_sum(over), tf.float64),
                state[1] + tf.cast(tf.reduce_sum(tf.sign(over)), tf.float64),
            )

        return fold(tensors, (tf.zeros([], tf.float64), tf.zeros([], tf.float64)), update)

    def newton(
        tau: tf.Tensor, sum_above: tf.Tensor, number_above: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        # At least the next float, so that rounding cannot stop the iteration outside the ball.
        next_float = tf.bitcast(tf.bitcast(tau, bits) + 1, dtype)
        step = tf.cast(tau, tf.float64) + (sum_above - radius) / tf.maximum(number_above, 1)
        tau = tf.maximum(tf.cast(step, dtype), next_float)
        return (tau, *excess(tau))

    tau = tf.cast(tf.maximum(start, 0), dtype)
    tau, _, _ = tf.while_loop(
        lambda tau, sum_above, number_above: sum_above > radius, newton, (tau, *excess(tau))
    )
    return tau / scale


@tf.autograph.experimental.do_not_convert
def l2_norm(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    r"""Return the norm $\sqrt{\sum_i x_i^2}$ of all tensors together; no square overflows or vanishes.

    Args:
        tensors: Sequence of floating tensors of any shapes.

    Returns:
        float64 scalar.
    """
    tensors = [tf.convert_to_tensor(t) for t in tensors]
    dtype = common_dtype(tensors)

    def norm(scale: tf.Tensor) -> tf.Tensor:
        def update(total: tf.Tensor, chunk: tf.Tensor) -> tf.Tensor:
            return total + tf.cast(tf.reduce_sum(tf.square(tf.cast(chunk, dtype) * scale)), tf.float64)

        total = fold(tensors, tf.zeros([], tf.float64), update)
        return tf.sqrt(total) / tf.cast(scale, tf.float64)

    def careful() -> tf.Tensor:
        bits = bits_type(dtype)
        largest = fold(
            tensors, tf.constant(0, bits), lambda m, c: tf.maximum(m, tf.reduce_max(magnitude_bits(c, dtype)))
        )
        largest = tf.bitcast(largest, dtype)
        return norm(tf.where(largest > 1, tf.constant(1 / far, dtype), tf.constant(far, dtype)))

    # Beyond these bounds squares may overflow or vanish; scaled by `far`, they do neither.
    low, high, far = (1e-9, 1e16, 2.0**80) if dtype == tf.float32 else (1e-120, 1e140, 2.0**600)
    plain = norm(tf.constant(1, dtype))
    safe = tf.logical_and(plain > low, plain < high)
    return tf.cond(safe, lambda: plain, careful, name="normal")


@tf.autograph.experimental.do_not_convert
def outline(tensor: tf.Tensor) -> tf.Tensor:
    r"""Return a few numbers that tell these values from others.

    Args:
        tensor: Floating tensor of any shape.

    Returns:
        float64 vector: how many elements are not zero, $\sum_i h_i x_i$ with numbers $h_i$ between 0 and 1
        that differ from place to place, and $\sum_i |x_i|$.
    """

    def update(so_far: tf.Tensor, chunk: tf.Tensor) -> tf.Tensor:
        x = read(chunk)
        places = tf.range(tf.cast(tf.size(x), x.dtype), dtype=x.dtype) / tf.cast(tf.size(x), x.dtype)
        found = 2 * tf.nn.l2_loss(tf.sign(x)), tf.reduce_sum(places * x), tf.reduce_sum(tf.abs(x))
        return so_far + tf.cast(tf.stack(found), tf.float64)

    return fold([tensor], tf.zeros([3], tf.float64), update)


@tf.autograph.experimental.do_not_convert
def finite(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Return which tensors hold neither an infinity nor a NaN.

    Args:
        tensors: Sequence of floating tensors of any shapes.

    Returns:
        bool vector, one entry per tensor.
    """

    tensors = [tf.convert_to_tensor(tensor) for tensor in tensors]
    large = [t.shape.num_elements() is None or is_large(t.shape.num_elements()) for t in tensors]

    def all_finite(tensor: tf.Tensor) -> tf.Tensor:
        return tf.reduce_all(tf.math.is_finite(tensor))

    # A sum of squares takes no array and is finite only if all values are; with large ones it may overflow.
    found = [
        tf.math.is_finite(tf.nn.l2_loss(tensor)) if of_many else all_finite(tensor)
        for tensor, of_many in zip(tensors, large, strict=True)
    ]
    if not any(large):
        return tf.stack(found)

    def with_care() -> tf.Tensor:
        each = zip(tensors, large, found, strict=True)
        return tf.stack([all_finite(tensor) if of_many else sure for tensor, of_many, sure in each])

    return tf.cond(tf.reduce_all(found), lambda: tf.stack(found), with_care, name="normal")
