import functools
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras import shrink
from lc_keras.export import export_litert, export_saved_model
from lc_keras.export.resources import resources_of

L = keras.layers
TEXT = [tf.TensorSpec([None], tf.string, "text")]


def ids_net():
    ids = keras.Input((4,), dtype="int64", name="ids")
    return keras.Model(ids, L.Dense(3, name="logits")(L.GlobalAveragePooling1D()(L.Embedding(9, 5)(ids))))


def vectorization():
    layer = L.TextVectorization(output_sequence_length=4)
    layer.adapt(["a b c"])
    return layer


WORDS = vectorization()


class Service:
    """An object of a kind that TensorFlow does not track."""

    def __init__(self, words):
        self.parts = {"words": [words]}

    def words(self, text):
        return self.parts["words"][0](text)


def by_global(model):
    return lambda text: model(WORDS(text))


def by_closure(model):
    words = vectorization()
    return lambda text: (lambda: model(words(text)))()


def by_method(model):
    service = Service(vectorization())
    return lambda text: model(service.words(text))


def by_partial(model):
    return functools.partial(lambda words, text: model(words(text)), vectorization())


def by_default(model):
    def function(text, words=vectorization()):  # noqa: B008
        return model(words(text))

    return lambda text: function(text)


def by_keyword(model):
    def function(text, *, words=vectorization()):  # noqa: B008
        return model(words(text))

    return function


def by_function(model):
    words = vectorization()
    return tf.function(lambda text: model(words(text)))


def by_module(model):
    this = sys.modules[__name__]
    return lambda text: model(this.WORDS(text))


def by_function_of_no_module(model):
    names = {"model": model, "words": vectorization()}
    exec("def function(text): return model(words(text))", names)
    assert names["function"].__module__ is None
    return names["function"]


@pytest.mark.parametrize(
    "make",
    [
        by_global,
        by_closure,
        by_method,
        by_partial,
        by_default,
        by_keyword,
        by_function,
        by_module,
        by_function_of_no_module,
    ],
    ids=lambda f: f.__name__,
)
def test_the_table_of_a_function_is_found(make):
    model = ids_net()
    found = resources_of(model, [make(model)])
    assert any(isinstance(part, type(WORDS._lookup_layer.lookup_table)) for part in found)
    if make in (by_global, by_module):
        assert any(part is WORDS._lookup_layer.lookup_table for part in found)
    assert not resources_of(model, [model])


@pytest.mark.parametrize("make", [by_closure, by_module])
def test_a_signature_with_a_table_that_the_model_does_not_have(tmp_path, make):
    model = ids_net()
    function = make(model)
    export_saved_model(model, tmp_path / "1", signatures={"text": (function, TEXT)})
    served = tf.saved_model.load(tmp_path / "1").signatures["text"]
    text = tf.constant(["a b", "c"])
    np.testing.assert_allclose(served(text=text)["logits"], function(text), rtol=1e-5, atol=1e-6)


def test_a_signature_with_weights_of_another_model(tmp_path):
    model, other = ids_net(), keras.Sequential([keras.Input((3,)), L.Dense(2)])
    further = {"both": (lambda ids: other(model(ids)), [tf.TensorSpec([None, 4], tf.int64, "ids")])}
    export_saved_model(model, tmp_path / "1", signatures=further)
    served = tf.saved_model.load(tmp_path / "1").signatures["both"]
    ids = tf.constant([[1, 2, 3, 4]], tf.int64)
    np.testing.assert_allclose(*served(ids=ids).values(), other(model(ids)), rtol=1e-5, atol=1e-6)


def test_a_table_that_nothing_leads_to(tmp_path):
    model = ids_net()
    concrete = tf.function(by_closure(model), input_signature=TEXT).get_concrete_function()
    with pytest.raises(ValueError, match="what their functions refer to by name"):
        export_saved_model(model, tmp_path / "1", signatures={"text": (concrete, TEXT)})
    assert not (tmp_path / "1").exists()


class Scale(L.Layer):
    def __init__(self, path):
        super().__init__()
        # Keras does not look for assets in a list.
        self.assets = [{"scale": tf.saved_model.Asset(path)}]

    def call(self, x):
        return x * tf.strings.to_number(tf.io.read_file(self.assets[0]["scale"].asset_path))


