"""Behaviour from TF Serving's sources that its tests do not cover: codes, messages and grammar."""

import asyncio
import json
import random
import threading
import tracemalloc

import pytest
import requests
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from tests.serve.half_plus_two import NAME
from tests.serve.test_grpc_cases import check_rejected, predict_request
from tfft.serve import examples, json_text, tensor_protos
from tfft.serve.failure import Failure, TooLarge
from tfft.serve.http import Limits, Rest
from tfft.serve.versions import ModelSpec

MODEL = f"/v1/models/{NAME}"
SUMS = '{"signature_name": "sums", '
OF_SUMS = "Failed to process element: 0 of 'instances' list. JSON object: "
GOOD = '{"instances": [1.0]}'
ANSWER = {"predictions": [2.5]}
B64 = '{"signature_name": "joined", "inputs": [{"b64": "%s"}]}'
ELEMENT = "Failed to process element: {} of 'instances' list. Error: INVALID_ARGUMENT: "
ONE = ELEMENT.format(1)
DOCUMENT = 'JSON Value: {\n    "instances": 1\n} '

PREDICT = [  # body, code, whole error or answer
    # Only the graph checks shapes.
    ('{"instances": [1.0, 2.0]}', 200, {"predictions": [2.5, 3.0]}),
    ('{"instances": [[[1.0]]]}', 200, {"predictions": [[[2.5]]]}),
    # Extra inputs are ignored in column form, and an error in row form.
    ('{"inputs": {"x": [1.0], "more": 5}}', 200, {"outputs": [2.5]}),
    (
        '{"instances": [{"x": 1.0, "more": 5}]}',
        400,
        "Failed to process element: 0 key: more of 'instances' list. Error: INVALID_ARGUMENT: "
        "JSON object: does not have named input: more",
    ),
    # Padding of base64 is optional, white space is skipped.
    (B64 % "YQ==", 200, {"outputs": "a"}),
    (B64 % "YQ", 200, {"outputs": "a"}),
    (B64 % " Y\\nQ = =", 200, {"outputs": "a"}),
    (B64 % "YQ..", 200, {"outputs": "a"}),
    (B64 % "YQ=", 400, "Unable to base64 decode"),
    (B64 % "YQYQY", 400, "Unable to base64 decode"),
    (B64 % "-_", 400, "Unable to base64 decode"),
    (
        '{"signature_name": "joined", "inputs": [{"b64": 5}]}',
        400,
        'JSON Value: {\n    "b64": 5\n} not formatted correctly for base64 data',
    ),
    (
        '{"instances": [{"b64": 5}]}',
        400,
        "Failed to process element: 0 key: b64 of 'instances' list. Error: INVALID_ARGUMENT: JSON "
        "object: does not have named input: b64",
    ),
    # Scalar and float16 outputs.
    ('{"signature_name": "joined", "inputs": ["a", "b"]}', 200, {"outputs": "ab"}),
    (
        '{"signature_name": "joined", "instances": ["a", "b"]}',
        400,
        "Tensor name: joined has no shape information ",
    ),
    (
        '{"signature_name": "half", "instances": [1.0]}',
        400,
        "Failed to write JSON value for tensor type: half",
    ),
    (
        SUMS + '"instances": [{"x": [1], "y": [2]}]}',
        400,
        "Tensor name: total has no shape information ",
    ),
    (SUMS + '"inputs": {"x": [[1]], "y": [[2]]}}', 200, {"outputs": {"sum": [[3]], "total": 1}}),
    # Numbers too large for float32 are infinite; numbers too large for float64 are errors.
    ('{"instances": [1e39, -1e39]}', 200, {"predictions": [float("inf"), float("-inf")]}),
    (
        '{"instances": [' + 400 * "9" + "]}",
        400,
        "JSON Parse error: Number too big to be stored in double. at offset: 15",
    ),
    (
        '{"instances": [1.0], "ignored": 1e999}',
        400,
        "JSON Parse error: Number too big to be stored in double. at offset: 32",
    ),
    # The grammar.
    (GOOD + " trailing text", 200, ANSWER),
    (GOOD + "\0", 200, ANSWER),
    ("\ufeff" + GOOD, 200, ANSWER),
    ('{"instances": [1.0], "deep": ' + "[" * 5000 + "]" * 5000 + "}", 200, ANSWER),
    ('{"instances": [1.0], "instances": 5}', 200, ANSWER),
    ('{"instances": [Inf, -Inf, NaN]}', 200, {"predictions": [float("inf"), -float("inf"), "NaN"]}),
    (
        b'{"signature_name": "joined", "inputs": ["\xff\xfe"]}',
        200,
        b'{\n    "outputs": "\xff\xfe"\n}',
    ),
    (
        '{"signature_name": "joined", "inputs": ["\\ud83d\\ude00"]}',
        200,
        {"outputs": "\N{GRINNING FACE}"},
    ),
    (
        '{"inputs": ["\\ud83d"]}',
        400,
        "JSON Parse error: The surrogate pair in string is invalid. at offset: 13",
    ),
    ("[1.0,]", 400, "JSON Parse error: Invalid value. at offset: 5"),
    ("[[1.0", 400, "JSON Parse error: Missing a comma or ']' after an array element. at offset: 5"),
    ("{'a': 1}", 400, "JSON Parse error: Missing a name for object member. at offset: 1"),
    ("  ", 400, "JSON Parse error: The document is empty. at offset: 2"),
    ("[1.5, []]", 400, "JSON Value: [1.5, []] Is not object"),
    # Messages.
    ('{"instances": 1}', 400, DOCUMENT + "Expecting 'instances' to be an list/array"),
    ('{"instances": []}', 400, DOCUMENT.replace("1", "[]") + "No values in 'instances' array"),
    ("{}", 400, "Missing 'inputs' or 'instances' key"),
    (
        '{"instances": [1.0, true]}',
        400,
        ONE + "JSON Value: true Type: True is not of expected type: float",
    ),
    (
        '{"instances": [1.0, {"b64": "YQ"}]}',
        400,
        ONE + 'JSON Value: {\n    "b64": "YQ"\n} Type: Object is not of expected type: float',
    ),
    ('{"instances": [[1, 2], [1, 2, 3]]}', 400, ONE + "Expecting tensor size: 2 but got: 3"),
    ('{"instances": [[1, 2], [[1, 2]]]}', 400, ONE + "Expecting shape [2] but got: [1,2]"),
    (
        '{"instances": [[1, [2]]]}',
        400,
        ELEMENT.format(0) + "Encountered list at unexpected level: 1 expected < 1",
    ),
    (
        '{"instances": [[[1], 2]]}',
        400,
        ELEMENT.format(0)
        + "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
    ),
    (
        '{"inputs": [[1, 2], [3]]}',
        400,
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
    ),
    (
        '{"instances": [{"x": 1}, 1]}',
        400,
        "Expecting object but got list at item 1 of input list",
    ),
    (
        SUMS + '"instances": [{"x": [1]}]}',
        400,
        OF_SUMS + '{\n    "x": [1]\n} keys must be equal to: x,y',
    ),
    (
        SUMS + '"instances": [1]}',
        400,
        "instances is a plain list, but expecting list of objects as multiple input tensors "
        "required as per tensorinfo_map",
    ),
    (
        SUMS + '"inputs": [1]}',
        400,
        "inputs is a plain value/list, but expecting an object as multiple input tensors required "
        "as per tensorinfo_map",
    ),
    (SUMS + '"inputs": {"x": [1]}}', 400, "Missing named input: y in 'inputs' object."),
    (
        '{"signature_name": "nope"}',
        400,
        'Serving signature name: "nope" not found in signature def',
    ),
]


