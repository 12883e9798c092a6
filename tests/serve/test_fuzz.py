"""Mutated requests get an answer or a client error, and the server keeps running."""

import json

import grpc
import pytest
import requests
import tensorflow as tf
from hypothesis import strategies as st
from tensorflow_serving.apis import classification_pb2, predict_pb2

from tests.fuzzing import EXAMPLES, VALUES, fuzz, mutated, replaced
from tfft.export.signatures import padded

CLIENT_ERRORS = {400, 404, 405, 413}
PREDICT = [
    {"instances": ["a red sky"]},
    {"instances": [{"text": "a red sky"}, {"text": {"b64": "YQ=="}}]},
    {"inputs": {"text": ["a", "b"]}, "signature_name": "serving_default"},
    {"inputs": ["a"], "output_filter": {"a": 1}},
]
CLASSIFY = [{"signature_name": "classify", "examples": [{"text": "a red sky"}]}]


@pytest.fixture(scope="module")
def batch(exported):
    """A batch of one row for the signature `tensors`."""
    return padded(exported.inputs, exported.inputs.batch(["a red sky"]))


def is_serving(server):
    return server.post(json=PREDICT[0]).status_code == 200


@pytest.mark.parametrize("examples", EXAMPLES)
def test_rest_bodies(server, batch, examples):
    row = {name: array[0].tolist() for name, array in batch.items()}
    predict = [*PREDICT, {"signature_name": "tensors", "instances": [row]}]
    for method, valid in (("predict", predict), ("classify", CLASSIFY)):
        for body in valid:
            reply = server.post(method, json=body)
            assert reply.status_code == 200, (body, reply.text)

    @st.composite
    def bodies(draw):
        mutation = draw(st.sampled_from(["value", "value", "any", "bytes"]))
        if mutation == "bytes":
            return draw(mutated([json.dumps(body).encode() for body in predict]))
        valid = draw(st.sampled_from(predict + CLASSIFY))
        value = replaced(draw, valid) if mutation == "value" else draw(VALUES)
        return json.dumps(value).encode("utf-8", "surrogatepass")

    with requests.Session() as session:

        def check(body):
            for method in ("predict", "classify"):
                reply = session.post(f"{server.model}:{method}", data=body, timeout=60)
                if reply.status_code != 200:
                    assert reply.status_code in CLIENT_ERRORS, (reply.status_code, reply.text)
                    assert reply.json()["error"]

        fuzz(bodies(), check, examples)
    assert is_serving(server)


@pytest.mark.parametrize("examples", EXAMPLES)
def test_grpc_messages(server, batch, examples):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = server.name
    tensor = request.inputs["text"]
    tensor.dtype, tensor.tensor_shape.dim.add().size = 7, 2
    tensor.string_val.extend([b"a red sky", b"b"])
    tensors = predict_pb2.PredictRequest()
    tensors.model_spec.name, tensors.model_spec.signature_name = server.name, "tensors"
    for name, array in batch.items():
        tensors.inputs[name].CopyFrom(tf.make_tensor_proto(array))
    classify_request = classification_pb2.ClassificationRequest()
    classify_request.model_spec.name, classify_request.model_spec.signature_name = (
        server.name,
        "classify",
    )
    classify_request.input.example_list.examples.add().features.feature[
        "text"
    ].bytes_list.value.append(b"a")
    service = "/tensorflow.serving.PredictionService"
    allowed_codes = {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.UNIMPLEMENTED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
    with grpc.insecure_channel(server.grpc) as channel:
        predict_call = channel.unary_unary(f"{service}/Predict")
        classify_call = channel.unary_unary(f"{service}/Classify")
        for call, message in (
            (predict_call, request),
            (predict_call, tensors),
            (classify_call, classify_request),
        ):
            call(message.SerializeToString(), timeout=60)

        def check(message):
            for call in (predict_call, classify_call):
                try:
                    call(message, timeout=60)
                except grpc.RpcError as error:
                    # gRPC rejects invalid protobufs before the server's code.
                    parsed = "deserializing" not in error.details()
                    assert error.code() in allowed_codes or not parsed, error

        messages = [
            message_.SerializeToString() for message_ in (request, tensors, classify_request)
        ]
        fuzz(mutated(messages), check, examples)
    assert is_serving(server)
