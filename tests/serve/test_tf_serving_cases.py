"""The cases of TF Serving's own tests: an input, and the answer that its tests demand.

Of util/json_tensor_test.cc, model_servers/http_rest_api_handler_test.cc,
http_rest_api_util_test.cc and get_model_status_impl_test.cc, and of servables/tensorflow/
predict_util_test.cc, classifier_test.cc, regressor_test.cc, get_model_metadata_impl_test.cc and
multi_inference_test.cc. No TF Serving binary was asked.
"""

import json
import math
import shutil

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from tests.serve.half_plus_two import CONFIG, NAME, serving
from tfft.serve import examples, json_tensors
from tfft.serve.failure import Failure
from tfft.serve.http import parse_path
from tfft.serve.loaded import Info
from tfft.serve.versions import ModelSpec

NAN, INF = math.nan, math.inf
DEEP = "[" * 20_000 + "]" * 20_000
MOST = float(np.finfo(np.float64).max)
LEAST = float(np.finfo(np.float64).tiny)
INT, FLOAT, DOUBLE, STRING = tf.int32, tf.float32, tf.float64, tf.string
SIX = [[1, 2], [3, 4], [5, 6]]


def parsed(body, types):
    request = json_tensors.parse(body.encode())
    json_tensors.signature_name(request)
    return json_tensors.inputs(request, {n: Info(t, None) for n, t in types.items()})


# body, type of each input, form, arrays
REQUESTS = [
    ('{"instances": [[1,2],[3,4],[5,6]]}', {"x": INT}, "instances", {"x": SIX}),
    ('{"instances": [1], "nested": ' + DEEP + "}", {"x": INT}, "instances", {"x": [1]}),
    (
        '{"instances": [1, 2.0, 3, 4, 5.003, 0.007, 0.0]}',
        {"x": FLOAT},
        "instances",
        {"x": [1, 2, 3, 4, 5.003, 0.007, 0]},
    ),
    (
        '{"instances": [1.0, 2, 3, 4, 0.662, 0, 0.0]}',
        {"x": DOUBLE},
        "instances",
        {"x": [1, 2, 3, 4, 0.662, 0, 0]},
    ),
    ('{"instances": [1435774380]}', {"x": FLOAT}, "instances", {"x": [1435774380]}),
    ('{"instances": [1435774380.0]}', {"x": FLOAT}, "instances", {"x": [1435774380]}),
    (f'{{"instances": [{MOST}]}}', {"x": FLOAT}, "instances", {"x": [INF]}),
    (f'{{"instances": [{-MOST}]}}', {"x": FLOAT}, "instances", {"x": [-INF]}),
    (f'{{"instances": [{LEAST}]}}', {"x": FLOAT}, "instances", {"x": [0.0]}),
    (f'{{"instances": [{-LEAST}]}}', {"x": FLOAT}, "instances", {"x": [-0.0]}),
    (
        '{"signature_name": "predict_images", "instances": [[1,2]]}',
        {"x": INT},
        "instances",
        {"x": [[1, 2]]},
    ),
    (
        '{"instances": [{"b64": "aGVsbG8="}, {"b64": "d29ybGQ="}]}',
        {"x": STRING},
        "instances",
        {"x": [b"hello", b"world"]},
    ),
    (
        '{"instances": [[{"b64": "aGVsbG8="}], [{"b64": "d29ybGQ="}]]}',
        {"x": STRING},
        "instances",
        {"x": [[b"hello"], [b"world"]]},
    ),
    (
        '{"instances": [{"x": [[{"b64": "aGVsbG8="}], [{"b64": "d29ybGQ="}]]}]}',
        {"x": STRING},
        "instances",
        {"x": [[[b"hello"], [b"world"]]]},
    ),
    (
        """{"instances": [
            {"i": [[1,2],[3,4],[5,6]], "s": ["foo", "bar"], "f": [1.0, NaN], "d": [NaN]},
            {"i": [[7,8],[9,0],[1,2]], "s": ["baz", "bat"], "f": [2.0, Infinity], "d": [2.0]}]}""",
        {"i": INT, "s": STRING, "f": FLOAT, "d": DOUBLE},
        "instances",
        {
            "i": [SIX, [[7, 8], [9, 0], [1, 2]]],
            "s": [[b"foo", b"bar"], [b"baz", b"bat"]],
            "f": [[1, NAN], [2, INF]],
            "d": [[NAN], [2]],
        },
    ),
    ('{"inputs": {"x": [[[1,2],[3,4],[5,6]]]}}', {"x": INT}, "inputs", {"x": [SIX]}),
    ('{"inputs": [[[1,2],[3,4],[5,6]]]}', {"x": INT}, "inputs", {"x": [SIX]}),
    (
        """{"inputs": {"i": [[[1,2],[3,4],[5,6]]], "s": ["foo", "bar"],
                       "b": {"b64": "aGVsbG8="}}}""",
        {"i": INT, "s": STRING, "b": STRING},
        "inputs",
        {"i": [SIX], "s": [b"foo", b"bar"], "b": b"hello"},
    ),
]


