"""Use what is private to Keras."""

import contextlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import keras
import tensorflow as tf
from keras.src.random.seed_generator import global_seed_generator
from keras.src.saving.serialization_lib import ObjectSharingScope

# A call of a layer in a graph, which has no public class.
Call: TypeAlias = Any
# What an optimizer takes as a learning rate.
Rate: TypeAlias = "keras.Variable | keras.optimizers.schedules.LearningRateSchedule | Callable[[], tf.Tensor]"


def is_of_keras(made: object) -> bool:
    """Return whether Keras defines a function, or the class of an object."""
    return str(getattr(made, "__module__", None)).partition(".")[0] == "keras"


@contextlib.contextmanager
def replaced(attributes: Iterable[tuple[keras.Layer, str, object]]) -> Iterator[None]:
    """Replace attributes of single layers by name, methods by functions without `self`, and put them back."""
    with contextlib.ExitStack() as stack:
        for layer, name, value in attributes:
            # Past `Layer.__setattr__`, which would track the value.
            if name in vars(layer):
                stack.callback(object.__setattr__, layer, name, vars(layer)[name])
            else:
                stack.callback(object.__delattr__, layer, name)
            object.__setattr__(layer, name, value)
        yield


def layers_in(layer: keras.Layer, include_self: bool = True) -> list[keras.Layer]:
    """Return a layer or model and all layers inside it, at any depth, each once.

    `model.layers` has only those at the first depth. `Layer._flatten_layers`.
    """
    return list(layer._flatten_layers(include_self=include_self))


def created_by(layer: keras.Layer) -> list[keras.Variable]:
    """Return the variables that a layer itself has created, without those of layers inside it.

    `layer.variables` has both. `Layer._trainable_variables` and `_non_trainable_variables`.
    """
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def states_of(layer: keras.Layer) -> list[keras.Variable]:
    """Return the variables that a layer itself has created as not trainable, such as moving averages.

    `layer.non_trainable_variables` also has frozen weights and random seeds.
    `Layer._non_trainable_variables`.
    """
    return list(layer._non_trainable_variables)


def global_seed() -> keras.Variable:
    """Return the state of the random numbers that belong to no layer.

    `keras.random.normal(shape)` without a seed advances it. `keras.src.random.seed_generator` makes it.
    """
    return global_seed_generator().state


def is_gated(layer: keras.layers.MultiHeadAttention) -> bool:
    """Return whether the attention multiplies its heads by a gate.

    Its config says so, too, but may not be available. `MultiHeadAttention._use_gate`.
    """
    return bool(layer._use_gate)


def output_shape_of(layer: keras.layers.Lambda) -> Any:
    """Return the `output_shape` that a Lambda layer was given.

    If it is a function, the config has it as text. `Lambda._output_shape`.
    """
    return layer._output_shape


def copied_together(objects: Sequence[keras.Layer]) -> list[keras.Layer]:
    """Return copies of layers, with new weights; what several of the layers share, their copies share, too.

    Keras does the same when it saves and loads a model. `serialization_lib.ObjectSharingScope`.
    """
    classes = {type(part) for layer in objects for part in layers_in(layer)}
    named = {name(c): c for c in classes for name in (keras.saving.get_registered_name, lambda c: c.__name__)}
    with ObjectSharingScope():
        configs = [keras.saving.serialize_keras_object(layer) for layer in objects]
    with ObjectSharingScope():
        return [keras.saving.deserialize_keras_object(config, named) for config in configs]


def mask_of(tensor: keras.KerasTensor) -> keras.KerasTensor | None:
    """Return the mask that a tensor carries. `KerasTensor._keras_mask`."""
    return getattr(tensor, "_keras_mask", None)


def set_mask(tensor: keras.KerasTensor, mask: keras.KerasTensor | None) -> None:
    tensor._keras_mask = mask


