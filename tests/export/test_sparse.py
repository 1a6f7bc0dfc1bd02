import keras
import numpy as np
import pytest
import tensorflow as tf

from lc_keras.export import export_saved_model
from lc_keras.export.sparse import ENOUGH, gain, multiply, sparse_layers
from lc_keras.export.stored import StoredSparse
from lc_keras.measuring.packing import pack


def sparse_matrix(shape, density):
    random = np.random.default_rng(0)
    return (random.normal(size=shape) * (random.random(shape) < density)).astype("float32")


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
def test_multiplies_any_number_of_rows(density):
    matrix = sparse_matrix((30, 70), density)
    weight = StoredSparse(pack(matrix, dense=False), "float32")
    weight.load()
    function = tf.function(lambda x: multiply(x, weight), input_signature=[tf.TensorSpec([None, 70])])
    for rows in (0, 1, 16, 17, 31, 32, 100):
        x = np.random.normal(size=(rows, 70)).astype("float32")
        np.testing.assert_allclose(function(x), x @ matrix.T, rtol=1e-5, atol=1e-5)


def test_multiplies_the_last_axis_of_more():
    matrix = sparse_matrix((3, 5), 0.5)
    weight = StoredSparse(pack(matrix, dense=False), "float32")
    weight.load()
    x = np.random.normal(size=(2, 4, 6, 5)).astype("float32")
    np.testing.assert_allclose(multiply(x, weight), x @ matrix.T, rtol=1e-5, atol=1e-6)


def test_a_dense_kernel_is_not_in_memory(tmp_path):
    model = keras.Sequential([keras.Input((300,)), keras.layers.Dense(400)])
    model.layers[0].kernel.assign(sparse_matrix((300, 400), 0.02))
    export_saved_model(model, tmp_path, compute="sparse")
    loaded = tf.saved_model.load(str(tmp_path))
    variables = [
        v
        for weight in loaded.stored
        for v in (*weight.values.held, weight.places, weight.entries, weight.indices)
    ]
    assert sum(v.numpy().size for v in variables) < 0.15 * 120_000
    functions = loaded.serve.get_concrete_function(tf.zeros([2, 300])).graph.as_graph_def().library.function
    operations = {n.op for f in functions for n in f.node_def}
    assert {"SparseMatrixMatMul", "SparseTensorDenseMatMul"} <= operations
    assert not {"MatMul", "BatchMatMulV2"} & operations


@pytest.mark.parametrize(
    "dtype", ["int32", "bool", *(pytest.param(name, marks=pytest.mark.slow) for name in ("uint8", "float64"))]
)
def test_inputs_of_other_types(tmp_path, dtype):
    counts = keras.Input((50,), dtype=dtype)
    model = keras.Model(counts, keras.layers.Dense(20)(counts))
    model.layers[-1].kernel.assign(sparse_matrix((50, 20), 0.1))
    export_saved_model(model, tmp_path, compute="sparse")
    x = tf.cast(np.random.randint(0, 2, (40, 50)), dtype)
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-5, atol=1e-5)


def test_which_layers():
    image = keras.Input((8, 8, 4))
    layers = [
        keras.layers.Conv2D(4, 3),
        keras.layers.Conv2D(4, 1, name="pointwise"),
        keras.layers.Conv2D(4, 1, groups=2),
        keras.layers.Conv2D(4, 1, dtype="mixed_bfloat16"),
        keras.layers.Conv2DTranspose(4, 1),
        keras.layers.Dense(4, name="dense"),
        keras.layers.Dense(4, dtype="float16"),
    ]
    model = keras.Sequential([image, *layers])
    model.get_layer("dense").bias.assign(np.ones(4))
    assert [layer.name for layer in sparse_layers(model)] == ["pointwise", "dense"]
    model.get_layer("dense").enable_lora(2)
    assert [layer.name for layer in sparse_layers(model)] == ["pointwise"]


class Doubled(keras.layers.Dense):
    def call(self, inputs, training=None):
        return 2 * super().call(inputs)


