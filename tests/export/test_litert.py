import dataclasses
import os
import sys
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras import Grid, L0Constraint
from lc_keras.baselines import compress_directly
from lc_keras.export import converter, export_litert, litert
from lc_keras.export.converter import Converter

pytest.importorskip("ai_edge_litert")
from ai_edge_litert.interpreter import Interpreter


def prune(model, density):
    for variable in model.trainable_variables:
        if len(variable.shape) >= 2:
            variable.assign(variable * (np.random.random(variable.shape) < density))
    return model


def mlp():
    layers = [keras.layers.Dense(300, "relu"), keras.layers.Dense(10, name="logits")]
    return keras.Sequential([keras.Input((200,), name="pixels"), *layers])


def convolutions():
    layers = [
        keras.layers.Conv2D(16, 3, activation="relu"),
        keras.layers.BatchNormalization(),
        keras.layers.Conv2D(64, 1, activation="relu"),
        keras.layers.Conv2D(64, 1, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(5, name="logits"),
    ]
    return keras.Sequential([keras.Input((12, 12, 3), name="pixels"), *layers])


def run(path, x):
    runner = Interpreter(model_path=str(path)).get_signature_runner("serving_default")
    return runner(pixels=x)["logits"]


def weights(path):
    """The constants of a file that have two or more axes, in their stored types."""
    interpreter = Interpreter(model_path=str(path))
    found = []
    for detail in interpreter.get_tensor_details():
        try:
            tensor = interpreter.get_tensor(detail["index"])
        except ValueError:  # not a constant
            continue
        if tensor.ndim >= 2:
            found.append(tensor)
    return found


@pytest.mark.parametrize(
    "build, quantize, tolerance",
    [(convolutions, None, 1e-5), (convolutions, "float16", 2e-3), (mlp, "int8", 0.08)],
)
def test_answers_as_keras(tmp_path, build, quantize, tolerance):
    model = prune(build(), 0.1)
    x = np.random.normal(size=(8, *model.input_shape[1:])).astype("float32")
    exported = export_litert(
        model, tmp_path / "net.tflite", quantize=quantize, representative_data=[x], batch_size=4
    )
    expected = np.asarray(model(x))
    answers = np.concatenate([run(tmp_path / "net.tflite", part) for part in (x[:4], x[4:])])
    difference = np.abs(answers - expected).max() / np.abs(expected).max()
    assert difference < tolerance
    on_others = "on which it was calibrated: on others it may be further off" in str(exported)
    assert "on 8 of `representative_data`" in str(exported) and on_others == (quantize == "int8")
    assert (
        exported.slow
        == (exported.sparse and quantize == "int8")
        == ("some three times slower" in str(exported))
    )
    assert exported.error == pytest.approx(difference, abs=1e-4) and f"{exported.error:.1g}" in str(exported)
    assert exported.nbytes == (tmp_path / "net.tflite").stat().st_size


@pytest.mark.parametrize("density", [1.0, pytest.param(0.05, marks=pytest.mark.slow), 0.01])
def test_the_smaller_of_sparse_and_dense(tmp_path, density):
    model = prune(mlp(), density)
    dense = export_litert(model, tmp_path / "dense.tflite", sparse=False)
    auto = export_litert(model, tmp_path / "auto.tflite")
    assert not dense.sparse and dense.nbytes == dense.dense_nbytes == auto.dense_nbytes
    assert auto.sparse == (density < 1) and auto.nbytes <= dense.nbytes
    if density == 0.05:
        assert auto.nbytes < 0.12 * dense.nbytes
    x = np.random.normal(size=(1, 200)).astype("float32")
    np.testing.assert_allclose(run(tmp_path / "auto.tflite", x), model(x), rtol=1e-4, atol=1e-5)


def test_a_quantised_file_takes_any_batch(tmp_path):
    model = mlp()
    x = np.random.default_rng(0).normal(size=(20, 200)).astype("float32")
    path = tmp_path / "net.tflite"
    export_litert(model, path, quantize="int8", representative_data=[x], batch_size="any", sparse=False)
    interpreter = Interpreter(str(path))
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], [5, 200])
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x[:5])
    interpreter.invoke()
    answers, expected = (
        interpreter.get_tensor(interpreter.get_output_details()[0]["index"]),
        np.asarray(model(x[:5])),
    )
    assert np.abs(answers - expected).max() < 0.1 * np.abs(expected).max()