@pytest.mark.parametrize(("body", "types", "form", "arrays"), REQUESTS)
def test_requests_to_tensors(body, types, form, arrays):
    found, found_form = parsed(body, types)
    assert found_form == form and found.keys() == arrays.keys()
    for name, dtype in types.items():
        expected = np.array(arrays[name], dtype.as_numpy_dtype)
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)
        if dtype != STRING:
            np.testing.assert_array_equal(np.signbit(found[name]), np.signbit(expected))


ROWS_7_8 = '{"i": [[[7,8],[9,0],[1,2]]], "s": ["baz", "bat"]}'
TWO = {"i": INT, "s": STRING}
BAD_REQUESTS = [  # body, types, part of the message
    ("", {"x": INT}, "document is empty"),
    ('{"signature_name": ' + DEEP + "}", {"x": INT}, "key must be a string value"),
    ('{"signature_name": 5, "instances": [[1,2]]}', {"x": INT}, "must be a string value"),
    ('{"instances": [[1,2]], "inputs": [[1,2]]}', {"x": INT}, "Not formatted correctly"),
    ('{"instances": [[1,2],[3,4],[5,6,7]]}', {"x": INT}, "Expecting tensor size: 2 but got: 3"),
    ('{"instances": [[1,2],[3,4],[[5,6]]]}', {"x": INT}, "Expecting shape [2] but got: [1,2]"),
    ('{"instances": [1, [1]]}', {"x": INT}, "Expecting shape"),
    ('{"instances": [[1,2],["a", "b"]]}', {"x": INT}, "not of expected type"),
    (
        '{"instances": [{"i": [[1,2],[3,4],[5,6]], "s": ["foo", "bar"]}, ' + ROWS_7_8 + "]}",
        TWO,
        "Expecting shape",
    ),
    (
        """{"instances": [{"i": [[1,2],[3,4],[5,6],[7,8]], "s": ["foo", "bar"]},
                          {"i": [[7,8],[9,0],[1,2]], "s": ["baz", "bat"]}]}""",
        TWO,
        "Expecting tensor size",
    ),
    (
        '{"instances": [{"i": [[1,2],[3,4],[5,6]], "s": ["foo", "bar"]}, [1, 20, 30], '
        + ROWS_7_8
        + "]}",
        TWO,
        "Expecting object but got list at item 1 of input list",
    ),
    (
        '{"instances": [["baz", "bar"], {"s": ["baz", "bat"]}]}',
        {"s": STRING},
        "Expecting value/list but got object",
    ),
]


def refuses(message, function, *arguments):
    with pytest.raises(Failure) as error:
        function(*arguments)
    assert (error.value.code, error.value.http) == ("INVALID_ARGUMENT", 400)
    assert message in error.value.message


@pytest.mark.parametrize(("body", "types", "message"), BAD_REQUESTS)
def test_requests_that_are_refused(body, types, message):
    refuses(message, parsed, body, types)


def array(values, dtype=np.int32):
    return np.array(values, dtype)


INTS = [SIX, [[7, 8], [9, 0], [1, 2]]]
SEVERAL = {
    "int_tensor": array(INTS),
    "str_tensor": array([[b"foo", b"bar"], [b"baz", b"bat"]], object),
    "float_tensor": array([[1], [2]], np.float32),
    "double_scalar_tensor": array([8, 9], np.float64),
    "str_tensor_bytes": array([[b"hello", b"world"], [b"tf", b"serving"]], object),
}
HELLO, WORLD, TF, SERVING = (
    {"b64": text} for text in ("aGVsbG8=", "d29ybGQ=", "dGY=", "c2VydmluZw==")
)
REPLIES = [  # arrays, form, the reply
    ({"x": array(INTS)}, "instances", {"predictions": INTS}),
    ({"x": array(INTS)}, "inputs", {"outputs": INTS}),
    ({"x": array([1, 2, 3, 4, 5])}, "instances", {"predictions": [1, 2, 3, 4, 5]}),
    ({"x": array([1, 2, 3, 4, 5])}, "inputs", {"outputs": [1, 2, 3, 4, 5]}),
    (
        {"str_tensor_bytes": SEVERAL["str_tensor_bytes"]},
        "instances",
        {"predictions": [[HELLO, WORLD], [TF, SERVING]]},
    ),
    (
        SEVERAL,
        "instances",
        {
            "predictions": [
                {
                    "double_scalar_tensor": 8.0,
                    "float_tensor": [1.0],
                    "int_tensor": INTS[0],
                    "str_tensor": ["foo", "bar"],
                    "str_tensor_bytes": [HELLO, WORLD],
                },
                {
                    "double_scalar_tensor": 9.0,
                    "float_tensor": [2.0],
                    "int_tensor": INTS[1],
                    "str_tensor": ["baz", "bat"],
                    "str_tensor_bytes": [TF, SERVING],
                },
            ]
        },
    ),
    (
        SEVERAL,
        "inputs",
        {
            "outputs": {
                "double_scalar_tensor": [8.0, 9.0],
                "float_tensor": [[1.0], [2.0]],
                "int_tensor": INTS,
                "str_tensor": [["foo", "bar"], ["baz", "bat"]],
                "str_tensor_bytes": [[HELLO, WORLD], [TF, SERVING]],
            }
        },
    ),
    ({"x": np.zeros((0, 2), np.int32)}, "instances", {"predictions": []}),
    (
        {"s": np.zeros((0, 1, 2), object), "f": np.zeros((0, 3, 4), np.float32)},
        "instances",
        {"predictions": []},
    ),
]