def check_reply(reply, code, answer):
    assert reply.status_code == code, reply.text
    if isinstance(answer, bytes):
        assert reply.content == answer
    elif code == 200:
        constants = {"NaN": "NaN"}  # NaN != NaN
        assert json.loads(reply.text, parse_constant=lambda c: constants.get(c, float(c))) == answer
    else:
        assert reply.json()["error"] == answer


@pytest.mark.parametrize(("body", "code", "answer"), PREDICT)
def test_predict(single_version_server, body, code, answer):
    data = body if isinstance(body, bytes) else body.encode()
    check_reply(
        requests.post(f"{single_version_server[0]}{MODEL}:predict", data=data, timeout=30),
        code,
        answer,
    )


OTHERS = [  # method, path, body, code, answer
    ("classify", '{"signature_name": "classify_x_to_y", "examples": [{"x": 2.0}]}', 200, [["", 3]]),
    (
        "classify",
        '{"signature_name": "nope", "examples": [{"x": 2.0}]}',
        400,
        "with the name: nope",
    ),
    ("classify", '{"signature_name": "sums", "examples": [{}]}', 400, "Expected one input Tensor."),
    ("regress", '{"signature_name": "sums", "examples": [{}]}', 400, "Expected one input Tensor."),
    ("classify", '{"examples": [{}]}', 400, "No classification inputs found in SignatureDef: "),
    ("regress", '{"examples": [{}]}', 400, "No regression inputs found in SignatureDef: "),
    ("classify", '{"signature_name": "regress_x_to_y", "examples": [{}]}', 400, '"scores". Signat'),
    (
        "classify",
        "{}",
        400,
        "JSON Value: {} When method is classify, key 'examples' is expected an",
    ),
    ("classify", '{"examples": []}', 400, "} 'examples' value is an empty array"),
    ("regress", '{"signature_name": "regress_x_to_y", "examples": [{"x": "a"}]}', 400, "ata type"),
    ("classify", '{"examples": [{"a": [1.5, 2]}]}', 400, "feature: a expecting type: float"),
    (
        "classify",
        b'{"signature_name": "classify_x_to_y", "examples": [{"x": 2.0, "\xff": 1}]}',
        200,
        [["", 3]],
    ),
    ("classify", '{"examples": [{"a": [true, "b"]}]}', 400, "feature: a expecting type: int64"),
]


