"""The cases of TF Serving's predict_util_test.cc, multi_inference_test.cc, classifier_test.cc,
regressor_test.cc, get_model_metadata_impl_test.cc, get_model_status_impl_test.cc and, for labels,
server_core_test.cc: requests, and the answers that those tests expect. They were not compared with
a TF Serving binary."""

import shutil

import grpc
import pytest
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
PREDICT = [  # request, outputs
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
def test_grpc_predict(single_version_server, request_, outputs):
    response = prediction_service_pb2_grpc.PredictionServiceStub(single_version_server[1]).Predict(
        request_
    )
    assert {k: tf.make_ndarray(v).tolist() for k, v in response.outputs.items()} == outputs
    assert (response.model_spec.name, response.model_spec.version.value) == (NAME, 123)
    expected = request_.model_spec.signature_name or "serving_default"
    assert response.model_spec.signature_name == expected


def check_rejected(call, request, code, message):
    with pytest.raises(grpc.RpcError) as error:
        call(request, timeout=30)
    assert error.value.code() == grpc.StatusCode[code], error.value.details()
    assert message in error.value.details()


@pytest.mark.parametrize(("request_", "code", "message"), BAD_PREDICT)
def test_grpc_predict_rejects(single_version_server, request_, code, message):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(single_version_server[1])
    check_rejected(stub.Predict, request_, code, message)


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
def test_grpc_multi_inference(single_version_server, request_, values):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(single_version_server[1])
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
def test_grpc_multi_inference_rejects(single_version_server, request_, code, message):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(single_version_server[1])
    check_rejected(stub.MultiInference, request_, code, message)


def single_example_request(message_class, signature, with_example=True):
    request = message_class(input=infer_request(values=(2.0,) if with_example else ()).input)
    request.model_spec.name, request.model_spec.signature_name = NAME, signature
    return request


BAD_SINGLE = [  # call, request, part of the message
    ("Classify", classification_pb2.ClassificationRequest(), "Missing ModelSpec"),
    (
        "Classify",
        single_example_request(classification_pb2.ClassificationRequest, "nope"),
        "No signature was found with the name: nope",
    ),
    (
        "Classify",
        single_example_request(
            classification_pb2.ClassificationRequest, "classify_x_to_y", with_example=False
        ),
        "Input is empty",
    ),
    ("Regress", regression_pb2.RegressionRequest(), "Missing ModelSpec"),
    (
        "Regress",
        single_example_request(regression_pb2.RegressionRequest, "nope"),
        "No signature was found with the name: nope",
    ),
    (
        "Regress",
        single_example_request(
            regression_pb2.RegressionRequest, "regress_x_to_y", with_example=False
        ),
        "Input is empty",
    ),
]


@pytest.mark.parametrize(("call", "request_", "message"), BAD_SINGLE)
def test_grpc_classify_and_regress_reject(single_version_server, call, request_, message):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(single_version_server[1])
    check_rejected(getattr(stub, call), request_, "INVALID_ARGUMENT", message)


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
def test_grpc_metadata_rejects(single_version_server, request_, code, message):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(single_version_server[1])
    check_rejected(stub.GetModelMetadata, request_, code, message)


def test_grpc_metadata(single_version_server):
    stub = prediction_service_pb2_grpc.PredictionServiceStub(single_version_server[1])
    response = stub.GetModelMetadata(metadata_request("signature_def"), timeout=30)
    assert (response.model_spec.name, response.model_spec.version.value) == (NAME, 123)
    assert response.model_spec.signature_name == ""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert {"serving_default", "regress_x_to_y"} <= signatures.signature_def.keys()


@pytest.fixture
def two_version_server(half_plus_two, tmp_path):
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


BAD_STATUS = [
    (status_request(), "INVALID_ARGUMENT", "Missing ModelSpec"),
    (status_request("nonexistent_model"), "NOT_FOUND", "nonexistent_model"),
    (status_request(NAME, 125), "NOT_FOUND", "125"),
]
STATUS = [(status_request(NAME), [124, 123]), (status_request(NAME, 123), [123])]
# from server_core_test.cc, with --allow_version_labels_for_unavailable_models
RELOADS = [
    ({"A": 123, "B": 124}, None),
    ({"A": 123, "B": 124, "nice try": 999}, None),
    ({"A": 999, "B": 124}, "not currently available for inference"),
]
SERVED_LABELS = {"A": 123, "B": 124, "nonexistent label": None}


def test_grpc_status_and_labels(two_version_server):
    models = model_service_pb2_grpc.ModelServiceStub(two_version_server[1])
    predict = prediction_service_pb2_grpc.PredictionServiceStub(two_version_server[1]).Predict
    for request, code, message in BAD_STATUS:
        check_rejected(models.GetModelStatus, request, code, message)
    for request, versions in STATUS:
        statuses = models.GetModelStatus(request, timeout=30).model_version_status
        assert [entry.version for entry in statuses] == versions
        assert {(entry.status.error_code, entry.status.error_message) for entry in statuses} == {
            (0, "")
        }
    for labels, message in RELOADS:
        config = model_management_pb2.ReloadConfigRequest()
        text = CONFIG.format(policy="specific { versions: 123 versions: 124 }")
        text_format.Parse(text, config.config)
        for label, version in labels.items():
            config.config.model_config_list.config[0].version_labels[label] = version
        if message is None:
            assert models.HandleReloadConfigRequest(config, timeout=30).status.error_code == 0
        else:
            check_rejected(models.HandleReloadConfigRequest, config, "FAILED_PRECONDITION", message)
    for label, version in SERVED_LABELS.items():
        request = predict_request(inputs=X)
        request.model_spec.version_label = label
        if version is None:
            check_rejected(
                predict, request, "INVALID_ARGUMENT", "Unrecognized servable version label"
            )
        else:
            assert predict(request, timeout=30).model_spec.version.value == version
