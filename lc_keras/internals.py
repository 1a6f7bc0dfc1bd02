"""Reach what Keras and TensorFlow keep to themselves, and what they trace.

Every private name of theirs that the library uses is in this file, behind a function that says why; all
were seen in Keras 3.14 and 3.15, and in TensorFlow 2.21. `tests/test_internals.py` lists them: where it fails
with a new Keras, change this file.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar

import keras
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator
from keras.src.saving.serialization_lib import ObjectSharingScope
from tensorflow.python.framework.func_graph import FuncGraph
from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def, get_function_def
from tensorflow.python.ops import handle_data_util

F = TypeVar("F", bound=Callable[..., object])

# A call of a layer in a graph, which has no public class.
Call: TypeAlias = Any
# What an optimizer takes as a learning rate.
Rate: TypeAlias = "keras.Variable | keras.optimizers.schedules.LearningRateSchedule | Callable[[], tf.Tensor]"


# Traced functions.

# From here on compiling a C step is worth its time, a tenth of a second for each tensor.
_MANY = 2**16


def compiled(function: F, reduce_retracing: bool = False) -> F:
    """Return a `tf.function` without AutoGraph, one of many with the same code.

    TensorFlow counts traces by code, and would take those of a sixth object for needless ones of the first.
    `Function._omit_frequent_tracing_warning`.
    """
    made = tf.function(function, autograph=False, reduce_retracing=reduce_retracing)
    made._omit_frequent_tracing_warning = True
    return made


def fused(function: F, size: int) -> F:
    """Return a function of which XLA makes one pass over memory, in place where it assigns to a variable.

    One operation after the other makes buffers as large as its tensors, whose memory the system must first
    give. With few elements compiling takes longer than that is worth: they are computed one after the other.

    Args:
        function: Function of tensors, called in a `tf.function`.
        size: Int, how many elements it goes through.

    Returns:
        Function.
    """
    return tf.function(function, autograph=False, jit_compile=True) if size >= _MANY else function


def kept_with_trace(*variables: tf.Variable) -> None:
    """Keep variables for as long as there is the graph that is being traced and reads them.

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


def emptied(variable: tf.Variable, value: float | bool) -> None:
    """Put one value in the place of all that a variable holds, and free their memory.

    TensorFlow keeps the graph of a train function for good, and with it the values of the variables that it
    reads. Where such a function runs again after all, the one value is broadcast.
    """
    for part in copies_of(variable):
        single = tf.cast(value, part.dtype)
        tf.raw_ops.AssignVariableOp(resource=part.handle, value=single, validate_shape=False)


