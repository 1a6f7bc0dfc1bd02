"""What an export says about itself, and what lies beside it for a model server."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

import lc_keras
from examples.serving import client
from lc_keras.export import LiteRTExport, export_saved_model


def net():
    layers = [
        keras.Input((200,), name="pixels"),
        keras.layers.Dense(300, "relu"),
        keras.layers.Reshape((30, 10)),
        keras.layers.Flatten(),
        keras.layers.Dense(10, name="digits"),
    ]
    model = keras.Sequential(layers)
    for layer in (model.layers[0], model.layers[-1]):
        layer.kernel.assign(layer.kernel.numpy() * (np.random.random(layer.kernel.shape) < 0.02))
    return model


def test_it_says_that_units_are_dead(tmp_path):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
    assert "dead" not in str(export_saved_model(model, tmp_path / "alive"))
    first, last = model.layers
    first.kernel.assign(first.kernel * np.float32(np.arange(8) > 1))
    exported = export_saved_model(model, tmp_path / "dead")
    assert exported.dead == 2 and "2 units are dead: `lc_keras.shrink`" in str(exported)
    assert "dead" not in str(export_saved_model(lc_keras.shrink(model), tmp_path / "small"))
    # Units that nothing reads are dead, too, and so are those of layers that are not trained.
    first.kernel.assign(np.ones((4, 8)))
    last.kernel.assign(np.ones((8, 3)) * (np.arange(8) > 0)[:, None])
    model.trainable = False
    assert export_saved_model(model, tmp_path / "unread").dead == 1
    model.trainable = True
    # Outputs of the model cannot be removed.
    last.kernel.assign(np.ones((8, 3)) * np.float32([0, 1, 1]))
    assert "dead" not in str(export_saved_model(model, tmp_path / "outputs"))


def test_it_says_its_inputs_and_compares_files(tmp_path):
    model = net()
    packed = export_saved_model(model, tmp_path / "packed")
    dense = export_saved_model(model, tmp_path / "dense", storage="dense", compute="dense")
    assert "Inputs: pixels float32 (any, 200)." in str(packed)
    # The estimate differs from the file only by the graph that unpacks.
    assert dense.dense_nbytes == dense.nbytes <= packed.dense_nbytes < dense.nbytes + 20_000
    assert f"about {packed.dense_nbytes / 1000:,.0f} kB if every weight were stored" in str(packed)
    assert "if every weight" not in str(dense)


def test_it_says_what_is_larger_sparse_than_dense(tmp_path):
    model = net()
    assert "Larger" not in str(export_saved_model(model, tmp_path / "pruned", compute="sparse"))
    last = model.layers[-1]
    last.kernel.assign(np.random.random(last.kernel.shape))
    exported = export_saved_model(model, tmp_path / "full", compute="sparse")
    assert f"Larger sparse than dense, with too few zeros: {last.kernel.path}." in str(exported)


def test_in_a_notebook_it_is_a_table(tmp_path):
    exported = export_saved_model(net(), tmp_path / "1")
    shown = exported._repr_html_()
    assert all(weight.path in shown for weight in exported.weights) and "linear-gradient" in shown
    lite = LiteRTExport("net.tflite", 500, 2000, True, 1e-7, "")
    assert "25.0%, transparent" in lite._repr_html_() and "\n" not in str(lite)


def test_nothing_of_it_must_be_compiled_by_xla(tmp_path):
    """A model server refuses such functions by default."""
    model = net()
    model.compile("sgd", "mse", jit_compile=True)
    model.fit(np.ones((4, 200)), np.ones((4, 10)), verbose=0)
    for compute in ("dense", "sparse"):
        export_saved_model(model, tmp_path / compute, compute=compute)
        saved = saved_model_pb2.SavedModel.FromString((tmp_path / compute / "saved_model.pb").read_bytes())
        graph = saved.meta_graphs[0].graph_def
        functions = [function.attr for function in graph.library.function]
        nodes = [node.attr for part in (graph, *graph.library.function) for node in getattr(part, "node", [])]
        nodes += [node.attr for function in graph.library.function for node in function.node_def]
        assert len(functions) > 2 and len(nodes) > 10
        for attributes in functions + nodes:
            assert not attributes["_XlaMustCompile"].b, compute


def test_a_litert_file_lies_beside_it_on_request(tmp_path):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    model = net()
    exported = export_saved_model(model, tmp_path, version=3, litert=True)
    file = tmp_path / "3" / "model.tflite"
    assert file.stat().st_size == exported.litert.nbytes and exported.litert.sparse
    assert "Wrote 'model.tflite'" in str(exported)
    answer = interpreter.Interpreter(model_path=str(file)).get_signature_runner("serving_default")
    served = tf.saved_model.load(str(tmp_path / "3"))
    for size in (1, 5):
        x = np.random.normal(size=(size, 200)).astype("float32")
        np.testing.assert_allclose(answer(pixels=x)["digits"], model(x), atol=1e-4)
        np.testing.assert_allclose(served.serve(x), model(x), atol=1e-4)
    assert export_saved_model(model, tmp_path, version=4).litert is None
    assert not (tmp_path / "4" / "model.tflite").exists()


def test_the_client_without_a_server_ends_in_one_line(monkeypatch):
    monkeypatch.setattr("sys.argv", ["client", "--rest", "http://localhost:1"])
    with pytest.raises(SystemExit) as stopped:
        client.main()
    assert "No answer from the model 'digits' at http://localhost:1" in stopped.value.code
    assert "\n" not in stopped.value.code
