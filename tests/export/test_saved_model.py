import os
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from c_api import CSession
from lc_keras import Codebook, Grid, L0Constraint, Sum, Task, report
from lc_keras.baselines import compress_directly
from lc_keras.export import export_saved_model, litert, saved_model

# Runs in a process of its own, where importing keras or lc_keras fails.
LOAD_AND_SERVE = textwrap.dedent(
    """
    import sys
    sys.modules["keras"] = sys.modules["lc_keras"] = None
    import numpy as np
    import tensorflow as tf

    path, x_path, y_path = sys.argv[1:]
    x = np.load(x_path)
    model = tf.saved_model.load(path)
    served = model.serve(x).numpy()
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        graph = tf.compat.v1.saved_model.load(session, ["serve"], path)
        signature = graph.signature_def["serving_default"]
        (feed,), (fetch,) = signature.inputs.values(), signature.outputs.values()
        in_session = session.run(fetch.name, {feed.name: x})
    np.save(y_path, np.stack([served, in_session]))
    """
)


def prune(model, density):
    for variable in model.trainable_variables:
        if len(variable.shape) >= 2:
            value = keras.ops.convert_to_numpy(variable).copy()
            value[np.random.random(value.shape) >= density] = 0
            variable.assign(value)
    return model


def dense_net(dtype=None):
    layers = [
        keras.Input((200,), name="pixels"),
        keras.layers.Dense(300, "tanh", dtype=dtype),
        keras.layers.Dense(10, dtype=dtype),
    ]
    return keras.Sequential(layers)


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def serve(path, x):
    # TensorFlow drops the variables of a loaded model that nothing refers to.
    loaded = tf.saved_model.load(str(path))
    return loaded.serve(x)


def size_of(folder):
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def stored_elements(path):
    variables = tf.train.list_variables(str(path / "variables" / "variables"))
    return sum(int(np.prod(shape)) for name, shape in variables if "VARIABLE_VALUE" in name)


