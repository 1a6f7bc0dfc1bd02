"""A SavedModel as small as the pruned model is, for TensorFlow Serving."""

import os
import re
import uuid

import keras
import tensorflow as tf

from lc_keras.export.packing import pack, unpack

_AUTOMATIC_NAME = re.compile(r"(input_layer|keras_tensor)(_\d+)?")


def export_saved_model(model, path, *, input_signature=None, overwrite=False, verbose=False):
    """Writes a model as a SavedModel for inference.

    What is written needs neither Keras nor this package: `tf.saved_model.load` and
    TensorFlow Serving read it. It has one function under two names, `serve` and
    `serving_default`, with any batch size. Each variable is written once, and weights
    with many zeros are written packed: the file's own initialisation unpacks them
    when it is loaded, so that calls run at the speed of the dense model.

    The directory appears under its name when it is complete, so that a server
    watching its parent never meets half a model.

    Args:
        model: Built `keras.Model`. A subclassed one must have been called on data.
        path: String or path-like, the directory to write, such as `"models/digits/1"`.
        input_signature: List of `tf.TensorSpec` or of structures of these, one for
            each positional argument of the model. `None` (default): as the model was
            built. A subclassed model does not record the types of its inputs; `None`
            then means its `input_dtype`.
        overwrite: Bool, default `False`. `True`: replaces the SavedModel in `path`.
        verbose: Bool, default `False`. `True`: prints what was written.

    Raises:
        TypeError: If `model` is not a `keras.Model`.
        ValueError: If the model is not built, or `path` is a file, or holds a
            SavedModel and `overwrite` is `False`, or holds anything else.

    Example:

    ```python
    lc_keras.export_saved_model(model, "models/digits/1")

    # In any process that has TensorFlow:
    served = tf.saved_model.load("models/digits/1")
    probabilities = served.serve(images)
    ```
    """
    if not isinstance(model, keras.Model):
        raise TypeError(
            "Expected `model` to be a keras.Model. "
            f"Received: {model!r} (of type {type(model).__name__})"
        )
    path = os.fspath(path).rstrip("/")
    _check_free(path, overwrite)
    if input_signature is None:
        input_signature = _input_signature(model)
    if len(input_signature) == 1 and isinstance(input_signature[0], tf.TensorSpec):
        (spec,) = input_signature
        input_signature = [tf.TensorSpec(spec.shape, spec.dtype, spec.name or "inputs")]
    module = _module(model, input_signature)

    unfinished = f"{path}.unfinished-{uuid.uuid4().hex}"
    try:
        signature = {"serve": module.serve, "serving_default": module.serve}
        tf.saved_model.save(module, unfinished, signatures=signature)
        if tf.io.gfile.exists(path):
            tf.io.gfile.rmtree(path)
        tf.io.gfile.rename(unfinished, path)
    finally:
        if tf.io.gfile.exists(unfinished):
            tf.io.gfile.rmtree(unfinished)
    if verbose:
        print(
            f"Wrote '{path}': {_size(path) / 1000:,.0f} kB, {len(module.packed)} weights packed, "
            f"signatures {', '.join(signature)}"
        )


class _PackedWeight(tf.Module):
    """A weight that is stored packed, beside an empty variable for its dense form."""

    def __init__(self, values, gaps, shape):
        super().__init__()
        self.values, self.gaps = tf.Variable(values), tf.Variable(gaps)
        self.shape = shape
        empty = tf.zeros([0] * len(shape), values.dtype)
        self.dense = tf.Variable(empty, shape=[None] * len(shape))

    def read(self):
        return tf.ensure_shape(self.dense, self.shape)

    def unpack(self):
        self.dense.assign(unpack(self.values, self.gaps, self.shape))


class _UnpackOnLoad(tf.saved_model.experimental.TrackableResource):
    """Unpacks weights where a loader initialises resources: once, after the variables."""

    def __init__(self, weights):
        super().__init__()
        self._weights = weights

    def _create_resource(self):
        # The variables are what it holds; a resource must have a handle.
        return tf.constant(0)

    def _initialize(self):
        for weight in self._weights:
            weight.unpack()


def _module(model, input_signature):
    """Returns a `tf.Module` whose `serve` is the model and which tracks what it uses."""
    packed = {}
    for i, variable in enumerate(model.variables):
        if keras.backend.is_float_dtype(variable.dtype):
            parts = pack(keras.ops.convert_to_numpy(variable))
            if parts is not None:
                packed[i] = _PackedWeight(*parts, tuple(variable.shape))

    @tf.function(input_signature=input_signature, autograph=False)
    def serve(*inputs):
        mapping = [(model.variables[i], weight.read()) for i, weight in packed.items()]
        with keras.StatelessScope(mapping) as scope:
            outputs = model(*inputs)
        # Only the weights are replaced: states, such as a random seed, still move on.
        for i, variable in enumerate(model.variables):
            value = scope.get_current_value(variable)
            if value is not None and i not in packed:
                variable.assign(value)
        return outputs

    module = tf.Module()
    module.serve = serve
    module.packed = list(packed.values())
    if packed:
        module.unpack_on_load = _UnpackOnLoad(module.packed)
    module.used = list(serve.get_concrete_function().variables)
    module.tables = [
        resource
        for resource in tf.train.TrackableView(model).descendants()
        if isinstance(resource, tf.saved_model.experimental.TrackableResource)
    ]
    return module


def _input_signature(model):
    inputs = getattr(model, "inputs", None)
    if not model.built or (inputs is None and not model.variables):
        raise ValueError(
            f"Expected a built model. Received: model '{model.name}', which is not built; "
            "call it on data first."
        )
    if isinstance(model, keras.Sequential):
        return [_spec(inputs[0].shape, inputs[0].dtype, inputs[0].name)]
    if inputs is not None:
        return [keras.tree.map_structure(lambda x: _spec(x.shape, x.dtype, x.name), model.input)]
    shapes = (model.get_build_config() or {}).values()
    if not shapes:
        raise ValueError(
            f"Model '{model.name}' does not record the shapes of its inputs. Call it on data "
            "first, or pass `input_signature`."
        )
    return [
        keras.tree.map_shape_structure(lambda shape: _spec(shape, model.input_dtype), structure)
        for structure in shapes
    ]


def _spec(shape, dtype, name=None):
    # A name that Keras made up would differ from run to run.
    if name is not None and _AUTOMATIC_NAME.fullmatch(name):
        name = None
    return tf.TensorSpec((None, *shape[1:]), dtype, name)


def _check_free(path, overwrite):
    if not tf.io.gfile.exists(path):
        return
    if not tf.io.gfile.isdir(path):
        raise ValueError(f"Expected `path` to be a directory. Received: the file '{path}'.")
    found = tf.io.gfile.listdir(path)
    if found and not overwrite:
        raise ValueError(
            f"Expected `path` to be new or empty. Received: '{path}', which holds "
            f"{', '.join(sorted(found)[:5])}; pass overwrite=True to replace a SavedModel."
        )
    if found and "saved_model.pb" not in found:
        raise ValueError(
            f"Expected `path` to hold a SavedModel to replace. Received: '{path}', which holds "
            f"{', '.join(sorted(found)[:5])}."
        )


def _size(path):
    return sum(
        tf.io.gfile.stat(os.path.join(folder, name)).length
        for folder, _, names in tf.io.gfile.walk(path)
        for name in names
    )