@pytest.mark.parametrize(("arrays", "form", "reply"), REPLIES)
def test_tensors_to_replies(arrays, form, reply):
    assert json.loads(json_tensors.outputs(arrays, form)) == reply


def strings(text):
    """The values of a reply, with numbers as they are spelt."""
    return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)


SPELLINGS = [  # float32, spelt
    (
        [[9000000, 999999, 0.5], [0.0003, 0.00003, 555557.5]],
        [["9e+06", "999999.0", "0.5"], ["0.0003", "3e-05", "555557.5"]],
    ),
    ([[NAN, INF], [3, -INF]], [["NaN", "Infinity"], ["3.0", "-Infinity"]]),
]


@pytest.mark.parametrize(("values", "spelt"), SPELLINGS)
def test_spelling_of_numbers(values, spelt):
    text = json_tensors.outputs({"x": array(values, np.float32)}, "instances")
    assert strings(text) == {"predictions": spelt}


BAD_REPLIES = [
    ({}, "empty tensor map"),
    ({"x": array([1, 2], np.complex64)}, "tensor type: complex64"),
    ({"x": array(1)}, "no shape information"),
    (
        {"i": array([[1, 2, 3], [4, 5, 6]]), "s": array([[b"foo", b"bar", b"baz"]], object)},
        "s has inconsistent batch size: 1 expecting: 2",
    ),
    (
        {"i": np.zeros((0, 2), np.int32), "s": array([[b"foo", b"bar"]], object)},
        "inconsistent batch size",
    ),
]


@pytest.mark.parametrize(("arrays", "message"), BAD_REPLIES)
def test_replies_that_are_refused(arrays, message):
    refuses(message, json_tensors.outputs, arrays, "instances")


EXAMPLES = [  # body, the tensorflow.serving.Input as text
    (
        """{"examples": [{"names": ["foo", "bar"], "ratings": [8.0, 9.0], "age": 20},
                         {"names": ["baz"], "ratings": 6.0}]}""",
        """example_list {
          examples { features {
            feature { key: "names" value { bytes_list { value: "foo" value: "bar" } } }
            feature { key: "ratings" value { float_list { value: 8 value: 9 } } }
            feature { key: "age" value { int64_list { value: 20 } } } } }
          examples { features {
            feature { key: "names" value { bytes_list { value: "baz" } } }
            feature { key: "ratings" value { float_list { value: 6 } } } } } }""",
    ),
    (
        """{"signature_name": "custom", "context": {"query": "pizza", "location": ["sfo"]},
            "examples": [
              {"names": ["foo", "bar"], "ratings": [8.0, 9.0, NaN, Infinity], "age": 20},
              {"names": ["baz", {"b64": "aGVsbG8="}], "ratings": 6.0, "mix": [1, true, false]},
              {"names": "bar", "ratings": -Infinity}]}""",
        """example_list_with_context {
          context { features {
            feature { key: "query" value { bytes_list { value: "pizza" } } }
            feature { key: "location" value { bytes_list { value: "sfo" } } } } }
          examples { features {
            feature { key: "names" value { bytes_list { value: "foo" value: "bar" } } }
            feature { key: "ratings"
              value { float_list { value: 8 value: 9 value: nan value: inf } } }
            feature { key: "age" value { int64_list { value: 20 } } } } }
          examples { features {
            feature { key: "names" value { bytes_list { value: "baz" value: "hello" } } }
            feature { key: "ratings" value { float_list { value: 6 } } }
            feature { key: "mix" value { int64_list { value: 1 value: 1 value: 0 } } } } }
          examples { features {
            feature { key: "names" value { bytes_list { value: "bar" } } }
            feature { key: "ratings" value { float_list { value: -inf } } } } } }""",
    ),
]
BAD_EXAMPLES = [
    (
        '{"signature_name": ["hello"], "examples": [{"names": ["foo", "bar"]}]}',
        "'signature_name' key must be a string",
    ),
    ('{"context": [{"names": ["foo", "bar"]}]}', "Example must be JSON object"),
    ('{"examples": {"names": ["foo", "bar"]}}', "list/array"),
    ('{"examples": [[{"names": ["foo", "bar"]}]]}', "Example must be JSON object"),
    ('{"examples": [{"names": [10, null]}]}', "names has element with unexpected JSON type: Null"),
    ('{"examples": [{"names": [10, 10.0]}]}', "feature: names expecting type: int64"),
    (
        '{"examples": [{"names": [10, {"test": 10}]}]}',
        "names has element with unexpected JSON type: Object",
    ),
    (
        '{"examples": [{"names": [[10], 20]}]}',
        "names has element with unexpected JSON type: Array",
    ),
    ('{"examples": [{"names": [20, 18446744073709551603]}]}', "Only int64_t is supported"),
]


