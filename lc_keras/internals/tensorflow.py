"""Trace functions, and use what is private to TensorFlow."""

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar, cast

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.auto_control_deps_utils import get_read_write_resource_inputs
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def, get_function_def
from tensorflow.python.ops import handle_data_util, resource_variable_ops, script_ops

from lc_keras.internals.keras import is_of_keras

F = TypeVar("F", bound=Callable[..., object])

# From this size on, compiling a pass over a tensor is worth its time: some hundredths of a second per shape.
_MANY = 2**17


def compiled(function: F, **options: Any) -> F:
    """Return a `tf.function` without AutoGraph, one of many with the same code.

    TensorFlow counts traces by code, and would take those of a sixth object for needless retraces of the
    first.
    `Function._omit_frequent_tracing_warning`.
    """
    made = tf.function(function, autograph=False, **options)
    made._omit_frequent_tracing_warning = True
    return made


def untraced(function: Any) -> Any:
    """Return a copy without traces of a `tf.function`; anything else as it is.

    A trace that is made while other values stand in the place of a model's variables holds these values, and
    the user's function would go on with them.
    """
    return tf.function(function.python_function) if _is_traced(function) else function


def is_tracking(part: object) -> bool:
    """Return whether an object tracks the variables assigned to it, as a `tf.Module` does.

    `tf.__internal__.tracking.AutoTrackable`.
    """
    return isinstance(part, tf.__internal__.tracking.AutoTrackable)


def untraced_calls(layers: Iterable[keras.Layer]) -> list[tuple[keras.Layer, str, Callable[..., Any]]]:
    """Return what to replace in layers whose `call` is a `tf.function`; see `internals.keras.replaced`."""
    return [(layer, "call", untraced(layer.call)) for layer in layers if _is_traced(layer.call)]


def _is_traced(function: Any) -> bool:
    return isinstance(function, tf.types.experimental.PolymorphicFunction)


def is_large(size: int) -> bool:
    """Return whether XLA is worth its time for a pass over this many elements."""
    return size >= _MANY


def fused(function: F, size: int, signature: Sequence[Any] | None = None) -> F:
    """Return a function that XLA turns into one pass over memory, in place where it assigns to a variable.

    Operations that run one after the other make buffers as large as their tensors, and the system must first
    provide that memory. With few elements, compiling takes longer than it saves, so they run one after
    the other.

    Args:
        function: Function of tensors, called in a `tf.function`.
        size: Int, how many elements it goes through.
        signature: List of specs of its arguments, or `None` (default). With a list it is traced only once.

    Returns:
        Function.
    """
    if is_large(size):
        return tf.function(function, signature, autograph=False, jit_compile=True)
    return traced_once(function, signature) if signature else function


def traced_once(function: F, signature: Sequence[Any] | None = None) -> F:
    """Return a function of which a graph with many calls holds one copy, or one per shape if no signature."""
    return compiled(function, input_signature=signature, experimental_attributes={"_noinline": True})


def at_once(function: F) -> F:
    """Return a function of tensors of one size that XLA turns into one pass, for work done in each batch.

    Operations that run one after the other each write an array. Over many batches, compiling once for each
    shape is worth its time for fewer elements than in a C step.
    """
    single_pass = compiled(function, jit_compile=True)

    @functools.wraps(function)
    def call(first: tf.Tensor, *others: tf.Tensor) -> object:
        return (single_pass if is_large(8 * first.shape.num_elements()) else function)(first, *others)

    return cast(F, call)


def kept_with_trace(*variables: tf.Variable) -> None:
    """Keep variables for as long as the graph exists that is being traced and reads them.

    A function that a `train_step` calls may be called long after the `fit` in which it was traced. The memory
    of the variables is freed with `emptied`. The attribute of the graph is this library's own.
    """
    if not tf.executing_eagerly():
        graph = tf.compat.v1.get_default_graph()
        graph._lc_keras_variables = [*getattr(graph, "_lc_keras_variables", ()), *variables]


def copies_of(variable: keras.Variable | tf.Variable) -> Sequence[tf.Variable]:
    """Return the `tf.Variable`s of a variable, one for each replica that holds it."""
    value = variable.value if isinstance(variable, keras.Variable) else variable
    return value.values if isinstance(value, tf.distribute.DistributedValues) else [value]


def variable_of(handle: tf.Tensor, shape: Sequence[int], dtype: tf.DType) -> tf.Variable:
    """Return a variable by its handle, which may be an argument of the graph that is being traced.

    A graph that takes a variable itself as an argument is of use only while the first such variable lives.
    `resource_variable_ops.ResourceVariable` takes the handle.
    """
    return resource_variable_ops.ResourceVariable(handle=handle, shape=shape, dtype=dtype, trainable=False)


def view_of(variable: keras.Variable) -> np.ndarray:
    """Return the values of a variable, without a copy if NumPy has their type. Do not write to them."""
    value = tf.convert_to_tensor(variable)
    if "CPU" not in value.device or value.dtype.as_numpy_dtype.__module__ != "numpy":
        return value.numpy()
    return np.asarray(memoryview(value))