class Looked(L.Layer):
    def __init__(self, path):
        super().__init__()
        keys = tf.lookup.TextFileInitializer(
            path, tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
        )
        self.table = tf.lookup.StaticHashTable(keys, -1)

    def call(self, x):
        return self.table.lookup(x)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, "int64")


def test_files_are_copied(tmp_path):
    scale, words = tmp_path / "scale.txt", tmp_path / "words.txt"
    scale.write_text("3.0")
    words.write_text("a\nb\nc")
    x, text = keras.Input((2,), name="x"), keras.Input((1,), dtype="string", name="text")
    looked = keras.ops.cast(Looked(str(words))(text), "float32")
    model = keras.Model([x, text], L.Dense(1, name="y")(L.Concatenate()([Scale(str(scale))(x), looked])))
    data = {"x": tf.ones((2, 2)), "text": tf.constant([["c"], ["?"]])}
    expected = model(list(data.values()))
    export_saved_model(model, tmp_path / "here" / "1")
    # As if on another machine.
    scale.unlink()
    words.unlink()
    (tmp_path / "here").rename(tmp_path / "there")
    served = tf.saved_model.load(tmp_path / "there" / "1").signatures["serving_default"]
    np.testing.assert_allclose(served(**data)["y"], expected, rtol=1e-5, atol=1e-6)


def test_ragged_and_sparse_inputs(tmp_path):
    tokens = keras.Input((None,), ragged=True, dtype="int64", name="tokens")
    counts = keras.Input((7,), sparse=True, name="counts")
    seen = L.CategoryEncoding(10, output_mode="multi_hot")(tokens)
    model = keras.Model([tokens, counts], L.Dense(1, name="y")(L.Concatenate()([seen, L.Dense(3)(counts)])))
    x, z = tf.ragged.constant([[1, 2, 3], [4]], tf.int64), tf.sparse.from_dense(np.eye(2, 7, dtype="float32"))
    expected = model([x, z])
    export_saved_model(model, tmp_path / "1")
    loaded = tf.saved_model.load(tmp_path / "1")
    served = loaded.signatures["serving_default"](
        tokens_values=x.values,
        tokens_row_splits=x.row_splits,
        counts_indices=z.indices,
        counts_values=z.values,
        counts_dense_shape=z.dense_shape,
    )
    for answer in (served["y"], loaded.serve([x, z])):
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)
    smaller = shrink(model)
    assert [(i.ragged, i.sparse) for i in smaller.inputs] == [(True, False), (False, True)]
    with pytest.raises(ValueError, match="Expected dense inputs"):
        export_litert(model, tmp_path / "net.tflite")


def test_ragged_outputs(tmp_path):
    words = L.TextVectorization(vocabulary=["a", "b"], ragged=True, name="ids")
    text = keras.Input((), dtype="string", name="text")
    model = keras.Model(
        text,
        [
            words(text),
            L.Dense(1, name="y")(L.TextVectorization(vocabulary=["a"], output_mode="multi_hot")(text)),
        ],
    )
    export_saved_model(model, tmp_path / "1")
    served = tf.saved_model.load(tmp_path / "1").signatures["serving_default"](
        text=tf.constant(["a b a", "b"])
    )
    parts = [served[name] for name in served if name.endswith(("_values", "_row_splits"))]
    assert sorted(part.numpy().tolist() for part in parts) == [[0, 3, 4], [2, 3, 2, 3]]


def test_a_fixed_batch_is_served_as_such(tmp_path):
    x = keras.Input((6,), batch_size=4, name="x")
    model = keras.Model(x, L.Dense(2, name="y")(keras.ops.reshape(L.Dense(6)(x), (4, -1, 3))))
    export_saved_model(model, tmp_path / "1")
    served = tf.saved_model.load(tmp_path / "1").signatures["serving_default"]
    assert served.structured_outputs["y"].shape == (4, 2, 2)
    with pytest.raises((TypeError, tf.errors.InvalidArgumentError)):
        served(x=tf.zeros((8, 6)))