def test_serves_in_a_process_without_keras(tmp_path):
    model = prune(dense_net(), 0.05)
    x = np.random.normal(size=(7, 200)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    export_saved_model(model, tmp_path / "net" / "1")
    arguments = [tmp_path / "net" / "1", tmp_path / "x.npy", tmp_path / "y.npy"]
    run = subprocess.run(
        [sys.executable, "-c", LOAD_AND_SERVE, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert run.returncode == 0, run.stderr
    for served in np.load(tmp_path / "y.npy"):
        np.testing.assert_allclose(served, numpy(model(x)), rtol=1e-5, atol=1e-5)


def test_each_variable_is_stored_once(tmp_path):
    model = dense_net()
    export_saved_model(model, tmp_path)
    assert stored_elements(tmp_path) == model.count_params()


def test_a_pruned_model_is_a_small_file(tmp_path):
    model = dense_net()
    export_saved_model(model, tmp_path / "dense")
    kept = sum(np.count_nonzero(numpy(w)) for w in prune(model, 0.02).weights)
    export_saved_model(model, tmp_path / "pruned")
    assert size_of(tmp_path / "pruned") < 0.4 * size_of(tmp_path / "dense")
    # A value and a gap for each kept weight, a few bridges, the biases and the small layer.
    assert stored_elements(tmp_path / "pruned") < 2.2 * kept + 3000 + 310


def test_unpacks_once_and_not_at_each_call(tmp_path):
    export_saved_model(prune(dense_net(), 0.05), tmp_path)
    loaded = tf.saved_model.load(str(tmp_path))
    functions = loaded.serve.get_concrete_function(tf.zeros([2, 200])).graph.as_graph_def()
    operations = {n.op for n in functions.node}
    for function in functions.library.function:
        if "serve" in function.signature.name:
            operations |= {n.op for n in function.node_def}
    assert "MatMul" in operations and "ScatterNd" not in operations


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "mixed_bfloat16", "float64"])
def test_types(tmp_path, dtype):
    model = prune(dense_net(dtype), 0.02)
    x = np.random.normal(size=(3, 200)).astype("float32")
    export_saved_model(model, tmp_path)
    assert stored_elements(tmp_path) < 0.2 * model.count_params()
    served = serve(tmp_path, x)
    assert served.dtype == model(x).dtype
    # As a graph: its fused operations round half precision differently from single operations.
    np.testing.assert_array_equal(served, tf.function(model)(x))


def test_two_copies_in_one_process_do_not_share_weights(tmp_path):
    x = np.ones((1, 200), "float32")
    models = [prune(dense_net(), 0.05) for _ in range(2)]
    for i, model in enumerate(models):
        export_saved_model(model, tmp_path / str(i))
    gone = tf.saved_model.load(str(tmp_path / "0"))
    loaded = [tf.saved_model.load(str(tmp_path / str(i))) for i in range(2)]
    del gone
    for model, copy in zip(models, loaded, strict=True):
        np.testing.assert_allclose(copy.serve(x), model(x), rtol=1e-5, atol=1e-5)


def test_batch_size_is_free_and_names_are_stable(tmp_path):
    export_saved_model(dense_net(), tmp_path / "named")
    unnamed = keras.Sequential([keras.Input((4,), batch_size=2), keras.layers.Dense(3)])
    export_saved_model(unnamed, tmp_path / "unnamed")
    loaded = tf.saved_model.load(str(tmp_path / "named"))
    copies = [loaded, tf.saved_model.load(str(tmp_path / "unnamed"))]
    for batch in (1, 5):
        assert copies[0].serve(tf.zeros([batch, 200])).shape == (batch, 10)
        assert copies[1].serve(tf.zeros([batch, 4])).shape == (batch, 3)
    signatures = [copy.signatures["serving_default"] for copy in copies]
    assert [set(s.structured_input_signature[1]) for s in signatures] == [{"pixels"}, {"inputs"}]
    assert set(signatures[0].structured_outputs) == {"output_0"}


def test_convolution_batch_norm_and_shared_layers(tmp_path):
    image = keras.Input((8, 8, 3))
    convolve = keras.layers.Conv2D(3, 3, padding="same", activation="relu")
    x = keras.layers.BatchNormalization()(convolve(convolve(image)))
    model = keras.Model(image, keras.layers.Dense(2)(keras.layers.Flatten()(x)))
    images = np.random.normal(size=(16, 8, 8, 3)).astype("float32")
    model.compile("sgd", "mse")
    model.fit(images, np.ones((16, 2)), verbose=0)
    export_saved_model(model, tmp_path)
    served = serve(tmp_path, images)
    np.testing.assert_allclose(served, numpy(model(images)), rtol=1e-5, atol=1e-5)
    assert stored_elements(tmp_path) == model.count_params()


def test_several_inputs_and_outputs(tmp_path):
    inputs = {"left": keras.Input((3,), name="left"), "right": keras.Input((2,), name="right")}
    joined = keras.layers.Concatenate()([inputs["left"], inputs["right"]])
    outputs = {"small": keras.layers.Dense(1)(joined), "large": keras.layers.Dense(4)(joined)}
    model = keras.Model(inputs, outputs)
    x = {"left": tf.ones([2, 3]), "right": tf.ones([2, 2])}
    export_saved_model(model, tmp_path)
    loaded = tf.saved_model.load(str(tmp_path))
    expected = model(x)
    by_structure, by_name = loaded.serve(x), loaded.signatures["serving_default"](**x)
    for name in ("small", "large"):
        np.testing.assert_allclose(by_structure[name], expected[name], rtol=1e-6)
        np.testing.assert_allclose(by_name[name], expected[name], rtol=1e-6)


def test_a_list_of_inputs_and_of_outputs(tmp_path):
    inputs = [keras.Input((3,), name="a"), keras.Input((3,), name="b")]
    model = keras.Model(inputs, [keras.layers.Add()(inputs), keras.layers.Subtract()(inputs)])
    export_saved_model(model, tmp_path)
    loaded = tf.saved_model.load(str(tmp_path))
    serving_default = loaded.signatures["serving_default"]
    served = serving_default(a=tf.fill([1, 3], 2.0), b=tf.fill([1, 3], 3.0))
    np.testing.assert_array_equal(served["output_0"], [[5.0] * 3])
    np.testing.assert_array_equal(served["output_1"], [[-1.0] * 3])


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.embed = keras.layers.Embedding(50, 8)
        self.recur = keras.layers.LSTM(64)

    def call(self, tokens):
        return self.recur(self.embed(tokens))


def test_subclassed_model(tmp_path):
    model = Subclassed()
    tokens = np.arange(12).reshape(3, 4)
    model(tokens)
    prune(model, 0.05)
    export_saved_model(model, tmp_path / "recorded")
    export_saved_model(model, tmp_path / "given", input_signature=[tf.TensorSpec([None, None], tf.int64)])
    recorded = serve(tmp_path / "recorded", tokens.astype("float32"))
    given = serve(tmp_path / "given", tokens[:, :2])
    np.testing.assert_allclose(recorded, model(tokens), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(given, model(tokens[:, :2]), rtol=1e-5, atol=1e-6)


def test_lookup_tables_come_along(tmp_path):
    words = keras.layers.TextVectorization(vocabulary=["up", "down"], output_sequence_length=2)
    model = keras.Sequential([keras.Input((), dtype="string"), words, keras.layers.Embedding(4, 3)])
    export_saved_model(model, tmp_path)
    text = tf.constant(["up down", "down else"])
    np.testing.assert_array_equal(serve(tmp_path, text), model(text))


class Looks(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        table = tf.lookup.KeyValueTensorInitializer([1], [3.0])
        self.tables = {"one": [tf.lookup.StaticHashTable(table, 0.0)]}

    def call(self, x):
        return x + self.tables["one"][0].lookup(tf.ones([], tf.int32))

    def compute_output_shape(self, shape):
        return shape


def test_lookup_tables_in_lists_and_dicts_come_along(tmp_path):
    x = keras.Input((3,))
    export_saved_model(keras.Model(x, Looks()(x)), tmp_path)
    np.testing.assert_array_equal(serve(tmp_path, np.ones((1, 3), "float32")), [[4, 4, 4]])


class Noise(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs):
        return inputs + keras.random.normal(keras.ops.shape(inputs), seed=self.seed_generator)


def test_states_move_on(tmp_path):
    model = keras.Sequential([keras.Input((3,)), Noise()])
    export_saved_model(model, tmp_path)
    loaded = tf.saved_model.load(str(tmp_path))
    assert not np.array_equal(loaded.serve(tf.zeros([1, 3])), loaded.serve(tf.zeros([1, 3])))


class CountsCalls(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.count = keras.metrics.Sum()

    def call(self, inputs):
        self.count.update_state(1.0)
        return inputs + self.count.result()


@pytest.mark.parametrize(
    "layer", [lambda: keras.layers.GRU(3, stateful=True), CountsCalls], ids=["recurrent", "metric"]
)
def test_states_that_are_no_weights_of_the_model_move_on(tmp_path, layer):
    inputs = keras.Input(batch_shape=(4, 5, 3))
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(layer()(inputs)))
    model = keras.Model(inputs, outputs)
    export_saved_model(model, tmp_path)
    served = tf.saved_model.load(str(tmp_path)).signatures["serving_default"]
    x = np.random.normal(size=(4, 5, 3)).astype("float32")
    answers = [model(x).numpy() for _ in range(3)]
    assert not np.allclose(answers[0], answers[1])
    for expected in answers:
        (answer,) = served(tf.constant(x)).values()
        np.testing.assert_allclose(answer, expected, rtol=1e-5, atol=1e-6)


def test_exporting_leaves_the_model_as_it_was(tmp_path):
    model = prune(dense_net(), 0.05)
    before, config = [numpy(w).copy() for w in model.weights], model.to_json()
    export_saved_model(model, tmp_path)
    for old, new in zip(before, model.weights, strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.to_json() == config
    model.compile("sgd", "mse")
    model.fit(np.ones((4, 200)), np.ones((4, 10)), verbose=0)


class CalledAsFunction(keras.Model):
    """A model whose `call` is a tf.function."""

    def __init__(self):
        super().__init__()
        self.inner = keras.layers.Dense(300)

    @tf.function
    def call(self, x):
        return self.inner(x)


def test_functions_of_the_user_are_traced_for_the_export_alone(tmp_path):
    model = CalledAsFunction()
    x = np.random.normal(size=(3, 300)).astype("float32")
    model(x[:1])
    kernel = model.inner.kernel
    kernel.assign(np.where(np.random.random(kernel.shape) < 0.05, kernel, 0))

    @tf.function(input_signature=[tf.TensorSpec([None, 300])])
    def scores(inputs):
        return {"scores": tf.nn.softmax(model(inputs))}

    for _ in range(2):
        exported = export_saved_model(model, tmp_path / "net", version="next", signatures={"scores": scores})
        assert exported.weights[0].encoding != "dense"
    report(model)
    np.testing.assert_allclose(model(x), x @ kernel.numpy() + model.inner.bias.numpy(), rtol=1e-4, atol=1e-5)
    served = tf.saved_model.load(exported.path)
    np.testing.assert_allclose(
        served.signatures["scores"](inputs=x)["scores"], scores(x)["scores"], rtol=1e-4, atol=1e-6
    )


def test_a_subnormal_weight_stays_what_it_is(tmp_path):
    signs = np.where(np.random.random((300, 300)) < 0.5, -0.1, 0.1).astype("float32")
    signs[::30, ::30] = 1e-38
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300)])
    model.layers[0].kernel.assign(signs)
    export_saved_model(model, tmp_path / "net", compute="dense")
    eye = np.eye(300, dtype="float32")
    np.testing.assert_array_equal(serve(tmp_path / "net", tf.constant(eye)), model.predict(eye, verbose=0))


def test_does_not_write_over_things(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    export_saved_model(model, tmp_path / "net")
    with pytest.raises(ValueError, match="overwrite=True"):
        export_saved_model(model, tmp_path / "net")
    model.layers[0].kernel.assign([[1.0], [2.0]])
    export_saved_model(model, tmp_path / "net", overwrite=True)
    served = serve(tmp_path / "net", tf.ones([1, 2]))
    np.testing.assert_array_equal(served, [[3.0]])

    (tmp_path / "net" / "README.md").write_text("of the user")
    with pytest.raises(ValueError, match="also holds README.md"):
        export_saved_model(model, tmp_path / "net", overwrite=True)

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(ValueError, match="thesis.tex"):
        export_saved_model(model, tmp_path / "mine", overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        export_saved_model(model, tmp_path / "mine" / "thesis.tex", overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        export_saved_model(model, tmp_path / "mine" / "thesis.tex" / "1")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "x"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "net"]


def test_a_failed_export_leaves_nothing(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="incompatible with the layer"):
        export_saved_model(model, tmp_path / "net", input_signature=[tf.TensorSpec([None, 3])])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", [saved_model, litert], ids=["SavedModel", "LiteRT"])
def test_an_export_that_cannot_be_described_leaves_nothing(module, tmp_path, monkeypatch):
    def fails(_):
        raise RuntimeError("no count")

    monkeypatch.setattr(module, "count_dead_units", fails)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    with pytest.raises(RuntimeError, match="no count"):
        if module is litert:
            litert.export_litert(model, tmp_path / "net.tflite")
        else:
            export_saved_model(model, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_verbose_says_what_was_written(tmp_path, capsys):
    export_saved_model(prune(dense_net(), 0.05), tmp_path / "quiet")
    assert capsys.readouterr().out == ""
    export_saved_model(prune(dense_net(), 0.05), tmp_path / "net", verbose=True)
    assert "Weights packed: 2;" in capsys.readouterr().out


@pytest.mark.parametrize(
    "model",
    [
        keras.Sequential([keras.layers.Dense(3)]),
        Subclassed(),
    ],
    ids=["sequential", "subclassed"],
)
def test_unbuilt_model(tmp_path, model):
    with pytest.raises(ValueError, match="not built"):
        export_saved_model(model, tmp_path / "net")
    assert not (tmp_path / "net").exists()


def test_not_a_model(tmp_path):
    with pytest.raises(TypeError, match="keras.Model"):
        export_saved_model(keras.layers.Dense(3), tmp_path / "net")


def mlp():
    return keras.Sequential(
        [
            keras.Input((200,), name="pixels"),
            keras.layers.Dense(300, "relu"),
            keras.layers.Dense(10, name="logits"),
        ]
    )


def convolutions():
    image = keras.Input((9, 9, 3), name="image")
    x = keras.layers.Conv2D(64, 3, activation="relu")(image)
    x = keras.layers.DepthwiseConv2D(3, padding="same")(keras.layers.BatchNormalization()(x))
    x = keras.layers.Conv2D(128, 1, strides=2, padding="same", activation="relu")(x)
    x = keras.layers.SeparableConv2D(32, 3)(x)
    return keras.Model(image, keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x)))


def several():
    inputs = {"left": keras.Input((60,), name="left"), "right": keras.Input((7, 50), name="right")}
    right = keras.layers.Dense(80)(inputs["right"])
    recur = keras.layers.GRU(60)(keras.layers.MultiHeadAttention(2, 16)(right, right))
    joined = keras.layers.Concatenate()([inputs["left"], recur])
    return keras.Model(inputs, {"small": keras.layers.Dense(1)(joined), "large": right})


CHOICES = {
    "plain": {"storage": "dense"},
    "packed": {"compute": "dense"},
    "sparse": {"compute": "sparse"},
}


@pytest.mark.parametrize(
    "build, choice",
    [
        (mlp, "plain"),
        pytest.param(mlp, "sparse", marks=pytest.mark.slow),
        pytest.param(convolutions, "packed", marks=pytest.mark.slow),
        (convolutions, "sparse"),
        (several, "packed"),
    ],
)
def test_serves_through_the_c_api(tmp_path, build, choice):
    model = prune(build(), 0.05)
    exported = export_saved_model(model, tmp_path / "1", **CHOICES[choice])
    assert ("sparse" in {weight.compute for weight in exported.weights}) == (choice == "sparse")
    with CSession(tmp_path / "1") as session:
        signature = session.signatures["serving_default"]
        for batch in (1, 3, 40):
            x = {
                name: np.random.normal(size=[batch, *(d.size for d in spec.tensor_shape.dim[1:])])
                for name, spec in signature.inputs.items()
            }
            x = {name: value.astype("float32") for name, value in x.items()}
            served = session.run(**x)
            (only,) = x.values() if len(x) == 1 else (x,)
            expected = model(only, training=False)
            if not isinstance(expected, dict):
                expected = dict.fromkeys(served, expected)
            assert set(served) == set(expected)
            for name in served:
                assert served[name].dtype == "float32"
                if choice == "sparse":
                    scale = np.abs(expected[name]).max()
                    np.testing.assert_allclose(served[name], expected[name], rtol=1e-5, atol=1e-5 * scale)
                else:
                    np.testing.assert_array_equal(served[name], numpy(expected[name]))


def test_the_c_api_says_why_it_cannot_load(tmp_path):
    with pytest.raises(RuntimeError, match="Could not find SavedModel"):
        CSession(tmp_path)


def test_inference_whatever_the_default_of_training(tmp_path):
    class Trains(keras.Model):
        def __init__(self):
            super().__init__()
            self.drop = keras.layers.Dropout(0.9)

        def call(self, x, training=True):
            return self.drop(x, training=training)

    class Knows(keras.Model):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(2, kernel_initializer="ones")

        def call(self, x):
            return self.dense(x)

    for model in (Trains(), Knows()):
        model(np.ones((2, 3), "float32"), training=False)
        x = np.ones((2, 3), "float32")
        folder = tmp_path / model.name
        export_saved_model(model, folder, input_signature=[tf.TensorSpec([None, 3])])
        np.testing.assert_array_equal(serve(folder, x), model(x, training=False))


def test_further_signatures(tmp_path):
    model = prune(mlp(), 0.02)
    texts = [tf.TensorSpec([None], tf.string, "numbers")]
    signatures = {
        "probabilities": lambda x: {"p": keras.ops.softmax(model(x))},
        "text": (lambda text: model(tf.strings.to_number(tf.strings.split(text, ",").to_tensor())), texts),
    }
    exported = export_saved_model(model, tmp_path, signatures=signatures)
    assert exported.signatures == ("serving_default", "probabilities", "text", "serve")
    assert stored_elements(tmp_path) < 0.2 * model.count_params()
    x = np.random.normal(size=(4, 200)).round(3).astype("float32")
    with CSession(tmp_path) as session:
        p = session.run("probabilities", pixels=x)["p"]
    np.testing.assert_allclose(p, keras.ops.softmax(model(x)), rtol=1e-5)
    lines = tf.constant([",".join(map(str, row)) for row in x])
    loaded = tf.saved_model.load(str(tmp_path))
    by_text = loaded.signatures["text"](numbers=lines)["logits"]
    np.testing.assert_allclose(by_text, model(x), rtol=1e-4, atol=1e-5)


def test_outputs_of_another_layer_have_a_name_of_their_own(tmp_path):
    inputs = keras.Input((3,))
    features = keras.Model(inputs, keras.layers.Dense(5, name="features")(inputs))
    model = keras.Model(inputs, keras.layers.Dense(2, name="logits")(features.outputs[0]))
    export_saved_model(model, tmp_path, signatures={"features": lambda x: features(x)})
    signatures = tf.saved_model.load(str(tmp_path)).signatures
    assert list(signatures["features"].structured_outputs) == ["output_0"]
    assert list(signatures["serving_default"].structured_outputs) == ["logits"]


def test_names_of_outputs_of_a_fixed_batch_and_of_a_stack_without_a_graph(tmp_path):
    class FromDict(keras.layers.Layer):
        def call(self, inputs):
            return inputs["x"]

    inputs = keras.Input(batch_shape=(8, 4))
    fixed = keras.Model(inputs, keras.layers.Dense(3, name="probs")(inputs))
    stack = keras.Sequential([FromDict(), keras.layers.Dense(3, name="probs")])
    stack({"x": np.ones((2, 4), "float32")})
    one = tf.TensorSpec([1, 4])
    for model, structure in ((fixed, [one]), (stack, [{"x": one}])):
        export_saved_model(model, tmp_path / model.name, input_signature=structure)
        signature = tf.saved_model.load(str(tmp_path / model.name)).signatures["serving_default"]
        assert list(signature.structured_outputs) == ["probs"]


def test_a_random_seed_that_moves_in_a_loop(tmp_path):
    class Loop(keras.layers.Layer):
        def call(self, x):
            return keras.ops.fori_loop(0, 3, lambda _, y: y + keras.random.normal(keras.ops.shape(x)), x)

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Loop()])
    export_saved_model(model, tmp_path)
    assert np.isfinite(tf.saved_model.load(str(tmp_path)).serve(tf.zeros([2, 4]))).all()


