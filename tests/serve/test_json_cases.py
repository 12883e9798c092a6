"""The cases of TF Serving's util/json_tensor_test.cc, classifier_test.cc and regressor_test.cc:
inputs, and the results that those tests expect. They were not compared with a TF Serving binary."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import classification_pb2, regression_pb2

from tfft.serve import examples, json_tensors
from tfft.serve.failure import Failure
from tfft.serve.loaded import TensorInfo

NAN, INF = math.nan, math.inf
DEEP = "[" * 20_000 + "]" * 20_000
LARGEST = float(np.finfo(np.float64).max)
SMALLEST = float(np.finfo(np.float64).tiny)
INT, FLOAT, DOUBLE, STRING = tf.int32, tf.float32, tf.float64, tf.string
SIX = [[1, 2], [3, 4], [5, 6]]


def parse_request(body, types):
    request = json_tensors.parse(body.encode())
    json_tensors.signature_name(request)
    return json_tensors.inputs(request, {n: TensorInfo(t, None) for n, t in types.items()})


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
    (f'{{"instances": [{LARGEST}]}}', {"x": FLOAT}, "instances", {"x": [INF]}),
    (f'{{"instances": [{-LARGEST}]}}', {"x": FLOAT}, "instances", {"x": [-INF]}),
    (f'{{"instances": [{SMALLEST}]}}', {"x": FLOAT}, "instances", {"x": [0.0]}),
    (f'{{"instances": [{-SMALLEST}]}}', {"x": FLOAT}, "instances", {"x": [-0.0]}),
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
def test_requests_are_converted_to_arrays(body, types, form, arrays):
    actual, actual_form = parse_request(body, types)
    assert actual_form == form and actual.keys() == arrays.keys()
    for name, dtype in types.items():
        expected = np.array(arrays[name], dtype.as_numpy_dtype)
        assert actual[name].dtype == expected.dtype
        np.testing.assert_array_equal(actual[name], expected)
        if dtype != STRING:
            np.testing.assert_array_equal(np.signbit(actual[name]), np.signbit(expected))


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


def check_failure(message, function, *arguments):
    with pytest.raises(Failure) as error:
        function(*arguments)
    assert (error.value.code, error.value.http) == ("INVALID_ARGUMENT", 400)
    assert message in error.value.message


@pytest.mark.parametrize(("body", "types", "message"), BAD_REQUESTS)
def test_invalid_requests_are_rejected(body, types, message):
    check_failure(message, parse_request, body, types)


def array(values, dtype=np.int32):
    return np.array(values, dtype)


INTS = [SIX, [[7, 8], [9, 0], [1, 2]]]
MIXED = {
    "int_tensor": array(INTS),
    "str_tensor": array([[b"foo", b"bar"], [b"baz", b"bat"]], object),
    "float_tensor": array([[1], [2]], np.float32),
    "double_scalar_tensor": array([8, 9], np.float64),
    "str_tensor_bytes": array([[b"hello", b"world"], [b"tf", b"serving"]], object),
}
HELLO, WORLD, TF, SERVING = (
    {"b64": text} for text in ("aGVsbG8=", "d29ybGQ=", "dGY=", "c2VydmluZw==")
)
REPLIES = [  # arrays, form, reply
    ({"x": array(INTS)}, "instances", {"predictions": INTS}),
    ({"x": array(INTS)}, "inputs", {"outputs": INTS}),
    ({"x": array([1, 2, 3, 4, 5])}, "instances", {"predictions": [1, 2, 3, 4, 5]}),
    ({"x": array([1, 2, 3, 4, 5])}, "inputs", {"outputs": [1, 2, 3, 4, 5]}),
    (
        {"str_tensor_bytes": MIXED["str_tensor_bytes"]},
        "instances",
        {"predictions": [[HELLO, WORLD], [TF, SERVING]]},
    ),
    (
        MIXED,
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
        MIXED,
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
def test_arrays_are_converted_to_replies(arrays, form, reply):
    assert json.loads(json_tensors.outputs(arrays, form)) == reply


def parse_as_strings(text):
    """Parse a reply, with numbers as the strings that it contains."""
    return json.loads(text, parse_float=str, parse_int=str, parse_constant=str)


SPELLINGS = [  # float32, text
    (
        [[9000000, 999999, 0.5], [0.0003, 0.00003, 555557.5]],
        [["9e+06", "999999.0", "0.5"], ["0.0003", "3e-05", "555557.5"]],
    ),
    ([[NAN, INF], [3, -INF]], [["NaN", "Infinity"], ["3.0", "-Infinity"]]),
]


@pytest.mark.parametrize(("values", "expected"), SPELLINGS)
def test_number_format(values, expected):
    text = json_tensors.outputs({"x": array(values, np.float32)}, "instances")
    assert parse_as_strings(text) == {"predictions": expected}


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
def test_invalid_outputs_of_predict_are_rejected(arrays, message):
    check_failure(message, json_tensors.outputs, arrays, "instances")


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
def test_examples_are_parsed(body, message):
    expected = text_format.Parse(message, read_examples(body).__class__())
    assert str(read_examples(body)) == str(expected)


@pytest.mark.parametrize(("body", "message"), BAD_EXAMPLES)
def test_invalid_examples_are_rejected(body, message):
    check_failure(message, read_examples, body)


def regressions(*values):
    return regression_pb2.RegressionResult(regressions=[{"value": v} for v in values])


VEHICLES = [
    [("car", 0.2), ("bike", 0.7), ("bus", 0.1)],
    [("car", 0.7), ("bike", 0.1), ("bus", 0.2)],
]
RESULTS = [  # result, text
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


@pytest.mark.parametrize(("result", "expected"), RESULTS)
def test_results_are_converted_to_json(result, expected):
    assert parse_as_strings(examples.to_json(result)) == {"results": expected}


BAD_RESULTS = [
    (classification_pb2.ClassificationResult(), "empty ClassificationResults"),
    (regressions(), "empty RegressionResults"),
]


@pytest.mark.parametrize(("result", "message"), BAD_RESULTS)
def test_empty_results_are_rejected(result, message):
    check_failure(message, examples.to_json, result)


ERRORS = ['Bad key: "key"', "Bad key: 'key'"]


@pytest.mark.parametrize("message", ERRORS)
def test_error_replies(message):
    assert json.loads(json_tensors.error(message)) == {"error": message}


LABELS, SCORES = array([[b"a", b"b"]], object), array([[1, 2]], np.float32)
OUTPUTS = [  # method, outputs of one row, values of the result
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
def test_outputs_are_converted_to_results(method, outputs, values):
    result = examples.result(method, outputs, ONE_ROW)
    if method == "classify":
        (row,) = result.classifications
        assert [(entry.label, entry.score) for entry in row.classes] == values
    else:
        assert [entry.value for entry in result.regressions] == values


@pytest.mark.parametrize(("method", "outputs", "message"), BAD_OUTPUTS)
def test_invalid_outputs_are_rejected(method, outputs, message):
    check_failure(message, examples.result, method, outputs, ONE_ROW)
