"""A hundred bad requests get TF Serving's status codes, and the server keeps running."""

import base64
import contextlib
import gzip
import json
import random
import socket
import time
from urllib.parse import urlparse

import grpc
import pytest
import requests

from tests.serve.conftest import BINARY, resident_mib, stop, tfft_server

GOOD = {"instances": ["a red sky"]}
TEXT = {"text": "a red sky"}


def nested_lists(levels):
    return "[" * levels + '"a"' + "]" * levels


# name of the mistake -> body
NOT_JSON = {
    "empty": b"",
    "blank": b"  \n",
    "a brace": b"{",
    "cut off": b'{"instances": ["a"',
    "no quotes": b"{instances: [1]}",
    "single quotes": b"{'instances': ['a']}",
    "a trailing comma": b'{"instances": ["a",]}',
    "a comment": b'{"instances": ["a"] /* here */}',
    "UTF-16": '{"instances": ["a"]}'.encode("utf-16"),
    "a null byte": b'{"instances": ["a"\x00]}',
    "a control letter": b'{"instances": ["a\x01"]}',
    "a bad escape": b'{"instances": ["\\x41"]}',
    "binary": bytes(range(256)),
    "a form": b"instances=a&signature_name=b",
    "XML": b"<instances><a/></instances>",
    "deep lists": ('{"instances": ' + nested_lists(20_000) + "}").encode(),
    "a number of many digits": b'{"instances": [' + b"9" * 10_000 + b"]}",
    "an integer beyond any float": b'{"instances": [' + b"9" * 400 + b"]}",
    "half a surrogate pair": b'{"instances": ["\\ud83d"]}',
}
ACCEPTED = {  # not JSON but accepted by TF Serving's parser, or shapes that the graph accepts
    "an instance a list": b'{"instances": [["a"]]}',
    "an input a list": b'{"instances": [{"text": ["a"]}]}',
    "inputs a string": b'{"inputs": "a"}',
    "inputs of too high a rank": b'{"inputs": {"text": [["a"]]}}',
    "something behind": b'{"instances": ["a"]} {}',
    "a null byte behind": b'{"instances": ["a"]}\x00',
    "a byte order mark": b'\xef\xbb\xbf{"instances": ["a"]}',
    "invalid UTF-8": b'{"instances": ["\xff\xfe"]}',
    "half a UTF-8 letter": b'{"instances": ["\xe5\xa5"]}',
    "deep lists that are ignored": b'{"instances": ["a"], "x": '
    + nested_lists(5_000).encode()
    + b"}",
    "base64 with a blank": b'{"instances": [{"b64": "YSBy ZWQ="}]}',
    "base64 without padding": b'{"instances": [{"b64": "YSByZWQ"}]}',
    "inputs too many": b'{"inputs": {"text": ["a"], "more": ["b"]}}',
}
NOT_AN_OBJECT = {f"bare {text}": text.encode() for text in ("[]", '"a"', "1", "null", "true")}
# Valid JSON objects with a mistake.
PREDICT = {
    "no key": {},
    "another key": {"instance": ["a"]},
    "both forms": {"instances": ["a"], "inputs": ["a"]},
    "instances null": {"instances": None},
    "instances a number": {"instances": 1},
    "instances a string": {"instances": "a"},
    "instances an object": {"instances": TEXT},
    "instances empty": {"instances": []},
    "an instance a number": {"instances": [1]},
    "an instance null": {"instances": [None]},
    "an instance true": {"instances": [True]},
    "an instance empty": {"instances": [{}]},
    "a misspelt input": {"instances": [{"txt": "a"}]},
    "an input too many": {"instances": [{"text": "a", "more": 1}]},
    "an input a number": {"instances": [{"text": 1}]},
    "an input an object": {"instances": [{"text": {"a": 1}}]},
    "objects and strings": {"instances": [TEXT, "a"]},
    "strings and objects": {"instances": ["a", TEXT]},
    "ragged": {"instances": ["a", ["b"]]},
    "invalid base64": {"instances": [{"b64": "%%%"}]},
    "base64 of a wrong length": {"instances": [{"b64": "abcde"}]},
    "base64 a number": {"instances": [{"b64": 1}]},
    "base64 null": {"instances": [{"b64": None}]},
    "base64 of an input": {"instances": [{"text": {"b64": "!"}}]},
    "inputs null": {"inputs": None},
    "inputs a number": {"inputs": 1},
    "inputs without a name": {"inputs": {}},
    "inputs misspelt": {"inputs": {"txt": ["a"]}},
    "inputs of numbers": {"inputs": {"text": [1, 2]}},
    "inputs nested": {"inputs": {"text": {"text": ["a"]}}},
    "unknown signature": {**GOOD, "signature_name": "nope"},
    "signature a number": {**GOOD, "signature_name": 1},
    "signature null": {**GOOD, "signature_name": None},
    "signature a list": {**GOOD, "signature_name": ["serving_default"]},
    "raw text for tensors": {**GOOD, "signature_name": "tensors"},
    "an input of tensors missing": {
        "signature_name": "tensors",
        "inputs": {"token_ids": [[1]], "padding_mask": [[1]]},
    },
    "tensors of strings": {
        "signature_name": "tensors",
        "inputs": {"token_ids": [["1"]], "padding_mask": [[1]], "segment_ids": [[0]]},
    },
    "tensors of fractions": {
        "signature_name": "tensors",
        "inputs": {"token_ids": [[1.5]], "padding_mask": [[1]], "segment_ids": [[0]]},
    },
    "tensors too large": {
        "signature_name": "tensors",
        "inputs": {"token_ids": [[2**40]], "padding_mask": [[1]], "segment_ids": [[0]]},
    },
    "tensors of no rank": {
        "signature_name": "tensors",
        "inputs": {"token_ids": 1, "padding_mask": 1, "segment_ids": 0},
    },
    "tensors ragged": {
        "signature_name": "tensors",
        "inputs": {"token_ids": [[1], [1, 2]], "padding_mask": [[1], [1]], "segment_ids": [[0]]},
    },
    "tensors of a wrong rank": {
        "signature_name": "tensors",
        "inputs": {"token_ids": [1], "padding_mask": [1], "segment_ids": [0]},
    },
    "no tf.Example": {"signature_name": "serialized", "instances": ["no example"]},
    "an empty tf.Example": {"signature_name": "serialized", "instances": [""]},
}
CLASSIFY = {
    "no examples": {},
    "instances to classify": GOOD,
    "examples null": {"examples": None},
    "examples a string": {"examples": "a"},
    "examples an object": {"examples": TEXT},
    "examples empty": {"examples": []},
    "an example a string": {"examples": ["a"]},
    "an example null": {"examples": [None]},
    "an example without features": {"examples": [{}]},
    "a feature misspelt": {"examples": [{"txt": "a"}]},
    "a feature a number": {"examples": [{"text": 1}]},
    "a feature a fraction": {"examples": [{"text": 1.5}]},
    "a feature null": {"examples": [{"text": None}]},
    "a feature true": {"examples": [{"text": True}]},
    "a feature an object": {"examples": [{"text": {"a": 1}}]},
    "a feature of two values": {"examples": [{"text": ["a", "b"]}]},
    "a feature of two kinds": {"examples": [{"text": ["a", 1]}]},
    "a feature too large": {"examples": [{"text": 2**70}]},
    "a feature of invalid base64": {"examples": [{"text": {"b64": "*"}}]},
    "context a list": {"examples": [TEXT], "context": []},
    "context of invalid base64": {"examples": [TEXT], "context": {"text": {"b64": "*"}}},
}
PATHS = [  # method, path after the host, code
    ("GET", "/", 404),
    ("GET", "/v1", 404),
    ("GET", "/v1/models", 400),
    ("GET", "/v1/models/", 400),
    ("GET", "/v1/models/none", 404),
    ("GET", "/v1/models/none/metadata", 404),
    ("GET", "/v1/models/NAME/versions/9", 404),
    ("GET", "/v1/models/NAME/versions/9/metadata", 404),
    ("GET", "/v1/models/NAME/versions/x", 400),
    ("GET", "/v1/models/NAME/versions/" + 18 * "9", 404),
    ("GET", "/v1/models/NAME/labels/none/metadata", 400),
    ("GET", "/v1/models/NAME:predict", 400),
    ("POST", "/v1/models/NAME", 400),
    ("POST", "/v1/models/NAME/metadata", 400),
    ("POST", "/v1/models/NAME:explain", 400),
    ("POST", "/v1/models/NAME:Predict", 400),
    ("POST", "/v1/models/none:predict", 404),
    ("POST", "/v1/models/none/versions/3:predict", 404),
    ("POST", "/v1/models/NAME/versions/9:predict", 404),
    ("POST", "/v1/models/NAME/versions/-1:predict", 400),
    ("POST", "/v1/models/NAME/labels/none:predict", 400),
    ("POST", "/v2/models/NAME/infer", 404),
    ("PUT", "/v1/models/NAME:predict", 400),
    ("DELETE", "/v1/models/NAME", 400),
    ("POST", "/v1/models/%2e%2e%2f:predict", 404),
]