def read_examples(body):
    request = json_tensors.parse(body.encode())
    json_tensors.signature_name(request)
    return examples.from_json(request)


@pytest.mark.parametrize(("body", "message"), EXAMPLES)
def test_examples(body, message):
    expected = text_format.Parse(message, read_examples(body).__class__())
    assert str(read_examples(body)) == str(expected)


@pytest.mark.parametrize(("body", "message"), BAD_EXAMPLES)
def test_examples_that_are_refused(body, message):
    refuses(message, read_examples, body)


def regressions(*values):
    return regression_pb2.RegressionResult(regressions=[{"value": v} for v in values])


VEHICLES = [
    [("car", 0.2), ("bike", 0.7), ("bus", 0.1)],
    [("car", 0.7), ("bike", 0.1), ("bus", 0.2)],
]
RESULTS = [  # result, spelt
    (
        classification_pb2.ClassificationResult(
            classifications=[
                {"classes": [{"label": label, "score": score} for label, score in row]}
                for row in VEHICLES
            ]
        ),
        [[[label, str(score)] for label, score in row] for row in VEHICLES],
    ),
    (regressions(0.2, 0.9, 1.0), ["0.2", "0.9", "1.0"]),
    (regressions(0.2, INF, 1.0, -INF, NAN), ["0.2", "Infinity", "1.0", "-Infinity", "NaN"]),
]


@pytest.mark.parametrize(("result", "spelt"), RESULTS)
def test_results(result, spelt):
    assert strings(examples.to_json(result)) == {"results": spelt}


BAD_RESULTS = [
    (classification_pb2.ClassificationResult(), "empty ClassificationResults"),
    (regressions(), "empty RegressionResults"),
]


@pytest.mark.parametrize(("result", "message"), BAD_RESULTS)
def test_results_that_are_refused(result, message):
    refuses(message, examples.to_json, result)


ERRORS = ['Bad key: "key"', "Bad key: 'key'"]


@pytest.mark.parametrize("message", ERRORS)
def test_errors(message):
    assert json.loads(json_tensors.error(message)) == {"error": message}


LABELS, SCORES = array([[b"a", b"b"]], object), array([[1, 2]], np.float32)
OUTPUTS = [  # method, outputs of one row, the result's values
    ("classify", {"classes": LABELS, "scores": SCORES}, [("a", 1.0), ("b", 2.0)]),
    ("classify", {"classes": LABELS}, [("a", 0.0), ("b", 0.0)]),
    ("classify", {"scores": SCORES}, [("", 1.0), ("", 2.0)]),
    ("classify", {"classes": LABELS, "scores": SCORES * 0}, [("a", 0.0), ("b", 0.0)]),
    ("regress", {"outputs": array([3], np.float32)}, [3.0]),
    ("regress", {"outputs": array([[3]], np.float32)}, [3.0]),
]
BAD_OUTPUTS = [
    ("classify", {"classes": LABELS.repeat(2, 0), "scores": SCORES}, "batch size"),
    ("classify", {"classes": SCORES, "scores": SCORES}, "Expected classes Tensor of DT_STRING"),
    ("classify", {"classes": LABELS, "scores": SCORES.repeat(2, 0)}, "batch size"),
    ("classify", {"classes": LABELS, "scores": LABELS}, "Expected scores Tensor of DT_FLOAT"),
    (
        "classify",
        {"classes": LABELS, "scores": SCORES.repeat(2, 1)},
        "Tensors class and score should match in dim_size(1). Got 2 vs. 4",
    ),
    ("regress", {"outputs": array([3, 4], np.float32)}, "Input batch size did not match output"),
    ("regress", {"outputs": array([3])}, "Expected output Tensor of DT_FLOAT"),
    ("regress", {"outputs": SCORES}, "Expected output Tensor shape to be either [batch_size] or "),
]
ONE_ROW = {examples.INPUT: array([b""], object)}


@pytest.mark.parametrize(("method", "outputs", "values"), OUTPUTS)
def test_outputs(method, outputs, values):
    result = examples.result(method, outputs, ONE_ROW)
    if method == "classify":
        (row,) = result.classifications
        assert [(one.label, one.score) for one in row.classes] == values
    else:
        assert [one.value for one in result.regressions] == values