def test_zeros_stay_zero_under_quantisation(tmp_path):
    model = prune(mlp(), 0.1)
    x = np.random.normal(size=(20, 200))
    zeros = sorted(int(np.sum(np.asarray(layer.kernel) == 0)) for layer in model.layers)
    for quantize in ("float16", "int8"):
        path = tmp_path / f"{quantize}.tflite"
        export_litert(model, path, quantize=quantize, representative_data=[x], sparse=False)
        stored = [w for w in weights(path) if w.dtype == quantize and w.size in (60_000, 3_000)]
        assert len(stored) == 2
        # Rounding may add zeros but must not lose any, as it would with an affine zero point.
        for before, after in zip(zeros, sorted(int(np.sum(w == 0)) for w in stored), strict=True):
            assert before <= after < before + 0.02 * before


def test_an_answer_that_is_no_number_is_far_from_any():
    good = {"a": np.ones(2), "b": np.ones(3)}
    assert litert._difference(good, good) == 0
    for name in good:
        bad = good | {name: good[name] * np.nan}
        assert np.isnan(litert._difference(bad, good)) and litert._difference(bad, bad) == 0


def test_a_file_that_appeared_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "net.tflite"

    def data():
        path.write_text("of another process")
        yield np.ones((2, 4), "float32")

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="which exists"):
        export_litert(model, path, representative_data=data, sparse=False)
    assert path.read_text() == "of another process" and os.listdir(tmp_path) == ["net.tflite"]


def test_inputs_keep_their_names_under_a_signature_without(tmp_path):
    model = keras.Sequential([keras.Input((4,), name="pixels"), keras.layers.Dense(2)])
    export_litert(model, tmp_path / "net.tflite", input_signature=[tf.TensorSpec([1, 4])], sparse=False)
    runner = Interpreter(model_path=str(tmp_path / "net.tflite")).get_signature_runner("serving_default")
    assert list(runner.get_input_details()) == ["pixels"]


@pytest.mark.parametrize("answers", [np.nan, RuntimeError("failed to prepare")], ids=["nan", "fails"])
def test_a_sparse_file_that_does_not_run_is_not_used(tmp_path, monkeypatch, answers):
    model, result = prune(mlp(), 0.05), Converter.result

    def misbehaves(converter, name):
        converted = result(converter, name)
        if name == "dense":
            return converted
        if isinstance(answers, Exception):
            raise answers
        outputs = {name: output + answers for name, output in converted.answers.items()}
        return dataclasses.replace(converted, answers=outputs)

    monkeypatch.setattr(Converter, "result", misbehaves)
    exported = export_litert(model, tmp_path / "net.tflite")
    assert not exported.sparse and exported.nbytes == exported.dense_nbytes
    assert exported.refused and exported.refused in str(exported)
    with pytest.raises(RuntimeError, match="cannot run the model with sparse weights"):
        export_litert(model, tmp_path / "other.tflite", sparse=True)
    assert not (tmp_path / "other.tflite").exists()


def test_a_sparse_file_that_is_no_smaller_is_not_missed(tmp_path, monkeypatch):
    result = Converter.result

    def misbehaves(converter, name):
        converted = result(converter, name)
        wrong = {name: output + np.nan for name, output in converted.answers.items()}
        return dataclasses.replace(converted, answers=wrong) if name == "sparse" else converted

    monkeypatch.setattr(Converter, "result", misbehaves)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    exported = export_litert(model, tmp_path / "net.tflite")
    assert not exported.sparse and not exported.refused


def test_answers_of_yes_and_no(tmp_path):
    pixels = keras.Input((200,), name="pixels")
    positive = keras.layers.Lambda(lambda x: x > 0, name="logits")
    model = keras.Sequential([pixels, keras.layers.Dense(3), positive])
    assert export_litert(model, tmp_path / "net.tflite").error == 0
    x = np.random.normal(size=(1, 200)).astype("float32")
    np.testing.assert_array_equal(run(tmp_path / "net.tflite", x), model(x))