def test_layers_that_share_a_kernel_or_change_the_call(tmp_path):
    x = keras.Input((50,))
    shared = keras.layers.Dense(50, "tanh")
    model = keras.Model(x, Doubled(3)(shared(shared(x))))
    model.layers[1].kernel.assign(sparse_matrix((50, 50), 0.1))
    exported = export_saved_model(model, tmp_path, compute="sparse")
    assert [w.compute for w in exported.weights] == ["sparse", "dense", "dense", "dense"]
    loaded, data = tf.saved_model.load(str(tmp_path)), np.random.normal(size=(40, 50)).astype("float32")
    np.testing.assert_allclose(loaded.serve(data), model(data), rtol=1e-5, atol=1e-5)


def test_the_model_keeps_its_methods(tmp_path):
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    export_saved_model(model, tmp_path, compute="sparse")
    assert "call" not in vars(model.layers[0])
    np.testing.assert_array_equal(model(np.zeros((1, 3))), [[0, 0]])


def test_the_rule():
    large, small = (4096, 4096), (300, 784)
    for batch in (1, 8, 16, 17, 32, 128, 1000):
        assert gain(large, int(0.02 * 4096**2), batch) > ENOUGH
        assert gain(large, int(0.3 * 4096**2), batch) < ENOUGH
        assert gain(large, 4096**2, batch) < ENOUGH
    assert gain(small, int(0.02 * 784 * 300), 1) < ENOUGH and gain((10, 4096), 800, 1) < ENOUGH


@pytest.mark.parametrize("sizes", [(14, 1), pytest.param((1, 14), marks=pytest.mark.slow)])
def test_auto_tells_layers_of_one_name_apart(tmp_path, sizes):
    def tower(size):
        image = keras.Input((size, size, 1024))
        pixels = keras.layers.Conv2D(1024, 1, name="pointwise")(image)
        return keras.Model(image, keras.layers.GlobalAveragePooling2D()(pixels))

    towers = [tower(size) for size in sizes]
    inputs = [keras.Input((size, size, 1024)) for size in sizes]
    outputs = [net(image) for net, image in zip(towers, inputs, strict=True)]
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Concatenate()(outputs)))
    for net in towers:
        net.layers[1].kernel.assign(sparse_matrix((1, 1, 1024, 1024), 0.02))
    exported = export_saved_model(model, tmp_path, compute="auto", expected_batch=1)
    kernels = [w.compute for w in exported.weights if w.path == "pointwise/kernel"]
    assert kernels == ["sparse" if size == 14 else "dense" for size in sizes]
    assert "may be this many times as fast: pointwise/kernel (1.3)." in str(exported).replace("\n", " ")


def test_auto_decides_layer_by_layer_and_by_batch(tmp_path):
    image = keras.Input((32, 32, 512))
    x = keras.layers.Conv2D(512, 1, name="pointwise")(image)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(image, keras.layers.Dense(1000, name="wide")(x))
    for layer in model.layers[1:]:
        if layer.weights:
            layer.kernel.assign(sparse_matrix(layer.kernel.shape, 0.01))

    def sparse(**options):
        exported = export_saved_model(model, tmp_path, version="next", compute="auto", **options)
        return [w.path for w in exported.weights if w.compute == "sparse"]

    # A row for each pixel: 1,024 per image.
    assert sparse(expected_batch=1) == ["pointwise/kernel"]
    assert sparse(expected_batch=(1, 4096)) == ["pointwise/kernel"]
    assert sparse(expected_batch=np.int64(4096)) == ["pointwise/kernel", "wide/kernel"]


def test_a_kernel_that_a_subclass_computes_stays_dense(tmp_path):
    class Doubled(keras.layers.Dense):
        @property
        def kernel(self):
            return super().kernel * 2.0

    model = keras.Sequential([keras.Input((5,)), Doubled(4), keras.layers.Dense(3)])
    exported = export_saved_model(model, tmp_path, compute="sparse")
    assert [w.compute for w in exported.weights if "kernel" in w.path] == ["dense", "sparse"]
    x = np.random.normal(size=(2, 5)).astype("float32")
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-5, atol=1e-6)


def shapes_in(path):
    return [shape for _, shape in tf.train.list_variables(str(path / "variables/variables"))]


class Twice(keras.layers.Conv2D):
    def call(self, inputs):
        return self.convolution_op(inputs, 2 * self.kernel)