@pytest.mark.parametrize(("method", "outputs", "message"), BAD_OUTPUTS)
def test_outputs_that_are_refused(method, outputs, message):
    refuses(message, examples.result, method, outputs, ONE_ROW)


CODED = "%21%23%24%25%26%27%28%29%2A%2B%2C%2F%3A%3B%3D%3F%40%5B%5D"
SIGNS = "!#$%&'()*+,/:;=?@[]"
GOOD_PATHS = [  # method, path, model, call
    ("GET", f"/v1/models/m{CODED}", ModelSpec(f"m{SIGNS}"), ""),
    ("GET", "/v1/models/m/versions/99", ModelSpec("m", 99), ""),
    ("GET", "/v1/models/m/labels/latest", ModelSpec("m", None, "latest"), ""),
    ("GET", f"/v1/models/m/labels/l{CODED}", ModelSpec("m", None, f"l{SIGNS}"), ""),
    ("GET", "/v1/models/m/labels/latest/metadata", ModelSpec("m", None, "latest"), "metadata"),
    (
        "GET",
        f"/v1/models/m{CODED}/labels/l{CODED}/metadata",
        ModelSpec(f"m{SIGNS}", None, f"l{SIGNS}"),
        "metadata",
    ),
    ("POST", f"/v1/models/m{CODED}:predict", ModelSpec(f"m{SIGNS}"), "predict"),
    ("POST", "/v1/models/m/versions/99:predict", ModelSpec("m", 99), "predict"),
    ("POST", "/v1/models/m/labels/latest:predict", ModelSpec("m", None, "latest"), "predict"),
    (
        "POST",
        f"/v1/models/m/labels/l{CODED}:predict",
        ModelSpec("m", None, f"l{SIGNS}"),
        "predict",
    ),
    (
        "POST",
        f"/v1/models/m{CODED}/labels/l{CODED}:predict",
        ModelSpec(f"m{SIGNS}", None, f"l{SIGNS}"),
        "predict",
    ),
]
BAD_PATHS = [  # method, path
    ("GET", "/v1/foo"),
    ("GET", "/v1/models/foo:predict"),
    ("GET", "/v1/models/foo/version/50:predict"),
    ("POST", "/v1/foo"),
    ("POST", "/v1/models"),
    ("POST", "/v1/models/foo/version/50:predict"),
    ("POST", "/v1/models/foo/versions/string:predict"),
    ("POST", "/v1/models/foo/metadata"),
    ("POST", "/v1/models/foo/versions/50/labels/some_label:regress"),
]


@pytest.mark.parametrize(("method", "path", "model", "call"), GOOD_PATHS)
def test_paths(method, path, model, call):
    assert parse_path(method, path) == (model, call)


@pytest.mark.parametrize(("method", "path"), BAD_PATHS)
def test_paths_that_are_refused(method, path):
    refuses("Malformed request", parse_path, method, path)


# Over the network.