@contextlib.contextmanager
def without_traces(layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Erase that layers were called on tensors. `Operation._inbound_nodes`, `_outbound_nodes`."""
    kept = [(nodes, len(nodes)) for one in layers for nodes in (one._inbound_nodes, one._outbound_nodes)]
    try:
        yield
    finally:
        for nodes, count in kept:
            del nodes[count:]


def functional_class(model: keras.Model) -> type[keras.Model] | None:
    """Return the class of models made by `keras.Model(inputs, outputs)`, `None` if this model is not one.

    It has no public name. `keras.src.models.Functional`.
    """
    return next((c for c in type(model).__mro__ if c.__name__ == "Functional"), None)


def as_functional(model: keras.Model) -> keras.Model:
    """Return the graph of a model: the model itself, or the one that a `Sequential` keeps.

    The graph is `None` if a `Sequential` is not built. `Sequential._functional`.
    """
    return model._functional if isinstance(model, keras.Sequential) else model


def calls_in(functional: keras.Model) -> list[Call]:
    """Return the calls of layers in a graph, with those of its inputs, in an order in which they can run.

    `Function._nodes_by_depth`: the deepest come first.
    """
    return [call for _, calls in sorted(functional._nodes_by_depth.items(), reverse=True) for call in calls]


def call_again(
    functional: keras.Model,
    inputs: Sequence[keras.KerasTensor],
    instead: Callable[[keras.Layer], keras.Layer],
) -> Any:
    """Return the outputs of a graph that is called on other inputs, with the layers that `instead` returns.

    `keras.models.clone_model` remakes models, not layers. `Function._run_through_graph`.
    """
    return functional._run_through_graph(inputs, operation_fn=lambda layer: with_masks(instead(layer)))


def with_masks(layer: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls a layer with the masks of its inputs as keyword arguments.

    Keras finds the masks itself, but leaves no record of this in the graph if there are other keyword
    arguments. When the graph runs, the inputs may have lost them: attention takes them off. `Layer.__call__`.
    """
    if not isinstance(layer, keras.Layer):
        return layer
    signature = inspect.signature(layer.call)

    def called(*args: Any, **kwargs: Any) -> Any:
        given = signature.bind(*args, **kwargs).arguments
        tensors = {name: value for name, value in given.items() if _is_symbolic(value)}
        masks = {
            "mask" if len(tensors) == 1 else f"{name}_mask": keras.tree.map_structure(mask_of, value)
            for name, value in tensors.items()
        }
        missing = {
            name: mask
            for name, mask in masks.items()
            if name in signature.parameters and given.get(name) is None and _is_symbolic(mask)
        }
        return layer(*args, **kwargs | missing)

    return called


def _is_symbolic(value: Any) -> bool:
    return any(isinstance(part, keras.KerasTensor) for part in keras.tree.flatten(value))


def source_of(tensor: keras.KerasTensor) -> keras.Layer:
    """Return the layer, or `InputLayer`, of a symbolic tensor: `KerasTensor._keras_history`."""
    return tensor._keras_history.operation


def inputs_of(tensors: Iterable[keras.KerasTensor]) -> list[keras.KerasTensor]:
    """Return the inputs that symbolic tensors are made from.

    `KerasTensor._keras_history`, `Operation._inbound_nodes`.
    """
    found, seen, left = [], set(), list(tensors)
    while left:
        tensor = left.pop()
        if id(tensor) not in seen:
            seen.add(id(tensor))
            node = tensor._keras_history.operation._inbound_nodes[tensor._keras_history.node_index]
            found += [tensor] if node.is_input else []
            left += node.input_tensors
    return found


def first_epoch_of(model: keras.Model) -> Any:
    """Return the epoch that `BackupAndRestore` has the next `fit` begin with: `Trainer._initial_epoch`."""
    return model._initial_epoch


def set_first_epoch(model: keras.Model, epoch: Any) -> None:
    """Set `first_epoch_of` a model, to an int or `None`."""
    model._initial_epoch = epoch


def build_for_training(model: keras.Model, iterator: object) -> None:
    """Have a model create what its first train step would create: the state of optimizer, loss and metrics.

    Keras traces a train step twice if it creates variables. With data other than dense tensors, or with a
    `train_step` of the user's, the train step still creates what is missing. `Trainer._symbolic_build`.

    Args:
        model: `keras.Model`, compiled.
        iterator: Iterator over the batches that the model will be trained on; none is taken.
    """
    batch = getattr(iterator, "element_spec", None)
    are_dense = all(type(part) is tf.TensorSpec and part.shape.rank for part in keras.tree.flatten(batch))
    if are_dense and not model.run_eagerly and is_of_keras(model.train_step):
        # A model that cannot be called on symbolic tensors can still be trained.
        with contextlib.suppress(Exception):
            model._symbolic_build(data_batch=batch)


def learning_rate_of(optimizer: keras.optimizers.Optimizer) -> Rate:
    """Return the learning rate as an optimizer holds it: a variable, a schedule or a function.

    `optimizer.learning_rate` is the current number. `Optimizer._learning_rate`.
    """
    return optimizer._learning_rate


def set_learning_rate(optimizer: keras.optimizers.Optimizer, rate: Rate) -> None:
    """Replace the `learning_rate_of` an optimizer by a variable, a schedule or a function.

    `optimizer.learning_rate = ...` assigns to the variable, and does not take a function in its place.
    """
    optimizer._learning_rate = rate


def batches_seen_by(optimizer: keras.optimizers.Optimizer) -> keras.Variable:
    """Return the variable that counts the batches of an optimizer.

    `optimizer.iterations` counts updates, each of which may take several batches. `Optimizer._iterations`.
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
    """Return what an optimizer keeps of the squared gradients of `updated_by`, if anything.

    `_velocities` of Adam, its relatives and `RMSprop`, and `Adagrad._accumulators`.
    """
    names = ("_velocities", "_accumulators")
    return next((list(kept) for name in names if (kept := getattr(optimizer, name, None))), [])


def corrected_moments_of(optimizer: keras.optimizers.Optimizer) -> list[keras.Variable]:
    """Return the second moments that Adam and its relatives divide by 1 − β₂ᵗ, where t counts all steps.

    `Adam._velocities`, `Adam._velocity_hats`, `Muon.adam_velocities`.
    """
    if not (hasattr(optimizer, "beta_2") or hasattr(optimizer, "adam_beta_2")):
        return []
    names = ("_velocities", "_velocity_hats", "adam_velocities")
    return [v for name in names for v in getattr(optimizer, name, []) if v is not None]


def paired_state(
    optimizer: keras.optimizers.Optimizer, other: keras.optimizers.Optimizer
) -> Iterator[tuple[keras.Variable, keras.Variable]]:
    """Yield the variables of two optimizers of the same class and config, in pairs.

    Inside a `LossScaleOptimizer`, `optimizer.variables` lacks variables of some classes. They are then found
    among the attributes other than `_trainable_variables` and `_variables`.
    """
    if len(optimizer.variables) == len(other.variables):
        yield from zip(optimizer.variables, other.variables, strict=True)
        return
    for name in vars(optimizer).keys() & vars(other).keys() - {"_trainable_variables", "_variables"}:
        kept = [vars(owner)[name] for owner in (optimizer, other)]
        for pair in zip(*(k if isinstance(k, (list, tuple)) else [k] for k in kept), strict=False):
            if all(isinstance(variable, keras.Variable) for variable in pair):
                yield pair


def name_weights(model: keras.Model, paths: Sequence[str]) -> None:
    """Give the weights of a model other paths.

    A copy of a nested `Sequential` has its weights under paths without the name of that model.
    `Variable._path`.
    """
    for weight, path in zip(model.weights, paths, strict=True):
        weight._path = path


def compiled_with(model: keras.Model) -> dict[str, Any]:
    """Return the arguments that a model was compiled with, the optimizer and the metrics made anew.

    `get_compile_config` returns them serialised, and not every part of the user's own can be read back.
    `Model._compile_config`.
    """

    def anew(part: Any) -> Any:
        with_state = isinstance(part, (keras.Metric, keras.optimizers.Optimizer))
        return type(part).from_config(part.get_config()) if with_state else part

    config = dict(model._compile_config.config)
    return {name: keras.tree.map_structure(anew, value, none_is_leaf=True) for name, value in config.items()}
