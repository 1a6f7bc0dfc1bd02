"""The layout of a weight: all that a cost knows about it besides its values."""

import dataclasses
import math

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Layout:
    """The shape of a weight, the axes of its output units, and what is known about these units.

    Args:
        shape: Tuple of ints, the static shape.
        axes: Tuple of ints, the axes that index output units. Defaults to `(-1,)`, the last axis, as in the
            kernel of a `Dense` or convolution layer.
        units: int array or `None` (default): the number of the unit at each place of `axes`, flattened in
            their order; -1 where the weights belong to no unit that is pruned. Weights of one cost with the
            same number belong to the same unit. `None`: the units of this weight are its own.
        reads: int array or `None` (default: none of them): the number of the unit that each place along the
            inputs reads, or -1. If that unit goes, the weights that read it go, too.
        count: Int, how many units the weights of one cost share. Defaults to 0.
        channels: Float, how many channels each place of `axes` stands for: as many as the head has for a head
            of attention, and a fourth where a unit has a place in each of four gates. Defaults to 1.
        macs: Int or `None` (default: not known): the multiply-adds of one element, for one example.
        bytes: Int, the size of one element. Defaults to 4.
        nanoseconds: Tuple of three floats or `None` (default: not known): the parts of the whole tensor's
            time that are proportional to what it makes and reads, that are proportional to what it makes, and
            that are the same at any width.
        by_rank: Tuple of triples of floats or `None` (default: not known): for each way to see the kernel as
            a matrix, the milliseconds of its layer, of two layers in its place, and of each rank of these. An
            empty tuple: no two layers can stand for it.

    Raises:
        ValueError: If a dimension is not known.
    """

    shape: tuple[int, ...]
    axes: tuple[int, ...] = (-1,)
    units: np.ndarray | None = None
    reads: np.ndarray | None = None
    count: int = 0
    channels: float = 1.0
    macs: int | None = None
    bytes: int = 4
    nanoseconds: tuple[float, float, float] | None = None
    by_rank: tuple[tuple[float, float, float], ...] | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.shape)
        if None in shape:
            raise ValueError(f"Expected a static shape. Received: {shape}")
        object.__setattr__(self, "shape", tuple(int(n) for n in shape))

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)

    @property
    def outputs(self) -> list[int]:
        """Return the axes of the output units in ascending order, or raise a ValueError about `axes`."""
        inputs = self.inputs
        outputs = [a for a in range(len(self.shape)) if a not in inputs]
        if not outputs or len(outputs) != len(self.axes):
            raise ValueError(
                f"Expected output axes that are distinct axes of a tensor of rank {len(self.shape)}. "
                f"Received: {tuple(self.axes)}"
            )
        return outputs

    @property
    def inputs(self) -> list[int]:
        """Return all other axes in ascending order."""
        rank = len(self.shape)
        return [a for a in range(rank) if a not in self.axes and a - rank not in self.axes]