ONE_VERSION = {
    "model_version_status": [
        {
            "version": "123",
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
    ]
}
ROWS = '{"instances": [1.0, 2.0]}'
REGRESS = '{"signature_name": "regress_x_to_y", "examples": [{"x": 80.0}]}'
LARGE = f"/v1/models/foo/versions/{2**64 - 1}:regress"
REST = [  # method, path (M: the model's), body, code, the answer or a part of the error
    ("GET", "/statuspage", "", 404, "Not Found"),
    ("GET", "/index", "", 404, "Not Found"),
    ("GET", "/v1/foo", "", 400, "Malformed request"),
    ("POST", "/v1/foo", "", 400, "Malformed request"),
    ("GET", "/v1/models", "", 400, "Missing model name"),
    ("GET", "/v1/models/debug/model_name", "", 400, "Malformed request"),
    ("POST", "/v1/models", "", 400, "Malformed request"),
    ("GET", "/v1/models/foo:predict", "", 400, "Malformed request"),
    ("GET", "/v1/models/foo/version/50:predict", "", 400, "Malformed request"),
    ("POST", "/v1/models/foo/version/50:regress", "", 400, "Malformed request"),
    ("POST", "/v1/models/foo/versions/HELLO:regress", "", 400, "Malformed request"),
    ("POST", LARGE, "", 400, None),  # without a body
    ("POST", "/v1/models/foo/metadata", "", 400, "Malformed request"),
    ("POST", "/v1/models/foo/label/some_label:regress", "", 400, "Malformed request"),
    ("POST", "/v1/models/foo/versions/50/labels/x:regress", "", 400, "Malformed request"),
    ("POST", "/v1/models/foo/versions/some_label:regress", "", 400, "Malformed request"),
    ("POST", "/v1/models/foo:predict", '{"instances": [1]}', 404, "Latest(foo)"),
    ("POST", "/v1/models/foo/versions/50:predict", '{"instances": [1]}', 404, "Specific(foo, 50)"),
    ("POST", "M99:predict", '{"instances": [1]}', 404, "not found"),
    ("POST", "M:predict", "", 400, "JSON Parse error: The document is empty"),
    ("POST", "M:predict", "instances = [1, 2]", 400, "JSON Parse error: Invalid value"),
    ("POST", "M:predict", '{"instances": ["x", "y"]}', 400, "not of expected type: float"),
    ("POST", "M/labels/x:predict", ROWS, 400, "Unrecognized servable version label"),
    (
        "POST",
        "M:predict",
        '{"signature_name": 100}',
        400,
        "'signature_name' key must be a string value.",
    ),
    (
        "POST",
        "M:predict",
        '{"instances": [[1.0, 2.0], [3.0, 4.0]]}',
        200,
        {"predictions": [[2.5, 3.0], [3.5, 4.0]]},
    ),
    ("POST", "M/versions/123:predict", ROWS, 200, {"predictions": [2.5, 3.0]}),
    ("POST", "M/labels/label:predict", ROWS, 200, {"predictions": [2.5, 3.0]}),
    (
        "POST",
        "M/versions/123:predict",
        '{"signature_name": "serving_default", "instances": [3.0, 4.0]}',
        200,
        {"predictions": [3.5, 4.0]},
    ),
    (
        "POST",
        "M/versions/123:predict",
        '{"signature_name": "serving_default", "inputs": [3.0, 4.0]}',
        200,
        {"outputs": [3.5, 4.0]},
    ),
    ("POST", "M:regress", REGRESS, 200, {"results": [42]}),
    ("POST", "M/versions/123:regress", REGRESS, 200, {"results": [42]}),
    ("POST", "M/labels/label:regress", REGRESS, 200, {"results": [42]}),
    (
        "POST",
        "M:classify",
        '{"signature_name": "classify_x_to_y", "examples": [{"x": 20.0}]}',
        200,
        {"results": [[["", 12]]]},
    ),
    (
        "POST",
        "M/labels/label:classify",
        '{"signature_name": "classify_x_to_y", "examples": [{"x": 10.0}]}',
        200,
        {"results": [[["", 7]]]},
    ),
    ("GET", "M", "", 200, ONE_VERSION),
    ("GET", "M/versions/123", "", 200, ONE_VERSION),
    ("GET", "M/labels/label", "", 200, ONE_VERSION),
]


@pytest.mark.parametrize(("method", "path", "body", "code", "answer"), REST)
def test_rest(one, method, path, body, code, answer):
    url = one[0] + path.replace("M", f"/v1/models/{NAME}", path.startswith("M"))
    reply = requests.request(method, url, data=body, timeout=30)
    assert reply.status_code == code, reply.text
    assert reply.headers["Content-Type"] == "application/json"
    if answer is None:
        assert not reply.content
    elif code == 200:
        assert reply.json() == answer
    else:
        assert answer in reply.json()["error"]


def test_rest_metadata(one):
    reply = requests.get(f"{one[0]}/v1/models/{NAME}/metadata", timeout=30)
    assert reply.headers["Content-Type"] == "application/json"
    answer = reply.json()
    assert answer["model_spec"] == {"name": NAME, "signature_name": "", "version": "123"}
    shape = {
        "dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}],
        "unknown_rank": False,
    }
    default = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    for kind, name in (("inputs", "x"), ("outputs", "y")):
        (info,) = default[kind].values()
        assert default[kind].keys() == {name}
        assert info["dtype"] == "DT_FLOAT" and info["tensor_shape"] == shape
    assert default["method_name"] == "tensorflow/serving/predict" and default["defaults"] == {}


def tensor(values, dtype=None):
    return tf.make_tensor_proto(values, dtype)


def predict_request(signature="", inputs=(), outputs=(), **spec):
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = spec.get("name", NAME)
    request.model_spec.signature_name = signature
    request.model_spec.version.value = spec.get("version", 123)
    for name, value in dict(inputs).items():
        request.inputs[name].CopyFrom(value)
    return request


X = {"x": tensor(2.0)}
PREDICT = [  # request, the output
    (predict_request(inputs=X), {"y": 3.0}),
    (predict_request(inputs=X, outputs=["y"]), {"y": 3.0}),
    (predict_request("regress_x2_to_y3", {"inputs": tensor(2.0)}), {"outputs": 4.0}),
    (predict_request("classify_x2_to_y3", {"inputs": tensor(2.0)}), {"scores": 4.0}),
    (predict_request("reset_counter"), {"output": 0.0}),
    (predict_request("incr_counter"), {"output": 1.0}),
    (predict_request("reset_counter"), {"output": 0.0}),
    (predict_request("incr_counter"), {"output": 1.0}),
]
UNNAMED = predict_pb2.PredictRequest()
UNNAMED.model_spec.SetInParent()
BAD_PREDICT = [  # request, code, part of the message
    (predict_pb2.PredictRequest(), "INVALID_ARGUMENT", "Missing ModelSpec"),
    (UNNAMED, "INVALID_ARGUMENT", "ModelSpec has no name specified."),
    (predict_request(), "INVALID_ARGUMENT", "input size does not match signature: 0!=1"),
    (
        predict_request(inputs={"unknown_key1": tensor(["any"]), "unknown_key2": tensor([1.0])}),
        "INVALID_ARGUMENT",
        "Sent extra: {unknown_key1,unknown_key2}. Missing but required: {x}",
    ),
    (
        predict_request(inputs={"x": tensor(True)}),
        "INVALID_ARGUMENT",
        "Expects arg[0] to be float but bool is provided",
    ),
    (
        predict_request(inputs={"x": tensor(["any"])}, outputs=["y"]),
        "INVALID_ARGUMENT",
        "to be float but string is provided",
    ),
    (
        predict_request(inputs=X, outputs=["output_filter"]),
        "INVALID_ARGUMENT",
        "output tensor alias not found in signature: output_filter",
    ),
    (
        predict_request(inputs=X, outputs=["y", "y"]),
        "INVALID_ARGUMENT",
        "duplicate output tensor alias: y",
    ),
    (predict_request("nope", X), "FAILED_PRECONDITION", 'signature key "nope" not found.'),
]


@pytest.mark.parametrize(("request_", "outputs"), PREDICT)
def test_grpc_predict(one, request_, outputs):
    response = prediction_service_pb2_grpc.PredictionServiceStub(one[1]).Predict(request_)
    assert {k: tf.make_ndarray(v).tolist() for k, v in response.outputs.items()} == outputs
    assert (response.model_spec.name, response.model_spec.version.value) == (NAME, 123)
    expected = request_.model_spec.signature_name or "serving_default"
    assert response.model_spec.signature_name == expected


def refused(call, request, code, message):
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=30)
    assert error.value.code() == grpc.StatusCode[code], error.value.details()
    assert message in error.value.details()