@pytest.mark.parametrize(("call", "body", "code", "answer"), OTHERS)
def test_classify_and_regress(single_version_server, call, body, code, answer):
    reply = requests.post(f"{single_version_server[0]}{MODEL}:{call}", data=body, timeout=30)
    assert reply.status_code == code, reply.text
    assert reply.json() == {"results": [answer]} if code == 200 else answer in reply.json()["error"]


PATHS = [  # method, path, body, code, part of the reply, or None if it is empty
    ("POST", f"/V1/Models/{NAME}:predict", GOOD, 200, "2.5"),
    ("POST", f"{MODEL}:Predict", GOOD, 400, "Malformed request"),
    ("POST", f"/v1/models/{NAME.upper()}:predict", GOOD, 404, "Latest(HALF_PLUS_TWO)"),
    ("POST", "/v1/models/none:predict", "{", 400, "JSON Parse error"),
    ("POST", "/v1/models/none/labels/x:predict", GOOD, 400, "version label: x"),
    ("GET", f"{MODEL}/labels/none", "", 200, "AVAILABLE"),
    ("GET", f"{MODEL}/labels/none/metadata", "", 400, "version label: none"),
    ("GET", f"{MODEL}/versions/124", "", 404, f"Could not find version 124 of model {NAME}"),
    ("GET", "/v1/models/none", "", 404, "Could not find any versions of model none"),
    ("GET", f"{MODEL}/versions/{2**63}", "", 400, None),
    ("GET", f"{MODEL}/versions/{'0' * 5000}123", "", 200, "AVAILABLE"),
    ("GET", "/v1/models/", "", 400, "Malformed request: GET /v1/models/"),
    ("POST", "/v1/models/%2e%2e%2f:predict", GOOD, 404, "Latest(../)"),
    ("PUT", f"{MODEL}:predict", GOOD, 400, "Malformed request: PUT"),
    ("OPTIONS", f"{MODEL}:predict", "", 400, None),
]


@pytest.mark.parametrize(("method", "path", "body", "code", "part"), PATHS)
def test_paths(single_version_server, method, path, body, code, part):
    reply = requests.request(method, single_version_server[0] + path, data=body, timeout=30)
    assert reply.status_code == code, reply.text
    assert part in reply.text if part else not reply.content


