import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from c_api import CSession
from lc_keras.export import export_saved_model
from lc_keras.export.warmup import as_requests

PIXELS, WORDS = tf.TensorSpec([None, 5], "float32", "pixels"), tf.TensorSpec([None, None], "int64", "words")


def net():
    return keras.Sequential([keras.Input((5,), name="pixels"), keras.layers.Dense(3, name="logits")])


def read(folder):
    """The requests in a SavedModel, by the server's own protos."""
    prediction_log_pb2 = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    return [prediction_log_pb2.PredictionLog.FromString(record) for record in records]


@pytest.mark.parametrize("compute", ["dense", "sparse"])
def test_records_replay(tmp_path, compute):
    pytest.importorskip("tensorflow_serving")
    batches = [np.random.normal(size=(n, 5)) for n in (1, 20)]
    model = net()
    exported = export_saved_model(model, tmp_path, warmup=batches, compute=compute)
    logs = read(tmp_path)
    assert exported.warmup_nbytes == sum(log.ByteSize() + 16 for log in logs)
    assert "; of these warm-up requests 1 kB." in str(exported)
    assert len(logs) == 2
    with CSession(tmp_path) as session:
        for log, batch in zip(logs, batches, strict=True):
            assert log.WhichOneof("log_type") == "predict_log"
            request = log.predict_log.request
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            assert request.model_spec.signature_name == "serving_default"
            np.testing.assert_array_equal(inputs["pixels"], batch.astype("float32"))
            served = session.run(request.model_spec.signature_name, **inputs)
            np.testing.assert_allclose(served["logits"], model(inputs["pixels"]), rtol=1e-5, atol=1e-6)


def test_names_that_tensorflow_would_change(tmp_path):
    pytest.importorskip("tensorflow_serving")
    inputs = {name: keras.Input((5,), name=name) for name in ("24h", "größe", "class")}
    model = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Add()(list(inputs.values()))))
    x = np.random.normal(size=(2, 5)).astype("float32")
    by_name = dict.fromkeys(("arg_24h", "gr__e", "arg_class"), x)
    export_saved_model(model, tmp_path, warmup=[by_name, dict.fromkeys(inputs, x)])
    assert all(set(log.predict_log.request.inputs) == set(by_name) for log in read(tmp_path))
    with CSession(tmp_path) as session:
        (served,) = session.run(**by_name).values()
    np.testing.assert_allclose(served, model(dict.fromkeys(inputs, x)), rtol=1e-5, atol=1e-6)


def test_requests():
    one = as_requests(np.ones((2, 5), int), [PIXELS])
    assert one[0]["pixels"].dtype == "float32" and one[0]["pixels"].shape == (2, 5)
    both = {"pixels": np.ones((2, 5)), "words": [[1, 2], [3, 4]]}
    (request,) = as_requests(both, [PIXELS, WORDS])
    assert request["words"].dtype == "int64" and request["words"].tolist() == both["words"]
    assert len(as_requests([both, both], [PIXELS, WORDS])) == 2


@pytest.mark.parametrize(
    "warmup, message",
    [
        ([], "1 to 1000 requests. Received: 0"),
        ([np.ones((1, 5))] * 1001, "Received: 1001"),
        (np.ones((2, 4)), r"'pixels' of shape \(None, 5\). Received: shape \(2, 4\)"),
        ({"images": np.ones((2, 5))}, "inputs pixels. Received: images"),
    ],
    ids=["none", "many", "shape", "name"],
)
def test_requests_that_do_not_fit(tmp_path, warmup, message):
    with pytest.raises(ValueError, match=message):
        export_saved_model(net(), tmp_path / "1", warmup=warmup)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match="dictionary with the keys pixels, words"):
        as_requests(np.ones((2, 5)), [PIXELS, WORDS])


def test_without_the_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis", None)
    with pytest.raises(ImportError, match=r"lc_keras\[serving\]"):
        export_saved_model(net(), tmp_path / "1", warmup=np.ones((1, 5)))
    assert list(tmp_path.iterdir()) == []
    export_saved_model(net(), tmp_path / "1")


def test_inputs_that_the_model_does_not_have():
    x = np.ones((2, 5))
    for given in ({"pixels": x, "more": x}, {"": x}):
        with pytest.raises(ValueError, match="Expected a request of `warmup` for the inputs pixels. Rec"):
            as_requests(given, [PIXELS])