@pytest.mark.parametrize(("request_", "code", "message"), BAD_PREDICT)
def test_grpc_predict_that_is_refused(one, request_, code, message):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(one[1])
    refused(stub.Predict, request_, code, message)


def infer_request(*tasks, values=(2.0,)):
    request = inference_pb2.MultiInferenceRequest()
    for value in values:
        features = request.input.example_list.examples.add().features.feature
        features["x"].float_list.value.append(value)
    for signature, method, *name in tasks:
        task = request.tasks.add(method_name=f"tensorflow/serving/{method}")
        task.model_spec.name = name[0] if name else NAME
        task.model_spec.signature_name = signature
    return request


Y, Y2 = ("regress_x_to_y", "regress"), ("regress_x_to_y2", "regress")
CLASSES = ("classify_x_to_y", "classify")
INFER = [  # request, values of each task
    (infer_request(Y), [[3.0]]),
    (infer_request(Y, Y2), [[3.0], [4.0]]),
    (infer_request(Y, CLASSES), [[3.0], [3.0]]),
    (infer_request(CLASSES, values=(2.0, 4.0)), [[3.0, 4.0]]),
]
BAD_INFER = [
    (infer_request(Y, values=()), "INVALID_ARGUMENT", "Input is empty"),
    (infer_request(("None", "regress")), "INVALID_ARGUMENT", "signature not found"),
    (
        infer_request(Y, ("regress_x_to_y", "regress", "other")),
        "INVALID_ARGUMENT",
        "must access the same model name",
    ),
    (
        infer_request(Y, Y),
        "INVALID_ARGUMENT",
        "Duplicate evaluation of signature: regress_x_to_y",
    ),
    (infer_request(("serving_default", "predict")), "UNIMPLEMENTED", "Unsupported signature"),
    (infer_request(), "INVALID_ARGUMENT", "ModelSpec has no name specified."),
]


@pytest.mark.parametrize(("request_", "values"), INFER)
def test_grpc_multi_inference(one, request_, values):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(one[1])
    results = stub.MultiInference(request_, timeout=30).results
    assert [
        [row.classes[0].score for row in result.classification_result.classifications]
        + [row.value for row in result.regression_result.regressions]
        for result in results
    ] == values
    for result, task in zip(results, request_.tasks, strict=True):
        assert result.model_spec.signature_name == task.model_spec.signature_name
        assert result.model_spec.version.value == 123


@pytest.mark.parametrize(("request_", "code", "message"), BAD_INFER)
def test_grpc_multi_inference_that_is_refused(one, request_, code, message):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(one[1])
    refused(stub.MultiInference, request_, code, message)


def single(kind, signature, filled=True):
    request = kind(input=infer_request(values=(2.0,) if filled else ()).input)
    request.model_spec.name, request.model_spec.signature_name = NAME, signature
    return request