def test_a_signature_named_as_keras_names_its_own(tmp_path):
    model = mlp()
    exported = export_saved_model(model, tmp_path, signatures={"serve": lambda x: 0 * model(x)})
    assert exported.signatures == ("serving_default", "serve")
    x = np.ones((1, 200), "float32")
    assert not tf.saved_model.load(str(tmp_path)).signatures["serve"](pixels=x)["logits"].numpy().any()


@pytest.mark.parametrize("compute", ["dense", "sparse"])
def test_half_precision_in_the_file(tmp_path, compute):
    model = prune(keras.Sequential([keras.Input((500,)), keras.layers.Dense(300)]), 0.1)
    x = np.random.normal(size=(3, 500)).astype("float32")
    exported = export_saved_model(model, tmp_path, compute=compute, values="float16")
    kernel, bias = exported.weights
    exact = numpy(model.layers[0].kernel)
    rounded = exact.astype("float16").astype("float32")
    assert kernel.nbytes < 3.2 * np.count_nonzero(exact) and bias.nbytes == 4 * 300
    assert kernel.error == np.abs(exact - rounded).max() > 0
    assert f"at most {kernel.error:.2g}" in str(exported)
    np.testing.assert_allclose(serve(tmp_path, x), x @ rounded, rtol=1e-4, atol=1e-5)


