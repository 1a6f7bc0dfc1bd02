import ast
import functools
import gc
import re
import weakref
from pathlib import Path
from types import SimpleNamespace

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager.polymorphic_function import attributes
from tensorflow.python.ops import script_ops

import lc_keras
from helpers import sequential
from lc_keras.internals import keras as of_keras
from lc_keras.internals import tensorflow as of_tensorflow
from lc_keras.internals.keras import replaced
from lc_keras.internals.tensorflow import compiled, emptied, kept_with_trace

ROOT = Path(lc_keras.__file__).parent


class Counting:
    """An object with a compiled method, like those each `fit` makes."""

    def __init__(self):
        self.traces = 0
        self.step = compiled(self._step)

    def _step(self, x):
        self.traces += 1
        return x + 1


def test_many_objects_are_traced_once_each_without_a_warning(caplog):
    for _ in range(8):
        one = Counting()
        assert [float(one.step(keras.ops.ones([]))) for _ in range(3)] == [2.0, 2.0, 2.0]
        assert one.traces == 1
    assert "retracing" not in caplog.text


def test_many_costs_are_traced_once_each_without_a_warning(caplog):
    for i in range(8):
        lc_keras.L0Constraint(i + 1).c_step([np.arange(10.0)], mu=1.0)
    assert "retracing" not in caplog.text


def test_methods_are_back_after_an_error():
    layer = keras.layers.Dense(2)
    layer.build((None, 2))
    before = layer(np.ones((1, 2))).numpy()
    with pytest.raises(KeyError), replaced([(layer, "call", lambda x, **_: x * 0)]):
        assert not layer(np.ones((1, 2))).numpy().any()
        raise KeyError
    np.testing.assert_array_equal(layer(np.ones((1, 2))).numpy(), before)
    assert "call" not in vars(layer)


def test_what_a_trace_reads_lives_as_long_as_the_trace():
    def traced(keep):
        @tf.function
        def reads(x):
            if keep:
                kept_with_trace(variable)
            return x + variable

        variable = tf.Variable(1.0)
        reads(2.0)
        # As in what traces for others, which the function itself does not hold.
        return reads.get_concrete_function(2.0), weakref.ref(variable)

    for keep in (True, False):
        function, variable = traced(keep)
        gc.collect()
        assert (variable() is not None) == keep
        if keep:
            assert function(tf.constant(2.0)) == 3.0
        del function
        gc.collect()
        assert variable() is None


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_trace_reads_on_what_was_emptied(jit_compile):
    mask, values = tf.Variable([True, False]), tf.Variable([1.0, 2.0])

    @tf.function(jit_compile=jit_compile)
    def reads(x):
        return tf.where(mask, x, 0.0) - values

    np.testing.assert_array_equal(reads(tf.constant([3.0, 4.0])), [2.0, -2.0])
    emptied(mask, True)
    emptied(values, 0.0)
    np.testing.assert_array_equal(reads(tf.constant([3.0, 4.0])), [3.0, 4.0])
    assert mask.numpy().shape == values.numpy().shape == ()


def test_methods_that_a_layer_has_of_its_own_are_back():
    layer = keras.layers.Dense(2)
    layer.build((None, 2))
    layer.call = own = lambda x: 3 * x
    with replaced([(layer, "call", lambda x: 0 * x)]):
        assert not layer(np.ones((1, 2))).numpy().any()
    assert vars(layer)["call"] is own and layer(np.ones((1, 2))).numpy().all()


# Private names of Keras and TensorFlow


def built(layer):
    layer.build((None, 3))
    return layer


def functional():
    x = keras.Input((5,))
    return keras.Model(x, keras.layers.Dense(2)(x))


def updating(name, **options):
    """An optimizer of one weight."""
    optimizer = getattr(keras.optimizers, name)(0.1, **options)
    optimizer.build([keras.Variable([1.0, 2.0])])
    return optimizer


@functools.cache
def parsed(path):
    return list(ast.walk(ast.parse(path.read_text())))


def private_names(path):
    """The private names that a file has after a dot or as strings, except the library's own."""
    own, inherited, nodes = defined(path), everywhere_defined(), parsed(path)
    middles = {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values[1:]}
    for node in nodes:
        if isinstance(node, ast.Attribute):
            name, of_self = node.attr, ast.unparse(node.value) in ("self", "cls", "super()")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in middles:
            name, of_self = node.value.partition(".")[0], False
        else:
            continue
        # A named tuple's `_replace` is public.
        if re.fullmatch(r"_[a-z]\w*", name) and name not in {*(inherited if of_self else own), "_replace"}:
            yield name


def defined(path):
    """The private names that a file gives to its functions, classes and objects."""
    names = set()
    for node in parsed(path):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names |= {node.attr} if ast.unparse(node.value) in ("self", "cls") else set()
    return names


@functools.cache
def everywhere_defined():
    return set().union(*map(defined, ROOT.rglob("*.py")))


