"""Number the units of a graph, and follow them from tensor to tensor.

A unit is one channel of a tensor: a neuron's output, the map of a filter. Most layers pass units on, so one
unit is found at places in many tensors; some layers tie units of several tensors into one, as an addition
does. Tied units live or die together.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from lc_keras.internals.keras import Call, calls_in

Shape = tuple[int | None, ...]


class Units:
    """All units of a graph, as numbers: which are tied, and which may not be removed.

    Args:
        dead: Bool, whether all trainable weights that make units count as zero, whatever their values.

    Attributes:
        pinned: Dict from the units that stay whatever the weights are to the reason.
        held: Dict from those that stay because, with the current weights, their output cannot be folded, to
            the reason.
    """

    def __init__(self, dead: bool = False) -> None:
        self.dead = dead
        self._parent: list[int] = []
        self.pinned: dict[int, str] = {}
        self.held: dict[int, str] = {}

    def new(self, count: int) -> np.ndarray:
        """Return the numbers of new units."""
        first = len(self._parent)
        self._parent.extend(range(first, first + count))
        return np.arange(first, first + count)

    def tie(self, ids: np.ndarray, others: np.ndarray) -> None:
        """Tie each unit to its counterpart."""
        if ids is not others:
            for one, other in zip(ids.tolist(), others.tolist(), strict=True):
                one, other = self._root(one), self._root(other)
                self._parent[max(one, other)] = min(one, other)

    def pin(self, ids: np.ndarray, why: str) -> None:
        """Note that units may not be removed; the first of several reasons stands."""
        for unit in ids.tolist():
            self.pinned.setdefault(unit, why)

    def hold(self, ids: np.ndarray, why: str) -> None:
        """Note that units may not be removed with the weights as they are."""
        for unit in ids.tolist():
            self.held.setdefault(unit, why)

    def groups(self) -> np.ndarray:
        """Return the group of each unit, which tied units share, as the number of its first member."""
        return np.array([self._root(unit) for unit in range(len(self._parent))], int)

    def _root(self, unit: int) -> int:
        while self._parent[unit] != unit:
            self._parent[unit] = unit = self._parent[self._parent[unit]]
        return unit


@dataclass(eq=False)
class Signal:
    """A tensor's units, and what is known of them.

    Attributes:
        shape: Tuple, its shape, `None` where it is not known.
        axis: Int, the axis that numbers its units.
        ids: Array of ints, the unit at each place of that axis.
        value: Array of floats, the value that a unit always has here, whatever the model's input; NaN if it
            varies.
        read: Array of bools, whether the model's output depends on the unit here.
    """

    shape: Shape
    axis: int
    ids: np.ndarray
    value: np.ndarray = None  # type: ignore[assignment]  # made in __post_init__ if not given
    read: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.value = np.full(len(self.ids), np.nan) if self.value is None else self.value
        self.read = np.zeros(len(self.ids), bool)

    def seen_as(self, shape: Shape, axis: int) -> "Signal":
        """Return the same units in a tensor of another shape."""
        same = Signal(shape, axis, self.ids, self.value)
        same.read = self.read
        return same

    @property
    def constant(self) -> np.ndarray:
        return ~np.isnan(self.value)

    @property
    def needed(self) -> np.ndarray:
        """Return whether something that varies is read."""
        return self.read & ~self.constant


class Along(NamedTuple):
    """An axis of a weight that runs along the units of a port, `tiles` times.

    A unit may have channels of its own along the axis `inside`, as a head of attention does.
    """

    axis: int
    port: str
    tiles: int = 1
    inside: int | None = None


class Weight(NamedTuple):
    """A weight of a layer: the axis on which it makes units, and the one on which it reads them.

    What makes a unit is removed with it: a kernel's column, a bias, a scale. So is what reads it.
    """

    name: str
    makes: Along | None = None
    reads: Along | None = None


def find(layer: keras.Layer, name: str) -> keras.Variable | None:
    """Return a weight of a layer, or of a layer inside it, by a dotted name; `None` if it has none."""
    for part in name.split("."):
        layer = getattr(layer, part, None)
    return layer


def last(shape: Shape) -> int:
    """Return the number of the last axis."""
    return len(shape) - 1


def channels(layer: keras.Layer, shape: Shape) -> int:
    """Return the axis of the channels, according to the layer's `data_format`."""
    return 1 if getattr(layer, "data_format", None) == "channels_first" else last(shape)


_MIXING = (
    keras.activations.softmax,
    keras.activations.log_softmax,
    keras.activations.sparsemax,
    keras.activations.glu,
)
_ACTIVATIONS = {
    f
    for name in dir(keras.activations)
    if not name.startswith("_") and name not in ("get", "serialize", "deserialize")
    if callable(f := getattr(keras.activations, name)) and f not in _MIXING
}


