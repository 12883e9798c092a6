"""The cases of TF Serving's http_rest_api_handler_test.cc and http_rest_api_util_test.cc.

Each has a request and the answer that those tests expect. They were not compared with a TF Serving
binary.
"""

import pytest
import requests

from tests.serve.half_plus_two import NAME
from tests.serve.test_json_cases import check_failure
from tfft.serve.http import parse_path
from tfft.serve.versions import ModelSpec

ENCODED_SIGNS = "%21%23%24%25%26%27%28%29%2A%2B%2C%2F%3A%3B%3D%3F%40%5B%5D"
SIGNS = "!#$%&'()*+,/:;=?@[]"
GOOD_PATHS = [  # method, path, model, call
    ("GET", f"/v1/models/m{ENCODED_SIGNS}", ModelSpec(f"m{SIGNS}"), ""),
    ("GET", "/v1/models/m/versions/99", ModelSpec("m", 99), ""),
    ("GET", "/v1/models/m/labels/latest", ModelSpec("m", None, "latest"), ""),
    ("GET", f"/v1/models/m/labels/l{ENCODED_SIGNS}", ModelSpec("m", None, f"l{SIGNS}"), ""),
    ("GET", "/v1/models/m/labels/latest/metadata", ModelSpec("m", None, "latest"), "metadata"),
    (
        "GET",
        f"/v1/models/m{ENCODED_SIGNS}/labels/l{ENCODED_SIGNS}/metadata",
        ModelSpec(f"m{SIGNS}", None, f"l{SIGNS}"),
        "metadata",
    ),
    ("POST", f"/v1/models/m{ENCODED_SIGNS}:predict", ModelSpec(f"m{SIGNS}"), "predict"),
    ("POST", "/v1/models/m/versions/99:predict", ModelSpec("m", 99), "predict"),
    ("POST", "/v1/models/m/labels/latest:predict", ModelSpec("m", None, "latest"), "predict"),
    (
        "POST",
        f"/v1/models/m/labels/l{ENCODED_SIGNS}:predict",
        ModelSpec("m", None, f"l{SIGNS}"),
        "predict",
    ),
    (
        "POST",
        f"/v1/models/m{ENCODED_SIGNS}/labels/l{ENCODED_SIGNS}:predict",
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
def test_paths_are_rejected(method, path):
    check_failure("Malformed request", parse_path, method, path)


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
REST = [  # method, path (M: path of the model), body, code, answer or part of the error
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
def test_rest(single_version_server, method, path, body, code, answer):
    url = single_version_server[0] + path.replace("M", f"/v1/models/{NAME}", path.startswith("M"))
    reply = requests.request(method, url, data=body, timeout=30)
    assert reply.status_code == code, reply.text
    assert reply.headers["Content-Type"] == "application/json"
    if answer is None:
        assert not reply.content
    elif code == 200:
        assert reply.json() == answer
    else:
        assert answer in reply.json()["error"]


def test_rest_metadata(single_version_server):
    reply = requests.get(f"{single_version_server[0]}/v1/models/{NAME}/metadata", timeout=30)
    assert reply.headers["Content-Type"] == "application/json"
    answer = reply.json()
    assert answer["model_spec"] == {"name": NAME, "signature_name": "", "version": "123"}
    shape = {
        "dim": [{"size": "-1", "name": ""}, {"size": "1", "name": ""}],
        "unknown_rank": False,
    }
    signature = answer["metadata"]["signature_def"]["signature_def"]["serving_default"]
    for direction, name in (("inputs", "x"), ("outputs", "y")):
        (info,) = signature[direction].values()
        assert signature[direction].keys() == {name}
        assert info["dtype"] == "DT_FLOAT" and info["tensor_shape"] == shape
    assert signature["method_name"] == "tensorflow/serving/predict" and signature["defaults"] == {}
