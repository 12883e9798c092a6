"""A hundred kinds of bad requests: TF Serving's status codes, and the server keeps running."""

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

from tests.serve.conftest import BINARY, resident, stop, tfft_server

GOOD = {"instances": ["a red sky"]}
TEXT = {"text": "a red sky"}


def deep(levels):
    return "[" * levels + '"a"' + "]" * levels


# what is wrong -> body
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
    "deep lists": ('{"instances": ' + deep(20_000) + "}").encode(),
    "a number of many digits": b'{"instances": [' + b"9" * 10_000 + b"]}",
    "an integer beyond any float": b'{"instances": [' + b"9" * 400 + b"]}",
    "half a surrogate pair": b'{"instances": ["\\ud83d"]}',
}
ACCEPTED = {  # what TF Serving's parser reads, though it is not JSON, and shapes the graph takes
    "an instance a list": b'{"instances": [["a"]]}',
    "an input a list": b'{"instances": [{"text": ["a"]}]}',
    "inputs a string": b'{"inputs": "a"}',
    "inputs of too high a rank": b'{"inputs": {"text": [["a"]]}}',
    "something behind": b'{"instances": ["a"]} {}',
    "a null byte behind": b'{"instances": ["a"]}\x00',
    "a byte order mark": b'\xef\xbb\xbf{"instances": ["a"]}',
    "invalid UTF-8": b'{"instances": ["\xff\xfe"]}',
    "half a UTF-8 letter": b'{"instances": ["\xe5\xa5"]}',
    "deep lists that are ignored": b'{"instances": ["a"], "x": ' + deep(5_000).encode() + b"}",
    "base64 with a blank": b'{"instances": [{"b64": "YSBy ZWQ="}]}',
    "base64 without padding": b'{"instances": [{"b64": "YSByZWQ"}]}',
    "inputs too many": b'{"inputs": {"text": ["a"], "more": ["b"]}}',
}
NOT_AN_OBJECT = {f"bare {text}": text.encode() for text in ("[]", '"a"', "1", "null", "true")}
# Of a good shape, with something wrong in it.
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


def test_there_are_a_hundred_kinds():
    assert sum(map(len, (NOT_JSON, NOT_AN_OBJECT, PREDICT, CLASSIFY, PATHS))) >= 100


def check_up(server):
    assert server.ask(json=GOOD).status_code == 200


@pytest.mark.parametrize(
    ("verb", "bodies"),
    [
        ("predict", NOT_JSON),
        ("classify", NOT_JSON),
        ("predict", NOT_AN_OBJECT),
        ("predict", PREDICT),
        ("classify", {k: {"signature_name": "classify", **v} for k, v in CLASSIFY.items()}),
    ],
)
def test_bodies(server, verb, bodies):
    if server.process.args[0] == BINARY:  # it recurses into them
        bodies = {k: v for k, v in bodies.items() if k != "deep lists"}
    others = {}
    for kind, body in bodies.items():
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        reply = server.ask(verb, data=data)
        if reply.status_code != 400 or not reply.json()["error"] or "Traceback" in reply.text:
            others[kind] = (reply.status_code, reply.text)
    assert not others
    check_up(server)


def test_bodies_that_are_accepted(server):
    for kind, body in ACCEPTED.items():
        reply = server.ask(data=body)
        assert reply.status_code == 200, (kind, reply.status_code, reply.text)


def test_paths(server):
    for method, path, code in PATHS:
        url = server.rest + path.replace("NAME", server.name)
        reply = requests.request(method, url, data=json.dumps(GOOD), timeout=30)
        assert reply.status_code == code, (method, path, reply.status_code, reply.text)
        assert "error" in reply.json()
    check_up(server)


def test_a_signature_of_another_method(server):
    reply = server.ask("classify", json={"examples": [TEXT]})
    assert reply.status_code == 400
    reply = server.ask("regress", json={"signature_name": "classify", "examples": [TEXT]})
    assert reply.status_code == 400
    assert reply.json()["error"] == "Expected one output Tensor."


def test_random_bytes_in_good_requests(server):
    """None of 300 requests with a few bytes changed ends the server, or is a fault of its own."""
    generator = random.Random(0)
    for _ in range(300):
        data = bytearray(json.dumps({**GOOD, "signature_name": "serving_default"}).encode())
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        assert server.ask(data=bytes(data)).status_code in (200, 400)
    check_up(server)


@pytest.fixture(scope="module")
def small(base):
    """tfft's server with small limits."""
    made = tfft_server(base, "--max_body_mib=1", "--timeout=2")
    yield made
    assert stop(made) == 0


def test_huge_bodies_are_refused_and_the_memory_stays(small):
    check_up(small)
    before = resident(small.process)
    body = b'{"instances": ["' + b"a" * (8 << 20) + b'"]}'
    for _ in range(5):
        with contextlib.suppress(requests.ConnectionError):  # it may close before all was sent
            assert small.ask(data=body).status_code == 413
    packed = gzip.compress(body)  # small on the way, large when it is unpacked
    reply = small.ask(data=packed, headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 413
    reply = small.ask(data=b"no gzip", headers={"Content-Encoding": "gzip"})
    assert reply.status_code == 400
    good = gzip.compress(json.dumps(GOOD).encode())
    assert small.ask(data=good, headers={"Content-Encoding": "gzip"}).status_code == 200
    assert resident(small.process) - before < 60  # MiB


def raw(server, data, seconds=8.0):
    """What a client gets that sends these bytes and waits."""
    address = urlparse(server.rest)
    with socket.create_connection((address.hostname, address.port), timeout=seconds) as client:
        client.sendall(data)
        received = b""
        while part := client.recv(1 << 16):
            received += part
        return received


def test_slow_clients_are_let_go(small):
    began = time.monotonic()
    assert raw(small, b"") == b""  # says nothing
    assert raw(small, b"POST /v1/models/x:predict HTTP/1.1\r\nHost: x\r\n") == b""  # half a head
    head = f"POST /v1/models/{small.name}:predict HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n"
    assert raw(small, head.encode() + b'{"inst').startswith(b"HTTP/1.1 408 ")  # half a body
    assert time.monotonic() - began < 15
    assert raw(small, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 9).startswith(
        b"HTTP/1.0 400"
    )
    address = urlparse(small.rest)
    idle = [socket.create_connection((address.hostname, address.port)) for _ in range(200)]
    check_up(small)  # while two hundred others are silent
    for client in idle:
        client.close()


def test_a_large_grpc_message_is_refused(small):
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    request = predict_pb2.PredictRequest()
    request.model_spec.name = small.name
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([b"a" * (2 << 20)]))
    with grpc.insecure_channel(small.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(request, timeout=30)
    assert error.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    check_up(small)


def test_base64_of_bytes_that_are_no_text(server):
    """Any bytes are taken; the graph replaces what is not UTF-8."""
    data = base64.b64encode(b"\xff\xfe red").decode()
    assert server.ask(json={"instances": [{"b64": data}]}).status_code == 200