def emptied(variable: tf.Variable, value: float | bool) -> None:
    """Replace all that a variable holds by one value, and free the memory.

    TensorFlow never frees the graph of a train function, nor the values of the variables that it reads. If
    such a function runs again after all, the one value is broadcast.
    """
    for part in copies_of(variable):
        single = tf.cast(value, part.dtype)
        tf.raw_ops.AssignVariableOp(resource=part.handle, value=single, validate_shape=False)


def function_graphs(op: tf.Operation, attribute: str, inputs: Sequence[tf.Tensor]) -> list[tf.Graph]:
    """Return the graphs of the functions that an operation calls, with shapes that follow from its inputs.

    A function that was traced earlier may have been traced for inputs of other or of unknown shapes.
    `tensorflow.python.framework.function_def_to_graph` makes a graph of a function, and
    `handle_data_util` knows the shape of a variable by its handle.
    `attribute` names the function or a list of functions; `inputs` are like the inputs that these take.
    """
    named, graphs = op.get_attr(attribute), []
    for function in named if isinstance(named, list) else [named]:
        definition = get_function_def(function.name, op.graph)
        content, names = function_def_to_graph_def(definition)
        signature, graph = definition.signature, FuncGraph(function.name)
        with graph.as_default():
            graph.inputs = [tf.compat.v1.placeholder(tensor.dtype, tensor.shape) for tensor in inputs]
            for tensor, own in zip(inputs, graph.inputs, strict=True):
                handle_data_util.copy_handle_data(tensor, own)
            graph.outputs = tf.graph_util.import_graph_def(
                content,
                {names[arg.name]: own for arg, own in zip(signature.input_arg, graph.inputs, strict=True)},
                [names[definition.ret[arg.name]] for arg in signature.output_arg],
                name="in",
            )
            controls = (definition.control_ret[name] for name in signature.control_output)
            graph.control_outputs = [graph.get_operation_by_name(f"in/{name}") for name in controls]
        graphs.append(graph)
    return graphs


def written_in(graph: FuncGraph) -> list[tf.Tensor]:
    """Return the handles of what is outside of the graph of a function and may be changed by it.

    `auto_control_deps_utils.get_read_write_resource_inputs` knows which operations only read, but for those
    of tables.
    """
    outside = {id(inside): handle for handle, inside in graph.captures}
    operations = (op for op in graph.get_operations() if not op.type.startswith("LookupTable"))
    written = (t for op in operations for t in get_read_write_resource_inputs(op)[1])
    return [outside[id(tensor)] for tensor in written if id(tensor) in outside]


def in_vectorized_map() -> bool:
    """Return whether the graph that is being traced is that of a `tf.vectorized_map`.

    It turns some operations into others that cannot be loaded from a SavedModel. The scope `loop_body`.
    """
    return "loop_body" in tf.compat.v1.get_default_graph().get_name_scope().split("/")


def dataset_of(iterator: Any) -> tf.data.Dataset | None:
    """Return the dataset behind the iterator that Keras gives its train function, `None` if there is none.

    Under a `tf.distribute` strategy it is the dataset of this worker, from which each replica in turn takes
    an element. Nothing public leads back to it. `OwnedIterator._dataset`, `DistributedIterator._iterators`.
    """
    workers = getattr(iterator, "_iterators", [iterator])
    return getattr(workers[0], "_dataset", None) if len(workers) == 1 else None


def is_read_once(dataset: tf.data.Dataset) -> bool:
    """Return whether Keras has made a dataset from a Python generator or a `PyDataset`.

    A second iterator over such a dataset would take batches from the first. One over a user's own
    `from_generator` calls its function once more. `Dataset._inputs`, `Dataset._functions`: all that is left
    of `from_generator` is the number of a Python function in `script_ops._py_funcs`, which belongs to a
    `_GeneratorState`, with `_generator`.
    """
    graphs = [wrapper.function.graph.as_graph_def() for wrapper in dataset._functions()]
    nodes = [n for g in graphs for part in [g.node, *(f.node_def for f in g.library.function)] for n in part]
    functions = [script_ops._py_funcs.get(n.attr["token"].s.decode()) for n in nodes if n.op == "PyFunc"]
    states = [getattr(inspect.unwrap(f), "__self__", None) for f in functions if f]
    made = [getattr(state, "_generator", None) for state in states]
    return any(map(is_of_keras, made)) or any(map(is_read_once, dataset._inputs()))


@contextlib.contextmanager
def in_silence() -> Iterator[None]:
    """Return a context in which TensorFlow does not say twice where it writes assets."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("WARNING")
    try:
        yield
    finally:
        logger.setLevel(level)


def unsaved(shape: Sequence[int], dtype: str | tf.DType) -> tf.Variable:
    """Return a variable of which a SavedModel holds nothing but its shape.

    TensorFlow has no public way to leave a value out. `BaseResourceVariable._serialize_to_tensors` returns
    what a checkpoint holds of the variable, and `_export_to_saved_model_graph` makes the copy that is
    exported. The variable is emptied.
    """
    variable = tf.Variable(tf.zeros(shape, dtype), trainable=False)
    export = variable._export_to_saved_model_graph

    def export_unsaved(object_map: dict[Any, Any], *args: Any, **kwargs: Any) -> Any:
        resources = export(object_map, *args, **kwargs)
        object_map[variable]._serialize_to_tensors = dict
        return resources

    variable._serialize_to_tensors = dict
    variable._export_to_saved_model_graph = export_unsaved
    emptied(variable, 0)
    return variable