# Where each private name that `lc_keras/internals` uses can be found.
def distributed_iterator():
    strategy = tf.distribute.MirroredStrategy(["CPU:1", "CPU:2"])
    return iter(strategy.experimental_distribute_dataset(tf.data.Dataset.range(4).batch(2)))


def compiled_model():
    model = sequential((3,), keras.layers.Dense(2))
    model.compile(
        "sgd", {"dense": lambda y, outputs: y}, metrics=[keras.metrics.BinaryAccuracy(threshold=0.2)]
    )
    return model


OWNERS = {
    "_omit_frequent_tracing_warning": lambda: tf.function(lambda x: x),
    "_serialize_to_tensors": lambda: tf.Variable(0.0),
    "_export_to_saved_model_graph": lambda: tf.Variable(0.0),
    "_flatten_layers": lambda: built(keras.layers.Dense(2)),
    "_trainable_variables": lambda: built(keras.layers.Dense(2)),
    "_non_trainable_variables": lambda: built(keras.layers.Dense(2)),
    "_use_gate": lambda: keras.layers.MultiHeadAttention(1, 2),
    "_output_shape": lambda: keras.layers.Lambda(abs),
    "_functional": lambda: sequential((5,), keras.layers.Dense(2)),
    "_nodes_by_depth": functional,
    "_run_through_graph": functional,
    "_keras_history": lambda: keras.Input((5,)),
    "_keras_mask": lambda: keras.layers.Masking()(keras.Input((5, 2))),
    "_inbound_nodes": lambda: keras.layers.Dense(2),
    "_outbound_nodes": lambda: keras.layers.Dense(2),
    "_initial_epoch": lambda: keras.Sequential(),
    "_symbolic_build": lambda: keras.Sequential(),
    "_compile_config": lambda: compiled_model(),
    "_path": lambda: keras.Variable(0.0),
    "_learning_rate": lambda: updating("Adam"),
    "_iterations": lambda: updating("Adam"),
    "_variables": lambda: updating("Adam"),
    "_model_variables_moving_average": lambda: updating("Adam", use_ema=True),
    "_velocities": lambda: updating("Adam"),
    "_velocity_hats": lambda: updating("Adam", amsgrad=True),
    "_accumulators": lambda: updating("Adagrad"),
    "_dataset": lambda: iter(tf.data.Dataset.range(1)),
    "_iterators": distributed_iterator,
    "_inputs": lambda: tf.data.Dataset.range(1),
    "_functions": lambda: tf.data.Dataset.range(1),
    "_py_funcs": lambda: script_ops,
    "_noinline": lambda: type("Allowed", (), dict.fromkeys(attributes.MONOMORPHIC_FUNCTION_ALLOWLIST)),
    "_generator": lambda: tf.data.Dataset._GeneratorState(abs),
}


@pytest.mark.parametrize("name", OWNERS)
def test_keras_and_tensorflow_still_have(name):
    assert hasattr(OWNERS[name](), name)


@pytest.mark.parametrize(
    "optimizer, second, corrected",
    [("SGD", 0, 0), ("RMSprop", 1, 0), ("Adagrad", 1, 0), ("Lion", 0, 0), ("Adam", 1, 1)],
)
def test_moments(optimizer, second, corrected):
    optimizer = updating(optimizer)
    assert len(of_keras.second_moments_of(optimizer)) == second
    assert len(of_keras.corrected_moments_of(optimizer)) == corrected


def test_an_optimizer_in_its_own_words():
    optimizer = updating("Adam", gradient_accumulation_steps=2, use_ema=True)
    (weight,) = of_keras.updated_by(optimizer)
    for _ in range(2):
        optimizer.apply([tf.constant([1.0, 1.0])])
    assert (int(of_keras.batches_seen_by(optimizer)), int(optimizer.iterations)) == (2, 1)
    assert of_keras.moving_averages_of(optimizer)[0].shape == weight.shape
    rate = of_keras.learning_rate_of(optimizer)
    of_keras.set_learning_rate(optimizer, lambda: tf.constant(0.5))
    assert float(optimizer.learning_rate) == 0.5
    of_keras.set_learning_rate(optimizer, rate)
    assert optimizer.learning_rate is rate
    assert not of_keras.updated_by(keras.optimizers.SGD()) and not of_keras.moving_averages_of(
        updating("SGD")
    )


@pytest.mark.parametrize("name", ["Adam", "Muon"])
@pytest.mark.parametrize("scaled", [False, True])
def test_the_states_of_two_optimizers_in_pairs(name, scaled):
    pair = [getattr(keras.optimizers, name)(0.1) for _ in range(2)]
    for optimizer in pair:
        whole = keras.optimizers.LossScaleOptimizer(optimizer) if scaled else optimizer
        whole.build([keras.Variable(np.ones((2, 3)), name="w")])
    paired = list(of_keras.paired_state(*pair))
    assert {one.name for one, _ in paired} >= {"iteration", "learning_rate"} and len(paired) > 2
    assert all(one is not two and one.name == two.name for one, two in paired)


