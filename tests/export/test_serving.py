"""Exports under TensorFlow Serving: its files, its tools, and the server itself where there is one."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2

from c_api import CSession
from examples.serving import client
from lc_keras.export import export_saved_model

FILES = Path(__file__).parents[2] / "examples" / "serving"
SERVER = shutil.which("tensorflow_model_server")


def net():
    layers = [keras.layers.Dense(300, "relu"), keras.layers.Dense(10, name="logits")]
    model = keras.Sequential([keras.Input((64,), name="pixels"), *layers])
    kernel = model.layers[0].kernel
    kernel.assign(kernel * (np.random.random(kernel.shape) < 0.05))
    return model


def test_models_config_by_the_servers_proto():
    module = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    config = text_format.Parse((FILES / "models.config").read_text(), module.ModelServerConfig())
    (model,) = config.model_config_list.config
    assert (model.name, model.base_path, model.model_platform) == ("digits", "/models/digits", "tensorflow")
    assert model.model_version_policy.latest.num_versions == 1
    # What the comment says to write instead.
    instead = re.search(r"# (model_version_policy .*)", (FILES / "models.config").read_text())[1]
    text_format.Parse(instead, type(model)())


def batching_parameters():
    """The server's message, built from the numbers and types in its session_bundle_config.proto.

    `tensorflow-serving-api` does not ship it.
    """
    field = descriptor_pb2.FieldDescriptorProto
    int64_value = {"type": field.TYPE_MESSAGE, "type_name": ".google.protobuf.Int64Value"}
    string_value = {"type": field.TYPE_MESSAGE, "type_name": ".google.protobuf.StringValue"}
    fields = [
        field(name="max_batch_size", number=1, label=1, **int64_value),
        field(name="batch_timeout_micros", number=2, label=1, **int64_value),
        field(name="max_enqueued_batches", number=3, label=1, **int64_value),
        field(name="num_batch_threads", number=4, label=1, **int64_value),
        field(name="thread_pool_name", number=5, label=1, **string_value),
        field(name="allowed_batch_sizes", number=6, label=3, type=field.TYPE_INT64),
        field(name="pad_variable_length_inputs", number=7, label=1, type=field.TYPE_BOOL),
    ]
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto",
        package="tensorflow.serving",
        syntax="proto3",
        dependency=[wrappers_pb2.DESCRIPTOR.name],
        message_type=[descriptor_pb2.DescriptorProto(name="BatchingParameters", field=fields)],
    )
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(wrappers_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    descriptor = pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters")
    return message_factory.GetMessageClass(descriptor)()


def test_batching_config():
    parameters = text_format.Parse((FILES / "batching.config").read_text(), batching_parameters())
    sizes = list(parameters.allowed_batch_sizes)
    # What the server requires of the sizes.
    assert sizes == sorted(set(sizes)) and sizes[-1] == parameters.max_batch_size.value
    assert parameters.num_batch_threads.value >= 1


def test_the_compose_file_fits_the_other_files():
    lines = [line.split("#")[0].strip() for line in (FILES / "docker-compose.yml").read_text().splitlines()]
    assert {'- "8500:8500"', '- "8501:8501"'} <= set(lines)
    for line in lines:
        if "_file=/config/" in line:
            assert (FILES / line.rsplit("/", 1)[1]).exists()
    assert sum("_file=/config/" in line for line in lines) == 2


@pytest.mark.slow
def test_saved_model_cli(tmp_path):
    model, x = net(), np.random.normal(size=(3, 64)).astype("float32")
    export_saved_model(model, tmp_path / "1", compute="sparse")
    np.save(tmp_path / "x.npy", x)
    cli = [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli"]
    choice = ["--dir", tmp_path / "1", "--tag_set", "serve", "--signature_def", "serving_default"]
    shown = subprocess.run([*cli, "show", *choice], capture_output=True, text=True, check=True).stdout
    shown = " ".join(shown.split())
    assert "inputs['pixels'] tensor_info: dtype: DT_FLOAT shape: (-1, 64)" in shown
    assert "outputs['logits'] tensor_info: dtype: DT_FLOAT shape: (-1, 10)" in shown
    run = [*cli, "run", *choice, "--inputs", f"pixels={tmp_path / 'x.npy'}", "--outdir", tmp_path]
    subprocess.run(run, capture_output=True, check=True)
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), model(x), rtol=1e-5, atol=1e-6)


@contextlib.contextmanager
def answering(session):
    """The two interfaces of the model server, in this process, over a model loaded through the C API."""
    import grpc
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):
            assert request.model_spec.name == "digits"
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            response = predict_pb2.PredictResponse()
            for name, array in session.run(request.model_spec.signature_name, **inputs).items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(array))
            return response

    class Rest(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/models/digits:predict"
            inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["inputs"]
            (outputs,) = session.run(**{name: np.array(value) for name, value in inputs.items()}).values()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"outputs": outputs.tolist()}).encode())

        def log_message(self, *_):
            pass

    server = grpc.server(futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    rest = ThreadingHTTPServer(("localhost", 0), Rest)
    threading.Thread(target=rest.serve_forever, daemon=True).start()
    try:
        yield f"http://localhost:{rest.server_port}", f"localhost:{port}"
    finally:
        rest.shutdown()
        rest.server_close()
        server.stop(0).wait()


def test_the_client_speaks_both_interfaces(tmp_path, capsys, monkeypatch):
    pytest.importorskip("tensorflow_serving")
    model, x = net(), np.random.normal(size=(3, 64)).astype("float32")
    export_saved_model(model, tmp_path / "1")
    with CSession(tmp_path / "1") as session, answering(session) as (rest, grpc):
        np.testing.assert_allclose(client.by_rest(rest, "digits", x), model(x), rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(client.by_grpc(grpc, "digits")(x), model(x))
        options = ["client.py", "--rest", rest, "--grpc", grpc, "--requests", "5", "--batch", "4"]
        monkeypatch.setattr(sys, "argv", options)
        client.main()
    printed = capsys.readouterr().out
    for interface in ("REST", "gRPC"):
        assert re.search(rf"{interface}: [\d.]+ % right of 20; latency p50 [\d.]+, p90 [\d.]+, p99", printed)


@pytest.fixture
def served(tmp_path):
    """A running tensorflow_model_server: its URL, its gRPC address, and the base directory it watches."""
    url, base = os.environ.get("TF_SERVING_URL"), os.environ.get("TF_SERVING_MODEL_DIR")
    if url and base:
        # The directory that the server at that URL serves as the model "digits".
        grpc = os.environ.get("TF_SERVING_GRPC", f"{url.split('//')[1].split(':')[0]}:8500")
        export_saved_model(net(), base, version="next")
        wait_until_available(url)
        yield url, grpc, Path(base)
        return
    if SERVER is None:
        pytest.skip("no tensorflow_model_server on the PATH, nor TF_SERVING_URL and TF_SERVING_MODEL_DIR")
    base = tmp_path / "digits"
    export_saved_model(net(), base, version="next", warmup=np.ones((2, 64)))
    rest, grpc = free_port(), free_port()
    command = [
        SERVER, f"--rest_api_port={rest}", f"--port={grpc}", "--model_name=digits",
        f"--model_base_path={base}", "--file_system_poll_wait_seconds=1",
        "--enable_batching", f"--batching_parameters_file={FILES / 'batching.config'}",
    ]  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_until_available(f"http://localhost:{rest}")
        yield f"http://localhost:{rest}", f"localhost:{grpc}", base
    finally:
        process.terminate()
        process.wait(30)


def free_port():
    with socket.socket() as found:
        found.bind(("localhost", 0))
        return found.getsockname()[1]


def status(url):
    with urllib.request.urlopen(f"{url}/v1/models/digits", timeout=5) as answer:
        versions = json.load(answer)["model_version_status"]
    return {int(v["version"]) for v in versions if v["state"] == "AVAILABLE"}


def wait_until_available(url, version=None):
    for _ in range(240):
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            found = status(url)
            if found and version in (None, *found):
                return
        time.sleep(0.25)
    raise TimeoutError(f"version {version or 'any'} of the model did not become available")


def test_a_real_server_answers_and_takes_up_a_new_version(served):
    pytest.importorskip("tensorflow_serving")
    url, grpc, base = served
    predict = client.by_grpc(grpc, "digits")
    x = np.random.normal(size=(5, 64)).astype("float32")
    failures, answers, stop = [], [], threading.Event()

    def send():
        while not stop.is_set():
            try:
                answers.append((predict(x), client.by_rest(url, "digits", x)))
            except Exception as error:
                failures.append(error)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        model = net()
        exported = export_saved_model(model, base, compute="sparse")
        wait_until_available(url, int(Path(exported.path).name))
        time.sleep(1)
    finally:
        stop.set()
        sender.join()
    assert not failures and len(answers) > 1
    for served_answer in (predict(x), client.by_rest(url, "digits", x)):
        np.testing.assert_allclose(served_answer, model(x), rtol=1e-4, atol=1e-5)