def test_options_with_an_origin(single_version_server):
    headers = {"Origin": "https://example.org"}
    reply = requests.options(
        f"{single_version_server[0]}{MODEL}:predict", headers=headers, timeout=30
    )
    assert (reply.status_code, reply.content) == (200, b"")
    assert "Access-Control-Allow-Origin" not in reply.headers  # off by default in TF Serving too


def test_reply_layout(single_version_server):
    def text(body):
        return requests.post(
            f"{single_version_server[0]}{MODEL}:predict", data=body, timeout=30
        ).text

    assert text('{"instances": [[1], [2]]}') == '{\n    "predictions": [[2.5], [3.0]\n    ]\n}'
    assert text('{"inputs": [1, 2]}') == '{\n    "outputs": [\n        2.5,\n        3.0\n    ]\n}'
    assert text("{}") == "{\n    \"error\": \"Missing 'inputs' or 'instances' key\"\n}"


def test_http_status_codes():
    codes = {
        "FAILED_PRECONDITION": 400,
        "RESOURCE_EXHAUSTED": 429,
        "UNAVAILABLE": 503,
        "INTERNAL": 500,
    }
    assert {code: Failure(code, "").http for code in codes} == codes


def tensor_proto(sizes, dtype, **values):
    return tensor_pb2.TensorProto(
        dtype=tf.dtypes.as_dtype(dtype).as_datatype_enum,
        tensor_shape={"dim": [{"size": size} for size in sizes]},
        **values,
    )


LARGE = [
    tensor_proto([2**27], "float32", float_val=[1.0]),
    tensor_proto([2**40], "int8"),
    tensor_proto([2**62, 2**62], "float64", double_val=[1.0]),
    tensor_proto([2**20], "string", string_val=[b"a" * 100_000]),
    tensor_proto([2**24], "string"),
]
NO_TENSORS = [
    tensor_proto([-1], "float32", float_val=[1.0]),
    tensor_proto([3], "float32", tensor_content=b"abcd"),
    tensor_proto([2], "resource"),
    tensor_proto([0, 2**62, 2**62], "float32"),
]