def function_graphs(op: tf.Operation, attribute: str, inputs: Sequence[tf.Tensor]) -> list[tf.Graph]:
    """Return the graphs of the functions that an operation calls, with shapes that follow from its inputs.

    One that was traced earlier may have been so for inputs of other shapes, or of unknown ones.
    `tensorflow.python.framework.function_def_to_graph` makes a graph of a function, and
    `handle_data_util` knows the shape of a variable by its handle.
    `attribute` names the function or a list of these, `inputs` are like what the functions take.
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


def in_vectorized_map() -> bool:
    """Return whether the graph that is being traced is that of a `tf.vectorized_map`.

    Of some operations it makes what cannot be loaded from a SavedModel. The scope `loop_body`.
    """
    return "loop_body" in tf.compat.v1.get_default_graph().get_name_scope().split("/")


@contextlib.contextmanager
def replaced(attributes: Iterable[tuple[keras.Layer, str, object]]) -> Iterator[None]:
    """Replace attributes of single layers by name, methods by functions without `self`, and put them back."""
    with contextlib.ExitStack() as stack:
        for layer, name, value in attributes:
            # Beside `Layer.__setattr__`, which would track what it is given.
            if name in vars(layer):
                stack.callback(object.__setattr__, layer, name, vars(layer)[name])
            else:
                stack.callback(object.__delattr__, layer, name)
            object.__setattr__(layer, name, value)
        yield


# Layers.


def layers_in(layer: keras.Layer, include_self: bool = True) -> list[keras.Layer]:
    """Return a layer or model and all layers inside of it, at any depth, each once.

    `model.layers` has those of the first depth alone. `Layer._flatten_layers`.
    """
    return list(layer._flatten_layers(include_self=include_self))


def created_by(layer: keras.Layer) -> list[keras.Variable]:
    """Return the variables that a layer itself has made, without those of layers inside of it.

    `layer.variables` has both. `Layer._trainable_variables` and `_non_trainable_variables`.
    """
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def states_of(layer: keras.Layer) -> list[keras.Variable]:
    """Return the variables that a layer itself has made not to be trained, such as moving averages.

    `layer.non_trainable_variables` has weights that are frozen, too, and random seeds.
    `Layer._non_trainable_variables`.
    """
    return list(layer._non_trainable_variables)


def global_seed() -> keras.Variable:
    """Return the state of the random numbers that belong to no layer.

    `keras.random.normal(shape)` without a seed moves it. `keras.src.random.seed_generator` makes it.
    """
    return global_seed_generator().state


def is_gated(layer: keras.layers.MultiHeadAttention) -> bool:
    """Return whether the attention multiplies its heads by a gate.

    Its config says so, too, but may not be to be had. `MultiHeadAttention._use_gate`.
    """
    return bool(layer._use_gate)


def output_shape_of(layer: keras.layers.Lambda) -> Any:
    """Return the `output_shape` that a Lambda layer was given.

    Its config has it as text, if it is a function. `Lambda._output_shape`.
    """
    return layer._output_shape


def copied_together(objects: Sequence[keras.Layer]) -> list[keras.Layer]:
    """Return copies of layers, with new weights, in which what several of them hold is one again.

    As Keras does where it saves a model and loads it. `serialization_lib.ObjectSharingScope`.
    """
    classes = {type(part) for layer in objects for part in layers_in(layer)}
    named = {name(c): c for c in classes for name in (keras.saving.get_registered_name, lambda c: c.__name__)}
    with ObjectSharingScope():
        configs = [keras.saving.serialize_keras_object(layer) for layer in objects]
    with ObjectSharingScope():
        return [keras.saving.deserialize_keras_object(config, named) for config in configs]


# Graphs of layers.


def mask_of(tensor: keras.KerasTensor) -> keras.KerasTensor | None:
    """Return the mask that a tensor carries. `KerasTensor._keras_mask`."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: keras.KerasTensor, mask: keras.KerasTensor) -> None:
    tensor._keras_mask = mask


