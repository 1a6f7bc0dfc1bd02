"""Codebooks: a few values that all weights share, learned or given."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from lc_keras.arguments import is_number, optional, whole
from lc_keras.costs import thresholds
from lc_keras.costs.compression import Layouts, Tensors, check_number
from lc_keras.costs.kmeans import best_codes
from lc_keras.costs.values import Values

_MOST, _LARGEST = 2**16, float(np.finfo(np.float32).max)
# With this many values, as with 8 bits, the nearest is close.
_CLOSE = 2**8


def _numbers(name: str, values: Sequence[float]) -> tuple[float, ...]:
    given = values.tolist() if isinstance(values, np.ndarray) else values
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(map(is_number, given)):
        raise TypeError(f"Expected `{name}` to be a list of numbers. Received: {name}={values!r}")
    if not given or not all(abs(value) <= _LARGEST for value in given):
        raise ValueError(
            f"Expected `{name}` to be one or more numbers, finite in single precision. Received: "
            f"{name}={values!r}"
        )
    return tuple(sorted({float(value) for value in given}))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Codebook(Values):
    r"""Each weight has one of k values: $\theta_i \in \{c_1, \dots, c_k\}$, learned or given.

    With given values, the C step takes the nearest. Learning a codebook is k-means in one dimension,
    $\min_{c, z} \sum_i (v_i - c_{z_i})^2$, over all tensors together (Carreira-Perpiñán & Idelbayev, Model
    compression as constrained optimization, with application to neural nets, part II: quantization,
    arXiv:1707.04319), computed here on a histogram. Nothing is random, and nothing is kept from one C step to
    the next.

    Args:
        size: Int k ≥ 1, at most 65,536, or `None` (default) if `values` are given.
        values: Sequence of finite numbers, such as powers of two, or `None` (default).

    Raises:
        TypeError: If an argument is of the wrong type.
        ValueError: If `size` is out of range, `values` is empty, too long or not finite, or not exactly one
            of the two is given.

    Example:

    >>> Codebook(2).c_step([tf.constant([3.0, 1.0, -2.0, -1.0])], mu=1.0)[0].numpy()
    array([ 2. ,  2. , -1.5, -1.5], dtype=float32)
    """

    size: int | None = dataclasses.field(default=None, metadata={"check": optional(whole)})
    values: Sequence[float] | None = dataclasses.field(default=None, metadata={"check": optional(_numbers)})

    def __post_init__(self) -> None:
        if (self.size is None) == (self.values is None):
            raise ValueError(f"Expected `size` or `values`. Received: size={self.size}, values={self.values}")
        super().__post_init__()
        count = self.size or len(self.values or ())
        if count > _MOST:
            raise ValueError(f"Expected at most {_MOST} values. Received: {count}")

    @property
    def close_values(self) -> bool:  # type: ignore[override]  # of this one
        return (self.size or 0) >= _CLOSE

    def check(self, layouts: Layouts) -> None:
        if self.size is not None:
            check_number(sum(layout.size for layout in layouts))

    def learn(self, weights: Tensors, layouts: Layouts, sparse: bool = False) -> list[tf.Tensor]:
        if self.size is not None:
            codes = best_codes(weights, self.size, sparse)
        else:
            codes = tf.constant(self.values, thresholds.common_dtype(weights))
        return [codes] * len(weights)