def test_weights_on_a_grid_stay_there_in_half_precision(tmp_path):
    model = keras.Sequential([keras.Input((200,)), keras.layers.Dense(300)])
    compress_directly(model, Grid(4))
    kernel, _ = export_saved_model(model, tmp_path, values="float16").weights
    assert kernel.nbytes < 0.6 * 200 * 300 and not kernel.error


def test_half_precision_that_would_overflow(tmp_path):
    model = mlp()
    model.layers[0].kernel.assign(np.linspace(0, 1e5, 60_000).reshape(200, 300))
    with pytest.raises(ValueError, match="65504 in magnitude .* 1e\\+05 in '.*/kernel'"):
        export_saved_model(model, tmp_path / "net", values="float16")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kept", [0.9, 0.8, 0.02])
def test_packed_is_never_larger_than_dense(tmp_path, kept):
    model = keras.Sequential([keras.Input((120,)), keras.layers.Dense(120), keras.layers.Dense(300)])
    prune(model, kept)
    dense = export_saved_model(model, tmp_path / "dense", storage="dense")
    packed = export_saved_model(model, tmp_path / "packed")
    # Names of functions are numbered: a number may have one more digit.
    assert packed.nbytes <= dense.nbytes + 200 and packed.nbytes == size_of(tmp_path / "packed")


