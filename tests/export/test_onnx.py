"""Pruned models survive Keras's own export to ONNX."""

import keras
import numpy as np
import pytest

pytest.importorskip("tf2onnx")
onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")


def test_a_pruned_model_runs_in_onnxruntime_with_its_zeros(tmp_path):
    layers = [keras.layers.Conv2D(8, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input((8, 8, 2)), *layers])
    for layer in (model.layers[0], model.layers[2]):
        layer.kernel.assign(layer.kernel * (np.random.random(layer.kernel.shape) < 0.1))
    zeros = sorted(int(np.sum(np.asarray(model.layers[i].kernel) == 0)) for i in (0, 2))
    x = np.random.normal(size=(5, 8, 8, 2)).astype("float32")
    expected = model(x)
    path = str(tmp_path / "net.onnx")
    model.export(path, format="onnx", verbose=False)

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (outputs,) = session.run(None, {session.get_inputs()[0].name: x})
    np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)

    stored = (onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer)
    assert sorted(int(np.sum(a == 0)) for a in stored if a.ndim in (2, 4)) == zeros