class Places(keras.layers.Layer):
    """Adds a row of a table to each of up to 16 steps."""

    def call(self, x):
        return x + tf.eye(16, 4)[: tf.shape(x)[1]]


def test_sizes_that_are_open(tmp_path):
    layers = [keras.layers.Conv2D(4, 5), keras.layers.Conv2D(4, 5), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((None, None, 3)), *layers])
    assert export_litert(model, tmp_path / "images.tflite").error < 1e-5
    layers = [keras.layers.Embedding(5, 4), Places(), keras.layers.GlobalAveragePooling1D()]
    short = keras.Sequential([keras.Input((None,), dtype="int32"), *layers])
    assert export_litert(short, tmp_path / "short.tflite").error < 1e-5
    need = keras.Sequential([keras.Input((None, 3)), keras.layers.Conv1D(4, 40)])
    with pytest.raises(ValueError, match=r"made up for want of `representative_data`, inputs \(1, 32, 3\)"):
        export_litert(need, tmp_path / "long.tflite")
    long = np.random.normal(size=(1, 50, 3)).astype("float32")
    assert export_litert(need, tmp_path / "long.tflite", representative_data=[long]).error < 1e-5


def test_answers_that_are_no_numbers_are_alike(tmp_path):
    words = keras.Input((6,), dtype="int32")
    layers = [keras.layers.Dense(200), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(20)]
    x = keras.layers.Embedding(10, 200, mask_zero=True)(words)
    for layer in layers:
        x = layer(x)
    model = prune(keras.Model(words, x), 0.05)
    # In made-up inputs, nothing is masked.
    made_up = export_litert(model, tmp_path / "net.tflite", sparse=True)
    assert made_up.error < 1e-5 and "relative to the largest, on made-up inputs" in str(made_up)
    padding = [np.zeros((1, 6), "int32")]
    assert np.isnan(model(padding[0])).all()
    empty = export_litert(model, tmp_path / "empty.tflite", sparse=True, representative_data=padding)
    assert empty.error == 0 and "on 1 of `representative_data`" in str(empty)


def test_what_it_cannot_express(tmp_path):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, keras.layers.Lambda(lambda x: tf.linalg.expm(tf.linalg.diag(x)))(inputs))
    with pytest.raises(RuntimeError, match="LiteRT cannot express the model"):
        export_litert(model, tmp_path / "m.tflite")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "crash, how",
    [("os.abort()", "SIGABRT"), ("os.kill(os.getpid(), 9)", "SIGKILL.*memory"), ("os._exit(3)", "status 3")],
)
def test_a_converter_that_crashes_takes_nothing_along(child, tmp_path, monkeypatch, crash, how):
    script = tmp_path / "converting.py"
    last = "print('scale out of range\\nI0000 greetings', flush=True)"
    script.write_text(f"import os, sys; {last}; sys.stdin.read(); {crash}")
    monkeypatch.setattr(converter.converting, "__file__", str(script))
    with pytest.raises(RuntimeError, match=f"its converter crashed .*{how}.*scale out of range$"):
        export_litert(mlp(), tmp_path / "net.tflite")
    assert os.listdir(tmp_path) == ["converting.py"]


