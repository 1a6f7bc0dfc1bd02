"""Sends handwritten digits to TensorFlow Serving, by REST and by gRPC.

    python -m examples.serving.client --export outputs/serving/digits   # trains, prunes and exports
    docker compose -f examples/serving/docker-compose.yml up -d
    python -m examples.serving.client

The first command writes another version each time; a running server picks it up without a pause.
"""

import argparse
import json
import sys
import time
import urllib.request

import numpy as np


def export(base):
    """Trains the net of `examples.digits`, prunes it to 5 % and exports its next version."""
    import keras

    import lc_keras
    from examples import data, digits

    keras.utils.set_random_seed(0)
    train, validation, test = data.digits()
    model = digits.build()
    digits.fit(model, train, validation, 30, "Reference")
    compress = lc_keras.LearningCompression(lc_keras.L0Constraint(0.05))
    digits.fit(model, train, validation, compress.epochs, "LC, 5 % kept", [compress])
    warmup = [test[0][:size] for size in (1, 16, 32, 64, 128)]
    lc_keras.export_saved_model(model, base, version="next", warmup=warmup, verbose=True)


def by_rest(url, name, images):
    """Returns the outputs for images, from `POST /v1/models/NAME:predict`."""
    body = json.dumps({"inputs": {"pixels": images.tolist()}}).encode()
    with urllib.request.urlopen(f"{url}/v1/models/{name}:predict", body, timeout=30) as answer:
        outputs = json.load(answer)["outputs"]
    # The server leaves out the name if there is only one output.
    return np.array(outputs if isinstance(outputs, list) else next(iter(outputs.values())))


def by_grpc(address, name):
    """Returns a function from images to outputs, over one gRPC channel."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    service = prediction_service_pb2_grpc.PredictionServiceStub(grpc.insecure_channel(address))

    def predict(images):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.model_spec.signature_name = "serving_default"
        request.inputs["pixels"].CopyFrom(tf.make_tensor_proto(images))
        (outputs,) = service.Predict(request, timeout=30).outputs.values()
        return tf.make_ndarray(outputs)

    return predict


def report(title, predict, images, labels, requests, batch):
    """Sends requests one after the other; prints answers and percentiles of latency."""
    milliseconds, right = [], 0
    for i in range(requests):
        chosen = np.arange(i * batch, (i + 1) * batch) % len(images)
        start = time.perf_counter()
        answers = predict(images[chosen]).argmax(axis=1)
        milliseconds.append(1e3 * (time.perf_counter() - start))
        right += int(np.sum(answers == labels[chosen]))
    percentiles = np.percentile(milliseconds, [50, 90, 99])
    print(f"{title}: the last answers {answers[:10].tolist()}, the digits {labels[chosen][:10].tolist()}")
    print(
        f"{title}: {100 * right / (requests * batch):.1f} % right of {requests * batch}; latency "
        "p50 {:.2f}, p90 {:.2f}, p99 {:.2f} ms".format(*percentiles)
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--export", metavar="BASE", help="write the next version to this directory, and stop")
    parser.add_argument("--rest", default="http://localhost:8501", help="URL of the REST server")
    parser.add_argument("--grpc", default="localhost:8500", help="address of the gRPC server")
    parser.add_argument("--name", default="digits", help="name of the model, as in models.config")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--batch", type=int, default=1)
    args = parser.parse_args()
    if args.export:
        export(args.export)
        return
    from examples import data

    _, _, (images, labels) = data.digits()
    sending = images, labels, args.requests, args.batch
    try:
        report("REST", lambda batch: by_rest(args.rest, args.name, batch), *sending)
    except OSError as error:
        sys.exit(
            f"No answer from the model '{args.name}' at {args.rest}: {error}. Is the server running? "
            "docker compose -f examples/serving/docker-compose.yml up -d"
        )
    report("gRPC", by_grpc(args.grpc, args.name), *sending)


if __name__ == "__main__":
    main()
