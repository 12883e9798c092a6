"""curl, requests and TF Serving's gRPC stubs get the live model's answers."""

import base64
import json
import re
import subprocess
import sys
import threading

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.serve.conftest import BINARY, resident_mib
from tfft.evaluation.metrics import softmax
from tfft.export.signatures import example, padded

BOUND = 1e-5  # largest difference of a probability
ROWS = ["a red sky", "", "GREEN grass!", "the blue " * 20, "é 好"]


@pytest.fixture(scope="module")
def live(exported):
    return softmax(exported.logits(ROWS))


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.grpc) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


def examples(rows):
    return [example(["text"], [row]) for row in rows]


def request_for(server, message, signature=""):
    message.model_spec.name = server.name
    message.model_spec.signature_name = signature
    return message


def test_curl(server, live, tmp_path):
    (tmp_path / "body").write_text(json.dumps({"instances": ROWS}))
    command = ["curl", "-s", "--fail", "-d", f"@{tmp_path / 'body'}", f"{server.model}:predict"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    predictions = json.loads(process.stdout)["predictions"]
    np.testing.assert_allclose([row["probabilities"] for row in predictions], live, atol=BOUND)


def test_rows_and_columns(server, exported, live):
    rows = server.post(json={"instances": [{"text": row} for row in ROWS]}).json()["predictions"]
    np.testing.assert_allclose([row["probabilities"] for row in rows], live, atol=BOUND)
    assert [row["label"] for row in rows] == [exported.labels[i] for i in live.argmax(1)]
    raw = [{"b64": base64.b64encode(row.encode()).decode()} for row in ROWS]
    assert server.post(json={"instances": raw}).json()["predictions"] == rows
    for inputs in (ROWS, {"text": ROWS}):
        columns = server.post(json={"inputs": inputs}).json()["outputs"]
        assert set(columns) == {"probabilities", "label"}
        np.testing.assert_allclose(columns["probabilities"], live, atol=BOUND)


def test_prepared_and_serialized(server, exported, live):
    batch = padded(exported.inputs, exported.inputs.batch(ROWS))
    tensors = {name: array.tolist() for name, array in batch.items()}
    outputs = server.post(json={"inputs": tensors, "signature_name": "tensors"}).json()["outputs"]
    np.testing.assert_allclose(outputs["probabilities"], live, atol=BOUND)
    raw = [{"b64": base64.b64encode(serialized).decode()} for serialized in examples(ROWS)]
    body = {"instances": raw, "signature_name": "serialized"}
    outputs = server.post(json=body).json()["predictions"]
    np.testing.assert_allclose([row["probabilities"] for row in outputs], live, atol=BOUND)


def test_classify(server, exported, live):
    body = {"signature_name": "classify", "examples": [{"text": row} for row in ROWS]}
    results = server.post("classify", json=body).json()["results"]
    assert [[label for label, _ in row] for row in results] == [exported.labels] * len(ROWS)
    np.testing.assert_allclose([[score for _, score in row] for row in results], live, atol=BOUND)
    body = {"signature_name": "classify", "context": {"text": ROWS[0]}, "examples": [{}, {}]}
    results = server.post("classify", json=body).json()["results"]
    np.testing.assert_allclose(
        [[score for _, score in row] for row in results], live[[0, 0]], atol=BOUND
    )


def test_status_and_metadata(server):
    for path in ("", "/versions/1"):
        reply = requests.get(f"{server.model}{path}", timeout=10).json()
        (entry,) = reply["model_version_status"]
        assert (entry["version"], entry["state"]) == ("1", "AVAILABLE")
        assert entry["status"] == {"error_code": "OK", "error_message": ""}
    reply = requests.get(f"{server.model}/metadata", timeout=10).json()
    assert reply["model_spec"] == {"name": server.name, "signature_name": "", "version": "1"}
    signatures = reply["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) >= {"serving_default", "tensors", "serialized", "classify"}
    assert signatures["classify"]["method_name"] == "tensorflow/serving/classify"
    text = signatures["serving_default"]["inputs"]["text"]
    assert text["dtype"] == "DT_STRING" and text["tensor_shape"]["dim"][0]["size"] == "-1"


def test_grpc_predict(server, stub, exported, live):
    request = request_for(server, predict_pb2.PredictRequest())
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(ROWS))
    reply = stub.Predict(request, timeout=30)
    assert reply.model_spec.version.value == 1
    probabilities = tf.make_ndarray(reply.outputs["probabilities"])
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, live, atol=BOUND)
    request.output_filter.append("label")
    assert set(stub.Predict(request, timeout=30).outputs) == {"label"}
    tensors = request_for(server, predict_pb2.PredictRequest(), "tensors")
    for name, value in padded(exported.inputs, exported.inputs.batch(ROWS)).items():
        tensors.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    probabilities = tf.make_ndarray(stub.Predict(tensors, timeout=30).outputs["probabilities"])
    np.testing.assert_allclose(probabilities, live, atol=BOUND)