def test_the_converter_needs_neither_keras_nor_the_library(child, tmp_path, monkeypatch):
    source = Path(converter.converting.__file__).read_text()
    script = tmp_path / "converting.py"
    check = (
        "assert not any(m.partition('.')[0] in ('keras', 'lc_keras') and v for m, v in sys.modules.items())"
    )
    script.write_text(f"{source}\n    {check}\n    open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr(converter.converting, "__file__", str(script))
    words = keras.Input((1,), dtype="string", name="words")
    one_hot = keras.layers.StringLookup(vocabulary=["ä"], output_mode="one_hot")(words)
    model = keras.Model(words, keras.layers.Dense(2, name="logits")(one_hot))
    exported = export_litert(model, tmp_path / "net.tflite", representative_data=[np.array([["ä"]])])
    assert (tmp_path / "ran").exists() and exported.error < 1e-5


class Own(keras.Model):
    """A model that records no shapes."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)

    def build(self, shape=(None, 4)):
        self.dense.build(shape)
        self.built = True

    def call(self, x):
        return self.dense(x)


def test_inputs_that_the_model_has_not_recorded(tmp_path):
    model = Own()
    model.build()
    with pytest.raises(ValueError, match="`input_signature`"):
        export_litert(model, tmp_path / "net.tflite")
    spec = tf.TensorSpec([6, 4], name="x")
    with pytest.raises(ValueError, match=r"batch_size=5, and inputs of \[6\]"):
        export_litert(model, tmp_path / "net.tflite", input_signature=[spec], batch_size=5)
    assert export_litert(model, tmp_path / "net.tflite", input_signature=[spec]).error < 1e-5
    runner = Interpreter(model_path=str(tmp_path / "net.tflite")).get_signature_runner("serving_default")
    x = np.random.normal(size=(6, 4)).astype("float32")
    np.testing.assert_allclose(runner(x=x)["output_0"], model(x), rtol=1e-5, atol=1e-6)


def test_without_zeros_nothing_is_sparse(tmp_path):
    assert not export_litert(mlp(), tmp_path / "m.tflite", sparse=True).sparse


def test_several_inputs_by_name(tmp_path):
    inputs = [keras.Input((3,), name="left"), keras.Input((4,), dtype="int32", name="right")]
    embedded = keras.layers.Flatten()(keras.layers.Embedding(9, 2)(inputs[1]))
    joined = keras.layers.Concatenate()([inputs[0], embedded])
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(joined))
    x = {"left": np.ones((1, 3), "float32"), "right": np.array([[0, 3, 8, 1]], "int32")}
    export_litert(model, tmp_path / "net.tflite", representative_data=[x])
    runner = Interpreter(model_path=str(tmp_path / "net.tflite")).get_signature_runner("serving_default")
    np.testing.assert_allclose(runner(**x)["logits"], model(list(x.values())), rtol=1e-5, atol=1e-6)


def test_words_without_representative_data(tmp_path):
    words = keras.Input((1,), dtype="string")
    seen = keras.layers.StringLookup(vocabulary=["a"], output_mode="one_hot")(words)
    exported = export_litert(keras.Model(words, keras.layers.Dense(2)(seen)), tmp_path / "net.tflite")
    assert exported.error is None or exported.error < 1e-5


def test_bad_arguments(tmp_path):
    model, path = mlp(), tmp_path / "net.tflite"
    wide = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="float64", name="wide")])
    half = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, dtype="mixed_float16", name="half")])
    a, b = keras.Input((3,), name="a"), keras.Input((3,), name="b")
    two = keras.Model([a, b], keras.layers.Dense(2)(a + b))
    for given, options, message in (
        (model, {"sparse": "yes"}, "Expected `sparse`"),
        (model, {"quantize": "int4"}, "Expected `quantize`"),
        (model, {"quantize": "int8"}, "Expected `representative_data`"),
        (model, {"representative_data": []}, "at least 1 examples"),
        (model, {"representative_data": np.ones(200)}, "`representative_data` for input 'pixels'"),
        (
            model,
            {"representative_data": [(np.ones((2, 200)), [1, 2])]},
            r"'pixels' to be an array. Received: a tuple of 2; if that is \(inputs, targets\)",
        ),
        (two, {"representative_data": [({"a": 1, "b": 2}, 3)]}, "keys a, b. Received: a tuple of 2"),
        (
            model,
            {"representative_data": [np.ones((2, 200), complex)]},
            "'pixels' of type float32. .*complex128",
        ),
        (
            model,
            {"representative_data": np.ones((9, 7))},
            r"\(None, 200\). Received: shape \(9, 7\)",
        ),
        (model, {"representative_data": [np.full((2, 200), np.inf)]}, "finite. .* for input 'pixels'"),
        (two, {"representative_data": [{"a": np.ones((2, 3)), "b": np.ones((1, 3))}]}, "'a': 2, 'b': 1"),
        (two, {"representative_data": [np.ones((2, 3))]}, "dictionary with the keys a, b"),
        (two, {"representative_data": [{"a": np.ones((2, 3))}]}, "for the inputs a, b. Received: a"),
        (model, {"input_signature": [tf.TensorSpec([None, 7])]}, "200"),
        (model, {"batch_size": 0}, "Expected `batch_size`"),
        (half, {}, "layer 'half' in float16"),
        (wide, {}, "layer 'wide' in float64"),
        (keras.Sequential([keras.layers.Dense(2)]), {}, "not built"),
        (model, {"batch_size": "all"}, '"any" or None'),
    ):
        with pytest.raises(ValueError, match=message):
            export_litert(given, path, **options)
    for given, options, message in (
        ("net", {}, "keras.Model"),
        (model, {"sparse": 1}, '"auto", True or False. Received: sparse=1'),
        (model, {"overwrite": "no"}, "overwrite='no'"),
        (model, {"verbose": "no"}, "verbose='no'"),
        (model, {"batch_size": True}, "batch_size=True"),
    ):
        with pytest.raises(TypeError, match=message):
            export_litert(given, path, **options)
    with pytest.raises(ValueError, match="name of a file"):
        export_litert(model, "")
    with pytest.raises(ValueError, match="not end as the files of Keras do"):
        export_litert(model, tmp_path / "net.keras")
    with pytest.raises(ValueError, match="the directory"):
        export_litert(model, tmp_path)
    path.write_text("mine")
    with pytest.raises(ValueError, match="is a file"):
        export_litert(model, path / "below" / "net.tflite")
    with pytest.raises(ValueError, match="overwrite=True"):
        export_litert(model, path)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    export_litert(model, path, overwrite=True)
    assert len(list(tmp_path.iterdir())) == 1 and path.stat().st_size > 100_000


def test_representative_data_as_of_tensorflows_converter():
    x, batches = np.ones((2, 3), "float32"), partial(litert._batches, specs=[tf.TensorSpec((1, 3), name="x")])
    expected = batches([x])
    assert len(expected) == 2
    for data in (x, tf.constant(x), {"x": x}, lambda: [[x]], lambda: ([row] for row in x), [(x,)]):
        keras.tree.map_structure(np.testing.assert_array_equal, batches(data), expected)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "net.tflite"
    path.write_text("old")

    def fails(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(litert.os, "replace", fails)
    with pytest.raises(OSError, match="No space"):
        export_litert(mlp(), path, overwrite=True)
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match=r"lc_keras\[litert\]"):
        export_litert(mlp(), tmp_path / "net.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("build", [mlp, pytest.param(convolutions, marks=pytest.mark.slow)])
def test_weights_on_the_grid_are_taken_as_they_are(tmp_path, build):
    """The weights of dense layers and convolutions, in LiteRT and in Keras; zeros stay zeros."""
    model, path = build(), tmp_path / "net.tflite"
    compress_directly(model, L0Constraint(0.5, values=Grid(8)))
    kernels = [layer.kernel.numpy() for layer in model.layers if hasattr(layer, "kernel")]
    x = np.random.normal(size=(20, *model.input_shape[1:]))
    export_litert(model, path, quantize="int8", representative_data=[x])
    stored = [w.ravel() for w in weights(path) if w.dtype == "int8"]
    for kernel in kernels:
        steps = np.abs(kernel).max(tuple(range(kernel.ndim - 1))) / np.float32(127)
        numbers = np.moveaxis(np.rint(kernel / np.where(steps, steps, 1)), -1, 0).ravel()
        assert any(np.array_equal(w, numbers) for w in stored)
    if build is mlp:
        model.quantize("int8")
        for layer, kernel in zip(model.layers, kernels, strict=True):
            found = np.float32(layer._kernel) / np.asarray(layer.kernel_scale)
            np.testing.assert_allclose(found, kernel, rtol=1e-5, atol=1e-9)