def test_size_of_lenet300_at_5_percent(tmp_path):
    layers = [keras.layers.Dense(n, "tanh") for n in (300, 100, 10)]
    model = prune(keras.Sequential([keras.Input((784,)), *layers]), 0.05)
    kept = sum(np.count_nonzero(numpy(layer.kernel)) for layer in layers)
    exported = export_saved_model(model, tmp_path)
    graph = (tmp_path / "saved_model.pb").stat().st_size
    assert exported.nbytes - graph < 1.25 * (5 * kept + 4 * 410)
    assert graph < 60_000


def test_what_a_user_should_know_is_said(tmp_path):
    nothing_to_gain, no_number = (
        "No weight is packed: that would make nothing smaller.",
        f"A model server looks for numbers: remove '{tmp_path / 'full'}'",
    )
    full = str(export_saved_model(mlp(), tmp_path / "full"))
    assert nothing_to_gain in full and f"'{tmp_path / 'full' / '1'}'" in full and no_number in full
    pruned = str(export_saved_model(prune(mlp(), 0.05), tmp_path / "pruned", version="next"))
    assert nothing_to_gain not in pruned and no_number not in pruned
    dense = str(export_saved_model(prune(mlp(), 0.05), tmp_path / "dense", storage="dense"))
    assert "No weight is packed: as requested." in dense