def test_grpc_classify_and_multi_inference(server, stub, exported, live):
    request = request_for(server, classification_pb2.ClassificationRequest(), "classify")
    for entry in examples(ROWS):
        request.input.example_list.examples.add().ParseFromString(entry)
    rows = stub.Classify(request, timeout=30).result.classifications
    scores = [[entry.score for entry in row.classes] for row in rows]
    np.testing.assert_allclose(scores, live, atol=BOUND)
    assert [entry.label for entry in rows[0].classes] == exported.labels
    multi_request = inference_pb2.MultiInferenceRequest(input=request.input)
    task = multi_request.tasks.add(method_name="tensorflow/serving/classify")
    task.model_spec.CopyFrom(request.model_spec)
    (result,) = stub.MultiInference(multi_request, timeout=30).results
    assert result.classification_result.classifications == rows


def test_grpc_example_that_tensorflow_cannot_parse(server, stub):
    request = request_for(server, classification_pb2.ClassificationRequest(), "classify")
    # A map entry with fields it does not have; TensorFlow quotes the bytes, which are not UTF-8.
    unknown = b"\n\x0f\n\r\x80\x04text\x12\x05\n\x03\n\x01a"
    request.input.example_list.examples.add().ParseFromString(unknown)
    with pytest.raises(grpc.RpcError) as refused:
        stub.Classify(request, timeout=30)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "Could not parse example input" in refused.value.details()


def test_grpc_metadata_and_status(server, stub):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    reply = stub.GetModelMetadata(request_for(server, request), timeout=10)
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert reply.metadata["signature_def"].Unpack(signatures)
    assert "classify" in signatures.signature_def
    with grpc.insecure_channel(server.grpc) as channel:
        models = model_service_pb2_grpc.ModelServiceStub(channel)
        status_request = get_model_status_pb2.GetModelStatusRequest()
        status_request.model_spec.name = server.name
        (entry,) = models.GetModelStatus(status_request, timeout=10).model_version_status
    assert entry.version == 1 and entry.state == entry.AVAILABLE


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (lambda r: setattr(r.model_spec, "name", "none"), "NOT_FOUND", "Servable not found"),
        (lambda r: setattr(r.model_spec.version, "value", 9), "NOT_FOUND", "Servable not found"),
        (lambda r: setattr(r.model_spec, "version_label", "x"), "INVALID_ARGUMENT", "label: x"),
        (
            lambda r: setattr(r.model_spec, "signature_name", "no"),
            "FAILED_PRECONDITION",
            'Serving signature key "no" not found.',
        ),
        (lambda r: r.inputs.clear(), "INVALID_ARGUMENT", "Missing but required: {text}"),
        (lambda r: r.inputs["more"].CopyFrom(tf.make_tensor_proto(1)), "INVALID_ARGUMENT", "more"),
        (
            lambda r: r.inputs["text"].CopyFrom(tf.make_tensor_proto([1.0])),
            "INVALID_ARGUMENT",
            "Expects arg[0] to be string but float is provided",
        ),
        (lambda r: r.output_filter.append("logits"), "INVALID_ARGUMENT", "logits"),
    ],
)
def test_grpc_invalid_requests(server, stub, change, code, message):
    request = request_for(server, predict_pb2.PredictRequest())
    request.inputs["text"].CopyFrom(tf.make_tensor_proto(ROWS))
    change(request)
    with pytest.raises(grpc.RpcError) as error:
        stub.Predict(request, timeout=30)
    assert error.value.code() == grpc.StatusCode[code]
    assert message in error.value.details()


def test_requests_of_the_export_readme(server, base, live, tmp_path):
    """They run unchanged, except for the ports."""
    text = (base / "README.md").read_text().replace("http://localhost:8501", server.rest)
    text = text.replace("localhost:8500", server.grpc)
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        process = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert "0." in process.stdout
    (commands,) = re.findall(r"## Send requests\n\n```sh\n(.*?)```", text, re.DOTALL)
    answers = ("model_version_status", "predictions", "results", "metadata")
    for line, expected in zip(commands.splitlines(), answers, strict=True):
        process = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
        # `stable` is a label of the folder's models.config, which the binary does not get here.
        if server.process.args[0] != BINARY or "/labels/" not in line:
            assert expected in json.loads(process.stdout), line


def test_two_thousand_concurrent_requests_are_correct(server, live):
    """Each client gets the answer of its own row, and memory does not grow."""
    memory, wrong = None, []

    def client(client_index):
        with requests.Session() as session:
            for number in range(250):
                row = (client_index + number) % len(ROWS)
                reply = session.post(f"{server.model}:predict", json={"instances": [ROWS[row]]})
                probabilities = reply.json()["predictions"][0]["probabilities"]
                if not np.allclose(probabilities, live[row], atol=BOUND):
                    wrong.append((client_index, number, reply.text))

    for round_index in range(2):
        threads = [
            threading.Thread(target=client, args=(client_index,)) for client_index in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if round_index == 0:
            memory = resident_mib(server.process)
    assert not wrong, wrong[:3]
    assert resident_mib(server.process) - memory < 30  # MiB