@pytest.mark.parametrize("proto", LARGE)
def test_declared_tensor_size_is_checked_before_allocation(single_version_server, proto):
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="declares more elements than"):
            tensor_protos.arrays({"x": proto}, 64 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("proto", NO_TENSORS)
def test_invalid_tensors_are_rejected(proto):
    with pytest.raises(Failure, match="tensor parsing error: x"):
        tensor_protos.arrays({"x": proto}, 64 << 20)


def test_total_tensor_size_is_bounded_and_values_are_filled():
    tensor = tensor_proto([2, 2], "float32", float_val=[1.0, 2.0])
    assert tensor_protos.arrays({"x": tensor}, 16)["x"].tolist() == [[1, 2], [2, 2]]
    with pytest.raises(TooLarge, match="input y: its shape"):
        tensor_protos.arrays({"x": tensor, "y": tensor}, 31)


def test_grpc_request_that_declares_too_much(single_version_server):
    from tensorflow_serving.apis import prediction_service_pb2_grpc

    stub = prediction_service_pb2_grpc.PredictionServiceStub(single_version_server[1])
    check_rejected(
        stub.Predict, predict_request(inputs={"x": LARGE[0]}), "RESOURCE_EXHAUSTED", "input x"
    )
    unknown_signature = predict_request("nope", {"x": LARGE[0]})  # the signature is checked first
    check_rejected(stub.Predict, unknown_signature, "FAILED_PRECONDITION", "nope")


def test_both_parsers_agree():
    """They return the same value or message for bodies with random changes."""
    generator, num_parsed = random.Random(0), 0
    text = '{"a": [1, -2.5e3, 1E2, {"b": "\\u00e9\\n \N{GRINNING FACE}"}], "c": [NaN, true, null]}'
    for _ in range(1500):
        body = bytearray(text.encode())
        for _ in range(generator.randint(0, 3)):
            position = generator.randrange(len(body))
            body[position : position + generator.randint(0, 2)] = generator.choice(MUTATIONS)
        results = []
        for parse in (json_text.parse, lambda body: json_text._Parser(body).document()):
            try:
                results.append(repr(parse(bytes(body))))  # NaN differs from itself
            except Failure as failure:
                results.append(failure.message)
        assert results[0] == results[1], bytes(body)
        num_parsed += "JSON Parse error" not in results[0]
    assert 100 < num_parsed < 1400


MUTATIONS = [bytes([code]) for code in b'[]{},:"\\0123456789.eE+-nul \x00\xff'] + [
    b"Infinity",
    b"\\ud800",
    b"\\udc00",
    b"\\ud83d\\ude00",
    b"\\\\",
]


def test_memory_of_a_parsed_body_is_bounded():
    """60 MiB of empty lists would become 1.5 GiB."""
    for value, size in ((b"[],", 60), (b"{},", 20), (b'"ab",', 20), (b'{"a":1},', 20)):
        body = b'{"instances": [' + value * ((size << 20) // len(value)) + b"1]}"
        tracemalloc.start()
        try:
            with pytest.raises(TooLarge, match="JSON values of the request take more than"):
                json_text.parse(body)
            assert tracemalloc.get_traced_memory()[1] < 1 << 20
        finally:
            tracemalloc.stop()
    assert TooLarge("").http == 413


MEMBERS = json.dumps(
    {f"key{number}": number for number in range(5_462)}
)  # the last key makes the dict grow
EMOJI = "\N{GRINNING FACE}"
BODIES = {
    **{
        one: b"[" + one.encode() * 5_000 + b"1]"
        for one in ("[],", "{},", '"abc",', '{"a":1},', '{"":""},', "1.5,", "123456,", "[[1]],")
    },
    "nested": b"[" * 900 + b"1" + b"]" * 900,
    "members": MEMBERS.encode(),
    "a member twice": b'{"key0":0,' + MEMBERS.encode()[1:],
    "text": json.dumps("a" * 200_000).encode(),
    "escapes": json.dumps("aa\n" * 60_000).encode(),
    "an emoji": json.dumps("a" * 200_000 + EMOJI, ensure_ascii=False).encode(),
    "an escaped emoji": json.dumps("a" * 200_000 + EMOJI).encode(),
    "no UTF-8": b'"' + b"\xff" * 200_000 + b'\\ud83d\\ude00"',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_parsing_stays_below_the_memory_bound(body):
    for parse in (json_text.parse, lambda body: json_text._Parser(body).document()):
        tracemalloc.start()
        try:
            parse(body)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < json_text.memory_bound(body), parse


def test_large_bodies_are_read_only_by_the_fast_parser(monkeypatch):
    """The other parser takes seconds for them, which would block all other requests."""
    monkeypatch.setattr(json_text, "_Parser", None)
    text = "a" * json_text.MAX_FALLBACK_BYTES
    for body, value in (
        (json.dumps([text + EMOJI]).encode(), text + EMOJI),
        (json.dumps([text + "\\ud83d"]).encode(), text + "\\ud83d"),
        (f'["{text}'.encode() + b'\xff"]', text + "\udcff"),
    ):
        assert json_text.parse(body) == [value]
    for body in (f'["{text}\\ud83d"]', f'["{text}"] {{}}', f'["{text}"'):
        with pytest.raises(Failure, match="read up to 1,048,576 bytes") as error:
            json_text.parse(body.encode())
        assert error.value.http == 400


def test_slow_parsing_times_out():
    def parse(*_):
        release.wait(2)

    release, rest = (
        threading.Event(),
        Rest(None, None, Limits(max_body_bytes=1 << 20, timeout=0.05)),
    )
    with pytest.raises(TimeoutError):
        asyncio.run(rest._run(parse, ModelSpec("model"), b"{}"))
    release.set()


def test_repeated_context_is_bounded():
    rows = [{}] * 1000
    inputs = examples.from_json({"examples": rows, "context": {"text": "a" * 1000}})
    assert len(examples.serialize(inputs, 2 << 20)["inputs"]) == 1000
    with pytest.raises(TooLarge, match="context of 1,000 examples"):
        examples.serialize(inputs, 1_000_000)