def test_weights_that_are_not_numbers(tmp_path):
    model = mlp()
    kernel = numpy(model.layers[0].kernel).copy()
    kernel[3, 4] = np.nan
    model.layers[0].kernel.assign(kernel)
    with pytest.raises(ValueError, match="NaN in '.*/kernel'"):
        export_saved_model(model, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_bad_arguments(tmp_path):
    model = mlp()
    for options, message in (
        ({"storage": "zip"}, "`storage` to be one of 'packed', 'dense'. Received: 'zip'"),
        ({"compute": "fast"}, "Expected `compute`"),
        ({"values": "int8"}, "Expected `values`"),
        ({"expected_batch": 0}, "Expected `expected_batch`"),
        ({"expected_batch": ()}, "Expected `expected_batch`"),
        ({"signatures": {"serving_default": model}}, "other names than the model's own"),
    ):
        with pytest.raises(ValueError, match=message):
            export_saved_model(model, tmp_path / "net", **options)
    for options, message in (
        ({"input_signature": [(None, 200)]}, "tf.TensorSpec"),
        ({"input_signature": tf.TensorSpec([None, 200])}, "`input_signature` to be a list"),
        ({"expected_batch": None}, "expected_batch=None"),
        ({"expected_batch": "32"}, "expected_batch='32'"),
        ({"overwrite": "no"}, "overwrite='no'"),
        ({"signatures": [model]}, "Expected `signatures`"),
        ({"signatures": {"more": (3, [])}}, "Expected `signatures`"),
        ({"signatures": {"more": (model,)}}, "Expected `signatures`"),
    ):
        with pytest.raises(TypeError, match=message):
            export_saved_model(model, tmp_path / "net", **options)
    flat = keras.Sequential([keras.Input((3,)), keras.layers.Flatten()])
    with pytest.raises(ValueError, match="has none"):
        export_saved_model(flat, tmp_path / "net", compute="sparse")
    assert list(tmp_path.iterdir()) == []


def test_models_without_weights(tmp_path):
    x = keras.Input((3,), name="x")
    models = keras.Model(x, x), keras.Model(x, keras.layers.Rescaling(2.0)(x))
    for i, model in enumerate(models):
        export_saved_model(model, tmp_path / str(i))
        with CSession(tmp_path / str(i)) as session:
            (served,) = session.run(x=np.ones((2, 3))).values()
        assert served.tolist() == [[1.0 + i] * 3] * 2
    for empty in (keras.Sequential([]), keras.Sequential([x])):
        with pytest.raises(ValueError, match="which is empty"):
            export_saved_model(empty, tmp_path / "empty")


def test_lambda_layers(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Lambda(lambda x: 2 * x), keras.layers.Dense(1)])
    export_saved_model(model, tmp_path)
    np.testing.assert_array_equal(serve(tmp_path, np.ones((1, 3), "float32")), model(np.ones((1, 3))))