def name_of(kind: type) -> str:
    """Return the name under which a class of layers is saved, or `ops.` and the name of an operation's class.

    Classes of operations have no public name. `keras.src.ops`, and `keras.src.activations` for `relu`, Keras
    3.14 and 3.15.
    """
    if kind.__module__.startswith(("keras.src.ops.", "keras.src.activations.")):
        return f"ops.{kind.__name__}"
    return keras.saving.get_registered_name(kind)


# Operations that take each element by itself, or with its counterparts in other tensors.
ELEMENTWISE = {
    f"ops.{name}"
    for name in """
    Absolute Add Angle Arccos Arccosh Arcsin Arcsinh Arctan Arctan2 Arctanh BitwiseAnd BitwiseInvert
    BitwiseNot BitwiseOr BitwiseXor Cast Cbrt Ceil Celu Clip Conjugate ConvertToTensor Copy Cos Cosh
    Deg2rad Divide DivideNoNan Elu Equal Erf Erfc Erfinv Exp Exp2 Expm1 Fabs Floor FloorDivide Fmax Fmin
    Fmod FullLike Gelu Greater GreaterEqual HardShrink HardSigmoid HardSilu HardTanh Heaviside Hypot I0
    Imag Isclose Isfinite Isinf Isnan Isneginf Isposinf LeakyRelu Less LessEqual Log Log10 Log1p Log2
    LogSigmoid Logaddexp Logaddexp2 LogicalAnd LogicalNot LogicalOr LogicalXor Maximum Minimum Mod
    Multiply NanToNum Negative NotEqual OnesLike Power Rad2deg Real Reciprocal ReLU Relu Relu6 Round Rsqrt
    SaturateCast Selu Sigmoid Sign Signbit Silu Sin Sinc Sinh SoftShrink Softplus Softsign SparsePlus
    SparseSigmoid Sqrt Square Squareplus StopGradient Subtract Tan TanhShrink Tanh Threshold TrueDivide
    Trunc Where ZerosLike
    """.split()
}


def is_elementwise(activation: Callable[[tf.Tensor], tf.Tensor]) -> bool:
    """Return whether a function is made of operations that take each element by itself."""
    # `in` would hash the activation, and an object of the user's may not be hashable.
    if any(activation is function for function in _ACTIVATIONS):
        return True
    if isinstance(activation, keras.Layer):
        return False
    found = [_steps(activation, shape) for shape in ((2,), (3,), (2, 3), (2, 2, 3), (2, 2, 2, 3))]
    return found[0] is not None and all(steps == found[0] for steps in found)


def _steps(
    activation: Callable[[tf.Tensor], tf.Tensor], shape: Shape
) -> list[tuple[str, list[float]]] | None:
    """Return the operations of a function and their numbers, `None` if not all are elementwise."""
    x = keras.Input(shape)
    try:
        nodes = [node for node in calls_in(keras.Model(x, activation(x))) if not node.is_input]
    except Exception:  # whatever a function of the user's own raises
        return None
    steps = []
    for node in nodes:
        given = [*node.arguments.args, *node.arguments.kwargs.values(), *vars(node.operation).values()]
        name = name_of(type(node.operation))
        if name not in ELEMENTWISE or has_arrays(node) or any(map(is_list, given)):
            return None
        if any(t.shape != x.shape for t in node.outputs):
            return None
        steps.append((name, [v for v in given if isinstance(v, (int, float))]))
    return steps


def has_arrays(node: Call) -> bool:
    """Return whether arrays or variables are in a call, or in the operation that is called."""
    made = [] if isinstance(node.operation, keras.Layer) else list(vars(node.operation).values())
    return any(map(is_array, keras.tree.flatten([node.arguments.args, node.arguments.kwargs, made])))


def is_array(value: object) -> bool:
    """Return whether a value is an array, a tensor or a variable that is in no graph."""
    return (
        hasattr(value, "shape")
        and not isinstance(value, (keras.KerasTensor, Signal))
        and len(value.shape) > 0
    )


def is_list(value: object) -> bool:
    """Return whether a value is a list of numbers, which may be one for each unit."""
    return (
        isinstance(value, (list, tuple))
        and len(value) > 1
        and all(isinstance(n, (int, float)) for n in value)
    )


def apply(function: Callable[[tf.Tensor], tf.Tensor], value: np.ndarray) -> np.ndarray:
    """Apply an elementwise function to the values that are known."""
    result = np.array(value)
    known = ~np.isnan(value)
    if known.any():
        result[known] = keras.ops.convert_to_numpy(
            function(keras.ops.convert_to_tensor(value[known], "float32"))
        )
    return result