BAD_SINGLE = [  # call, request, part of the message
    ("Classify", classification_pb2.ClassificationRequest(), "Missing ModelSpec"),
    (
        "Classify",
        single(classification_pb2.ClassificationRequest, "nope"),
        "No signature was found with the name: nope",
    ),
    (
        "Classify",
        single(classification_pb2.ClassificationRequest, "classify_x_to_y", filled=False),
        "Input is empty",
    ),
    ("Regress", regression_pb2.RegressionRequest(), "Missing ModelSpec"),
    (
        "Regress",
        single(regression_pb2.RegressionRequest, "nope"),
        "No signature was found with the name: nope",
    ),
    (
        "Regress",
        single(regression_pb2.RegressionRequest, "regress_x_to_y", filled=False),
        "Input is empty",
    ),
]


@pytest.mark.parametrize(("call", "request_", "message"), BAD_SINGLE)
def test_grpc_classify_and_regress_that_are_refused(one, call, request_, message):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(one[1])
    refused(getattr(stub, call), request_, "INVALID_ARGUMENT", message)


def metadata_request(*fields, name=NAME):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    if name is not None:
        request.model_spec.name = name
    return request


BAD_METADATA = [
    (metadata_request(), "INVALID_ARGUMENT", "must specify at least one metadata_field"),
    (metadata_request("some_stuff"), "INVALID_ARGUMENT", "some_stuff is not supported"),
    (metadata_request("signature_def", name=None), "INVALID_ARGUMENT", "Missing ModelSpec"),
    (metadata_request("signature_def", name=""), "INVALID_ARGUMENT", "no name specified"),
    (metadata_request("signature_def", name="test"), "NOT_FOUND", "Servable not found"),
]


@pytest.mark.parametrize(("request_", "code", "message"), BAD_METADATA)
def test_grpc_metadata_that_is_refused(one, request_, code, message):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(one[1])
    refused(stub.GetModelMetadata, request_, code, message)


def test_grpc_metadata(one):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(one[1])
    response = stub.GetModelMetadata(metadata_request("signature_def"), timeout=30)
    assert (response.model_spec.name, response.model_spec.version.value) == (NAME, 123)
    assert response.model_spec.signature_name == ""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert {"serving_default", "regress_x_to_y"} <= signatures.signature_def.keys()


@pytest.fixture
def two(half_plus_two, tmp_path):
    for version in ("00000123", "00000124"):
        shutil.copytree(half_plus_two, tmp_path / version)
    policy = "specific { versions: 123 versions: 124 }"
    (tmp_path / "models.config").write_text(CONFIG.format(policy=policy))
    with serving(tmp_path) as server:
        yield server


def status_request(name=None, version=None):
    request = get_model_status_pb2.GetModelStatusRequest()
    if name is not None:
        request.model_spec.name = name
    if version is not None:
        request.model_spec.version.value = version
    return request


def test_grpc_status_and_labels(two):
    models = model_service_pb2_grpc.ModelServiceStub(two[1])
    predict = prediction_service_pb2_grpc.PredictionServiceStub(two[1]).Predict
    for request, code, message in BAD_STATUS:
        refused(models.GetModelStatus, request, code, message)
    for request, versions in STATUS:
        found = models.GetModelStatus(request, timeout=30).model_version_status
        assert [one.version for one in found] == versions
        assert {(one.status.error_code, one.status.error_message) for one in found} == {(0, "")}
    for labels, message in RELOADS:
        config = model_management_pb2.ReloadConfigRequest()
        text = CONFIG.format(policy="specific { versions: 123 versions: 124 }")
        text_format.Parse(text, config.config)
        for label, version in labels.items():
            config.config.model_config_list.config[0].version_labels[label] = version
        if message is None:
            assert models.HandleReloadConfigRequest(config, timeout=30).status.error_code == 0
        else:
            refused(models.HandleReloadConfigRequest, config, "FAILED_PRECONDITION", message)
    for label, version in SERVED_LABELS.items():
        request = predict_request(inputs=X)
        request.model_spec.version_label = label
        if version is None:
            refused(predict, request, "INVALID_ARGUMENT", "Unrecognized servable version label")
        else:
            assert predict(request, timeout=30).model_spec.version.value == version


BAD_STATUS = [
    (status_request(), "INVALID_ARGUMENT", "Missing ModelSpec"),
    (status_request("nonexistent_model"), "NOT_FOUND", "nonexistent_model"),
    (status_request(NAME, 125), "NOT_FOUND", "125"),
]
STATUS = [(status_request(NAME), [124, 123]), (status_request(NAME, 123), [123])]
# of server_core_test.cc, with --allow_version_labels_for_unavailable_models
RELOADS = [
    ({"A": 123, "B": 124}, None),
    ({"A": 123, "B": 124, "nice try": 999}, None),
    ({"A": 999, "B": 124}, "not currently available for inference"),
]
SERVED_LABELS = {"A": 123, "B": 124, "nonexistent label": None}