@contextlib.contextmanager
def without_traces(layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Take back that layers were called on tensors. `Operation._inbound_nodes`, `_outbound_nodes`."""
    kept = [(nodes, len(nodes)) for one in layers for nodes in (one._inbound_nodes, one._outbound_nodes)]
    try:
        yield
    finally:
        for nodes, count in kept:
            del nodes[count:]


def functional_class(model: keras.Model) -> type[keras.Model] | None:
    """Return the class of what `keras.Model(inputs, outputs)` makes, `None` if the model is none of it.

    It has no public name. `keras.src.models.Functional`.
    """
    return next((c for c in type(model).__mro__ if c.__name__ == "Functional"), None)


def as_functional(model: keras.Model) -> keras.Model:
    """Return the graph of a model: itself, or the one that a `Sequential` keeps.

    It is `None` if a `Sequential` is not built. `Sequential._functional`.
    """
    return model._functional if isinstance(model, keras.Sequential) else model


def calls_in(functional: keras.Model) -> list[Call]:
    """Return the calls of layers in a graph, those of its inputs too, in an order in which they can run.

    `Function._nodes_by_depth`: the deepest come first.
    """
    return [call for _, calls in sorted(functional._nodes_by_depth.items(), reverse=True) for call in calls]


def call_again(
    functional: keras.Model,
    inputs: Sequence[keras.KerasTensor],
    instead: Callable[[keras.Layer], keras.Layer],
) -> Any:
    """Return the outputs of a graph that is called on other inputs, with the layers that `instead` gives.

    `keras.models.clone_model` makes models, not layers, anew. `Function._run_through_graph`.
    """
    return functional._run_through_graph(inputs, operation_fn=instead)


def source_of(tensor: keras.KerasTensor) -> keras.Layer:
    """Return the layer, or `InputLayer`, of a symbolic tensor: `KerasTensor._keras_history`."""
    return tensor._keras_history.operation


# Training.


def dataset_of(iterator: Any) -> tf.data.Dataset | None:
    """Return the dataset behind the iterator that Keras gives its train function, `None` if there is none.

    Under a `tf.distribute` strategy it is that of this worker, of which each replica in turn takes an
    element. Nothing public leads back to it. `OwnedIterator._dataset`, `DistributedIterator._iterators`.
    """
    workers = getattr(iterator, "_iterators", [iterator])
    return getattr(workers[0], "_dataset", None) if len(workers) == 1 else None


def is_generated(dataset: tf.data.Dataset) -> bool:
    """Return whether a Python generator is anywhere behind a dataset: a second iterator takes its elements.

    `Dataset._inputs`, `Dataset._functions`: of `from_generator` nothing is left but an
    operation in a function.
    """
    graphs = [wrapper.function.graph.as_graph_def() for wrapper in dataset._functions()]
    nodes = [n for g in graphs for part in [g.node, *(f.node_def for f in g.library.function)] for n in part]
    return any(n.op == "GeneratorDataset" for n in nodes) or any(map(is_generated, dataset._inputs()))


def first_epoch_of(model: keras.Model) -> Any:
    """Return the epoch that `BackupAndRestore` has the next `fit` begin with: `Trainer._initial_epoch`."""
    return model._initial_epoch


def set_first_epoch(model: keras.Model, epoch: Any) -> None:
    """Set `first_epoch_of` a model, to an int or `None`."""
    model._initial_epoch = epoch


def learning_rate_of(optimizer: keras.optimizers.Optimizer) -> Rate:
    """Return the learning rate as an optimizer holds it: a variable, a schedule or a function.

    `optimizer.learning_rate` is the present number. `Optimizer._learning_rate`.
    """
    return optimizer._learning_rate


def set_learning_rate(optimizer: keras.optimizers.Optimizer, rate: Rate) -> None:
    """Put a variable, a schedule or a function in the place of `learning_rate_of` an optimizer.

    `optimizer.learning_rate = ...` assigns to the variable, and does not take a function in its stead.
    """
    optimizer._learning_rate = rate


def batches_seen_by(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Return the variable that counts the batches of an optimizer.

    `optimizer.iterations` counts updates, of which one may take several batches. `Optimizer._iterations`.
    """
    return optimizer._iterations


def updated_by(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the weights that an optimizer updates, once it is built: `Optimizer._trainable_variables`."""
    return list(optimizer._trainable_variables)


def moving_averages_of(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the averages of `updated_by` that an optimizer keeps with `use_ema`; none if it keeps none.

    `Optimizer._model_variables_moving_average`.
    """
    return list(getattr(optimizer, "_model_variables_moving_average", None) or [])


def second_moments_of(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return what an optimizer keeps of the squares of the gradients of `updated_by`, if anything.

    `_velocities` of Adam, its kind and `RMSprop`, `Adagrad._accumulators`.
    """
    names = ("_velocities", "_accumulators")
    return next((list(kept) for name in names if (kept := getattr(optimizer, name, None))), [])


def corrected_moments_of(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the second moments that Adam and its kind divide by 1 − β₂ᵗ, where t counts all steps.

    `Adam._velocities`, `Adam._velocity_hats`, `Muon.adam_velocities`.
    """
    if not (hasattr(optimizer, "beta_2") or hasattr(optimizer, "adam_beta_2")):
        return []
    names = ("_velocities", "_velocity_hats", "adam_velocities")
    return [v for name in names for v in getattr(optimizer, name, []) if v is not None]


def paired_state(
    optimizer: keras.optimizers.Optimizer, other: keras.optimizers.Optimizer
) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Yield the variables of two optimizers of one class and config, in pairs.

    Inside a `LossScaleOptimizer`, `optimizer.variables` lacks variables of some classes; they are then found
    among its attributes but `_trainable_variables` and `_variables`.
    """
    if len(optimizer.variables) == len(other.variables):
        yield from zip(optimizer.variables, other.variables, strict=True)
        return
    for name in vars(optimizer).keys() & vars(other).keys() - {"_trainable_variables", "_variables"}:
        kept = [vars(owner)[name] for owner in (optimizer, other)]
        for pair in zip(*(k if isinstance(k, (list, tuple)) else [k] for k in kept), strict=False):
            if all(isinstance(variable, keras.Variable) for variable in pair):
                yield pair


def compiled_with(model: keras.Model) -> dict[str, Any]:
    """Return the arguments that a model was compiled with, the optimizer and the metrics made anew.

    `get_compile_config` gives them serialised, and not all that the user's are made of can be read back.
    `Model._compile_config`.
    """

    def anew(part: Any) -> Any:
        with_state = isinstance(part, (keras.Metric, keras.optimizers.Optimizer))
        return type(part).from_config(part.get_config()) if with_state else part

    config = dict(model._compile_config.config)
    return {name: keras.tree.map_structure(anew, value, none_is_leaf=True) for name, value in config.items()}


# SavedModels.


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

    TensorFlow has no public way to leave a value out. `BaseResourceVariable._serialize_to_tensors` gives what
    a checkpoint holds of it, `_export_to_saved_model_graph` makes the copy that is exported. It is emptied.
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
