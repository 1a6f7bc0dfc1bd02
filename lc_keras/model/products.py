"""Find the multiplications in a traced graph: how many there are, and by which weights."""

import math
from collections.abc import Mapping, Sequence

import tensorflow as tf

from lc_keras.internals.tensorflow import function_graphs

# The keys of the weights that a tensor was made from; `None`: from examples, too.
Made = frozenset[int] | None

_MATRIX = ("MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
_CONVOLUTIONS = ("Conv", "Conv2D", "Conv3D", "DepthwiseConv2dNative")
_TRANSPOSED = ("Conv2DBackpropInput", "Conv3DBackpropInputV2", "DepthwiseConv2dNativeBackpropInput")
_OF_SHAPES = ("Shape", "ShapeN", "Size", "Rank", "VariableShape", "ZerosLike", "OnesLike")
# It is not known what these compute.
_OPAQUE = ("PyFunc", "PyFuncStateless", "EagerPyFunc", "XlaCallModule")


class Products:
    """The multiply-adds of a graph, for each weight that is multiplied by.

    Matrix products, einsums and convolutions count if the outputs need them, as often as the loops around
    them run. Of several branches, the one with the most multiply-adds counts.

    Args:
        sizes: Mapping from the key of a weight to the number of its elements.
        examples: Int, the batch size of the trace.

    Attributes:
        by_weight: Dict from the key of a weight to its multiply-adds, `None` if not known.
        others: Int, those of activations with one another or with constants, `None` if not known.
    """

    def __init__(self, sizes: Mapping[int, int], examples: int) -> None:
        self._sizes, self._examples = sizes, examples
        self.by_weight: dict[int, int | None] = {}
        self.others: int | None = 0

    def count(self, graph: tf.Graph, given: Sequence[Made], times: int | None = 1) -> list[Made]:
        """Count what a graph multiplies.

        Args:
            graph: The graph of a function.
            given: List of what each of its inputs was made from.
            times: Int, default 1, how often it runs; `None` if that is not known.

        Returns:
            List of what each of its outputs was made from.
        """
        made = {id(tensor): m for tensor, m in zip(graph.inputs, given, strict=True)}
        needed = _needed(graph)
        for op in graph.get_operations():
            if id(op) in needed and not any(id(tensor) in made for tensor in op.outputs):
                outputs = self._count_one(op, [made[id(tensor)] for tensor in op.inputs], times)
                made.update(zip(map(id, op.outputs), outputs, strict=True))
        return [made[id(tensor)] for tensor in graph.outputs]

    def _count_one(self, op: tf.Operation, given: list[Made], times: int | None) -> list[Made]:
        if op.type in _OF_SHAPES:
            return [frozenset()] * len(op.outputs)
        if op.type in ("While", "StatelessWhile"):
            return self._count_loop(op, given, times)
        if op.type in ("If", "StatelessIf", "Case", "StatelessCase"):
            return self._count_branches(op, given[1:], times)
        if op.type in ("PartitionedCall", "StatefulPartitionedCall"):
            return self.count(function_graphs(op, "f", op.inputs)[0], given, times)
        made = _together(*given)
        if (product := _product(op, self._examples)) is not None:
            count, places = product
            self._add(op, given, places, _times(count, times))
            # A product of weights alone is none of them.
            made = None if made is None else frozenset()
        elif op.type.startswith(_OPAQUE) and any(tensor.dtype.is_floating for tensor in op.outputs):
            self.others = None
        return [made] * len(op.outputs)

    def _add(self, op: tf.Operation, given: list[Made], places: Sequence[int], count: int | None) -> None:
        # Of two weights, the one on the right is the kernel.
        place = next((place for place in places if given[place]), None)
        if place is None:
            if any(given[p] is None for p in places):
                self.others = _plus(self.others, count)
            return
        weights = sorted(given[place] or (), key=self._sizes.__getitem__)
        size = op.inputs[place].shape.num_elements()
        if sum(map(self._sizes.__getitem__, weights)) != size:
            # These are not weights side by side, but a part of a weight, or one that others change.
            weights = [w for w in weights if self._sizes[w] == size][-1:] or weights[-1:]
        whole = sum(map(self._sizes.__getitem__, weights))
        for weight in weights:
            self._add_to(weight, None if count is None else count * self._sizes[weight] // whole)

    def _add_to(self, weight: int, count: int | None) -> None:
        self.by_weight[weight] = _plus(self.by_weight.get(weight, 0), count)

    def _count_loop(self, op: tf.Operation, given: list[Made], times: int | None) -> list[Made]:
        (body,) = function_graphs(op, "body", op.inputs)
        if any(
            a.shape.as_list() != b.shape.as_list()
            for a, b in zip(body.inputs, body.outputs, strict=True)
            if a.shape.rank is not None and b.shape.rank is not None
        ):
            # A step changes shapes.
            (body,) = function_graphs(op, "body", op.outputs)
        while (after := Products(self._sizes, self._examples).count(body, given)) != given:
            joined = [_together(*pair) for pair in zip(given, after, strict=True)]
            if joined == given:
                break
            given = joined
        self.count(body, given, _times(times, _steps(op.inputs[1])))
        return given

    def _count_branches(self, op: tf.Operation, given: list[Made], times: int | None) -> list[Made]:
        names = ["then_branch", "else_branch"] if op.type.endswith("If") else ["branches"]
        branches, outputs = [], []
        for graph in (graph for name in names for graph in function_graphs(op, name, op.inputs[1:])):
            branches.append(Products(self._sizes, self._examples))
            outputs.append(branches[-1].count(graph, given, times))
        most = max(
            branches,
            key=lambda b: sum(math.inf if n is None else n for n in (*b.by_weight.values(), b.others)),
        )
        for weight, count in most.by_weight.items():
            self._add_to(weight, count)
        self.others = _plus(self.others, most.others)
        return [_together(*made) for made in zip(*outputs, strict=True)]


def _needed(graph: tf.Graph) -> set[int]:
    """Return the ids of the operations that compute the outputs."""
    needed: set[int] = set()
    waiting = [tensor.op for tensor in graph.outputs] + list(graph.control_outputs)
    while waiting:
        op = waiting.pop()
        if id(op) not in needed:
            needed.add(id(op))
            waiting += op.control_inputs
            waiting += [tensor.op for tensor in op.inputs]
    return needed


def _together(*made: Made) -> Made:
    known = [weights for weights in made if weights is not None]
    return frozenset[int]().union(*known) if len(known) == len(made) else None


def _times(*numbers: int | None) -> int | None:
    """Return the product of numbers, `None` if one is not known."""
    known = [n for n in numbers if n is not None]
    return math.prod(known) if len(known) == len(numbers) else None


def _plus(one: int | None, other: int | None) -> int | None:
    """Return the sum of two numbers, `None` if one is not known: one unknown part makes the sum unknown."""
    return None if one is None or other is None else one + other


def _steps(most: tf.Tensor) -> int | None:
    """Return how often a loop runs whose maximum is a constant."""
    while most.op.type in ("Max", "Identity"):
        most = most.op.inputs[0]
    value = tf.get_static_value(most)
    return None if value is None or value < 0 else int(value)


def _product(op: tf.Operation, examples: int) -> tuple[int | None, tuple[int, ...]] | None:
    """Return the multiply-adds of an operation and the inputs that are multiplied, `None` if none are."""
    shapes = [tensor.shape for tensor in op.inputs]
    if op.type in _MATRIX:
        left, right = ("transpose_a", "transpose_b") if op.type == "MatMul" else ("adj_x", "adj_y")
        inner = _axis(shapes[0], -2 if op.get_attr(left) else -1)
        inner = inner or _axis(shapes[1], -1 if op.get_attr(right) else -2)
        return _times(op.outputs[0].shape.num_elements(), inner), (1, 0)
    if op.type == "SparseTensorDenseMatMul":
        # As if it were dense. Where the number of rows is lost, each row is an example.
        return _times(_axis(op.outputs[0].shape, 0) or examples, shapes[3].num_elements()), (3, 1)
    if op.type == "Einsum" and len(shapes) == 2:
        return _einsum(op.get_attr("equation").decode(), shapes), (1, 0)
    if op.type in _CONVOLUTIONS:
        own = -2 if op.type.startswith("Depthwise") else -1
        return _times(_undilated(op.outputs[0]).num_elements(), shapes[1][:own].num_elements()), (1, 0)
    if op.type in _TRANSPOSED:
        own = -2 if op.type.startswith("Depthwise") else -1
        return _times(shapes[2].num_elements(), shapes[1][:own].num_elements()), (1, 2)
    return None


def _axis(shape: tf.TensorShape, axis: int) -> int | None:
    return None if shape.rank is None else shape[axis]


def _einsum(equation: str, shapes: Sequence[tf.TensorShape]) -> int | None:
    """Return the product of the sizes of all axes of an einsum."""
    sizes: dict[str | int, int] = {}
    for labels, shape in zip(equation.split("->")[0].split(","), shapes, strict=True):
        if not shape.is_fully_defined():
            return None
        first, dots, last = labels.strip().partition("...")
        # The axes of an ellipsis are numbered from its end.
        more = range(len(shape) - len(first) - len(last) if dots else 0, 0, -1)
        for label, size in zip([*first, *more, *last], shape.as_list(), strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _undilated(output: tf.Tensor) -> tf.TensorShape:
    """Return the shape of what a convolution computes; a dilated one is padded, and cut afterwards."""
    for op in output.consumers():
        if op.type in ("Squeeze", "BatchToSpaceND"):
            return op.outputs[0].shape if op.type == "BatchToSpaceND" else _undilated(op.outputs[0])
    return output.shape