def test_what_a_model_was_compiled_with():
    model = compiled_model()
    model.optimizer.learning_rate = 0.25
    again = of_keras.compiled_with(model)
    assert again["optimizer"] is not model.optimizer and float(again["optimizer"].learning_rate) == 0.25
    (metric,) = again["metrics"]
    assert metric.get_config()["threshold"] == 0.2
    assert again["loss"] == of_keras.compiled_with(model)["loss"]  # the user's own function
    keras.Sequential().compile(**again)


def test_the_first_epoch_of_a_fit():
    model = sequential((3,), keras.layers.Dense(1))
    model.compile(loss="mse")
    assert of_keras.first_epoch_of(model) is None
    of_keras.set_first_epoch(model, 2)
    history = model.fit(np.ones((2, 3)), np.ones(2), epochs=4, verbose=0)
    assert of_keras.first_epoch_of(model) == 2 and history.epoch == [2, 3]


@pytest.mark.parametrize(
    "batch, is_built",
    [
        ((tf.TensorSpec((None, 3)), tf.TensorSpec((None,), tf.int64)), True),
        ((tf.SparseTensorSpec((None, 3)), tf.TensorSpec((None,), tf.int64)), False),
        ((tf.RaggedTensorSpec((None, None)), tf.TensorSpec((None,), tf.int64)), False),
        ((tf.TensorSpec((None, 3)), tf.TensorSpec(None, tf.int64)), False),
        (None, False),
    ],
)
def test_a_model_makes_what_a_train_step_makes(batch, is_built):
    model = sequential((3,), keras.layers.Dense(2))
    model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
    of_keras.build_for_training(model, SimpleNamespace(element_spec=batch))
    made = [*model.optimizer.variables, *model.metrics_variables]
    assert model.optimizer.built == is_built
    model.train_on_batch(np.ones((2, 3)), np.ones(2))
    now = [*model.optimizer.variables, *model.metrics_variables]
    assert (list(map(id, made)) == list(map(id, now))) == is_built


def test_the_dataset_behind_an_iterator():
    dataset = tf.data.Dataset.range(4).batch(2)
    assert of_tensorflow.dataset_of(iter(dataset)) is dataset
    assert of_tensorflow.dataset_of(iter([1])) is None
    assert [list(part) for part in of_tensorflow.dataset_of(distributed_iterator())] == [[0], [1], [2], [3]]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8", "bool"])
def test_the_values_of_a_variable_without_a_copy(dtype):
    variable = keras.Variable(np.eye(3), dtype=dtype)
    view = of_tensorflow.view_of(variable)
    assert view.dtype == variable.numpy().dtype and np.array_equal(view, np.eye(3).astype(view.dtype))
    assert view.flags.owndata == (dtype == "bfloat16")
    variable.assign(np.ones((3, 3)))
    assert np.array_equal(view, np.eye(3).astype(view.dtype))  # others may hold it


@pytest.mark.parametrize("inside", [False, True])
def test_datasets_of_generators(inside):
    def numbers():
        return iter([1])

    def generated(_=0):
        return tf.data.Dataset.from_generator(numbers, output_signature=tf.TensorSpec((), "int64"))

    plain = tf.data.Dataset.range(4).flat_map(tf.data.Dataset.range).map(lambda x: x + 1).prefetch(2)
    for module, once in ("keras.src.adapters", True), ("keras_of_mine", False):
        numbers.__module__ = module
        made = tf.data.Dataset.range(4).interleave(generated) if inside else generated()
        assert of_tensorflow.is_read_once(tf.data.Dataset.zip(plain, made.batch(2))) == once


def test_every_private_name_is_listed():
    found = set().union(*map(private_names, (ROOT / "internals").glob("*.py")))
    assert found - {"_lc_keras_variables"} == set(OWNERS)


# The private names of KerasHub are in a file of their own.
PATHS = [path for path in ROOT.rglob("*.py") if "internals" not in path.parts and path.name != "keras_hub.py"]


def test_kerashub_still_has():
    hub = pytest.importorskip("keras_hub")
    found = set(private_names(ROOT / "model" / "flow" / "keras_hub.py"))
    assert all(hasattr(hub.layers.TransformerDecoder(4, 1), name) for name in found)
    assert issubclass(hub.layers.CachedMultiHeadAttention, keras.layers.MultiHeadAttention)


@pytest.mark.parametrize("path", sorted(PATHS), ids=lambda path: str(path.relative_to(ROOT)))
def test_private_names_are_used_in_internals_alone(path):
    assert not list(private_names(path))
    nodes = parsed(path)
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = [
        f"{getattr(node, 'module', None) or ''}.{a.name}".strip(".") for node in imports for a in node.names
    ]
    names += [ast.unparse(node) for node in nodes if isinstance(node, ast.Attribute)]
    assert not [name for name in names if name.startswith(("keras.src", "tensorflow.python", "tf.python"))]