class ForgetsALayer(keras.Model):
    def __init__(self, calls_it):
        super().__init__()
        self.dense, self.forgotten, self.calls_it = keras.layers.Dense(2), keras.layers.Dense(2), calls_it

    def build(self, shape):
        self.dense.build(shape)

    def call(self, x):
        return self.forgotten(self.dense(x)) if self.calls_it else self.dense(x)


def test_unbuilt_layers(tmp_path):
    x = np.ones((1, 3), "float32")
    unused = ForgetsALayer(False)
    unused.build((None, 3))
    export_saved_model(unused, tmp_path / "unused")
    np.testing.assert_array_equal(serve(tmp_path / "unused", x), unused(x))
    used = ForgetsALayer(True)
    used.build((None, 3))
    for _ in range(2):
        with pytest.raises(ValueError, match="Expected a built model. .* of which 'dense.*' was not built"):
            export_saved_model(used, tmp_path / "used")
    assert not (tmp_path / "used").exists() and len(used.weights) == 2


class MakesItsLayer(keras.layers.Layer):
    def build(self, shape):
        self.inner = keras.layers.Dense(2)

    def call(self, x):
        return self.inner(x)


def test_layers_that_are_made_late(tmp_path):
    model = ForgetsALayer(True)
    model.forgotten = MakesItsLayer()
    model.build((None, 3))
    with pytest.raises(ValueError, match="Expected a built model. .* were not there, .*dense.*/kernel"):
        export_saved_model(model, tmp_path / "late")
    assert not (tmp_path / "late").exists()


