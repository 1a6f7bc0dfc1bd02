"""Matrices of low rank: the rank is given, or chosen by what it costs."""

import dataclasses
import math
from typing import Literal

import numpy as np
import tensorflow as tf

from lc_keras.arguments import one_of, whole
from lc_keras.costs.compression import NON_NEGATIVE, Compression, Layouts, Map, Tensors
from lc_keras.costs.layout import Layout
from lc_keras.costs.prices import price_of_weight


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A way to see a tensor as a matrix.

    Attributes:
        shape: Tuple of ints, the shape of the tensor.
        order: Tuple of ints, its axes, those of the rows first.
        rows: Int, how many rows there are.
        columns: Int, how many columns there are.
    """

    shape: tuple[int, ...]
    order: tuple[int, ...]
    rows: int
    columns: int

    @classmethod
    def of(cls, layout: Layout) -> list["Matrix"]:
        """Return the ways to see a kernel as a matrix.

        The first way has a column for each output unit. The kernel of a two-dimensional convolution, and any
        other with three axes of inputs before one of outputs, can also have a row for each input channel and
        row of its window, and a column for each output unit and column of its window: two convolutions, one
        along each axis.

        Raises:
            ValueError: If the tensor has no axis of inputs.
        """
        inputs, outputs = layout.inputs, layout.outputs
        if not inputs:
            raise ValueError(f"Expected tensors with an axis of inputs. Received: shape {layout.shape}")
        axes = [(inputs, outputs)]
        if len(inputs) == 3 and outputs == [3]:
            axes.append(([0, 2], [1, 3]))
        sizes = [[math.prod(layout.shape[a] for a in side) for side in pair] for pair in axes]
        return [
            cls(layout.shape, (*rows, *columns), *size)
            for (rows, columns), size in zip(axes, sizes, strict=True)
        ]

    @property
    def rank(self) -> int:
        """Return the largest rank."""
        return min(self.rows, self.columns)

    def parameters(self, rank: int) -> int:
        """Return how many weights factors of a rank have, or the matrix, if it has fewer."""
        return min(rank * (self.rows + self.columns), self.rows * self.columns)

    def unfold(self, value: tf.Tensor) -> tf.Tensor:
        """Return a tensor as a matrix."""
        return tf.reshape(tf.transpose(value, self.order), [self.rows, self.columns])

    def fold(self, matrix: tf.Tensor) -> tf.Tensor:
        """Undo `unfold`."""
        folded = tf.reshape(matrix, [self.shape[a] for a in self.order])
        return tf.transpose(folded, np.argsort(self.order))


class Factored(Compression):
    """Base class of costs of the ranks of matrices. A subclass overrides `objective`."""

    def objective(
        self, tails: tf.Tensor, matrix: Matrix, index: int, layout: Layout, mu: tf.Tensor
    ) -> tf.Tensor:
        """Return the objective of each rank; the rank with the least is taken.

        Args:
            tails: float64 vector, the sum of the squares of all but the first 0, 1, … singular values.
            matrix: `Matrix`.
            index: Int, which of the ways to see the tensor as a matrix this is.
            layout: `Layout` of the tensor.
            mu: float64 scalar, μ.

        Returns:
            float64 vector.
        """
        raise NotImplementedError

    def check(self, layouts: Layouts) -> None:
        for layout in layouts:
            Matrix.of(layout)

    def maps(self, weights: Tensors, mu: float | tf.Tensor, layouts: Layouts) -> list[Map]:
        pairs = zip(weights, layouts, strict=True)
        return [self._solved(tf.convert_to_tensor(w), tf.cast(mu, tf.float64), layout) for w, layout in pairs]

    def _solved(self, weight: tf.Tensor, mu: tf.Tensor, layout: Layout) -> Map:
        """Find the ranks and directions of one tensor, and return its map."""
        ways, objectives = [], []
        for index, matrix in enumerate(Matrix.of(layout)):
            energies, vectors = _decomposed(matrix.unfold(tf.cast(weight, tf.float64)))
            tails = tf.concat([tf.cumsum(energies, reverse=True), [0.0]], 0)
            objective = self.objective(tails, matrix, index, layout, mu)
            rank = tf.argmin(objective, output_type=tf.int32)
            chosen = vectors * tf.cast(tf.range(matrix.rank) < rank, tf.float64)
            ways.append((matrix, tf.matmul(chosen, vectors, transpose_b=True), rank < matrix.rank))
            objectives.append(tf.reduce_min(objective))
        best = tf.argmin(tf.stack(objectives))

        def theta(value: tf.Tensor) -> tf.Tensor:
            found = _projected(value, *ways[0])
            for index, way in enumerate(ways[1:], 1):
                found = tf.where(best == index, _projected(value, *way), found)
            return found

        return theta


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class LowRank(Factored):
    r"""Each kernel is a matrix of rank at most r: $\operatorname{rank} \theta \le r$.

    The C step is the truncated singular value decomposition (Eckart & Young, The approximation of one matrix
    by another of lower rank, Psychometrika 1936). The kernel of a two-dimensional convolution is seen as a
    matrix in two ways: with a column for each output unit, or as two convolutions along one axis each, if
    these have fewer weights at this rank than the kernel. The nearer result is taken. Other kernels with
    three axes of inputs before one of outputs, as an `EinsumDense` may have, are seen so, too, but `shrink`
    makes no two layers of them: leave them out by a `Task`.

    Args:
        rank: Int r ≥ 1, at most the largest rank that each kernel can have.

    Raises:
        TypeError: If `rank` is not a number.
        ValueError: If `rank` is out of range, or, for given weights, above the largest rank that one of them
            can have, or if one has no axis of inputs.

    Example:

    >>> LowRank(1).c_step([tf.constant([[3.0, 0.0], [0.0, 1.0]])], mu=1.0)[0].numpy()
    array([[3., 0.],
           [0., 0.]], dtype=float32)
    """

    rank: int = dataclasses.field(metadata={"check": whole})

    has_budget = is_smooth = True

    def check(self, layouts: Layouts) -> None:
        for layout in layouts:
            matrix = Matrix.of(layout)[0]
            if self.rank > matrix.rank:
                raise ValueError(
                    f"Expected `rank` to be at most {matrix.rank}, that of a matrix of {matrix.rows} × "
                    f"{matrix.columns}. Received: {self.rank}; a `Task` of other weights leaves it out."
                )

    def objective(
        self, tails: tf.Tensor, matrix: Matrix, index: int, layout: Layout, mu: tf.Tensor
    ) -> tf.Tensor:
        others = np.arange(matrix.rank + 1) != min(self.rank, matrix.rank)
        # The second way is for two layers, which here would have no fewer weights.
        saves = index == 0 or matrix.parameters(self.rank) < matrix.rows * matrix.columns
        return tails + tf.constant(np.where(others | (not saves), np.inf, 0.0))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class RankSelection(Factored):
    r"""Each kernel is a matrix of the rank that is worth its cost.

    The cost is $C(\theta) = \alpha \sum_l c(\operatorname{rank} \theta_l)$. Kernel by kernel, the C step
    finds $\arg\min_r \alpha\, c(r) + \frac{\mu}{2} \sum_{i > r} \sigma_i^2$, with σ the singular values, by
    trying all r, and then takes the truncated singular value decomposition (Idelbayev & Carreira-Perpiñán,
    Low-rank compression of neural nets: learning the rank of each layer, CVPR 2020). An m × n kernel costs
    $c(r) = r (m + n)$ weights as two factors, but at most its own m n weights, for which it stays as it is.
    Convolutions are seen as matrices in the two ways of `LowRank`.

    Args:
        alpha: Float α ≥ 0, what a weight, a multiply-add or a millisecond costs, in units of the training
            loss.
        measure: `"parameters"` (default): weights. `"macs"`: the multiply-adds of one example.
            `"milliseconds"`: the time of a batch in one layer, or in the two that `shrink` makes of it, as
            fitted by `latency(model, of="ranks")`; kernels of other kinds stay as they are.

    Raises:
        TypeError: If `alpha` is not a number.
        ValueError: If an argument is out of range, or, for given weights, if their cost is not known or one
            has no axis of inputs.

    Example:

    >>> RankSelection(alpha=0.1).c_step([tf.constant([[3.0, 0.0], [0.0, 1.0]])], mu=0.1)[0].numpy()
    array([[3., 0.],
           [0., 1.]], dtype=float32)
    """

    alpha: float = dataclasses.field(metadata=NON_NEGATIVE)
    measure: Literal["parameters", "macs", "milliseconds"] = dataclasses.field(
        default="parameters", metadata={"check": one_of("parameters", "macs", "milliseconds")}
    )

    @property
    def needs_macs(self) -> bool:
        return self.measure == "macs"

    @property
    def needs_time(self) -> Literal["ranks"] | None:
        return "ranks" if self.measure == "milliseconds" else None

    def check(self, layouts: Layouts) -> None:
        super().check(layouts)
        for layout in layouts:
            for index, matrix in enumerate(Matrix.of(layout)):
                self._costs(matrix, index, layout)

    def objective(
        self, tails: tf.Tensor, matrix: Matrix, index: int, layout: Layout, mu: tf.Tensor
    ) -> tf.Tensor:
        return self.alpha * tf.constant(self._costs(matrix, index, layout), tf.float64) + mu / 2 * tails

    def _costs(self, matrix: Matrix, index: int, layout: Layout) -> list[float]:
        """Return what each rank costs."""
        weights = [matrix.parameters(rank) for rank in range(matrix.rank + 1)]
        if self.measure != "milliseconds":
            each = price_of_weight(layout, self.measure)
            return [each * count for count in weights]
        if layout.by_rank is None:
            raise ValueError(
                "Expected weights of a Functional or Sequential model, whose time `lc_keras.latency(model, "
                f'of="ranks")` has fitted. Received: measure={self.measure!r}, shape {layout.shape}'
            )
        if not layout.by_rank:
            return [0.0 for _ in weights]
        whole, two, each_rank = layout.by_rank[index]
        smaller = [count < matrix.rows * matrix.columns for count in weights]
        return [
            0.0 if rank == 0 else two + each_rank * rank if is_smaller else whole
            for rank, is_smaller in enumerate(smaller)
        ]


def _decomposed(matrix: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the squares of the singular values, the largest first, and the vectors of the shorter side.

    They come from the product of the matrix with its transpose, in double precision, which is much faster.
    """
    # TensorFlow fails on a NaN, before it is said which weight is not finite.
    matrix = tf.where(tf.reduce_all(tf.math.is_finite(matrix)), matrix, tf.zeros([], matrix.dtype))
    tall = matrix.shape[0] >= matrix.shape[1]
    energies, vectors = tf.linalg.eigh(tf.matmul(matrix, matrix, transpose_a=tall, transpose_b=not tall))
    return tf.nn.relu(energies[::-1]), vectors[:, ::-1]


def _projected(value: tf.Tensor, matrix: Matrix, projector: tf.Tensor, truncates: tf.Tensor) -> tf.Tensor:
    """Return the tensor with its matrix projected onto some directions; at full rank, the tensor itself."""
    unfolded = matrix.unfold(tf.cast(value, tf.float64))
    tall = matrix.rows >= matrix.columns
    nearest = tf.matmul(unfolded, projector) if tall else tf.matmul(projector, unfolded)
    return tf.where(truncates, tf.cast(matrix.fold(nearest), value.dtype), value)