def test_there_are_a_hundred_bad_requests():
    assert sum(map(len, (NOT_JSON, NOT_AN_OBJECT, PREDICT, CLASSIFY, PATHS))) >= 100


def check_serving(server):
    assert server.post(json=GOOD).status_code == 200


@pytest.mark.parametrize(
    ("method", "bodies"),
    [
        ("predict", NOT_JSON),
        ("classify", NOT_JSON),
        ("predict", NOT_AN_OBJECT),
        ("predict", PREDICT),
        ("classify", {k: {"signature_name": "classify", **v} for k, v in CLASSIFY.items()}),
    ],
)
def test_bad_bodies_are_rejected(server, method, bodies):
    if server.process.args[0] == BINARY:  # TF Serving recurses into them
        bodies = {k: v for k, v in bodies.items() if k != "deep lists"}
    failures = {}
    for name, body in bodies.items():
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = server.post(method, data=data)
        if reply.status_code != 400 or not reply.json()["error"] or "Traceback" in reply.text:
            failures[name] = (reply.status_code, reply.text)
    assert not failures
    check_serving(server)


def test_unusual_bodies_are_accepted(server):
    for name, body in ACCEPTED.items():
        reply = server.post(data=body)
        assert reply.status_code == 200, (name, reply.status_code, reply.text)