def test_quantised_models(tmp_path):
    model = prune(mlp(), 0.05)
    model.quantize("int8")
    x = np.random.normal(size=(3, 200)).astype("float32")
    export_saved_model(model, tmp_path)
    np.testing.assert_allclose(serve(tmp_path, x), model(x), rtol=1e-5, atol=1e-5)


def test_half_precision_leaves_what_has_two_bytes(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, dtype="bfloat16")])
    model.layers[0].kernel.assign(np.full((2, 2), 1e30))
    exported = export_saved_model(model, tmp_path / "1", values="float16")
    assert [weight.error for weight in exported.weights] == [0, 0]


@pytest.mark.parametrize("compute, endpoint", [("dense", "serve"), ("sparse", "serving_default")])
def test_in_a_layer_of_keras(tmp_path, compute, endpoint):
    model = dense_net()
    prune(model, 0.1)
    export_saved_model(model, tmp_path / "1", compute=compute)
    x = np.random.default_rng(0).normal(size=(3, *model.input_shape[1:])).astype("float32")
    outputs = keras.layers.TFSMLayer(tmp_path / "1", call_endpoint=endpoint)(x)
    (outputs,) = outputs.values() if isinstance(outputs, dict) else [outputs]
    np.testing.assert_allclose(outputs, model.predict(x, verbose=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("nested", [False, True])
def test_a_model_with_states_serves_as_many_examples_as_it_has_states_for(tmp_path, nested):
    x = keras.Input(batch_shape=(4, 5, 3))
    y = keras.layers.LSTM(2, stateful=True)(x)
    model = keras.Model(x, keras.layers.Dense(2)(keras.Model(x, y)(x)) if nested else y)
    export_saved_model(model, tmp_path / "1")
    signature = tf.saved_model.load(tmp_path / "1").signatures["serving_default"]
    (spec,) = signature.structured_input_signature[1].values()
    assert spec.shape == (4, 5, 3)


def test_a_signature_without_inputs(tmp_path):
    with pytest.raises(ValueError, match="Expected `input_signature` to hold a tf.TensorSpec"):
        export_saved_model(dense_net(), tmp_path / "1", input_signature=[])


@pytest.mark.parametrize(
    "cost, part, compute",
    [
        (Codebook(16), 1 / 7, "dense"),
        (Grid(8), 1 / 3.5, "dense"),
        pytest.param(L0Constraint(0.1, values=Codebook(16)), 1 / 20, "dense", marks=pytest.mark.slow),
        (Sum(Codebook(2), L0Constraint(0.01)), 1 / 10, "dense"),
        (L0Constraint(0.1, values=Codebook(4)), 1 / 20, "sparse"),
    ],
    ids=str,
)
def test_few_values_are_written_in_few_bits_and_read_bit_for_bit(cost, part, compute, tmp_path):
    keras.utils.set_random_seed(0)
    layers = [keras.Input((250,), name="pixels"), keras.layers.Dense(250, "tanh"), keras.layers.Dense(10)]
    model, x = keras.Sequential(layers), keras.random.normal((5, 250))
    compress_directly(model, Task(cost, weights=model.layers[0]))
    exported = export_saved_model(model, tmp_path / "model", compute=compute)
    kernel = exported.weights[0]
    assert kernel.encoding.split("/")[1] in ("1+gaps8", "2", "3", "4", "5", "8") and kernel.error == 0
    assert kernel.nbytes < part * kernel.dense_nbytes
    # The graph includes the unpacking.
    assert exported.nbytes < sum(weight.nbytes for weight in exported.weights) + 85_000
    served = serve(exported.path, x)
    if compute == "dense":
        np.testing.assert_array_equal(served, model.predict(x, verbose=0))
    else:
        np.testing.assert_allclose(served, model(x), rtol=1e-4, atol=1e-5)


class Counted(keras.layers.Layer):
    calls = 0

    def call(self, x):
        type(self).calls += 1
        return 2 * x


def test_an_export_traces_a_model_once_and_once_to_count(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2), Counted()])
    Counted.calls = 0
    export_saved_model(model, tmp_path / "1")
    assert Counted.calls == 2