def test_which_convolutions():
    called = keras.layers.Conv2D(4, 1)
    called.call = lambda inputs: 2 * keras.layers.Conv2D.call(called, inputs)
    pixels = keras.layers.Conv2D(4, 1, name="pixels")
    layers = [Twice(4, 1), called, keras.layers.Conv2D(4, (1, 3)), pixels]
    assert sparse_layers(keras.Sequential([keras.Input((8, 8, 4)), *layers])) == [pixels]
    first = keras.layers.Conv2D(4, 1, data_format="channels_first")
    assert sparse_layers(keras.Sequential([keras.Input((4, 8, 8)), first])) == []


@pytest.mark.parametrize(
    "size, layer",
    [
        ((20, 40), keras.layers.Conv1D(30, 1, strides=2, padding="same", activation="relu")),
        ((6, 5, 4, 40), keras.layers.Conv3D(30, 1, strides=(1, 2, 1), use_bias=False)),
    ],
    ids=["1D", "3D"],
)
def test_convolutions_multiply_sparse(tmp_path, size, layer):
    model = keras.Sequential([keras.Input(size), layer])
    layer.kernel.assign(sparse_matrix(layer.kernel.shape, 0.1))
    if layer.use_bias:
        layer.bias.assign(np.linspace(-1, 1, 30))
    export_saved_model(model, tmp_path, compute="sparse")
    loaded, x = tf.saved_model.load(str(tmp_path)), np.random.normal(size=(3, *size)).astype("float32")
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-5, atol=1e-5)
    assert list(layer.kernel.shape) not in shapes_in(tmp_path)


class Mapped(keras.layers.Layer):
    """A dense layer that is applied to each row."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(30)

    def build(self, shape):
        self.dense.build(shape[2:])

    def call(self, inputs):
        return keras.ops.vectorized_map(lambda row: self.dense(row[None])[0], inputs[0])[None]


def test_in_a_vectorised_map(tmp_path):
    x = keras.Input((4, 50), batch_size=1)
    model = keras.Model(x, Mapped()(x))
    model.layers[1].dense.kernel.assign(sparse_matrix((50, 30), 0.1))
    export_saved_model(model, tmp_path, compute="sparse")
    loaded, x = tf.saved_model.load(str(tmp_path)), np.random.normal(size=(1, 4, 50)).astype("float32")
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [3, None])
def test_a_layer_for_each_step_is_sparse_where_the_steps_are_known(steps):
    x = keras.Input((steps, 50))
    layer = keras.layers.Dense(30)
    model = keras.Model(x, keras.layers.TimeDistributed(layer)(x))
    assert sparse_layers(model) == ([layer] if steps else [])


def test_sparse_inputs(tmp_path):
    words = keras.Input((), dtype="string")
    vocabulary = [f"w{i}" for i in range(50)]
    seen = keras.layers.TextVectorization(vocabulary=vocabulary, output_mode="multi_hot", sparse=True)
    model = keras.Model(words, keras.layers.Dense(20)(seen(words)))
    model.layers[-1].kernel.assign(sparse_matrix(model.layers[-1].kernel.shape, 0.2))
    export_saved_model(model, tmp_path, compute="sparse")
    loaded, x = tf.saved_model.load(str(tmp_path)), tf.constant(["w1 w3 w7", "w30"])
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-5, atol=1e-5)


class Tied(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense, self.alone = keras.layers.Dense(50), keras.layers.Dense(50)

    def call(self, inputs):
        return keras.ops.matmul(self.alone(self.dense(inputs)), keras.ops.transpose(self.dense.kernel))


def test_a_kernel_that_is_read_elsewhere_is_written_once(tmp_path):
    model, x = Tied(), np.random.normal(size=(40, 50)).astype("float32")
    model(x)
    for layer in (model.dense, model.alone):
        layer.kernel.assign(sparse_matrix((50, 50), 0.1))
    exported = export_saved_model(model, tmp_path, compute="sparse")
    assert [w.compute for w in exported.weights if "kernel" in w.path] == ["dense", "sparse"]
    loaded = tf.saved_model.load(str(tmp_path))
    np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-5, atol=1e-5)