def test_bad_paths_are_rejected(server):
    for method, path, code in PATHS:
        url = server.rest + path.replace("NAME", server.name)
        reply = requests.request(method, url, data=json.dumps(GOOD), timeout=30)
        assert reply.status_code == code, (method, path, reply.status_code, reply.text)
        assert "error" in reply.json()
    check_serving(server)


def test_signature_of_another_method(server):
    reply = server.post("classify", json={"examples": [TEXT]})
    assert reply.status_code == 400
    reply = server.post("regress", json={"signature_name": "classify", "examples": [TEXT]})
    assert reply.status_code == 400
    assert reply.json()["error"] == "Expected one output Tensor."


def test_random_bytes_in_valid_requests(server):
    """300 requests with a few changed bytes get 200 or 400, and the server keeps running."""
    generator = random.Random(0)
    for _ in range(300):
        data = bytearray(json.dumps({**GOOD, "signature_name": "serving_default"}).encode())
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        assert server.post(data=bytes(data)).status_code in (200, 400)
    check_serving(server)


@pytest.fixture(scope="module")
def small_server(base):
    """tfft's server with small limits for size and time."""
    server = tfft_server(base, "--max_body_mib=1", "--timeout=2")
    yield server
    assert stop(server) == 0


def test_huge_bodies_are_rejected_without_using_memory(small_server):
    check_serving(small_server)
    memory = resident_mib(small_server.process)
    body = b'{"instances": ["' + b"a" * (8 << 20) + b'"]}'
    for _ in range(5):
        with contextlib.suppress(
            requests.ConnectionError
        ):  # the server may close before the client has sent all
            assert small_server.post(data=body).status_code == 413
    compressed = gzip.compress(body)  # small until it is decompressed
    reply = small_server.post(data=compressed, headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 413
    reply = small_server.post(data=b"no gzip", headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 400
    valid = gzip.compress(json.dumps(GOOD).encode())
    assert small_server.post(data=valid, headers={"Content-Encoding": "gzip"}).status_code == 200
    assert resident_mib(small_server.process) - memory < 60  # MiB


def send_raw(server, data, timeout=8.0):
    """Send bytes, and return everything that the server replies until it closes."""
    address = urlparse(server.rest)
    with socket.create_connection((address.hostname, address.port), timeout=timeout) as client:
        client.sendall(data)
        received = b""
        while chunk := client.recv(1 << 16):
            received += chunk
        return received


def test_slow_clients_are_disconnected(small_server):
    start = time.monotonic()
    assert send_raw(small_server, b"") == b""  # sends nothing
    assert (
        send_raw(small_server, b"POST /v1/models/x:predict HTTP/1.1\r\nHost: x\r\n") == b""
    )  # half of the header
    head = (
        f"POST /v1/models/{small_server.name}:predict HTTP/1.1\r\n"
        "Host: x\r\nContent-Length: 99\r\n\r\n"
    )
    assert send_raw(small_server, head.encode() + b'{"inst').startswith(
        b"HTTP/1.1 408 "
    )  # half of the body
    assert time.monotonic() - start < 15
    assert send_raw(small_server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9).startswith(
        b"HTTP/1.0 400"
    )
    address = urlparse(small_server.rest)
    idle = [socket.create_connection((address.hostname, address.port)) for _ in range(200)]
    check_serving(small_server)  # while 200 other clients are idle
    for client in idle:
        client.close()


def test_large_grpc_message_is_rejected(small_server):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = small_server.name
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"a" * (2 << 20)]))
    with grpc.insecure_channel(small_server.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(request, timeout=30)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    check_serving(small_server)


def test_base64_of_invalid_utf8(server):
    """Any bytes are accepted; the graph replaces invalid UTF-8."""
    data = base64.b64encode(b"\xff\xfe red").decode()
    assert server.post(json={"instances": [{"b64": data}]}).status_code == 200
